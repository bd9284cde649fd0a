//! Single pages become a large folio again: what was split, came back page by page, or was copied page by page.
//!
//! A group's worth of pages is looked at together. Where all are in memory or in their slots, most are in memory, and
//! some were used since reclaim last looked, those that are out come in, and a new folio takes the place of all: by
//! break-before-make under the table's lock, with data and tags copied between. Memory for it is taken above the low
//! watermark only. Nobody waits for this; whoever calls says how much is to be looked at.
//!
//! **What stays as it is.** A group that is whole; pages that another space has too, or a pin or reclaim holds; pages
//! that the program gave up or never stored to; a region that is to have single pages, or is locked, whose pages
//! nobody may take away even for a moment; in a space with a cap, a group of which pages are out.

use core::ops::{ControlFlow, RangeInclusive};

use arrayvec::ArrayVec;

use super::copy::{copy_contents, leaf_of_copy};
use super::fault::Access;
use super::{Part, Protection, Space};
use crate::addr::{Pfn, VirtAddr, Vpn, VpnRange};
use crate::frame::{Frame, MAP, flag};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Decoded, Leaf};
use crate::table::{CHUNK, Cursor, LeafTable, group};
use crate::tlb::Flush;

/// Where a search for groups to collapse stands.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Search {
    /// More of the space comes after this address.
    At(VirtAddr),
    /// All of it has been looked at.
    Done,
}

/// What is in a group's place.
#[derive(Default)]
struct Found {
    present: u64,
    out: u64,
    is_used: bool,
}

impl<M: Machine> Space<M> {
    /// Looks at up to `groups` groups from `from` on, and makes one folio each of those that are worth it. Where folios
    /// of that size are not to be made, none is.
    pub fn collapse(&self, mm: &Mm<M>, from: VirtAddr, groups: u64) -> Search {
        if !mm.folio_orders().has(M::Granule::GROUP_ORDER) {
            return Search::Done;
        }
        let guarded = self.lock(mm);
        let (mut left, mut next) = (groups, from.vpn::<M::Granule>());
        while let Some(region) = guarded.regions.at_or_after(mm, next) {
            let whole =
                group::within::<M::Granule>(region.pages.intersection(VpnRange::between(next, self.pages(mm).end())));
            next = region.pages.end();
            if region.protection.intersects(Protection::SINGLE | Protection::LOCKED) {
                continue;
            }
            let part = Part { pages: whole, region, streams: &guarded.streams, is_capped: guarded.cap.is_some() };
            let mut stopped = None;
            let _ = self.try_each_leaf_table(mm, whole, |table, run| {
                for start in (run.start().number()..run.end().number()).step_by(M::Granule::GROUP_PAGES) {
                    let run = group::around::<M::Granule>(VpnRange::new(Vpn::new(start), 1));
                    if left == 0 {
                        stopped = Some(run.start());
                        return ControlFlow::Break(());
                    }
                    left -= 1;
                    let _ = self.collapse_group(mm, &part, table, run);
                }
                ControlFlow::Continue(())
            });
            if let Some(at) = stopped {
                return Search::At(at.base::<M::Granule>());
            }
        }
        Search::Done
    }

    /// Makes a folio of a group's pages. `None` when it is not worth it, or cannot be.
    fn collapse_group(&self, mm: &Mm<M>, part: &Part<'_>, table: LeafTable, run: VpnRange) -> Option<()> {
        let found = look::<M>(&table.lock(mm)?, run)?;
        if !found.is_used || !worth::<M>().contains(&found.present) || found.present + found.out < run.pages() {
            return None;
        }
        if found.out > 0 && part.is_capped {
            return None;
        }
        // First of all: without it nothing need come in.
        let folio = mm.take_large(M::Granule::GROUP_ORDER)?;
        if found.out > 0 {
            // As for a store: to stay in memory alone.
            self.bring_in(mm, &Part { pages: run, ..*part }, Access::Write);
        }
        let mut old: ArrayVec<(Frame, u64), CHUNK> = ArrayVec::new();
        {
            let mut cursor = table.lock(mm)?;
            let is_whole = look::<M>(&cursor, run).is_some_and(|now| now.present == run.pages());
            if !is_whole || !can_move(mm, &cursor, run) {
                return None;
            }
            let mut flush = Flush::new(mm);
            let mut frames: ArrayVec<Pfn, CHUNK> = ArrayVec::new();
            cursor.take_leaves(cursor.whole(run), |_| true, |_, leaf| frames.push(leaf.pfn::<M::Granule>()));
            flush.note(self.node, run);
            // From here on no program stores to the old pages.
            flush.invalidate();
            for (page, &from) in (0..).zip(&frames) {
                let frames = mm.frames();
                let (Some(from), Some(to)) = (frames.frame(from), frames.tail(folio.frame(), page)) else { continue };
                copy_contents(mm, from, (&folio, to), part.region.protection);
                old.push((frames.head(from), MAP));
            }
            let record = mm.frames().record(folio.frame());
            record.count.begin(MAP * run.pages());
            Home::new(self.node, run.start()).store(&record.home);
            cursor.map(run, leaf_of_copy::<M>(folio.pfn(), part.region.protection));
        }
        mm.reclaim().insert(mm.frames(), folio.publish());
        mm.release(old.into_iter());
        mm.stats().collapses.bump();
        Some(())
    }
}

/// The pages of a group that must be in memory: at least half, so that no more is brought in than is there.
const fn worth<M: Machine>() -> RangeInclusive<u64> {
    M::Granule::GROUP_PAGES as u64 / 2..=M::Granule::GROUP_PAGES as u64
}

/// What a group's entries say. `None` when it is whole already, or something in it is not to be moved.
fn look<M: Machine>(cursor: &Cursor<'_, M>, run: VpnRange) -> Option<Found> {
    let mut found = Found::default();
    for page in 0..run.pages() {
        match cursor.read(run.start().offset(page)) {
            Decoded::Leaf(leaf) if is_movable(leaf) => {
                found.present += 1;
                found.is_used |= leaf.is_accessed();
            }
            Decoded::Swapped(entry) if entry.is_exclusive() => found.out += 1,
            _ => return None,
        }
    }
    Some(found)
}

/// A page that the program has alone, and has stored to. What is clean was given up, or never was anything, or is in
/// its slot as well: to copy it would make it something to keep.
fn is_movable(leaf: Leaf) -> bool {
    leaf.is_exclusive() && leaf.is_dirty() && !leaf.is_contiguous()
}

/// Whether nobody else holds any of a group's pages, all of which are there.
fn can_move<M: Machine>(mm: &Mm<M>, cursor: &Cursor<'_, M>, run: VpnRange) -> bool {
    let frames = mm.frames();
    (0..run.pages()).all(|page| match cursor.read(run.start().offset(page)) {
        Decoded::Leaf(leaf) => frames.frame(leaf.pfn::<M::Granule>()).is_some_and(|frame| {
            let head = frames.head(frame);
            !frames.is_pinned(head) && !frames.record(head).has(flag::CACHED)
        }),
        _ => false,
    })
}
