//! The reclaim list, and what leaves it.

use core::mem;

use arrayvec::ArrayVec;

use super::BATCH;
use super::watermarks::Watermarks;
use crate::frame::{Frame, Frames, Left, NO_FRAME, flag};
use crate::machine::Machine;
use crate::sync::{AtomicU32, Ordering, Spin};
use crate::tlb;

/// The two ends, and the length. Links run from young to old through `next`.
struct List {
    young: u32,
    old: u32,
    len: u64,
}

/// Reclaim's state.
pub struct Reclaim {
    list: Spin<List>,
    watermarks: Watermarks,
    /// 1 while the background reclaimer is asked to work; it sleeps on this word while it is 0.
    pub(super) request: AtomicU32,
    /// Folios isolated and not settled yet, by all CPUs. Who finds the list empty meanwhile sleeps on this word.
    isolated: AtomicU32,
    /// Pages evicted so far, modulo 2^32.
    pub(super) clock: AtomicU32,
}

/// Folios out of the list, with one reference each.
pub(super) type Batch = ArrayVec<Frame, BATCH>;

/// Neighbours in the list: from the older end, along `prev`, to the younger.
struct Chain {
    old: Frame,
    young: Frame,
    len: u64,
}

impl Chain {
    #[inline]
    const fn of(frame: Frame) -> Self {
        Self { old: frame, young: frame, len: 1 }
    }

    /// Takes `frame` into the chain if it is the next younger one; else begins another chain, and returns this one.
    #[inline]
    fn extend(&mut self, frames: &Frames, frame: Frame) -> Option<Self> {
        if frames.record(frame).next.load(Ordering::Relaxed) == self.young.index() {
            self.young = frame;
            self.len += 1;
            None
        } else {
            Some(mem::replace(self, Self::of(frame)))
        }
    }
}

impl List {
    #[inline]
    fn push(&mut self, frames: &Frames, frame: Frame) {
        let record = frames.record(frame);
        record.prev.store(NO_FRAME, Ordering::Relaxed);
        record.next.store(self.young, Ordering::Relaxed);
        match frames.frame_at(self.young) {
            Some(young) => frames.record(young).prev.store(frame.index(), Ordering::Relaxed),
            None => self.old = frame.index(),
        }
        self.young = frame.index();
        self.len += 1;
        record.set(flag::LISTED);
    }

    /// Links a chain that is in no list as the oldest.
    fn link_old(&mut self, frames: &Frames, chain: &Chain) {
        frames.record(chain.old).next.store(NO_FRAME, Ordering::Relaxed);
        frames.record(chain.young).prev.store(self.old, Ordering::Relaxed);
        match frames.frame_at(self.old) {
            Some(old) => frames.record(old).next.store(chain.young.index(), Ordering::Relaxed),
            None => self.young = chain.young.index(),
        }
        self.old = chain.old.index();
        self.len += chain.len;
    }

    /// Takes a chain out; its folios' flags stay.
    #[inline]
    fn cut(&mut self, frames: &Frames, chain: &Chain) {
        let next = frames.record(chain.old).next.load(Ordering::Relaxed);
        let prev = frames.record(chain.young).prev.load(Ordering::Relaxed);
        match frames.frame_at(next) {
            Some(next) => frames.record(next).prev.store(prev, Ordering::Relaxed),
            None => self.old = prev,
        }
        match frames.frame_at(prev) {
            Some(prev) => frames.record(prev).next.store(next, Ordering::Relaxed),
            None => self.young = next,
        }
        self.len -= chain.len;
    }

    #[inline]
    fn unlink(&mut self, frames: &Frames, frame: Frame) {
        self.cut(frames, &Chain::of(frame));
        frames.record(frame).clear(flag::LISTED);
    }

    /// Takes a listed folio out, with its neighbours: those that come one after the other are cut as one. The caller
    /// cuts the last `chain`.
    #[inline]
    fn gather(&mut self, frames: &Frames, chain: &mut Option<Chain>, frame: Frame) {
        frames.record(frame).clear(flag::LISTED);
        match chain {
            None => *chain = Some(Chain::of(frame)),
            Some(chain) => {
                if let Some(done) = chain.extend(frames, frame) {
                    self.cut(frames, &done);
                }
            }
        }
    }

