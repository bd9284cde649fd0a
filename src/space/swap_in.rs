//! Swap-in: from a swap entry to a mapped page.
//!
//! The order is read, restore tags, map, give the slot back. A page is shown only whole, with its data and its tags;
//! a slot is given back only when the page is mapped. The page is mapped dirty: once its slot is gone, memory holds
//! the only copy.

use super::fault::{Access, FaultError, Found, Step};
use super::{Protection, Space};
use crate::addr::{Pfn, PfnRange, VpnRange};
use crate::frame::{FolioLock, Kind, MAP, OwnedFrame, flag};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Decoded, Exclusive, Leaf, SwapEntry};
use crate::swap::{Area, Kept, SlotRecord, SlotState};
use crate::sync::assert_may_sleep;

/// A page that is out.
#[derive(Copy, Clone)]
struct Missing<'a> {
    at: &'a Found,
    /// What its entry said before the lock.
    entry: SwapEntry,
}

impl Missing<'_> {
    /// The leaf that shows the page in `frame`.
    #[inline]
    fn leaf<G: Granule>(&self, frame: Pfn) -> Leaf {
        let leaf = Leaf::page::<G>(frame, self.at.protection).with_dirty();
        if !self.entry.is_exclusive() {
            leaf.without_exclusive()
        } else if self.at.protection.contains(Protection::WRITE) {
            // The entry was the slot's only user, so nobody else will map the page.
            leaf.with_write(&Exclusive::proven())
        } else {
            leaf
        }
    }

    #[cold]
    fn unreadable(&self) -> FaultError {
        FaultError::Unreadable { area: self.entry.area(), slot: self.entry.slot() }
    }
}

impl<M: Machine> Space<M> {
    /// Maps a page that is out.
    #[inline(never)]
    pub(super) fn swap_in(&self, mm: &Mm<M>, at: &Found, entry: SwapEntry, access: Access) -> Result<Step, FaultError> {
        let missing = Missing { at, entry };
        let Some(area) = mm.swap().area(entry.area()) else { return Err(missing.unreadable()) };
        let Some(slot) = area.slot(entry.slot()) else { return Err(missing.unreadable()) };
        let step = match slot.state() {
            SlotState::Out { shadow, .. } => {
                let Some(folio) = mm.take_frame_urgently(Kind::Folio) else { return Err(FaultError::NoMemory) };
                self.read(mm, area, slot, missing, &folio)?;
                let step = self.show(mm, area, missing, folio);
                if step == Step::Done {
                    mm.stats().swap_in.bump();
                    mm.returned(shadow);
                }
                step
            }
            SlotState::Cached { .. } => self.map_cached(mm, area, missing)?,
            SlotState::Free | SlotState::Taken | SlotState::Unknown => self.confirm_lost(mm, slot, missing)?,
        };
        // A page comes back without the right to execute: a fetch looks again, and adds it.
        Ok(if access == Access::Execute { Step::Again } else { step })
    }

    /// An entry names a slot that nobody uses: looks again under the lock that orders the two.
    #[cold]
    fn confirm_lost(&self, mm: &Mm<M>, slot: &SlotRecord, missing: Missing<'_>) -> Result<Step, FaultError> {
        let Some(cursor) = missing.at.table.lock(mm) else { return Ok(Step::Again) };
        let lost = matches!(slot.state(), SlotState::Free | SlotState::Taken | SlotState::Unknown);
        if lost && cursor.read(missing.at.page) == Decoded::Swapped(missing.entry) {
            return Err(missing.unreadable());
        }
        Ok(Step::Again)
    }

    /// Fills a fresh folio with the slot's data and tags.
    #[inline]
    fn read(
        &self,
        mm: &Mm<M>,
        area: &Area<M>,
        slot: &SlotRecord,
        missing: Missing<'_>,
        folio: &OwnedFrame<'_>,
    ) -> Result<(), FaultError> {
        let run = PfnRange::new(folio.pfn(), 1);
        assert_may_sleep();
        if area.device().read(mm.machine(), missing.entry.slot() as u32, run).is_err() {
            mm.stats().read_errors.bump();
            return Err(missing.unreadable());
        }
        let record = mm.frames().record(folio.frame());
        match area.load_tags(slot, |tags| mm.machine().store_tags(folio.pfn(), tags)) {
            Kept::Tags => record.set(flag::TAGS_VALID),
            Kept::None if missing.at.protection.contains(Protection::TAGGED) => {
                // Untagged when it left; the region has become tagged since.
                mm.machine().zero_tags(folio.pfn());
                record.set(flag::TAGS_VALID);
            }
            Kept::None => {}
        }
        Home::new(self.node, missing.at.page).store(&record.home);
        Ok(())
    }

    /// Maps a folio that was read, unless the entry is another by now.
    #[inline]
    fn show(&self, mm: &Mm<M>, area: &Area<M>, missing: Missing<'_>, folio: OwnedFrame<'_>) -> Step {
        let leaf = missing.leaf::<M::Granule>(folio.pfn());
        {
            let Some(mut cursor) = missing.at.table.lock(mm) else { return Step::Again };
            if cursor.read(missing.at.page) != Decoded::Swapped(missing.entry) {
                return Step::Again;
            }
            mm.frames().record(folio.frame()).count.begin(MAP);
            cursor.map_back(VpnRange::new(missing.at.page, 1), leaf);
            let cached = area.put(missing.entry.slot());
            debug_assert!(cached.is_none(), "a slot that is out does not become cached again");
        }
        mm.reclaim().insert(mm.frames(), folio.publish());
        Step::Done
    }

    /// Maps a folio that never left: on its way out until now, or kept as its device failed.
    #[cold]
    fn map_cached(&self, mm: &Mm<M>, area: &Area<M>, missing: Missing<'_>) -> Result<Step, FaultError> {
        let frames = mm.frames();
        let Some(frame) = area.get_cached(frames, missing.entry.slot()) else { return Ok(Step::Again) };
        let folio = frames.lock(mm.machine(), frame);
        let step = self.show_cached(mm, area, missing, &folio);
        drop(folio);
        mm.release_folio(frame);
        Ok(step)
    }

    fn show_cached(&self, mm: &Mm<M>, area: &Area<M>, missing: Missing<'_>, folio: &FolioLock<'_, M>) -> Step {
        let (frames, frame) = (mm.frames(), folio.frame());
        let record = frames.record(frame);
        if !area.is_cached(missing.entry.slot(), frame) {
            return Step::Again;
        }
        if missing.at.protection.contains(Protection::TAGGED) && !record.has(flag::TAGS_VALID) {
            mm.machine().zero_tags(frames.pfn(frame));
            record.set(flag::TAGS_VALID);
        }
        let Some(mut cursor) = missing.at.table.lock(mm) else { return Step::Again };
        if cursor.read(missing.at.page) != Decoded::Swapped(missing.entry) {
            return Step::Again;
        }
        // The program may have lost the right to execute while the page was kept, and may store to it now.
        record.clear(flag::CODE_SYNCED);
        record.count.add(MAP);
        cursor.map_back(VpnRange::new(missing.at.page, 1), missing.leaf::<M::Granule>(frames.pfn(frame)));
        let unused = area.put(missing.entry.slot()).is_some();
        drop(cursor);
        if unused {
            area.leave_cache(frames, folio, missing.entry.slot() as u32);
        }
        mm.stats().swap_cache_hits.bump();
        Step::Done
    }
}
