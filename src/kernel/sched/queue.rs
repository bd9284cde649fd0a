//! A queue of tasks' numbers, with room for all of them.

use crate::kernel::stack::MOST_TASKS;

/// A power of two, so that places need no division.
const PLACES: usize = MOST_TASKS.next_power_of_two();

/// First in, first out.
pub struct Queue {
    places: [u8; PLACES],
    first: usize,
    length: usize,
}

const _: () = assert!(MOST_TASKS <= 1 << u8::BITS);

impl Queue {
    /// An empty one.
    pub const fn new() -> Self {
        Self { places: [0; PLACES], first: 0, length: 0 }
    }

    /// How many wait.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether nobody waits.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Behind all others. A task is in one queue at most, so there is room.
    pub fn put(&mut self, task: usize) {
        debug_assert!(self.length < PLACES);
        self.places[(self.first + self.length) % PLACES] = task as u8;
        self.length += 1;
    }

    /// Before all others.
    pub fn put_first(&mut self, task: usize) {
        debug_assert!(self.length < PLACES);
        self.first = (self.first + PLACES - 1) % PLACES;
        self.places[self.first] = task as u8;
        self.length += 1;
    }

    /// The first one.
    pub fn take(&mut self) -> Option<usize> {
        let task = self.places[self.first];
        self.length = self.length.checked_sub(1)?;
        self.first = (self.first + 1) % PLACES;
        Some(task.into())
    }
}
