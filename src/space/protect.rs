//! Changing what a program may do with a range.
//!
//! A right that the regions lose is taken from the entries, and from every TLB, before the call returns. The right to
//! store is given to entries at once where the page is exclusive; the right to execute waits for the fetch, which
//! pays for the code sync.
//!
//! **Becoming tagged.** An entry of a tagged region has another memory type, which only break-before-make may change:
//! the entry is taken away, the flush completes, the tags of the page are zeroed if they are some earlier owner's,
//! and the entry comes back. The leaf table's lock is held throughout, so that nobody takes the hole for an empty
//! entry.

use arrayvec::ArrayVec;

use super::regions::Region;
use super::{MapError, Protection, Space};
use crate::addr::{VirtAddr, Vpn, VpnRange};
use crate::frame::flag;
use crate::machine::{Features, Machine};
use crate::mm::Mm;
use crate::pte::{Decoded, Exclusive, Leaf, Loss, Rights};
use crate::table::{CHUNK, Change, Cursor, Edge, Fitted, chunks, group};
use crate::tlb::{Flush, Lost};

/// What of a protection is a wish, which stays when rights change.
const ASKED_FOR: Protection = Protection::LOCKED.union(Protection::SINGLE);

/// A change of a protection: what stays of it, and what comes.
#[derive(Copy, Clone)]
struct Edit {
    keep: Protection,
    set: Protection,
}

/// What folios a program wants new memory to be.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Folios {
    /// Of every order that there is.
    Any,
    /// Of one page.
    Single,
}

impl<M: Machine> Space<M> {
    /// Gives a range another protection, up to its first page that has no region. A tagged region stays tagged.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfRange`], [`MapError::NoMemory`] when there is none for a region's
    /// record: nothing was changed. [`MapError::NotMapped`] with the first page that has no region: what comes before
    /// it was changed, as on Linux.
    pub fn protect(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), MapError> {
        let protection = usable(mm, protection) - ASKED_FOR;
        self.change(mm, start, bytes, Edit { keep: ASKED_FOR | Protection::TAGGED, set: protection })
    }

    /// Keeps what a range has in memory from now on, and what comes there: reclaim leaves it alone. Nothing comes by
    /// this; [`Space::handle_fault`] of each page brings it.
    ///
    /// A page that several spaces share, or that a device once refused, and that another CPU is about to evict at this
    /// moment, may go out once more.
    ///
    /// # Errors
    /// As [`Space::protect`].
    pub fn mlock(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64) -> Result<(), MapError> {
        self.change(mm, start, bytes, Edit { keep: Protection::all(), set: Protection::LOCKED })
    }

    /// Ends what [`Space::mlock`] began.
    ///
    /// # Errors
    /// As [`Space::protect`].
    pub fn munlock(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64) -> Result<(), MapError> {
        self.change(mm, start, bytes, Edit { keep: !Protection::LOCKED, set: Protection::empty() })
    }

    /// Says what folios new memory in a range may be. What is there stays as it is.
    ///
    /// # Errors
    /// As [`Space::protect`].
    pub fn prefer_folios(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64, folios: Folios) -> Result<(), MapError> {
        let set = match folios {
            Folios::Any => Protection::empty(),
            Folios::Single => Protection::SINGLE,
        };
        self.change(mm, start, bytes, Edit { keep: !Protection::SINGLE, set })
    }

    /// Gives the regions in a range the protection that `edit` makes of theirs, and their entries what follows from it.
    fn change(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64, edit: Edit) -> Result<(), MapError> {
        let new = |old: Protection| old & edit.keep | edit.set;
        let wanted = self.checked_range(mm, start, bytes)?;
        let mut guarded = self.lock(mm);
        let regions = &mut guarded.regions;
        let range = regions.covered(mm, wanted);
        let done = if range == wanted { Ok(()) } else { Err(MapError::NotMapped(range.end().base::<M::Granule>())) };
        if range.is_empty() {
            return done;
        }
        regions.reserve(mm).ok_or(MapError::NoMemory)?;
        let mut flush = Flush::new(mm);
        let around = group::around::<M::Granule>(range);
        let mut left = range;
        while !left.is_empty()
            && let Some(region) = regions.protect(mm, left, new)
        {
            let part = Region { pages: region.pages.intersection(range), ..region };
            let is_changed = new(region.protection) != region.protection;
            if is_changed {
                self.protect_pages(mm, part, new(region.protection), &mut flush);
            }
            if region.pages.start() < range.start() && range.end() < region.pages.end() {
                // The inner part of one region: neither of its ends has a neighbour to join.
                self.heal(mm, if is_changed { part } else { region }, around, &mut flush);
                return done;
            }
            left = VpnRange::between(part.pages.end(), range.end());
        }
        match regions.join(mm, range) {
            Some(region) if range.end() <= region.pages.end() => self.heal(mm, region, around, &mut flush),
            _ => {
                let mut page = range.start();
                while page < range.end()
                    && let Some(region) = regions.at_or_after(mm, page)
                {
                    self.heal(mm, region, around, &mut flush);
                    page = region.pages.end();
                }
            }
        }
        done
    }

