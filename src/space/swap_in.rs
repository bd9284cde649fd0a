//! Swap-in: from swap entries to mapped pages.
//!
//! The order is read, restore tags, map, give the slots back. A page is shown only whole, with its data and its tags; a
//! slot is given back only when the page is mapped. What comes in is mapped dirty: once its slot is gone, memory holds
//! the only copy. A page that keeps its slot ([`crate::swap`]) is mapped clean.
//!
//! **How much.** A folio that left in one piece comes back in one piece, by one request to the device and as one group,
//! where its entries are still the run of slots that they were, memory is at hand, and the program goes through its
//! pages in order ([`Streams`]): what it is about to touch would fault page by page. Else one page comes alone, so that
//! a program which jumps about reads no more than it touches, however short memory is. What left page by page is read
//! ahead for a program that goes in order (`read_ahead`).
//!
//! **What never left.** A cached folio is mapped as it is, whole; where not all of it is wanted any more, or not in one
//! region, it becomes single pages first.

use core::num::NonZero;

use super::fault::{Access, FaultError, Found, Step};
use super::{Protection, Space};
use crate::addr::{Pfn, PfnRange, Vpn, VpnRange};
use crate::frame::{FolioLock, Kind, MAP, OwnedFrame, REFERENCE, flag};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Exclusive, Leaf, SwapEntry};
use crate::swap::{Area, Kept, ReadError, SlotRecord, SlotState};
use crate::table::Cursor;

/// Pages that are out, in slots that follow each other.
#[derive(Copy, Clone)]
pub(super) struct Missing<'a> {
    pub(super) at: &'a Found<'a>,
    /// The pages: one, a folio's, or some that come in together.
    pub(super) run: VpnRange,
    /// What the first one's entry said before the lock.
    pub(super) first: SwapEntry,
    pub(super) access: Access,
}

/// Whether other spaces have a page as well.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Sharing {
    /// The entries at hand are the slots' only users, so that nobody else will map the pages.
    Alone,
    Shared,
}

impl Missing<'_> {
    /// Whether the slots have other users: none, where each is as `alone` says. Under the table's lock, with the
    /// entries as they were: only a fork of this space could add some.
    #[inline]
    fn sharing<M: Machine>(&self, area: &Area<M>, alone: impl Fn(&SlotRecord) -> bool) -> Sharing {
        if self.first.is_exclusive() || area.records(self.first.slot(), self.run.pages()).iter().all(alone) {
            Sharing::Alone
        } else {
            Sharing::Shared
        }
    }

    /// The leaf that shows the first page in `frame`, clean.
    #[inline]
    pub(super) fn leaf<G: Granule>(&self, frame: Pfn, sharing: Sharing) -> Leaf {
        let leaf = Leaf::page::<G>(frame, self.at.protection);
        if sharing == Sharing::Shared {
            leaf.without_exclusive()
        } else if self.at.protection.contains(Protection::WRITE) {
            leaf.with_write(&Exclusive::proven())
        } else {
            leaf
        }
    }

    /// Whether all the entries are as they were.
    #[inline]
    pub(super) fn is_there<M: Machine>(&self, cursor: &Cursor<'_, M>) -> bool {
        cursor.swapped(self.run, self.first) == self.run.pages()
    }

    #[cold]
    fn unreadable(&self) -> FaultError {
        FaultError::Unreadable { area: self.first.area(), slot: self.first.slot() }
    }

    #[cold]
    fn lost(&self) -> FaultError {
        if self.first == SwapEntry::LOST { FaultError::Lost } else { self.unreadable() }
    }

    #[cold]
    fn refused<M: Machine>(&self, mm: &Mm<M>, error: ReadError) -> FaultError {
        match error {
            ReadError::Device => {
                mm.stats().read_errors.bump();
                self.unreadable()
            }
            ReadError::Damaged { page } => {
                FaultError::Damaged { area: self.first.area(), slot: self.first.slot() + page }
            }
        }
    }
}

