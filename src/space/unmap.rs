//! Taking pages away: munmap, MADV_DONTNEED, and the end of a space.

use arrayvec::ArrayVec;

use super::regions::Regions;
use super::{Guarded, MapError, Space};
use crate::addr::{VirtAddr, Vpn, VpnRange};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::NodeId;
use crate::pte::SwapEntry;
use crate::table::{self, CHUNK, Edge, Hole, LeafTable, Taken, chunks};
use crate::tlb::{Flush, Lost};

/// Entries of a chunk that are gone, whose pages were still in memory.
pub(crate) type Unused = ArrayVec<SwapEntry, CHUNK>;

/// Gives back the uses that entries of `pages`, from `first` on, had of their slots: they were taken out of a table of
/// `node`. Those that were the last of pages still in memory join `unused`.
#[cold]
pub(crate) fn give_up<M: Machine>(
    mm: &Mm<M>,
    node: NodeId,
    (pages, first): (VpnRange, SwapEntry),
    unused: &mut Unused,
    flush: &mut Flush<'_, M>,
) {
    // Reclaim took the leaves away, and its flush may be still to come. Who has a page last waits for that, to let go
    // of it; the others leave it to reclaim.
    if !first.is_exclusive() {
        for page in (0..pages.pages()).filter(|&page| mm.is_cached(first.nth(page))) {
            flush.note(node, VpnRange::new(pages.start().offset(page), 1));
        }
    }
    mm.put_slots(first, pages.pages(), |entry| unused.push(entry));
}

impl<M: Machine> Space<M> {
    /// Removes whatever is mapped in a range; holes are no error.
    ///
    /// # Errors
    /// [`MapError::Empty`], [`MapError::Misaligned`], [`MapError::OutOfRange`]; [`MapError::NoMemory`] when a region
    /// would have to be cut and there is no memory for the second part's record.
    pub fn unmap(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64) -> Result<(), MapError> {
        let range = self.checked_range(mm, start, bytes)?;
        if range.is_empty() {
            return Err(MapError::Empty);
        }
        let mut guarded = self.lock(mm);
        let Guarded { regions, near, .. } = &mut *guarded;
        if regions.spans(mm, range.start()) || regions.spans(mm, range.end()) {
            regions.reserve(mm).ok_or(MapError::NoMemory)?;
        }
        self.remove(mm, regions, range);
        *near = None;
        self.prune(mm, regions, range);
        Ok(())
    }

    /// Removes regions, and what is mapped. After [`Regions::reserve`]; leaves what one more insertion may need.
    pub(super) fn remove(&self, mm: &Mm<M>, regions: &mut Regions, range: VpnRange) {
        regions.cut(mm, range.start());
        regions.cut(mm, range.end());
        while let Some(region) = regions.at_or_after(mm, range.start())
            && region.pages.start() < range.end()
        {
            regions.remove(mm, region.pages.start());
        }
        self.unmap_pages(mm, range, &mut Flush::new(mm));
    }

    /// Gives back the tables that map nothing but the hole around `range`.
    fn prune(&self, mm: &Mm<M>, regions: &Regions, range: VpnRange) {
        let low = regions.before(mm, range.start()).map_or(Vpn::new(0), |region| region.pages.end());
        let high = regions.at_or_after(mm, range.end()).map_or(self.pages(mm).end(), |region| region.pages.start());
        let hole = VpnRange::between(low, high);
        if !table::may_cover_a_table::<M>(hole) {
            return;
        }
        let mut flush = Flush::new(mm);
        let Some(alone) = mm.family_alone(self.node) else { return };
        table::prune(mm, self.root, Hole { pages: hole, new: range }, &mut |table, pages| {
            flush.note_table(self.node, pages);
            flush.own_table(table);
        });
        flush.complete();
        drop(alone);
    }

    /// Takes every page of `range` away, present or out. Under the space's lock, or at its end.
    pub(crate) fn unmap_pages(&self, mm: &Mm<M>, range: VpnRange, flush: &mut Flush<'_, M>) {
        self.for_each_leaf_table(mm, range, |table, part| {
            for part in chunks(part) {
                self.unmap_chunk(mm, table, part, flush);
            }
        });
    }

    fn unmap_chunk(&self, mm: &Mm<M>, table: LeafTable, part: VpnRange, flush: &mut Flush<'_, M>) {
        let frames = mm.frames();
        let mut unused = Unused::new();
        {
            let Some(mut cursor) = table.lock(mm) else { return };
            if cursor.is_empty() {
                return;
            }
            let run = cursor.fit(part, Edge::Unfold, self.node, flush);
            let mut lost = Lost::new(self.node, flush);
            cursor.take(run, |pages, taken| match taken {
                Taken::Leaves(leaf) => {
                    lost.add(pages);
                    if let Some(frame) = frames.frame(leaf.pfn::<M::Granule>()) {
                        lost.own(frames.head(frame), pages.pages() as u32);
                    }
                }
                Taken::Swapped(entry) => give_up(mm, self.node, (pages, entry), &mut unused, lost.noted()),
            });
        }
        for &entry in &unused {
            mm.drop_unused(entry);
        }
    }
}
