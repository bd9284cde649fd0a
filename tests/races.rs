//! CPUs that meet, in many orders: shuttle chooses at each step who goes on.
//!
//! A step is an operation on an atomic, a turn of a lock, an operation of the emulated machine, or an access of a
//! program with what the hardware writes for it. Each schedule makes a small world anew, lets two or three CPUs work on
//! one group of pages, and looks at what is left: the contents and tags, page by page, against what may be there; the
//! groups' entries; frames, slots and tag rooms; and the emulator's laws on the way. The swap device is of any kind,
//! late or at once, checked or not, and in a third of the worlds one of its requests fails. Half of the schedules are
//! bursts of steps of any length, half have few changes of turns, at any of the steps (PCT).
//!
//! ```text
//! cargo test --no-default-features --features shuttle --test races --test races_shared
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `EBBTIDE_SCHEDULES` | schedules of each race, in place of some hundreds |
//! | `EBBTIDE_SEED` | what they follow from |
//! | `EBBTIDE_RACE` | part of a race's name: only these are run |
//! | `EBBTIDE_REPLAY` | the file of a schedule that failed, which is run alone |
//! | `EBBTIDE_LIST` | the races' names are told, and none is run |
//!
//! `./qemu-run.sh races` is the long run: 100,000 schedules of each race, in a build (`--profile races`) that is as
//! quick as may be and has every check. A race that fails tells its name and where its schedule is; with `EBBTIDE_RACE`
//! and `EBBTIDE_REPLAY` set to these it fails again, step by step as before.

mod support;

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::granule::K4;
use ebbtide::machine::Machine;
use ebbtide::machine::emu::{Access, Death, Law, Mode};
use ebbtide::reclaim::Advice;
use ebbtide::space::{FaultError, Protection};
use ebbtide::swap::DeviceFlags;

use support::explore::{Told, explore, explore_some, is_whole, meet};
use support::meeting::{Phase, any_machine, pick};
use support::walker::{Group, Walker};
use support::{RW, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
/// Where each CPU has a page that nobody races for.
const FAR: u64 = 0x4020_0000;
/// What is mapped in a race, in a table that is there.
const NEXT: u64 = FAR + 8 * PAGE;
const PAGES: u64 = 16;

// ---- A world, and what may be in it. ----

/// What calls have done to a page so far.
#[derive(Copy, Clone, Default, Debug)]
struct Done {
    /// MADV_DONTNEED.
    dropped: Phase,
    /// MADV_FREE.
    freed: Phase,
    unmapped: Phase,
    /// A right was taken away for a time.
    shut: Phase,
}

/// A program's last store to a page.
#[derive(Copy, Clone, Default, Debug)]
struct Stored {
    value: u64,
    /// What had been done when the program began to store, and when it had.
    before: Done,
    after: Done,
}

/// What there is when the race begins.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Start {
    /// No table.
    Empty,
    /// Loaded: clean.
    Clean,
    Dirty,
    /// Old enough to go at once.
    Cold,
    Out,
}

/// One schedule's world: one group of pages, on CPUs that all run its space.
struct World {
    rig: Rig,
    space: Space<Stage<K4>>,
    start: Start,
    told: String,
    done: Mutex<[Done; PAGES as usize]>,
    stored: Mutex<[[Stored; 3]; PAGES as usize]>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nlately:\n{}", self.told, self.rig.emu().last_operations().join("\n"))
    }
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * PAGE)
}

/// The word that was there from the start, the one of the program on `cpu`.
const OLD: u64 = 32;
const fn own(cpu: usize) -> u64 {
    48 + 16 * cpu as u64
}

const PART: std::ops::Range<u64> = 4..12;
const ALL: std::ops::Range<u64> = 0..PAGES;

