//! What a program says that it will use: its pages that are out come in, before it faults on them.
//!
//! As much as there is memory for above the low watermark, so that nothing leaves for it, and nothing in a space with a
//! cap; folios that left in one piece
//! come back in one piece, others by runs of single pages (`read_ahead`). What several spaces share, what is in memory
//! still, and what cannot be read waits for the touch, which has its error.

use core::num::NonZero;
use core::ops::ControlFlow;

use super::fault::{Access, Found};
use super::swap_in::Missing;
use super::{Part, Space};
use crate::addr::VpnRange;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;
use crate::swap::SlotState;
use crate::table::LeafTable;

impl<M: Machine> Space<M> {
    /// Brings in what of a part of a region is out, as for an access of this kind. Under the space's lock.
    pub(crate) fn bring_in(&self, mm: &Mm<M>, part: &Part<'_>, access: Access) {
        if part.is_capped {
            return;
        }
        let _ = self.try_each_leaf_table(mm, part.pages, |table, run| self.bring_run(mm, part, (table, run), access));
    }

    /// Breaks off when memory is short.
    fn bring_run(
        &self,
        mm: &Mm<M>,
        part: &Part<'_>,
        (table, run): (LeafTable, VpnRange),
        access: Access,
    ) -> ControlFlow<()> {
        let Part { region, streams, .. } = part;
        for page in (0..run.pages()).map(|page| run.start().offset(page)) {
            let Decoded::Swapped(first) = table.peek(mm.machine(), page).guess::<M>() else { continue };
            let Some(area) = mm.swap().area(first.area()).filter(|_| first.is_exclusive()) else { continue };
            let Some(slot) = area.slot(first.slot()) else { continue };
            let SlotState::Out { shadow, .. } = slot.state() else { continue };
            let at = &Found { page, table, region: region.pages, protection: region.protection, streams };
            let missing = Missing { at, run: VpnRange::new(page, 1), first, access };
            let left_as = slot.order();
            let folio = NonZero::new(left_as)
                .and_then(|left_as| self.read_folio(mm, area, left_as, missing, shadow, |folio| run.covers(folio)));
            if folio.is_none() {
                let rest = VpnRange::between(page, run.end()).pages();
                // Of a folio that is not to come whole, no more than that: the next one may.
                let of_folio = (1 << left_as) - (first.slot() & ((1 << left_as) - 1));
                let most = if left_as == 0 { rest } else { rest.min(of_folio) };
                let done = self.read_several(mm, area, missing, 1..=most, shadow);
                if done.is_none() && mm.frames().free_blocks() <= mm.reclaim().watermarks().low {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }
}
