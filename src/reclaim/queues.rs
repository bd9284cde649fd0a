//! The queues in which folios wait for reclaim's look, linked through their records.
//!
//! Links run from young to old through `next`, and back through `prev`. Where a frame would have no neighbour, its link
//! is the *mark* of the queue, an index that no frame has: so a folio leaves its queue, wherever it stands, without
//! anybody noting which queue that is, and a whole queue becomes part of another by a change at its two ends.

use core::mem;

use crate::frame::{Class, Frame, Frames, MOST_FRAMES, NO_FRAME, Standing, flag};
use crate::sync::Ordering;

/// A queue, by what stands in it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub(super) enum Queue {
    /// What is looked at before all else.
    First = 0,
    /// Where what is new comes in, at every policy: the fault path asks none.
    Entry = 1,
    /// The policy's.
    Second = 2,
    /// The policy's.
    Third = 3,
}

impl Queue {
    /// All, in the order in which reclaim falls back from one to the next.
    pub(super) const ALL: [Self; 4] = [Self::First, Self::Third, Self::Entry, Self::Second];

    #[inline]
    const fn mark(self) -> u32 {
        NO_FRAME - self as u32
    }
}

const _: () = assert!(MOST_FRAMES == Queue::Third.mark() as u64);

/// The two ends of a queue; its mark, where it is empty.
#[derive(Copy, Clone)]
struct Ends {
    young: u32,
    old: u32,
}

impl Ends {
    const fn empty(queue: Queue) -> Self {
        Self { young: queue.mark(), old: queue.mark() }
    }
}

/// All queues.
pub(super) struct Queues {
    /// Indexed by [`Queue`].
    ends: [Ends; 4],
    /// Folios in any queue.
    len: u64,
    /// Of these, protected ones.
    protected: u64,
}

/// Neighbours in a queue: from the older end, along `prev`, to the younger.
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

/// Folios on their way out of the queues.
#[derive(Default)]
pub(super) struct Taken {
    chain: Option<Chain>,
    protected: u64,
}

impl Queues {
    pub(super) const fn new() -> Self {
        let ends = [
            Ends::empty(Queue::First),
            Ends::empty(Queue::Entry),
            Ends::empty(Queue::Second),
            Ends::empty(Queue::Third),
        ];
        Self { ends, len: 0, protected: 0 }
    }

    /// Folios in all of them.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Folios that stand protected.
    #[inline]
    pub(super) fn protected(&self) -> u64 {
        self.protected
    }

    /// Whether `queue` has none.
    #[inline]
    pub(super) fn is_empty(&self, queue: Queue) -> bool {
        self.ends[queue as usize].old == queue.mark()
    }

    /// The ends of the queue whose mark is `mark`.
    #[inline]
    fn ends_of(&mut self, mark: u32) -> &mut Ends {
        &mut self.ends[(NO_FRAME - mark) as usize & 3]
    }

    /// Enters a folio that reclaim did not know yet as the youngest.
    #[inline]
    pub(super) fn push_new(&mut self, frames: &Frames, queue: Queue, frame: Frame, standing: Standing) {
        let ends = &mut self.ends[queue as usize];
        let record = frames.record(frame);
        record.prev.store(queue.mark(), Ordering::Relaxed);
        record.next.store(ends.young, Ordering::Relaxed);
        match frames.frame_at(ends.young) {
            Some(young) => frames.record(young).prev.store(frame.index(), Ordering::Relaxed),
            None => ends.old = frame.index(),
        }
        ends.young = frame.index();
        self.len += 1;
        self.protected += u64::from(standing.class == Class::Protected);
        record.set(flag::LISTED | standing.flags());
    }

    /// Enters a folio as the youngest, with another standing than it had.
    pub(super) fn push(&mut self, frames: &Frames, queue: Queue, frame: Frame, standing: Standing) {
        frames.record(frame).stand(Standing::NEW);
        self.push_new(frames, queue, frame, standing);
    }

    /// Enters a folio as the first of all, as if it were new.
    pub(super) fn push_first(&mut self, frames: &Frames, frame: Frame) {
        let record = frames.record(frame);
        record.stand(Standing::NEW);
        self.link_first(frames, &Chain::of(frame));
        record.set(flag::LISTED);
    }

