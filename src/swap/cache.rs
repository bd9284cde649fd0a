//! The swap cache: folios that have slots and are still in memory.
//!
//! A folio enters it whole, when its entries are taken out, and leaves it whole: once the device has it, or when it is
//! mapped again, or when nobody wants it any more. A folio that the device refused stays, *kept*: the cache has a
//! reference of its own then, and its slots have the only names of its pages. A kept large folio of which only a
//! part is wanted becomes single pages first.
//!
//! **Locks.** A folio's marks (`CACHED`, `KEPT`, its area and first slot) change under its folio lock; a slot stops
//! naming a frame under its cluster's lock as well, so that [`Area::get_cached`] may look there and take a reference.
//! Between that look and the folio's lock all may change: [`Area::names`] confirms.

use super::area::Area;
use super::slot::{SlotRecord, SlotState};
use super::slots::Slots;
use crate::frame::{FolioLock, Frame, Frames, REFERENCE, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::SwapEntry;
use crate::sync::Ordering;

/// The slots of a cached folio. Under its lock.
#[inline]
pub(crate) fn slots_of<M: Machine>(folio: &FolioLock<'_, M>) -> Slots {
    let record = folio.record();
    Slots::new(record.slot.load(Ordering::Relaxed), record.order())
}

/// Takes the marks of the cache off a folio. The caller has a reference of its own.
#[inline]
fn uncache<M: Machine>(frames: &Frames, folio: &FolioLock<'_, M>) {
    let record = folio.record();
    if record.has(flag::KEPT) {
        // The cache's reference, taken when the device refused the folio.
        let _ = frames.put(folio.frame(), REFERENCE);
    }
    record.clear(flag::CACHED | flag::KEPT);
}

impl<M: Machine> Area<M> {
    /// Takes a reference to the folio that has the page of `slot`, if one does.
    ///
    /// A folio leaves the cache under the cluster's lock, and its reference of the cache's is given back after. So it
    /// cannot become something else between the look and the reference.
    pub(crate) fn get_cached(&self, frames: &Frames, slot: u64) -> Option<Frame> {
        let record = self.slot(slot)?;
        let _cluster = self.lock_cluster(slot as u32)?;
        match record.state() {
            SlotState::Cached { frame, .. } => {
                frames.frame_at(frame).map(|frame| frames.head(frame)).filter(|&head| frames.get(head))
            }
            _ => None,
        }
    }

    /// The page of a locked folio that `slot` names, and the uses that the slot has. `None` when it names none of it.
    pub(crate) fn names(&self, frames: &Frames, slot: u64, folio: &FolioLock<'_, M>) -> Option<(u64, u16)> {
        let head = folio.frame();
        match self.slot(slot)?.state() {
            SlotState::Cached { frame, count } => {
                let page = frame.checked_sub(head.index())? as u64;
                (page < 1 << frames.record(head).order()).then_some((page, count))
            }
            _ => None,
        }
    }

    /// Whether any swap entry names a slot of these.
    pub(super) fn is_wanted(&self, slots: Slots) -> bool {
        self.records_of(slots).iter().any(|slot| matches!(slot.state(), SlotState::Cached { count: 1.., .. }))
    }

    /// The device has a folio, whose pages leave the cache. The slots that no swap entry names any more are freed as
    /// well.
    #[inline(always)]
    pub(super) fn wrote(&self, frames: &Frames, folio: &FolioLock<'_, M>, slots: Slots, shadow: u32) {
        let mut unused = 0;
        {
            let _cluster = self.lock_cluster(slots.first());
            self.each_record(slots, folio.frame(), |frame, record| {
                unused += u32::from(record.wrote(frame, shadow).is_none());
            });
        }
        if unused > 0 {
            self.free_unused(frames, folio, slots, unused);
        }
        uncache(frames, folio);
    }

    /// Frees the `unused` slots that still name the folio. One that was out may be somebody else's already; and after
    /// the last the caller owns none of the area's, which may be gone then.
    #[cold]
    fn free_unused(&self, frames: &Frames, folio: &FolioLock<'_, M>, slots: Slots, mut unused: u32) {
        for (_, slot) in slots.each() {
            if let Some((_, 0)) = self.names(frames, slot as u64, folio) {
                self.free_slots(slot, 1);
                unused -= 1;
                if unused == 0 {
                    return;
                }
            }
        }
    }

    /// The folio, whose slots no swap entry names any more, leaves the cache, and the slots are freed.
    pub(crate) fn leave_cache(&self, frames: &Frames, folio: &FolioLock<'_, M>) {
        let slots = slots_of(folio);
        uncache(frames, folio);
        self.free_slots(slots.first(), slots.pages() as u32);
    }

    /// Makes single pages of a kept large folio, each with its own slot; those that nobody wants are freed.
    #[cold]
    pub(crate) fn split_kept(&self, mm: &Mm<M>, folio: &FolioLock<'_, M>) {
        let frames = mm.frames();
        let head = folio.frame();
        let slots = slots_of(folio);
        let is_wanted = |slot| self.is_wanted(Slots::new(slot, 0));
        for (page, slot) in slots.each() {
            if let Some(record) = self.slot(slot as u64) {
                record.set_single();
            }
            let Some(tail) = frames.tail(head, page).filter(|_| page > 0) else { continue };
            if is_wanted(slot) {
                frames.promote_kept(head, tail, page, self.number(), slot);
                mm.reclaim().insert_old(frames, core::iter::once(tail));
            } else {
                frames.record(tail).count.begin(0);
                frames.promote(tail);
                self.free_slots(slot, 1);
                frames.free(mm.machine().cpu(), tail);
            }
        }
        frames.shrink(head);
        if !is_wanted(slots.first()) {
            self.leave_cache(frames, folio);
        }
        mm.stats().splits.bump();
    }
}

impl<M: Machine> Mm<M> {
    /// Whether the page of a swap entry is still in memory. Under the lock of the table that holds the entry.
    pub(crate) fn is_cached(&self, entry: SwapEntry) -> bool {
        let slot = self.swap().area(entry.area()).and_then(|area| area.slot(entry.slot()));
        matches!(slot.map(SlotRecord::state), Some(SlotState::Cached { .. }))
    }

    /// Whether the slot of a swap entry can have another user.
    pub(crate) fn takes_another_user(&self, entry: SwapEntry) -> bool {
        let slot = self.swap().area(entry.area()).and_then(|area| area.slot(entry.slot()));
        slot.is_none_or(SlotRecord::takes_another_user)
    }

    /// Whether a swap entry leads to a page of a locked folio.
    pub(crate) fn is_wanted(&self, folio: &FolioLock<'_, M>) -> bool {
        let record = folio.record();
        record.has(flag::CACHED) && self.swap().area(record.area()).is_some_and(|area| area.is_wanted(slots_of(folio)))
    }

    /// Counts another use of the slot of an entry, which the caller's tables have from now on in two places, in the
    /// form that is returned. Under the lock of the table that has the entry, after [`Mm::takes_another_user`].
    pub(crate) fn share_slot(&self, entry: SwapEntry) -> SwapEntry {
        let Some(slot) = self.swap().area(entry.area()).and_then(|area| area.slot(entry.slot())) else { return entry };
        slot.add_user();
        entry.shared()
    }

    /// Gives back the uses of `count` slots by swap entries from `first` on. The entries that were the last of pages
    /// still in memory are handed to `cached`: then [`Mm::drop_unused`] has to follow, without a spinning lock.
    #[inline(never)]
    pub(crate) fn put_slots(&self, first: SwapEntry, count: u64, mut cached: impl FnMut(SwapEntry)) {
        if let Some(area) = self.swap().area(first.area()) {
            area.put(first.slot(), count, |slot| cached(first.nth(slot - first.slot())));
        }
    }

    /// Lets go of a page that is still in memory, and of its slot, if no swap entry names the slot any more: for
    /// whoever gave back the last use of a slot that was cached. May sleep.
    #[cold]
    pub(crate) fn drop_unused(&self, entry: SwapEntry) {
        while !self.is_dropped(entry) {}
    }

    /// One try of [`Mm::drop_unused`]: `false` when the page was in another folio by the time that its own was locked.
    fn is_dropped(&self, entry: SwapEntry) -> bool {
        let frames = self.frames();
        // When the frame, or the area, has left meanwhile, who took it out found the slot without users and freed it.
        let cached = self.swap().enter(entry.area()).and_then(|area| area.get_cached(frames, entry.slot()));
        let Some(head) = cached else { return true };
        // Nobody is inside an area while it sleeps: who turns it off only spins for them.
        let folio = frames.lock(self.machine(), head);
        let mut is_there = true;
        if let Some(area) = self.swap().enter(entry.area()) {
            let named = area.names(frames, entry.slot(), &folio);
            is_there = named.is_some();
            if matches!(named, Some((_, 0))) && !frames.record(head).has(flag::BACKED) {
                if !area.is_wanted(slots_of(&folio)) {
                    area.leave_cache(frames, &folio);
                } else if frames.record(head).count.maps() == 0 {
                    area.split_kept(self, &folio);
                }
            }
        }
        drop(folio);
        self.release_folio(head);
        is_there
    }
}
