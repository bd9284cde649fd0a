//! Unmapping a folio at its home, for reclaim.
//!
//! A large folio ages as one: a use of any page saves all, and whole groups are looked at and cleared without unfolding
//! them. One that nobody uses leaves as one, its groups folded to the end: all of its entries are exchanged under one
//! hold of the table's lock, taken before the first is looked at. Where a page of it is mapped no more, or was given
//! up, or there are no slots for all of it, it is split, and its pages leave one by one.
//!
//! What is clean and in no slot was given up: it goes for good, and needs nothing prepared.

use super::backed::part;
use super::shared::unmap_shared;
use super::site::{Site, Unmapping};
use super::split::split;
use crate::addr::{PfnRange, VpnRange};
use crate::frame::{FolioLock, MAP, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::{Decoded, Leaf};
use crate::swap::{Dry, Leaving, Supply};
use crate::table::{Change, Cursor, Leaves};
use crate::tlb::Flush;

/// Whether a page's recent use saves it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Ageing {
    /// A page used since the last look stays, and its access flag is cleared.
    SecondChance,
    /// It stays, used or not; its access flag is cleared.
    Spared,
    /// A page used since the last look stays, and its access flag as it is: who asks again is told the same.
    Observed,
    /// It goes all the same: the program asked for it.
    Ignored,
}

impl Ageing {
    #[inline(always)]
    pub(super) fn clears_flags(self) -> bool {
        matches!(self, Self::SecondChance | Self::Spared)
    }

    /// Whether a folio stays of which this was seen, and why.
    #[inline(always)]
    pub(super) fn refusal(self, seen: &Survey) -> Option<Refusal> {
        match self {
            Self::SecondChance | Self::Spared | Self::Observed if seen.is_accessed => Some(Refusal::Referenced),
            Self::Spared => Some(Refusal::Spared),
            Self::SecondChance | Self::Observed | Self::Ignored => None,
        }
    }
}

/// Why a folio stays.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Refusal {
    /// Used since the last look.
    Referenced,
    /// Not used since, and spared.
    Spared,
    /// Somebody holds a pin.
    Pinned,
    /// A space that maps it asked for it to stay.
    Locked,
    /// Not mapped where its home says: its owner is taking it away, or has.
    Raced,
    /// It was large. Now it and its former pages are single, and first in the order of reclaim.
    Split,
    /// No slot, or no room for its tags.
    Dry(Dry),
}

/// What became of a folio.
pub(crate) enum Unmapped<'a, M: Machine> {
    /// Clean: the entries are empty, the next touch makes new pages.
    Discarded,
    /// Clean, and its slots have it: their entries stand in its place, and it waits for the flush.
    Returned,
    /// A swap entry stands in its place; the contents wait for the flush to be written.
    Leaving(Leaving<'a, M>),
    /// It stays, for this reason.
    Kept(Refusal),
}

/// What the entries at a folio's home say.
#[derive(Default)]
pub(super) struct Survey {
    /// Pages that are mapped.
    pub(super) mapped: u64,
    pub(super) is_accessed: bool,
    pub(super) is_dirty: bool,
    pub(super) is_locked: bool,
    /// Some page that is in no group is clean: of a group each is as dirty as any.
    has_clean_page: bool,
}

impl Survey {
    /// Adds what another table says.
    pub(super) fn join(&mut self, other: &Self) {
        self.mapped += other.mapped;
        self.is_accessed |= other.is_accessed;
        self.is_dirty |= other.is_dirty;
        self.is_locked |= other.is_locked;
        self.has_clean_page |= other.has_clean_page;
    }

    /// Whether the folio, of `pages` pages, may be written out in one piece: all of it is there, and wanted.
    fn is_one(&self, pages: u64) -> bool {
        self.mapped == pages && (pages == 1 || !self.has_clean_page)
    }
}

#[inline(always)]
pub(super) fn survey<M: Machine>(
    mm: &Mm<M>,
    cursor: &Cursor<'_, M>,
    run: VpnRange,
    folio: &FolioLock<'_, M>,
) -> Survey {
    let first = mm.frames().pfn(folio.frame());
    let mut survey = Survey::default();
    for page in 0..run.pages() {
        if let Decoded::Leaf(leaf) = cursor.read(run.start().offset(page))
            && leaf.pfn::<M::Granule>() == first.offset(page)
        {
            survey.mapped += 1;
            survey.is_accessed |= leaf.is_accessed();
            survey.is_dirty |= leaf.is_dirty();
            survey.is_locked |= leaf.is_locked();
            survey.has_clean_page |= !leaf.is_dirty() && !leaf.is_contiguous();
        }
    }
    survey
}

