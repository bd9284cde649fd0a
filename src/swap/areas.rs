//! The swap areas: which are on, in which order they are filled, and how one goes away.
//!
//! **Order.** By priority; among equals each stretch of slots comes from the next in turn. A size of folio that one
//! area has no room for is tried in the others.
//!
//! **Who may look at an area.** Whoever owns a slot of it: a swap entry under its table's lock or its space's, a cached
//! folio under its lock, slots that were prepared. Everybody else is *inside* ([`Inside`]) for as long as it looks.
//!
//! **Going away** ([`Mm::swap_off`](crate::Mm::swap_off)). First nothing new begins: the place is shut, and whoever was
//! about to take slots is waited for. Then every space brings its pages back; what reclaim has on the way out is waited
//! for, and looked for again. A slot's clean-up ends by counting it off, which is the last that its user does with the
//! area; so when none is counted, nobody owns a slot, and once those inside have left the records are the caller's
//! again. On any failure before that the area is open again, as it was, with fewer pages in it.

use core::fmt;
use core::ptr::NonNull;

use arrayvec::ArrayVec;

use super::Dry;
use super::area::{Area, SwapArea, SwapOnError};
use super::prepared::Prepared;
use crate::machine::Machine;
use crate::pte::SwapEntry;
use crate::sync::{AtomicU32, Inside, Place, Sleep, Spin};

/// The number of a swap area, below [`SwapEntry::AREAS`]. That of an area that went away may become another's.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct AreaId(u8);

impl AreaId {
    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// Why an area could not be turned off. It is on, as before; some of its pages may be in memory now.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SwapOffError {
    /// No area that is on has this number.
    NoSuchArea,
    /// No memory for the pages that are in it.
    NoMemory,
    /// So many slots are in use by others than the spaces that were named.
    InUse(u32),
}

impl fmt::Display for SwapOffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchArea => f.write_str("no swap area that is on has this number"),
            Self::NoMemory => f.write_str("there is no memory for the pages in the swap area"),
            Self::InUse(slots) => write!(f, "{slots} slots are in use by spaces that were not named"),
        }
    }
}

/// The numbers of the areas that are open, in the order in which they are tried.
type Order = ArrayVec<u8, { SwapEntry::AREAS }>;

/// All swap areas.
pub(crate) struct Swap<M: Machine> {
    places: [Place<Area<M>>; SwapEntry::AREAS],
    order: Spin<Order>,
    /// Folios that are [backed](super::backed).
    pub(super) backed: AtomicU32,
    /// Held by who turns areas on and off.
    changing: Sleep<()>,
}

impl<M: Machine> Swap<M> {
    pub(crate) const fn new() -> Self {
        Self {
            places: [const { Place::empty() }; SwapEntry::AREAS],
            order: Spin::new(Order::new_const()),
            backed: AtomicU32::new(0),
            changing: Sleep::new(()),
        }
    }

    /// The area with this number, if it is on: for whoever owns a slot of it.
    #[inline]
    pub(crate) fn area(&self, number: u8) -> Option<&Area<M>> {
        self.places.get(number as usize)?.get()
    }

