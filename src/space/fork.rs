//! Fork: a second space with the same pages.
//!
//! Nothing is copied but entries. A page that a space has for itself becomes shared: neither entry is exclusive or
//! writable from then on, and whoever stores first gets a [copy](super::copy). A swap entry is shared with its slot's
//! count. Groups stay groups on both sides.
//!
//! *Prepare* makes all that the child needs: its node, regions, and a table for each of the parent's; and it looks
//! whether every slot can have one more user. *Commit* goes through the parent's leaf tables in order, under the lock of
//! the parent's table and then of the child's. The child stands in the fork tree before the first entry is copied, so
//! that reclaim, which goes from parents to children, finds what it got.
//!
//! One flush ends it: after that no CPU can store to a page by a right that the parent had.

use core::convert::Infallible;

use super::{Guarded, Space, SpaceError};
use crate::addr::VpnRange;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;
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
        if self.prepare_fork(mm, &guarded, &mut child).is_none() {
            // No CPU has run it.
            let _ = child.destroy(mm);
            return Err(SpaceError::NoMemory);
        }
        self.share_pages(mm, &child);
        mm.stats().forks.bump();
        Ok(child)
    }

    /// Makes the child's regions and tables.
    fn prepare_fork(&self, mm: &Mm<M>, guarded: &Guarded, child: &mut Self) -> Option<()> {
        child.guarded.get_mut().regions = guarded.regions.duplicate(mm)?;
        table::for_each_leaf_table(mm.machine(), self.root, self.pages(mm), |table, part| {
            let (is_empty, fits) = {
                let cursor = table.lock(mm).ok_or(())?;
                (cursor.is_empty(), slots_take_another(mm, &cursor, part))
            };
            if is_empty {
                return Ok(());
            }
            let made = table::find_or_make(mm, child.root, child.node, part.start());
            made.filter(|_| fits).map(drop).ok_or(())
        })
        .ok()
    }

    /// Shares every page of this space with the child.
    fn share_pages(&self, mm: &Mm<M>, child: &Self) {
        let mut flush = Flush::new(mm);
        // What the parent's entries show, the child's are to show as well.
        mm.machine().fence_contents();
        let done: Result<(), Infallible> =
            table::for_each_leaf_table(mm.machine(), self.root, self.pages(mm), |table, part| {
                if let Some(into) = table::find(mm.machine(), child.root, part.start()) {
                    chunks(part).for_each(|part| share_chunk(mm, self, (table, into), part, &mut flush));
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
) {
    let (Some(mut cursor), Some(mut into)) = (table.lock(mm), into.lock(mm)) else { return };
    if !cursor.is_empty() {
        let run = cursor.whole(part);
        cursor.share(&mut into, run, space.node(), flush);
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
