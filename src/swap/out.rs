//! Write-out: the tags are kept, then the data goes to the device.
//!
//! A page that repeats one word never gets there: the word is kept with the slot, and its tags are kept as any page's
//! are. What is left of a large folio goes by one request for each run of pages.
//!
//! A request may stay under way: then the folio stays locked and cached, a fault that wants it waits for its lock, and
//! the folios after it are begun meanwhile. So no device ever sees a page change that it is writing.

use core::mem::MaybeUninit;
use core::ops::Range;

use arrayvec::ArrayVec;

use super::area::Area;
use super::cache::slots_of;
use super::device::{DeviceError, DeviceFlags, Progress, SUMMED_PAGES, Ticket};
use super::read_in::{joined, sum_of_tags};
use super::slot::SlotRecord;
use super::slots::Slots;
use crate::addr::{Pfn, PfnRange};
use crate::frame::{FolioLock, Frame, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::mte::{Encoded, TagImage, encode};
use crate::stats::Stats;
use crate::sync::assert_may_sleep;

/// A folio that is unmapped and cached under its slots, on its way to the device.
///
/// Made by [`Prepared::commit`](super::Prepared::commit) when the swap entries stand in a table. The slots belong to
/// the entries now; what is left here are the rooms that were reserved for the tags.
#[must_use = "the folio is in memory until it is written out"]
pub(crate) struct Leaving<'a, M: Machine> {
    pub(super) area: &'a Area<M>,
    pub(super) slots: Slots,
    pub(super) rooms: u32,
}

/// A folio whose last request is under way.
#[must_use = "the folio is the device's until the request has ended"]
pub(crate) struct Writing<'a, M: Machine> {
    leaving: Leaving<'a, M>,
    ticket: Ticket,
    /// How the requests before it ended.
    before: Result<(), DeviceError>,
}

/// What became of a folio that was to be written out.
///
/// With [`Written::Gone`] the folio has left the cache and the caller's reference is the last.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Written {
    /// The slots have it, and the cache has let go of it.
    Gone,
    /// The device failed: the folio is still the only copy, and cached.
    Kept,
    /// The device has yet to say.
    Late,
}

/// What was written, counted: a batch at once.
#[derive(Default)]
pub(crate) struct Saved {
    untagged: u64,
    uniform: u64,
    packed: u64,
    strided: u64,
    raw: u64,
    same: u64,
    pages: u64,
    folios: u64,
}

impl Saved {
    /// Adds it to the counters.
    pub(crate) fn count(&self, stats: &Stats) {
        stats.tags_untagged.add(self.untagged);
        stats.tags_uniform.add(self.uniform);
        stats.tags_packed.add(self.packed);
        stats.tags_strided.add(self.strided);
        stats.tags_raw.add(self.raw);
        stats.swap_out.add(self.pages);
        stats.swap_out_same.add(self.same);
        stats.swap_out_folios.add(self.folios);
    }
}

impl<'a, M: Machine> Leaving<'a, M> {
    /// A cached folio whose write failed before, to try again. `None` when its area is gone.
    pub(crate) fn again(mm: &'a Mm<M>, folio: &FolioLock<'_, M>) -> Option<Self> {
        let area = mm.swap().area(folio.record().area())?;
        // Its tags were kept with the slots the first time.
        Some(Self { area, slots: slots_of(folio), rooms: 0 })
    }