    /// The area with this number, if it is on.
    pub(crate) fn enter(&self, number: u8) -> Option<Inside<'_, Area<M>>> {
        self.places.get(number as usize)?.enter()
    }

    /// The area with this number, if it is on and more may come into it.
    pub(super) fn enter_open(&self, number: u8) -> Option<Inside<'_, Area<M>>> {
        self.places.get(number as usize)?.enter_open()
    }

    /// Every area that is on.
    pub(crate) fn areas(&self) -> impl Iterator<Item = Inside<'_, Area<M>>> {
        self.places.iter().filter_map(Place::enter)
    }

    /// Free slots, and free rooms for tags, of the areas into which more may come.
    pub(crate) fn free(&self) -> (u64, u64) {
        let open = self.places.iter().filter_map(Place::enter_open);
        let free = open.map(|area| (area.slots().1 as u64, area.tag_rooms().1 as u64));
        free.fold((0, 0), |(slots, rooms), here| (slots + here.0, rooms + here.1))
    }

    fn priority(&self, number: u8) -> Option<i16> {
        self.enter(number).map(|area| area.priority())
    }

    /// Enters an area in the order, behind its equals.
    fn rank(&self, number: u8, priority: i16) {
        let mut order = self.order.lock();
        let place = order.iter().position(|&other| self.priority(other).is_some_and(|other| other < priority));
        let place = place.unwrap_or(order.len());
        // There are as many places as areas.
        let _ = order.try_insert(place, number);
    }

    /// Adds an area. See [`Mm::swap_on`](crate::Mm::swap_on).
    ///
    /// # Safety
    /// As for [`Mm::swap_on`](crate::Mm::swap_on).
    pub(crate) unsafe fn add(&self, machine: &M, area: SwapArea<M>) -> Result<AreaId, SwapOnError> {
        let _alone = self.changing.lock(machine);
        let mut places = (0..).zip(&self.places);
        let (number, place) = places.find(|(_, place)| place.get().is_none()).ok_or(SwapOnError::TooManyAreas)?;
        let priority = area.priority;
        // SAFETY: the caller's promise is the same.
        let area = unsafe { Area::new(number, area) }?;
        // SAFETY: empty, and who changes areas is alone.
        unsafe { place.fill(area) };
        self.rank(number, priority);
        Ok(AreaId(number))
    }

    /// Takes slots for a folio of 2^`order` pages, and rooms for the tags of `tagged` of them, in the first area that
    /// has them; as well for up to `folios` in all, as far as that is easy.
    pub(crate) fn prepare(&self, cpu: usize, order: u32, tagged: u32, folios: u32) -> Result<Prepared<'_, M>, Dry> {
        let mut dry = Dry::Slots;
        let numbers = self.order.lock().clone();
        for &number in &numbers {
            let Some(place) = self.places.get(number as usize) else { continue };
            // Once slots are taken, they keep the area.
            let (Some(_inside), Some(area)) = (place.enter_open(), place.get()) else { continue };
            match Prepared::take(area, cpu, order, tagged, folios) {
                Ok(prepared) => {
                    if numbers.len() > 1 {
                        self.rotate(number);
                    }
                    return Ok(prepared);
                }
                Err(Dry::Rooms) => dry = Dry::Rooms,
                Err(Dry::Slots | Dry::Backed) => {}
            }
        }
        Err(dry)
    }

    /// Puts an area that has just served behind its equals.
    #[cold]
    fn rotate(&self, number: u8) {
        let Some(priority) = self.priority(number) else { return };
        let mut order = self.order.lock();
        let equal = |other: &u8| self.priority(*other) == Some(priority);
        let Some(first) = order.iter().position(|&other| other == number) else { return };
        let equals = order.iter().skip(first).take_while(|other| equal(other)).count();
        if let Some(equals) = order.get_mut(first..first + equals) {
            equals.rotate_left(1);
        }
    }

    /// Turns an area off, and returns the memory of its records: nothing new begins there, `empty` makes all of its
    /// slots free, and it goes.
    ///
    /// # Errors
    /// [`SwapOffError::NoSuchArea`], and what `empty` says; the area is on then.
    pub(crate) fn remove(
        &self,
        machine: &M,
        id: AreaId,
        empty: impl FnOnce(&Area<M>) -> Result<(), SwapOffError>,
    ) -> Result<NonNull<u8>, SwapOffError> {
        let _alone = self.changing.lock(machine);
        let place = self.places.get(id.0 as usize).ok_or(SwapOffError::NoSuchArea)?;
        // It stays as long as nobody else changes areas.
        let area = place.get().ok_or(SwapOffError::NoSuchArea)?;
        self.order.lock().retain(|&mut number| number != id.0);
        place.shut(|| machine.relax());
        if let Err(error) = empty(area).and_then(|()| area.in_use().map_or(Ok(()), |n| Err(SwapOffError::InUse(n)))) {
            place.open();
            self.rank(id.0, area.priority());
            return Err(error);
        }
        let memory = area.memory();
        // SAFETY: full, and who changes areas is alone. No slot is in use, none can be taken since the place was shut,
        // and who gave back the last has done with the area.
        unsafe { place.clear(|| machine.relax()) };
        Ok(memory)
    }
}
