//! Lives: what programs see over long and random sequences of everything that can happen to their pages.
//!
//! Each life ends with every page looked at, every space destroyed, and every frame, slot and tag room back. The laws
//! of the machine are checked by the emulator at every step; `Adversary::Full` does all that the architecture
//! permits.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::Features;
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::{Advice, Replacement};
use ebbtide::space::{FaultError, Growth, MapError, MapRequest, Placement, Protection};
use ebbtide::swap::DeviceFlags;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use support::op::{Op, What};
use support::world::World;
use support::{Dice, RW, RWT, Rig, Setup, Stage, refusal};

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

/// Lives one life of `steps` steps for each seed. Returns the large folios that were made.
fn long_lives<G: Granule>(
    seeds: impl Iterator<Item = u64>,
    steps: usize,
    setup: Setup,
    spaces: usize,
    bystander: bool,
) -> u64 {
    let mut large = 0;
    for seed in seeds {
        let mut world = World::<G>::new(Setup { seed, ..setup }, spaces, bystander);
        let mut dice = Dice::new(seed);
        for _ in 0..steps {
            world.step(Op::random(&mut dice));
        }
        large += world.rig.count("large_folios");
        world.finish();
    }
    large
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
    va_bits: 48,
    orders: None,
    device: DeviceFlags::SYNCHRONOUS,
    replacement: Replacement::Adaptive,
};

/// Room for large folios beside all that comes and goes.
const ROOMY: Setup = Setup { frames: 400, ..TIGHT };

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

#[test]
fn long_lives_with_large_folios() {
    let orders = |orders: &[u32]| orders.iter().try_fold(FolioOrders::SINGLE, |all, &order| all.with(order));
    for (seed, orders) in (61..).zip([None, orders(&[1, 2, 3]), orders(&[2, 4]), orders(&[1, 3, 4, 5]), orders(&[])]) {
        let setup = Setup { cpus: 3, orders, ..ROOMY };
        let large = long_lives::<K4>(seed..seed + 2, 3000, setup, 2, seed % 2 == 0);
        assert_eq!(large > 0, orders != Some(FolioOrders::SINGLE));
    }
    for features in [Features::MTE, Features::MTE | Features::HW_ACCESS, Features::empty()] {
        long_lives::<K4>(71..73, 2000, Setup { cpus: 2, features, ..ROOMY }, 2, true);
    }
}

#[test]
fn large_folios_at_the_other_granules() {
    assert!(long_lives::<K16>(81..83, 700, Setup { cpus: 2, frames: 700, ..TIGHT }, 2, true) > 0);
    assert!(long_lives::<K64>(91..93, 400, Setup { cpus: 2, frames: 250, ..TIGHT }, 2, true) > 0);
}

// ---- What the lives leave out. ----

const STACK: u64 = 0x7000_0000;

/// A stack of one page that may grow to `pages`.
fn stack(rig: &Rig, space: &Space<Stage<K4>>, pages: u64) -> Result<VirtAddr, MapError> {
    let request = MapRequest {
        placement: Placement::Fixed(VirtAddr::new(STACK - 4096)),
        bytes: 4096,
        protection: RW,
        growth: Growth::Down { limit_bytes: pages * 4096 },
    };
    space.map(&rig.mm, request)
}

#[test]
fn a_stack_grows_to_its_limit_and_keeps_its_distance() {
    let rig = Rig::<K4>::new(Setup { frames: 600, ..Setup::default() });
    let space = rig.space();
    stack(&rig, &space, 1000).unwrap();
    let program = rig.program(&space);
    // 1 MiB, as on Linux.
    let gap = 256;
    // A region below: the stack stops a gap above it.
    let below = STACK - 600 * 4096;
    rig.map(&space, below - 4096, 1, RW);
    let lowest = below + gap * 4096;
    for page in [2, 3, 40, 41, 200] {
        program.store(STACK - page * 4096, page).unwrap();
    }
    program.store(lowest, 7).unwrap();
    assert_eq!(refusal(program.store(lowest - 4096, 1)), FaultError::NotMapped);
    assert_eq!(refusal(program.store(below, 1)), FaultError::NotMapped);
    assert_eq!(program.load(STACK - 40 * 4096), Ok(40));
    assert_eq!(program.load(STACK - 100 * 4096), Ok(0), "what lies between has grown as well");
    // The region goes, and the stack may grow to its limit, but no further.
    space.unmap(&rig.mm, VirtAddr::new(below - 4096), 4096).unwrap();
    program.store(STACK - 1000 * 4096, 1).unwrap();
    assert_eq!(refusal(program.store(STACK - 1001 * 4096, 1)), FaultError::NotMapped);
    rig.finish(space);
}

