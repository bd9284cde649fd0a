//! What a program, or a device, asks for beside faults meets reclaim and other calls, in many orders: pins, locked
//! memory, collapse, single pages, MADV_WILLNEED, read-ahead, and a space at its cap.
//!
//! As in `tests/races.rs`, where the variables that steer it are told: shuttle chooses at each step who goes on. One
//! space, which every CPU runs; each stores words of its own that grow, so that a word is what was stored last, or, of
//! a page that was given up meanwhile, zero. What a device stores through a pin is such a word, too. A child that
//! fork makes is looked at in the end. Then all is given back: frames, slots and tag rooms.

mod support;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::emu::{Access, Death};
use ebbtide::reclaim::Advice;
use ebbtide::space::{self, FaultError, Folios, MapError, MemoryCap, Pin, PinError, Protection, Residency};
use ebbtide::swap::SwapOffError;

use support::explore::{Told, explore_some, is_whole, meet};
use support::meeting::{Phase, Word, any_machine, pick};
use support::{RWT, Rig, Setup, Stage};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
const ALL: Range<usize> = 0..16;
const PART: Range<usize> = 4..12;
/// Pages of a space that has more than the least cap, of which the last are out.
const MANY: usize = 288;
const LAST: Range<usize> = 264..MANY;

fn at(page: usize) -> VirtAddr {
    VirtAddr::new(BASE + page as u64 * PAGE)
}

/// Where the program on a CPU has its word of a page, in bytes.
fn own(cpu: usize) -> u64 {
    32 + 16 * cpu as u64
}

#[derive(Copy, Clone, Default, Debug)]
struct Page {
    words: [Word; 3],
    freed: Phase,
    unmapped: Phase,
    shut: Phase,
}

/// What there is when the race begins.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Start {
    Empty,
    Dirty,
    Cold,
    Out,
    /// As single pages, one by one.
    OutInOrder,
}

/// A child, and what its parent held when it was made.
type Child = (Space<Stage<K4>>, Vec<Page>);

struct World {
    rig: Rig,
    space: Space<Stage<K4>>,
    /// How many are mapped.
    count: usize,
    pages: Mutex<Vec<Page>>,
    children: Mutex<Vec<Child>>,
    /// The last that was stored.
    value: AtomicU64,
    calls: Vec<Call>,
    /// A request of the device fails.
    has_failures: bool,
    told: String,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nlately:\n{}", self.told, self.rig.emu().last_operations().join("\n"))
    }
}

impl World {
    fn new(calls: &[Call]) -> Self {
        let cpus = calls.len();
        let is_capped = calls.contains(&AtCap);
        let starts = [Start::Empty, Start::Dirty, Start::Dirty, Start::Cold, Start::Out, Start::OutInOrder];
        let start = if is_capped { Start::Dirty } else { starts[pick(starts.len())] };
        let roomy = calls.iter().any(|call| matches!(call, SwapOff | Fork | ForkEnd));
        let count = if is_capped { MANY } else { ALL.end };
        // So little that the reclaimer has work to do once each CPU has taken some in advance.
        let few = if is_capped { 3 * MANY as u64 } else { 32 + 16 * pick(2) as u64 + if roomy { 64 } else { 0 } };
        let setup = Setup {
            frames: few + 16 * cpus as u64,
            slots: if is_capped { 512 } else { 128 },
            tag_rooms: 64,
            ..any_machine(cpus)
        };
        let fails_at = pick(12) as u64;
        let rig = Rig::new(setup);
        let space = rig.space();
        rig.map(&space, BASE, count as u64, RWT);
        let world = Self {
            told: format!("{calls:?}, {start:?}, request {fails_at} fails if below 4, {setup:?}"),
            rig,
            space,
            count,
            pages: Mutex::new(vec![Page::default(); count]),
            children: Mutex::default(),
            value: AtomicU64::new(0),
            calls: calls.to_vec(),
            has_failures: fails_at < 4,
        };
        world.prepare(start, if is_capped { MemoryCap::Pages(0) } else { MemoryCap::None });
        // What came singly is to become one.
        if calls.contains(&Collapse) {
            world.rig.mm.set_folio_orders(FolioOrders::group::<K4>());
        }
        if world.has_failures {
            world.rig.device.fail_after(fails_at);
        }
        world
    }

