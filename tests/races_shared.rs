//! Spaces of one fork tree that meet, in many orders: shuttle chooses at each step who goes on.
//!
//! As in `tests/races.rs`, where the variables that steer it are told, with several spaces: each CPU runs one, of a
//! tree that a random life has made, and does something to it that concerns the others' pages as well. What a space
//! holds follows from its own program alone; that is the model. A page that was given up may be as it was, or zero. At
//! the end every page of every space is looked at, once more after all of it went out, and once more after every space
//! has stored to all of its pages; then all is given back: frames, slots, tag rooms and nodes.

mod support;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::granule::K4;
use ebbtide::machine::emu::{Access, Death};
use ebbtide::reclaim::Advice;
use ebbtide::space::{FaultError, Protection, SpaceError};
use ebbtide::swap::SwapOffError;

use support::explore::{Told, explore_some, meet};
use support::meeting::{Word, any_machine, pick};
use support::{Ended, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
const PAGES: usize = 16;
const PART: Range<usize> = 4..12;
const ALL: Range<usize> = 0..PAGES;
/// Words of a page that are looked at: one for each CPU.
const WORDS: usize = 3;

fn at(page: usize) -> u64 {
    BASE + page as u64 * PAGE
}

/// The word of the program on a CPU.
fn word_at(page: usize, cpu: usize) -> u64 {
    at(page) + 32 + 16 * cpu as u64
}

// ---- What spaces hold. ----

#[derive(Copy, Clone, Default, Debug)]
struct Page {
    words: [Word; WORDS],
    tag: u8,
    /// How often it was given up.
    given_up: u32,
    is_unmapped: bool,
}

impl Page {
    fn give_up(&mut self) {
        self.given_up += 1;
        self.words.iter_mut().for_each(|word| word.may_go = true);
    }
}

/// A space, and what it should hold.
struct Member {
    space: Space<Stage<K4>>,
    pages: Mutex<[Page; PAGES]>,
}

impl Member {
    fn page(&self, page: usize) -> Page {
        self.pages.lock().unwrap()[page]
    }

    fn change(&self, pages: Range<usize>, change: impl FnMut(&mut Page)) {
        self.pages.lock().unwrap()[pages].iter_mut().for_each(change);
    }
}

// ---- A world. ----

/// Who came from whom.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Tree {
    /// Each from the one before.
    Chain,
    /// All from the first.
    Star,
    /// As a star, and the first has ended.
    Orphans,
}

/// One schedule's world: spaces of one tree, each on a CPU of its own.
struct World {
    rig: Rig,
    members: Mutex<Vec<Option<Arc<Member>>>>,
    /// How many there were.
    people: usize,
    /// Spaces that were made in the race.
    others: Mutex<Vec<Member>>,
    /// The last that was stored.
    value: AtomicU64,
    told: String,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nlately:\n{}", self.told, self.rig.emu().last_operations().join("\n"))
    }
}

impl World {
    fn new(calls: &[Call], crowd: Crowd) -> Self {
        let cpus = calls.len();
        let tree = [Tree::Chain, Tree::Star, Tree::Orphans][pick(3)];
        // Without swap all has to fit.
        let few = if calls.contains(&SwapOff) { 160 } else { 64 + 16 * pick(3) as u64 };
        let setup = Setup { frames: few + 16 * cpus as u64, slots: 128, tag_rooms: 64, ..any_machine(cpus) };
        let fails_at = pick(12) as u64;
        let rig = Rig::new(setup);
        let told = format!("{calls:?}, {crowd:?}, {tree:?}, request {fails_at} fails if below 4, {setup:?}");
        let mut world = Self {
            members: Mutex::default(),
            people: 0,
            others: Mutex::default(),
            value: AtomicU64::new(0),
            told,
            rig,
        };
        world.people(tree, cpus);
        for cpu in 0..cpus {
            world.rig.activate(cpu, &world.member(crowd.member(cpu)).space);
        }
        // One request fails, in a third of the worlds.
        if fails_at < 4 {
            world.rig.device.fail_after(fails_at);
        }
        world
    }

