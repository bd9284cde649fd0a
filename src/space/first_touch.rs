//! First touch: new memory, zero in data and tags.
//!
//! The largest folio of the allowed orders is made that fits: all of it in the region, nothing there yet, and memory
//! plenty. Its pages are mapped at once, as contiguous groups where it spans such. Otherwise it is one page.

use super::fault::{Access, FaultError, Found, Step};
use super::{Protection, Space};
use crate::addr::{PfnRange, Vpn, VpnRange};
use crate::frame::{FolioOrders, Kind, MAP, OwnedFrame, flag};
use crate::machine::{Machine, Tags};
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Exclusive, Leaf};

impl<M: Machine> Space<M> {
    /// Maps new memory at a page where there is none.
    #[inline(always)]
    pub(super) fn first_touch(&self, mm: &Mm<M>, at: &Found<'_>, access: Access) -> Result<Step, FaultError> {
        let orders = mm.folio_orders();
        if orders != FolioOrders::SINGLE
            && !at.protection.contains(Protection::SINGLE)
            && let Some(step) = self.touch_large(mm, at, access, orders)
        {
            return step;
        }
        let Some(folio) = mm.take_frame(Kind::Folio) else { return Err(FaultError::NoMemory) };
        self.map_new(mm, at, access, VpnRange::new(at.page, 1), folio)
    }

    /// Maps the largest folio that fits and is to be had; `None` when that is a single page.
    #[inline(never)]
    fn touch_large(
        &self,
        mm: &Mm<M>,
        at: &Found<'_>,
        access: Access,
        orders: FolioOrders,
    ) -> Option<Result<Step, FaultError>> {
        for order in orders.large() {
            let run = VpnRange::new(Vpn::new(at.page.number() & !((1 << order) - 1)), 1 << order);
            // What other CPUs do to the entries meanwhile is looked at again under the lock.
            if at.region.covers(run)
                && at.table.seems_vacant(mm.machine(), run)
                && let Some(folio) = mm.take_large(order)
            {
                mm.stats().large_folios.bump();
                return Some(self.map_new(mm, at, access, run, folio));
            }
        }
        None
    }

    /// Maps a folio that nobody else knows of at `run`, which has as many pages, unless something is there by now.
    /// Inlined at both of its places: for one page all loops fall away.
    #[inline(always)]
    fn map_new(
        &self,
        mm: &Mm<M>,
        at: &Found<'_>,
        access: Access,
        run: VpnRange,
        folio: OwnedFrame<'_>,
    ) -> Result<Step, FaultError> {
        let Found { table, protection, .. } = *at;
        let record = mm.frames().record(folio.frame());
        let tags = if protection.contains(Protection::TAGGED) {
            folio.mark(run.pages(), flag::TAGS_VALID);
            Tags::Include
        } else {
            Tags::Ignore
        };
        mm.machine().zero(PfnRange::new(folio.pfn(), run.pages()), tags);
        Home::new(self.node, run.start()).store(&record.home);
        let mut leaf = Leaf::page::<M::Granule>(folio.pfn(), protection);
        if protection.contains(Protection::WRITE) {
            // Nobody else knows of the folio yet.
            leaf = leaf.with_write(&Exclusive::proven());
        }
        if access == Access::Write {
            leaf = leaf.with_dirty();
        }
        {
            let Some(mut cursor) = table.lock(mm) else { return Err(FaultError::NotMapped) };
            if !cursor.is_vacant(run) {
                return Ok(Step::Again);
            }
            record.count.begin(MAP * run.pages());
            cursor.map(run, leaf);
        }
        mm.reclaim().insert(mm.frames(), folio.publish());
        mm.stats().first_touches.add(run.pages());
        Ok(if access == Access::Execute { Step::Again } else { Step::Done })
    }
}