    /// Links a chain that is in no queue as the first of all.
    fn link_first(&mut self, frames: &Frames, chain: &Chain) {
        let ends = &mut self.ends[Queue::First as usize];
        frames.record(chain.old).next.store(Queue::First.mark(), Ordering::Relaxed);
        frames.record(chain.young).prev.store(ends.old, Ordering::Relaxed);
        match frames.frame_at(ends.old) {
            Some(old) => frames.record(old).next.store(chain.young.index(), Ordering::Relaxed),
            None => ends.young = chain.young.index(),
        }
        ends.old = chain.old.index();
        self.len += chain.len;
    }

    /// Takes a chain out; its folios' flags stay.
    #[inline]
    fn cut(&mut self, frames: &Frames, chain: &Chain) {
        let next = frames.record(chain.old).next.load(Ordering::Relaxed);
        let prev = frames.record(chain.young).prev.load(Ordering::Relaxed);
        match frames.frame_at(next) {
            Some(next) => frames.record(next).prev.store(prev, Ordering::Relaxed),
            None => self.ends_of(next).old = prev,
        }
        match frames.frame_at(prev) {
            Some(prev) => frames.record(prev).next.store(next, Ordering::Relaxed),
            None => self.ends_of(prev).young = next,
        }
        self.len -= chain.len;
    }

    /// Takes the oldest folio of `queue` out, and says how it stood.
    #[inline]
    pub(super) fn pop(&mut self, frames: &Frames, queue: Queue) -> Option<(Frame, Standing)> {
        let frame = frames.frame_at(self.ends[queue as usize].old)?;
        self.cut(frames, &Chain::of(frame));
        let standing = frames.record(frame).unlist();
        self.protected -= u64::from(standing.class == Class::Protected);
        Some((frame, standing))
    }

    /// Takes a listed folio out, with its neighbours: those that come one after the other are cut as one. The last of
    /// `taken` are [`Queues::finish`]ed.
    #[inline(always)]
    pub(super) fn gather(&mut self, frames: &Frames, taken: &mut Taken, frame: Frame) {
        taken.protected += u64::from(frames.record(frame).unlist().class == Class::Protected);
        match &mut taken.chain {
            None => taken.chain = Some(Chain::of(frame)),
            Some(chain) => {
                if let Some(done) = chain.extend(frames, frame) {
                    self.cut(frames, &done);
                }
            }
        }
    }

    /// Ends what was begun by [`Queues::gather`].
    #[inline(always)]
    pub(super) fn finish(&mut self, frames: &Frames, taken: Taken) {
        if let Some(chain) = &taken.chain {
            self.cut(frames, chain);
            self.protected -= taken.protected;
        }
    }

    /// Makes listed folios the first of all, as if they were new.
    pub(super) fn move_first(&mut self, frames: &Frames, folios: &[Frame]) {
        let mut listed = folios.iter().filter(|&&frame| frames.record(frame).has(flag::LISTED));
        let Some(&first) = listed.next() else { return };
        self.demote(frames, first);
        let mut chain = Chain::of(first);
        for &frame in listed {
            self.demote(frames, frame);
            if let Some(done) = chain.extend(frames, frame) {
                self.cut(frames, &done);
                self.link_first(frames, &done);
            }
        }
        self.cut(frames, &chain);
        self.link_first(frames, &chain);
    }

    /// Has a listed folio stand as if it were new.
    #[inline]
    fn demote(&mut self, frames: &Frames, frame: Frame) {
        let record = frames.record(frame);
        self.protected -= u64::from(record.standing().class == Class::Protected);
        record.stand(Standing::NEW);
    }

