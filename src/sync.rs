//! Atomics and locks: where the library takes both from. Two locks are bits of a frame's record and live beside it, the
//! folio lock and the leaf table's; the real machine's atomic descriptors are its own.
//!
//! Two kinds of lock. [`Spin`] and [`SpinShared`] guard inner data for a few dozen instructions and are never held
//! across an allocation, a device call or a wait. [`Sleep`] guards a space: it is held over all of these, and waits
//! through the machine's `wait` and `wake`. The order in which they nest is in `docs/INVARIANTS.md`.
//!
//! In builds with debug assertions a per-thread depth counter checks the first rule: [`assert_may_sleep`] fails when
//! a spinning lock is held.
//!
//! With the feature `shuttle`, for `tests/races*.rs` alone, each operation on an atomic, and
//! so each turn of a lock, is a step of a scheduler that explores interleavings: `steps`.

mod place;
#[cfg(feature = "shuttle")]
mod steps;

pub use core::sync::atomic::Ordering;
#[cfg(not(feature = "shuttle"))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
#[cfg(feature = "shuttle")]
pub use steps::{AtomicU32, AtomicU64, AtomicUsize, begin_task, stepping, turn};

/// Atomics that are no steps to a scheduler: those of counters, by which nobody decides, and those that an emulated
/// machine touches within one of its own steps.
pub(crate) mod stepless {
    #[cfg(any(test, feature = "emu"))]
    pub(crate) use core::sync::atomic::AtomicU32;
    pub(crate) use core::sync::atomic::AtomicU64;
}

#[cfg(all(any(test, feature = "emu"), not(feature = "shuttle")))]
pub(crate) use std::thread_local;
/// Values of the calling thread. shuttle's tasks share one thread, and have theirs all the same.
#[cfg(feature = "shuttle")]
pub(crate) use steps::{TASKS, TaskLocal, task_local as thread_local};

/// A step that is no operation on an atomic: one of the emulated machine's.
#[cfg(feature = "shuttle")]
pub(crate) use steps::{Search, step};
#[cfg(all(any(test, feature = "emu"), not(feature = "shuttle")))]
pub(crate) use unstepped::{Search, step};

/// Where no scheduler asks for steps.
#[cfg(all(any(test, feature = "emu"), not(feature = "shuttle")))]
mod unstepped {
    #[inline(always)]
    pub(crate) fn step() {}

    pub(crate) struct Search;

    impl Search {
        #[inline(always)]
        pub fn step() -> Self {
            Self
        }

        #[inline(always)]
        pub fn is_long(&self) -> bool {
            false
        }

        #[inline(always)]
        pub fn found(self, _raw: u64) {}
    }
}

pub use place::{Inside, Place};

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::machine::Machine;

/// How a spinning CPU waits. `yield` lets a hardware thread or an emulator's round-robin go on;
/// `core::hint::spin_loop` is ISB on AArch64, which does not. With feature `spin-hook` it is the porter's to say, in a
/// function of the name `ebbtide_spin` that does the same as [`Board::relax`](crate::machine::Board::relax): there a
/// watchdog can see that a lock is never free.
pub struct Relax;

#[cfg(all(feature = "spin-hook", target_os = "none"))]
unsafe extern "Rust" {
    safe fn ebbtide_spin();
}

impl spin::RelaxStrategy for Relax {
    #[inline]
    fn relax() {
        #[cfg(all(feature = "spin-hook", target_os = "none"))]
        ebbtide_spin();
        #[cfg(all(target_arch = "aarch64", target_os = "none", not(feature = "spin-hook")))]
        // SAFETY: `yield` is a hint without operands or effects.
        unsafe {
            core::arch::asm!("yield", options(nomem, nostack, preserves_flags));
        }
        #[cfg(feature = "shuttle")]
        steps::relax();
        #[cfg(not(any(feature = "shuttle", all(target_arch = "aarch64", target_os = "none"))))]
        core::hint::spin_loop();
    }
}