/// Takes the folio out of the table of its home. `supply` is asked for what it needs, if it leaves. The counts of the
/// entries are given back at once, as the caller holds a reference of its own.
pub(crate) fn unmap<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    supply: &mut Supply<'a, M>,
    ageing: Ageing,
    unmapping: &mut Unmapping<'a, M>,
) -> Unmapped<'a, M> {
    let record = folio.record();
    let home = Home::load(&record.home);
    let here = unmapping.enter(home).filter(|(site, _)| site.has_all(mm, folio) && !record.has(flag::KEPT));
    let Some((site, flush)) = here else {
        return unmap_shared(mm, folio, supply, ageing, unmapping.alone());
    };
    match record.order() {
        0 => unmap_at(mm, folio, (home, 0), supply, ageing, flush, site),
        order => unmap_at(mm, folio, (home, order), supply, ageing, flush, site),
    }
}

/// [`unmap`], where the folio's table is locked. Inlined at both of its places: for one page all loops fall away.
#[inline(always)]
fn unmap_at<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    (home, order): (Home, u32),
    supply: &mut Supply<'a, M>,
    ageing: Ageing,
    flush: &mut Flush<'_, M>,
    site: &mut Site<'a, M>,
) -> Unmapped<'a, M> {
    let frames = mm.frames();
    let frame = folio.frame();
    let record = frames.record(frame);
    let run = VpnRange::new(home.page(), 1 << order);
    let id = home.node();
    let ours = PfnRange::new(frames.pfn(frame), run.pages());
    let cursor = &mut site.cursor;
    let mut seen = survey(mm, cursor, run, folio);
    if seen.mapped == 0 {
        return Unmapped::Kept(Refusal::Raced);
    }
    if frames.is_pinned(frame) {
        return Unmapped::Kept(Refusal::Pinned);
    }
    if seen.is_locked {
        return Unmapped::Kept(Refusal::Locked);
    }
    if seen.is_accessed && ageing.clears_flags() {
        age(cursor, run, ours, id, flush);
    }
    if let Some(refusal) = ageing.refusal(&seen) {
        return Unmapped::Kept(refusal);
    }
    let is_whole = seen.mapped == run.pages();
    if record.has(flag::BACKED) {
        // In part as well: while the space's other entries name its slots, it could not leave for others.
        if !seen.is_dirty && return_to_slots(mm, cursor, run, folio) {
            flush.note(id, run);
            let _ = frames.put(frame, MAP * seen.mapped);
            return Unmapped::Returned;
        }
        part(mm, cursor, folio);
        (seen.is_dirty, seen.has_clean_page) = (true, false);
    }
    if !seen.is_dirty && is_whole && cursor.take_clean(cursor.whole(run)).is_ok() {
        // Nothing stands in its place, so that another CPU may map a new page as soon as the table is free: no
        // translation of the old one may be left then.
        site.owes_a_flush();
        flush.note_here(id, run);
        let _ = frames.put(frame, MAP * run.pages());
        return Unmapped::Discarded;
    }
    if !seen.is_one(run.pages()) {
        return Unmapped::Kept(if order > 0 { apart(mm, cursor, folio, id, flush) } else { Refusal::Raced });
    }
    let prepared = match supply.take(frame, order) {
        Ok(prepared) => prepared,
        Err(Dry::Slots | Dry::Rooms) if order > 0 => return Unmapped::Kept(apart(mm, cursor, folio, id, flush)),
        Err(dry) => return Unmapped::Kept(Refusal::Dry(dry)),
    };
    // Nothing fails from here on. The slots name the frames before any CPU can find the entries that name the slots.
    let first = prepared.cache(frame, order);
    frames.record(frame).enter_cache(first.area(), first.slot() as u32);
    let run = cursor.whole(run);
    cursor.swap_out(run, first);
    flush.note_here(id, run.pages());
    let _ = frames.put(frame, MAP * run.pages().pages());
    Unmapped::Leaving(prepared.commit())
}