    /// Makes all of `from` the youngest of `to`, in their order.
    pub(super) fn append(&mut self, frames: &Frames, from: Queue, to: Queue) {
        let moved = mem::replace(&mut self.ends[from as usize], Ends::empty(from));
        let (Some(young), Some(old)) = (frames.frame_at(moved.young), frames.frame_at(moved.old)) else { return };
        let ends = &mut self.ends[to as usize];
        frames.record(young).prev.store(to.mark(), Ordering::Relaxed);
        frames.record(old).next.store(ends.young, Ordering::Relaxed);
        match frames.frame_at(ends.young) {
            Some(last) => frames.record(last).prev.store(old.index(), Ordering::Relaxed),
            None => ends.old = old.index(),
        }
        ends.young = young.index();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::vec::Vec;

    use super::*;
    use crate::frame::desk::Desk;

    /// Old ends first.
    #[derive(Default)]
    struct Model {
        queues: [VecDeque<Frame>; 4],
        protected: Vec<Frame>,
    }

    impl Model {
        fn take(&mut self, frame: Frame) {
            self.queues.iter_mut().for_each(|queue| queue.retain(|&other| other != frame));
            self.protected.retain(|&other| other != frame);
        }
    }

    /// Every folio leaves from where it came to stand, from the middle of any queue as well, and the counts agree.
    #[test]
    fn queues_are_as_a_plain_model_has_them() {
        let desk = Desk::new(64);
        let mut out: Vec<Frame> = core::iter::from_fn(|| desk.folio()).collect();
        let (mut queues, mut model) = (Queues::new(), Model::default());
        let mut seed = 88_172_645_463_325_252u64;
        let mut dice = |bound: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as usize % bound
        };
        for _ in 0..100_000 {
            let queue = Queue::ALL[dice(4)];
            let standing = Standing { class: [Class::Probation, Class::Protected][dice(2)], rank: dice(4) as u8 };
            match dice(7) {
                0 | 1 if !out.is_empty() => {
                    let frame = out.swap_remove(dice(out.len()));
                    queues.push(&desk, queue, frame, standing);
                    assert_eq!(desk.record(frame).standing(), standing);
                    model.queues[queue as usize].push_back(frame);
                    model.protected.extend((standing.class == Class::Protected).then_some(frame));
                }
                2 if !out.is_empty() => {
                    let frame = out.swap_remove(dice(out.len()));
                    queues.push_first(&desk, frame);
                    model.queues[Queue::First as usize].push_front(frame);
                }
                3 => {
                    let oldest = queues.pop(&desk, queue).map(|(frame, _)| frame);
                    assert_eq!(oldest, model.queues[queue as usize].front().copied());
                    oldest.into_iter().for_each(|frame| {
                        model.take(frame);
                        out.push(frame);
                    });
                }
                4 => {
                    // A run of one queue, and others.
                    let mut taken = Taken::default();
                    let from = &model.queues[queue as usize];
                    let mut frames: Vec<Frame> = from.iter().copied().skip(dice(8)).take(dice(5)).collect();
                    frames.extend(
                        model.queues[Queue::Entry as usize].iter().filter(|&frame| !from.contains(frame)).nth(2),
                    );
                    for &frame in &frames {
                        queues.gather(&desk, &mut taken, frame);
                    }
                    queues.finish(&desk, taken);
                    frames.into_iter().for_each(|frame| {
                        model.take(frame);
                        out.push(frame);
                    });
                }
                5 => {
                    let frames: Vec<Frame> =
                        model.queues[queue as usize].iter().copied().skip(1).take(dice(5)).collect();
                    queues.move_first(&desk, &frames);
                    frames.iter().for_each(|&frame| model.take(frame));
                    frames.iter().rev().for_each(|&frame| model.queues[Queue::First as usize].push_front(frame));
                    // A chain goes in front of the chain before; this is one.
                }
                _ if dice(20) == 0 => {
                    let to = Queue::ALL[dice(4)];
                    if queue != to {
                        queues.append(&desk, queue, to);
                        let moved = core::mem::take(&mut model.queues[queue as usize]);
                        model.queues[to as usize].extend(moved);
                    }
                }
                _ => {}
            }
            assert_eq!(queues.len() as usize, model.queues.iter().map(VecDeque::len).sum::<usize>());
            assert_eq!(queues.protected() as usize, model.protected.len());
            Queue::ALL
                .iter()
                .for_each(|&each| assert_eq!(queues.is_empty(each), model.queues[each as usize].is_empty()));
        }
    }
}