    fn prepare(&self, start: Start, cap: MemoryCap) {
        if start == Start::OutInOrder || self.calls.contains(&Collapse) {
            self.rig.mm.set_folio_orders(FolioOrders::SINGLE);
        }
        if start != Start::Empty {
            (0..self.count).for_each(|page| self.store(0, page));
        }
        match start {
            Start::Cold => self.advise(ALL, Advice::Cold),
            Start::Out => self.advise(ALL, Advice::PageOut),
            Start::OutInOrder => ALL.for_each(|page| self.advise(page..page + 1, Advice::PageOut)),
            Start::Empty | Start::Dirty => {}
        }
        if cap != MemoryCap::None {
            self.advise(LAST, Advice::PageOut);
            self.space.set_cap(&self.rig.mm, cap);
        }
    }

    fn page(&self, page: usize) -> Page {
        self.pages.lock().unwrap()[page]
    }

    fn change(&self, pages: Range<usize>, change: impl FnMut(&mut Page)) {
        self.pages.lock().unwrap()[pages].iter_mut().for_each(change);
    }

    fn is_beside(&self, call: Call) -> bool {
        self.calls.contains(&call)
    }

    /// Whether an access may end so: another CPU has taken the page, or a right, away.
    fn may_end(&self, page: usize, before: Page, error: FaultError) -> bool {
        let after = self.page(page);
        match error {
            FaultError::NotMapped => after.unmapped != Phase::Ahead,
            FaultError::Protection => after.shut != Phase::Ahead && before.shut != Phase::Over,
            _ => false,
        }
    }

    /// A program's access, once more if a read failed: the one that was to.
    fn access(&self, cpu: usize, page: usize, offset: u64, access: Access) -> Option<u64> {
        let before = self.page(page);
        let program = self.rig.program_on(cpu, &self.space);
        let mut ended = program.access(at(page).bytes() + offset, access);
        if let Err(Death::Refused(_, FaultError::Unreadable { .. })) = ended {
            assert_eq!(self.rig.count("read_errors"), 1, "{self:?}");
            ended = program.access(at(page).bytes() + offset, access);
        }
        match ended {
            Ok(seen) => Some(seen),
            Err(Death::Refused(_, error)) if self.may_end(page, before, error) => None,
            Err(error) => panic!("page {page}: {error:?}: {self:?}"),
        }
    }

    /// A value to store to a word, which may be there from now on.
    fn begin_store(&self, cpu: usize, page: usize) -> u64 {
        let value = self.value.fetch_add(1, Relaxed) + 1;
        self.change(page..page + 1, |page| page.words[cpu].high = value);
        value
    }

    fn store(&self, cpu: usize, page: usize) {
        let (before, value) = (self.page(page), self.begin_store(cpu, page));
        if self.access(cpu, page, own(cpu), Access::Store(value)).is_some() {
            let may_go = before.freed != Phase::Over && self.page(page).freed != Phase::Ahead;
            self.change(page..page + 1, |page| page.words[cpu] = Word { low: value, high: value, may_go });
        }
    }

    fn load(&self, cpu: usize, page: usize) {
        for word in 0..3 {
            let before = self.page(page).words[word];
            let Some(seen) = self.access(cpu, page, own(word), Access::Load) else { return };
            let after = self.page(page).words[word];
            let admitted = Word { high: after.high, may_go: before.may_go || after.may_go, ..before };
            assert!(admitted.admits(seen), "word {word} of page {page} is {seen}, not {admitted:?}: {self:?}");
        }
    }

