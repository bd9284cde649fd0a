//! The kernel's statics: what the vectors and system calls reach without an argument.
//!
//! Each is set once, on the boot thread, before anything that reads it can run.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use ebbtide::Mm;

use super::Hardware;

/// A value that is set once and then shared.
pub struct Late<T> {
    set: AtomicBool,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written once, before `set`, and only shared after it.
unsafe impl<T: Sync + Send> Sync for Late<T> {}

impl<T> Late<T> {
    /// An empty place.
    pub const fn new() -> Self {
        Self { set: AtomicBool::new(false), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Fills it.
    pub fn set(&'static self, value: T) -> &'static T {
        assert!(!self.set.load(Ordering::Relaxed), "set twice");
        // SAFETY: not set, so nobody has a reference; one CPU, not preempted, so nobody else is setting it.
        let shared = unsafe { (*self.value.get()).write(value) };
        self.set.store(true, Ordering::Release);
        shared
    }

    /// The value, if it is set.
    pub fn get(&'static self) -> Option<&'static T> {
        // SAFETY: once set, the value is written and stays.
        self.set.load(Ordering::Acquire).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// The value, for paths on which each instruction counts.
    ///
    /// # Safety
    /// It is set.
    #[inline]
    pub unsafe fn get_set(&'static self) -> &'static T {
        // SAFETY: the caller's promise.
        unsafe { (*self.value.get()).assume_init_ref() }
    }
}

static MM: Late<Mm<Hardware>> = Late::new();

/// Makes `mm` the kernel's.
pub fn set_mm(mm: Mm<Hardware>) -> &'static Mm<Hardware> {
    MM.set(mm)
}

/// The kernel's memory, on paths that may run before there is any.
pub fn get_mm() -> Option<&'static Mm<Hardware>> {
    MM.get()
}

/// The kernel's memory. Called only after [`set_mm`]: by threads and by what EL0 triggers.
#[inline]
pub fn mm() -> &'static Mm<Hardware> {
    debug_assert!(MM.get().is_some());
    // SAFETY: threads are spawned, and EL0 is entered, after `set_mm`.
    unsafe { MM.get_set() }
}
