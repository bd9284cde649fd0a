//! Atomics under `shuttle`: every operation is a step, before which the scheduler may let another task go on.
//!
//! The words themselves are core's, of the same layout: records lie over zeroed memory, and what a frame's window shows
//! is words. shuttle runs all tasks of a test on one thread, so that they are as good as sequentially consistent: what
//! a weaker order permits is for the models with loom.
//!
//! Steps count inside [`stepping`] alone. A test builds its world and looks at the result outside of it, where one task
//! runs and no schedule has to tell of that. Nor does it of a [`Search`] through entries that nobody uses.

use core::cell::Cell;
use core::sync::atomic;
use core::time::Duration;

use super::Ordering;

/// Tasks of a test at most, with the one that lets the others meet.
pub(crate) const TASKS: usize = 8;

std::thread_local! {
    /// One thread runs all the tasks of a test.
    static STEPPING: Cell<bool> = const { Cell::new(false) };
    /// The task whose turn it is.
    static TASK: Cell<usize> = const { Cell::new(0) };
}

/// Values of tasks, by their numbers. shuttle has such, too, by a search in a map that takes longer than all else of a
/// step.
pub(crate) struct TaskLocal<T: 'static>(pub &'static std::thread::LocalKey<[Cell<T>; TASKS]>);

impl<T> TaskLocal<T> {
    #[inline]
    pub fn with<R>(&'static self, body: impl FnOnce(&Cell<T>) -> R) -> R {
        self.0.with(|values| body(&values[TASK.get()]))
    }
}

/// As std's macro, for cells.
macro_rules! task_local {
    ($($(#[$doc:meta])* static $name:ident: $($cell:ident)::+<$value:ty> = const { $first:expr };)*) => {$(
        $(#[$doc])*
        static $name: $crate::sync::TaskLocal<$value> = {
            std::thread_local! {
                static VALUES: [core::cell::Cell<$value>; $crate::sync::TASKS] =
                    const { [const { $first }; $crate::sync::TASKS] };
            }
            $crate::sync::TaskLocal(&VALUES)
        };
    )*};
}
pub(crate) use task_local;

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
    turn(body)
}

/// Runs `body`, in which other tasks may have their turns. Stands around all that makes shuttle look for another one.
pub fn turn<R>(body: impl FnOnce() -> R) -> R {
    struct Back(usize);
    impl Drop for Back {
        fn drop(&mut self) {
            TASK.set(self.0);
        }
    }
    let _back = Back(TASK.get());
    body()
}

/// Says that a task begins, which has a number of its own: 1 to 7, as 0 is who made it.
pub fn begin_task(number: usize) {
    assert!((1..TASKS).contains(&number), "1 to {} tasks", TASKS - 1);
    TASK.set(number);
}

/// Empty entries in a row after which the next ones are no steps: more than a race has in a table.
const LONG: u32 = 32;

task_local! {
    /// How many of the last steps were reads of empty entries.
    static EMPTY: Cell<u32> = const { Cell::new(0) };
}

/// A read of a table's entry. Fork, the end of a space and reclaim search whole tables, of which a race uses the first
/// entries. Nobody stores to the others: whether a read of these comes before or after another task's step is the same
/// for both. So a search is steps until it has seen many empty entries in a row, and goes through the rest at once.
pub(crate) struct Search(u32);

impl Search {
    /// Stands before the read: a step, or none.
    #[inline]
    pub fn step() -> Self {
        let search = Self(EMPTY.with(Cell::get));
        if !search.is_long() {
            step();
        }
        search
    }

    /// Whether the read was no step.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.0 >= LONG
    }

    /// Says what was read.
    #[inline]
    pub fn found(self, raw: u64) {
        EMPTY.with(|empty| empty.set(if raw == 0 { self.0 + 1 } else { 0 }));
    }
}

/// Lets another task go on, if the scheduler likes. A task that unwinds goes through at once.
#[inline]
pub(crate) fn step() {
    EMPTY.with(|empty| empty.set(0));
    if STEPPING.get() && !std::thread::panicking() {
        // No time passes for shuttle: this is a change of turns and nothing else.
        turn(|| shuttle::thread::sleep(Duration::ZERO));
    }
}

/// One turn of a wait: as a step, and others come first.
pub(crate) fn relax() {
    if STEPPING.get() {
        turn(shuttle::thread::yield_now);
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