impl<M: Machine> Space<M> {
    /// Maps a page that is out, and its neighbours where that pays.
    #[inline(never)]
    pub(super) fn swap_in(
        &self,
        mm: &Mm<M>,
        at: &Found<'_>,
        entry: SwapEntry,
        access: Access,
    ) -> Result<Step, FaultError> {
        let missing = Missing { at, run: VpnRange::new(at.page, 1), first: entry, access };
        let Some(area) = mm.swap().area(entry.area()) else { return Err(missing.lost()) };
        let Some(slot) = area.slot(entry.slot()) else { return Err(missing.unreadable()) };
        let step = match slot.state() {
            SlotState::Out { shadow, .. } => {
                let several = match NonZero::new(slot.order()) {
                    Some(left_as) => self.read_folio(mm, area, left_as, missing, shadow, |run| at.streams.reach(run)),
                    None => self.read_ahead(mm, area, missing, shadow),
                };
                match several {
                    Some(step) => step,
                    None => {
                        let Some(folio) = mm.take_frame_urgently(Kind::Folio) else { return Err(FaultError::NoMemory) };
                        self.read(mm, area, missing, &folio)?;
                        self.show(mm, area, missing, folio, shadow).unwrap_or(Step::Again)
                    }
                }
            }
            SlotState::Cached { .. } => self.map_cached(mm, area, missing)?,
            SlotState::Free | SlotState::Taken | SlotState::Unknown => self.confirm_lost(mm, slot, missing)?,
        };
        // A page comes back without the right to execute, and one that is shared without that to store: a look again
        // adds what is missing.
        Ok(if access == Access::Execute { Step::Again } else { step })
    }

    /// An entry names a slot that nobody uses: looks again under the lock that orders the two.
    #[cold]
    fn confirm_lost(&self, mm: &Mm<M>, slot: &SlotRecord, missing: Missing<'_>) -> Result<Step, FaultError> {
        let Some(cursor) = missing.at.table.lock(mm) else { return Ok(Step::Again) };
        let lost = matches!(slot.state(), SlotState::Free | SlotState::Taken | SlotState::Unknown);
        if lost && missing.is_there(&cursor) {
            return Err(missing.unreadable());
        }
        Ok(Step::Again)
    }

    /// Brings in the whole folio of 2^`left_as` pages that the page left with. `None` when it is to come alone: its
    /// pages are not `wanted`, the folio is not what it was, memory is short, or the device fails.
    #[inline(never)]
    pub(super) fn read_folio(
        &self,
        mm: &Mm<M>,
        area: &Area<M>,
        left_as: NonZero<u32>,
        page: Missing<'_>,
        shadow: u32,
        wanted: impl Fn(VpnRange) -> bool,
    ) -> Option<Step> {
        let missing = folio_around(mm, area, left_as.get(), page, wanted)?;
        let folio = mm.take_large(missing.run.pages().ilog2())?;
        self.read(mm, area, missing, &folio).ok()?;
        let step = self.show(mm, area, missing, folio, shadow);
        if step.is_some() {
            mm.stats().swap_in_folios.bump();
        }
        Some(step.unwrap_or(Step::Again))
    }

    /// Fills a fresh folio with the slots' data and tags. Inlined at its places, as [`Space::show`] is: for one page
    /// all loops fall away.
    #[inline(always)]
    pub(super) fn read(
        &self,
        mm: &Mm<M>,
        area: &Area<M>,
        missing: Missing<'_>,
        folio: &OwnedFrame<'_>,
    ) -> Result<(), FaultError> {
        let (frames, machine) = (mm.frames(), mm.machine());
        let run = PfnRange::new(folio.pfn(), missing.run.pages());
        let slots = area.records(missing.first.slot(), run.pages());
        if slots.len() as u64 != run.pages() {
            return Err(missing.unreadable());
        }
        let restored = |page, kept| {
            if kept == Kept::None {
                if !missing.at.protection.contains(Protection::TAGGED) {
                    return;
                }
                // Untagged when it left; the region has become tagged since.
                machine.zero_tags(run.start().offset(page));
            }
            if let Some(frame) = frames.tail(folio.frame(), page) {
                folio.mark_page(frame, flag::TAGS_VALID);
            }
        };
        area.read_in(mm, missing.first.slot(), slots, run, restored).map_err(|error| missing.refused(mm, error))
    }

