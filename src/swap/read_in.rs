//! Read-in: the data and the tags of slots, into frames that nobody sees yet.
//!
//! Nothing of a slot is used up: what was read can be read again. Slots that hold a repeated word are made without the
//! device; what lies between them is read by one request each. On a device that is checked a page counts only if its
//! data and its tags have the sum that they had when it left; a slot whose page has not is poisoned, and not read
//! again.

use super::area::Area;
use super::device::{DeviceError, DeviceFlags, Progress, SUMMED_PAGES};
use super::slot::SlotRecord;
use crate::addr::PfnRange;
use crate::granule::Granule;
use crate::machine::{Machine, TagWords};
use crate::mm::Mm;
use crate::mte::{self, TagImage};
use crate::sync::assert_may_sleep;

/// Why slots could not be read in. None of the frames may be shown.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum ReadError {
    /// The device failed.
    Device,
    /// This slot's page is not the one that left.
    Damaged {
        /// Its place among the slots.
        page: u64,
    },
}

impl From<DeviceError> for ReadError {
    fn from(_: DeviceError) -> Self {
        Self::Device
    }
}

/// What was kept of a page's tags.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Kept {
    /// The page had none of its own.
    None,
    /// All of them.
    Tags,
}

/// The part of a page's sum that its tags make: no tags, none.
#[inline]
pub(super) fn sum_of_tags(words: &[u64]) -> u64 {
    /// 2^64 divided by the golden ratio, made odd: no change of one word goes unnoticed.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    words.iter().fold(1, |sum, &word| u64::wrapping_mul(sum, FACTOR).wrapping_add(word))
}

/// The sum of a page.
#[inline]
pub(super) fn joined(data: u64, tags: u64) -> u64 {
    data.wrapping_add(tags)
}

impl<M: Machine> Area<M> {
    /// Reads `slots`, which are those from `first` on, into `run`, which is as long. Calls `restored` for each page
    /// with what was kept of its tags. May sleep.
    #[inline(always)]
    pub(crate) fn read_in(
        &self,
        mm: &Mm<M>,
        first: u64,
        slots: &[SlotRecord],
        run: PfnRange,
        mut restored: impl FnMut(u64, Kept),
    ) -> Result<(), ReadError> {
        let machine = mm.machine();
        if self.flags().contains(DeviceFlags::CHECKED) {
            return self.read_checked(mm, first as u32, slots, run, restored);
        }
        // The data first: it leaves the tags undefined.
        if slots.iter().any(SlotRecord::is_same) {
            self.read_and_fill(mm, first, slots, run)?;
        } else {
            self.read(machine, first, run, 0, run.pages())?;
        }
        for (page, slot) in (0..).zip(slots) {
            let pfn = run.start().offset(page);
            restored(page, self.load_tags(slot, |tags| machine.store_tags(pfn, tags)));
        }
        Ok(())
    }

    /// Makes the data of slots of which some hold a repeated word.
    #[inline(never)]
    fn read_and_fill(&self, mm: &Mm<M>, first: u64, slots: &[SlotRecord], run: PfnRange) -> Result<(), DeviceError> {
        let machine = mm.machine();
        let mut unread = 0;
        for (page, slot) in (0..).zip(slots) {
            if let Some(word) = slot.same() {
                self.read(machine, first, run, unread, page)?;
                machine.fill(run.start().offset(page), word);
                mm.stats().swap_in_same.bump();
                unread = page + 1;
            }
        }
        self.read(machine, first, run, unread, run.pages())
    }

    /// Reads the pages from `start` to `end` of a run.
    #[inline]
    fn read(&self, machine: &M, first: u64, run: PfnRange, start: u64, end: u64) -> Result<(), DeviceError> {
        if start == end {
            return Ok(());
        }
        assert_may_sleep();
        let part = PfnRange::new(run.start().offset(start), end - start);
        self.device().read(machine, (first + start) as u32, part)?.finish(machine, self.device())
    }

    /// [`Area::read_in`] from a device that is checked.
    #[inline(never)]
    fn read_checked(
        &self,
        mm: &Mm<M>,
        first: u32,
        slots: &[SlotRecord],
        run: PfnRange,
        mut restored: impl FnMut(u64, Kept),
    ) -> Result<(), ReadError> {
        if let Some(page) = slots.iter().position(SlotRecord::is_poisoned) {
            return Err(ReadError::Damaged { page: page as u64 });
        }
        let machine = mm.machine();
        let mut sums = [0; SUMMED_PAGES];
        let mut page = 0;
        while let Some(slot) = slots.get(page) {
            let pfn = run.start().offset(page as u64);
            if let Some(word) = slot.same() {
                machine.fill(pfn, word);
                mm.stats().swap_in_same.bump();
                restored(page as u64, self.load_tags(slot, |tags| machine.store_tags(pfn, tags)));
                page += 1;
                continue;
            }
            let rest = &slots[page..];
            let stored = rest.iter().take(SUMMED_PAGES).take_while(|slot| !slot.is_same()).count();
            let (part, sums) = (PfnRange::new(pfn, stored as u64), &mut sums[..stored]);
            assert_may_sleep();
            match self.device().read_summed(machine, first + page as u32, part, sums)? {
                Progress::Done => {}
                Progress::Pending(ticket) => {
                    self.device().finish(machine, ticket)?;
                    machine.sum(part, sums);
                }
            }
            for ((slot, &mut data), pfn) in rest.iter().zip(sums).zip((0..).map(|page| pfn.offset(page))) {
                let mut of_tags = 0;
                let kept = self.load_tags(slot, |tags| {
                    of_tags = sum_of_tags(tags.as_ref());
                    machine.store_tags(pfn, tags);
                });
                if slot.sum() != joined(data, of_tags) {
                    slot.poison();
                    mm.stats().damaged.bump();
                    return Err(ReadError::Damaged { page: page as u64 });
                }
                restored(page as u64, kept);
                page += 1;
            }
        }
        Ok(())
    }

    /// Hands the tags that were kept of a slot to `show`, if the page had some of its own: at 64 KiB they
    /// are 2 KiB, which nobody should copy.
    #[inline(always)]
    fn load_tags(&self, slot: &SlotRecord, show: impl FnOnce(&TagWords<M>)) -> Kept {
        if let Some(room) = slot.room() {
            show(&self.rooms.load(room));
            return Kept::Tags;
        }
        match slot.tags() {
            TagImage::Untagged => return Kept::None,
            image => {
                let mut words = M::Granule::ZERO_TAGS;
                spread::<M::Granule>(image, &mut words);
                show(&words);
            }
        }
        Kept::Tags
    }
}

/// Writes the tags that a word of a slot's record stands for.
#[inline(never)]
fn spread<G: Granule>(image: TagImage, words: &mut G::TagWords) {
    match image {
        TagImage::Untagged | TagImage::Raw(_) => debug_assert!(false, "that is not in the record"),
        TagImage::Uniform(tag) => words.as_mut().fill(mte::repeated(tag)),
        TagImage::Packed(runs) => mte::unpack::<G>(runs, words),
        TagImage::Strided(word) => mte::strided::decode::<G>(word, words),
    }
}
