//! What a program is about to touch: which of its accesses go in order, and reading ahead of them.
//!
//! Pages that left one by one come back by one fault each, unless the program goes upwards through memory in order
//! ([`Streams`]). Then the next ones come with the page that faulted: by one request to the device, under one hold of
//! the table's lock, as single pages of a block of frames.
//!
//! **Never more than was used.** A run of pages brings as many more as it is long, up to [`AHEAD_PAGES`]; the next
//! fault is behind these, so they have been passed by then. Memory for them is taken above the low watermark only, so
//! nothing leaves to make room for them. Their entries are without the access flag: if nobody comes, they are the first
//! to go.
//!
//! **Never less.** What does not follow, is shared, or cannot be read comes alone, with its own error.

use core::cell::Cell;
use core::ops::RangeInclusive;

use arrayvec::ArrayVec;

use super::Space;
use super::fault::{Access, Step};
use super::swap_in::{Missing, Sharing};
use crate::addr::{Vpn, VpnRange};
use crate::frame::{Frame, MAP};
use crate::granule::{Granule, K4, K16, K64};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::Home;
use crate::swap::{Area, SlotRecord, SlotState};

/// log2 of the pages that come in together at most.
const AHEAD_ORDER: u32 = 3;

/// Pages that come in together at most: the fault and the locks, some 250 instructions of the 700 of a page that comes
/// alone, are then 31 of 480, a fifteenth of its cost, and what a program that stops leaves unused is seven pages.
pub(super) const AHEAD_PAGES: usize = 1 << AHEAD_ORDER;

// The pages are folios of their own, which are no group: so they must not be enough for one.
const _: () =
    assert!(AHEAD_ORDER < K4::GROUP_ORDER && AHEAD_ORDER < K16::GROUP_ORDER && AHEAD_ORDER < K64::GROUP_ORDER);

/// Ways through memory that are remembered: a program that merges, or copies with two buffers, has this many.
const STREAMS: usize = 4;

/// The runs of pages that came in last, each as long as it grew in one go.
pub(super) struct Streams {
    runs: [Cell<VpnRange>; STREAMS],
    /// The run that is forgotten next.
    oldest: Cell<usize>,
}

impl Streams {
    pub(super) const fn new() -> Self {
        Self { runs: [const { Cell::new(VpnRange::new(Vpn::new(0), 0)) }; STREAMS], oldest: Cell::new(0) }
    }

    /// Whether `run` goes on where one ended, upwards or downwards.
    pub(super) fn reach(&self, run: VpnRange) -> bool {
        self.runs.iter().any(|known| meets(known.get(), run))
    }

    /// The pages of the run that ends before `page`.
    #[inline]
    fn length_before(&self, page: Vpn) -> u64 {
        self.runs.iter().map(Cell::get).find(|known| known.end() == page).map_or(0, VpnRange::pages)
    }

    /// Notes that `run` has come in.
    pub(super) fn note(&self, run: VpnRange) {
        if let Some(known) = self.runs.iter().find(|known| meets(known.get(), run)) {
            let (one, other) = (known.get(), run);
            known.set(VpnRange::between(one.start().min(other.start()), one.end().max(other.end())));
        } else {
            let oldest = self.oldest.get();
            self.runs[oldest].set(run);
            self.oldest.set((oldest + 1) % STREAMS);
        }
    }
}

fn meets(known: VpnRange, run: VpnRange) -> bool {
    !known.is_empty() && (known.end() == run.start() || run.end() == known.start())
}

impl<M: Machine> Space<M> {
    /// Brings in a page, out in a slot of its own, with those after it. `None` when it is to come alone.
    #[inline]
    pub(super) fn read_ahead(&self, mm: &Mm<M>, area: &Area<M>, page: Missing<'_>, shadow: u32) -> Option<Step> {
        let most = page.at.streams.length_before(page.run.start());
        if most > 1 { self.read_several(mm, area, page, 2..=most, shadow) } else { None }
    }

    /// Brings in so many pages as single ones, from a page on that is out, as are out in the slots that follow. `None`
    /// when they are too few, memory is short, or the device fails: then nothing was done.
    #[inline(never)]
    pub(super) fn read_several(
        &self,
        mm: &Mm<M>,
        area: &Area<M>,
        page: Missing<'_>,
        count: RangeInclusive<u64>,
        shadow: u32,
    ) -> Option<Step> {
        let missing =
            following(mm, area, page, *count.end()).filter(|missing| missing.run.pages() >= *count.start())?;
        let block = mm.take_large(missing.run.pages().ilog2())?;
        self.read(mm, area, missing, &block).ok()?;
        let (frames, start, pages) = (mm.frames(), missing.run.start(), missing.run.pages());
        let mut singles: ArrayVec<Frame, AHEAD_PAGES> = ArrayVec::new();
        {
            let mut cursor = missing.at.table.lock(mm)?;
            if !missing.is_there(&cursor) {
                return None;
            }
            let leaf = missing.leaf::<M::Granule>(block.pfn(), Sharing::Alone);
            // The area stays on until the slots are kept.
            let may_back = if missing.access == Access::Write { None } else { mm.swap().backing(area) };
            let mut backed = 0;
            for (page, frame) in (0..).zip(frames.scatter(block, pages)) {
                let record = frames.record(frame);
                record.count.begin(MAP);
                Home::new(self.node(), start.offset(page)).store(&record.home);
                if may_back.is_some() && mm.back(area, frame, (missing.first.slot() + page) as u32).is_some() {
                    backed += 1;
                }
                singles.push(frame);
            }
            let leaf = if backed == pages { leaf } else { leaf.with_dirty() };
            cursor.map_back(VpnRange::new(start, 1), leaf);
            if pages > 1 {
                let ahead = leaf.nth::<M::Granule>(1).without_access();
                cursor.map_back(VpnRange::between(start.offset(1), missing.run.end()), ahead);
            }
            area.put(missing.first.slot(), pages, |_| {});
        }
        mm.stats().swap_in.add(pages);
        mm.stats().swap_in_ahead.add(pages - 1);
        mm.returned_together(&singles, shadow);
        missing.at.streams.note(missing.run);
        Some(Step::Done)
    }
}

/// The pages from `page` on, a power of two and `most` of them, that are out as it is: of this space alone, left alike,
/// each in the slot that follows the one before. `None` when there is none.
fn following<'a, M: Machine>(mm: &Mm<M>, area: &Area<M>, page: Missing<'a>, most: u64) -> Option<Missing<'a>> {
    // Of pages that are shared others may come first: each is looked at by itself.
    if !page.first.is_exclusive() {
        return None;
    }
    let (start, table) = (page.run.start(), page.at.table);
    let within = VpnRange::new(start, most.min(AHEAD_PAGES as u64))
        .intersection(page.at.region)
        .intersection(table.pages::<M::Granule>());
    let entries = table.peek_swapped(mm.machine(), within, page.first);
    // They are looked at again under the table's lock.
    let slots = area.records(page.first.slot(), entries);
    let left_as = slots.first()?.order();
    let is_alike = |slot: &&SlotRecord| slot.order() == left_as && matches!(slot.state(), SlotState::Out { .. });
    let slots = slots.iter().take_while(is_alike).count();
    Some(Missing { run: VpnRange::new(start, 1 << slots.checked_ilog2()?), ..page })
}
