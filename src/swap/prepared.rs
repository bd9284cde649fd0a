//! What folios need to leave: slots, and room for their tags.
//!
//! Taken for several folios of one size at once, and used up one by one: [`Supply::take`] finds what serves a folio that
//! is about to leave, and who knows that several are asks the areas ([`Swap::prepare`](super::Swap::prepare));
//! [`Prepared::cache`] and [`Prepared::commit`] use it up. Nothing is taken for folios that are seen to stay, or that
//! nobody will want again.

use super::Dry;
use super::area::Area;
use super::cluster::Stretch;
use super::out::Leaving;
use super::slots::Slots;
use crate::frame::Frame;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::SwapEntry;

/// How many of the folios to come will want slots, where those lie side by side.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Demand {
    /// All.
    Sure,
    /// As many more as were served so far, for all that is known.
    Unsure,
}

/// What folios of one batch need to leave, from whatever area has it.
pub(crate) struct Supply<'a, M: Machine> {
    mm: &'a Mm<M>,
    prepared: Option<Prepared<'a, M>>,
    demand: Demand,
    /// Folios to come.
    folios: u32,
    /// Folios that were served.
    served: u32,
    /// The backed folios have given what they could.
    is_last: bool,
}

impl<'a, M: Machine> Supply<'a, M> {
    /// Nothing yet.
    pub(crate) fn new(mm: &'a Mm<M>, demand: Demand) -> Self {
        Self { mm, prepared: None, demand, folios: 1, served: 0, is_last: false }
    }

    /// The next of `folios` comes.
    #[inline]
    pub(crate) fn plan_for(&mut self, folios: u32) {
        self.folios = folios;
    }

    /// The backed folios have given what they could: nobody is told of them any more.
    pub(crate) fn insist(&mut self) {
        self.is_last = true;
    }

    /// What serves the folio of 2^`order` pages headed by `head`. May be called with its table's lock held.
    ///
    /// # Errors
    /// What there is not enough of.
    #[inline(always)]
    pub(crate) fn take(&mut self, head: Frame, order: u32) -> Result<&mut Prepared<'a, M>, Dry> {
        let tagged = self.mm.frames().tagged_pages(head, order);
        if !self.prepared.as_mut().is_some_and(|prepared| prepared.fit(order, tagged)) {
            self.refill(order, tagged)?;
        }
        self.served += 1;
        self.prepared.as_mut().ok_or(Dry::Slots)
    }

    #[inline(never)]
    fn refill(&mut self, order: u32, tagged: u32) -> Result<(), Dry> {
        // What is left goes back first: it may be what there is.
        self.prepared = None;
        let swap = self.mm.swap();
        let folios = match self.demand {
            Demand::Sure => self.folios,
            Demand::Unsure => self.folios.min(self.served + 1),
        };
        match swap.prepare(self.mm.machine().cpu(), order, tagged, folios) {
            Ok(prepared) => {
                self.prepared = Some(prepared);
                Ok(())
            }
            Err(Dry::Slots) if !self.is_last && swap.some_are_backed() => Err(Dry::Backed),
            Err(dry) => Err(dry),
        }
    }
}

/// Slots that nobody else has, and rooms that are reserved. Dropped, it gives both back.
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