    /// Makes the spaces, with a past.
    fn people(&mut self, tree: Tree, members: usize) {
        let first = self.rig.try_space().expect("there is memory");
        self.rig.activate(0, &first);
        self.rig.map(&first, BASE, PAGES as u64, RWT);
        let mut family = vec![Member { space: first, pages: Mutex::default() }];
        if pick(8) > 0 {
            for page in ALL {
                self.store(&family[0], 0, page);
                self.tag(&family[0], 0, page, page as u8);
            }
        }
        (0..pick(3)).for_each(|_| self.live(&family[0]));
        let wanted = members + usize::from(tree == Tree::Orphans);
        while family.len() < wanted {
            let parent = if tree == Tree::Chain { family.len() - 1 } else { 0 };
            let child = self.fork(&family[parent]).expect("there is memory");
            family.push(child);
            (0..pick(3)).for_each(|_| self.live(&family[parent]));
        }
        if tree == Tree::Orphans {
            self.end(family.remove(0));
        }
        for _ in 0..pick(6) {
            let who = pick(family.len());
            self.live(&family[who]);
        }
        self.people = family.len();
        self.members = Mutex::new(family.into_iter().map(|member| Some(Arc::new(member))).collect());
    }

    /// A space that has not ended.
    fn member(&self, who: usize) -> Arc<Member> {
        Arc::clone(self.members.lock().unwrap()[who].as_ref().expect("it has not ended"))
    }

    /// Something that a space did before the race.
    fn live(&self, member: &Member) {
        self.rig.activate(0, &member.space);
        let first = pick(PAGES);
        let some = first..first + 1 + pick(PAGES - first);
        match pick(8) {
            0 | 1 => self.advise(member, ALL, Advice::PageOut),
            2 => self.advise(member, some, Advice::PageOut),
            3 => some.for_each(|page| _ = self.load(member, 0, page)),
            4 => ALL.for_each(|page| _ = self.load(member, 0, page)),
            5 => some.for_each(|page| self.store(member, 0, page)),
            6 => self.advise(member, some, Advice::Cold),
            _ => self.advise(member, ALL, Advice::Cold),
        }
    }

    fn fork(&self, parent: &Member) -> Result<Member, SpaceError> {
        let before = *parent.pages.lock().unwrap();
        let space = parent.space.fork(&self.rig.mm)?;
        let after = *parent.pages.lock().unwrap();
        let mut pages = before;
        // What is stored beside the call may be in it.
        for (page, after) in pages.iter_mut().zip(after) {
            page.words.iter_mut().zip(after.words).for_each(|(word, after)| word.high = after.high);
        }
        Ok(Member { space, pages: Mutex::new(pages) })
    }

    /// Ends a space, which no other CPU runs.
    fn end(&self, member: Member) {
        assert!(member.space.destroy(&self.rig.mm).is_ok(), "no other CPU runs it: {self:?}");
    }

    /// An access, once more if a read failed: the one that was to.
    fn access(&self, member: &Member, cpu: usize, place: u64, access: Access) -> Result<u64, Ended> {
        let program = self.rig.program_on(cpu, &member.space);
        let ended = program.access(place, access);
        if let Err(Death::Refused(_, FaultError::Unreadable { .. })) = ended {
            assert_eq!(self.rig.count("read_errors"), 1, "{self:?}");
            return program.access(place, access);
        }
        ended
    }

    fn store(&self, member: &Member, cpu: usize, page: usize) {
        let value = self.value.fetch_add(1, Relaxed) + 1;
        let word = |change: &dyn Fn(&mut Word)| member.change(page..page + 1, |page| change(&mut page.words[cpu]));
        word(&|word| word.high = value);
        let ended = self.access(member, cpu, word_at(page, cpu), Access::Store(value));
        if member.page(page).is_unmapped {
            assert!(matches!(ended, Err(Death::Refused(_, FaultError::NotMapped))), "{ended:?}: {self:?}");
            return;
        }
        assert!(ended.is_ok(), "page {page}: {ended:?}: {self:?}");
        word(&|word| *word = Word { low: value, high: value, may_go: false });
    }

    fn tag(&self, member: &Member, cpu: usize, page: usize, tag: u8) {
        // A tag that is stored keeps the page, too: its words tell whether it had gone.
        self.store(member, cpu, page);
        self.access(member, cpu, at(page), Access::StoreTag(tag)).unwrap_or_else(|error| panic!("{error:?}: {self:?}"));
        member.change(page..page + 1, |page| page.tag = tag);
    }

    /// Looks at a page, of which a program on `cpu` is at its own word, if any is beside. Returns what it saw, of a
    /// page that is there.
    fn load(&self, member: &Member, cpu: usize, page: usize) -> [u64; WORDS] {
        let mut all = [0; WORDS];
        for (word, into) in all.iter_mut().enumerate() {
            let before = member.page(page);
            let seen = self.access(member, cpu, word_at(page, word), Access::Load);
            let after = member.page(page);
            if before.is_unmapped {
                assert!(matches!(seen, Err(Death::Refused(_, FaultError::NotMapped))), "{seen:?}: {self:?}");
                break;
            }
            let seen = seen.unwrap_or_else(|error| panic!("page {page}: {error:?}: {self:?}"));
            let admitted = Word { high: after.words[word].high, ..before.words[word] };
            assert!(admitted.admits(seen), "word {word} of page {page} is {seen}, not {admitted:?}: {self:?}");
            *into = seen;
        }
        all
    }

