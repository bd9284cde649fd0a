//! The bit that says a page is one space's alone: four ways to get it wrong, each found, and the right way beside them.
//!
//! [`Kin`] is a small kernel against the machine's seam, with two spaces, fork, a slot and pins. It is right but for at
//! most one [`Mistake`]; each scene runs on the right one as well, and there nothing is found. What two CPUs do to each
//! other is tried before every single step of one of them (`support::stage::meanwhile`), not left to luck.
//!
//! The library's answers to the same scenes: `tests/fork.rs`, `tests/pins.rs`, `tests/matrix.rs`.

mod support;

use std::sync::Mutex;

use ebbtide::machine::emu::{Adversary, Law};

use support::kin::{CHILD, Kin, Mistake, PARENT, Seen};
use support::stage::meanwhile;

/// A scene on a kernel with a mistake, in every order that it has, and what was seen of it: what went wrong, and the
/// first law that was broken, of each order in which anything was.
type Scene = fn(Mistake, Adversary) -> Vec<(Seen, Option<Law>)>;

fn found(kin: &Kin, seen: Seen) -> Option<(Seen, Option<Law>)> {
    let broken = kin.broken().first().map(|first| first.law);
    (seen.is_err() || broken.is_some()).then_some((seen, broken))
}

/// A scene of one CPU at a time, for some of the adversary's choices.
fn in_turn(mistake: Mistake, adversary: Adversary, scene: fn(&Kin) -> Seen) -> Vec<(Seen, Option<Law>)> {
    let kin = |seed| Kin::new(mistake, adversary, seed);
    (1..9).map(kin).filter_map(|kin| found(&kin, scene(&kin))).collect()
}

/// The page is looked at while its device writes it, and stored to.
fn written_back(mistake: Mistake, adversary: Adversary) -> Vec<(Seen, Option<Law>)> {
    in_turn(mistake, adversary, |kin| {
        kin.store(PARENT, 5);
        kin.begin_page_out();
        kin.reads(PARENT, 5)?;
        kin.store(PARENT, 6);
        kin.end_write()?;
        kin.reads(PARENT, 6)
    })
}

/// A page in memory is shared, and both look at it.
fn forked_in_memory(mistake: Mistake, adversary: Adversary) -> Vec<(Seen, Option<Law>)> {
    in_turn(mistake, adversary, |kin| {
        kin.store(PARENT, 5);
        kin.fork();
        kin.sharing()?;
        kin.store(PARENT, 6);
        kin.reads(CHILD, 5)
    })
}

/// A page that is out is shared, and the parent stores to it before the child looks.
fn forked_out(mistake: Mistake, adversary: Adversary) -> Vec<(Seen, Option<Law>)> {
    in_turn(mistake, adversary, |kin| {
        kin.store(PARENT, 5);
        kin.page_out();
        kin.fork();
        kin.store(PARENT, 6);
        kin.reads(CHILD, 5)?;
        kin.reads(PARENT, 6)?;
        kin.sharing()
    })
}

/// The page is pinned on one CPU while another forks: either may be the one that is interrupted.
fn pinned_beside_fork(mistake: Mistake, adversary: Adversary) -> Vec<(Seen, Option<Law>)> {
    let mut seen = Vec::new();
    for fork_is_interrupted in [true, false] {
        meanwhile(|raise| {
            let kin = Kin::new(mistake, adversary, 1);
            kin.store(PARENT, 5);
            let pinned = Mutex::new(None);
            let fork = || kin.stage.emu.on_cpu(0, || kin.fork());
            let pin = || *pinned.lock().unwrap() = Some(kin.stage.emu.on_cpu(1, || kin.pin()));
            if fork_is_interrupted {
                raise(&mut || fork(), &pin);
            } else {
                raise(&mut || pin(), &fork);
            }
            let pin = pinned.into_inner().unwrap().expect("it is pinned by now");
            let scene = || {
                kin.sharing()?;
                kin.store(PARENT, 6);
                kin.reads(CHILD, 5)?;
                kin.pin_is_the_parents(&pin, 6)?;
                kin.store(CHILD, 8);
                kin.pin_is_the_parents(&pin, 6)
            };
            seen.extend(found(&kin, scene()));
            kin.unpin(pin);
        });
    }
    seen
}