    /// Pages of the folio.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        self.slots.pages()
    }

    /// Whether the device's pages are summed.
    #[inline]
    fn is_checked(&self) -> bool {
        self.area.flags().contains(DeviceFlags::CHECKED)
    }

    /// Keeps the tags of a page of the folio with its slot. Cannot fail: room for the worst case was reserved.
    #[inline(always)]
    fn save_tags(&mut self, mm: &Mm<M>, (page, pfn): (Frame, Pfn), record: &SlotRecord, saved: &mut Saved) {
        if !mm.frames().record(page).has(flag::TAGS_VALID) {
            saved.untagged += 1;
            if self.is_checked() {
                record.set_sum(0);
            }
            return;
        }
        let mut words = MaybeUninit::uninit();
        let tags = mm.machine().load_tags(pfn, &mut words);
        if self.is_checked() {
            record.set_sum(sum_of_tags(tags.as_ref()));
        }
        let image = match encode::<M::Granule>(tags.as_ref()) {
            Encoded::Uniform(tag) => {
                saved.uniform += 1;
                TagImage::Uniform(tag)
            }
            Encoded::Packed(runs) => {
                saved.packed += 1;
                TagImage::Packed(runs)
            }
            Encoded::Strided(word) => {
                saved.strided += 1;
                TagImage::Strided(word)
            }
            // A second write of the same page: the first kept them.
            Encoded::Raw if self.rooms == 0 => return,
            Encoded::Raw => {
                let Some(image) = self.area.keep_image(tags) else { return };
                // The caller counts the rooms that went.
                self.rooms -= 1;
                image
            }
        };
        record.set_tags(image);
    }

    /// Begins to write some of the pages of `run`, which are the folio's.
    #[inline]
    fn write_pages(&self, mm: &Mm<M>, run: PfnRange, pages: Range<u64>) -> Result<Progress, DeviceError> {
        if pages.is_empty() {
            return Ok(Progress::Done);
        }
        assert_may_sleep();
        let part = PfnRange::new(run.start().offset(pages.start), pages.end - pages.start);
        let first = self.slots.first() + pages.start as u32;
        if self.is_checked() {
            return self.write_checked(mm, part, first);
        }
        self.area.device().write(mm.machine(), part, first)
    }

    /// Begins to write a run to the slots from `first` on, and adds the data's sums to the slots' sums of the tags.
    /// Waits for all requests but the last.
    #[inline(never)]
    fn write_checked(&self, mm: &Mm<M>, run: PfnRange, first: u32) -> Result<Progress, DeviceError> {
        let (machine, device) = (mm.machine(), self.area.device());
        let mut sums = [0; SUMMED_PAGES];
        let mut last = Progress::Done;
        let records = self.area.records(first.into(), run.pages());
        for (part, records) in (0..).step_by(SUMMED_PAGES).zip(records.chunks(SUMMED_PAGES)) {
            last.finish(machine, device)?;
            let sums = &mut sums[..records.len()];
            let frames = PfnRange::new(run.start().offset(part), records.len() as u64);
            last = device.write_summed(machine, frames, first + part as u32, sums)?;
            for (record, &mut data) in records.iter().zip(sums) {
                record.set_sum(joined(data, record.sum()));
            }
        }
        Ok(last)
    }

    /// Writes the pages before one that needs no device.
    #[inline(never)]
    fn write_before(&self, mm: &Mm<M>, run: PfnRange, pages: Range<u64>) -> Result<(), DeviceError> {
        self.write_pages(mm, run, pages)?.finish(mm.machine(), self.area.device())
    }

    /// Writes the folio out: tags, then data. Only after the flush that covers its unmapping.
    ///
    /// With [`Written::Late`] it has joined `late`.
    #[inline]
    pub(crate) fn write_out<const N: usize>(
        self,
        mm: &Mm<M>,
        folio: &FolioLock<'_, M>,
        saved: &mut Saved,
        late: &mut Late<'a, M, N>,
    ) -> Written {
        match self.slots.order() {
            0 => self.write_single(mm, folio, saved, late),
            _ => self.write_large(mm, folio, saved, late),
        }
    }

    /// [`Leaving::write_out`] of one page: without the loops of a large folio.
    #[inline(always)]
    fn write_single<const N: usize>(
        mut self,
        mm: &Mm<M>,
        folio: &FolioLock<'_, M>,
        saved: &mut Saved,
        late: &mut Late<'a, M, N>,
    ) -> Written {
        let head = folio.frame();
        // The same, of an order that the compiler knows.
        self.slots = Slots::new(self.slots.first(), 0);
        let reserved = self.rooms;
        let run = PfnRange::new(mm.frames().pfn(head), 1);
        let mut unwritten = 0..1;
        if let Some(record) = self.area.slot(self.slots.first().into()) {
            self.save_tags(mm, (head, run.start()), record, saved);
            if let Some(word) = mm.machine().repeated_word(run.start()) {
                record.set_same(word);
                saved.same += 1;
                unwritten = 1..1;
            }
        }
        saved.raw += u64::from(reserved - self.rooms);
        let last = self.write_pages(mm, run, unwritten);
        self.begun(mm, folio, Ok(()), last, saved, late)
    }

    /// [`Leaving::write_out`] of more pages.
    #[inline(always)]
    fn write_large<const N: usize>(
        mut self,
        mm: &Mm<M>,
        folio: &FolioLock<'_, M>,
        saved: &mut Saved,
        late: &mut Late<'a, M, N>,
    ) -> Written {
        let frames = mm.frames();
        let head = folio.frame();
        let pages = self.slots.pages();
        let run = PfnRange::new(frames.pfn(head), pages);
        let reserved = self.rooms;
        let mut before = Ok(());
        // The first page that the device has not been asked to write.
        let mut next = 0;
        for (page, record) in frames.pages(head, pages).zip(self.area.records_of(self.slots)) {
            let pfn = frames.pfn(page);
            self.save_tags(mm, (page, pfn), record, saved);
            if let Some(word) = mm.machine().repeated_word(pfn) {
                record.set_same(word);
                saved.same += 1;
                let index = (page.index() - head.index()).into();
                before = before.and(self.write_before(mm, run, next..index));
                next = index + 1;
            }
        }
        saved.raw += u64::from(reserved - self.rooms);
        let last = self.write_pages(mm, run, next..pages);
        self.begun(mm, folio, before, last, saved, late)
    }

    /// All of the folio has been asked of the device: `last` is what it said to the last request.
    #[inline(always)]
    fn begun<const N: usize>(
        mut self,
        mm: &Mm<M>,
        folio: &FolioLock<'_, M>,
        before: Result<(), DeviceError>,
        last: Result<Progress, DeviceError>,
        saved: &mut Saved,
        late: &mut Late<'a, M, N>,
    ) -> Written {
        self.give_rooms_back();
        match last {
            Ok(Progress::Pending(ticket)) => join(late, Writing { leaving: self, ticket, before }),
            Ok(Progress::Done) if before.is_ok() => self.wrote(mm, folio, saved),
            Ok(Progress::Done) | Err(DeviceError) => failed(mm, self.area, self.slots, folio),
        }
    }

    /// Gives back the rooms that the tags did not need: while the folio still has its slots, without which the area
    /// might go away.
    #[inline(always)]
    fn give_rooms_back(&mut self) {
        if self.rooms > 0 {
            self.area.rooms.unreserve(self.rooms);
            self.rooms = 0;
        }
    }

    /// The device has all of the folio.
    #[inline(always)]
    fn wrote(self, mm: &Mm<M>, folio: &FolioLock<'_, M>, saved: &mut Saved) -> Written {
        let pages = self.slots.pages();
        saved.pages += pages;
        saved.folios += u64::from(pages > 1);
        self.area.wrote(mm.frames(), folio, self.slots, mm.evicted(folio.frame(), pages));
        Written::Gone
    }
}

