//! A place for a value that comes and goes, and is shared meanwhile.
//!
//! One word says whether the value is there, whether it is open, and how many are *inside*: look at it with nothing
//! else in hand that keeps it. Who comes in adds itself and learns by the same step whether it may; who closes the
//! place takes the bit away by one step, and those whom it counts from then on are the last. So nobody comes in
//! unnoticed.
//!
//! There is a second way to keep a value: to own something within it that its owner waits for before it clears the
//! place ([`Place::get`]). Which those are, the owner says.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::Deref;

use super::{AtomicU32, Ordering, Word};

/// The value is there.
const FULL: u32 = 1 << 31;
/// More than what is there may begin.
const OPEN: u32 = 1 << 30;
/// Those who are inside.
const INSIDE: u32 = OPEN - 1;

/// See the module's head. Dropped with a value in it, it does not drop that.
pub struct Place<T, W = AtomicU32> {
    word: W,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is shared while it is there, and moves in and out under the promises of `fill` and `clear`.
unsafe impl<T: Send + Sync, W: Sync> Sync for Place<T, W> {}
// SAFETY: as above.
unsafe impl<T: Send, W: Send> Send for Place<T, W> {}

/// The value, which stays until this is dropped.
pub struct Inside<'a, T, W: Word<Bits = u32> = AtomicU32> {
    value: &'a T,
    word: &'a W,
}

impl<T, W: Word<Bits = u32>> Deref for Inside<'_, T, W> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T, W: Word<Bits = u32>> Drop for Inside<'_, T, W> {
    #[inline]
    fn drop(&mut self) {
        self.word.fetch_sub(1, Ordering::Release);
    }
}

impl<T> Place<T> {
    /// An empty place.
    pub const fn empty() -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

impl<T, W: Word<Bits = u32>> Place<T, W> {
    fn value(&self) -> *mut T {
        self.value.get().cast()
    }

    /// The value, if it is there, for whoever owns something within it.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: `fill` wrote it before the bit; `clear` leaves it alone until nobody uses it.
        (self.word.load(Ordering::Acquire) & FULL != 0).then(|| unsafe { &*self.value() })
    }

    /// The value, if it is there.
    #[inline]
    pub fn enter(&self) -> Option<Inside<'_, T, W>> {
        self.enter_if(FULL)
    }

    /// The value, if it is open.
    #[inline]
    pub fn enter_open(&self) -> Option<Inside<'_, T, W>> {
        self.enter_if(OPEN)
    }

    #[inline]
    fn enter_if(&self, bit: u32) -> Option<Inside<'_, T, W>> {
        if self.word.fetch_add(1, Ordering::Acquire) & bit == 0 {
            self.word.fetch_sub(1, Ordering::Release);
            return None;
        }
        // SAFETY: as for `get`; and `clear`, which takes the bit away, waits for us.
        Some(Inside { value: unsafe { &*self.value() }, word: &self.word })
    }

    /// Puts a value there, and opens it.
    ///
    /// # Safety
    /// The place is empty, and nobody else fills or clears it meanwhile.
    pub unsafe fn fill(&self, value: T) {
        // SAFETY: empty, so nobody has a reference, and the caller is alone.
        unsafe { self.value().write(value) };
        self.word.fetch_or(FULL | OPEN, Ordering::Release);
    }

    /// Lets nobody in by [`Place::enter_open`] any more, and waits until those have left who came in before.
    pub fn shut(&self, relax: impl FnMut()) {
        self.word.fetch_and(!OPEN, Ordering::Relaxed);
        self.wait(relax);
    }

    /// Opens a value that was shut, and is still there.
    pub fn open(&self) {
        self.word.fetch_or(OPEN, Ordering::Relaxed);
    }

    /// Hides the value, waits until those have left who came in before, and drops it.
    ///
    /// # Safety
    /// The place is full, nobody owns anything within the value that it counts on (see the module's head), and nobody
    /// else fills or clears the place meanwhile.
    pub unsafe fn clear(&self, relax: impl FnMut()) {
        self.word.fetch_and(!(FULL | OPEN), Ordering::Relaxed);
        self.wait(relax);
        // SAFETY: written by `fill`, and nobody's but the caller's.
        unsafe { self.value().drop_in_place() };
    }

    fn wait(&self, mut relax: impl FnMut()) {
        while self.word.load(Ordering::Acquire) & INSIDE != 0 {
            relax();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32 as Modelled;
    use loom::thread;

    /// Something of the value's owner: given to it while the place is full.
    struct Lent(loom::cell::UnsafeCell<u32>);

    // SAFETY: loom watches each use of the cell.
    unsafe impl Sync for Lent {}

    fn use_it(lent: &Lent) {
        // SAFETY: loom checks that nobody changes it meanwhile.
        lent.0.with(|cell| assert_eq!(unsafe { *cell }, 1, "it went away"));
    }

    fn take_back(lent: &Lent) {
        // SAFETY: loom checks that nobody uses it meanwhile.
        lent.0.with_mut(|cell| unsafe { *cell = 2 });
    }

    type Model = (Place<(), Modelled>, Lent);

    fn model() -> Arc<Model> {
        let place = Place { word: Modelled::new(0), value: UnsafeCell::new(MaybeUninit::uninit()) };
        // SAFETY: empty, and nobody else has it.
        unsafe { place.fill(()) };
        Arc::new((place, Lent(loom::cell::UnsafeCell::new(1))))
    }

    /// Who came in is waited for; who comes after finds nothing.
    #[test]
    fn what_was_lent_is_taken_back_from_nobody() {
        loom::model(|| {
            let it = model();
            let other = {
                let it = Arc::clone(&it);
                thread::spawn(move || {
                    if let Some(inside) = it.0.enter() {
                        use_it(&it.1);
                        drop(inside);
                    }
                })
            };
            // SAFETY: full, and only this thread clears it.
            unsafe { it.0.clear(thread::yield_now) };
            take_back(&it.1);
            other.join().unwrap();
            assert!(it.0.enter().is_none());
        });
    }

    /// Shut, it still shows what is there, and nothing new begins.
    #[test]
    fn what_is_shut_begins_nothing() {
        loom::model(|| {
            let it = model();
            let other = {
                let it = Arc::clone(&it);
                thread::spawn(move || {
                    if let Some(inside) = it.0.enter_open() {
                        use_it(&it.1);
                        drop(inside);
                    }
                })
            };
            it.0.shut(thread::yield_now);
            take_back(&it.1);
            assert!(it.0.get().is_some() && it.0.enter().is_some() && it.0.enter_open().is_none());
            other.join().unwrap();
            it.0.open();
            assert!(it.0.enter_open().is_some());
        });
    }
}