/// Splits a folio that cannot leave as one.
fn apart<M: Machine>(
    mm: &Mm<M>,
    cursor: &mut Cursor<'_, M>,
    folio: &FolioLock<'_, M>,
    node: NodeId,
    flush: &mut Flush<'_, M>,
) -> Refusal {
    split(mm, cursor, folio, node, flush).map_or(Refusal::Raced, |()| Refusal::Split)
}

/// The leaves at `run` that show the frames `ours`, page by page.
pub(crate) fn mapped_in<M: Machine>(cursor: &Cursor<'_, M>, run: VpnRange, ours: PfnRange) -> u64 {
    let shows = |page| {
        let entry = cursor.read(run.start().offset(page));
        matches!(entry, Decoded::Leaf(leaf) if leaf.pfn::<M::Granule>() == ours.start().offset(page))
    };
    (0..run.pages()).filter(|&page| shows(page)).count() as u64
}

/// Changes the leaves of the folio whose frames are `ours` in place, group by group.
pub(crate) fn update_ours<M: Machine>(
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    ours: PfnRange,
    change: impl Fn(Leaf) -> Leaf,
    mut seen: impl FnMut(VpnRange, Change),
) {
    let mut page = run.start();
    while page < run.end() {
        let alike = cursor.widen(page);
        if matches!(cursor.read(page), Decoded::Leaf(leaf) if ours.contains(leaf.pfn::<M::Granule>())) {
            cursor.update(alike, |leaf, _| change(leaf), &mut seen);
        }
        page = alike.pages().end();
    }
}

/// Clears the access flags of a folio's leaves, of which one at least is in the table. Without the invalidation a CPU
/// that keeps the translation would not set them again, and a hot page would look cold. One operation a run, one barrier
/// pair a batch.
#[inline(always)]
pub(crate) fn age<M: Machine>(
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    ours: PfnRange,
    node: NodeId,
    flush: &mut Flush<'_, M>,
) {
    let seen = |pages, Change { was, is }| {
        if was != is {
            flush.note(node, pages);
        }
    };
    match run.pages() {
        // It is that one, and in no group.
        1 => cursor.update(cursor.whole(run), |leaf, _| leaf.without_access(), seen),
        _ => update_ours(cursor, run, ours, Leaf::without_access, seen),
    }
}

/// Takes the leaves of a folio that are in a table out, if all are clean, and hands them to `taken`. `None` when a store
/// makes one dirty at the last moment: then they are back as they were.
pub(super) fn take_clean<M: Machine, R>(
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    ours: PfnRange,
    taken: impl FnOnce(&mut Cursor<'_, M>, &Leaves) -> R,
) -> Option<R> {
    take_ours(cursor, run, ours, |cursor, leaves| {
        if leaves.iter().any(|(_, leaf)| leaf.is_dirty()) {
            // Same frames, same rights: a CPU that still holds a translation holds one of these.
            cursor.put_back(leaves.iter().copied());
            return None;
        }
        Some(taken(cursor, leaves))
    })
}

/// Takes the leaves of a folio that are in a table out, and hands them to `taken`: they are too many to be moved.
pub(super) fn take_ours<M: Machine, R>(
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    ours: PfnRange,
    taken: impl FnOnce(&mut Cursor<'_, M>, &Leaves) -> R,
) -> R {
    let mut leaves = Leaves::new();
    // Else something else may be there, part of a group.
    if mapped_in(cursor, run, ours) > 0 {
        let is_ours = |leaf: Leaf| ours.contains(leaf.pfn::<M::Granule>());
        cursor.take_leaves(cursor.whole(run), is_ours, |page, leaf| leaves.push((page, leaf)));
    }
    taken(cursor, &leaves)
}

/// Puts the entries of the slots of a clean backed folio in the places of its leaves, if it still is clean.
#[inline(never)]
fn return_to_slots<M: Machine>(
    mm: &Mm<M>,
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    folio: &FolioLock<'_, M>,
) -> bool {
    let (Some(_open), Some(first)) = (mm.enter_slots(folio), mm.entry_of(folio)) else { return false };
    let ours = PfnRange::new(mm.frames().pfn(folio.frame()), run.pages());
    let done = take_clean(cursor, run, ours, |cursor, leaves| cursor.put_out(leaves, run.start(), first));
    if done.is_some() {
        mm.leaves_as_it_came(folio);
    }
    done.is_some()
}