impl World {
    fn new(cpus: usize) -> Self {
        let start = [
            Start::Empty,
            Start::Clean,
            Start::Clean,
            Start::Dirty,
            Start::Dirty,
            Start::Cold,
            Start::Cold,
            Start::Out,
        ][pick(8)];
        let setup = Setup {
            // So little that the reclaimer has work to do once each CPU has taken some in advance.
            frames: 64 + 16 * (cpus as u64 - 1),
            slots: 48,
            tag_rooms: 24,
            ..any_machine(cpus)
        };
        let fails_at = pick(12) as u64;
        let rig = Rig::new(setup);
        let space = rig.space();
        rig.map(&space, BASE, PAGES, RWT);
        let world = Self {
            told: format!("{start:?}, request {fails_at} fails if below 4, {setup:?}"),
            rig,
            space,
            start,
            done: Mutex::default(),
            stored: Mutex::default(),
        };
        world.prepare();
        world.rig.map(&world.space, FAR, 3, RW);
        // One request fails, in a third of the worlds.
        if fails_at < 4 {
            world.rig.device.fail_after(fails_at);
        }
        for cpu in 1..cpus {
            let place = FAR + cpu as u64 * PAGE;
            world.rig.emu().on_cpu(cpu, || world.rig.program_on(cpu, &world.space).store(place, 1)).unwrap();
        }
        world
    }

    fn prepare(&self) {
        let program = self.rig.program(&self.space);
        match self.start {
            Start::Empty => {}
            Start::Clean => ALL.for_each(|page| assert_eq!(program.load(BASE + page * PAGE), Ok(0))),
            Start::Dirty | Start::Cold | Start::Out => ALL.for_each(|page| {
                program.stg(BASE + page * PAGE, self.tag(page)).unwrap();
                program.store(BASE + page * PAGE + OLD, self.word(page)).unwrap();
            }),
        }
        match self.start {
            Start::Cold => self.advise(ALL, Advice::Cold),
            Start::Out => self.advise(ALL, Advice::PageOut),
            _ => {}
        }
    }

    /// What a page holds from the start.
    fn word(&self, page: u64) -> u64 {
        if matches!(self.start, Start::Empty | Start::Clean) { 0 } else { page + 100 }
    }

    fn tag(&self, page: u64) -> u8 {
        if matches!(self.start, Start::Empty | Start::Clean) { 0 } else { page as u8 }
    }

    fn done(&self, page: u64) -> Done {
        self.done.lock().unwrap()[page as usize]
    }

    fn note(&self, pages: std::ops::Range<u64>, phase: Phase, of: fn(&mut Done) -> &mut Phase) {
        let mut done = self.done.lock().unwrap();
        pages.for_each(|page| *of(&mut done[page as usize]) = phase);
    }

    fn advise(&self, pages: std::ops::Range<u64>, advice: Advice) {
        let bytes = (pages.end - pages.start) * PAGE;
        match self.space.advise(&self.rig.mm, at(pages.start), bytes, advice) {
            Ok(()) => {}
            // Where another has unmapped a part.
            Err(error) => assert!(ALL.into_iter().any(|page| self.done(page).unmapped != Phase::Ahead), "{error}"),
        }
    }

    fn protect(&self, pages: std::ops::Range<u64>, protection: Protection) {
        let bytes = (pages.end - pages.start) * PAGE;
        self.space.protect(&self.rig.mm, at(pages.start), bytes, protection).unwrap();
    }

    /// An access that a call has made impossible, on every CPU.
    fn is_refused(&self, pages: std::ops::Range<u64>, access: Access) {
        for cpu in 0..self.rig.emu().config().cpus {
            for page in [pages.start, pages.end - 1] {
                let seen = self.rig.emu().access(cpu, BASE + page * PAGE + OLD, access);
                assert!(seen.is_err(), "CPU {cpu} may {access:?} page {page}: {self:?}");
            }
        }
    }

    /// A program's store to its own word of a page.
    fn store(&self, cpu: usize, page: u64, value: u64) {
        let before = self.done(page);
        let ended = self.rig.program_on(cpu, &self.space).store(BASE + page * PAGE + own(cpu), value);
        let after = self.done(page);
        match ended {
            Ok(()) => self.stored.lock().unwrap()[page as usize][cpu] = Stored { value, before, after },
            Err(Death::Refused(_, FaultError::Protection)) => {
                assert!(after.shut != Phase::Ahead && before.shut != Phase::Over, "a store refused: {self:?}");
            }
            Err(Death::Refused(_, FaultError::NotMapped)) => {
                assert_ne!(after.unmapped, Phase::Ahead, "nothing there: {self:?}");
            }
            Err(Death::Refused(_, FaultError::Unreadable { .. })) => self.may_fail(),
            Err(error) => panic!("{error:?}: {self:?}"),
        }
    }