#[test]
fn calls_refuse_what_is_no_range() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    let at = VirtAddr::new;
    let map =
        |placement, bytes| space.map(&rig.mm, MapRequest { placement, bytes, protection: RW, growth: Growth::Fixed });
    let top = 1 << rig.emu().config().va_bits;
    assert_eq!(map(Placement::Fixed(at(STACK)), 0), Err(MapError::Empty));
    assert_eq!(map(Placement::Fixed(at(STACK + 8)), 4096), Err(MapError::Misaligned(at(STACK + 8))));
    assert_eq!(map(Placement::Fixed(at(top)), 4096), Err(MapError::OutOfRange(at(top))));
    assert_eq!(map(Placement::Fixed(at(top - 4096)), 4097), Err(MapError::OutOfRange(at(top - 4096))));
    assert_eq!(map(Placement::Fixed(at(0)), 4096), Err(MapError::OutOfRange(at(0))), "page 0 stays free");
    assert_eq!(map(Placement::Anywhere { hint: at(0) }, top), Err(MapError::NoRoom(top)));
    assert!(matches!(map(Placement::Anywhere { hint: at(0) }, u64::MAX), Err(MapError::NoRoom(_))));
    assert_eq!(map(Placement::Fixed(at(STACK)), 4097), Ok(at(STACK)), "a length is rounded up to pages");
    assert_eq!(map(Placement::FixedNoReplace(at(STACK + 4096)), 4096), Err(MapError::Occupied(at(STACK))));
    for result in [
        space.unmap(&rig.mm, at(STACK), u64::MAX),
        space.protect(&rig.mm, at(STACK), u64::MAX, RW),
        space.advise(&rig.mm, at(STACK), u64::MAX - 4095, Advice::PageOut),
    ] {
        assert_eq!(result, Err(MapError::OutOfRange(at(STACK))));
    }
    assert_eq!(space.unmap(&rig.mm, at(STACK), 0), Err(MapError::Empty));
    assert_eq!(space.protect(&rig.mm, at(STACK), 0, RW), Ok(()));
    assert_eq!(space.unmap(&rig.mm, at(STACK + 1), 4096), Err(MapError::Misaligned(at(STACK + 1))));
    let program = rig.program(&space);
    assert_eq!(refusal(program.load(0)), FaultError::NotMapped);
    assert_eq!(refusal(program.load(1 << 55)), FaultError::NotMapped, "beyond the address space");
    rig.finish(space);
}

/// As many regions as a list of one frame, and of several, holds; each is found, and each comes back.
#[test]
fn hundreds_of_regions() {
    let rig = Rig::<K4>::new(Setup { frames: 2000, ..Setup::default() });
    let space = rig.space();
    let program = rig.program(&space);
    let place = |number: u64| STACK + number * 3 * 4096;
    // From the middle outwards, so that leaves of the list are cut at either end.
    let order = |number: u64| if number.is_multiple_of(2) { 300 + number / 2 } else { 300 - number / 2 - 1 };
    for number in (0..600).map(order) {
        rig.map(&space, place(number), 1, RW);
        program.store(place(number), number).unwrap();
    }
    for number in 0..600 {
        assert_eq!(program.load(place(number)), Ok(number));
        assert_eq!(refusal(program.load(place(number) + 4096)), FaultError::NotMapped);
    }
    for number in (0..600).filter(|number| number % 3 != 0) {
        space.unmap(&rig.mm, VirtAddr::new(place(number)), 4096).unwrap();
    }
    for number in 0..600 {
        assert_eq!(program.load(place(number)).is_ok(), number % 3 == 0);
    }
    // All of the rest in one call, over holes.
    space.unmap(&rig.mm, VirtAddr::new(STACK), place(600) - STACK).unwrap();
    assert!((0..600).all(|number| program.load(place(number)).is_err()));
    rig.finish(space);
}