    /// What a call says of a range of which a part may be gone, or locked.
    fn is_done(&self, done: Result<(), MapError>) -> bool {
        match done {
            Ok(()) => true,
            Err(MapError::NotMapped(_)) if self.is_beside(Unmap) => false,
            Err(MapError::Locked(_)) if self.is_beside(Lock) => false,
            Err(error) => panic!("{error:?}: {self:?}"),
        }
    }

    fn advise(&self, pages: Range<usize>, advice: Advice) {
        let bytes = pages.len() as u64 * PAGE;
        self.is_done(self.space.advise(&self.rig.mm, at(pages.start), bytes, advice));
    }

    /// What of `pages` is in memory.
    fn resident(&self, pages: Range<usize>) -> usize {
        let (mut seen, bytes) = (0, pages.len() as u64 * PAGE);
        let each = |place| seen += usize::from(place == Residency::Resident);
        self.is_done(self.space.residency(&self.rig.mm, at(pages.start), bytes, each));
        seen
    }

    // ---- Calls. ----

    fn pin(&self, page: usize) -> Option<Pin> {
        let before = self.page(page);
        let pin = || self.space.pin(&self.rig.mm, at(page), space::Access::Write);
        // The one read that is to fail may be this.
        let pinned = match pin() {
            Err(PinError::Fault(FaultError::Unreadable { .. })) => pin(),
            pinned => pinned,
        };
        match pinned {
            Ok(pin) => Some(pin),
            Err(PinError::Fault(error)) if self.may_end(page, before, error) => None,
            Err(error) => panic!("{error:?}: {self:?}"),
        }
    }

    /// The pin is a way to what the owner sees: both ways.
    fn check_pin(&self, cpu: usize, page: usize, pin: &Pin) {
        let (frame, word) = (self.rig.mm.pinned(pin), own(cpu) as usize / 8);
        self.store(cpu, page);
        let seen = self.rig.emu().device_load(frame, word);
        let expected = self.page(page);
        if expected.unmapped != Phase::Ahead {
            return;
        }
        let is_stored = expected.words[cpu].low == expected.words[cpu].high;
        assert!(!is_stored || seen == expected.words[cpu].low, "the pin of page {page} sees {seen}: {self:?}");
        let value = self.begin_store(cpu, page);
        self.rig.emu().device_store(frame, word, value);
        self.change(page..page + 1, |page| {
            page.words[cpu] = Word { low: value, high: value, may_go: false };
        });
        self.load(cpu, page);
        // Law 29: what is pinned is not given up. Once the pin has gone it may be, by a call that has not ended by now.
        self.change(page..page + 1, |page| page.words[cpu].may_go = page.freed == Phase::Begun);
    }

    fn pin_some(&self, cpu: usize) {
        let pins: Vec<_> = [5, 11].into_iter().filter_map(|page| Some((page, self.pin(page)?))).collect();
        for _ in 0..2 {
            pins.iter().for_each(|(page, pin)| self.check_pin(cpu, *page, pin));
        }
        pins.into_iter().for_each(|(_, pin)| self.rig.mm.unpin(pin));
    }

    fn lock(&self, cpu: usize) {
        let (mm, bytes) = (&self.rig.mm, ALL.len() as u64 * PAGE);
        if !self.is_done(self.space.mlock(mm, at(0), bytes)) {
            return;
        }
        // A store may be refused.
        ALL.for_each(|page| self.load(cpu, page));
        ALL.for_each(|page| self.store(cpu, page));
        // Those that are shared, or that a device refused, may go out once more.
        let all_stay = !self.has_failures && ![Fork, ForkEnd, Unmap, Lock].iter().any(|&call| self.others_are(call));
        for _ in 0..2 {
            let resident = self.resident(ALL);
            assert!(!all_stay || resident == ALL.len(), "{resident} locked pages are there: {self:?}");
            self.load(cpu, 5);
        }
        self.is_done(self.space.munlock(mm, at(0), bytes));
    }

