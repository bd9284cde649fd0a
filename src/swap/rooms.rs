//! Rooms for raw tag images: a pool sized once, so that saving tags never allocates.
//!
//! Who is about to save tags reserves rooms by their number, and takes one by one what was reserved when it turns out
//! to be needed: so a folio of many pages prepares in one step, and most pages, whose tags fit in a word, never touch
//! the list of rooms.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::granule::Granule;
use crate::sync::{AtomicU32, AtomicU64, Ordering, Spin};

/// "No room" in the free list.
const NONE: u32 = u32::MAX;

struct FreeRooms {
    /// The first of the rooms that were used and given back; each one's first word names the next.
    first: u32,
    /// Rooms from here up were never used.
    fresh: u32,
}

/// A pool of rooms of one page's packed tags each.
pub(super) struct Rooms<G: Granule> {
    base: NonNull<AtomicU64>,
    rooms: u32,
    /// Rooms that are neither used nor reserved.
    unreserved: AtomicU32,
    free: Spin<FreeRooms>,
    granule: PhantomData<G>,
}

// SAFETY: the memory is reached as shared atomics, the rest is locked.
unsafe impl<G: Granule> Send for Rooms<G> {}
// SAFETY: as above.
unsafe impl<G: Granule> Sync for Rooms<G> {}

impl<G: Granule> Rooms<G> {
    /// # Safety
    /// `base` points to `rooms` initialised images that stay, and are the pool's alone, for its life.
    pub(super) unsafe fn new(base: NonNull<AtomicU64>, rooms: u32) -> Self {
        let free = Spin::new(FreeRooms { first: NONE, fresh: 0 });
        Self { base, rooms, unreserved: AtomicU32::new(rooms), free, granule: PhantomData }
    }

    /// The words of all rooms, one room after the other.
    #[inline]
    fn all_words(&self) -> &[AtomicU64] {
        // SAFETY: `new` promises `rooms` initialised images of `TAG_WORDS` words each.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.rooms as usize * G::TAG_WORDS) }
    }

    /// The words of a room, if the room exists.
    #[inline]
    fn words(&self, room: u32) -> Option<&[AtomicU64]> {
        if room >= self.rooms {
            return None;
        }
        // SAFETY: `new` promises `rooms` initialised images of `TAG_WORDS` words each; `room` is below.
        unsafe {
            let first = self.base.add(room as usize * G::TAG_WORDS);
            Some(core::slice::from_raw_parts(first.as_ptr(), G::TAG_WORDS))
        }
    }

    /// Makes sure that [`Rooms::take`] will find `count` rooms. `None`, and nothing is reserved, when there are fewer.
    #[inline]
    pub(super) fn reserve(&self, count: u32) -> Option<()> {
        let mut seen = self.unreserved.load(Ordering::Relaxed);
        while seen >= count {
            match self.unreserved.compare_exchange_weak(seen, seen - count, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(()),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Gives back what was reserved and not taken.
    #[inline]
    pub(super) fn unreserve(&self, count: u32) {
        self.unreserved.fetch_add(count, Ordering::Release);
    }

    /// Takes a room that was reserved.
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
        Some(room)
    }

    /// Begins to give rooms back. `first` is where the first of them is noted.
    #[inline]
    pub(super) fn returning<'a>(&'a self, first: &'a AtomicU64) -> Returning<'a, G> {
        Returning { rooms: self, words: self.all_words(), first, last: first, count: 0 }
    }

    /// Gives a room back.
    #[inline]
    pub(super) fn give(&self, room: u32) {
        let Some(link) = self.all_words().get(room as usize * G::TAG_WORDS) else { return };
        {
            let mut free = self.free.lock();
            link.store(free.first.into(), Ordering::Relaxed);
            free.first = room;
        }
        self.unreserve(1);
    }

    /// Writes an image to a room that the caller took.
    ///
    /// Word by word, of a length that is known at compile time: a call of memcpy costs more.
    #[inline]
    pub(super) fn store(&self, room: u32, image: &G::TagWords) {
        for (to, &word) in self.words(room).unwrap_or(&[]).iter().zip(image.as_ref()) {
            to.store(word, Ordering::Relaxed);
        }
    }

    /// Reads the image in a room that the caller's slot names.
    #[inline(always)]
    pub(super) fn load(&self, room: u32) -> G::TagWords {
        let mut image = G::ZERO_TAGS;
        for (word, from) in image.as_mut().iter_mut().zip(self.words(room).unwrap_or(&[])) {
            *word = from.load(Ordering::Relaxed);
        }
        image
    }

    /// Rooms in all, and free ones.
    pub(super) fn count(&self) -> (u32, u32) {
        (self.rooms, self.unreserved.load(Ordering::Relaxed))
    }
}

/// Rooms on their way back: linked while nobody else knows of them, so that one short hold of the lock does for all.
#[must_use = "rooms are given back at the end"]
pub(super) struct Returning<'a, G: Granule> {
    rooms: &'a Rooms<G>,
    words: &'a [AtomicU64],
    first: &'a AtomicU64,
    /// Where the next room is noted: the link of the last, or `first`.
    last: &'a AtomicU64,
    count: u32,
}

impl<G: Granule> Returning<'_, G> {
    /// Adds a room, which no slot names any more.
    #[inline(always)]
    pub(super) fn push(&mut self, room: u32) {
        let Some(link) = self.words.get(room as usize * G::TAG_WORDS) else { return };
        self.last.store(room.into(), Ordering::Relaxed);
        self.last = link;
        self.count += 1;
    }

    /// From here on they are anybody's.
    #[inline(always)]
    pub(super) fn end(self) {
        if self.count == 0 {
            return;
        }
        {
            let mut free = self.rooms.free.lock();
            self.last.store(free.first.into(), Ordering::Relaxed);
            free.first = self.first.load(Ordering::Relaxed) as u32;
        }
        self.rooms.unreserve(self.count);
    }
}
