//! Rooms for raw tag images: a pool sized once, so that saving tags never allocates.

use core::ptr::NonNull;

use crate::granule::Granule;
use crate::sync::Spin;

/// "No room" in the free list.
const NONE: u32 = u32::MAX;

struct FreeRooms {
    /// The first of the rooms that were used and given back; each one's first word names the next.
    first: u32,
    /// Rooms from here up were never used.
    fresh: u32,
    free: u32,
}

/// A pool of rooms of one page's packed tags each.
pub(super) struct Rooms<G: Granule> {
    base: NonNull<G::TagWords>,
    rooms: u32,
    free: Spin<FreeRooms>,
}

// SAFETY: a room is reached only by who took it, and the list of free rooms is locked.
unsafe impl<G: Granule> Send for Rooms<G> {}
// SAFETY: as above.
unsafe impl<G: Granule> Sync for Rooms<G> {}

impl<G: Granule> Rooms<G> {
    /// # Safety
    /// `base` points to `rooms` initialised images that stay, and are the pool's alone, for its life.
    pub(super) unsafe fn new(base: NonNull<G::TagWords>, rooms: u32) -> Self {
        Self { base, rooms, free: Spin::new(FreeRooms { first: NONE, fresh: 0, free: rooms }) }
    }

    /// The image in a room, if the room exists.
    #[inline]
    fn image(&self, room: u32) -> Option<NonNull<G::TagWords>> {
        // SAFETY: `new` promises `rooms` images; `room` is below.
        if room < self.rooms { Some(unsafe { self.base.add(room as usize) }) } else { None }
    }

    /// The word of a free room that names the next free one.
    #[inline]
    fn link(&self, room: u32) -> Option<NonNull<u64>> {
        const { assert!(size_of::<G::TagWords>() >= size_of::<u64>()) };
        Some(self.image(room)?.cast())
    }

    /// Takes a room.
    #[inline]
    pub(super) fn take(&self) -> Option<u32> {
        let mut free = self.free.lock();
        let room = if free.first != NONE {
            let room = free.first;
            // SAFETY: the room is free and in the list, whose lock is held.
            free.first = unsafe { self.link(room)?.read() } as u32;
            room
        } else if free.fresh < self.rooms {
            free.fresh += 1;
            free.fresh - 1
        } else {
            return None;
        };
        free.free -= 1;
        Some(room)
    }

    /// Gives a room back.
    #[inline]
    pub(super) fn give(&self, room: u32) {
        let mut free = self.free.lock();
        let Some(link) = self.link(room) else { return };
        // SAFETY: the caller's room is nobody's any more but the list's, whose lock is held.
        unsafe { link.write(free.first.into()) };
        free.first = room;
        free.free += 1;
    }

    /// Writes an image to a room that the caller took.
    #[inline]
    pub(super) fn store(&self, room: u32, image: &G::TagWords) {
        if let Some(to) = self.image(room) {
            // SAFETY: only the room's holder reaches it.
            unsafe { to.write(*image) }
        }
    }

    /// Reads the image in a room that the caller's slot names.
    #[inline]
    pub(super) fn load(&self, room: u32) -> G::TagWords {
        // SAFETY: only the users of the room's slot reach it, and none of them writes.
        self.image(room).map_or(G::ZERO_TAGS, |from| unsafe { from.read() })
    }

    /// Rooms in all, and free ones.
    pub(super) fn count(&self) -> (u32, u32) {
        (self.rooms, self.free.lock().free)
    }
}
