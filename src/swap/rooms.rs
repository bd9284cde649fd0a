//! Rooms for raw tag images: a pool sized once, so that saving tags never allocates.

use core::ptr::NonNull;

use crate::sync::{Ordering, AtomicU64, Spin};

/// "No room" in the free list.
const NONE: u32 = u32::MAX;

struct FreeRooms {
    /// The first of the rooms that were used and given back; each one's first word names the next.
    first: u32,
    /// Rooms from here up were never used.
    fresh: u32,
    free: u32,
}

/// A pool of equal rooms of `words` 64-bit words.
pub(super) struct Rooms {
    base: NonNull<AtomicU64>,
    words: usize,
    rooms: u32,
    free: Spin<FreeRooms>,
}

// SAFETY: the memory is reached as shared atomics, the rest is locked.
unsafe impl Send for Rooms {}
// SAFETY: as above.
unsafe impl Sync for Rooms {}

impl Rooms {
    /// # Safety
    /// `base` points to `rooms * words` words that stay, initialised, and are the pool's alone, for its life.
    pub(super) unsafe fn new(base: NonNull<AtomicU64>, words: usize, rooms: u32) -> Self {
        Self { base, words, rooms, free: Spin::new(FreeRooms { first: NONE, fresh: 0, free: rooms }) }
    }

    /// Takes a room.
    #[inline]
    pub(super) fn take(&self) -> Option<u32> {
        let mut free = self.free.lock();
        let room = if free.first != NONE {
            let room = free.first;
            free.first = self.words(room)?.first()?.load(Ordering::Relaxed) as u32;
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
        if let Some(word) = self.words(room).and_then(<[AtomicU64]>::first) {
            word.store(free.first as u64, Ordering::Relaxed);
            free.first = room;
            free.free += 1;
        }
    }

    /// The words of a room, if it exists.
    #[inline]
    fn words(&self, room: u32) -> Option<&[AtomicU64]> {
        if room >= self.rooms {
            return None;
        }
        // SAFETY: `new` promises `rooms * words` initialised words; `room` is below `rooms`.
        Some(unsafe { core::slice::from_raw_parts(self.base.add(room as usize * self.words).as_ptr(), self.words) })
    }

    /// Writes an image to a room that the caller took.
    #[inline]
    pub(super) fn store(&self, room: u32, image: &[u64]) {
        for (word, &value) in self.words(room).unwrap_or(&[]).iter().zip(image) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Reads the image in a room.
    #[inline]
    pub(super) fn load(&self, room: u32, image: &mut [u64]) {
        for (value, word) in image.iter_mut().zip(self.words(room).unwrap_or(&[])) {
            *value = word.load(Ordering::Relaxed);
        }
    }

    /// Rooms in all, and free ones.
    pub(super) fn count(&self) -> (u32, u32) {
        (self.rooms, self.free.lock().free)
    }
}

/// A room that its holder took. Dropped, it goes back.
#[must_use = "dropping a room gives it back"]
pub(super) struct Room<'a> {
    pub(super) pool: &'a Rooms,
    pub(super) number: u32,
}

impl Room<'_> {
    /// Writes an image and leaves the room to the slot that names it.
    #[inline]
    pub(super) fn keep(self, image: &[u64]) -> u32 {
        let number = self.number;
        self.pool.store(number, image);
        core::mem::forget(self);
        number
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.pool.give(self.number);
    }
}
