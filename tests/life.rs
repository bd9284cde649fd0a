//! Lives: what programs see over long and random sequences of everything that can happen to their pages.
//!
//! Each life ends with every page looked at, every space destroyed, and every frame, slot and tag room back. The laws
//! of the machine are checked by the emulator at every step; `Adversary::Full` does all that the architecture
//! permits.

mod support;

use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::Features;
use ebbtide::machine::emu::Adversary;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use support::world::{Op, What, World};
use support::{Dice, Setup};

/// Any operation; shrinks towards a load of page 0 by CPU 0.
fn any_op() -> impl Strategy<Value = Op> {
    let what = (0..What::ALL.len() + 1).prop_map(|index| What::ALL.get(index).copied().unwrap_or(What::Remake));
    (what, 0..4u8, 0..64u8, 0..24u8, any::<u16>()).prop_map(|(what, cpu, page, pages, choice)| Op {
        what,
        cpu,
        page,
        pages,
        choice,
    })
}

/// Lives short lives of `spaces` spaces, and shrinks one that goes wrong.
fn short_lives<G: Granule>(cases: u32, setup: Setup, spaces: usize) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // The same lives each time: a failure is found again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let done = runner.run(&(1..1000u64, vec(any_op(), 1..80)), |(seed, ops)| {
        let mut world = World::<G>::new(Setup { seed, ..setup }, spaces, false);
        // Tagged memory to begin with.
        world.step(Op { what: What::Map, cpu: 0, page: 20, pages: 23, choice: 0x23 });
        ops.into_iter().for_each(|op| world.step(op));
        world.finish();
        Ok(())
    });
    if let Err(error) = done {
        panic!("{error}");
    }
}

/// Lives one life of `steps` steps for each seed.
fn long_lives<G: Granule>(
    seeds: impl Iterator<Item = u64>,
    steps: usize,
    setup: Setup,
    spaces: usize,
    bystander: bool,
) {
    for seed in seeds {
        let mut world = World::<G>::new(Setup { seed, ..setup }, spaces, bystander);
        let mut dice = Dice::new(seed);
        for _ in 0..steps {
            world.step(Op::random(&mut dice));
        }
        world.finish();
    }
}

/// Small: the programs want more than memory has.
const TIGHT: Setup = Setup {
    frames: 112,
    slots: 600,
    tag_rooms: 600,
    cpus: 1,
    seed: 0,
    features: Features::all(),
    adversary: Adversary::Full,
    asid_bits: 16,
};

#[test]
fn short_lives_of_one_program() {
    short_lives::<K4>(96, Setup { adversary: Adversary::Quiet, ..TIGHT }, 1);
}

#[test]
fn short_lives_of_two_programs_against_the_adversary() {
    short_lives::<K4>(64, Setup { cpus: 2, ..TIGHT }, 2);
}

#[test]
fn long_lives_under_pressure() {
    long_lives::<K4>(1..9, 3000, Setup { cpus: 3, ..TIGHT }, 3, false);
}

#[test]
fn long_lives_beside_a_program_that_never_waits() {
    long_lives::<K4>(11..19, 2500, Setup { cpus: 3, ..TIGHT }, 2, true);
}

#[test]
fn long_lives_without_hardware_updates() {
    for features in [Features::MTE, Features::MTE | Features::HW_ACCESS, Features::empty()] {
        long_lives::<K4>(21..24, 2000, Setup { cpus: 2, features, ..TIGHT }, 2, true);
    }
}

#[test]
fn long_lives_with_few_slots_and_rooms() {
    for (slots, tag_rooms) in [(0, 0), (1, 1), (17, 2), (40, 40), (200, 0), (200, 9)] {
        long_lives::<K4>(31..34, 1500, Setup { slots, tag_rooms, ..TIGHT }, 2, false);
    }
}

#[test]
fn long_lives_at_the_other_granules() {
    long_lives::<K16>(41..43, 1000, Setup { cpus: 2, ..TIGHT }, 2, true);
    long_lives::<K64>(51..53, 400, Setup { cpus: 2, ..TIGHT }, 2, true);
}