    /// Whether a CPU beside another one does this.
    fn others_are(&self, call: Call) -> bool {
        self.calls.iter().filter(|&&other| other == call).count() > usize::from(call == Lock)
    }

    fn prefer(&self, cpu: usize) {
        for folios in [Folios::Single, Folios::Any] {
            self.is_done(self.space.prefer_folios(&self.rig.mm, at(PART.start), PART.len() as u64 * PAGE, folios));
            [3, 4, 11, 12].iter().for_each(|&page| self.store(cpu, page));
        }
    }

    fn shut(&self) {
        let protect = |protection| {
            let bytes = PART.len() as u64 * PAGE;
            self.is_done(self.space.protect(&self.rig.mm, at(PART.start), bytes, protection));
        };
        self.change(PART, |page| page.shut = Phase::Begun);
        protect(RWT - Protection::WRITE);
        for cpu in 0..self.calls.len() {
            let seen = self.rig.emu().access(cpu, at(PART.start).bytes() + own(cpu), Access::Store(9));
            assert!(seen.is_err(), "CPU {cpu} may store: {self:?}");
        }
        protect(RWT);
        self.change(PART, |page| page.shut = Phase::Over);
    }

    fn unmap(&self) {
        self.change(PART, |page| page.unmapped = Phase::Begun);
        self.space.unmap(&self.rig.mm, at(PART.start), PART.len() as u64 * PAGE).unwrap();
        self.change(PART, |page| page.unmapped = Phase::Over);
    }

    fn free(&self) {
        self.change(PART, |page| {
            page.freed = Phase::Begun;
            page.words.iter_mut().for_each(|word| word.may_go = true);
        });
        self.advise(PART, Advice::Free);
        self.change(PART, |page| page.freed = Phase::Over);
    }

    fn fork(&self) {
        let mut pages = self.pages.lock().unwrap().clone();
        // As good as it was, where memory is short.
        let Ok(child) = self.space.fork(&self.rig.mm) else { return };
        // What is stored, or given up, beside the call may be in it.
        for (page, after) in pages.iter_mut().zip(&*self.pages.lock().unwrap()) {
            page.unmapped = after.unmapped;
            for (word, after) in page.words.iter_mut().zip(after.words) {
                *word = Word { high: after.high, may_go: word.may_go || after.may_go, ..*word };
            }
        }
        self.children.lock().unwrap().push((child, pages));
    }

    fn fork_and_end(&self) {
        if let Ok(child) = self.space.fork(&self.rig.mm) {
            assert!(child.destroy(&self.rig.mm).is_ok(), "no CPU runs it: {self:?}");
        }
    }

    fn swap_off(&self) {
        match self.rig.mm.swap_off(self.rig.area.expect("there is one"), &[&self.space]) {
            Ok(_) => {}
            Err(SwapOffError::InUse(_)) if self.is_beside(Fork) || self.is_beside(ForkEnd) => {}
            Err(error) => panic!("{error:?}: {self:?}"),
        }
    }

    /// Looks at all of a space on CPU 0, when nobody else does anything.
    fn check(&self, space: &Space<Stage<K4>>, pages: &[Page]) {
        self.rig.activate(0, space);
        let program = self.rig.program(space);
        for (number, page) in pages.iter().enumerate().filter(|(_, page)| page.unmapped == Phase::Ahead) {
            for (word, admitted) in page.words.iter().enumerate() {
                let seen = program.load(at(number).bytes() + own(word));
                let is_right = seen.is_ok_and(|seen| admitted.admits(seen));
                assert!(is_right, "word {word} of page {number} is {seen:?}, not {admitted:?}: {self:?}");
            }
        }
    }

