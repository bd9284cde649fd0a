//! Reclaim's state: the list of folios, and what leaves it.

use core::mem;

use arrayvec::ArrayVec;

use super::background::Background;
use super::evict::Ageing;
use super::policy::{Chosen, Looked, Policy, Replacement, Seen};
use super::queues::{Queue, Queues, Taken};
use super::watermarks::Watermarks;
use super::{BATCH, Progress};
use crate::frame::{Class, Frame, Frames, Left, Standing, flag};
use crate::machine::Machine;
use crate::sync::{AtomicU32, Ordering, Spin, SpinGuard};
use crate::tlb;

/// The folios that reclaim may take, in the policy's queues.
struct List {
    queues: Queues,
    policy: Chosen,
}

/// Reclaim's state.
pub struct Reclaim {
    list: Spin<List>,
    watermarks: Watermarks,
    pub(super) background: Background,
    /// Meagre searches since the last one that freed half a batch.
    pub(super) meagre: AtomicU32,
    /// Folios isolated and not settled yet, by all CPUs. Who finds the list empty meanwhile sleeps on this word.
    isolated: AtomicU32,
    /// Pages evicted so far, modulo 2^32.
    clock: AtomicU32,
    /// A page that comes back after no more evictions than this came back soon.
    soon: u32,
}

/// Folios out of the list, with one reference each.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) folios: ArrayVec<Frame, BATCH>,
    /// Which of them the policy spares, where use counts.
    spared: u32,
    /// How many of them are protected, to tell the policy how they were found.
    protected: u32,
}

const _: () = assert!(BATCH <= u32::BITS as usize);

impl Batch {
    /// Which folios stay, used or not: one bit each, the first lowest.
    #[inline]
    pub(super) fn spared(&self, ageing: Ageing) -> u32 {
        match ageing {
            Ageing::SecondChance => self.spared,
            Ageing::Spared => u32::MAX,
            Ageing::Observed | Ageing::Ignored => 0,
        }
    }
}

/// Folios of a batch that stay, and what the look at them found.
pub(super) type Kept = ArrayVec<(Frame, Seen), BATCH>;

/// Which folios to look at.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Search {
    /// Those that the policy chooses.
    Chosen,
    /// All, one after the other, after [`Reclaim::line_up`]; those in use stay, and stay in use.
    Unused,
    /// As well, and those in use leave too.
    All,
}

impl Search {
    /// What a use counts in it.
    pub(super) const fn ageing(self) -> Ageing {
        match self {
            Self::Chosen => Ageing::SecondChance,
            Self::Unused => Ageing::Observed,
            Self::All => Ageing::Ignored,
        }
    }
}

/// What was made of a page's return.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Returned {
    /// Pages that left since it did.
    pub(super) distance: u32,
    pub(super) class: Class,
}

/// The lowest bit of a refault shadow: the page was protected when it left. Those above are the eviction clock's.
const WAS_PROTECTED: u32 = 1;

impl Reclaim {
    pub(crate) fn new(frames: u64, replacement: Replacement) -> Self {
        Self {
            list: Spin::new(List { queues: Queues::new(), policy: Chosen::new(replacement, frames) }),
            watermarks: Watermarks::of(frames),
            background: Background::new(),
            meagre: AtomicU32::new(0),
            isolated: AtomicU32::new(0),
            clock: AtomicU32::new(0),
            soon: (frames - frames / 4) as u32,
        }
    }

    #[inline]
    pub(crate) fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// Hears what a search came to.
    pub(super) fn hear(&self, progress: Progress) {
        self.background.hear(progress);
        match progress {
            Progress::Meagre(_) => {
                self.meagre.fetch_add(1, Ordering::Relaxed);
            }
            Progress::Freed(pages) if pages >= BATCH as u64 / 2 && self.meagre.load(Ordering::Relaxed) > 0 => {
                self.meagre.store(0, Ordering::Relaxed);
            }
            Progress::Freed(_) | Progress::Nothing => {}
        }
    }

    /// Hears that an ordinary request found more than the reserve: frames came free by other means than a search, as at
    /// a program's end, and what the last searches came to says nothing any more.
    pub(crate) fn hear_of_free_frames(&self, frames: &Frames) {
        let is_troubled = self.is_vain() || self.meagre.load(Ordering::Relaxed) > 0;
        // Somewhat more: a single page that left is no such sign.
        let Watermarks { reserve, low, .. } = self.watermarks;
        if is_troubled && frames.free_blocks() >= u64::midpoint(reserve, low) {
            self.meagre.store(0, Ordering::Relaxed);
            self.background.forget();
        }
    }

