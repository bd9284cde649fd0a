//! Slots that are given back beside the end of their swap area: four ways to get it wrong, each found, and the right
//! way beside them.
//!
//! An area's records are memory that its owner takes back when no slot is in use. The words that decide are modelled
//! with loom, which tries every order that the language allows: a record that is used when its memory has gone, or at
//! the same time, is found. The library's own words have models beside them (`sync::place::tests`,
//! `swap::slot::tests`); here it is the order of the steps around them, and what comes of another.

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// What is wrong with giving back a slot.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Mistake {
    Nothing,
    /// Who gives a use back looks at the area after that with nothing in hand that keeps it.
    NoLiveReference,
    /// The slot is counted off, and cleaned up after.
    CountedFirst,
    /// The slot is anybody's, and cleaned up after.
    FreeFirst,
    /// Counted off last, by an order that says nothing of what was done before.
    CountedUnordered,
}

const FREE: u32 = 0;
/// A user's swap entry, in a slot's word.
const ENTRY: u32 = 1;
const TAKEN: u32 = 1 << 8;
/// In the word of those who are inside: more may come.
const OPEN: u32 = 1 << 16;

struct Slot {
    state: AtomicU32,
    tags: UnsafeCell<u32>,
}

/// Two slots of one folio, and what says whether they are still there.
struct Area {
    mistake: Mistake,
    slots: [Slot; 2],
    /// The folio's lock: whether it has the pages of both slots in memory.
    is_cached: Mutex<bool>,
    /// Slots that are not free.
    used: AtomicU32,
    /// [`OPEN`], and those who keep the area by a live reference.
    live: AtomicU32,
    /// The memory of all records.
    memory: UnsafeCell<bool>,
}

// SAFETY: loom watches each use of the cells.
unsafe impl Sync for Area {}
// SAFETY: as above.
unsafe impl Send for Area {}

impl Area {
    /// An area of whose slots `used` have an entry each.
    fn new(mistake: Mistake, used: u32, is_cached: bool) -> Arc<Self> {
        let slot = |number: u32| Slot {
            state: AtomicU32::new(if number < used { ENTRY } else { FREE }),
            tags: UnsafeCell::new(7),
        };
        Arc::new(Self {
            mistake,
            slots: [slot(0), slot(1)],
            is_cached: Mutex::new(is_cached),
            used: AtomicU32::new(used),
            live: AtomicU32::new(OPEN),
            memory: UnsafeCell::new(true),
        })
    }

    /// Each use of a record is one of the area's memory.
    fn slot(&self, number: usize) -> &Slot {
        // SAFETY: loom checks that nobody changes it meanwhile.
        self.memory.with(|there| assert!(unsafe { *there }, "the area has gone"));
        &self.slots[number]
    }

    fn clean(&self, number: usize) {
        // SAFETY: loom checks that nobody else uses it meanwhile.
        self.slot(number).tags.with_mut(|tags| unsafe { *tags = 0 });
    }

    fn count_off(&self) {
        let order = if self.mistake == Mistake::CountedUnordered { Relaxed } else { Release };
        self.used.fetch_sub(1, order);
    }

    /// Frees a slot that no entry names: clean, then anybody's, then counted off, and no look at the area after that.
    fn free(&self, number: usize) {
        match self.mistake {
            Mistake::CountedFirst => {
                self.count_off();
                self.clean(number);
                self.slot(number).state.store(FREE, Release);
            }
            Mistake::FreeFirst => {
                self.slot(number).state.store(FREE, Release);
                self.clean(number);
                self.count_off();
            }
            _ => {
                self.clean(number);
                self.slot(number).state.store(FREE, Release);
                self.count_off();
            }
        }
    }

    /// Gives back the use of the one entry that names a slot, whose page the device alone has.
    fn put(&self, number: usize) {
        self.free(number);
    }

    /// Gives back the use of an entry that names a slot of the folio in memory; with the last one the slots go.
    fn put_cached(&self, number: usize) {
        let has_live = self.mistake != Mistake::NoLiveReference;
        if has_live {
            assert!(self.live.fetch_add(1, Acquire) & OPEN != 0, "it stays open while a slot is in use");
        }
        self.slot(number).state.fetch_sub(ENTRY, AcqRel);
        // Another may have been the last meanwhile: what is left to keep the area?
        let mut is_cached = self.is_cached.lock().unwrap();
        let is_last = [0, 1].iter().all(|&number| self.slot(number).state.load(Acquire) == FREE);
        if is_last && *is_cached {
            *is_cached = false;
            [0, 1].iter().for_each(|&number| self.free(number));
        }
        drop(is_cached);
        if has_live {
            self.live.fetch_sub(1, Release);
        }
    }