    fn finish(self) {
        // What has not failed by now never does.
        self.rig.device.fail_after(u64::from(u32::MAX));
        self.rig.emu().check_all_groups();
        if self.is_beside(AtCap) {
            // Law 31: and what was read ahead, less one, if reclaim took a page at that moment.
            let (resident, cap) = (self.resident(0..self.count) as u64, self.rig.mm.least_cap_pages());
            assert!(resident <= cap + 7, "{resident} pages are there: {self:?}");
        }
        if self.is_beside(Free) {
            self.rig.mm.balance();
        }
        let pages = self.pages.lock().unwrap().clone();
        let children = std::mem::take(&mut *self.children.lock().unwrap());
        self.check(&self.space, &pages);
        children.iter().for_each(|(child, pages)| self.check(child, pages));
        if !self.is_beside(Unmap) {
            self.advise(ALL, Advice::PageOut);
        }
        self.check(&self.space, &pages);
        for (child, pages) in children {
            self.check(&child, &pages);
            self.rig.destroy(child);
        }
        self.rig.emu().check_all_groups();
        if self.rig.mm.totals().slots == 0 {
            self.rig.destroy(self.space);
            assert_eq!(self.rig.mm.totals().frames_free, self.rig.fresh.frames_free, "frames leaked: {}", self.told);
        } else {
            self.rig.finish(self.space);
        }
    }
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Call {
    /// Two pages, through which a device loads and stores.
    PinSome,
    /// mlock, and munlock once all pages were seen to stay.
    Lock,
    Collapse,
    /// Single pages in a part, and folios again.
    Prefer,
    WillNeed,
    /// Loads that go upwards, for which pages are read ahead.
    InOrder,
    /// Loads of pages that are out, by a space at its cap.
    AtCap,
    Store,
    Reclaim,
    PageOut,
    Fork,
    /// A child that ends at once.
    ForkEnd,
    Free,
    Unmap,
    Shut,
    SwapOff,
}

use Call::*;

impl Call {
    const WISHES: [Self; 6] = [PinSome, Lock, Collapse, Prefer, WillNeed, InOrder];
    const OTHERS: [Self; 9] = [Store, Reclaim, PageOut, Fork, ForkEnd, Free, Unmap, Shut, SwapOff];

