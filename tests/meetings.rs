//! Spaces of one fork tree that meet at the pages they share: a call of one is interrupted before each of its steps by
//! a call of the other.
//!
//! `tests/races_shared.rs` explores the same meetings by chance, with many changes of turns; here there is one, and it
//! is tried everywhere (`support::stage::meanwhile`). What a space holds follows from its own program alone; that is
//! the model. At the end every page of every space is looked at, once more after all of it went out, and once more
//! after all was stored to; and everything is given back.

mod support;

use std::sync::{Arc, Mutex};

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::reclaim::Advice;
use ebbtide::swap::{DeviceFlags, SwapOffError};

use support::entries::{VALID, check_sharing, entries};
use support::stage::meanwhile;
use support::{RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
const PAGES: usize = 16;
/// The page that a program goes to.
const HERE: usize = 5;
/// The pages that one gives up, behind that.
const PART: std::ops::Range<usize> = 8..12;
/// The pages that the parent has given up before.
const TAIL: std::ops::Range<usize> = 12..16;

/// Each space's word of a page, and its tag.
fn at(page: usize, who: usize) -> u64 {
    BASE + page as u64 * PAGE + 64 * (who as u64 + 1)
}

const TAG: u64 = 2048;
const OLD: usize = 8;

/// Where the pages are when the two meet.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Start {
    InMemory,
    Out,
    /// They were out, and the child has loaded all of them.
    Back,
    /// The same, and the parent has some of them no more.
    BackInPart,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Call {
    Load,
    Store,
    LoadAll,
    PageOut,
    Drop,
    Fork,
    End,
    SwapOff,
}

use Call::*;

/// When the pages are looked at.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Look {
    AtOnce,
    /// They leave as the meeting left them.
    WhenTheyHaveLeft,
}

#[derive(Copy, Clone, Debug)]
struct Meeting {
    start: Start,
    look: Look,
    device: DeviceFlags,
    orders: Option<FolioOrders>,
    /// What the interrupted space does, and the other.
    calls: [Call; 2],
    /// Which of parent (0) and child (1) is interrupted.
    first: usize,
}

/// What a page of a space holds: the word from before fork, what the space itself stored, and the tag.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
struct Page {
    old: u64,
    own: u64,
    tag: u8,
}

/// A space, what it holds, and which word is its own.
struct Member {
    /// `None` when it has ended.
    space: Mutex<Option<Arc<Space<Stage<K4>>>>>,
    pages: Mutex<[Page; PAGES]>,
    word: usize,
}

impl Member {
    fn new(space: Space<Stage<K4>>, pages: [Page; PAGES], word: usize) -> Self {
        Self { space: Mutex::new(Some(Arc::new(space))), pages: Mutex::new(pages), word }
    }

    fn space(&self) -> Option<Arc<Space<Stage<K4>>>> {
        self.space.lock().unwrap().clone()
    }

    fn end(&self, rig: &Rig) {
        let space = self.space.lock().unwrap().take().and_then(Arc::into_inner).expect("nobody else has it");
        assert!(space.destroy(&rig.mm).is_ok(), "no CPU runs it");
    }
}

struct Scene<'a> {
    rig: &'a Rig,
    told: Meeting,
    /// Parent and child.
    members: [Member; 2],
    /// Those that were forked meanwhile.
    others: Mutex<Vec<Member>>,
}

impl<'a> Scene<'a> {
    fn new(rig: &'a Rig, told: Meeting) -> Self {
        let parent = rig.space();
        rig.map(&parent, BASE, PAGES as u64, RWT);
        let mut pages = [Page::default(); PAGES];
        for (number, page) in pages.iter_mut().enumerate() {
            *page = Page { old: number as u64 + 1, own: 0, tag: number as u8 % 9 + 1 };
            rig.program(&parent).store(at(number, OLD), page.old).unwrap();
            rig.program(&parent).stg(BASE + number as u64 * PAGE + TAG, page.tag).unwrap();
        }
        let child = parent.fork(&rig.mm).unwrap();
        let mut parents = pages;
        if told.start != Start::InMemory {
            advise(rig, &parent, 0..PAGES, Advice::PageOut);
        }
        rig.activate(0, &child);
        if matches!(told.start, Start::Back | Start::BackInPart) {
            run_up(rig, &child);
        }
        if told.start == Start::BackInPart {
            advise(rig, &parent, TAIL, Advice::DontNeed);
            parents[TAIL].fill(Page::default());
        }
        if matches!(told.start, Start::Back | Start::BackInPart) {
            (0..PAGES).for_each(|page| assert_eq!(rig.program(&child).load(at(page, OLD)), Ok(page as u64 + 1)));
            assert_eq!(rig.count("swap_in_folios"), u64::from(told.orders.is_none()), "{told:?}");
        }
        rig.activate(0, &parent);
        rig.activate(1, &child);
        Self {
            rig,
            told,
            members: [Member::new(parent, parents, 0), Member::new(child, pages, 1)],
            others: Mutex::default(),
        }
    }

