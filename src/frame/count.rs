//! A folio's count: maps, references and pins in one word.
//!
//! **Protocol.** Who has a count may add counts, and gives each back once ([`Count::put`]); whoever gives back the last
//! is alone with the folio, sees all that others did to it while they had counts, and frees it. Who frees by another
//! way than others leave by asks first whether it is the last ([`Count::put_unless_last`]). Who has none may
//! [`Count::get`] a reference, but not of a folio that is nobody's. Who has all counts there are changes what the
//! folio is ([`Count::trade`]); who takes a leaf entry out may keep its count as a reference ([`Count::keep`]).
//!
//! Generic over the word, so that the models below run these very steps on loom's.

use crate::sync::{AtomicU64, Ordering, Word};

/// One leaf entry in a folio's count.
pub(crate) const MAP: u64 = 1;
/// One reference in a folio's count.
pub(crate) const REFERENCE: u64 = 1 << 32;
/// One pin in a folio's count.
pub(crate) const PIN: u64 = 1 << 48;
/// Pins that a folio has at most: every CPU may have looked before any has added one.
const MOST_PINS: u64 = 0xff00 * PIN;

/// What giving back a count left.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use = "the last one out frees the folio"]
pub(crate) enum Left {
    /// Others hold the folio.
    Shared,
    /// Nobody: the caller frees it.
    Nobody,
}

/// See the module's head.
#[repr(transparent)]
pub(crate) struct Count<W = AtomicU64>(W);

impl Count {
    /// The bare word: of a table, whose entries it counts by rules of their own, and for a log.
    #[inline]
    pub(crate) fn word(&self) -> &AtomicU64 {
        &self.0
    }
}

#[cfg(test)]
impl<W> Count<W> {
    /// A count in a word that a model made.
    pub(crate) fn of(word: W) -> Self {
        Self(word)
    }
}

impl<W: Word<Bits = u64>> Count<W> {
    /// Starts with counts of `weight`. Nobody else knows of the folio yet.
    #[inline]
    pub(crate) fn begin(&self, weight: u64) {
        self.0.store(weight, Ordering::Relaxed);
    }

