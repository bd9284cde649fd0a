//! The policies side by side: recorded traces of accesses against the very queues and policies that the library runs,
//! on frame records without memory.
//!
//! The program's side is a bit for each page: an access sets it, a look reads and clears it, as with access flags. So
//! what is counted here are decisions; that reclaim asks the same questions of real page tables is shown by
//! `tests/policies.rs`. Beside the policies stand the fixed set (the pages that the trace uses most, in memory for
//! good) and Belady's (out goes what is used latest), both of which know the trace beforehand.

use std::collections::BinaryHeap;
use std::vec::Vec;
use std::{print, println, vec};

use super::list::{Kept, Search};
use super::policy::Seen;
use super::{Reclaim, Replacement};
use crate::frame::desk::Desk;
use crate::frame::{Frame, Left, REFERENCE};

/// Memory, in pages.
const FRAMES: usize = 2048;
/// Accesses of a trace: 600 for each frame, enough that neither who warms up how counts, nor what the fixed set makes
/// of knowing by what chance the trace came out.
const ACCESSES: usize = 600 * FRAMES;
/// How long a phase is.
const PHASE: usize = 20 * FRAMES;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn shuffled(&mut self, count: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..count as u32).collect();
        (1..count).rev().for_each(|index| all.swap(index, self.below(index + 1)));
        all
    }
}

/// Draws ranks, the first most often: the n-th in proportion to n^-0.9.
struct Zipf(Vec<f64>);

impl Zipf {
    fn of(ranks: usize) -> Self {
        let mut sum = 0.0;
        let mut sums: Vec<f64> = Vec::new();
        for rank in 1..=ranks {
            sum += (rank as f64).powf(-0.9);
            sums.push(sum);
        }
        Self(sums)
    }

