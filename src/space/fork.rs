//! Fork: a second space with the same pages.
//!
//! Nothing is copied but entries. A page that a space has for itself becomes shared: neither entry is exclusive or
//! writable from then on, and whoever stores first gets a [copy](super::copy). A swap entry is shared with its slot's
//! count. Groups stay groups on both sides.
//!
//! *Prepare* makes all that the child needs: its node, regions, and a table for each of the parent's; and it looks
//! whether every slot can have one more user. *Commit* goes through the parent's leaf tables in order, under the lock
//! of the parent's table and then of the child's. The child stands in the fork tree before the first entry is copied,
//! so that reclaim, which goes from parents to children, finds what it got.
//!
//! One flush ends it: after that no CPU can store to a page by a right that the parent had.
//!
//! **Pinned pages** stay the parent's alone, as somebody reaches them past the tables: the child gets a copy of its
//! own, made now, in a frame that prepare has taken. No pin comes in between, as that needs the space's lock.

use core::convert::Infallible;

use super::copy::copy_contents;
use super::pin::is_pinned;
use super::{Cap, Guarded, Protection, Space, SpaceError};
use crate::addr::{PfnRange, Vpn, VpnRange};
use crate::frame::{Kind, MAP, OwnedFrame, Spares, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::{Decoded, Leaf};
use crate::sync::Ordering;
use crate::table::{self, Cursor, LeafTable, chunks};
use crate::tlb::Flush;

impl<M: Machine> Space<M> {
    /// A space with the same regions and the same contents, tags included. What either stores from now on, the other
    /// does not see.
    ///
    /// # Errors
    /// [`SpaceError::NoMemory`]: also when a swap slot has as many users as it can count. Nothing was changed then.
    pub fn fork(&self, mm: &Mm<M>) -> Result<Self, SpaceError> {
        let guarded = self.lock(mm);
        let mut child = Self::below(mm, Some(self.node))?;
        let Some(copies) = self.prepare_fork(mm, &guarded, &mut child) else {
            // No CPU has run it.
            let _ = child.destroy(mm);
            return Err(SpaceError::NoMemory);
        };
        self.share_pages(mm, &child, copies);
        mm.stats().forks.bump();
        Ok(child)
    }

    /// Makes the child's regions and tables, and takes a frame for each page that is pinned.
    fn prepare_fork<'a>(&self, mm: &'a Mm<M>, guarded: &Guarded, child: &mut Self) -> Option<Spares<'a>> {
        child.guarded.get_mut().regions = guarded.regions.duplicate(mm)?;
        child.guarded.get_mut().regions.unlock(mm);
        child.guarded.get_mut().cap = guarded.cap.as_ref().map(Cap::anew);
        let mut copies = Spares::new(mm.frames());
        table::for_each_leaf_table(mm.machine(), self.root, self.pages(mm), |table, part| {
            let (is_empty, fits, pinned) = {
                let cursor = table.lock(mm).ok_or(())?;
                (cursor.is_empty(), slots_take_another(mm, &cursor, part), pinned(mm, &cursor, part))
            };
            if is_empty {
                return Ok(());
            }
            let made = table::find_or_make(mm, child.root, child.node, part.start());
            made.filter(|_| fits).ok_or(())?;
            (0..pinned).try_for_each(|_| mm.take_frame(Kind::Folio).map(|frame| copies.push(frame)).ok_or(()))
        })
        .ok()?;
        Some(copies)
    }

    /// Shares every page of this space with the child.
    fn share_pages(&self, mm: &Mm<M>, child: &Self, mut copies: Spares<'_>) {
        let mut flush = Flush::new(mm);
        let mut copy = |page, leaf| copy_pinned(mm, child.node, page, leaf, copies.pop()?);
        // What the parent's entries show, the child's are to show as well.
        mm.machine().fence_contents();
        let done: Result<(), Infallible> =
            table::for_each_leaf_table(mm.machine(), self.root, self.pages(mm), |table, part| {
                if let Some(into) = table::find(mm.machine(), child.root, part.start()) {
                    chunks(part).for_each(|part| share_chunk(mm, self, (table, into), part, &mut flush, &mut copy));
                }
                Ok(())
            });
        let Ok(()) = done;
    }
}

/// Shares the pages of a part of one table. The parent's lock comes before the child's, and nobody else takes two but
/// in this order.
fn share_chunk<M: Machine>(
    mm: &Mm<M>,
    space: &Space<M>,
    (table, into): (LeafTable, LeafTable),
    part: VpnRange,
    flush: &mut Flush<'_, M>,
    copy: impl FnMut(Vpn, Leaf) -> Option<Leaf>,
) {
    let (Some(mut cursor), Some(mut into)) = (table.lock(mm), into.lock(mm)) else { return };
    if !cursor.is_empty() {
        let run = cursor.whole(part);
        cursor.share(&mut into, run, space.node(), flush, copy);
    }
}

/// Whether each slot that a table names can have one user more, and one for each fork that other CPUs are at as well.
fn slots_take_another<M: Machine>(mm: &Mm<M>, cursor: &Cursor<'_, M>, part: VpnRange) -> bool {
    !cursor.holds_swapped()
        || (0..part.pages()).all(|page| match cursor.read(part.start().offset(page)) {
            Decoded::Swapped(entry) => mm.takes_another_user(entry),
            _ => true,
        })
}

/// The pages of a table that are pinned.
fn pinned<M: Machine>(mm: &Mm<M>, cursor: &Cursor<'_, M>, part: VpnRange) -> usize {
    if mm.pins.load(Ordering::Relaxed) == 0 {
        return 0;
    }
    (0..part.pages()).filter(|&page| is_pinned(mm, cursor, part.start().offset(page))).count()
}

/// Copies a page that is pinned, into `folio`. Returns the leaf that shows the copy, with the rights of `leaf`.
#[cold]
fn copy_pinned<M: Machine>(mm: &Mm<M>, node: NodeId, page: Vpn, leaf: Leaf, folio: OwnedFrame<'_>) -> Option<Leaf> {
    let frames = mm.frames();
    let protection = if leaf.is_tagged() { Protection::TAGGED } else { Protection::empty() };
    copy_contents(mm, frames.frame(leaf.pfn::<M::Granule>())?, (&folio, folio.frame()), protection);
    if leaf.is_executable() {
        mm.machine().sync_code(PfnRange::new(folio.pfn(), 1));
        folio.mark_page(folio.frame(), flag::CODE_SYNCED);
    }
    let record = frames.record(folio.frame());
    Home::new(node, page).store(&record.home);
    record.count.begin(MAP);
    let leaf = leaf.with_address_of::<M::Granule>(Leaf::page::<M::Granule>(folio.pfn(), protection)).with_dirty();
    mm.machine().fence_contents();
    mm.reclaim().insert(frames, folio.publish());
    Some(leaf)
}