#[cfg(all(debug_assertions, any(test, feature = "emu")))]
mod depth {
    crate::sync::thread_local! {
        static HELD: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
    }
    pub fn enter() {
        HELD.with(|held| held.set(held.get() + 1));
    }
    pub fn leave() {
        HELD.with(|held| held.set(held.get() - 1));
    }
    pub fn assert_none() {
        HELD.with(|held| assert_eq!(held.get(), 0, "a spinning lock is held where the library may sleep"));
    }
}

#[cfg(not(all(debug_assertions, any(test, feature = "emu"))))]
mod depth {
    #[inline]
    pub fn enter() {}
    #[inline]
    pub fn leave() {}
    #[inline]
    pub fn assert_none() {}
}

/// Checks, in test builds, that the calling thread holds no spinning lock: stands at the head of whatever may
/// allocate, call a device or wait.
#[inline]
pub fn assert_may_sleep() {
    depth::assert_none();
}

/// A word of a protocol that stands in a record. The protocols are generic over it, so that models of what a weaker
/// order permits, with loom, run the very steps of the library.
#[allow(missing_docs)]
pub trait Word {
    type Bits;
    fn load(&self, order: Ordering) -> Self::Bits;
    fn store(&self, bits: Self::Bits, order: Ordering);
    fn compare_exchange(
        &self,
        seen: Self::Bits,
        bits: Self::Bits,
        success: Ordering,
        failure: Ordering,
    ) -> Result<Self::Bits, Self::Bits>;
    fn compare_exchange_weak(
        &self,
        seen: Self::Bits,
        bits: Self::Bits,
        success: Ordering,
        failure: Ordering,
    ) -> Result<Self::Bits, Self::Bits>;
    fn fetch_add(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
    fn fetch_sub(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
    fn fetch_and(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
    fn fetch_or(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
    fn fetch_xor(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
    /// One turn of a wait for another value.
    fn relax();
}

macro_rules! word {
    ($word:ty, $bits:ty, $relax:expr) => {
        impl Word for $word {
            type Bits = $bits;
            #[inline(always)]
            fn load(&self, order: Ordering) -> $bits {
                self.load(order)
            }
            #[inline(always)]
            fn store(&self, bits: $bits, order: Ordering) {
                self.store(bits, order);
            }
            #[inline(always)]
            fn compare_exchange(
                &self,
                seen: $bits,
                bits: $bits,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$bits, $bits> {
                self.compare_exchange(seen, bits, success, failure)
            }
            #[inline(always)]
            fn compare_exchange_weak(
                &self,
                seen: $bits,
                bits: $bits,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$bits, $bits> {
                self.compare_exchange_weak(seen, bits, success, failure)
            }
            #[inline(always)]
            fn fetch_add(&self, bits: $bits, order: Ordering) -> $bits {
                self.fetch_add(bits, order)
            }
            #[inline(always)]
            fn fetch_sub(&self, bits: $bits, order: Ordering) -> $bits {
                self.fetch_sub(bits, order)
            }
            #[inline(always)]
            fn fetch_and(&self, bits: $bits, order: Ordering) -> $bits {
                self.fetch_and(bits, order)
            }
            #[inline(always)]
            fn fetch_or(&self, bits: $bits, order: Ordering) -> $bits {
                self.fetch_or(bits, order)
            }
            #[inline(always)]
            fn fetch_xor(&self, bits: $bits, order: Ordering) -> $bits {
                self.fetch_xor(bits, order)
            }
            #[inline(always)]
            fn relax() {
                $relax();
            }
        }
    };
}

word!(AtomicU32, u32, <Relax as spin::RelaxStrategy>::relax);
word!(AtomicU64, u64, <Relax as spin::RelaxStrategy>::relax);
#[cfg(test)]
word!(loom::sync::atomic::AtomicU32, u32, loom::thread::yield_now);
#[cfg(test)]
word!(loom::sync::atomic::AtomicU64, u64, loom::thread::yield_now);

/// Takes a lock that is one bit of a word, if it is free: what its last holder did is seen from here on.
#[inline]
pub(crate) fn try_lock_bit<W: Word<Bits = u32>>(word: &W, bit: u32) -> bool {
    word.fetch_or(bit, Ordering::Acquire) & bit == 0
}

/// Gives back a lock that is a bit of a word, with other bits that go with it. Returns the word as it was.
#[inline]
pub(crate) fn unlock_bits<W: Word<Bits = u32>>(word: &W, bits: u32) -> u32 {
    word.fetch_and(!bits, Ordering::Release)
}

/// Marks a lock that lives as a bit of a record (a leaf table's) as held or released, for [`assert_may_sleep`].
pub(crate) struct HeldMark(());

impl HeldMark {
    #[inline]
    pub(crate) fn new() -> Self {
        depth::enter();
        Self(())
    }
}

impl Drop for HeldMark {
    #[inline]
    fn drop(&mut self) {
        depth::leave();
    }
}

/// A spinning mutual exclusion lock.
pub struct Spin<T>(spin::mutex::SpinMutex<T, Relax>);

impl<T> Spin<T> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(spin::mutex::SpinMutex::new(value))
    }

    /// Spins until the lock is free, and takes it.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        #[cfg(feature = "shuttle")]
        steps::step();
        SpinGuard { inner: self.0.lock(), _held: HeldMark::new() }
    }
}

/// A held [`Spin`].
pub struct SpinGuard<'a, T> {
    inner: spin::mutex::SpinMutexGuard<'a, T>,
    _held: HeldMark,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Bit of a lock word that a writer holds or waits for; the bits below it count readers.
const EXCLUSIVE: u32 = 1 << 31;

/// A spinning lock that many readers or one writer hold, as a bare word: it lives in records that are cleared as
/// memory, and guards what its owner says, not a value inside.
#[repr(transparent)]
pub struct SpinShared<W = AtomicU32>(W);

impl SpinShared {
    /// An unlocked lock.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl<W: Word<Bits = u32>> SpinShared<W> {
    /// Takes the lock together with other readers.
    #[inline]
    pub fn read(&self) -> SharedGuard<'_, W> {
        loop {
            let seen = self.0.load(Ordering::Relaxed);
            if seen & EXCLUSIVE == 0
                && self.0.compare_exchange_weak(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return SharedGuard { lock: &self.0, release: 1, _held: HeldMark::new() };
            }
            W::relax();
        }
    }

    /// Takes the lock alone.
    #[inline]
    pub fn write(&self) -> SharedGuard<'_, W> {
        // Its bit keeps new readers out while it waits for those inside.
        while self.0.fetch_or(EXCLUSIVE, Ordering::Acquire) & EXCLUSIVE != 0 {
            W::relax();
        }
        while self.0.load(Ordering::Acquire) != EXCLUSIVE {
            W::relax();
        }
        SharedGuard { lock: &self.0, release: EXCLUSIVE, _held: HeldMark::new() }
    }
}

impl Default for SpinShared {
    fn default() -> Self {
        Self::new()
    }
}

/// A held [`SpinShared`], by a reader or by the writer.
pub struct SharedGuard<'a, W: Word<Bits = u32> = AtomicU32> {
    lock: &'a W,
    release: u32,
    _held: HeldMark,
}

impl<W: Word<Bits = u32>> Drop for SharedGuard<'_, W> {
    #[inline]
    fn drop(&mut self) {
        self.lock.fetch_sub(self.release, Ordering::Release);
    }
}

