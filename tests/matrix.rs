//! Every way in which three generations, swap and pins can meet at one page.
//!
//! A cell of the table is one life: a parent with a page, a child and a grandchild; the page is in memory, out, kept
//! after a failed write or under way to its device; pinned or not; of a folio of one page or of sixteen; forked before
//! it leaves or after. Then one of the three stores to it, and one of them ends. In every cell:
//!
//! - each space reads what the model says, words and tags;
//! - no two spaces have one frame writable, nor a slot that one of them believes to be its own;
//! - a pin shows its owner's page, both ways, and stays at its frame;
//! - at the end everything is back.

mod support;

use std::sync::{Arc, Mutex};

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::Machine;
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::Advice;
use ebbtide::space::{Access, Pin};
use ebbtide::swap::DeviceFlags;

use support::entries::{VALID, check_sharing, entries, frame_of};
use support::stage::{AT_FINISH, beside, in_turns};
use support::{RW, RWT, Rig, Setup, Stage};

const BASE: u64 = 0x4000_0000;
/// Where memory is filled from, for reclaim to have work.
const HOG: u64 = 1 << 40;
const PAGE: u64 = 4096;
const FRAMES: u64 = 224;

const PARENT: usize = 0;
const CHILD: usize = 1;
const PEOPLE: usize = 3;

/// Where the page is when it is stored to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Place {
    Present,
    Out,
    /// Out, on a device that takes its time, so that a page which came in for a load keeps its slot.
    OutLate,
    /// Its write failed: it is in the swap cache, and the only copy.
    Kept,
    /// The device has been asked to write it, and is not done.
    UnderWay,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Pinned {
    Never,
    ByTheParentBeforeFork,
    ByTheChildAfterFork,
    /// The same, and the pin is only for loads.
    ByTheChildToLoad,
    /// By the parent before fork, until the store.
    Before,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Fork {
    BeforeItLeaves,
    AfterItLeft,
}

/// When the first of the three ends.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum End {
    BeforeTheStore,
    AfterIt,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Cell {
    writer: usize,
    first_to_end: usize,
    end: End,
    place: Place,
    pinned: Pinned,
    order: u32,
    fork: Fork,
}

impl Cell {
    /// All cells of a place.
    fn all(place: Place) -> impl Iterator<Item = Self> {
        let pins = [
            Pinned::Never,
            Pinned::ByTheParentBeforeFork,
            Pinned::ByTheChildAfterFork,
            Pinned::ByTheChildToLoad,
            Pinned::Before,
        ];
        let forks = [Fork::BeforeItLeaves, Fork::AfterItLeft];
        let ends = [End::BeforeTheStore, End::AfterIt];
        // A number for each cell, whose digits are its properties.
        (0..PEOPLE * PEOPLE * 40).map(move |cell| Self {
            writer: cell / 40 % PEOPLE,
            first_to_end: cell / 40 / PEOPLE,
            end: ends[cell % 2],
            place,
            pinned: pins[cell / 8 % 5],
            order: [0, 4][cell / 2 % 2],
            fork: forks[cell / 4 % 2],
        })
    }

    fn exists(&self) -> bool {
        // A page that never leaves has no fork after it left.
        let leaves = self.place != Place::Present || self.fork == Fork::BeforeItLeaves;
        // Who has ended stores no more; and a space that waits for the device, in a call of its own, does not end.
        let may_end = self.first_to_end != self.writer && self.place != Place::UnderWay;
        leaves && (may_end || self.end == End::AfterIt)
    }

    /// The page of the folio that all this is about.
    fn page(&self) -> usize {
        if self.order == 0 { 0 } else { 5 }
    }

    fn is_pinned_before_fork(&self) -> bool {
        matches!(self.pinned, Pinned::ByTheParentBeforeFork | Pinned::Before)
    }

    /// Who has a page that can leave, and what of the folio: what the parent has pinned stays in memory, but at fork
    /// the child gets copies, page by page.
    fn leaves(&self) -> (usize, std::ops::Range<usize>) {
        if self.is_pinned_before_fork() && self.fork == Fork::BeforeItLeaves {
            (CHILD, self.page()..self.page() + 1)
        } else {
            (PARENT, 0..1 << self.order)
        }
    }
}

/// What a page holds: a word from before fork, one that each of the three stores to, and the device's; and a tag.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
struct Page {
    words: [u64; PEOPLE + 2],
    tag: u8,
}

const DEVICES: usize = PEOPLE + 1;
const TAG: u64 = 2048;

/// The place of a page's word.
fn at(page: usize, word: usize) -> u64 {
    BASE + page as u64 * PAGE + 64 * (word as u64 + 1)
}

struct Member {
    /// `None` when it has ended.
    space: Option<Arc<Space<Stage<K4>>>>,
    pages: Vec<Page>,
}

/// One cell's life.
struct Life<'a> {
    cell: Cell,
    rig: &'a Rig,
    members: Vec<Member>,
    pin: Option<(usize, Pin)>,
    /// The last that was stored.
    value: u64,
}