    /// Turns the area off, if no slot of it is in use. True if it has gone.
    fn swap_off(&self) -> bool {
        if self.used.load(Acquire) > 0 {
            return false;
        }
        self.live.fetch_and(!OPEN, Relaxed);
        while self.live.load(Acquire) > 0 {
            thread::yield_now();
        }
        // SAFETY: loom checks that nobody uses it meanwhile.
        self.memory.with_mut(|there| unsafe { *there = false });
        true
    }

    /// Takes a slot, if it is free, and keeps tags of one's own with it.
    fn take(&self, number: usize) {
        let slot = self.slot(number);
        if slot.state.compare_exchange(FREE, TAKEN, Acquire, Relaxed).is_err() {
            return;
        }
        // SAFETY: loom checks that nobody else uses it meanwhile.
        slot.tags.with_mut(|tags| unsafe { *tags = 9 });
        thread::yield_now();
        // SAFETY: as above.
        slot.tags.with(|tags| assert_eq!(unsafe { *tags }, 9, "somebody else cleaned the tags up"));
    }
}

/// Runs `other` beside `body`, and looks that the area can go in the end.
fn beside(area: Arc<Area>, other: fn(&Area), body: fn(&Area) -> bool) {
    let thread = {
        let area = Arc::clone(&area);
        thread::spawn(move || other(&area))
    };
    let has_gone = body(&area);
    thread.join().unwrap();
    assert!(has_gone || area.swap_off(), "a slot was never counted off");
}

/// Two give back the last uses of a folio's slots, and one of them turns the area off.
fn the_last_two_uses(mistake: Mistake) {
    beside(
        Area::new(mistake, 2, true),
        |area| area.put_cached(0),
        |area| {
            area.put_cached(1);
            area.swap_off()
        },
    );
}

/// One gives back the last use in the area, and one turns it off.
fn the_last_use(mistake: Mistake) {
    beside(Area::new(mistake, 1, false), |area| area.put(0), Area::swap_off);
}

/// One gives back a slot that another wants.
fn the_next_user(mistake: Mistake) {
    let area = Area::new(mistake, 1, false);
    let other = {
        let area = Arc::clone(&area);
        thread::spawn(move || area.put(0))
    };
    area.take(0);
    other.join().unwrap();
}

type Scene = fn(Mistake);
const SCENES: [Scene; 3] = [the_last_two_uses, the_last_use, the_next_user];

/// What loom, or an assertion, says of a scene, if anything.
fn found(mistake: Mistake, scene: Scene) -> Option<String> {
    let model = move || loom::model(move || scene(mistake));
    let said = std::thread::spawn(model).join().err()?;
    let words = said.downcast_ref::<String>().cloned();
    Some(words.or_else(|| said.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
}

/// The scene finds the mistake, by one of the words given.
fn is_found(mistake: Mistake, scene: Scene, words: &[&str]) {
    let said = found(mistake, scene).unwrap_or_else(|| panic!("{mistake:?} was not found"));
    assert!(words.iter().any(|words| said.contains(words)), "{mistake:?} is found by {words:?}, not by '{said}'");
}

#[test]
fn the_right_order_passes_every_scene() {
    for scene in SCENES {
        assert_eq!(found(Mistake::Nothing, scene), None);
    }
}

/// Used after it was taken back, or at the same time.
const GONE: [&str; 2] = ["the area has gone", "Causality violation"];

/// Seed: the area vanishes under who has just given the last use back.
#[test]
fn a_look_without_a_live_reference_is_found() {
    is_found(Mistake::NoLiveReference, the_last_two_uses, &GONE);
    // Where nobody looks at the area after its last slot was counted off, nothing is missing.
    assert_eq!(found(Mistake::NoLiveReference, the_last_use), None);
}

#[test]
fn a_slot_that_is_counted_off_before_its_clean_up_is_found() {
    is_found(Mistake::CountedFirst, the_last_use, &GONE);
}

#[test]
fn a_slot_that_is_anybodys_before_its_clean_up_is_found() {
    is_found(Mistake::FreeFirst, the_next_user, &["somebody else cleaned the tags up", "Causality violation"]);
    assert_eq!(found(Mistake::FreeFirst, the_last_use), None);
}

#[test]
fn a_slot_that_is_counted_off_without_an_order_is_found() {
    is_found(Mistake::CountedUnordered, the_last_use, &GONE);
}
