//! Swap: slots on devices, and the pages in them.
//!
//! **A folio's way out** ([`crate::reclaim`] drives it): *prepare* takes a slot for each page, an aligned run of them,
//! and reserves a room for a raw tag image for each page that has tags ([`Supply`], which gives back what is left when
//! dropped), for several folios at once; the slots then name the pages' frames (they are *cached*) with one user each;
//! the leaf entries are exchanged for swap entries; the flush completes; the tags are saved and the data written, in
//! one request but for pages that repeat one word, which need none; the slots are *out* and the frames are free.
//! Nothing after prepare can fail but the device: then the folio stays cached, with its swap entries, and is the only
//! copy. A large folio that finds no run of slots, or too few rooms, is split.
//!
//! **Its way in** ([`crate::space`]): a swap entry leads to a slot. If the slot is cached, the folio is mapped as it
//! is. If it is out, frames are read from the device, their tags are restored before the entries show them, and the
//! users of the slots are given back after. What was read in is dirty: its memory is the sole copy as soon as the slots
//! are free.
//!
//! Where that is the dearer way, a page that comes in for a load keeps its slot, and may leave again for nothing
//! ([`backed`]).
//!
//! **One word decides.** A slot's state word ([`slot`]) holds its kind, its count of swap entries, its tag kind, and
//! the cached frame or the refault shadow. Count and cache therefore cannot disagree. A slot's room goes back first,
//! then the slot itself with all that its word says (`Area::free_emptied`), and the usage count drops last.
//!
//! **Who may touch a slot.** Whoever holds what owns the reference: the leaf table's lock for a swap entry's count, the
//! folio lock for the cached frame, the cluster's lock for free and taken. Each of these is a slot in use, and an area
//! with a slot in use stays; who has none in hand holds the area itself ([`areas`]).

mod area;
mod areas;
mod backed;
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
pub use areas::{AreaId, SwapOffError};
pub use device::{DeviceError, DeviceFlags, Progress, SUMMED_PAGES, SwapDevice, Ticket};
pub use slot::SlotRecord;

pub(crate) use areas::Swap;
pub(crate) use out::{Late, Leaving, Saved, Written};
pub(crate) use prepared::{Demand, Supply};
pub(crate) use read_in::{Kept, ReadError};
pub(crate) use slot::{MOST_USERS, SlotState};

/// What no area has left.
///
/// [`Mm::unback_some`]: crate::mm::Mm::unback_some
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Dry {
    /// Slots.
    Slots,
    /// Slots, but for those of folios that are in memory as well, which [`Mm::unback_some`] may free.
    Backed,
    /// Rooms for tags, where there is a slot.
    Rooms,
}
