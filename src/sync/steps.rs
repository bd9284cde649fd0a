//! Atomics under `shuttle`: every operation is a step, before which the scheduler may let another task go on.
//!
//! The words themselves are core's, of the same layout: records lie over zeroed memory, and what a frame's window shows
//! is words. shuttle runs all tasks of a test on one thread, so that they are as good as sequentially consistent: what
//! a weaker order permits is for the models with loom.
//!
//! Steps count inside [`stepping`] alone. A test builds its world and looks at the result outside of it, where one task
//! runs and no schedule has to tell of that.

use core::cell::Cell;
use core::sync::atomic;
use core::time::Duration;

use super::Ordering;

std::thread_local! {
    /// One thread runs all the tasks of a test.
    static STEPPING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body`, in which each operation on an atomic and each of the emulated machine's is a step. Inside a test that
/// shuttle runs.
pub fn stepping<R>(body: impl FnOnce() -> R) -> R {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            STEPPING.set(false);
        }
    }
    STEPPING.set(true);
    let _over = Over;
    body()
}

/// Lets another task go on, if the scheduler likes. A task that unwinds goes through at once.
#[inline]
pub(crate) fn step() {
    if STEPPING.get() && !std::thread::panicking() {
        // No time passes for shuttle: this is a change of turns and nothing else.
        shuttle::thread::sleep(Duration::ZERO);
    }
}

/// One turn of a wait: as a step, and others come first.
pub(crate) fn relax() {
    if STEPPING.get() {
        shuttle::thread::yield_now();
    }
}

macro_rules! stepped {
    ($name:ident, $word:ty) => {
        #[doc = concat!("Core's `", stringify!($name), "`, whose operations are steps.")]
        #[derive(Default, Debug)]
        #[repr(transparent)]
        pub struct $name(atomic::$name);

        #[allow(missing_docs)]
        impl $name {
            pub const fn new(value: $word) -> Self {
                Self(atomic::$name::new(value))
            }

            pub fn load(&self, order: Ordering) -> $word {
                step();
                self.0.load(order)
            }

            pub fn store(&self, value: $word, order: Ordering) {
                step();
                self.0.store(value, order);
            }

            pub fn swap(&self, value: $word, order: Ordering) -> $word {
                step();
                self.0.swap(value, order)
            }

            /// Never fails in vain: a loop around it would only be longer.
            pub fn compare_exchange_weak(
                &self,
                seen: $word,
                value: $word,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$word, $word> {
                self.compare_exchange(seen, value, success, failure)
            }

            pub fn compare_exchange(
                &self,
                seen: $word,
                value: $word,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$word, $word> {
                step();
                self.0.compare_exchange(seen, value, success, failure)
            }

            pub fn fetch_add(&self, value: $word, order: Ordering) -> $word {
                step();
                self.0.fetch_add(value, order)
            }

            pub fn fetch_sub(&self, value: $word, order: Ordering) -> $word {
                step();
                self.0.fetch_sub(value, order)
            }

            pub fn fetch_and(&self, value: $word, order: Ordering) -> $word {
                step();
                self.0.fetch_and(value, order)
            }

            pub fn fetch_or(&self, value: $word, order: Ordering) -> $word {
                step();
                self.0.fetch_or(value, order)
            }

            pub fn fetch_xor(&self, value: $word, order: Ordering) -> $word {
                step();
                self.0.fetch_xor(value, order)
            }
        }
    };
}

stepped!(AtomicU32, u32);
stepped!(AtomicU64, u64);
stepped!(AtomicUsize, usize);
