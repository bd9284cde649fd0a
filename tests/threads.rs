//! CPUs that meet: real threads, and every single change of turns.
//!
//! The first test lets CPUs run freely and sees what luck finds. The others do not rely on luck: a call is
//! interrupted before each of its steps in turn, and another CPU does something of its own there
//! (`support::stage::meanwhile`).

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::emu::{Access, Adversary};
use ebbtide::reclaim::{Advice, Watermarks};
use ebbtide::space::Protection;

use support::stage::meanwhile;
use support::{Dice, RW, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
/// A region with tables of its own.
const FAR: u64 = 1 << 40;

fn range(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * PAGE)
}

/// One thread's life on pages that are its own, in a space that is everybody's.
fn live(rig: &Rig, space: &Space<Stage<K4>>, cpu: usize, seed: u64, pages: std::ops::Range<u64>) {
    rig.emu().set_cpu(cpu);
    let program = rig.program_on(cpu, space);
    let mut dice = Dice::new(seed);
    let mut model = vec![(0u64, 0u8); pages.end as usize];
    for turn in 0..1500 {
        let page = pages.start + dice.below(pages.end - pages.start);
        let place = BASE + page * PAGE + dice.below(4) * 1024;
        let first = BASE + page * PAGE;
        let (word, tag) = model[page as usize];
        match dice.below(16) {
            0..5 => assert_eq!(program.load(tagged(first, tag)), Ok(word)),
            5..9 => {
                model[page as usize].0 = turn;
                program.store(tagged(first, tag), turn).unwrap();
            }
            9..11 => {
                model[page as usize].1 = turn as u8 & 0xf;
                program.stg(first, turn as u8 & 0xf).unwrap();
            }
            11 => assert_eq!(program.ldg(first), Ok(tag)),
            12 => {
                let _ = program.load(tagged(place, if place == first { tag } else { 0 })).unwrap();
            }
            13 => space.advise(&rig.mm, range(page), PAGE, Advice::PageOut).unwrap(),
            14 => {
                model[page as usize] = (0, 0);
                space.advise(&rig.mm, range(page), PAGE, Advice::DontNeed).unwrap();
            }
            _ => {
                space.protect(&rig.mm, range(page), PAGE, Protection::READ).unwrap();
                assert_eq!(program.load(tagged(first, tag)), Ok(word));
                space.protect(&rig.mm, range(page), PAGE, RWT).unwrap();
            }
        }
    }
    for page in pages {
        let (word, tag) = model[page as usize];
        assert_eq!(program.load(tagged(BASE + page * PAGE, tag)), Ok(word), "page {page}");
    }
}

#[test]
fn programs_on_four_cpus_and_a_reclaimer() {
    for seed in 1..5 {
        let setup = Setup { frames: 112, slots: 300, tag_rooms: 300, cpus: 4, seed, ..Setup::default() };
        let rig = Rig::<K4>::new(Setup { adversary: Adversary::Full, ..setup });
        let space = rig.space();
        rig.map(&space, BASE, 120, RWT);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                rig.emu().set_cpu(3);
                while !over.load(Ordering::Relaxed) {
                    rig.mm.balance();
                    thread::yield_now();
                }
            });
            let (rig, space) = (&rig, &space);
            let programs: Vec<_> = (0..3)
                .map(|cpu| {
                    scope.spawn(move || {
                        live(rig, space, cpu, seed * 10 + cpu as u64, cpu as u64 * 40..cpu as u64 * 40 + 40)
                    })
                })
                .collect();
            let results: Vec<_> = programs.into_iter().map(|program| program.join()).collect();
            over.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
        rig.finish(space);
    }
}

/// A page when the call comes: its word and its tag at `BASE`, and where it is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Start {
    Empty,
    Clean,
    Dirty,
    Out,
}