fn rig(cell: Cell) -> Rig {
    let device = if cell.place == Place::Out { DeviceFlags::SYNCHRONOUS } else { DeviceFlags::STABLE_WRITES };
    let orders = (cell.order == 0).then_some(FolioOrders::SINGLE);
    let seed = 1 + cell.writer as u64 + 3 * cell.first_to_end as u64;
    let adversary = [Adversary::Quiet, Adversary::Full][seed as usize % 2];
    Rig::new(Setup { frames: FRAMES, slots: 256, cpus: 2, device, orders, adversary, seed, ..Setup::default() })
}

impl<'a> Life<'a> {
    fn new(cell: Cell, rig: &'a Rig) -> Self {
        let space = rig.space();
        let pages = 1 << cell.order;
        rig.map(&space, BASE, pages as u64, RWT);
        let members = vec![Member { space: Some(Arc::new(space)), pages: vec![Page::default(); pages] }];
        let mut life = Self { cell, rig, members, pin: None, value: 0 };
        for page in 0..pages {
            life.store(PARENT, page, PEOPLE);
            life.tag(PARENT, page, 1 + page as u8 % 9);
        }
        assert_eq!(rig.count("large_folios"), u64::from(cell.order > 0));
        life
    }

    fn space(&self, who: usize) -> Arc<Space<Stage<K4>>> {
        Arc::clone(self.members[who].space.as_ref().expect("it has not ended"))
    }

    fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|&who| self.members[who].space.is_some())
    }

    /// Runs a program's access on the CPU that the calling thread plays.
    fn run<R>(&self, who: usize, access: impl FnOnce(support::Program<'_, K4>) -> R) -> R {
        let (space, cpu) = (self.space(who), self.rig.emu().cpu());
        self.rig.activate(cpu, &space);
        in_turns(1000, || access(self.rig.program_on(cpu, &space)))
    }

    fn store(&mut self, who: usize, page: usize, word: usize) {
        self.value += 1;
        let value = self.value;
        self.run(who, |program| program.store(at(page, word), value)).unwrap();
        self.members[who].pages[page].words[word] = value;
    }

    fn tag(&mut self, who: usize, page: usize, tag: u8) {
        self.run(who, |program| program.stg(BASE + page as u64 * PAGE + TAG, tag)).unwrap();
        self.members[who].pages[page].tag = tag;
    }

    /// A store of its own, and a tag.
    fn write(&mut self, who: usize) {
        self.store(who, self.cell.page(), who);
        self.tag(who, self.cell.page(), 10 + who as u8);
    }

    fn fork(&mut self, who: usize) {
        let space = self.space(who).fork(&self.rig.mm).unwrap();
        let pages = self.members[who].pages.clone();
        self.members.push(Member { space: Some(Arc::new(space)), pages });
    }

    fn pin(&mut self, who: usize) {
        let page = self.cell.page();
        let access = if self.cell.pinned == Pinned::ByTheChildToLoad { Access::Read } else { Access::Write };
        let pin = self.space(who).pin(&self.rig.mm, VirtAddr::new(at(page, 0)), access).unwrap();
        self.pin = Some((who, pin));
        self.device_stores();
    }

    fn device_stores(&mut self) {
        let Some((owner, pin)) = self.pin.as_ref().filter(|_| self.cell.pinned != Pinned::ByTheChildToLoad) else {
            return;
        };
        self.value += 1;
        self.rig.emu().device_store(self.rig.mm.pinned(pin), (at(0, DEVICES) - BASE) as usize / 8, self.value);
        self.members[*owner].pages[self.cell.page()].words[DEVICES] = self.value;
    }

    fn unpin(&mut self) {
        if let Some((_, pin)) = self.pin.take() {
            self.rig.mm.unpin(pin);
        }
    }

    /// The two forks, with the pins around them.
    fn forks(&mut self) {
        if self.cell.is_pinned_before_fork() {
            self.pin(PARENT);
        }
        self.fork(PARENT);
        self.fork(CHILD);
        if matches!(self.cell.pinned, Pinned::ByTheChildAfterFork | Pinned::ByTheChildToLoad) {
            self.pin(CHILD);
        }
    }

    /// The store that the cell is about.
    fn act(&mut self) {
        if self.cell.pinned == Pinned::Before {
            self.unpin();
        }
        if self.cell.end == End::BeforeTheStore {
            self.end(self.cell.first_to_end);
            self.check_sharing();
        }
        self.write(self.cell.writer);
    }

    /// Looks at everything.
    fn check(&self) {
        let cell = self.cell;
        self.check_sharing();
        for who in self.alive() {
            for (page, expected) in self.members[who].pages.iter().enumerate() {
                let words = [0, 1, 2, 3, 4];
                let seen = self.run(who, |program| words.map(|word| program.load(at(page, word)).unwrap()));
                let tag = self.run(who, |program| program.ldg(BASE + page as u64 * PAGE + TAG).unwrap());
                assert_eq!(Page { words: seen, tag }, *expected, "page {page} of space {who}: {cell:?}");
            }
            self.check_sharing();
        }
        let Some((owner, pin)) = &self.pin else { return };
        let (frame, page) = (self.rig.mm.pinned(pin), cell.page());
        for (word, &expected) in self.members[*owner].pages[page].words.iter().enumerate() {
            let seen = self.rig.emu().device_load(frame, (at(0, word) - BASE) as usize / 8);
            assert_eq!(seen, expected, "word {word} by the pin: {cell:?}");
        }
        for who in self.alive() {
            let raw = entries(self.rig, &self.space(who), BASE, 1 << cell.order)[page];
            let shows = raw & VALID != 0 && frame_of(raw) == frame.number();
            assert_eq!(shows, who == *owner, "space {who} and the pinned frame: {cell:?}");
        }
    }

    /// Looks at the entries as memory holds them.
    fn check_sharing(&self) {
        let spaces: Vec<_> = self.members.iter().filter_map(|member| member.space.as_deref()).collect();
        check_sharing(self.rig, &spaces, BASE, 1 << self.cell.order, &self.cell);
    }

    /// The page's state by the log, in a space that nobody is in.
    fn is(&self, who: usize, state: &str) {
        let space = self.space(who);
        let said = space.explain(&self.rig.mm, VirtAddr::new(at(self.cell.page(), 0))).to_string();
        assert!(said.contains(state), "not {state}, but {said}: {:?}", self.cell);
    }

    fn end(&mut self, who: usize) {
        let space = self.members[who].space.take().and_then(Arc::into_inner);
        self.rig.destroy(space.expect("nobody else has it"));
    }

    fn finish(mut self) {
        if self.cell.end == End::AfterIt {
            self.end(self.cell.first_to_end);
        }
        self.check();
        for who in self.alive().collect::<Vec<_>>() {
            self.write(who);
            if self.pin.as_ref().is_some_and(|(owner, _)| *owner == who) {
                self.device_stores();
            }
            self.check();
        }
        // Once more all the way out, and back.
        for who in self.alive() {
            out(self.rig, &self.space(who), 0..1 << self.cell.order);
        }
        self.check();
        self.unpin();
        self.check();
        self.alive().collect::<Vec<_>>().into_iter().for_each(|who| self.end(who));
        self.rig.emu().check_all_groups();
        assert_eq!(self.rig.mm.totals(), self.rig.fresh, "{:?}", self.cell);
    }
}