    /// Takes a reference, unless the folio is already nobody's.
    #[inline]
    pub(crate) fn get(&self) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen != 0 {
            match self.0.compare_exchange_weak(seen, seen + REFERENCE, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Takes counts of `weight` more. The caller has one.
    #[inline]
    pub(crate) fn add(&self, weight: u64) {
        self.0.fetch_add(weight, Ordering::Relaxed);
    }

    /// Gives back counts of weight `weight` in sum: so many [`MAP`] or [`REFERENCE`].
    #[inline]
    pub(crate) fn put(&self, weight: u64) -> Left {
        let before = self.0.fetch_sub(weight, Ordering::AcqRel);
        debug_assert!(before >= weight, "the count of a folio went below zero");
        if before == weight { Left::Nobody } else { Left::Shared }
    }

    /// Gives back counts of weight `weight`, unless they are the last. Whether it did.
    #[inline]
    pub(crate) fn put_unless_last(&self, weight: u64) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen > weight {
            match self.0.compare_exchange_weak(seen, seen - weight, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Makes counts of `after` out of the counts `before`, all of which are the caller's. `None` when somebody else has
    /// one: then nothing is changed.
    #[inline]
    pub(crate) fn trade(&self, before: u64, after: u64) -> Option<()> {
        self.0.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed).ok().map(drop)
    }

    /// Leaf entries of the folio.
    #[inline]
    pub(crate) fn maps(&self) -> u32 {
        self.0.load(Ordering::Acquire) as u32
    }

    /// Whether there is one leaf entry, and no pin.
    #[inline]
    pub(crate) fn is_mapped_once(&self) -> bool {
        let seen = self.0.load(Ordering::Acquire);
        seen as u32 as u64 == MAP && seen < PIN
    }

    /// The caller's leaf entry, which is taken out, becomes a reference.
    #[inline]
    pub(crate) fn keep(&self) {
        let before = self.0.fetch_add(REFERENCE - MAP, Ordering::Relaxed);
        debug_assert!(before as u32 > 0, "a leaf entry is kept that was not counted");
    }

    /// Takes a pin. The caller has a count. `None` when there are as many as can be counted.
    pub(crate) fn pin(&self) -> Option<()> {
        if self.0.load(Ordering::Relaxed) >= MOST_PINS {
            return None;
        }
        self.0.fetch_add(PIN, Ordering::Acquire);
        Some(())
    }

    /// Whether anybody holds a pin.
    #[inline]
    pub(crate) fn is_pinned(&self) -> bool {
        self.0.load(Ordering::Acquire) >= PIN
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as Modelled;
    use loom::thread;

    /// A folio, and what its holders do to it: loom fails a look that is not ordered before, or after, a change.
    struct Folio {
        count: Count<Modelled>,
        contents: UnsafeCell<u64>,
    }

    // SAFETY: loom watches each use of the cell.
    unsafe impl Sync for Folio {}

    impl Folio {
        fn new(weight: u64) -> Arc<Self> {
            Arc::new(Self { count: Count(Modelled::new(weight)), contents: UnsafeCell::new(0) })
        }

        fn look(&self) -> u64 {
            // SAFETY: loom checks that nobody changes it meanwhile.
            self.contents.with(|contents| unsafe { *contents })
        }

        fn change(&self, value: u64) {
            // SAFETY: loom checks that nobody looks at it meanwhile.
            self.contents.with_mut(|contents| unsafe { *contents = value });
        }

        /// Gives back counts, and frees the folio if they were the last.
        fn leave(&self, weight: u64) {
            if self.count.put(weight) == Left::Nobody {
                assert_eq!(self.look(), 0, "freed twice");
                self.change(1);
            }
        }
    }

    #[test]
    fn two_that_put_and_one_that_gets_free_it_once() {
        loom::model(|| {
            let folio = Folio::new(MAP + REFERENCE);
            let others: [thread::JoinHandle<()>; 2] = [
                {
                    let folio = Arc::clone(&folio);
                    thread::spawn(move || {
                        assert_eq!(folio.look(), 0);
                        folio.leave(MAP);
                    })
                },
                {
                    let folio = Arc::clone(&folio);
                    thread::spawn(move || {
                        if folio.count.get() {
                            assert_eq!(folio.look(), 0, "revived");
                            folio.leave(REFERENCE);
                        }
                    })
                },
            ];
            assert_eq!(folio.look(), 0);
            folio.leave(REFERENCE);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(folio.look(), 1, "nobody freed it");
            assert!(!folio.count.get());
        });
    }

    #[test]
    fn the_last_of_two_does_not_leave_unnoticed() {
        loom::model(|| {
            let folio = Folio::new(2 * MAP);
            let body = |folio: &Folio| {
                assert_eq!(folio.look(), 0);
                if !folio.count.put_unless_last(MAP) {
                    folio.leave(MAP);
                }
            };
            let other = {
                let folio = Arc::clone(&folio);
                thread::spawn(move || body(&folio))
            };
            body(&folio);
            other.join().unwrap();
            assert_eq!(folio.look(), 1, "nobody freed it");
        });
    }

    #[test]
    fn a_trade_needs_all_that_there_is() {
        loom::model(|| {
            // The splitter's reference and two entries, and another's reference.
            let folio = Folio::new(2 * REFERENCE + 2 * MAP);
            let other = {
                let folio = Arc::clone(&folio);
                thread::spawn(move || {
                    assert_eq!(folio.look(), 0);
                    folio.leave(REFERENCE);
                })
            };
            let late = {
                let folio = Arc::clone(&folio);
                thread::spawn(move || {
                    assert!(folio.count.get(), "entries hold it");
                    folio.leave(REFERENCE);
                })
            };
            let traded = folio.count.trade(REFERENCE + 2 * MAP, REFERENCE + MAP).is_some();
            if traded {
                folio.change(0);
            }
            other.join().unwrap();
            late.join().unwrap();
            let left = if traded { REFERENCE + MAP } else { REFERENCE + 2 * MAP };
            assert_eq!(folio.count.0.load(Ordering::Relaxed), left);
        });
    }
}
