//! A folio's count and its lock.
//!
//! **Count.** `maps` counts leaf entries, `references` those who may look at the folio without mapping it, `pins`
//! those who let a device or the kernel write to it. [`Frames::get`] takes a reference unless the count is zero: a
//! folio on its way to the allocator cannot be revived. [`Frames::put`] gives one back and says whether it was the
//! last.
//!
//! **Lock.** One bit of the flags word. Reclaim takes it by [`Frames::try_lock`] only; a fault may sleep for it, and
//! then confirms again all that it knew.

use super::database::Frames;
use super::{Frame, flag};
use crate::machine::Machine;
use crate::sync::{Ordering, assert_may_sleep};

/// One leaf entry in a folio's count.
pub(crate) const MAP: u64 = 1;
/// One reference in a folio's count.
pub(crate) const REFERENCE: u64 = 1 << 32;
/// One pin in a folio's count.
const PIN: u64 = 1 << 48;

/// What giving back a count left.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use = "the last one out frees the folio"]
pub(crate) enum Left {
    /// Others hold the folio.
    Shared,
    /// Nobody: the caller frees it.
    Nobody,
}

impl Frames {
    /// Takes a reference, unless the folio is already nobody's.
    #[inline]
    pub(crate) fn get(&self, frame: Frame) -> bool {
        let count = &self.record(frame).count;
        let mut seen = count.load(Ordering::Relaxed);
        while seen != 0 {
            match count.compare_exchange_weak(seen, seen + REFERENCE, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Gives back one count of weight `weight` ([`MAP`] or [`REFERENCE`]).
    #[inline]
    pub(crate) fn put(&self, frame: Frame, weight: u64) -> Left {
        let before = self.record(frame).count.fetch_sub(weight, Ordering::AcqRel);
        debug_assert!(before >= weight, "the count of a folio went below zero");
        if before == weight { Left::Nobody } else { Left::Shared }
    }

    /// Turns one leaf entry's count into a reference: the entry is gone, but the frame stays until the flush is done.
    #[inline]
    pub(crate) fn map_to_reference(&self, frame: Frame) {
        self.record(frame).count.fetch_add(REFERENCE - MAP, Ordering::AcqRel);
    }

    /// Leaf entries of the folio.
    #[inline]
    pub(crate) fn maps(&self, frame: Frame) -> u32 {
        self.record(frame).count.load(Ordering::Acquire) as u32
    }

    /// Whether anybody holds a pin.
    #[inline]
    pub(crate) fn is_pinned(&self, frame: Frame) -> bool {
        self.record(frame).count.load(Ordering::Acquire) >= PIN
    }

    /// Takes the folio lock if it is free.
    #[inline]
    pub(crate) fn try_lock<'a, M: Machine>(&'a self, machine: &'a M, frame: Frame) -> Option<FolioLock<'a, M>> {
        let before = self.record(frame).flags.fetch_or(flag::LOCKED, Ordering::Acquire);
        if before & flag::LOCKED == 0 { Some(FolioLock { frames: self, machine, frame }) } else { None }
    }

    /// Sleeps until the folio lock is free, and takes it. The caller holds a reference and no inner lock.
    pub(crate) fn lock<'a, M: Machine>(&'a self, machine: &'a M, frame: Frame) -> FolioLock<'a, M> {
        assert_may_sleep();
        loop {
            if let Some(lock) = self.try_lock(machine, frame) {
                return lock;
            }
            let flags = &self.record(frame).flags;
            let seen = flags.fetch_or(flag::WAITED, Ordering::Relaxed) | flag::WAITED;
            if seen & flag::LOCKED != 0 {
                machine.wait(flags, seen);
            }
        }
    }
}

/// A held folio lock.
pub struct FolioLock<'a, M: Machine> {
    frames: &'a Frames,
    machine: &'a M,
    frame: Frame,
}

impl<M: Machine> FolioLock<'_, M> {
    /// The locked folio.
    #[inline]
    pub(crate) fn frame(&self) -> Frame {
        self.frame
    }
}

impl<M: Machine> Drop for FolioLock<'_, M> {
    #[inline]
    fn drop(&mut self) {
        let flags = &self.frames.record(self.frame).flags;
        let before = flags.fetch_and(!(flag::LOCKED | flag::WAITED), Ordering::Release);
        if before & flag::WAITED != 0 {
            self.machine.wake(flags);
        }
    }
}