fn out(rig: &Rig, space: &Space<Stage<K4>>, pages: std::ops::Range<usize>) {
    let start = VirtAddr::new(BASE + pages.start as u64 * PAGE);
    space.advise(&rig.mm, start, pages.len() as u64 * PAGE, Advice::PageOut).unwrap();
}

/// A life in which things happen one after the other.
fn in_turn(cell: Cell) {
    let rig = rig(cell);
    let mut life = Life::new(cell, &rig);
    if cell.fork == Fork::BeforeItLeaves {
        life.forks();
        life.check_sharing();
    }
    let (who, pages) = cell.leaves();
    if cell.place == Place::Kept {
        rig.device.fail_after(0);
    }
    if cell.place != Place::Present {
        out(&rig, &life.space(who), pages);
    }
    rig.device.fail_after(u64::from(u32::MAX));
    match cell.place {
        Place::Present | Place::UnderWay => life.is(who, "Leaf("),
        Place::Out | Place::OutLate => life.is(who, "Out {"),
        Place::Kept => life.is(who, "Cached {"),
    }
    if cell.fork == Fork::AfterItLeft {
        life.forks();
        life.check_sharing();
    }
    life.act();
    life.check();
    life.finish();
}

/// A life in which another CPU does the rest while the device writes the page.
fn beside_the_device(cell: Cell) {
    let rig = rig(cell);
    let mut life = Life::new(cell, &rig);
    let (who, pages) = cell.leaves();
    if cell.fork == Fork::BeforeItLeaves {
        life.forks();
    }
    let space = life.space(who);
    let hog = (cell.fork == Fork::AfterItLeft).then(|| fill(&rig, &space));
    let life = Mutex::new(life);
    let mut leave = || match cell.fork {
        Fork::BeforeItLeaves => out(&rig, &space, pages.clone()),
        // A space that asks for it itself is not forked until the device is done.
        Fork::AfterItLeft => rig.mm.balance(),
    };
    let was_under_way = beside(AT_FINISH, &mut leave, &|| {
        rig.emu().set_cpu(1);
        let life = &mut *life.lock().unwrap();
        if cell.fork == Fork::AfterItLeft {
            life.forks();
        }
        life.act();
    });
    assert!(was_under_way, "nothing was under way: {cell:?}");
    drop(space);
    hog.into_iter().for_each(|hog| rig.destroy(hog));
    let life = life.into_inner().unwrap();
    life.check();
    life.finish();
}

/// Memory is short from here on, and what the space has is what leaves first.
fn fill(rig: &Rig, space: &Space<Stage<K4>>) -> Space<Stage<K4>> {
    let hog = rig.space();
    rig.map(&hog, HOG, FRAMES, RW);
    let touch = |page| rig.program(&hog).store(HOG + page * PAGE, page + 1).is_ok();
    assert!((0..FRAMES).take_while(|_| rig.count("background_wakes") == 0).all(touch));
    assert_eq!(rig.count("scanned"), 0, "nothing has left yet");
    let pages = entries(rig, space, BASE, 16).iter().filter(|&&raw| raw & VALID != 0).count();
    space.advise(&rig.mm, VirtAddr::new(BASE), pages as u64 * PAGE, Advice::Cold).unwrap();
    hog
}

fn play(place: Place, cells: usize) {
    let play = if place == Place::UnderWay { beside_the_device } else { in_turn };
    assert_eq!(Cell::all(place).filter(Cell::exists).map(play).count(), cells);
}

#[test]
fn in_memory() {
    play(Place::Present, 150);
}

#[test]
fn out_and_shared() {
    play(Place::Out, 300);
}

#[test]
fn out_and_kept_in_its_slot() {
    play(Place::OutLate, 300);
}

#[test]
fn kept_after_a_failed_write() {
    play(Place::Kept, 300);
}

#[test]
fn under_way_to_the_device() {
    play(Place::UnderWay, 180);
}
