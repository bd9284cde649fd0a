//! A folio's count and its lock.
//!
//! **Count.** `maps` counts leaf entries, those included that were taken out and whose flush is not done: the frames
//! stay until then. `references` those who may look at the folio without mapping it, `pins`
//! those who let a device or the kernel write to it. [`Frames::get`] takes a reference unless the count is zero: a
//! folio on its way to the allocator cannot be revived. [`Frames::put`] gives one back and says whether it was the
//! last. The word itself is [`Count`](super::count::Count).
//!
//! **Lock.** One bit of the flags word. Reclaim takes it by [`Frames::try_lock`] only; a fault may sleep for it, and
//! then confirms again all that it knew.

use super::database::Frames;
use super::{AREA_SHIFT, Frame, FrameRecord, Kind, Left, ORDER_MASK, OwnedFrame, REFERENCE, flag};
use crate::machine::Machine;
use crate::node::Home;
use crate::sync::{Ordering, assert_may_sleep, try_lock_bit, unlock_bits};

impl Frames {
    /// Takes a reference, unless the folio is already nobody's.
    #[inline]
    pub(crate) fn get(&self, frame: Frame) -> bool {
        self.record(frame).count.get()
    }

    /// Gives back counts of weight `weight` in sum: so many [`MAP`](super::MAP) or [`REFERENCE`](super::REFERENCE).
    #[inline]
    pub(crate) fn put(&self, frame: Frame, weight: u64) -> Left {
        self.record(frame).count.put(weight)
    }

    /// The head of the folio that has `frame`, which a leaf entry under the caller's lock names.
    #[inline]
    pub(crate) fn head(&self, frame: Frame) -> Frame {
        let record = self.record(frame);
        if record.kind() != Kind::Tail {
            return frame;
        }
        self.frame_at(record.next.load(Ordering::Relaxed)).unwrap_or(frame)
    }

    /// Page `index` of the folio headed by `head`, which has more pages than that.
    #[inline]
    pub(crate) fn tail(&self, head: Frame, index: u64) -> Option<Frame> {
        self.frame_at(head.index() + index as u32)
    }

    /// Pages of the folio, of 2^`order` pages, that have tags of their own.
    #[inline]
    pub(crate) fn tagged_pages(&self, head: Frame, order: u32) -> u32 {
        if order == 0 {
            return self.record(head).has(flag::TAGS_VALID).into();
        }
        self.pages(head, 1 << order).filter(|&frame| self.record(frame).has(flag::TAGS_VALID)).count() as u32
    }

    /// Makes a tail a folio of one page, which keeps what is its own. Its count and home are the caller's to set.
    pub(crate) fn promote(&self, tail: Frame) {
        let flags = &self.record(tail).flags;
        let own = flags.load(Ordering::Relaxed) & (flag::TAGS_VALID | flag::CODE_SYNCED);
        flags.store(Kind::Folio as u32 | own, Ordering::Relaxed);
    }

    /// Makes page `page` of the folio headed by `head`, which is kept in the swap cache, a kept folio of its own with
    /// `slot` of `area`. Under the head's folio lock.
    pub(crate) fn promote_kept(&self, head: Frame, tail: Frame, page: u64, area: u8, slot: u32) {
        let record = self.record(tail);
        let home = Home::load(&self.record(head).home);
        Home::new(home.node(), home.page().offset(page)).store(&record.home);
        record.slot.store(slot, Ordering::Relaxed);
        record.count.begin(REFERENCE);
        let own = record.flags.load(Ordering::Relaxed) & (flag::TAGS_VALID | flag::CODE_SYNCED);
        let kept = flag::CACHED | flag::KEPT | (area as u32) << AREA_SHIFT;
        record.flags.store(Kind::Folio as u32 | own | kept, Ordering::Release);
    }

    /// Makes a head the head of one page: its own. Under its folio lock, with its tails promoted.
    pub(crate) fn shrink(&self, head: Frame) {
        self.record(head).flags.fetch_and(!ORDER_MASK, Ordering::Relaxed);
    }

    /// Makes folios of one page each of the `pages` pages of a block that nobody else knows of. They keep what is their
    /// own; their counts and homes are the caller's to set.
    pub(crate) fn scatter(&self, block: OwnedFrame<'_>, pages: u64) -> impl Iterator<Item = Frame> {
        let head = block.publish();
        self.shrink(head);
        self.pages(head, pages).inspect(move |&page| {
            if page != head {
                self.promote(page);
            }
        })
    }

    /// Whether anybody holds a pin.
    #[inline]
    pub(crate) fn is_pinned(&self, frame: Frame) -> bool {
        self.record(frame).count.is_pinned()
    }

    /// Takes the folio lock if it is free.
    #[inline]
    pub(crate) fn try_lock<'a, M: Machine>(&'a self, machine: &'a M, frame: Frame) -> Option<FolioLock<'a, M>> {
        let record = self.record(frame);
        let taken = try_lock_bit(&record.flags, flag::LOCKED);
        if taken { Some(FolioLock { record, machine, frame }) } else { None }
    }

    /// Sleeps until the folio lock is free, and takes it. The caller holds a reference and no inner lock.
    pub(crate) fn lock<'a, M: Machine>(&'a self, machine: &'a M, frame: Frame) -> FolioLock<'a, M> {
        assert_may_sleep();
        loop {
            if let Some(lock) = self.try_lock(machine, frame) {
                return lock;
            }
            let flags = &self.record(frame).flags;
            let seen = flags.fetch_or(flag::WAITED, Ordering::Relaxed) | flag::WAITED;
            if seen & flag::LOCKED != 0 {
                machine.wait(flags, seen);
            }
        }
    }
}

/// A held folio lock.
pub struct FolioLock<'a, M: Machine> {
    record: &'a FrameRecord,
    machine: &'a M,
    frame: Frame,
}

impl<'a, M: Machine> FolioLock<'a, M> {
    /// The record of the locked folio.
    #[inline]
    pub(crate) fn record(&self) -> &'a FrameRecord {
        self.record
    }

    /// The locked folio.
    #[inline]
    pub(crate) fn frame(&self) -> Frame {
        self.frame
    }
}

impl<M: Machine> Drop for FolioLock<'_, M> {
    #[inline]
    fn drop(&mut self) {
        let flags = &self.record.flags;
        let before = unlock_bits(flags, flag::LOCKED | flag::WAITED);
        if before & flag::WAITED != 0 {
            self.machine.wake(flags);
        }
    }
}