    /// What a space does, on the CPU of its number.
    fn act(&self, who: usize, call: Call) {
        let (rig, told, member) = (self.rig, self.told, &self.members[who]);
        rig.emu().set_cpu(who);
        match call {
            SwapOff => return self.swap_off(),
            End => {
                rig.idle(who);
                return member.end(rig);
            }
            _ => {}
        }
        let space = member.space().expect("it has not ended");
        let program = rig.program_on(who, &space);
        let mut pages = member.pages.lock().unwrap();
        match call {
            Load => assert_eq!(program.load(at(HERE, OLD)), Ok(pages[HERE].old), "{told:?}"),
            Store => {
                pages[HERE].own = 100;
                assert_eq!(program.store(at(HERE, who), 100), Ok(()), "{told:?}");
            }
            LoadAll => (0..PAGES).for_each(|page| {
                assert_eq!(program.load(at(page, OLD)), Ok(pages[page].old), "{told:?}");
            }),
            PageOut => advise(rig, &space, 0..PAGES, Advice::PageOut),
            Drop => {
                advise(rig, &space, PART, Advice::DontNeed);
                pages[PART].fill(Page::default());
            }
            Fork => {
                let other = space.fork(&rig.mm).expect("there is memory");
                self.others.lock().unwrap().push(Member::new(other, *pages, who));
            }
            End | SwapOff => {}
        }
    }

    /// Turns the area off. Of a space that comes or goes meanwhile it is not told.
    fn swap_off(&self) {
        let spaces: Vec<_> = self.members.iter().filter_map(Member::space).collect();
        let spaces: Vec<_> = spaces.iter().map(Arc::as_ref).collect();
        let done = self.rig.mm.swap_off(self.rig.area.expect("there is one"), &spaces);
        let hides = self.told.calls.contains(&Fork);
        assert!(done.is_ok() || hides && matches!(done, Err(SwapOffError::InUse(_))), "{done:?}: {:?}", self.told);
    }

    fn check(&self, member: &Member) {
        let (rig, told) = (self.rig, self.told);
        let Some(space) = member.space() else { return };
        rig.activate(0, &space);
        let program = rig.program(&space);
        for (number, &page) in member.pages.lock().unwrap().iter().enumerate() {
            let seen = Page {
                old: program.load(at(number, OLD)).unwrap(),
                own: program.load(at(number, member.word)).unwrap(),
                tag: program.ldg(BASE + number as u64 * PAGE + TAG).unwrap(),
            };
            assert_eq!(seen, page, "page {number} of space {}: {told:?}", member.word);
            assert_eq!(program.load(at(number, 1 - member.word)), Ok(0), "page {number}, the other's word: {told:?}");
        }
    }

    fn check_all(&self) {
        let others = self.others.lock().unwrap();
        let all = || self.members.iter().chain(others.iter());
        let check_sharing = || {
            let spaces: Vec<_> = all().filter_map(Member::space).collect();
            let spaces: Vec<_> = spaces.iter().map(Arc::as_ref).collect();
            check_sharing(self.rig, &spaces, BASE, PAGES as u64, &self.told);
        };
        check_sharing();
        all().for_each(|member| self.check(member));
        check_sharing();
    }

    fn finish(self) {
        let rig = self.rig;
        rig.idle(1);
        let all = || self.members.iter();
        if self.told.look == Look::AtOnce {
            self.check_all();
        }
        all().filter_map(Member::space).for_each(|space| advise(rig, &space, 0..PAGES, Advice::PageOut));
        for space in all().filter_map(Member::space).filter(|_| rig.mm.totals().slots > 0) {
            let stays = entries(rig, &space, BASE, PAGES as u64).iter().filter(|&&raw| raw & VALID != 0).count();
            assert_eq!(stays, 0, "pages that cannot leave: {:?}", self.told);
        }
        self.check_all();
        for member in all() {
            let Some(space) = member.space() else { continue };
            rig.activate(0, &space);
            for (number, page) in member.pages.lock().unwrap().iter_mut().enumerate() {
                page.own = 200;
                rig.program(&space).store(at(number, member.word), page.own).unwrap();
            }
        }
        self.check_all();
        rig.emu().check_all_groups();
        rig.idle(0);
        let others = self.others.lock().unwrap();
        all().chain(others.iter()).filter(|member| member.space().is_some()).for_each(|member| member.end(rig));
        let (now, fresh) = (rig.mm.totals(), rig.fresh);
        assert!(now == fresh || now.slots == 0 && now.frames_free == fresh.frames_free, "{now:?}: {:?}", self.told);
    }
}

/// A program that goes through memory in order, to the first of the pages: a large folio comes back as one for it. A
/// page comes in from a region of its own, right before; then that is gone.
fn run_up(rig: &Rig, space: &Space<Stage<K4>>) {
    let before = BASE - PAGE;
    rig.map(space, before, 1, RWT);
    rig.program(space).store(before, 1).unwrap();
    space.advise(&rig.mm, VirtAddr::new(before), PAGE, Advice::PageOut).unwrap();
    assert_eq!(rig.program(space).load(before), Ok(1));
    space.unmap(&rig.mm, VirtAddr::new(before), PAGE).unwrap();
}

