//! The kernel's statics: what the vectors and system calls reach without an argument.
//!
//! Each is set once, on the boot stack, before anything that reads it can run.

use core::cell::UnsafeCell;
use core::convert::Infallible;
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
        match self.fill(|| Ok::<_, Infallible>(value)) {
            Ok(shared) => shared,
            Err(never) => match never {},
        }
    }

    /// Fills it with what `make` returns, which is moved as seldom as can be: it may be large.
    pub fn fill<E>(&'static self, make: impl FnOnce() -> Result<T, E>) -> Result<&'static T, E> {
        assert!(!self.set.load(Ordering::Relaxed), "set twice");
        let place: *mut T = self.value.get().cast();
        match make() {
            // SAFETY: not set, so nobody has a reference; set at boot, by the first CPU alone.
            Ok(value) => unsafe { place.write(value) },
            Err(error) => return Err(error),
        }
        self.set.store(true, Ordering::Release);
        // SAFETY: just written, and only shared from here on.
        Ok(unsafe { &*place })
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

/// Makes the kernel's memory: once, by what `make` does.
pub fn set_mm<E>(make: impl FnOnce() -> Result<Mm<Hardware>, E>) -> Result<&'static Mm<Hardware>, E> {
    MM.fill(make)
}

/// The kernel's memory, on paths that may run before there is any.
pub fn get_mm() -> Option<&'static Mm<Hardware>> {
    MM.get()
}

/// The kernel's memory. Called only after [`set_mm`]: by tasks and by what EL0 triggers.
#[inline]
pub fn mm() -> &'static Mm<Hardware> {
    debug_assert!(MM.get().is_some());
    // SAFETY: tasks are made, and EL0 is entered, after `set_mm`.
    unsafe { MM.get_set() }
}