    /// Folds the groups of `region` in `around` that have become uniform. A group lies in one region: what a fault adds
    /// to one of its pages, it adds to all. What lies in another region than the changed range has not changed.
    #[inline]
    fn heal(&self, mm: &Mm<M>, region: Region, around: VpnRange, flush: &mut Flush<'_, M>) {
        let groups = group::within::<M::Granule>(region.pages.intersection(around));
        self.for_each_leaf_table(mm, groups, |table, part| {
            if let Some(mut cursor) = table.lock(mm) {
                cursor.refold(part, self.node, flush);
            }
        });
    }

    /// Gives the pages of `region` another protection than it had.
    fn protect_pages(&self, mm: &Mm<M>, region: Region, protection: Protection, flush: &mut Flush<'_, M>) {
        let change = protection ^ region.protection;
        if change == Protection::SINGLE {
            return;
        }
        let becomes_tagged = (protection - region.protection).contains(Protection::TAGGED);
        self.for_each_leaf_table(mm, region.pages, |table, part| {
            for part in chunks(part) {
                let Some(mut cursor) = table.lock(mm) else { return };
                let run = cursor.fit(part, Edge::Unfold, self.node, flush);
                if becomes_tagged {
                    self.tag_pages(mm, &mut cursor, run, flush);
                }
                if change.contains(Protection::LOCKED) {
                    self.change_run(mm, &mut cursor, run, flush, |leaf, _| leaf.locked_as(protection));
                } else {
                    self.protect_run(mm, &mut cursor, run, protection, flush);
                }
            }
        });
    }

    fn protect_run(
        &self,
        mm: &Mm<M>,
        cursor: &mut Cursor<'_, M>,
        run: Fitted,
        protection: Protection,
        flush: &mut Flush<'_, M>,
    ) {
        let rights = Rights::of(protection);
        if rights.include_write() {
            self.change_run(mm, cursor, run, flush, |leaf, proof| rights.with_write(leaf, proof));
        } else {
            self.change_run(mm, cursor, run, flush, |leaf, _| rights.without_write(leaf));
        }
        if cursor.holds_swapped() {
            for page in 0..run.pages().pages() {
                let page = run.pages().start().offset(page);
                // Reclaim took the entry away, and its flush may be still to come. That we have seen it gone is enough
                // for our fence to make it so for every walker.
                if matches!(cursor.read(page), Decoded::Swapped(entry) if mm.is_cached(entry)) {
                    flush.note(self.node, VpnRange::new(page, 1));
                }
            }
        }
    }

    /// Changes the rights of a run. A function of its own for each kind of change: the loop within is what mprotect
    /// costs.
    #[inline(never)]
    fn change_run(
        &self,
        mm: &Mm<M>,
        cursor: &mut Cursor<'_, M>,
        run: Fitted,
        flush: &mut Flush<'_, M>,
        change: impl Fn(Leaf, Option<&Exclusive<'_>>) -> Leaf,
    ) {
        let mut lost = Lost::new(self.node, flush);
        let mut losses = Loss::NONE;
        cursor.update(run, change, |pages, Change { was, is }| {
            let loss = was.loss(is);
            losses = losses.and(loss);
            if loss.is_some() {
                lost.add(pages);
            }
        });
        drop(lost);
        if losses.of_execution() {
            unsync(mm, cursor, run);
        }
    }

    /// Makes the untagged pages of a run tagged.
    fn tag_pages(&self, mm: &Mm<M>, cursor: &mut Cursor<'_, M>, run: Fitted, flush: &mut Flush<'_, M>) {
        let is_untagged = |page| matches!(cursor.read(page), Decoded::Leaf(leaf) if !leaf.is_tagged());
        let pages = (0..run.pages().pages()).map(|page| run.pages().start().offset(page));
        if !pages.clone().any(is_untagged) {
            return;
        }
        let mut leaves: ArrayVec<(Vpn, Leaf), CHUNK> = ArrayVec::new();
        cursor.take_leaves(
            run,
            |_| true,
            |page, leaf| {
                leaves.push((page, leaf));
                flush.note(self.node, VpnRange::new(page, 1));
            },
        );
        flush.invalidate();
        for (_, leaf) in &leaves {
            tag_page(mm, leaf);
        }
        cursor.put_back(leaves.into_iter().map(|(page, leaf)| (page, leaf.with_tags())));
    }
}

/// The pages of a run may not be executed any more: what is stored from now on, the program need not sync before they
/// may again.
#[cold]
fn unsync<M: Machine>(mm: &Mm<M>, cursor: &Cursor<'_, M>, run: Fitted) {
    for page in 0..run.pages().pages() {
        if let Decoded::Leaf(leaf) = cursor.read(run.pages().start().offset(page))
            && let Some(frame) = mm.frames().frame(leaf.pfn::<M::Granule>())
        {
            mm.frames().record(frame).clear(flag::CODE_SYNCED);
        }
    }
}

/// Zeroes the tags of an untagged page that is to show them. Nobody can reach the page.
fn tag_page<M: Machine>(mm: &Mm<M>, leaf: &Leaf) {
    let pfn = leaf.pfn::<M::Granule>();
    let Some(frame) = mm.frames().frame(pfn) else { return };
    let record = mm.frames().record(frame);
    if !record.has(flag::TAGS_VALID) {
        mm.machine().zero_tags(pfn);
        record.set(flag::TAGS_VALID);
    }
}

/// What of `protection` this machine has: without MTE no region is tagged.
pub(super) fn usable<M: Machine>(mm: &Mm<M>, protection: Protection) -> Protection {
    if mm.machine().features().contains(Features::MTE) { protection } else { protection - Protection::TAGGED }
}
