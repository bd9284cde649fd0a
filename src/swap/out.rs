//! Write-out: the tags are kept, then the data goes to the device.

use core::mem::MaybeUninit;

use super::area::Area;
use super::cache::slots_of;
use super::slots::Slots;
use crate::addr::PfnRange;
use crate::frame::{FolioLock, Frame, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::mte::{Encoded, TagImage, encode};
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

impl<'a, M: Machine> Leaving<'a, M> {
    /// A cached folio whose write failed before, to try again. `None` when its area is gone.
    pub(crate) fn again(mm: &'a Mm<M>, folio: &FolioLock<'_, M>) -> Option<Self> {
        let area = mm.swap().area(mm.frames().record(folio.frame()).area())?;
        // Its tags were kept with the slots the first time.
        Some(Self { area, slots: slots_of(mm.frames(), folio), rooms: 0 })
    }

    /// Keeps the tags of the folio's page `page` with its slot. Cannot fail: room for the worst case was reserved.
    #[inline]
    fn save_tags(&mut self, mm: &Mm<M>, head: Frame, page: u64) {
        let stats = mm.stats();
        let own = |frame| mm.frames().record(frame).has(flag::TAGS_VALID);
        let Some(frame) = mm.frames().tail(head, page).filter(|&frame| own(frame)) else {
            stats.tags_untagged.bump();
            return;
        };
        let mut words = MaybeUninit::uninit();
        let tags = mm.machine().load_tags(mm.frames().pfn(frame), &mut words);
        let image = match encode::<M::Granule>(tags.as_ref()) {
            Encoded::Uniform(tag) => {
                stats.tags_uniform.bump();
                TagImage::Uniform(tag)
            }
            Encoded::Packed(runs) => {
                stats.tags_packed.bump();
                TagImage::Packed(runs)
            }
            // A second write of the same page: the first kept them.
            Encoded::Raw if self.rooms == 0 => return,
            Encoded::Raw => {
                let Some(image) = self.area.keep_image(tags) else { return };
                stats.tags_raw.bump();
                self.rooms -= 1;
                image
            }
        };
        if let Some(record) = self.area.slot(self.slots.nth(page) as u64) {
            record.set_tags(image);
        }
    }

    /// Writes the folio out: tags, then data. Only after the flush that covers its unmapping.
    ///
    /// With [`Written::Gone`] the folio has left the cache and the caller's reference is the last.
    #[inline]
    pub(crate) fn write_out(mut self, mm: &Mm<M>, folio: &FolioLock<'_, M>) -> Written {
        let (frames, stats) = (mm.frames(), mm.stats());
        let head = folio.frame();
        let pages = self.slots.pages();
        for page in 0..pages {
            self.save_tags(mm, head, page);
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
        stats.swap_out.add(pages);
        if pages > 1 {
            stats.swap_out_folios.bump();
        }
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
