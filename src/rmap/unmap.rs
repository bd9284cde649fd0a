//! Unmapping a folio at its home, for reclaim.
//!
//! A large folio ages as one: a use of any page saves all, and whole groups are looked at and cleared without unfolding
//! them. One that nobody uses leaves as one, its groups folded to the end: all of its entries are exchanged under one hold
//! of the table's lock, taken before the first is looked at. Where a page of it is mapped no more, or was given up, or
//! there are no slots for all of it, it is split, and its pages leave one by one.

use arrayvec::ArrayVec;

use super::split::split;
use crate::addr::{PfnRange, Vpn, VpnRange};
use crate::frame::{FolioLock, MAP};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::{Decoded, Leaf};
use crate::swap::{Dry, Leaving, Prepared};
use crate::table::{self, CHUNK, Change, Cursor, Edge};
use crate::tlb::Flush;

/// Whether a page's recent use saves it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Ageing {
    /// A page used since the last look stays, and its access flag is cleared.
    SecondChance,
    /// It goes all the same: the program asked for it.
    Ignored,
}

/// Why a folio stays.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Refusal {
    /// Used since the last look.
    Referenced,
    /// Somebody holds a pin.
    Pinned,
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
    /// A swap entry stands in its place; the contents wait for the flush to be written.
    Leaving(Leaving<'a, M>),
    /// It stays, for this reason.
    Kept(Refusal),
}

/// What the entries at a folio's home say.
struct Survey {
    /// Pages that are mapped.
    mapped: u64,
    is_accessed: bool,
    is_dirty: bool,
    /// Some page that is in no group is clean: of a group each is as dirty as any.
    has_clean_page: bool,
}

impl Survey {
    /// Whether the folio, of `pages` pages, may be written out in one piece: all of it is there, and wanted.
    fn is_one(&self, pages: u64) -> bool {
        self.mapped == pages && (pages == 1 || !self.has_clean_page)
    }
}

fn survey<M: Machine>(mm: &Mm<M>, cursor: &Cursor<'_, M>, run: VpnRange, folio: &FolioLock<'_, M>) -> Survey {
    let first = mm.frames().pfn(folio.frame());
    let mut survey = Survey { mapped: 0, is_accessed: false, is_dirty: false, has_clean_page: false };
    for page in 0..run.pages() {
        if let Decoded::Leaf(leaf) = cursor.read(run.start().offset(page))
            && leaf.pfn::<M::Granule>() == first.offset(page)
        {
            survey.mapped += 1;
            survey.is_accessed |= leaf.is_accessed();
            survey.is_dirty |= leaf.is_dirty();
            survey.has_clean_page |= !leaf.is_dirty() && !leaf.is_contiguous();
        }
    }
    survey
}

/// Takes the folio out of the table of its home. `spare` is what was prepared for it, if anything; it is used up only by
/// a folio that leaves. The pages whose translations go are noted in `flush`; the counts of the entries are given back at
/// once, as the caller holds a reference of its own.
pub(crate) fn unmap<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    spare: &mut Result<Prepared<'a, M>, Dry>,
    ageing: Ageing,
    flush: &mut Flush<'_, M>,
) -> Unmapped<'a, M> {
    let frames = mm.frames();
    let frame = folio.frame();
    let record = frames.record(frame);
    let home = Home::load(&record.home);
    let run = VpnRange::new(home.page(), 1 << record.order());
    let id = home.node();
    let Some(node) = mm.node(id) else { return Unmapped::Kept(Refusal::Raced) };
    let _family = node.family.read();
    let Some(root) = node.root() else { return Unmapped::Kept(Refusal::Raced) };
    let Some(mut cursor) = table::find(mm.machine(), root, run.start()).and_then(|table| table.lock(mm)) else {
        return Unmapped::Kept(Refusal::Raced);
    };
    let seen = survey(mm, &cursor, run, folio);
    if seen.mapped == 0 {
        return Unmapped::Kept(Refusal::Raced);
    }
    if frames.is_pinned(frame) {
        return Unmapped::Kept(Refusal::Pinned);
    }
    if ageing == Ageing::SecondChance && seen.is_accessed {
        // Without the invalidation a CPU that keeps the translation would not set the flag again, and a hot page
        // would look cold. One operation a run, one barrier pair a batch.
        let ours = PfnRange::new(frames.pfn(frame), run.pages());
        let mut page = run.start();
        while page < run.end() {
            let alike = cursor.widen(page);
            if matches!(cursor.read(page), Decoded::Leaf(leaf) if ours.contains(leaf.pfn::<M::Granule>())) {
                cursor.update(
                    alike,
                    |leaf, _| leaf.without_access(),
                    |pages, Change { was, is }| {
                        if was != is {
                            flush.note(id, pages);
                        }
                    },
                );
            }
            page = alike.pages().end();
        }
        return Unmapped::Kept(Refusal::Referenced);
    }
    let is_whole = seen.mapped == run.pages() && run.pages() <= CHUNK as u64;
    if !seen.is_dirty && is_whole && discard(&mut cursor, run, id, flush) {
        // Nothing stands in its place, so that another CPU may map a new page as soon as the table is free: no
        // translation of the old one may be left then.
        flush.complete();
        let _ = frames.put(frame, MAP * run.pages());
        return Unmapped::Discarded;
    }
    let prepared = match core::mem::replace(spare, Err(Dry::Slots)) {
        Ok(prepared) if seen.is_one(run.pages()) => prepared,
        other => {
            let dry = other.map(|prepared| *spare = Ok(prepared)).err();
            if run.pages() > 1 {
                let refusal = split(mm, &mut cursor, folio, flush).map_or(Refusal::Raced, |()| Refusal::Split);
                return Unmapped::Kept(refusal);
            }
            return Unmapped::Kept(dry.map_or(Refusal::Raced, Refusal::Dry));
        }
    };
    // Nothing fails from here on. The slots name the frames before any CPU can find the entries that name the slots.
    let first = prepared.cache(frame);
    record.enter_cache(first.area(), first.slot() as u32);
    // A whole folio: its groups are whole.
    let run = cursor.fit(run, Edge::Widen, id, flush);
    cursor.swap_out(run, first);
    flush.note(id, run.pages());
    let _ = frames.put(frame, MAP * run.pages().pages());
    Unmapped::Leaving(prepared.commit())
}

/// Takes all the entries of a clean folio out, unless a store makes one dirty at the last moment: then they are back
/// as they were.
fn discard<M: Machine>(cursor: &mut Cursor<'_, M>, run: VpnRange, node: NodeId, flush: &mut Flush<'_, M>) -> bool {
    let mut leaves: ArrayVec<(Vpn, Leaf), CHUNK> = ArrayVec::new();
    // A whole folio: its groups are whole.
    let run = cursor.fit(run, Edge::Widen, node, flush);
    cursor.take_leaves(run, |page, leaf| leaves.push((page, leaf)));
    if leaves.iter().any(|(_, leaf)| leaf.is_dirty()) {
        // Same frames, same rights: a CPU that still holds a translation holds one of these.
        cursor.put_back(leaves.into_iter());
        return false;
    }
    flush.note(node, run.pages());
    true
}