fn advise(rig: &Rig, space: &Space<Stage<K4>>, pages: std::ops::Range<usize>, advice: Advice) {
    let start = VirtAddr::new(BASE + pages.start as u64 * PAGE);
    space.advise(&rig.mm, start, pages.len() as u64 * PAGE, advice).unwrap();
}

/// Lets the two meet at every step.
fn meet(told: Meeting) {
    meanwhile(|raise| {
        let setup = Setup { frames: 192, slots: 64, tag_rooms: 64, cpus: 2, ..Setup::default() };
        let rig = Rig::new(Setup { device: told.device, orders: told.orders, ..setup });
        let scene = Scene::new(&rig, told);
        let [first, other] = [told.first, 1 - told.first];
        raise(&mut || scene.act(first, told.calls[0]), &|| scene.act(other, told.calls[1]));
        scene.finish();
    });
}

/// Every kind of device and folio, for calls of few steps.
const EACH: [(DeviceFlags, Option<FolioOrders>); 3] = [
    (DeviceFlags::SYNCHRONOUS, None),
    (DeviceFlags::STABLE_WRITES, None),
    (DeviceFlags::STABLE_WRITES, Some(FolioOrders::SINGLE)),
];
/// A device that takes its time, and a large folio: where most can happen in between.
const LATE: [(DeviceFlags, Option<FolioOrders>); 1] = [(DeviceFlags::STABLE_WRITES, None)];

/// Lets each of `calls` be interrupted by each of `others`, from everywhere.
fn meetings(look: Look, kinds: &[(DeviceFlags, Option<FolioOrders>)], calls: &[Call], others: &[Call]) {
    let starts = [Start::InMemory, Start::Out, Start::Back, Start::BackInPart];
    for start in starts.into_iter().filter(|&start| start != Start::InMemory || !calls.contains(&SwapOff)) {
        for &(device, orders) in kinds {
            for calls in calls.iter().flat_map(|&call| others.iter().map(move |&other| [call, other])) {
                [0, 1].iter().for_each(|&first| meet(Meeting { start, look, device, orders, calls, first }));
            }
        }
    }
}

/// What an access meets.
const OTHERS: [Call; 8] = [Load, Store, LoadAll, PageOut, Drop, Fork, End, SwapOff];

#[test]
fn an_access_is_interrupted() {
    meetings(Look::AtOnce, &EACH, &[Load, Store], &OTHERS);
}

#[test]
fn pageout_is_interrupted() {
    meetings(Look::AtOnce, &LATE, &[PageOut], &[Store, PageOut, End, SwapOff]);
}

#[test]
fn fork_is_interrupted() {
    meetings(Look::AtOnce, &LATE, &[Fork], &[Store, PageOut]);
}

#[test]
fn the_end_is_interrupted() {
    meetings(Look::AtOnce, &LATE, &[End], &[Load, Store, PageOut]);
}

#[test]
fn swapoff_is_interrupted() {
    meetings(Look::AtOnce, &LATE, &[SwapOff], &[Store, PageOut]);
}

#[test]
fn what_has_met_can_leave() {
    meetings(Look::WhenTheyHaveLeft, &EACH, &[Load, Store], &[Load, Drop, End]);
}

/// A page that the device refused has its tags with the slot already, for whoever names that: who has it last stores to
/// it, and what leaves then is what was stored.
#[test]
fn what_was_refused_leaves_as_it_was_stored_to_last() {
    let tag = |round: u64, granule: u64| (granule * granule / 3 + round) as u8 & 0xf;
    let place = |granule: u64| BASE + granule * 16;
    meanwhile(|raise| {
        let setup = Setup { cpus: 2, orders: Some(FolioOrders::SINGLE), ..Setup::default() };
        let rig = Rig::new(setup);
        let parent = rig.space();
        let store = |round: u64| {
            (0..256).for_each(|granule| rig.program(&parent).stg(place(granule), tag(round, granule)).unwrap());
            rig.program(&parent).store(tagged(BASE, tag(round, 0)), round).unwrap();
        };
        rig.map(&parent, BASE, 2, RWT);
        store(1);
        let child = parent.fork(&rig.mm).unwrap();
        rig.device.fail_after(0);
        advise(&rig, &parent, 0..1, Advice::PageOut);
        assert_eq!((rig.count("write_errors"), rig.count("tags_raw")), (1, 1));
        assert_eq!(rig.program(&parent).load(tagged(BASE, tag(1, 0))), Ok(1));
        raise(&mut || rig.emu().on_cpu(1, || advise(&rig, &child, 0..2, Advice::DontNeed)), &|| {
            store(2);
            advise(&rig, &parent, 0..1, Advice::PageOut);
        });
        for granule in 0..256 {
            assert_eq!(rig.program(&parent).ldg(place(granule)), Ok(tag(2, granule)), "granule {granule}");
        }
        assert_eq!(rig.program(&parent).load(tagged(BASE, tag(2, 0))), Ok(2));
        rig.destroy(child);
        rig.finish(parent);
    });
}