    fn move_old(&mut self, frames: &Frames, chain: &Chain) {
        self.cut(frames, chain);
        self.link_old(frames, chain);
    }
}

impl Reclaim {
    pub(crate) fn new(frames: u64) -> Self {
        Self {
            list: Spin::new(List { young: NO_FRAME, old: NO_FRAME, len: 0 }),
            watermarks: Watermarks::of(frames),
            request: AtomicU32::new(0),
            isolated: AtomicU32::new(0),
            clock: AtomicU32::new(0),
        }
    }

    #[inline]
    pub(crate) fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// Folios in the list.
    pub(super) fn len(&self) -> u64 {
        self.list.lock().len
    }

    /// Enters the pages of a folio that was split, as the oldest: what reclaim chose once, it looks at again soon.
    pub(crate) fn insert_old(&self, frames: &Frames, folios: impl Iterator<Item = Frame>) {
        let mut list = self.list.lock();
        for frame in folios {
            list.link_old(frames, &Chain::of(frame));
            frames.record(frame).set(flag::LISTED);
        }
    }

    /// Enters a folio that was just mapped, as the youngest.
    #[inline]
    pub(crate) fn insert(&self, frames: &Frames, frame: Frame) {
        self.list.lock().push(frames, frame);
    }

    /// Takes the oldest folios out, of [`BATCH`] pages or a little more, with a reference each.
    pub(super) fn isolate(&self, frames: &Frames) -> Batch {
        let mut batch = Batch::new();
        let mut pages = 0;
        let mut list = self.list.lock();
        while let Some(frame) = frames.frame_at(list.old).filter(|_| pages < BATCH) {
            list.unlink(frames, frame);
            pages += 1 << frames.record(frame).order();
            // Never refused: who drops a listed folio's last count unlinks it under the same hold of the list's lock.
            if frames.get(frame) {
                batch.push(frame);
            }
        }
        self.isolated.fetch_add(batch.len() as u32, Ordering::Relaxed);
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

    /// Takes certain folios out, with a reference each. Those that are not in the list leave the batch.
    pub(super) fn isolate_all(&self, frames: &Frames, batch: &mut Batch) {
        let mut chain: Option<Chain> = None;
        let mut list = self.list.lock();
        batch.retain(|&mut frame| {
            if !frames.record(frame).has(flag::LISTED) || !frames.get(frame) {
                return false;
            }
            list.gather(frames, &mut chain, frame);
            true
        });
        if let Some(chain) = &chain {
            list.cut(frames, chain);
        }
        self.isolated.fetch_add(batch.len() as u32, Ordering::Relaxed);
    }

    /// Puts isolated folios back as the youngest. Their references are still the caller's to give back.
    pub(crate) fn insert_all(&self, frames: &Frames, folios: &[Frame]) {
        let mut list = self.list.lock();
        for &frame in folios {
            list.push(frames, frame);
        }
    }

    /// Moves folios to the old end: they are the first that reclaim looks at. Those that are not listed stay so.
    pub(super) fn make_old(&self, frames: &Frames, folios: &[Frame]) {
        let mut list = self.list.lock();
        let mut listed = folios.iter().filter(|&&frame| frames.record(frame).has(flag::LISTED));
        let Some(&first) = listed.next() else { return };
        let mut chain = Chain::of(first);
        for &frame in listed {
            if let Some(done) = chain.extend(frames, frame) {
                list.move_old(frames, &done);
            }
        }
        list.move_old(frames, &chain);
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
        let mut chain: Option<Chain> = None;
        let mut list = self.list.lock();
        while !gone.is_full()
            && let Some((frame, weight)) = folios.next()
        {
            if frames.put(frame, weight) == Left::Shared {
                continue;
            }
            gone.push(frame);
            if frames.record(frame).has(flag::LISTED) {
                list.gather(frames, &mut chain, frame);
            }
        }
        if let Some(chain) = &chain {
            list.cut(frames, chain);
        }
    }
}