    /// Maps a folio that was read. `None` when an entry, or a slot, is another by now.
    #[inline(always)]
    fn show(
        &self,
        mm: &Mm<M>,
        area: &Area<M>,
        missing: Missing<'_>,
        folio: OwnedFrame<'_>,
        shadow: u32,
    ) -> Option<Step> {
        let pages = missing.run.pages();
        let record = mm.frames().record(folio.frame());
        let mut step = Step::Done;
        {
            let mut cursor = missing.at.table.lock(mm)?;
            if !missing.is_there(&cursor) {
                return None;
            }
            let sharing = missing.sharing(area, SlotRecord::is_out_for_one);
            let leaf = missing.leaf::<M::Granule>(folio.pfn(), sharing);
            record.count.begin(MAP * pages);
            if sharing == Sharing::Alone {
                Home::new(self.node, missing.run.start()).store(&record.home);
            } else {
                // Whoever else has the entry stands below the top as well.
                Home::new(mm.top(self.node), missing.run.start()).store(&record.home);
                if missing.access == Access::Write {
                    step = Step::Again;
                }
            }
            // The area stays on until the slots are kept.
            let may_back = match (sharing, missing.access) {
                (Sharing::Shared, _) | (_, Access::Write) => None,
                (Sharing::Alone, _) => mm.swap().backing(area),
            };
            if sharing == Sharing::Shared || may_back.is_some() {
                if mm.back(area, folio.frame(), missing.first.slot() as u32).is_none() {
                    // Another space was first.
                    record.count.begin(REFERENCE);
                    return None;
                }
                cursor.map_back(missing.run, leaf);
                // Unused or not, they are the folio's.
                area.put(missing.first.slot(), pages, |_| {});
            } else {
                cursor.map_back(missing.run, leaf.with_dirty());
                let cached = |_| debug_assert!(false, "a slot that is out does not become cached again");
                area.put(missing.first.slot(), pages, cached);
            }
        }
        mm.returned(folio.publish(), shadow, pages);
        mm.stats().swap_in.add(pages);
        missing.at.streams.note(missing.run);
        Some(step)
    }

    /// Fills `folio` with a page that is out, for a store: the space's own copy, whoever else has the page.
    #[cold]
    pub(super) fn swap_in_copy(
        &self,
        mm: &Mm<M>,
        at: &Found<'_>,
        entry: SwapEntry,
        folio: OwnedFrame<'_>,
    ) -> Result<Step, FaultError> {
        let missing = Missing { at, run: VpnRange::new(at.page, 1), first: entry, access: Access::Write };
        let Some(area) = mm.swap().area(entry.area()) else { return Err(missing.lost()) };
        let Some(SlotState::Out { shadow, .. }) = area.slot(entry.slot()).map(SlotRecord::state) else {
            return Ok(Step::Again);
        };
        self.read(mm, area, missing, &folio)?;
        let mut unused = None;
        {
            let Some(mut cursor) = at.table.lock(mm) else { return Ok(Step::Again) };
            if !missing.is_there(&cursor) {
                return Ok(Step::Again);
            }
            let record = mm.frames().record(folio.frame());
            record.count.begin(MAP);
            Home::new(self.node, at.page).store(&record.home);
            // Nobody else knows of the folio, even where another space has brought the page in meanwhile.
            cursor.map_back(missing.run, missing.leaf::<M::Granule>(folio.pfn(), Sharing::Alone).with_dirty());
            mm.put_slots(entry, 1, |entry| unused = Some(entry));
        }
        mm.returned(folio.publish(), shadow, 1);
        mm.stats().swap_in.add(1);
        if let Some(entry) = unused {
            mm.drop_unused(entry);
        }
        Ok(Step::Done)
    }

    /// Maps a folio that never left: on its way out until now, or kept as its device failed.
    #[cold]
    fn map_cached(&self, mm: &Mm<M>, area: &Area<M>, missing: Missing<'_>) -> Result<Step, FaultError> {
        let frames = mm.frames();
        let Some(head) = area.get_cached(frames, missing.first.slot()) else { return Ok(Step::Again) };
        let folio = frames.lock(mm.machine(), head);
        let step = self.show_cached(mm, area, missing, &folio);
        drop(folio);
        mm.release_folio(head);
        Ok(step)
    }