/// States of a [`Sleep`] lock's word.
const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// A mutual exclusion lock whose waiters sleep.
pub struct Sleep<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the word admits one holder at a time, so that a shared `Sleep<T>` hands out `&mut T` to one thread only.
unsafe impl<T: Send> Sync for Sleep<T> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: Send> Send for Sleep<T> {}

impl<T> Sleep<T> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    /// Takes the lock; sleeps through `machine` while another thread holds it.
    #[inline]
    pub fn lock<'a, M: Machine>(&'a self, machine: &'a M) -> SleepGuard<'a, T, M> {
        assert_may_sleep();
        if self.word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slow(machine);
        }
        SleepGuard { lock: self, machine, value: PhantomData }
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock<'a, M: Machine>(&'a self, machine: &'a M) -> Option<SleepGuard<'a, T, M>> {
        let taken = self.word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok();
        taken.then(|| SleepGuard { lock: self, machine, value: PhantomData })
    }

    #[cold]
    fn lock_slow<M: Machine>(&self, machine: &M) {
        while self.word.swap(CONTENDED, Ordering::Acquire) != FREE {
            machine.wait(&self.word, CONTENDED);
        }
    }

    /// The value, when nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// A held [`Sleep`].
pub struct SleepGuard<'a, T, M: Machine> {
    lock: &'a Sleep<T>,
    machine: &'a M,
    /// A guard is as good as the exclusive reference that it hands out: shared between threads only if that may be.
    value: PhantomData<&'a mut T>,
}

