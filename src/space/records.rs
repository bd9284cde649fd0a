//! Frames as arrays of plain records, for the list of regions.
//!
//! Copies go in and out; no reference to a frame's bytes is ever made, so that nothing can alias. Whoever uses the
//! array holds the lock of what it belongs to.

use core::marker::PhantomData;

use crate::addr::{Pfn, PfnRange};
use crate::frame::Kind;
use crate::frame::slab::Plain;
use crate::granule::Granule;
use crate::machine::{Machine, Tags};
use crate::mm::Mm;

/// A frame of `T`s.
pub(super) struct Records<T> {
    frame: Pfn,
    of: PhantomData<fn() -> T>,
}

impl<T> Copy for Records<T> {}

impl<T> Clone for Records<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Plain + Copy> Records<T> {
    /// A zeroed frame; `None` without memory.
    pub(super) fn take<M: Machine>(mm: &Mm<M>) -> Option<Self> {
        let frame = mm.take_frame(Kind::Records)?;
        mm.machine().zero(PfnRange::new(frame.pfn(), 1), Tags::Ignore);
        let pfn = frame.pfn();
        frame.publish();
        Some(Self { frame: pfn, of: PhantomData })
    }

    /// Gives the frame back; no copy of the handle is used afterwards.
    pub(super) fn give<M: Machine>(self, mm: &Mm<M>) {
        if let Some(frame) = mm.frames().frame(self.frame) {
            mm.frames().free(mm.machine().cpu(), frame);
        }
    }

    /// Records in the frame.
    #[inline]
    pub(super) const fn capacity<M: Machine>() -> usize {
        M::Granule::SIZE / size_of::<T>()
    }

    /// The place of `count` records from `index` on.
    #[inline]
    fn run<M: Machine>(self, mm: &Mm<M>, index: usize, count: usize) -> *mut T {
        assert!(index + count <= Self::capacity::<M>(), "a region list names a record outside its frame");
        mm.machine().window(self.frame).first().cast::<T>().as_ptr().wrapping_add(index)
    }

    /// Record `index`, below the capacity.
    #[inline]
    pub(super) fn get<M: Machine>(self, mm: &Mm<M>, index: usize) -> T {
        // SAFETY: within the frame, by the check in `run`; zeroed or written before; the list's lock is held.
        unsafe { self.run(mm, index, 1).read() }
    }

    /// Writes record `index`, below the capacity.
    #[inline]
    pub(super) fn set<M: Machine>(self, mm: &Mm<M>, index: usize, record: T) {
        // SAFETY: as above.
        unsafe { self.run(mm, index, 1).write(record) }
    }

    /// Copies `count` records from `from` on to `to` on of `into`, which may be the same frame.
    pub(super) fn shift<M: Machine>(self, mm: &Mm<M>, from: usize, into: Self, to: usize, count: usize) {
        // SAFETY: both runs are within their frames, by the check in `run`; `copy_to` allows an overlap.
        unsafe { self.run(mm, from, count).copy_to(into.run(mm, to, count), count) }
    }

    /// Of the first `len` records, the number for which `low` holds; it holds for a first part of them.
    #[inline]
    pub(super) fn partition<M: Machine>(self, mm: &Mm<M>, len: usize, low: impl Fn(T) -> bool) -> usize {
        let (mut start, mut end) = (0, len);
        while start < end {
            let middle = start + (end - start) / 2;
            if low(self.get(mm, middle)) {
                start = middle + 1;
            } else {
                end = middle;
            }
        }
        start
    }
}
