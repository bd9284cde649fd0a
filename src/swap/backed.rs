//! Backed folios: mapped, and not gone from their slots.
//!
//! What a program reads in, it may never store to. Where reading costs more than a copy in memory, such a folio keeps
//! its slots when it is mapped: its leaves are clean, its slots are cached, and it leaves again by an exchange of the
//! entries alone. The slots' tags, words and sums stay what they were. So do pages that several spaces have, on
//! whatever device: who comes for one of them next finds it in memory.
//!
//! **The law.** A clean leaf of a backed folio says that the slots have the page. So whoever gives the slots to
//! somebody else first makes every leaf of the folio dirty (`rmap::backed`), under the lock of
//! their table and the folio's; and a program that gives a page up (MADV_FREE makes it clean for another reason) has it
//! unbacked before.
//!
//! **Which.** A folio that came in for several, or for a load or a fetch, from a device that is not
//! [`SYNCHRONOUS`](DeviceFlags::SYNCHRONOUS), and an area that is not half full. While a swap entry names one of its
//! slots no leaf of it is writable, so none is dirty, and it stays backed; but where the area is being turned off
//! reclaim parts it from them (`rmap::backed`). A dirty one loses its slots when reclaim comes to it; the others when
//! slots are short ([`Mm::unback_some`]), when the area is turned off, or with the folio.

use super::area::Area;
use super::areas::Swap;
use super::cache::slots_of;
use super::device::DeviceFlags;
use super::slot::SlotState;
use super::slots::Slots;
use crate::frame::{FolioLock, Frame, Frames, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::SwapEntry;
use crate::sync::{Inside, Ordering};

/// Slots that one search for backed folios looks at: while slots are short each batch of reclaim's whose folios find
/// none searches once. That is 32 looks for a folio, a tenth of what else it costs to look at one that stays; and the
/// three passes over memory look at 96 times as many slots as there are folios.
const LOOKS: u64 = 1024;

impl<M: Machine> Swap<M> {
    /// Whether any folio is backed, or is leaving its slots. Those of a space stay as they are while its lock is held.
    /// If not, the slots of those that were are nobody's.
    #[inline]
    pub(crate) fn some_are_backed(&self) -> bool {
        self.backed.load(Ordering::Acquire) > 0
    }

    /// The area, where a page that comes in from there for its only user is to keep its slot. It is not turned off
    /// while this is held.
    #[inline]
    pub(crate) fn backing(&self, area: &Area<M>) -> Option<Inside<'_, Area<M>>> {
        if area.flags().contains(DeviceFlags::SYNCHRONOUS) {
            return None;
        }
        let (slots, free) = area.slots();
        // A slot that is kept is one that nobody else can have: half of them are left for that.
        self.enter_open(area.number()).filter(|_| free > slots / 2)
    }
}

impl<M: Machine> Area<M> {
    /// References to folios that have the next slots and no swap entry for the first of them.
    pub(crate) fn next_backed<'a>(&'a self, frames: &'a Frames) -> impl Iterator<Item = Frame> {
        let first = self.next_look(LOOKS);
        (first..first + LOOKS).filter_map(move |slot| match self.slot(slot)?.state() {
            SlotState::Cached { count: 0, .. } => self.get_cached(frames, slot),
            _ => None,
        })
    }
}

impl<M: Machine> Mm<M> {
    /// Leaves a folio that nobody else knows of, headed by `head` and read from the slots from `first` on, in these.
    /// `None` when another space has brought a page of it in meanwhile. The caller has a use of each slot.
    pub(crate) fn back(&self, area: &Area<M>, head: Frame, first: u32) -> Option<()> {
        let frames = self.frames();
        let record = frames.record(head);
        let slots = Slots::new(first, record.order());
        let _cluster = area.lock_cluster(first)?;
        if !area.records_of(slots).iter().all(|slot| matches!(slot.state(), SlotState::Out { .. })) {
            return None;
        }
        record.enter_cache(area.number(), first);
        record.set(flag::BACKED);
        area.each_record(slots, head, |frame, record| record.keep(frame));
        self.swap().backed.fetch_add(1, Ordering::Relaxed);
        Some(())
    }

    /// Takes the mark off a backed folio, and has `leave` give its slots up. Counted until that is done: who turns the
    /// area off waits for whoever does it only as long as some are backed.
    fn end_backing(&self, frame: Frame, leave: impl FnOnce()) {
        self.frames().record(frame).clear(flag::BACKED);
        leave();
        self.swap().backed.fetch_sub(1, Ordering::Release);
    }

    /// The swap entry of the first page of a cached folio that is to leave to its own slots. `None` when its area is
    /// gone, which cannot be.
    pub(crate) fn entry_of(&self, folio: &FolioLock<'_, M>) -> Option<SwapEntry> {
        let area = self.swap().area(folio.record().area())?;
        Some(SwapEntry::exclusive(area.number(), slots_of(folio).first()))
    }

    /// The area of a cached folio, where its leaves may become entries of its slots. None become that of an area which
    /// is about to go away: that waits for whoever holds this.
    pub(crate) fn enter_slots(&self, folio: &FolioLock<'_, M>) -> Option<Inside<'_, Area<M>>> {
        self.swap().enter_open(folio.record().area())
    }

    /// Every leaf of a backed folio is gone: it is cached, on its way out.
    pub(crate) fn leaves_as_it_came(&self, folio: &FolioLock<'_, M>) {
        self.end_backing(folio.frame(), || {});
    }

    /// A folio that went back to its slots leaves the cache. After the flush.
    pub(crate) fn returned_to_slots(&self, folio: &FolioLock<'_, M>) {
        let frames = self.frames();
        let Some(area) = self.swap().area(folio.record().area()) else { return };
        let slots = slots_of(folio);
        self.stats().swap_out_clean.add(slots.pages());
        area.wrote(frames, folio, slots, self.evicted(folio.frame(), slots.pages()));
    }

    /// Frees the slots of a backed folio whose leaves are dirty. Under the lock of their table.
    pub(crate) fn leave_slots(&self, folio: &FolioLock<'_, M>) {
        let Some(area) = self.swap().area(folio.record().area()) else { return };
        self.end_backing(folio.frame(), || area.leave_cache(self.frames(), folio));
    }

    /// A backed folio whose leaves are dirty leaves its slots: those that swap entries name are out, the others free.
    pub(crate) fn part_from_slots(&self, folio: &FolioLock<'_, M>) {
        if self.is_wanted(folio) {
            self.stats().parted.add(slots_of(folio).pages());
        }
        self.leave_slots_to_others(folio);
    }

    /// A backed folio that nobody maps or holds any more leaves its slots: those that other spaces name are out, the
    /// others free.
    #[cold]
    pub(crate) fn end_with_slots(&self, head: Frame) {
        let frames = self.frames();
        // Nobody can have the lock, nor come by it.
        if let Some(folio) = frames.try_lock(self.machine(), head) {
            self.leave_slots_to_others(&folio);
        }
    }

    fn leave_slots_to_others(&self, folio: &FolioLock<'_, M>) {
        let (frames, head) = (self.frames(), folio.frame());
        let Some(area) = self.swap().area(frames.record(head).area()) else { return };
        self.end_backing(head, || area.wrote(frames, folio, slots_of(folio), self.evicted(head, 0)));
    }
}