/// One region becomes many by munmap or mprotect alone: each such call makes sure of what its cuts need.
#[test]
fn a_region_falls_into_pieces() {
    for unmaps in [true, false] {
        let rig = Rig::<K4>::new(Setup { frames: 2000, ..Setup::default() });
        let space = rig.space();
        rig.map(&space, STACK, 1200, RW);
        let program = rig.program(&space);
        let place = |page: u64| STACK + page * 4096;
        for page in (0..1200).step_by(2) {
            let start = VirtAddr::new(place(page));
            if unmaps {
                space.unmap(&rig.mm, start, 4096).unwrap();
            } else {
                space.protect(&rig.mm, start, 4096, Protection::READ).unwrap();
            }
        }
        let refused = if unmaps { FaultError::NotMapped } else { FaultError::Protection };
        for page in (0..1200).step_by(2) {
            assert_eq!(refusal(program.store(place(page), 1)), refused);
            assert_eq!(program.store(place(page + 1), page), Ok(()));
        }
        rig.finish(space);
    }
}

/// What a program gives up of a group goes, and what it did not give up stays.
#[test]
fn a_part_of_a_group_is_given_up() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    let program = rig.program(&space);
    let place = |page: u64| STACK + page * 4096;
    rig.map(&space, STACK, 16, RW);
    (0..16).for_each(|page| program.store(place(page), page + 1).unwrap());
    assert_eq!(rig.count("large_folios"), 1);
    space.advise(&rig.mm, VirtAddr::new(place(4)), 8 * 4096, Advice::Free).unwrap();
    rig.map(&space, place(16), 300, RW);
    (16..216).for_each(|page| program.store(place(page), 1).unwrap());
    assert!(rig.count("clean_discards") > 0);
    for page in 0..16 {
        let seen = program.load(place(page));
        assert!(seen == Ok(page + 1) || seen == Ok(0) && (4..12).contains(&page), "page {page} holds {seen:?}");
    }
    rig.finish(space);
}

/// Pages of one folio, in two regions, whose entries are alike until one region's right to execute is used.
#[test]
fn a_group_ends_with_its_region() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    let program = rig.program(&space);
    rig.map(&space, STACK, 16, RW);
    (0..16).for_each(|page| program.store(STACK + page * 4096, page).unwrap());
    space.protect(&rig.mm, VirtAddr::new(STACK), 8 * 4096, RW | Protection::EXEC).unwrap();
    assert_eq!(program.fetch(STACK + 7 * 4096), Ok(7));
    assert_eq!(refusal(program.fetch(STACK + 8 * 4096)), FaultError::Protection);
    rig.finish(space);
}

/// A space does not end under a CPU that runs it.
#[test]
fn a_space_in_use_does_not_end() {
    let rig = Rig::<K4>::new(Setup { cpus: 2, ..Setup::default() });
    let space = rig.space();
    rig.map(&space, STACK, 1, RW);
    rig.program(&space).store(STACK, 5).unwrap();
    let Err(space) = space.destroy(&rig.mm) else { panic!("CPU 1 runs it") };
    assert_eq!(rig.program_on(1, &space).load(STACK), Ok(5));
    rig.finish(space);
}

/// Tables come back with what they mapped, not only with the space.
#[test]
fn tables_come_back_with_munmap() {
    let rig = Rig::<K4>::new(Setup { cpus: 2, adversary: Adversary::Full, ..Setup::default() });
    let space = rig.space();
    let mut least = u64::MAX;
    for round in 0..60 {
        let place = (round + 1) << 31;
        rig.map(&space, place, 2, RWT);
        for cpu in 0..2 {
            rig.program_on(cpu, &space).store(place + 4096, round).unwrap();
        }
        if round % 2 == 0 {
            space.advise(&rig.mm, VirtAddr::new(place), 8192, Advice::PageOut).unwrap();
        }
        space.unmap(&rig.mm, VirtAddr::new(place), 8192).unwrap();
        least = least.min(rig.mm.totals().frames_free);
    }
    assert!(rig.fresh.frames_free - least < 12, "60 leaf tables would not fit: {least} of {:?}", rig.fresh);
    rig.finish(space);
}

/// A page in steady use stays, whatever else comes and goes: its access flag tells, also while its translation stays
/// in a TLB.
#[test]
fn a_page_in_use_stays_in() {
    for features in [Features::all(), Features::empty()] {
        let rig = Rig::<K4>::new(Setup { cpus: 2, slots: 512, features, ..Setup::default() });
        let space = rig.space();
        rig.map(&space, STACK, 400, RW);
        let mut returns = 0;
        for page in 1..400 {
            rig.program(&space).store(STACK + page * 4096, page).unwrap();
            // CPU 1 does nothing else.
            let before = rig.count("swap_in");
            rig.program_on(1, &space).store(STACK, page).unwrap();
            // When memory is full for the first time, all of it is in use: then any page may go.
            if page > 150 {
                returns += rig.count("swap_in") - before;
            }
        }
        assert!(rig.count("swap_out") > 200);
        assert_eq!(returns, 0, "it left and came back, {features:?}");
        rig.finish(space);
    }
}