impl Start {
    fn prepare(self, rig: &Rig, space: &Space<Stage<K4>>) {
        let program = rig.program(space);
        match self {
            Self::Empty => {}
            Self::Clean => assert_eq!(program.load(BASE), Ok(0)),
            Self::Dirty | Self::Out => {
                program.stg(BASE, 3).unwrap();
                program.store(tagged(BASE, 3), 42).unwrap();
                // A second page shares the batch, so that a flush covers more than one.
                program.store(BASE + PAGE, 1).unwrap();
            }
        }
        if self == Self::Out {
            space.advise(&rig.mm, range(0), PAGE, Advice::PageOut).unwrap();
        }
    }

    fn contents(self, region: Protection) -> (u64, u8) {
        match self {
            Self::Empty | Self::Clean => (0, 0),
            Self::Dirty | Self::Out => (42, if region.contains(Protection::TAGGED) { 3 } else { 0 }),
        }
    }
}

/// What another CPU does to the page meanwhile.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Intruder {
    Load,
    Store,
    PageOut,
    DontNeed,
    Balance,
    Forbid,
    Unmap,
    /// The region, and with it the tables.
    UnmapAll,
}

impl Intruder {
    /// Those that every call bears.
    const USUAL: [Self; 5] = [Self::Load, Self::Store, Self::PageOut, Self::DontNeed, Self::Balance];

    /// Says whether it went well. Where the call unmapped the page, it does not.
    fn act(self, rig: &Rig, space: &Space<Stage<K4>>) -> bool {
        rig.emu().set_cpu(1);
        match self {
            Self::Load => rig.program_on(1, space).load(BASE + 32).is_ok(),
            Self::Store => rig.program_on(1, space).store(BASE + 32, 7).is_ok(),
            Self::PageOut => space.advise(&rig.mm, range(0), PAGE, Advice::PageOut).is_ok(),
            Self::DontNeed => space.advise(&rig.mm, range(0), PAGE, Advice::DontNeed).is_ok(),
            Self::Balance => {
                rig.mm.balance();
                true
            }
            // When the call returns, the right is gone on every CPU, whoever is about to unmap the page besides.
            Self::Forbid => {
                space.protect(&rig.mm, range(0), PAGE, Protection::READ).unwrap();
                assert!(rig.emu().access(2, BASE + 32, Access::Store(9)).is_err(), "a store after mprotect");
                true
            }
            Self::Unmap | Self::UnmapAll => {
                let pages = if self == Self::Unmap { 1 } else { 4 };
                space.unmap(&rig.mm, range(0), pages * PAGE).unwrap();
                assert!(rig.emu().access(2, BASE + 32, Access::Load).is_err(), "a load after munmap");
                if self == Self::UnmapAll {
                    // What was a table is a page now, of nothing that a walk could use.
                    for page in 0..8 {
                        let place = FAR + page * PAGE;
                        let stored = [0, 8].map(|word| rig.program_on(1, space).store(place + word, !0));
                        assert_eq!(stored, [Ok(()), Ok(())]);
                    }
                }
                true
            }
        }
    }
}

/// Interrupts `call` by each of the usual intruders.
fn interrupt(region: Protection, starts: &[Start], discards: bool, call: impl Fn(&Rig, &Space<Stage<K4>>)) {
    interrupt_by(&Intruder::USUAL, region, starts, discards, call);
}