    /// Whether searches have found nothing, or next to nothing, since one last freed half a batch, or frames came free
    /// otherwise.
    pub(crate) fn is_vain(&self) -> bool {
        self.background.is_vain()
    }

    /// Folios in the list.
    pub(super) fn len(&self) -> u64 {
        self.list.lock().queues.len()
    }

    /// Enters the pages of a folio that was split, as the first: what reclaim chose once, it looks at again soon.
    pub(crate) fn insert_old(&self, frames: &Frames, folios: impl Iterator<Item = Frame>) {
        let mut list = self.list.lock();
        for frame in folios {
            list.queues.push_first(frames, frame);
        }
    }

    /// Enters a folio that was just mapped, and is new.
    #[inline]
    pub(crate) fn insert(&self, frames: &Frames, frame: Frame) {
        self.list.lock().queues.push_new(frames, Queue::Entry, frame, Standing::NEW);
    }

    /// Enters a folio of `pages` pages that was just mapped, and whose slots kept `shadow`; and those that came with
    /// it, for which nobody has asked yet, as new ones.
    #[inline(always)]
    pub(super) fn insert_returned(
        &self,
        frames: &Frames,
        frame: Frame,
        shadow: u32,
        pages: u64,
        others: &[Frame],
    ) -> Returned {
        let now = self.clock.load(Ordering::Relaxed) << 1;
        let distance = now.wrapping_sub(shadow & !WAS_PROTECTED) >> 1;
        let mut list = self.list.lock();
        for &other in others {
            list.queues.push_new(frames, Queue::Entry, other, Standing::NEW);
        }
        if distance > self.soon {
            list.queues.push_new(frames, Queue::Entry, frame, Standing::NEW);
            return Returned { distance, class: Class::Probation };
        }
        let was = if shadow & WAS_PROTECTED == 0 { Class::Probation } else { Class::Protected };
        let (queue, standing) = list.policy.welcome(was, pages);
        list.queues.push_new(frames, queue, frame, standing);
        Returned { distance, class: standing.class }
    }

    /// Counts pages of a folio that left, and returns their slots' refault shadow: the clock, modulo 2^31, and where
    /// the folio stood.
    #[inline]
    pub(super) fn evicted(&self, frames: &Frames, folio: Frame, pages: u64) -> u32 {
        let was = if frames.record(folio).has(flag::PROTECTED) { WAS_PROTECTED } else { 0 };
        self.clock.fetch_add(pages as u32, Ordering::Relaxed) << 1 | was
    }

    /// Puts all folios into one queue, for a search that leaves out none: those first of whom most is known to be cold.
    pub(super) fn line_up(&self, frames: &Frames) {
        let List { queues, .. } = &mut *self.list.lock();
        queues.append(frames, Queue::Entry, Queue::Third);
        queues.append(frames, Queue::Second, Queue::Third);
        queues.append(frames, Queue::Third, Queue::Entry);
    }

    /// Takes folios out, of [`BATCH`] pages or a little more, with a reference each: the first in line, and those of
    /// one other queue.
    pub(super) fn isolate(&self, frames: &Frames, search: Search) -> Batch {
        let mut batch = Batch::default();
        let mut pages = 0;
        let List { queues, policy } = &mut *self.list.lock();
        if queues.len() == 0 {
            return batch;
        }
        take(queues, policy, frames, Queue::First, &mut batch, &mut pages);
        if pages < BATCH && queues.len() > 0 {
            let chosen = match search {
                Search::Chosen => policy.choose(queues, frames),
                Search::Unused | Search::All => Queue::Entry,
            };
            let queue = core::iter::once(chosen).chain(Queue::ALL).find(|&queue| !queues.is_empty(queue));
            take(queues, policy, frames, queue.unwrap_or(chosen), &mut batch, &mut pages);
        }
        self.isolated.fetch_add(batch.folios.len() as u32, Ordering::Relaxed);
        batch
    }

    /// The number of folios that are isolated, if any.
    pub(crate) fn isolated(&self) -> Option<u32> {
        Some(self.isolated.load(Ordering::Acquire)).filter(|&count| count > 0)
    }