    fn show_cached(&self, mm: &Mm<M>, area: &Area<M>, page: Missing<'_>, folio: &FolioLock<'_, M>) -> Step {
        let (frames, head) = (mm.frames(), folio.frame());
        let record = frames.record(head);
        let Some((index, _)) = area.names(frames, page.first.slot(), folio) else { return Step::Again };
        let Some((missing, first)) = self.extent(mm, area, (page, index), folio) else { return Step::Again };
        let pages = missing.run.pages();
        let each = || (0..pages).filter_map(|page| frames.tail(head, first + page));
        if missing.at.protection.contains(Protection::TAGGED) {
            for frame in each().filter(|&frame| !frames.record(frame).has(flag::TAGS_VALID)) {
                mm.machine().zero_tags(frames.pfn(frame));
                frames.record(frame).set(flag::TAGS_VALID);
            }
        }
        let Some(mut cursor) = missing.at.table.lock(mm) else { return Step::Again };
        if !missing.is_there(&cursor) {
            return Step::Again;
        }
        // Somebody who maps the folio may map these pages. Of a backed one no part is one space's alone: that would be
        // stored to, and the rest have its slots.
        let is_part = pages < 1 << record.order();
        let sharing = if record.count.maps() > 0 || is_part {
            Sharing::Shared
        } else {
            missing.sharing(area, SlotRecord::is_used_once)
        };
        // The program may have lost the right to execute while the pages were kept, and may store to them now.
        each().for_each(|frame| frames.record(frame).clear(flag::CODE_SYNCED));
        record.count.add(MAP * pages);
        let leaf = missing.leaf::<M::Granule>(frames.pfn(head).offset(first), sharing);
        if sharing == Sharing::Alone {
            Home::new(self.node, missing.run.start()).store(&record.home);
        }
        let is_backed = record.has(flag::BACKED);
        cursor.map_back(missing.run, if is_backed { leaf } else { leaf.with_dirty() });
        area.put(missing.first.slot(), pages, |_| {});
        drop(cursor);
        if !is_backed && !mm.is_wanted(folio) {
            area.leave_cache(frames, folio);
        }
        mm.stats().swap_cache_hits.bump();
        if sharing == Sharing::Shared && missing.access == Access::Write { Step::Again } else { Step::Done }
    }

    /// What of a locked folio, whose page `index` a page is missing, is to be mapped, and which of its pages is the
    /// first: all of it, where all of its entries are there; else the page alone. `None` when the folio had to be split
    /// for that.
    fn extent<'a>(
        &self,
        mm: &Mm<M>,
        area: &Area<M>,
        (page, index): (Missing<'a>, u64),
        folio: &FolioLock<'_, M>,
    ) -> Option<(Missing<'a>, u64)> {
        let record = folio.record();
        let whole = folio_of(page, index, 1 << record.order());
        let is_there =
            |missing: &Missing<'_>| missing.at.table.lock(mm).is_some_and(|cursor| missing.is_there(&cursor));
        if let Some(whole) = whole.filter(is_there) {
            return Some((whole, 0));
        }
        if record.order() > 0 && record.count.maps() == 0 && !record.has(flag::BACKED) {
            // Nobody has any of it: its pages go their own ways.
            area.split_kept(mm, folio);
            return None;
        }
        Some((page, index))
    }
}

/// The folio of `pages` pages whose page `index` is missing, if all of it lies in one region.
fn folio_of<'a>(page: Missing<'a>, index: u64, pages: u64) -> Option<Missing<'a>> {
    let start = page.run.start().number().checked_sub(index)?;
    let run = VpnRange::new(Vpn::new(start), pages);
    let first = page.first.before(index)?;
    page.at.region.covers(run).then_some(Missing { run, first, ..page })
}

/// The folio of 2^`left_as` pages that a page left with, if it is all still out, in the slots that it left for, and to
/// come in as one.
fn folio_around<'a, M: Machine>(
    mm: &Mm<M>,
    area: &Area<M>,
    left_as: u32,
    page: Missing<'a>,
    wanted: impl Fn(VpnRange) -> bool,
) -> Option<Missing<'a>> {
    if !mm.folio_orders().has(left_as) {
        return None;
    }
    let index = page.first.slot() & ((1 << left_as) - 1);
    let missing = folio_of(page, index, 1 << left_as)?;
    let is_aligned = missing.run.start().number() & (missing.run.pages() - 1) == 0;
    if !is_aligned || !wanted(missing.run) {
        return None;
    }
    // The entries are looked at again under the table's lock.
    let slots = area.records(missing.first.slot(), missing.run.pages());
    let is_out = |slot: &SlotRecord| matches!(slot.state(), SlotState::Out { .. });
    let all = missing.at.table.peek_swapped(mm.machine(), missing.run, missing.first) == missing.run.pages();
    if !all || slots.len() as u64 != missing.run.pages() {
        return None;
    }
    if slots.iter().all(is_out) { Some(missing) } else { None }
}