/// Interrupts `call` on a page of a region of protection `region` at each of its steps, by each of the intruders. The
/// page's word and tag are the old ones afterwards, or zero if the call or the intruder says so.
fn interrupt_by(
    intruders: &[Intruder],
    region: Protection,
    starts: &[Start],
    discards: bool,
    call: impl Fn(&Rig, &Space<Stage<K4>>),
) {
    for (&intruder, &start) in intruders.iter().flat_map(|intruder| starts.iter().map(move |start| (intruder, start))) {
        meanwhile(|raise| {
            // So little memory that `balance` has work to do: the CPUs have taken what they need in advance.
            let rig = Rig::new(Setup { frames: 80, cpus: 3, ..Setup::default() });
            let (space, other) = (rig.space(), rig.space());
            for cpu in 1..3 {
                rig.map(&other, BASE + cpu * PAGE, 1, RW);
                rig.emu()
                    .on_cpu(cpu as usize, || rig.program_on(cpu as usize, &other).load(BASE + cpu * PAGE).unwrap());
            }
            (0..3).for_each(|cpu| rig.activate(cpu, &space));
            rig.map(&space, BASE, 4, region);
            start.prepare(&rig, &space);
            if intruder == Intruder::UnmapAll {
                rig.map(&space, FAR, 9, RW);
                assert_eq!(rig.program(&space).load(FAR + 8 * PAGE), Ok(0));
            }
            // CPU 2 keeps a translation, if there is one.
            if start != Start::Out && start != Start::Empty {
                let _ =
                    rig.emu().access(2, BASE + 48, if start == Start::Dirty { Access::Store(1) } else { Access::Load });
            }
            let stored = AtomicBool::new(false);
            raise(&mut || call(&rig, &space), &|| {
                stored.store(intruder.act(&rig, &space), Ordering::Relaxed);
            });

            let program = rig.program(&space);
            let told = format!("{start:?}, {intruder:?}");
            if let Ok(tag) = program.ldg(BASE) {
                let word = program.load(tagged(BASE, tag)).unwrap();
                let gone = discards || intruder == Intruder::DontNeed;
                assert_eq!((word, tag), if gone { (0, 0) } else { start.contents(region) }, "{told}");
                if intruder == Intruder::Store && stored.load(Ordering::Relaxed) && !gone {
                    assert_eq!(program.load(BASE + 32), Ok(7), "{told}");
                }
                let stale = rig.emu().access(2, tagged(BASE, tag), Access::Load);
                assert!(stale.is_err() || stale == Ok(word), "{told}: CPU 2 sees {stale:?}");
            }
            (0..3).for_each(|cpu| rig.idle(cpu));
            assert!(other.destroy(&rig.mm).is_ok(), "no CPU runs it");
            rig.finish(space);
        });
    }
}

const HERE: [Start; 2] = [Start::Clean, Start::Dirty];
const ALL: [Start; 4] = [Start::Empty, Start::Clean, Start::Dirty, Start::Out];

#[test]
fn a_fault_is_interrupted() {
    interrupt(RWT, &[Start::Empty, Start::Out], false, |rig, space| _ = rig.program(space).load(BASE + 64).unwrap());
    interrupt(RWT, &[Start::Empty, Start::Out], false, |rig, space| rig.program(space).store(BASE + 64, 1).unwrap());
}

#[test]
fn pageout_is_interrupted() {
    interrupt(RWT, &HERE, false, |rig, space| {
        space.advise(&rig.mm, range(0), 2 * PAGE, Advice::PageOut).unwrap();
    });
}

#[test]
fn dontneed_is_interrupted() {
    interrupt(RWT, &ALL, true, |rig, space| space.advise(&rig.mm, range(0), 2 * PAGE, Advice::DontNeed).unwrap());
}

#[test]
fn munmap_is_interrupted() {
    interrupt(RWT, &ALL, true, |rig, space| space.unmap(&rig.mm, range(0), 2 * PAGE).unwrap());
    // With it goes the last region of the tables.
    interrupt(RWT, &ALL, true, |rig, space| space.unmap(&rig.mm, range(0), 4 * PAGE).unwrap());
}

#[test]
fn a_new_mapping_over_an_old_one_is_interrupted() {
    interrupt(RWT, &ALL, true, |rig, space| rig.map(space, BASE, 2, RWT));
}

#[test]
fn mprotect_is_interrupted() {
    interrupt(RWT, &ALL, false, |rig, space| {
        space.protect(&rig.mm, range(0), 2 * PAGE, Protection::READ).unwrap();
    });
    interrupt(RWT, &HERE, false, |rig, space| {
        space.protect(&rig.mm, range(0), 2 * PAGE, Protection::empty()).unwrap();
        space.protect(&rig.mm, range(0), 2 * PAGE, RWT).unwrap();
    });
}