    fn run(self, world: &World, cpu: usize) {
        world.rig.emu().set_cpu(cpu);
        match self {
            PinSome => world.pin_some(cpu),
            Lock => world.lock(cpu),
            Collapse => (0..2).for_each(|_| _ = world.space.collapse(&world.rig.mm, VirtAddr::new(0), 8)),
            Prefer => world.prefer(cpu),
            WillNeed => world.advise(ALL, Advice::WillNeed),
            InOrder => ALL.for_each(|page| world.load(cpu, page)),
            AtCap => LAST.for_each(|page| world.load(cpu, page)),
            Store => [0, 5, 11, 14, 8, 5].iter().for_each(|&page| world.store(cpu, page)),
            Reclaim => world.rig.mm.balance(),
            PageOut => world.advise(ALL, Advice::PageOut),
            Fork => world.fork(),
            ForkEnd => world.fork_and_end(),
            Free => world.free(),
            Unmap => world.unmap(),
            Shut => world.shut(),
            SwapOff => world.swap_off(),
        }
    }
}

/// Lets calls meet, each on a CPU of its own. Returns how often the library counted each of what `counters` name.
fn race<const N: usize>(schedules: usize, calls: &[Call], counters: [&'static str; N]) -> [u64; N] {
    let (calls, all) = (calls.to_vec(), Arc::new([const { AtomicU64::new(0) }; N]));
    let counted = Arc::clone(&all);
    explore_some(&format!("wishes {calls:?}"), schedules, move || {
        let world = World::new(&calls);
        let told = Told::of_a_schedule(&world.told);
        let task = |cpu: usize| calls[cpu].run(&world, cpu);
        meet(&vec![&task as _; calls.len()]);
        drop(told);
        for (count, name) in counted.iter().zip(counters) {
            count.fetch_add(world.rig.count(name), Relaxed);
        }
        world.finish();
    });
    std::array::from_fn(|index| all[index].load(Relaxed))
}

/// Fewer where there are so many races.
const OF_A_PAIR: usize = 100;

/// Every wish beside every other, and beside each call; and what they are for does happen.
#[test]
fn a_wish_beside_each_call() {
    let mut seen = [0; 2];
    for (index, &wish) in Call::WISHES.iter().enumerate() {
        for &other in Call::WISHES[index..].iter().chain(&Call::OTHERS) {
            let [collapses, ahead] = race(OF_A_PAIR, &[wish, other], ["collapses", "swap_in_ahead"]);
            seen = [seen[0] + collapses, seen[1] + ahead];
        }
    }
    let [collapses, ahead] = seen;
    assert!(collapses > 0 && ahead > 0 || !is_whole(), "{collapses} collapses, {ahead} pages ahead");
}

#[test]
fn a_wish_beside_two_calls() {
    for wish in Call::WISHES {
        for other in [Store, Fork, ForkEnd, Free, Unmap, PageOut, SwapOff] {
            race(OF_A_PAIR, &[wish, other, Reclaim], []);
        }
        for other in [Unmap, Fork, Free, SwapOff] {
            race(OF_A_PAIR, &[wish, other, Store], []);
        }
    }
}

/// A space's own reclaim meets what others do to the same pages.
#[test]
fn a_space_at_its_cap_beside_each_call() {
    for other in [AtCap, Store, Reclaim, PageOut, Free, Unmap, PinSome] {
        let [reclaims] = race(OF_A_PAIR / 2, &[AtCap, other], ["cap_reclaims"]);
        assert!(reclaims > 0 || !is_whole(), "the cap was never reached");
    }
}

/// While a part of a folio that was given up waits for its flush, reclaim may look for pins of the rest under one hold of
/// the table's lock and take it out under another. Who pins a page of it comes before both, or after.
#[test]
fn a_pin_beside_reclaim_of_what_is_left() {
    explore_some("a pin of what is left", 400, || {
        let setup = Setup { frames: 80, slots: 128, tag_rooms: 64, cpus: 2, va_bits: 32, ..Setup::default() };
        let rig = Rig::<K4>::new(setup);
        let space = rig.space();
        // There may be others that have its pages.
        let child = space.fork(&rig.mm).unwrap();
        rig.map(&space, BASE, 16, RWT);
        ALL.for_each(|page| rig.program(&space).store(at(page).bytes() + own(0), 1).unwrap());
        assert_eq!(rig.count("large_folios"), 1);
        rig.map(&space, 2 * BASE, 128, RWT);
        let is_short = |page: u64| {
            rig.program(&space).store(2 * BASE + page * PAGE, 1).unwrap();
            rig.count("background_wakes") > 0
        };
        assert!((0..128).any(is_short));
        space.advise(&rig.mm, at(0), 16 * PAGE, Advice::Cold).unwrap();
        let pins = Mutex::new(Vec::new());
        let give_up_and_pin = |cpu: usize| {
            rig.emu().set_cpu(cpu);
            space.advise(&rig.mm, at(8), 8 * PAGE, Advice::DontNeed).unwrap();
            pins.lock().unwrap().push(space.pin(&rig.mm, at(5), space::Access::Write).unwrap());
        };
        let reclaim = |cpu: usize| {
            rig.emu().set_cpu(cpu);
            rig.mm.balance();
        };
        meet(&[&give_up_and_pin, &reclaim]);
        for pin in pins.into_inner().unwrap() {
            rig.emu().device_store(rig.mm.pinned(&pin), own(1) as usize / 8, 9);
            assert_eq!(rig.program(&space).load(at(5).bytes() + own(1)), Ok(9));
            rig.mm.unpin(pin);
        }
        rig.destroy(child);
        rig.finish(space);
    });
}
