//! The buddy allocator, and the magazines of single frames in front of it.
//!
//! A free block of order `k` is 2^k frames whose first frame number is a multiple of 2^k, so that a folio is always
//! aligned for its contiguous group. Its buddy is the block whose number differs in bit `k`; two free buddies merge.
//! Blocks of one order form a doubly linked list through the records.
//!
//! Each CPU has a magazine of single frames: the fault path takes one with an uncontended lock and no list work, and
//! the magazine refills and drains in batches of [`BATCH`]. Frames in a magazine count as used for the watermarks
//! and as free in [`totals`](super::Frames::free_frames).

use super::database::Frames;
use super::{Frame, FrameRecord, Kind, NO_FRAME};
use crate::sync::{Ordering, Spin};

/// The largest order: 2^9 pages, one table's worth of 4 KiB pages.
pub const MAX_ORDER: u32 = 9;

/// Frames that one refill or drain moves: half a magazine, so that alternating allocations and frees between two
/// batches touch the buddy lists once in 32 operations at most.
const BATCH: usize = 32;
const MAGAZINE: usize = 2 * BATCH;

/// How far an allocation may go.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Urgency {
    /// Leaves the reserve alone: fails when fewer frames than the reserve are free.
    Normal,
    /// May take the last frame: for the page without which nothing can be freed (a swap-in that gives a slot back).
    Reserve,
}

/// Free blocks by order.
pub(super) struct Buddy {
    heads: [u32; MAX_ORDER as usize + 1],
    free: u64,
}

/// Single frames at one CPU's hand.
pub(super) struct Magazine {
    frames: [Frame; MAGAZINE],
    len: usize,
}

impl Magazine {
    pub(super) const fn new() -> Self {
        Self { frames: [Frame(0); MAGAZINE], len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }
}

impl Buddy {
    pub(super) const fn new() -> Self {
        Self { heads: [NO_FRAME; MAX_ORDER as usize + 1], free: 0 }
    }

    /// Free frames, without those in magazines.
    pub(super) const fn free(&self) -> u64 {
        self.free
    }

    fn link(&mut self, frames: &Frames, block: Frame, order: u32) {
        let head = self.heads[order as usize];
        let record = frames.record(block);
        record.begin(Kind::Free, order);
        record.prev.store(NO_FRAME, Ordering::Relaxed);
        record.next.store(head, Ordering::Relaxed);
        if head != NO_FRAME {
            frames.record(Frame(head)).prev.store(block.0, Ordering::Relaxed);
        }
        self.heads[order as usize] = block.0;
    }

    fn unlink(&mut self, frames: &Frames, record: &FrameRecord, order: u32) {
        let (next, prev) = (record.next.load(Ordering::Relaxed), record.prev.load(Ordering::Relaxed));
        if next != NO_FRAME {
            frames.record(Frame(next)).prev.store(prev, Ordering::Relaxed);
        }
        if prev != NO_FRAME {
            frames.record(Frame(prev)).next.store(next, Ordering::Relaxed);
        } else {
            self.heads[order as usize] = next;
        }
    }

    /// Takes a block of 2^`order` frames, leaving at least `reserve` frames free.
    pub(super) fn take(&mut self, frames: &Frames, order: u32, reserve: u64) -> Option<Frame> {
        if self.free < reserve + (1 << order) {
            return None;
        }
        let found = (order..=MAX_ORDER).find(|&k| self.heads[k as usize] != NO_FRAME)?;
        let block = Frame(self.heads[found as usize]);
        self.unlink(frames, frames.record(block), found);
        for k in (order..found).rev() {
            self.link(frames, Frame(block.0 + (1 << k)), k);
        }
        self.free -= 1 << order;
        frames.record(block).begin(Kind::Tail, order);
        Some(block)
    }

    /// Takes a block of at most 2^`most` frames: the largest such order that is to be had.
    fn take_up_to(&mut self, frames: &Frames, most: u32, reserve: u64) -> Option<(Frame, u32)> {
        (0..=most).rev().find_map(|order| Some((self.take(frames, order, reserve)?, order)))
    }

    /// Gives a block back, merged with its free buddies.
    pub(super) fn give(&mut self, frames: &Frames, block: Frame, order: u32) {
        self.free += 1 << order;
        let (mut block, mut order) = (block, order);
        while order < MAX_ORDER {
            let Some(buddy) = frames.buddy_of(block, order) else { break };
            let record = frames.record(buddy);
            if record.kind() != Kind::Free || record.order() != order {
                break;
            }
            self.unlink(frames, record, order);
            record.begin(Kind::Tail, 0);
            frames.record(block).begin(Kind::Tail, 0);
            block = Frame(block.0.min(buddy.0));
            order += 1;
        }
        self.link(frames, block, order);
    }
}

impl Magazine {
    /// Takes one frame, if there is one.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Frame> {
        self.len = self.len.checked_sub(1)?;
        Some(self.frames[self.len & (MAGAZINE - 1)])
    }

    /// Refills an empty magazine and takes one frame; says as well how many frames are left in the buddy lists.
    ///
    /// By blocks, the largest that fit, so that a batch costs one or two list operations when memory is whole.
    pub(super) fn refill_and_take(
        &mut self,
        frames: &Frames,
        buddy: &Spin<Buddy>,
        urgency: Urgency,
        reserve: u64,
    ) -> Option<(Frame, u64)> {
        // What comes out of the reserve is for one page alone.
        let (wanted, reserve) = match urgency {
            Urgency::Normal => (BATCH, reserve),
            Urgency::Reserve => (1, 0),
        };
        let mut buddy = buddy.lock();
        while self.len < wanted {
            let order = (wanted - self.len).ilog2();
            let Some((block, order)) = buddy.take_up_to(frames, order, reserve) else { break };
            // From the top down, so that frames are handed out in ascending order.
            for index in (0..1 << order).rev() {
                self.frames[self.len] = Frame(block.0 + index);
                self.len += 1;
            }
        }
        Some((self.take()?, buddy.free()))
    }

    /// Puts one frame back, draining half to `buddy` when full.
    #[inline]
    pub(super) fn put(&mut self, frames: &Frames, buddy: &Spin<Buddy>, frame: Frame) {
        if self.len == MAGAZINE {
            self.drain(frames, buddy, BATCH);
        }
        self.frames[self.len & (MAGAZINE - 1)] = frame;
        self.len += 1;
    }

    /// Moves frames to `buddy` until `keep` are left.
    #[cold]
    pub(super) fn drain(&mut self, frames: &Frames, buddy: &Spin<Buddy>, keep: usize) {
        let mut buddy = buddy.lock();
        while self.len > keep {
            self.len -= 1;
            buddy.give(frames, self.frames[self.len], 0);
        }
    }
}