#[test]
fn becoming_tagged_is_interrupted() {
    interrupt(RW, &ALL, false, |rig, space| space.protect(&rig.mm, range(0), 2 * PAGE, RWT).unwrap());
}

#[test]
fn reclaim_is_interrupted() {
    interrupt(RWT, &HERE, false, |rig, _| rig.mm.balance());
}

/// When mprotect or munmap returns, the right is gone on every CPU: also when reclaim has taken the entry away and
/// its flush is still to come.
#[test]
fn rights_are_gone_when_the_call_returns() {
    for intruder in [Intruder::Forbid, Intruder::Unmap, Intruder::UnmapAll] {
        interrupt_by(&[intruder], RWT, &HERE, false, |rig, _| {
            // CPU 2 uses the page between reclaim's look at it and its unmapping, now and then.
            rig.emu().set_background(|emu, _| _ = emu.access(2, BASE + 48, Access::Store(1)));
            rig.mm.balance();
        });
    }
}

/// A space ends while reclaim has some of its pages in hand, and the other way round.
#[test]
fn the_end_of_a_space_meets_reclaim() {
    for end_is_interrupted in [false, true] {
        let mut evicted = 0;
        meanwhile(|raise| {
            let rig = Rig::<K4>::new(Setup { frames: 80, cpus: 3, ..Setup::default() });
            let space = rig.space();
            rig.map(&space, BASE, 40, RWT);
            for page in 0..40 {
                // Every third page is clean, and every fourth has tags.
                let program = rig.program_on(page as usize % 3, &space);
                let touch = if page % 3 == 0 { Access::Load } else { Access::Store(1) };
                program.access(BASE + page * PAGE, touch).unwrap();
                if page % 4 == 0 {
                    program.stg(BASE + page * PAGE, 9).unwrap();
                }
            }
            (0..3).for_each(|cpu| rig.idle(cpu));
            let other = rig.try_space().unwrap();
            rig.activate(1, &other);
            rig.map(&other, FAR, 9, RW);
            rig.emu().on_cpu(1, || rig.program_on(1, &other).store(FAR + 8 * PAGE, 1)).unwrap();
            let ending = Mutex::new(Some(space));
            let end = || {
                let space = ending.lock().unwrap().take();
                space.into_iter().for_each(|space| assert!(space.destroy(&rig.mm).is_ok()));
                if !end_is_interrupted {
                    // What was a table is a page now, of nothing that a walk could use.
                    (0..8).for_each(|page| rig.program_on(1, &other).store(FAR + page * PAGE, !0).unwrap());
                }
            };
            let reclaim = || {
                rig.mm.balance();
            };
            let on_cpu_1 = |act: &dyn Fn()| rig.emu().on_cpu(1, act);
            if end_is_interrupted {
                raise(&mut || end(), &|| on_cpu_1(&reclaim));
            } else {
                raise(&mut || reclaim(), &|| on_cpu_1(&end));
            }
            rig.destroy(other);
            rig.check_nothing_leaked();
            evicted += rig.count("swap_out");
        });
        assert!(evicted > 0);
    }
}

/// A page that nobody may touch becomes tagged, and nobody may touch it at any moment of that.
#[test]
fn becoming_tagged_lends_no_right() {
    for (before, after) in [(Protection::empty(), Protection::TAGGED), (RW, Protection::READ | Protection::TAGGED)] {
        meanwhile(|raise| {
            let rig = Rig::<K4>::new(Setup { cpus: 2, ..Setup::default() });
            let space = rig.space();
            rig.map(&space, BASE, 1, RW);
            rig.program(&space).store(BASE, 42).unwrap();
            space.protect(&rig.mm, range(0), PAGE, Protection::READ & before).unwrap();
            raise(&mut || space.protect(&rig.mm, range(0), PAGE, after).unwrap(), &|| {
                assert!(rig.emu().access(1, BASE, Access::Store(1)).is_err());
                let seen = rig.emu().access(1, BASE, Access::Load);
                assert!(seen.is_err() || after.contains(Protection::READ), "{seen:?}");
            });
            rig.finish(space);
        });
    }
}

