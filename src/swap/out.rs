//! Write-out: the tags are kept, then the data goes to the device.

use core::mem::MaybeUninit;

use super::area::Area;
use super::cache::slots_of;
use super::slot::SlotRecord;
use super::slots::Slots;
use crate::addr::PfnRange;
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

/// What became of a folio that was to be written out.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Written {
    /// The slots have it, and the cache has let go of it.
    Gone,
    /// The device failed: the folio is still the only copy, and cached.
    Kept,
}

/// What was written, counted: a batch at once.
#[derive(Default)]
pub(crate) struct Saved {
    untagged: u64,
    uniform: u64,
    packed: u64,
    raw: u64,
    pages: u64,
    folios: u64,
}

impl Saved {
    /// Adds it to the counters.
    pub(crate) fn count(&self, stats: &Stats) {
        stats.tags_untagged.add(self.untagged);
        stats.tags_uniform.add(self.uniform);
        stats.tags_packed.add(self.packed);
        stats.tags_raw.add(self.raw);
        stats.swap_out.add(self.pages);
        stats.swap_out_folios.add(self.folios);
    }
}

impl<'a, M: Machine> Leaving<'a, M> {
    /// A cached folio whose write failed before, to try again. `None` when its area is gone.
    pub(crate) fn again(mm: &'a Mm<M>, folio: &FolioLock<'_, M>) -> Option<Self> {
        let area = mm.swap().area(mm.frames().record(folio.frame()).area())?;
        // Its tags were kept with the slots the first time.
        Some(Self { area, slots: slots_of(mm.frames(), folio), rooms: 0 })
    }

    /// Keeps the tags of a page of the folio with its slot. Cannot fail: room for the worst case was reserved.
    #[inline(always)]
    fn save_tags(&mut self, mm: &Mm<M>, page: Frame, record: &SlotRecord, saved: &mut Saved) {
        if !mm.frames().record(page).has(flag::TAGS_VALID) {
            saved.untagged += 1;
            return;
        }
        let mut words = MaybeUninit::uninit();
        let tags = mm.machine().load_tags(mm.frames().pfn(page), &mut words);
        let image = match encode::<M::Granule>(tags.as_ref()) {
            Encoded::Uniform(tag) => {
                saved.uniform += 1;
                TagImage::Uniform(tag)
            }
            Encoded::Packed(runs) => {
                saved.packed += 1;
                TagImage::Packed(runs)
            }
            // A second write of the same page: the first kept them.
            Encoded::Raw if self.rooms == 0 => return,
            Encoded::Raw => {
                let Some(image) = self.area.keep_image(tags) else { return };
                saved.raw += 1;
                self.rooms -= 1;
                image
            }
        };
        record.set_tags(image);
    }

    /// Writes the folio out: tags, then data. Only after the flush that covers its unmapping.
    ///
    /// With [`Written::Gone`] the folio has left the cache and the caller's reference is the last.
    #[inline]
    pub(crate) fn write_out(self, mm: &Mm<M>, folio: &FolioLock<'_, M>, saved: &mut Saved) -> Written {
        match self.slots.order() {
            0 => self.write(mm, folio, 0, saved),
            order => self.write(mm, folio, order, saved),
        }
    }

    /// [`Leaving::write_out`] of 2^`order` pages. Inlined at both of its places: for one page all loops fall away.
    #[inline(always)]
    fn write(mut self, mm: &Mm<M>, folio: &FolioLock<'_, M>, order: u32, saved: &mut Saved) -> Written {
        let (frames, stats) = (mm.frames(), mm.stats());
        let head = folio.frame();
        self.slots = Slots::new(self.slots.first(), order);
        let pages = self.slots.pages();
        for (page, record) in frames.pages(head, pages).zip(self.area.records_of(self.slots)) {
            self.save_tags(mm, page, record, saved);
        }
        assert_may_sleep();
        let run = PfnRange::new(frames.pfn(head), pages);
        if self.area.device().write(mm.machine(), run, self.slots.first()).is_err() {
            stats.write_errors.bump();
            if self.area.is_wanted(self.slots) {
                return Written::Kept;
            }
            // The last swap entry went away meanwhile: nobody wants the folio.
            self.area.leave_cache(frames, folio);
            return Written::Gone;
        }
        saved.pages += pages;
        saved.folios += u64::from(pages > 1);
        self.area.wrote(frames, folio, self.slots, mm.evicted(pages));
        Written::Gone
    }
}

impl<M: Machine> Drop for Leaving<'_, M> {
    #[inline]
    fn drop(&mut self) {
        if self.rooms > 0 {
            self.area.rooms.unreserve(self.rooms);
        }
    }
}