    /// Looks at all of a space on CPU 0, when nobody else does anything.
    fn check(&self, member: &Member) {
        self.rig.activate(0, &member.space);
        for page in ALL {
            let seen = self.load(member, 0, page);
            let Page { words, tag, given_up, is_unmapped } = member.page(page);
            if is_unmapped {
                continue;
            }
            let program = self.rig.program(&member.space);
            let old = || words.iter().zip(seen).filter(|(word, _)| word.may_go && word.low > 0);
            let (gone, stays) = (old().any(|(_, seen)| seen == 0), old().any(|(_, seen)| seen > 0));
            // What goes, goes whole.
            assert!(given_up > 1 || !(gone && stays), "half of page {page} has gone: {seen:?}, {words:?}: {self:?}");
            let is_seen = program.ldg(at(page)).unwrap();
            if given_up == 0 || stays {
                assert_eq!(is_seen, tag, "tag of page {page}: {self:?}");
            }
            assert_eq!(program.load(tagged(at(page), is_seen)), Ok(0), "page {page}: {self:?}");
        }
    }

    fn advise(&self, member: &Member, pages: Range<usize>, advice: Advice) {
        let bytes = pages.len() as u64 * PAGE;
        match advice {
            Advice::Free => member.change(pages.clone(), Page::give_up),
            Advice::DontNeed => member.change(pages.clone(), |page| *page = Page::default()),
            Advice::Cold | Advice::PageOut | Advice::WillNeed => {}
        }
        let done = member.space.advise(&self.rig.mm, VirtAddr::new(at(pages.start)), bytes, advice);
        assert!(done.is_ok() || ALL.into_iter().any(|page| member.page(page).is_unmapped), "{done:?}: {self:?}");
    }

    /// An access that a call has made impossible.
    fn is_refused(&self, cpu: usize, pages: Range<usize>, access: Access) {
        for page in [pages.start, pages.end - 1] {
            let seen = self.rig.emu().access(cpu, word_at(page, cpu), access);
            assert!(seen.is_err(), "CPU {cpu} may {access:?} page {page}: {self:?}");
        }
    }

    /// Looks at what is left, page by page; then all is given back.
    fn finish(self) {
        // What has not failed by now never does.
        self.rig.device.fail_after(u64::from(u32::MAX));
        self.rig.emu().check_all_groups();
        (0..self.rig.emu().config().cpus).for_each(|cpu| self.rig.idle(cpu));
        let mut left: Vec<Member> = self.others.lock().unwrap().drain(..).collect();
        left.extend(self.members.lock().unwrap().drain(..).flatten().filter_map(Arc::into_inner));
        left.iter().for_each(|member| self.check(member));
        if let Some(first) = left.first() {
            self.advise(first, ALL, Advice::PageOut);
        }
        left.iter().for_each(|member| self.check(member));
        for member in &left {
            self.rig.activate(0, &member.space);
            ALL.for_each(|page| self.store(member, 0, page));
        }
        left.iter().for_each(|member| self.check(member));
        self.rig.emu().check_all_groups();
        while !left.is_empty() {
            let place = pick(left.len());
            self.end(left.swap_remove(place));
        }
        if self.rig.mm.totals().slots == 0 {
            assert_eq!(self.rig.mm.totals().frames_free, self.rig.fresh.frames_free, "frames leaked: {self:?}");
        } else {
            self.rig.check_nothing_leaked();
        }
        if pick(16) == 0 {
            self.check_nodes();
        }
    }

    /// All nodes are back: those that there are suffice for as many spaces as at the start.
    fn check_nodes(&self) {
        const NODES: u64 = 64;
        let before = self.rig.mm.totals().frames_free;
        let spaces: Vec<_> = (0..NODES).map_while(|_| self.rig.try_space().ok()).collect();
        assert_eq!(self.rig.mm.totals().frames_free + spaces.len() as u64, before, "nodes leaked: {self:?}");
        spaces.into_iter().for_each(|space| self.rig.destroy(space));
    }
}

// ---- What CPUs do. ----

/// Whether CPUs run spaces of their own.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Crowd {
    Apart,
    /// All run the first.
    Together,
}

