//! Write-out: the tags are kept, then the data goes to the device.

use core::mem::MaybeUninit;

use super::area::{Area, uncache};
use super::slot::{SlotRecord, SlotState};
use crate::addr::{Pfn, PfnRange};
use crate::frame::{FolioLock, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::mte::{Encoded, TagImage, encode};
use crate::sync::assert_may_sleep;

/// A page that is unmapped and cached under its slot, on its way to the device.
///
/// Made by [`Prepared::commit`](super::Prepared::commit) when the swap entry stands in a table. The slot belongs to
/// the entry now; what is left here is the room that was reserved for the tags.
#[must_use = "the page is in memory until it is written out"]
pub(crate) struct Leaving<'a, M: Machine> {
    pub(super) area: &'a Area<M>,
    pub(super) slot: u32,
    pub(super) room: Option<u32>,
}

/// What became of a page that was to be written out.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Written {
    /// The slot has it, and the cache has let go of the frame.
    Gone,
    /// The device failed: the frame is still the page's only copy, and cached.
    Kept,
}

impl<'a, M: Machine> Leaving<'a, M> {
    /// A cached folio whose write failed before, to try again. `None` when its slot is gone.
    pub(crate) fn again(mm: &'a Mm<M>, folio: &FolioLock<'_, M>) -> Option<Self> {
        let record = mm.frames().record(folio.frame());
        let area = mm.swap().area(record.area())?;
        let slot = record.slot.load(crate::sync::Ordering::Relaxed);
        area.slot(slot as u64)?;
        // Its tags were kept with the slot the first time.
        Some(Self { area, slot, room: None })
    }

    /// Keeps the tags of `frame` with the slot. Cannot fail: room for the worst case was reserved.
    #[inline]
    fn save_tags(&mut self, mm: &Mm<M>, frame: Pfn) {
        let mut words = MaybeUninit::uninit();
        let tags = mm.machine().load_tags(frame, &mut words);
        let stats = mm.stats();
        let image = match (encode::<M::Granule>(tags.as_ref()), self.room) {
            (Encoded::Uniform(tag), _) => {
                stats.tags_uniform.bump();
                TagImage::Uniform(tag)
            }
            (Encoded::Packed(runs), _) => {
                stats.tags_packed.bump();
                TagImage::Packed(runs)
            }
            (Encoded::Raw, Some(room)) => {
                stats.tags_raw.bump();
                self.room = None;
                self.area.keep_image(room, tags)
            }
            // A second write of the same page: the first kept them.
            (Encoded::Raw, None) => return,
        };
        if let Some(record) = self.area.slot(self.slot as u64) {
            record.set_tags(image);
        }
    }

    /// Writes the page out: tags, then data. Only after the flush that covers its unmapping.
    ///
    /// With [`Written::Gone`] the frame has left the cache and the caller's reference is the last.
    #[inline]
    pub(crate) fn write_out(mut self, mm: &Mm<M>, folio: &FolioLock<'_, M>) -> Written {
        let frame = mm.frames().pfn(folio.frame());
        let record = mm.frames().record(folio.frame());
        if record.has(flag::TAGS_VALID) {
            self.save_tags(mm, frame);
        } else {
            mm.stats().tags_untagged.bump();
        }
        assert_may_sleep();
        if self.area.device().write(mm.machine(), PfnRange::new(frame, 1), self.slot).is_err() {
            mm.stats().write_errors.bump();
            if matches!(
                self.area.slot(self.slot as u64).map(SlotRecord::state),
                Some(SlotState::Cached { count: 1.., .. })
            ) {
                return Written::Kept;
            }
            // Its last swap entry went away meanwhile: nobody wants the page.
            self.area.leave_cache(mm.frames(), folio, self.slot);
            return Written::Gone;
        }
        mm.stats().swap_out.bump();
        self.area.wrote(self.slot, mm.evicted());
        uncache(mm.frames(), folio);
        Written::Gone
    }
}

impl<M: Machine> Drop for Leaving<'_, M> {
    #[inline]
    fn drop(&mut self) {
        self.area.give_room(self.room);
    }
}