    fn draw(&self, random: &mut Random) -> usize {
        let at = random.next() as f64 / (1u64 << 53) as f64 * self.0[self.0.len() - 1];
        self.0.partition_point(|&sum| sum < at).min(self.0.len() - 1)
    }
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Workload {
    /// Page after page, round and round.
    InOrder,
    /// Every page as likely as any.
    Uniform,
    /// Few pages often, most seldom; which is which is by chance.
    Zipf,
    /// Every second access at random within a hot set of half the memory, the others in order over the rest.
    ScanAndHot,
    /// Four times memory's worth of accesses within such a set, one of a scan, and again.
    Bursts,
    /// Nine of ten accesses within a hot set of four fifths of memory, the others anywhere; then the set is another.
    Phases,
    /// The same with nothing but the set.
    BarePhases,
    /// `Zipf`, and the ranks are dealt out anew at each phase.
    ZipfPhases,
}

impl Workload {
    /// A trace over `pages` pages.
    fn trace(self, pages: usize, seed: u64) -> Vec<u32> {
        let mut random = Random(seed);
        let zipf = Zipf::of(pages);
        let mut ranks = random.shuffled(pages);
        let (hot, set) = (FRAMES / 2, FRAMES * 4 / 5);
        let (mut base, mut scan) = (0, 0);
        let mut trace = Vec::with_capacity(ACCESSES);
        for time in 0..ACCESSES {
            let is_new_phase = time > 0 && time % PHASE == 0;
            let mut scan_on = || {
                scan = (scan + 1) % (pages - hot);
                hot + scan
            };
            let page = match self {
                Self::InOrder => time % pages,
                Self::Uniform => random.below(pages),
                Self::Zipf => ranks[zipf.draw(&mut random)] as usize,
                Self::ScanAndHot if random.below(2) == 0 => scan_on(),
                Self::Bursts if time % (5 * FRAMES) >= 4 * FRAMES => scan_on(),
                Self::ScanAndHot | Self::Bursts => random.below(hot),
                Self::Phases | Self::BarePhases => {
                    base = if is_new_phase { (base + set) % pages } else { base };
                    if self == Self::Phases && random.below(10) == 0 {
                        random.below(pages)
                    } else {
                        (base + random.below(set)) % pages
                    }
                }
                Self::ZipfPhases => {
                    if is_new_phase {
                        ranks = random.shuffled(pages);
                    }
                    ranks[zipf.draw(&mut random)] as usize
                }
            };
            trace.push(page as u32);
        }
        trace
    }
}

/// Refaults if the pages that the trace uses most are in memory for good.
fn fixed_set(trace: &[u32], pages: usize) -> u64 {
    let mut uses = vec![0u64; pages];
    trace.iter().for_each(|&page| uses[page as usize] += 1);
    uses.sort_unstable();
    uses.iter().rev().skip(FRAMES).map(|&uses| uses.saturating_sub(1)).sum()
}

/// Refaults if the page goes that is used again latest.
fn belady(trace: &[u32], pages: usize) -> u64 {
    let mut next = vec![usize::MAX; trace.len()];
    let mut last = vec![usize::MAX; pages];
    for (time, &page) in trace.iter().enumerate().rev() {
        next[time] = last[page as usize];
        last[page as usize] = time;
    }
    // When each page that is in memory is used again.
    let mut coming: Vec<Option<usize>> = vec![None; pages];
    let mut was_seen = vec![false; pages];
    let mut latest = BinaryHeap::new();
    let (mut resident, mut refaults) = (0, 0);
    for (time, &page) in trace.iter().enumerate() {
        let index = page as usize;
        if coming[index].is_none() {
            refaults += u64::from(was_seen[index]);
            was_seen[index] = true;
            resident += 1;
            while resident > FRAMES
                && let Some((when, victim)) = latest.pop()
            {
                if coming[victim] == Some(when) {
                    coming[victim] = None;
                    resident -= 1;
                }
            }
        }
        coming[index] = Some(next[time]);
        latest.push((next[time], index));
    }
    refaults
}

/// A page of the program.
#[derive(Copy, Clone, Default)]
struct Page {
    frame: Option<Frame>,
    is_accessed: bool,
    /// Where it is out: its slot's refault shadow.
    shadow: Option<u32>,
}

/// What reclaim had to do.
#[derive(Copy, Clone, Default, Debug)]
struct Work {
    refaults: u64,
    looks: u64,
    /// Looks that found the flag set, cleared it, and cost an invalidation.
    cleared: u64,
}

/// One program on the records.
struct Model {
    desk: Desk,
    reclaim: Reclaim,
    pages: Vec<Page>,
    /// The page in each frame.
    owners: Vec<usize>,
    work: Work,
}

impl Model {
    fn new(replacement: Replacement, pages: usize) -> Self {
        Self {
            desk: Desk::new(FRAMES as u64),
            reclaim: Reclaim::new(FRAMES as u64, replacement),
            pages: vec![Page::default(); pages],
            owners: vec![usize::MAX; FRAMES],
            work: Work::default(),
        }
    }

    fn run(replacement: Replacement, trace: &[u32], pages: usize) -> Work {
        let mut model = Self::new(replacement, pages);
        trace.iter().for_each(|&page| model.access(page as usize));
        model.work
    }

    fn access(&mut self, page: usize) {
        self.pages[page].is_accessed = true;
        if self.pages[page].frame.is_some() {
            return;
        }
        let frame = loop {
            match self.desk.folio() {
                Some(frame) => break frame,
                None => self.shrink(Search::Chosen),
            }
        };
        self.pages[page].frame = Some(frame);
        self.owners[frame.index() as usize] = page;
        match self.pages[page].shadow.take() {
            None => self.reclaim.insert(&self.desk, frame),
            Some(shadow) => {
                self.work.refaults += 1;
                let _ = self.reclaim.insert_returned(&self.desk, frame, shadow, 1, &[]);
            }
        }
    }