impl Crowd {
    fn member(self, cpu: usize) -> usize {
        if self == Self::Apart { cpu } else { 0 }
    }
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Call {
    /// The walker: evicts, splits, ages.
    Reclaim,
    /// A program that stores to some pages, and to one of them again.
    Store,
    StoreAll,
    Load,
    LoadAll,
    Tag,
    /// A child, which goes on beside.
    Fork,
    /// A child that runs, and ends.
    ForkRun,
    /// The space ends.
    End,
    FreePart,
    FreeAll,
    DropPart,
    UnmapPart,
    UnmapAll,
    /// A part of the pages loses a right and has it back.
    ShutPart,
    Cold,
    PageOutPart,
    PageOut,
    /// Of the only area, with all spaces but those that end.
    SwapOff,
}

use Call::*;

/// Pages that a program goes to.
const SOME: [usize; 6] = [0, 5, 11, 14, 8, 5];

impl Call {
    const CALLS: [Self; 19] = [
        Reclaim,
        Store,
        StoreAll,
        Load,
        LoadAll,
        Tag,
        Fork,
        ForkRun,
        End,
        FreePart,
        FreeAll,
        DropPart,
        UnmapPart,
        UnmapAll,
        ShutPart,
        Cold,
        PageOutPart,
        PageOut,
        SwapOff,
    ];

    /// Whether spaces come or go by it that who turns an area off is not told of.
    fn hides(self) -> bool {
        matches!(self, Fork | ForkRun | End)
    }

    fn run(self, world: &World, calls: &[Self], who: usize, cpu: usize) {
        world.rig.emu().set_cpu(cpu);
        if self == End {
            let member = world.members.lock().unwrap()[who].take().and_then(Arc::into_inner);
            return world.end(member.expect("nobody else has it"));
        }
        let member = &*world.member(who);
        match self {
            Reclaim => world.rig.mm.balance(),
            Store => SOME.iter().for_each(|&page| world.store(member, cpu, page)),
            StoreAll => ALL.for_each(|page| world.store(member, cpu, page)),
            Load => SOME.iter().for_each(|&page| _ = world.load(member, cpu, page)),
            LoadAll => ALL.for_each(|page| _ = world.load(member, cpu, page)),
            Tag => SOME.iter().for_each(|&page| world.tag(member, cpu, page, 7)),
            Fork | ForkRun => self.fork(world, member, cpu),
            End => {}
            FreePart => world.advise(member, PART, Advice::Free),
            FreeAll => world.advise(member, ALL, Advice::Free),
            DropPart => world.advise(member, PART, Advice::DontNeed),
            UnmapPart => unmap(world, member, cpu, PART),
            UnmapAll => unmap(world, member, cpu, ALL),
            ShutPart => shut(world, member, cpu, PART),
            Cold => world.advise(member, ALL, Advice::Cold),
            PageOutPart => world.advise(member, PART, Advice::PageOut),
            PageOut => world.advise(member, ALL, Advice::PageOut),
            SwapOff => swap_off(world, calls),
        }
    }