/// What the device refused, and nobody wants any more when that is known, goes.
#[test]
fn a_refused_write_is_interrupted() {
    interrupt(RWT, &[Start::Dirty], false, |rig, space| {
        rig.device.fail_after(0);
        space.advise(&rig.mm, range(0), PAGE, Advice::PageOut).unwrap();
        rig.device.fail_after(u64::MAX / 2);
    });
}

/// Takes memory, in single pages at `FAR`, until it is short. Nothing has left yet.
fn run_short(rig: &Rig, space: &Space<Stage<K4>>) {
    rig.map(space, FAR, 15, RW);
    rig.map(space, FAR + 16 * PAGE, 128, RW);
    let more = |page: &u64| rig.program(space).store(FAR + page * PAGE, 1).is_ok();
    (0..15).chain(16..144).take_while(|_| rig.count("background_wakes") == 0).all(|page| more(&page));
    assert_eq!(rig.count("scanned"), 0);
}

/// A program takes a part of a large folio away while reclaim comes to what is left of it.
#[test]
fn a_large_folio_is_taken_apart_by_two() {
    type Call = fn(&Rig, &Space<Stage<K4>>);
    let calls: [Call; 2] = [
        |rig, space| space.unmap(&rig.mm, range(0), 8 * PAGE).unwrap(),
        |rig, space| space.advise(&rig.mm, range(0), 8 * PAGE, Advice::DontNeed).unwrap(),
    ];
    for call in calls {
        let mut splits = 0;
        meanwhile(|raise| {
            let rig = Rig::<K4>::new(Setup { frames: 80, cpus: 2, ..Setup::default() });
            let space = rig.space();
            rig.map(&space, BASE, 16, RW);
            for page in 0..16 {
                rig.program(&space).store(BASE + page * PAGE, page).unwrap();
            }
            assert_eq!(rig.count("large_folios"), 1);
            run_short(&rig, &space);
            space.advise(&rig.mm, range(0), 16 * PAGE, Advice::Cold).unwrap();
            raise(&mut || call(&rig, &space), &|| rig.emu().on_cpu(1, || rig.mm.balance()));
            for page in 0..16 {
                let seen = rig.program(&space).load(BASE + page * PAGE).ok();
                assert!(if page < 8 { seen.unwrap_or(0) == 0 } else { seen == Some(page) }, "page {page}: {seen:?}");
            }
            splits += rig.count("splits");
            rig.finish(space);
        });
        assert!(splits > 0);
    }
}

/// "No memory" is not said while another CPU has in hand all that reclaim can have.
#[test]
fn memory_in_other_hands_is_waited_for() {
    let mut waited = false;
    meanwhile(|raise| {
        let setup = Setup { frames: 120, cpus: 2, orders: Some(FolioOrders::SINGLE), ..Setup::default() };
        let rig = Rig::<K4>::new(setup);
        let (space, other) = (rig.try_space().unwrap(), rig.try_space().unwrap());
        // CPU 1 has no frame at hand: its space gets its tables on CPU 0.
        rig.activate(0, &other);
        rig.map(&other, BASE, 2, RW);
        rig.program(&other).store(BASE, 1).unwrap();
        rig.activate(0, &space);
        rig.activate(1, &other);
        let reserve = Watermarks::of(rig.mm.totals().frames).reserve;
        let left = || rig.mm.totals().frames_free - reserve;
        // Each page has three tables of its own, so that all pages together are one batch.
        let place = |number: u64| (number + 1) << 39;
        let mut places = 0;
        while left() > 6 {
            rig.map(&space, place(places), 3, RW);
            rig.program(&space).store(place(places), 1).unwrap();
            places += 1;
        }
        (0..left()).for_each(|number| rig.program(&space).store(place(number) + PAGE, 1).unwrap());
        assert_eq!(rig.count("direct_reclaims"), 0);
        raise(&mut || rig.program(&space).store(place(0) + 2 * PAGE, 1).unwrap(), &|| {
            let stored = rig.emu().on_cpu(1, || rig.program_on(1, &other).store(BASE + PAGE, 2));
            assert_eq!(stored, Ok(()));
        });
        waited |= rig.count("direct_reclaims") > 1;
        rig.destroy(other);
        rig.finish(space);
    });
    assert!(waited);
}