/// What is stored while a page may not be executed is synced before it may.
#[test]
fn code_is_written_again_and_again() {
    for features in [Features::all(), Features::empty()] {
        let rig = Rig::<K4>::new(Setup { features, adversary: Adversary::Full, ..Setup::default() });
        let space = rig.space();
        let start = VirtAddr::new(STACK);
        rig.map(&space, STACK, 1, RW);
        let program = rig.program(&space);
        for round in 0..8 {
            program.store(STACK, round).unwrap();
            if round % 4 == 3 {
                space.advise(&rig.mm, start, 4096, Advice::PageOut).unwrap();
            }
            assert_eq!(refusal(program.fetch(STACK)), FaultError::Protection);
            space.protect(&rig.mm, start, 4096, Protection::READ | Protection::EXEC).unwrap();
            assert_eq!(program.fetch(STACK), Ok(round));
            assert_eq!(refusal(program.store(STACK, 99)), FaultError::Protection);
            space.protect(&rig.mm, start, 4096, RW).unwrap();
        }
        rig.finish(space);
    }
}

/// What a log says of an address: its region, its entry, and the frame or slot behind it.
#[test]
fn an_address_is_explained() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    let says = |address: u64| format!("{}", space.explain(&rig.mm, VirtAddr::new(address)));
    assert_eq!(says(0x40_0000), "0x400000: no region; no leaf table");
    rig.map(&space, 0x40_0000, 2, RWT);
    rig.program(&space).store(0x40_0000, 7).expect("mapped");
    let present = says(0x40_0008);
    assert!(present.starts_with("0x400008: region 0x400000+0x2000 rw-t\n  entry "), "{present}");
    assert!(present.contains("Folio of order 0, 1 maps, 0 references, 0 pins"), "{present}");
    assert!(present.ends_with("listed, tags valid"), "{present}");
    assert!(says(0x40_1000).ends_with("Empty"), "{}", says(0x40_1000));
    space.advise(&rig.mm, VirtAddr::new(0x40_0000), 0x1000, Advice::PageOut).expect("mapped");
    let out = says(0x40_0000);
    assert!(out.contains("\n  slot 0/") && out.contains("Out"), "{out}");
    rig.finish(space);
}

/// A space is told run by run: groups, single pages, slots.
#[test]
fn a_space_is_told_in_runs() {
    let rig = Rig::<K4>::new(Setup { frames: 400, ..Setup::default() });
    let space = rig.space();
    let dump = || format!("{}", space.dump(&rig.mm, VirtAddr::new(0), VirtAddr::new(1 << 47)));
    assert_eq!(dump(), "");
    rig.map(&space, 0x40_0000, 40, RW);
    let program = rig.program(&space);
    [0x40_0000, 0x41_0000, 0x42_0000, 0x42_1000].iter().for_each(|&page| program.store(page, 1).expect("mapped"));
    let at = |address| VirtAddr::new(address);
    space.protect(&rig.mm, at(0x41_3000), 0x1000, Protection::READ).expect("mapped");
    space.advise(&rig.mm, at(0x42_0000), 0x2000, Advice::PageOut).expect("mapped");
    let text = dump();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("0x400000+0x10000 leaf:") && lines[0].ends_with("1 groups, 16 accessed, 16 dirty"));
    assert!(lines[1].starts_with("0x410000+0x3000 leaf:") && lines[1].ends_with("], 3 accessed, 3 dirty"), "{text}");
    assert!(lines[2].starts_with("0x413000+0x1000 leaf:") && lines[2].contains("[r---"), "{text}");
    assert!(lines[3].starts_with("0x414000+0xc000 leaf:"), "{text}");
    assert!(lines[4].starts_with("0x420000+0x2000 "), "{text}");
    rig.finish(space);
}

/// The right to load is all that a read-only region can lose, and it is gone from the TLBs when mprotect returns.
#[test]
fn a_read_only_region_loses_the_right_to_load() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    rig.map(&space, 0x40_0000, 1, Protection::READ);
    let program = rig.program(&space);
    assert_eq!(program.load(0x40_0000), Ok(0));
    space.protect(&rig.mm, VirtAddr::new(0x40_0000), 0x1000, Protection::empty()).expect("mapped");
    assert_eq!(refusal(program.load(0x40_0000)), FaultError::Protection);
    rig.finish(space);
}
