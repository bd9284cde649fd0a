//! What a folio needs to leave: slots, and room for its tags.

use super::Dry;
use super::area::Area;
use super::out::Leaving;
use super::slots::Slots;
use crate::frame::Frame;
use crate::machine::Machine;
use crate::pte::SwapEntry;

/// Slots that nobody else has, and rooms that are reserved. Dropped, it gives both back.
#[must_use = "dropping what was prepared gives the slots back"]
pub(crate) struct Prepared<'a, M: Machine> {
    area: &'a Area<M>,
    slots: Slots,
    rooms: u32,
}

impl<'a, M: Machine> Prepared<'a, M> {
    /// Takes slots for a folio of 2^`order` pages, with rooms for the raw tag images of `tagged` of them, in `area`.
    #[inline]
    pub(super) fn take(area: &'a Area<M>, cpu: usize, order: u32, tagged: u32) -> Result<Self, Dry> {
        let slots = area.take_slots(cpu, order).ok_or(Dry::Slots)?;
        let mut prepared = Self { area, slots, rooms: 0 };
        if prepared.fit(order, tagged) { Ok(prepared) } else { Err(Dry::Rooms) }
    }

    /// Whether this serves a folio of 2^`order` pages with tags in `tagged` of them; it gets what rooms it lacks.
    #[inline]
    pub(crate) fn fit(&mut self, order: u32, tagged: u32) -> bool {
        if order != self.slots.order() {
            return false;
        }
        let lacks = tagged.saturating_sub(self.rooms);
        if lacks > 0 && self.area.rooms.reserve(lacks).is_none() {
            return false;
        }
        self.rooms += lacks;
        true
    }

    /// Names the frames of the folio headed by `head` in the slots' records, with one swap entry each to come. Returns
    /// the first page's entry, exclusive.
    #[inline]
    pub(crate) fn cache(&self, head: Frame) -> SwapEntry {
        for (page, slot) in self.slots.each() {
            if let Some(record) = self.area.slot(slot as u64) {
                record.cache(head.index() + page as u32, self.slots.order());
            }
        }
        SwapEntry::exclusive(self.area.number(), self.slots.first())
    }

    /// The swap entries stand in a table: the slots are theirs from now on.
    #[inline]
    pub(crate) fn commit(self) -> Leaving<'a, M> {
        let leaving = Leaving { area: self.area, slots: self.slots, rooms: self.rooms };
        core::mem::forget(self);
        leaving
    }
}

impl<M: Machine> Drop for Prepared<'_, M> {
    fn drop(&mut self) {
        if self.rooms > 0 {
            self.area.rooms.unreserve(self.rooms);
        }
        self.area.free_slots(self.slots.first(), self.slots.pages() as u32);
    }
}