/// A store brings the page in on one CPU of the parent's while another forks.
fn brought_in_beside_fork(mistake: Mistake, adversary: Adversary) -> Vec<(Seen, Option<Law>)> {
    let mut seen = Vec::new();
    meanwhile(|raise| {
        let kin = Kin::new(mistake, adversary, 1);
        kin.store(PARENT, 5);
        kin.page_out();
        raise(&mut || kin.store(PARENT, 6), &|| kin.stage.emu.on_cpu(1, || kin.fork()));
        let scene = || {
            // Of a store beside the fork the child has either.
            let childs = kin.load(CHILD);
            if !matches!(childs, 5 | 6) {
                return kin.reads(CHILD, 5);
            }
            kin.sharing()?;
            kin.store(PARENT, 7);
            kin.reads(CHILD, childs)?;
            kin.reads(PARENT, 7)
        };
        seen.extend(found(&kin, scene()));
    });
    seen
}

const SCENES: [Scene; 5] = [written_back, forked_in_memory, forked_out, pinned_beside_fork, brought_in_beside_fork];

#[test]
fn the_right_kernel_passes_every_scene() {
    for adversary in [Adversary::Quiet, Adversary::Full] {
        for (number, scene) in SCENES.iter().enumerate() {
            let seen = scene(Mistake::Nothing, adversary);
            assert!(seen.is_empty(), "scene {number}, {adversary:?}: {:?}", seen[0]);
        }
    }
}

/// The scene finds the mistake, in the words given, and no law but the one given is broken first.
fn is_found(mistake: Mistake, scene: Scene, words: &str, law: Option<Law>) {
    for adversary in [Adversary::Quiet, Adversary::Full] {
        let seen = scene(mistake, adversary);
        assert!(!seen.is_empty(), "{mistake:?} was not found, {adversary:?}");
        for found in seen {
            let (said, broken) = &found;
            let is_it = said.as_ref().is_err_and(|said| said.contains(words));
            assert!(is_it && *broken == law, "{mistake:?} is to be found by '{words}' and {law:?}, not by {found:?}");
        }
    }
}

/// Seed: the test for stable pages the wrong way round.
#[test]
fn a_page_that_is_writable_while_it_is_written_is_found() {
    let law = Some(Law::ReadWhileWritable);
    is_found(Mistake::StableTestInverted, written_back, "changed while it was written", law);
}

#[test]
fn a_bit_that_fork_leaves_to_the_parent_is_found() {
    is_found(Mistake::ClearedInTheChild, forked_in_memory, "two spaces map one frame, and one may store", None);
    is_found(Mistake::ClearedInTheChild, forked_out, "the child reads 6, not 5", None);
}

#[test]
fn a_pin_between_the_look_for_pins_and_the_bit_is_found() {
    is_found(Mistake::PinsFirst, pinned_beside_fork, "the pin sees 5, not 6 as its owner stored", None);
}

#[test]
fn a_bit_that_is_read_before_the_lock_is_found() {
    let words = "two spaces map one frame, and one may store";
    is_found(Mistake::ReadBeforeTheLock, brought_in_beside_fork, words, None);
}

/// No scene is there that one mistake alone would notice by chance: each finds its own, and the others pass it or are
/// found in it for a reason of their own.
#[test]
fn every_mistake_passes_some_scene() {
    let mistakes =
        [Mistake::StableTestInverted, Mistake::ClearedInTheChild, Mistake::PinsFirst, Mistake::ReadBeforeTheLock];
    for mistake in mistakes {
        let passed = SCENES.iter().filter(|scene| scene(mistake, Adversary::Quiet).is_empty()).count();
        assert!((1..SCENES.len()).contains(&passed), "{mistake:?} passes {passed} scenes");
    }
}
