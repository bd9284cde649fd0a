//! Every edge of a run against every edge of a group.
//!
//! Three neighbouring groups of one region are brought into a state, one operation is done on a run of their pages, and
//! then each page of the three is looked at: its entry, what the program reads, which rights it has. What lies outside
//! the run must be as it was, bit for bit; only a group that the run cuts may lose the contiguous bit, or get it back,
//! and then its entries have the history of all. After that a few pages of either side are used, and all is looked at
//! again.
//!
//! At the granule of 4 KiB all 1176 runs are tried. The groups of the others have 128 and 32 pages: there all runs
//! that begin and end at most two pages from an edge of a group are tried, and a sample of the rest.

mod support;

use std::ops::Range;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::{Access, Adversary};
use ebbtide::reclaim::Advice;
use ebbtide::space::{FaultError, Protection};

use support::entries::{ACCESSED, UXN, VALID, entries, folded, is_dirty, lasting};
use support::{Dice, Ended, Program, RW, RWXT, Rig, Setup, Stage, refusal};

/// The first page of the first group, at every granule.
const BASE: u64 = 0x4000_0000;
const GROUPS: usize = 3;

/// How the groups' pages came.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum State {
    /// Each in one large folio.
    Folded,
    /// Each page on its own.
    Plain,
    /// The first as a large folio; the second as single pages; the third as a large folio whose group is broken up, as
    /// some of its pages are read-only.
    Mixed,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Act {
    /// PROT_READ.
    Read,
    /// PROT_NONE.
    Shut,
    /// PROT_READ, and then with PROT_WRITE.
    ReadThenWrite,
    /// All rights, and PROT_MTE, of an untagged region.
    Tag,
    Unmap,
    DontNeed,
    Free,
    Cold,
    PageOut,
}

impl Act {
    const ALL: [Self; 9] = [
        Self::Read,
        Self::Shut,
        Self::ReadThenWrite,
        Self::Tag,
        Self::Unmap,
        Self::DontNeed,
        Self::Free,
        Self::Cold,
        Self::PageOut,
    ];

    /// The protection that the run's pages have afterwards, if the act is about that.
    fn protection(self) -> Option<Protection> {
        match self {
            Self::Read => Some(Protection::READ),
            Self::Shut => Some(Protection::empty()),
            Self::ReadThenWrite => Some(RW),
            Self::Tag => Some(RWXT),
            _ => None,
        }
    }
}

/// What the program knows of a page: the word at its start, and the tag of its second granule.
#[derive(Copy, Clone)]
struct Known {
    /// `None`: not mapped.
    protection: Option<Protection>,
    word: u64,
    tag: u8,
}

/// One act on one run.
struct Case<'a, G: Granule> {
    rig: &'a Rig<G>,
    space: Space<Stage<G>>,
    state: State,
    act: Act,
    run: Range<usize>,
    pages: Vec<Known>,
    /// Walkers set access flags when they like.
    noisy: bool,
}

impl<'a, G: Granule> Case<'a, G> {
    const GROUP: usize = G::GROUP_PAGES;
    const PAGES: usize = GROUPS * G::GROUP_PAGES;

    fn at(page: usize) -> u64 {
        BASE + ((page as u64) << G::SHIFT)
    }

    fn group(page: usize) -> Range<usize> {
        let first = page - page % Self::GROUP;
        first..first + Self::GROUP
    }

    /// The pages of the third group that are read-only in a mixed state.
    fn odd() -> Range<usize> {
        let first = 2 * Self::GROUP + Self::GROUP / 4 + 1;
        first..first + 3
    }

    fn new(rig: &'a Rig<G>, state: State, act: Act, run: Range<usize>) -> Self {
        let space = rig.space();
        let all = RWXT;
        let protection = if act == Act::Tag { all - Protection::TAGGED } else { all };
        rig.map(&space, BASE, Self::PAGES as u64, protection);
        let known = Known { protection: Some(protection), word: 0, tag: 0 };
        let noisy = rig.emu().config().adversary == Adversary::Full;
        let mut case = Self { rig, space, state, act, run, pages: vec![known; Self::PAGES], noisy };
        case.come();
        case
    }

