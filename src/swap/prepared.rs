//! What folios need to leave: slots, and room for their tags.
//!
//! Taken for several folios of one size at once, and used up one by one: [`Prepared::fit`], [`Prepared::cache`],
//! [`Prepared::commit`] for each that leaves. One that stays leaves its slots to the next.

use super::Dry;
use super::area::Area;
use super::cluster::Stretch;
use super::out::Leaving;
use super::slots::Slots;
use crate::frame::Frame;
use crate::machine::Machine;
use crate::pte::SwapEntry;

/// Slots that nobody else has, and rooms that are reserved. Dropped, it gives both back.
#[must_use = "dropping what was prepared gives the slots back"]
pub(crate) struct Prepared<'a, M: Machine> {
    area: &'a Area<M>,
    stretch: Stretch,
    rooms: u32,
    /// Of the rooms, those for the folio that it fits.
    tagged: u32,
}

impl<'a, M: Machine> Prepared<'a, M> {
    /// Takes slots for a folio of 2^`order` pages, with rooms for the raw tag images of `tagged` of them, in `area`;
    /// slots for `folios` in all, if they lie side by side.
    pub(super) fn take(area: &'a Area<M>, cpu: usize, order: u32, tagged: u32, folios: u32) -> Result<Self, Dry> {
        let stretch = area.take_slots(cpu, order, folios).ok_or(Dry::Slots)?;
        let mut prepared = Self { area, stretch, rooms: 0, tagged: 0 };
        if prepared.fit(order, tagged) { Ok(prepared) } else { Err(Dry::Rooms) }
    }

    /// Whether this serves a folio of 2^`order` pages with tags in `tagged` of them; it gets what rooms it lacks.
    #[inline]
    pub(crate) fn fit(&mut self, order: u32, tagged: u32) -> bool {
        if order != self.stretch.order() || self.stretch.slots() == 0 {
            return false;
        }
        self.tagged = tagged;
        tagged <= self.rooms || self.reserve(tagged)
    }

    /// Gets as many rooms as if the other folios had tags in as many pages, or else what this one lacks.
    fn reserve(&mut self, tagged: u32) -> bool {
        let all = (self.stretch.slots() >> self.stretch.order()) * tagged;
        for wanted in [all, tagged] {
            let lacks = wanted - self.rooms;
            if self.area.rooms.reserve(lacks).is_some() {
                self.rooms += lacks;
                return true;
            }
        }
        false
    }

    /// Names the frames of the folio of 2^`order` pages headed by `head`, which this fits, in the slots' records, with
    /// one swap entry each to come. Returns the first page's entry, exclusive.
    #[inline(always)]
    pub(crate) fn cache(&self, head: Frame, order: u32) -> SwapEntry {
        debug_assert_eq!(order, self.stretch.order());
        let slots = Slots::new(self.stretch.first(), order);
        self.area.each_record(slots, head, |frame, record| record.cache(frame, order));
        SwapEntry::exclusive(self.area.number(), slots.first())
    }

    /// The swap entries stand in a table: the slots are theirs from now on.
    #[inline]
    pub(crate) fn commit(&mut self) -> Leaving<'a, M> {
        let slots = self.stretch.next();
        self.stretch.skip();
        self.rooms -= self.tagged;
        Leaving { area: self.area, slots, rooms: self.tagged }
    }
}

impl<M: Machine> Drop for Prepared<'_, M> {
    fn drop(&mut self) {
        if self.rooms > 0 {
            self.area.rooms.unreserve(self.rooms);
        }
        if self.stretch.slots() > 0 {
            self.area.free_slots(self.stretch.first(), self.stretch.slots());
        }
    }
}