/// A machine of two CPUs with little memory, and a space that both run, whose group of pages is the first to leave. Each
/// page knows its number.
fn a_cold_group(seed: u64) -> (Rig, Space<Stage<K4>>) {
    let rig = Rig::<K4>::new(Setup { frames: 80, cpus: 2, seed, adversary: Adversary::Full, ..Setup::default() });
    let space = rig.space();
    (0..2).for_each(|cpu| rig.activate(cpu, &space));
    rig.map(&space, BASE, 16, RW);
    (0..16).for_each(|page| rig.program(&space).store(BASE + page * PAGE, page).unwrap());
    assert_eq!(rig.count("large_folios"), 1);
    run_short(&rig, &space);
    space.advise(&rig.mm, range(0), 16 * PAGE, Advice::Cold).unwrap();
    (rig, space)
}

/// Reclaim takes a group out; before its flush, another CPU closes some of the group's pages. From then on no CPU may
/// store there: also not by what its walker reads, later, from an entry of the group that was not closed.
#[test]
fn a_group_on_its_way_out_is_closed_in_part() {
    let closed = 4..12;
    for seed in 0..3 {
        meanwhile(|raise| {
            let (rig, space) = a_cold_group(seed);
            raise(&mut || rig.mm.balance(), &|| {
                rig.emu().set_cpu(1);
                let bytes = (closed.end - closed.start) * PAGE;
                space.protect(&rig.mm, range(closed.start), bytes, Protection::READ).unwrap();
                for (round, page) in (0..32u64).flat_map(|round| closed.clone().map(move |page| (round, page))) {
                    let (cpu, beside) = (round as usize % 2, [0, 3, 12, 15][round as usize / 2 % 4]);
                    let _ = rig.emu().access(cpu, BASE + beside * PAGE, Access::Load);
                    let stored = rig.emu().access(cpu, BASE + page * PAGE + 8, Access::Store(1));
                    assert!(stored.is_err(), "CPU {cpu} may store to page {page} of a machine of seed {seed}");
                }
                space.protect(&rig.mm, range(closed.start), bytes, RW).unwrap();
            });
            (0..16).for_each(|page| assert_eq!(rig.program(&space).load(BASE + page * PAGE), Ok(page)));
            rig.finish(space);
        });
    }
}

/// Reclaim takes pages out; before its flush, their program forks. From then on no CPU may store there: the child would
/// read it from the slot.
#[test]
fn fork_takes_the_right_to_store_from_what_is_leaving() {
    // What leaves was not used of late: some CPU's walker comes by between the look and the exchange.
    for seed in 3..5 {
        meanwhile(|raise| {
            let (rig, space) = a_cold_group(seed);
            let child = Mutex::new(None);
            raise(&mut || rig.mm.balance(), &|| {
                rig.emu().set_cpu(1);
                let Ok(forked) = space.fork(&rig.mm) else { return };
                *child.lock().unwrap() = Some(forked);
                for (page, cpu) in (0..16).flat_map(|page| [(page, 0), (page, 1)]) {
                    let stored = rig.emu().access(cpu, BASE + page * PAGE, Access::Store(99));
                    assert!(stored.is_err(), "CPU {cpu} may store to page {page}, in a machine of seed {seed}");
                }
            });
            if let Some(child) = child.into_inner().unwrap() {
                rig.activate(0, &child);
                (0..16).for_each(|page| assert_eq!(rig.program(&child).load(BASE + page * PAGE), Ok(page)));
                rig.destroy(child);
                rig.activate(0, &space);
            }
            rig.finish(space);
        });
    }
}
