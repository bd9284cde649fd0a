//! Swap: slots on devices, and the pages in them.
//!
//! **A folio's way out** ([`crate::reclaim`] drives it): *prepare* takes a slot for each page, an aligned run of them,
//! and reserves a room for a raw tag image for each page that has tags ([`Prepared`], which gives all back when
//! dropped), for several folios at once; the slots then name the pages' frames (they are *cached*) with one user each;
//! the leaf entries are exchanged for swap entries; the flush completes; the tags are saved and the data written, in
//! one request; the slots are *out* and the frames are free. Nothing after prepare can fail but the device: then the
//! folio stays cached, with its swap entries, and is the only copy. A large folio that finds no run of slots, or too
//! few rooms, is split.
//!
//! **Its way in** ([`crate::space`]): a swap entry leads to a slot. If the slot is cached, the folio is mapped as it
//! is. If it is out, frames are read from the device, their tags are restored before the entries show them, and the
//! users of the slots are given back after. What was read in is dirty: its memory is the sole copy as soon as the slots
//! are free.
//!
//! **One word decides.** A slot's state word ([`slot`]) holds its kind, its count of swap entries, its tag kind, and
//! the cached frame or the refault shadow. Count and cache therefore cannot disagree. Clean-up of a slot (tags, room,
//! words) is one function ([`Area::free_slots`]), and it runs before the usage count drops.
//!
//! **Who may touch a slot.** Whoever holds what owns the reference: the leaf table's lock for a swap entry's count, the
//! folio lock for the cached frame, the cluster's lock for free and taken.

mod area;
mod cache;
mod cluster;
mod device;
mod out;
mod prepared;
mod read_in;
mod rooms;
mod slot;
mod slots;

pub use area::{Area, SwapArea, SwapOnError, memory_needed};
pub use device::{DeviceError, DeviceFlags, Progress, SUMMED_PAGES, SwapDevice, Ticket};
pub use slot::SlotRecord;

pub(crate) use out::{Late, Leaving, Saved, Written};
pub(crate) use prepared::Prepared;
pub(crate) use read_in::{Kept, ReadError};
pub(crate) use slot::SlotState;

use crate::machine::Machine;
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

    /// Takes slots for a folio of 2^`order` pages, and rooms for the tags of `tagged` of them, in the first area that
    /// has them, in the order in which the areas came; as well for up to `folios` in all, as far as that is easy.
    pub(crate) fn prepare(&self, cpu: usize, order: u32, tagged: u32, folios: u32) -> Result<Prepared<'_, M>, Dry> {
        let mut dry = Dry::Slots;
        for area in self.areas() {
            match Prepared::take(area, cpu, order, tagged, folios) {
                Ok(prepared) => return Ok(prepared),
                Err(Dry::Rooms) => dry = Dry::Rooms,
                Err(Dry::Slots) => {}
            }
        }
        Err(dry)
    }

    /// Every area that is on.
    pub fn areas(&self) -> impl Iterator<Item = &Area<M>> {
        let count = self.count.load(Ordering::Acquire) as usize;
        self.areas.iter().take(count).filter_map(Once::get)
    }
}