    /// One batch, as `evict` goes about it.
    fn shrink(&mut self, search: Search) {
        let batch = self.reclaim.isolate(&self.desk, search);
        let spared = batch.spared(search.ageing());
        let mut kept = Kept::new();
        for (index, &frame) in batch.folios.iter().enumerate() {
            self.work.looks += 1;
            let page = &mut self.pages[self.owners[frame.index() as usize]];
            let is_accessed = core::mem::take(&mut page.is_accessed) && search == Search::Chosen;
            if is_accessed || spared >> index & 1 != 0 {
                self.work.cleared += u64::from(is_accessed);
                kept.push((frame, if is_accessed { Seen::Used } else { Seen::Unused }));
                continue;
            }
            page.frame = None;
            page.shadow = Some(self.reclaim.evicted(&self.desk, frame, 1));
            self.desk.free_folio(frame);
        }
        self.reclaim.put_back(&self.desk, &batch, &kept);
        for &(frame, _) in &kept {
            assert!(self.desk.put(frame, REFERENCE) == Left::Shared);
        }
    }
}

/// The rows of the table: a workload, and the size of its memory in hundredths of the machine's.
const ROWS: &[(Workload, usize)] = &[
    (Workload::InOrder, 110),
    (Workload::InOrder, 120),
    (Workload::InOrder, 200),
    (Workload::InOrder, 400),
    (Workload::Uniform, 120),
    (Workload::Uniform, 200),
    (Workload::Uniform, 400),
    (Workload::Zipf, 120),
    (Workload::Zipf, 200),
    (Workload::Zipf, 400),
    (Workload::ScanAndHot, 120),
    (Workload::ScanAndHot, 200),
    (Workload::ScanAndHot, 400),
    (Workload::Bursts, 120),
    (Workload::Bursts, 200),
    (Workload::Bursts, 400),
    (Workload::Phases, 120),
    (Workload::Phases, 200),
    (Workload::Phases, 400),
    (Workload::BarePhases, 120),
    (Workload::BarePhases, 200),
    (Workload::BarePhases, 400),
    (Workload::ZipfPhases, 120),
    (Workload::ZipfPhases, 200),
    (Workload::ZipfPhases, 400),
];

/// The default is within bounds of what cannot be had without knowing the trace, and no worse than the clock.
#[test]
fn the_default_is_near_the_best() {
    print!("| {:<10} | {:>4} | {:>7} | {:>7} |", "workload", "size", "fixed", "Belady");
    Replacement::ALL.iter().for_each(|policy| print!(" {:>11} | ", policy.name()));
    println!("x fixed | x Belady | looks, clears a refault: each policy");
    let mut failures = Vec::new();
    for &(workload, size) in ROWS {
        let pages = FRAMES * size / 100;
        let trace = workload.trace(pages, 0x0123_4567_89ab_cdef);
        let (fixed, belady) = (fixed_set(&trace, pages), belady(&trace, pages));
        let works = Replacement::ALL.map(|policy| Model::run(policy, &trace, pages));
        let name = std::format!("{workload:?}");
        print!("| {name:<10} | {size:>4} | {fixed:>7} | {belady:>7} |");
        works.iter().for_each(|work| print!(" {:>11} | ", work.refaults));
        let of = |replacement| works[Replacement::ALL.iter().position(|&other| other == replacement).unwrap()];
        let (clock, chosen) = (of(Replacement::Clock).refaults, of(Replacement::default()).refaults);
        let ratio = |count: u64, of: u64| count as f64 / of.max(1) as f64;
        print!("{:.2} | {:.2} |", ratio(chosen, fixed), ratio(chosen, belady));
        let a_refault = |work: &Work| {
            print!(" {:.1}, {:.1};", ratio(work.looks, work.refaults), ratio(work.cleared, work.refaults))
        };
        works.iter().for_each(a_refault);
        println!(" {:.3}", ratio(chosen, clock));
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                failures.push(std::format!("{workload:?} at {size} %: {what}"));
            }
        };
        // What chance makes of a random trace is within 1 %.
        expect(chosen * 100 <= clock * 101, "worse than the clock");
        match (workload, size) {
            (Workload::Zipf, _) => expect(chosen * 10 <= fixed * 14, "far from the fixed set"),
            (Workload::ScanAndHot, 200) => expect(chosen * 10 <= belady * 17, "far from Belady's"),
            (Workload::ScanAndHot, 400) => expect(chosen * 10 <= belady * 12, "far from Belady's"),
            _ => {}
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