    /// Sleeps until another number of folios than `seen` is isolated.
    pub(crate) fn wait_for_others<M: Machine>(&self, machine: &M, seen: u32) {
        machine.wait(&self.isolated, seen);
    }

    /// What became of `count` isolated folios is decided.
    pub(super) fn settled<M: Machine>(&self, machine: &M, count: usize) {
        self.isolated.fetch_sub(count as u32, Ordering::Release);
        machine.wake(&self.isolated);
    }

    /// Begins to take certain folios out, one by one.
    #[inline(always)]
    pub(super) fn isolating<'a>(&'a self, frames: &'a Frames) -> Isolating<'a> {
        Isolating { reclaim: self, frames, list: self.list.lock(), taken: Taken::default(), count: 0 }
    }

    /// Takes certain folios out, with a reference each. Those that are not in the list leave the batch.
    pub(super) fn isolate_all(&self, frames: &Frames, batch: &mut ArrayVec<Frame, BATCH>) {
        let mut list = self.isolating(frames);
        batch.retain(|&mut frame| {
            let is_ours = frames.record(frame).has(flag::LISTED) && frames.get(frame);
            if is_ours {
                list.take(frame);
            }
            is_ours
        });
    }

    /// Puts isolated folios back that stay, and tells the policy how those of `batch` were found. Their references are
    /// still the caller's to give back.
    pub(super) fn put_back(&self, frames: &Frames, batch: &Batch, kept: &Kept) {
        if kept.is_empty() && batch.protected == 0 {
            return;
        }
        let List { queues, policy } = &mut *self.list.lock();
        let mut looked = Looked { folios: batch.protected, used: 0 };
        for &(frame, seen) in kept {
            let was = frames.record(frame).standing();
            looked.used += u32::from(was.class == Class::Protected && seen == Seen::Used);
            let (queue, standing) = policy.place(was, seen);
            queues.push(frames, queue, frame, standing);
        }
        if looked.folios > 0 {
            policy.hear(looked);
        }
    }

    /// Makes folios the first that reclaim looks at. Those that are not listed stay so.
    pub(super) fn make_old(&self, frames: &Frames, folios: &[Frame]) {
        self.list.lock().queues.move_first(frames, folios);
    }

    /// Gives back counts of folios, and takes those that nobody holds any more out of the list and into `gone`, until
    /// that is full.
    #[inline]
    pub(super) fn drop_counts(
        &self,
        frames: &Frames,
        folios: &mut impl Iterator<Item = (Frame, u64)>,
        gone: &mut ArrayVec<Frame, { tlb::CAPACITY }>,
    ) {
        let mut taken = Taken::default();
        let mut list = self.list.lock();
        while !gone.is_full()
            && let Some((frame, weight)) = folios.next()
        {
            if frames.put(frame, weight) == Left::Shared {
                continue;
            }
            gone.push(frame);
            if frames.record(frame).has(flag::LISTED) {
                list.queues.gather(frames, &mut taken, frame);
            }
        }
        list.queues.finish(frames, taken);
    }
}

/// The list, locked, while folios are taken out of it.
pub(super) struct Isolating<'a> {
    reclaim: &'a Reclaim,
    frames: &'a Frames,
    list: SpinGuard<'a, List>,
    taken: Taken,
    count: u32,
}

impl Isolating<'_> {
    /// Takes a folio out that is in the list, and to which the caller has a reference, or is about to have one.
    #[inline(always)]
    pub(super) fn take(&mut self, frame: Frame) {
        self.list.queues.gather(self.frames, &mut self.taken, frame);
        self.count += 1;
    }
}

impl Drop for Isolating<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.list.queues.finish(self.frames, mem::take(&mut self.taken));
        self.reclaim.isolated.fetch_add(self.count, Ordering::Relaxed);
    }
}

/// Takes the oldest folios of a queue into a batch, until that has enough pages.
fn take(queues: &mut Queues, policy: &Chosen, frames: &Frames, queue: Queue, batch: &mut Batch, pages: &mut usize) {
    while *pages < BATCH
        && let Some((frame, Standing { class, rank })) = queues.pop(frames, queue)
    {
        *pages += 1 << frames.record(frame).order();
        // Never refused: who drops a listed folio's last count unlinks it under the same hold of the list's lock.
        if frames.get(frame) {
            batch.spared |= u32::from(policy.spares(Standing { class, rank })) << batch.folios.len();
            batch.protected += u32::from(class == Class::Protected);
            batch.folios.push(frame);
        }
    }
}