    fn fork(self, world: &World, member: &Member, cpu: usize) {
        // As good as it was, where memory is short.
        let Ok(child) = world.fork(member) else { return };
        if self == ForkRun {
            world.rig.activate(cpu, &child.space);
            [5, 8].iter().for_each(|&page| world.store(&child, cpu, page));
            world.load(&child, cpu, 11);
            world.rig.activate(cpu, &member.space);
            world.end(child);
        } else {
            world.others.lock().unwrap().push(child);
        }
        [5, 11].iter().for_each(|&page| world.store(member, cpu, page));
    }
}

fn unmap(world: &World, member: &Member, cpu: usize, pages: Range<usize>) {
    let bytes = pages.len() as u64 * PAGE;
    member.space.unmap(&world.rig.mm, VirtAddr::new(at(pages.start)), bytes).unwrap();
    member.change(pages.clone(), |page| page.is_unmapped = true);
    world.is_refused(cpu, pages, Access::Load);
}

fn shut(world: &World, member: &Member, cpu: usize, pages: Range<usize>) {
    let protect = |protection: Protection| {
        let (start, bytes) = (VirtAddr::new(at(pages.start)), pages.len() as u64 * PAGE);
        member.space.protect(&world.rig.mm, start, bytes, protection).unwrap();
    };
    protect(RWT - Protection::WRITE);
    world.is_refused(cpu, pages.clone(), Access::Store(9));
    protect(RWT);
    world.store(member, cpu, pages.start);
}

fn swap_off(world: &World, calls: &[Call]) {
    let stay = |who: &usize| calls.get(*who) != Some(&End);
    let members: Vec<_> = (0..world.people).filter(stay).map(|who| world.member(who)).collect();
    let spaces: Vec<_> = members.iter().map(|member| &member.space).collect();
    match world.rig.mm.swap_off(world.rig.area.expect("there is one"), &spaces) {
        Ok(_) => {}
        Err(SwapOffError::InUse(_)) if calls.iter().any(|call| call.hides()) => {}
        Err(error) => panic!("{error:?}: {world:?}"),
    }
}

/// Lets calls meet, each on a CPU of its own. `choose` says which: of each schedule anew.
fn race(name: &str, schedules: usize, crowd: Crowd, choose: impl Fn() -> Vec<Call> + Send + Sync + 'static) {
    explore_some(name, schedules, move || {
        let calls = choose();
        let world = World::new(&calls, crowd);
        let told = Told::of_a_schedule(&world.told);
        let task = |cpu: usize| calls[cpu].run(&world, &calls, crowd.member(cpu), cpu);
        meet(&vec![&task as _; calls.len()]);
        drop(told);
        world.finish();
    });
}

fn races(crowd: Crowd, schedules: usize, all: impl IntoIterator<Item = Vec<Call>>) {
    for calls in all {
        race(&format!("{crowd:?} {calls:?}"), schedules, crowd, move || calls.clone());
    }
}

/// Every call beside every other, of two spaces of one tree.
fn pairs(first: Range<usize>) -> impl Iterator<Item = Vec<Call>> {
    first.flat_map(|one| (one..Call::CALLS.len()).map(move |other| vec![Call::CALLS[one], Call::CALLS[other]]))
}

/// Fewer where there are so many races.
const OF_A_PAIR: usize = 80;

#[test]
fn two_spaces_beside_each_other() {
    races(Crowd::Apart, OF_A_PAIR, pairs(0..5));
}

#[test]
fn two_spaces_beside_each_other_further() {
    races(Crowd::Apart, OF_A_PAIR, pairs(5..Call::CALLS.len()).filter(|calls| calls[0] != SwapOff));
}

#[test]
fn three_spaces() {
    race("three spaces", 3000, Crowd::Apart, || {
        let mut calls: Vec<_> = (0..3).map(|_| Call::CALLS[pick(Call::CALLS.len())]).collect();
        // One at a time.
        let mut others = calls.iter_mut().filter(|call| **call == SwapOff);
        others.next();
        others.for_each(|call| *call = PageOut);
        calls
    });
}

/// A child has what its parent had at one time, whatever other programs of the parent's store meanwhile.
#[test]
fn a_space_forks_beside_its_own_programs() {
    let fork = [Fork, ForkRun];
    let beside = [Store, StoreAll, LoadAll, PageOut, Fork];
    let two = fork.iter().flat_map(|&fork| beside.map(|other| vec![fork, other]));
    races(Crowd::Together, OF_A_PAIR, two);
    let three = [Reclaim, PageOut, Store].map(|other| vec![Fork, StoreAll, other]);
    races(Crowd::Together, 2 * OF_A_PAIR, three);
}

/// Two spaces have a half each of a folio that the device refused. Both give theirs up, and nothing of it stays.
#[test]
fn a_refused_folio_goes_by_halves() {
    explore_some("a refused folio goes by halves", 400, || {
        let rig = Rig::new(Setup { slots: 32, tag_rooms: 32, cpus: 2, va_bits: 32, ..Setup::default() });
        let parent = rig.space();
        rig.map(&parent, BASE, PAGES as u64, RWT);
        ALL.for_each(|page| rig.program(&parent).store(word_at(page, 0), 1).unwrap());
        let child = parent.fork(&rig.mm).unwrap();
        let advise = |space: &Space<Stage<K4>>, pages: Range<usize>, advice| {
            let (start, bytes) = (VirtAddr::new(at(pages.start)), pages.len() as u64 * PAGE);
            space.advise(&rig.mm, start, bytes, advice).unwrap();
        };
        rig.device.fail_after(0);
        advise(&parent, ALL, Advice::PageOut);
        assert_eq!((rig.count("write_errors"), rig.mm.totals().slots_free), (1, 16));
        let halves = [0..PAGES / 2, PAGES / 2..PAGES];
        advise(&parent, halves[1].clone(), Advice::DontNeed);
        advise(&child, halves[0].clone(), Advice::DontNeed);
        let give_up = |cpu: usize| {
            rig.emu().set_cpu(cpu);
            advise([&parent, &child][cpu], halves[cpu].clone(), Advice::DontNeed);
        };
        meet(&[&give_up, &give_up]);
        assert_eq!(rig.mm.totals().slots_free, 32);
        rig.destroy(child);
        rig.finish(parent);
    });
}