    /// A read that failed is the one that was to.
    fn may_fail(&self) {
        assert_eq!(self.rig.count("read_errors"), 1, "{self:?}");
    }

    /// A program's load of what was there from the start.
    fn load(&self, cpu: usize, page: u64) {
        let before = self.done(page);
        let seen = self.rig.program_on(cpu, &self.space).load(BASE + page * PAGE + OLD);
        let after = self.done(page);
        match seen {
            Ok(seen) => self.check_old(page, seen, before, after),
            Err(Death::Refused(_, FaultError::NotMapped)) => {
                assert_ne!(after.unmapped, Phase::Ahead, "nothing there: {self:?}");
            }
            Err(Death::Refused(_, FaultError::Unreadable { .. })) => self.may_fail(),
            Err(error) => panic!("{error:?}: {self:?}"),
        }
    }

    fn check_old(&self, page: u64, seen: u64, before: Done, after: Done) {
        let may_stay = before.dropped != Phase::Over;
        let may_go = after.dropped.max(after.freed) != Phase::Ahead;
        let word = self.word(page);
        assert!(seen == word && may_stay || seen == 0 && (may_go || word == 0), "page {page} holds {seen}: {self:?}");
    }

    /// What is left, page by page; then all is given back.
    fn finish(self, presses: Presses) {
        // What has not failed by now never does.
        self.rig.device.fail_after(u64::from(u32::MAX));
        self.rig.emu().check_all_groups();
        if presses == Presses::Yes {
            self.rig.mm.balance();
        }
        let program = self.rig.program(&self.space);
        for page in ALL {
            let (done, place) = (self.done(page), BASE + page * PAGE);
            if done.unmapped == Phase::Over {
                assert!(matches!(program.load(place), Err(Death::Refused(_, FaultError::NotMapped))), "{self:?}");
                continue;
            }
            let old = program.load(place + OLD).unwrap_or_else(|error| panic!("{error:?}: {self:?}"));
            self.check_old(page, old, done, done);
            let tag = program.ldg(place).unwrap();
            let tag_may_stay = old != 0 || self.word(page) == 0;
            assert_eq!(tag, if tag_may_stay { self.tag(page) } else { 0 }, "tag of page {page}: {self:?}");
            assert_eq!(program.load(tagged(place, tag)), Ok(0), "page {page}: {self:?}");
            for cpu in 0..3 {
                let Stored { value, before, after } = self.stored.lock().unwrap()[page as usize][cpu];
                let seen = program.load(place + own(cpu)).unwrap();
                let drops = done.dropped != Phase::Ahead && before.dropped != Phase::Over;
                let frees = done.freed != Phase::Ahead && before.freed != Phase::Over;
                let may_be = seen == value || seen == 0 && (drops || frees);
                // What goes, goes whole.
                let outlives = done.dropped != Phase::Ahead && after.dropped == Phase::Ahead && seen != 0;
                let goes_alone = old != 0 && !drops && seen != value;
                let is_right = may_be && !outlives && !goes_alone;
                assert!(is_right, "page {page}, CPU {cpu}: {seen}, not {value}: {self:?}");
            }
        }
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

/// Whether memory is short once more before the end is looked at.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Presses {
    No,
    Yes,
}

// ---- What CPUs do. ----

/// Makes pages of `space` out of what was freed last on this CPU. What was a table is then a page, of nothing that a
/// walker could use.
fn reuse(rig: &Rig, space: &Space<Stage<K4>>, cpu: usize) {
    for (page, word) in (0..4).flat_map(|page| [0, 5, 11].map(|word| (page, word))) {
        let store = || rig.program_on(cpu, space).store(NEXT + page * PAGE + word * 8, !0);
        // The one request that fails may be for this.
        let stored = store().or_else(|_| store());
        assert_eq!(stored, Ok(()), "{:?}", rig.emu().last_operations());
    }
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Call {
    /// The walker: evicts, splits, ages.
    Reclaim,
    /// A program that stores to some pages, and to one of them again.
    Store,
    /// The same pages from the other end, and their neighbours.
    StoreBeside,
    Load,
    /// A part of the group loses a right and has it back: unfolded, refolded.
    ShutPart,
    ShutAll,
    /// Not even loads.
    HidePart,
    UnmapPart,
    UnmapAll,
    DropPart,
    DropAll,
    FreePart,
    FreeAll,
    Cold,
    PageOutPart,
    PageOut,
}

use Call::*;

/// The pages that a program stores to, and its words.
const STORES: [(u64, u64); 6] = [(0, 1), (5, 2), (11, 3), (14, 4), (8, 5), (5, 6)];

impl Call {
    /// What meets programs and the reclaimer.
    const CALLS: [Self; 12] = [
        ShutPart,
        ShutAll,
        HidePart,
        UnmapPart,
        UnmapAll,
        DropPart,
        DropAll,
        FreePart,
        FreeAll,
        Cold,
        PageOutPart,
        PageOut,
    ];

    fn run(self, world: &World, cpu: usize) {
        world.rig.emu().set_cpu(cpu);
        match self {
            Reclaim => world.rig.mm.balance(),
            Store => STORES.iter().for_each(|&(page, value)| world.store(cpu, page, value)),
            StoreBeside => {
                [(11, 7), (6, 8), (5, 9), (1, 10)].iter().for_each(|&(page, value)| world.store(cpu, page, value))
            }
            Load => [0, 5, 12, 5].iter().for_each(|&page| world.load(cpu, page)),
            ShutPart => self.shut(world, PART, RWT - Protection::WRITE, Access::Store(9)),
            ShutAll => self.shut(world, ALL, RWT - Protection::WRITE, Access::Store(9)),
            HidePart => self.shut(world, PART, Protection::TAGGED, Access::Load),
            UnmapPart => self.unmap(world, PART),
            UnmapAll => self.unmap(world, ALL),
            DropPart => self.give_up(world, PART, Advice::DontNeed, |done| &mut done.dropped),
            DropAll => self.give_up(world, ALL, Advice::DontNeed, |done| &mut done.dropped),
            FreePart => self.give_up(world, PART, Advice::Free, |done| &mut done.freed),
            FreeAll => self.give_up(world, ALL, Advice::Free, |done| &mut done.freed),
            Cold => world.advise(ALL, Advice::Cold),
            PageOutPart => world.advise(PART, Advice::PageOut),
            PageOut => world.advise(ALL, Advice::PageOut),
        }
    }

    fn shut(self, world: &World, pages: std::ops::Range<u64>, protection: Protection, gone: Access) {
        world.note(pages.clone(), Phase::Begun, |done| &mut done.shut);
        world.protect(pages.clone(), protection);
        world.is_refused(pages.clone(), gone);
        world.protect(pages.clone(), RWT);
        world.note(pages, Phase::Over, |done| &mut done.shut);
    }

    fn unmap(self, world: &World, pages: std::ops::Range<u64>) {
        world.note(pages.clone(), Phase::Begun, |done| &mut done.unmapped);
        world.space.unmap(&world.rig.mm, at(pages.start), (pages.end - pages.start) * PAGE).unwrap();
        world.note(pages.clone(), Phase::Over, |done| &mut done.unmapped);
        world.is_refused(pages, Access::Load);
        world.rig.map(&world.space, NEXT, 4, RW);
        reuse(&world.rig, &world.space, world.rig.emu().cpu());
    }

    fn give_up(self, world: &World, pages: std::ops::Range<u64>, advice: Advice, of: fn(&mut Done) -> &mut Phase) {
        world.note(pages.clone(), Phase::Begun, of);
        world.advise(pages.clone(), advice);
        world.note(pages, Phase::Over, of);
    }
}

/// Lets calls meet, each on a CPU of its own.
fn race(calls: &[Call]) {
    let calls = calls.to_vec();
    let name = format!("{calls:?}");
    explore(&name, move || {
        let world = World::new(calls.len().max(2));
        let told = Told(&world.told);
        let task = |cpu: usize| calls[cpu].run(&world, cpu);
        meet(&vec![&task as _; calls.len()]);
        drop(told);
        let is_freeing = calls.iter().any(|call| matches!(call, FreePart | FreeAll));
        world.finish(if is_freeing { Presses::Yes } else { Presses::No });
    });
}

#[test]
fn a_program_beside_each_call() {
    Call::CALLS.iter().for_each(|&call| race(&[Store, call]));
}

#[test]
fn reclaim_beside_each_call() {
    Call::CALLS.iter().for_each(|&call| race(&[call, Reclaim]));
}

#[test]
fn a_program_and_reclaim_beside_each_call() {
    Call::CALLS.iter().for_each(|&call| race(&[Store, call, Reclaim]));
}

#[test]
fn programs_map_in_one_table() {
    for calls in
        [&[Store, StoreBeside][..], &[Store, Load], &[Store, StoreBeside, Load], &[Store, StoreBeside, Reclaim]]
    {
        race(calls);
    }
}

#[test]
fn programs_beside_reclaimers() {
    for calls in [&[Store, Reclaim][..], &[Load, Reclaim], &[Reclaim, Reclaim], &[Store, Reclaim, Reclaim]] {
        race(calls);
    }
}

/// Who turns an area off waits for slots that are being left, and does not say that they are in use.
#[test]
fn an_area_goes_off_while_its_last_slot_is_left() {
    explore_some("the last slot is left", 400, || {
        let rig = Rig::<K4>::new(Setup { cpus: 2, device: DeviceFlags::STABLE_WRITES, ..Setup::default() });
        let space = rig.space();
        rig.activate(0, &space);
        rig.map(&space, BASE, 1, RWT);
        let advise = |advice| space.advise(&rig.mm, VirtAddr::new(BASE), PAGE, advice).unwrap();
        rig.program(&space).store(BASE, 7).unwrap();
        advise(Advice::PageOut);
        assert_eq!(rig.program(&space).load(BASE), Ok(7));
        assert_eq!(rig.mm.totals().slots_free, rig.mm.totals().slots - 1, "the page has not kept its slot");
        let off = || _ = rig.mm.swap_off(rig.area.expect("there is one"), &[&space]).expect("nobody uses it");
        meet(&[&|_| advise(Advice::Free), &|_| off()]);
        rig.destroy(space);
    });
}

/// A space ends while reclaim has its pages in hand, and the program of another space stores.
#[test]
fn the_end_of_a_space_meets_reclaim() {
    explore("the end of a space", || {
        let world = World::new(3);
        (0..3).for_each(|cpu| world.rig.idle(cpu));
        let other = world.rig.try_space().unwrap();
        world.rig.activate(2, &other);
        world.rig.map(&other, BASE, 1, RW);
        world.rig.map(&other, NEXT, 4, RW);
        let World { rig, space, told, .. } = world;
        let ending = Mutex::new(Some(space));
        let end = |cpu: usize| {
            rig.emu().set_cpu(cpu);
            let space = ending.lock().unwrap().take().expect("it ends once");
            assert!(space.destroy(&rig.mm).is_ok(), "no CPU runs it: {told}");
            rig.activate(cpu, &other);
            reuse(&rig, &other, cpu);
        };
        let reclaim = |cpu: usize| rig.emu().on_cpu(cpu, || rig.mm.balance());
        let store = |cpu: usize| {
            for value in 1..4 {
                let store = || rig.program_on(cpu, &other).store(BASE + OLD, value);
                // The one request that fails may be for this.
                assert_eq!(store().or_else(|_| store()), Ok(()), "{told}");
            }
        };
        meet(&[&end, &reclaim, &store]);
        rig.device.fail_after(u64::from(u32::MAX));
        assert_eq!(rig.program_on(2, &other).load(BASE + OLD), Ok(3), "{told}");
        rig.finish(other);
    });
}

// ---- A walker that is wrong. ----

/// Schedules in which `walker` freed what a CPU can reach.
fn found(walker: Walker) -> u64 {
    let found = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&found);
    explore(&format!("{walker:?}"), move || {
        let group = Group::new();
        group.emu.set_mode(Mode::Record);
        let remake = |cpu: usize| group.emu.on_cpu(cpu, || group.remake());
        let take = |cpu: usize| group.emu.on_cpu(cpu, || group.take(walker));
        meet(&[&remake, &take]);
        let broken = group.emu.take_violations();
        count.fetch_add(u64::from(broken.iter().any(|broken| broken.law == Law::FreedWhileMapped)), Relaxed);
    });
    found.load(Relaxed)
}

#[test]
fn a_walker_that_locks_late_is_found() {
    assert_eq!(found(Walker::LocksFirst), 0);
    for walker in [Walker::LocksLate, Walker::FirstDecides] {
        assert!(found(walker) > 0 || !is_whole(), "no schedule finds {walker:?}");
    }
}
