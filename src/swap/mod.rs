//! Swap: slots on devices, and the pages in them.
//!
//! **A page's way out** ([`crate::reclaim`] drives it): *prepare* takes a slot and, for a tagged page, a room for a
//! raw tag image ([`Prepared`], which gives both back when dropped); the slot then names the page's frame (it is
//! *cached*) with one user; the leaf entry is exchanged for a swap entry; the flush completes; the tags are saved and
//! the data written; the slot is *out* and the frame is free. Nothing after prepare can fail but the device: then the
//! page stays cached, with its swap entry, and is the only copy.
//!
//! **Its way in** ([`crate::space`]): a swap entry leads to a slot. If the slot is cached, the frame is mapped as it
//! is. If it is out, a frame is read from the device, its tags are restored before the entry shows it, and the user
//! of the slot is given back after. A page read in is dirty: its memory is the sole copy as soon as the slot is free.
//!
//! **One word decides.** A slot's state word ([`slot`]) holds its kind, its count of swap entries, its tag kind, and
//! the cached frame or the refault shadow. Count and cache therefore cannot disagree. Clean-up of a slot (tags, room,
//! words) is one function ([`Area::free_slot`]), and it runs before the usage count drops.
//!
//! **Who may touch a slot.** Whoever holds what owns the reference: the leaf table's lock for a swap entry's count, the
//! folio lock for the cached frame, the cluster's lock for free and taken.

mod area;
mod cluster;
mod device;
mod out;
mod rooms;
mod slot;

pub use area::{Area, SwapArea, SwapOnError, memory_needed};
pub use device::{DeviceError, DeviceFlags, SwapDevice};
pub use slot::SlotRecord;

pub(crate) use area::{Kept, Prepared};
pub(crate) use out::{Leaving, Written};
pub(crate) use slot::SlotState;

use crate::machine::{Machine, Tags};
use crate::mm::Mm;
use crate::pte::SwapEntry;
use crate::sync::{AtomicU32, Once, Ordering, Sleep};

/// What no area has left.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Dry {
    /// Slots.
    Slots,
    /// Rooms for tags, where there is a slot.
    Rooms,
}

/// The number of a swap area, below [`SwapEntry::AREAS`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct AreaId(u8);

impl AreaId {
    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// All swap areas.
pub struct Swap<M: Machine> {
    areas: [Once<Area<M>>; SwapEntry::AREAS],
    /// Areas that are on: the first of `areas`.
    count: AtomicU32,
    adding: Sleep<()>,
}

impl<M: Machine> Swap<M> {
    pub(crate) const fn new() -> Self {
        Self { areas: [const { Once::new() }; SwapEntry::AREAS], count: AtomicU32::new(0), adding: Sleep::new(()) }
    }

    /// Adds an area. See [`Mm::swap_on`](crate::Mm::swap_on).
    ///
    /// # Safety
    /// As for [`Mm::swap_on`](crate::Mm::swap_on).
    pub(crate) unsafe fn add(&self, machine: &M, area: SwapArea<M>) -> Result<AreaId, SwapOnError> {
        let _alone = self.adding.lock(machine);
        let number = self.count.load(Ordering::Relaxed);
        let place = self.areas.get(number as usize).ok_or(SwapOnError::TooManyAreas)?;
        // SAFETY: the caller's promise is the same.
        let area = unsafe { Area::new(number as u8, area) }?;
        place.call_once(|| area);
        self.count.store(number + 1, Ordering::Release);
        Ok(AreaId(number as u8))
    }

    /// The area with this number, if it is on.
    #[inline]
    pub(crate) fn area(&self, number: u8) -> Option<&Area<M>> {
        self.areas.get(number as usize)?.get()
    }

    /// Takes a slot, and with [`Tags::Include`] a room for its tags, in the first area that has them, in the order in
    /// which the areas came.
    #[inline]
    pub(crate) fn prepare(&self, cpu: usize, tags: Tags) -> Result<Prepared<'_, M>, Dry> {
        let mut dry = Dry::Slots;
        for area in self.areas() {
            let Some(slot) = area.take_slot(cpu) else { continue };
            let mut prepared = Prepared::new(area, slot);
            if prepared.fit(tags) {
                return Ok(prepared);
            }
            dry = Dry::Rooms;
        }
        Err(dry)
    }

    /// Every area that is on.
    pub fn areas(&self) -> impl Iterator<Item = &Area<M>> {
        let count = self.count.load(Ordering::Acquire) as usize;
        self.areas.iter().take(count).filter_map(Once::get)
    }
}

impl<M: Machine> Mm<M> {
    /// Whether the page of a swap entry is still in memory. Under the lock of the table that holds the entry.
    pub(crate) fn is_cached(&self, entry: SwapEntry) -> bool {
        let slot = self.swap().area(entry.area()).and_then(|area| area.slot(entry.slot()));
        matches!(slot.map(SlotRecord::state), Some(SlotState::Cached { .. }))
    }

    /// Gives back a swap entry's use of its slot. Returns the entry if it was the last of a page that is still in memory:
    /// then [`Mm::drop_unused`] has to follow, without a spinning lock.
    pub(crate) fn put_slot(&self, entry: SwapEntry) -> Option<SwapEntry> {
        self.swap().area(entry.area())?.put(entry.slot()).map(|_| entry)
    }

    /// Lets go of a page that is still in memory, and of its slot, if no swap entry names the slot any more: for
    /// whoever gave back the last use of a slot that was cached. May sleep.
    #[cold]
    pub(crate) fn drop_unused(&self, entry: SwapEntry) {
        let frames = self.frames();
        let Some(area) = self.swap().area(entry.area()) else { return };
        // When the frame has left meanwhile, who took it out found the slot without users and freed it.
        let Some(frame) = area.get_cached(frames, entry.slot()) else { return };
        let folio = frames.lock(self.machine(), frame);
        let state = area.slot(entry.slot()).map(SlotRecord::state);
        if state == Some(SlotState::Cached { frame: frame.index(), count: 0 }) {
            area.leave_cache(frames, &folio, entry.slot() as u32);
        }
        drop(folio);
        self.release_folio(frame);
    }
}