impl<T, M: Machine> Deref for SleepGuard<'_, T, M> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists only while its thread holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, M: Machine> DerefMut for SleepGuard<'_, T, M> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, M: Machine> Drop for SleepGuard<'_, T, M> {
    #[inline]
    fn drop(&mut self) {
        if self.lock.word.swap(FREE, Ordering::Release) == CONTENDED {
            self.machine.wake(&self.lock.word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32 as Modelled;
    use loom::thread;

    /// A lock's word, and what the lock guards: loom fails two uses, one of them a change, that are not in order.
    struct Guarded<L> {
        lock: L,
        value: loom::cell::UnsafeCell<u32>,
    }

    // SAFETY: loom watches each use of the cell.
    unsafe impl<L: Sync> Sync for Guarded<L> {}

    impl<L> Guarded<L> {
        fn new(lock: L) -> Arc<Self> {
            Arc::new(Self { lock, value: loom::cell::UnsafeCell::new(0) })
        }

        fn look(&self) -> u32 {
            // SAFETY: loom checks that nobody changes it meanwhile.
            self.value.with(|value| unsafe { *value })
        }

        fn count(&self) {
            // SAFETY: loom checks that nobody uses it meanwhile.
            self.value.with_mut(|value| unsafe { *value += 1 });
        }
    }

    #[test]
    fn a_bit_is_a_lock() {
        loom::model(|| {
            let guarded = Guarded::new(Modelled::new(0));
            let body = |guarded: &Guarded<Modelled>| {
                while !try_lock_bit(&guarded.lock, 4) {
                    thread::yield_now();
                }
                guarded.count();
                unlock_bits(&guarded.lock, 4);
            };
            let other = {
                let guarded = Arc::clone(&guarded);
                thread::spawn(move || body(&guarded))
            };
            body(&guarded);
            other.join().unwrap();
            assert_eq!(guarded.look(), 2);
        });
    }

    /// Whether two readers and a writer, or two writers, meet.
    fn share(first: fn(&Guarded<SpinShared<Modelled>>), second: fn(&Guarded<SpinShared<Modelled>>), counted: u32) {
        let mut model = loom::model::Builder::new();
        // Four changes of turns are more than two threads need to go wrong.
        model.preemption_bound = Some(4);
        model.check(move || {
            let guarded = Guarded::new(SpinShared(Modelled::new(0)));
            let other = {
                let guarded = Arc::clone(&guarded);
                thread::spawn(move || first(&guarded))
            };
            second(&guarded);
            other.join().unwrap();
            assert_eq!(guarded.look(), counted);
        });
    }

    fn read(guarded: &Guarded<SpinShared<Modelled>>) {
        let _shared = guarded.lock.read();
        assert!(guarded.look() <= 1);
    }

    fn write(guarded: &Guarded<SpinShared<Modelled>>) {
        let _alone = guarded.lock.write();
        guarded.count();
    }

    #[test]
    fn a_writer_is_alone() {
        share(read, write, 1);
        share(write, write, 2);
        share(read, read, 0);
        share(
            |guarded| {
                write(guarded);
                read(guarded);
            },
            read,
            1,
        );
    }
}