    fn program(&self) -> Program<'_, G> {
        self.rig.program(&self.space)
    }

    /// Whether one folio has all pages of the group.
    fn is_large(&self, group: usize) -> bool {
        match self.state {
            State::Folded => true,
            State::Plain => false,
            State::Mixed => group != 1,
        }
    }

    /// Brings the groups into their state. Neighbours differ: in contents, tags, access flag, dirty, and the right to
    /// fetch.
    fn come(&mut self) {
        for page in 0..Self::PAGES {
            let large = self.is_large(page / Self::GROUP);
            self.rig.mm.set_folio_orders(if large { FolioOrders::group::<G>() } else { FolioOrders::SINGLE });
            assert_eq!(self.program().load(Self::at(page)), Ok(0));
        }
        self.advise(0..Self::PAGES, Advice::Cold);
        assert_eq!(self.program().fetch(Self::at(1)), Ok(0));
        if self.state == State::Mixed {
            Self::odd().for_each(|page| self.write(page));
            self.protect(Self::odd(), Protection::READ);
        }
        let state = self.state;
        for page in (0..Self::PAGES).filter(|page| state != State::Mixed || !Self::odd().contains(page)) {
            match page % 5 {
                0 => self.write(page),
                1 => self.write_tag(page),
                2 => _ = self.program().load(Self::at(page)).unwrap(),
                3 => _ = self.program().fetch(Self::at(page)).unwrap(),
                _ => {}
            }
        }
        let groups: Vec<bool> = (0..GROUPS).map(|group| self.is_large(group)).collect();
        let expected = if self.state == State::Mixed { vec![true, false, false] } else { groups };
        assert_eq!(folded::<G>(&self.entries()), expected);
        self.rig.emu().check_all_groups();
    }

    fn entries(&self) -> Vec<u64> {
        entries(self.rig, &self.space, BASE, Self::PAGES as u64)
    }

    fn write(&mut self, page: usize) {
        let word = 0x1000 + page as u64;
        self.program().store(Self::at(page), word).unwrap();
        self.pages[page].word = word;
    }

    fn write_tag(&mut self, page: usize) {
        let tag = (page % 15 + 1) as u8;
        self.program().stg(Self::at(page) + 16, tag).unwrap();
        if self.is_tagged(page) {
            self.pages[page].tag = tag;
        }
    }

    fn is_tagged(&self, page: usize) -> bool {
        self.pages[page].protection.is_some_and(|protection| protection.contains(Protection::TAGGED))
    }

    fn span(run: Range<usize>) -> (VirtAddr, u64) {
        (VirtAddr::new(Self::at(run.start)), (run.len() as u64) << G::SHIFT)
    }

    fn advise(&self, run: Range<usize>, advice: Advice) {
        let (start, bytes) = Self::span(run);
        self.space.advise(&self.rig.mm, start, bytes, advice).unwrap();
    }

    fn protect(&mut self, run: Range<usize>, protection: Protection) {
        let (start, bytes) = Self::span(run.clone());
        self.space.protect(&self.rig.mm, start, bytes, protection).unwrap();
        for page in &mut self.pages[run] {
            page.protection = page.protection.map(|old| protection | old & Protection::TAGGED);
        }
    }

    fn act(&mut self) {
        let run = self.run.clone();
        match self.act {
            Act::Read | Act::Shut | Act::Tag => self.protect(run, self.act.protection().expect("a protection")),
            Act::ReadThenWrite => {
                self.protect(run.clone(), Protection::READ);
                self.protect(run, RW);
            }
            Act::Unmap => {
                let (start, bytes) = Self::span(run.clone());
                self.space.unmap(&self.rig.mm, start, bytes).unwrap();
                self.pages[run].fill(Known { protection: None, word: 0, tag: 0 });
            }
            Act::DontNeed => {
                self.advise(run.clone(), Advice::DontNeed);
                self.pages[run].iter_mut().for_each(|page| (page.word, page.tag) = (0, 0));
            }
            Act::Free => self.advise(run, Advice::Free),
            Act::Cold => self.advise(run, Advice::Cold),
            Act::PageOut => self.advise(run, Advice::PageOut),
        }
    }

    fn is_touched(&self, group: &Range<usize>) -> bool {
        group.start < self.run.end && self.run.start < group.end
    }

    fn is_covered(&self, group: &Range<usize>) -> bool {
        self.run.start <= group.start && group.end <= self.run.end
    }

    /// Whether a group has the contiguous bit after the act.
    fn folds(&self, group: &Range<usize>, was: bool, now: &[u64]) -> bool {
        if !self.is_touched(group) || self.act == Act::Cold {
            return was;
        }
        if self.act == Act::Free {
            return was && self.is_covered(group);
        }
        // What is alike, of one folio and of one region is a group.
        let like = |page: usize| lasting(now[page]).wrapping_sub(((page - group.start) as u64) << G::SHIFT);
        let alike = |page: usize| {
            now[page] & VALID != 0
                && like(page) == like(group.start)
                && self.pages[page].protection == self.pages[group.start].protection
        };
        self.act.protection().is_some() && self.is_large(group.start / Self::GROUP) && group.clone().all(alike)
    }

    /// The entries after the act against those before it.
    fn check_entries(&self, before: &[u64], after: &[u64]) {
        let groups = folded::<G>(before).into_iter().zip(folded::<G>(after)).enumerate();
        for (number, (was, is)) in groups {
            let group = Self::group(number * Self::GROUP);
            assert_eq!(is, self.folds(&group, was, after), "group {number} {}", self.told(before, after));
            let any = |has: fn(u64) -> bool| group.clone().any(|page| has(before[page]));
            let (any_accessed, any_dirty) = (any(|raw| raw & ACCESSED != 0), any(is_dirty));
            for page in group.clone() {
                let (old, new) = (before[page], after[page]);
                let shares = self.is_touched(&group) && (was || is);
                let accessed = |raw| raw & ACCESSED != 0;
                let keeps = (is_dirty(new) == is_dirty(old) || shares && is_dirty(new) == any_dirty)
                    && (self.noisy || accessed(new) == accessed(old) || shares && accessed(new) == any_accessed);
                let rests = is_dirty(new) == is_dirty(old) || shares && is_dirty(new) == any_dirty;
                let still = self.noisy || !accessed(new);
                let fine = match (self.run.contains(&page), self.act) {
                    (false, Act::Cold) if shares => lasting(new) == lasting(old) && rests && still,
                    (false, _) if shares => lasting(new) == lasting(old) && keeps,
                    (false, _) => self.same(old, new),
                    (true, Act::Read | Act::Shut | Act::ReadThenWrite | Act::Tag) => new & VALID != 0 && keeps,
                    (true, Act::Unmap | Act::DontNeed) => new == 0,
                    (true, Act::Free) => lasting(new) == lasting(old) && !is_dirty(new) && still,
                    (true, Act::Cold) => lasting(new) == lasting(old) && rests && still,
                    (true, Act::PageOut) => new & VALID == 0,
                };
                assert!(fine, "page {page} {}", self.told(before, after));
            }
        }
    }

    /// Whether an entry that nobody touched is the same.
    fn same(&self, old: u64, new: u64) -> bool {
        let noise = if self.noisy && old & VALID != 0 { ACCESSED } else { 0 };
        old | noise == new | noise
    }

    fn told(&self, before: &[u64], after: &[u64]) -> String {
        format!("after {:?} of {:?}, {:?}:\n{before:x?}\n{after:x?}", self.act, self.run, self.state)
    }

    fn is_allowed(&self, page: usize, access: Access) -> Result<(), FaultError> {
        let protection = self.pages[page].protection.ok_or(FaultError::NotMapped)?;
        let wanted = match access {
            Access::Load | Access::LoadTag => Protection::READ | Protection::WRITE | Protection::EXEC,
            Access::Store(_) | Access::StoreTag(_) => Protection::WRITE,
            Access::Fetch => Protection::EXEC,
        };
        if protection.intersects(wanted) { Ok(()) } else { Err(FaultError::Protection) }
    }

    /// One access, which must end, and give, what the model says.
    fn access(&mut self, page: usize, access: Access) {
        let offset = if matches!(access, Access::LoadTag | Access::StoreTag(_)) { 16 } else { 0 };
        let seen: Result<u64, Ended> = self.program().access(Self::at(page) + offset, access);
        let known = self.pages[page];
        let expected = match access {
            Access::Load | Access::Fetch => known.word,
            Access::LoadTag => known.tag.into(),
            Access::Store(_) | Access::StoreTag(_) => 0,
        };
        match self.is_allowed(page, access) {
            Ok(()) => assert_eq!(seen, Ok(expected), "{access:?} in page {page} {}", self.told(&[], &[])),
            Err(error) => assert_eq!(refusal(seen), error, "{access:?} in page {page} {}", self.told(&[], &[])),
        }
        if let (Access::Store(value), Ok(())) = (access, self.is_allowed(page, access)) {
            self.pages[page].word = value;
        }
    }

    /// Uses pages at either side of the run's ends. No page but those of a group, or of a new folio, changes with them.
    fn use_some(&mut self) {
        let (start, end) = (self.run.start, self.run.end);
        let places =
            [(start, 0), (start.wrapping_sub(1), 1), (end - 1, 1), (end, 0), (start, 2), (end - 1, 2), (end, 2)];
        for (page, kind) in places.into_iter().filter(|&(page, _)| page < Self::PAGES) {
            let before = self.entries();
            self.access(page, [Access::Load, Access::Fetch, Access::Store(0x2000 + page as u64)][kind]);
            let after = self.entries();
            let group = Self::group(page);
            let is_group = folded::<G>(&before)[page / Self::GROUP];
            let is_empty = group.clone().all(|other| before[other] == 0);
            let is_out = group.clone().all(|other| before[other] != 0 && before[other] & VALID == 0);
            for other in (0..Self::PAGES).filter(|&other| other != page) {
                let (old, new) = (before[other], after[other]);
                let fine = match group.contains(&other) {
                    true if is_group => lasting(old) & !UXN == lasting(new) & !UXN && is_dirty(new) >= is_dirty(old),
                    true if is_empty => new == 0 || self.is_large(page / Self::GROUP) || self.state == State::Mixed,
                    // What left as one may come back as one.
                    true if is_out && new & VALID != 0 => self.is_large(page / Self::GROUP),
                    _ => self.same(old, new),
                };
                assert!(fine, "page {other} by a use of {page} {}", self.told(&before, &after));
            }
            self.rig.emu().check_all_groups();
        }
    }

    fn live(mut self) {
        let before = self.entries();
        self.act();
        let after = self.entries();
        self.rig.emu().check_all_groups();
        self.check_entries(&before, &after);
        self.use_some();
        for page in 0..Self::PAGES {
            for access in [Access::Load, Access::LoadTag, Access::Store(0x3000 + page as u64), Access::Load] {
                self.access(page, access);
            }
        }
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

/// Runs that begin and end at most two pages from an edge of a group, and as many others.
fn runs_at_edges<G: Granule>() -> Vec<Range<usize>> {
    let pages = GROUPS * G::GROUP_PAGES;
    let near = |page: &usize| (page + 2) % G::GROUP_PAGES <= 4;
    let edges = || (0..=pages).filter(near);
    let mut runs: Vec<_> = edges().flat_map(|start| edges().map(move |end| start..end)).collect();
    let mut dice = Dice::new(G::SHIFT.into());
    let sample = (0..runs.len()).map(|_| dice.below(pages as u64) as usize..dice.below(pages as u64 + 1) as usize);
    runs.extend(sample.collect::<Vec<_>>());
    runs.retain(|run| run.start < run.end);
    runs
}

fn all_runs<G: Granule>() -> Vec<Range<usize>> {
    let pages = GROUPS * G::GROUP_PAGES;
    (0..pages).flat_map(|start| (start + 1..=pages).map(move |end| start..end)).collect()
}

fn live<G: Granule>(state: State, runs: &[Range<usize>], adversary: Adversary) {
    let pages = (GROUPS * G::GROUP_PAGES) as u64;
    let setup = Setup { slots: pages as u32 + 64, tag_rooms: pages as u32, adversary, ..Setup::default() };
    for act in Act::ALL {
        // Single frames lie about in the CPU's magazine: among so many there are large ones all the same.
        let rig = Rig::<G>::new(Setup { frames: 8 * pages + 512, ..setup });
        runs.iter().for_each(|run| Case::new(&rig, state, act, run.clone()).live());
    }
}

#[test]
fn every_run_over_groups() {
    live::<K4>(State::Folded, &all_runs::<K4>(), Adversary::Quiet);
}

#[test]
fn every_run_over_single_pages() {
    live::<K4>(State::Plain, &all_runs::<K4>(), Adversary::Quiet);
}

#[test]
fn every_run_over_a_mixture() {
    live::<K4>(State::Mixed, &all_runs::<K4>(), Adversary::Quiet);
}

#[test]
fn runs_against_the_adversary() {
    for state in [State::Folded, State::Plain, State::Mixed] {
        live::<K4>(state, &runs_at_edges::<K4>(), Adversary::Full);
    }
}

#[test]
fn runs_at_the_granule_of_16_kib() {
    for state in [State::Folded, State::Plain, State::Mixed] {
        live::<K16>(state, &runs_at_edges::<K16>(), Adversary::Quiet);
    }
}

#[test]
fn runs_at_the_granule_of_64_kib() {
    for state in [State::Folded, State::Plain, State::Mixed] {
        live::<K64>(state, &runs_at_edges::<K64>(), Adversary::Quiet);
    }
}