/// The folios of a batch of up to `N` that a device takes its time for, in the order in which they joined.
pub(crate) type Late<'a, M, const N: usize> = ArrayVec<Writing<'a, M>, N>;

/// The device has not got all of the folio. Not a method: nobody needs the address of what is on its way, which so
/// stays in registers.
#[cold]
fn failed<M: Machine>(mm: &Mm<M>, area: &Area<M>, slots: Slots, folio: &FolioLock<'_, M>) -> Written {
    mm.stats().write_errors.bump();
    if area.is_wanted(slots) {
        return Written::Kept;
    }
    // The last swap entry went away meanwhile: nobody wants the folio.
    area.leave_cache(mm.frames(), folio);
    Written::Gone
}

#[cold]
fn join<'a, M: Machine, const N: usize>(late: &mut Late<'a, M, N>, writing: Writing<'a, M>) -> Written {
    late.push(writing);
    Written::Late
}

impl<M: Machine> Writing<'_, M> {
    /// Pages of the folio.
    pub(crate) fn pages(&self) -> u64 {
        self.leaving.pages()
    }

    /// Waits for the end.
    pub(crate) fn finish(self, mm: &Mm<M>, folio: &FolioLock<'_, M>, saved: &mut Saved) -> Written {
        assert_may_sleep();
        let last = self.leaving.area.device().finish(mm.machine(), self.ticket);
        match self.before.and(last) {
            Ok(()) => self.leaving.wrote(mm, folio, saved),
            Err(DeviceError) => failed(mm, self.leaving.area, self.leaving.slots, folio),
        }
    }
}

impl<M: Machine> Drop for Leaving<'_, M> {
    #[inline]
    fn drop(&mut self) {
        self.give_rooms_back();
    }
}
