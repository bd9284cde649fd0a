//! Unmapping a folio that several spaces map.
//!
//! Its mappers are those of the fork tree below its home, at one page: they are visited one by one, parents first, each
//! under the lock of its table. What a fork copies meanwhile it copies from a parent to a child, which comes later.
//! From the first swap entry on the slots name the folio, whose lock the caller holds; so who faults on an entry waits
//! for that, and nobody maps the folio anew.
//!
//! **An area that is being turned off** gets no more entries: leaves become those of slots that a folio has already
//! only inside the area while it is open (`Mm::enter_slots`).
//!
//! No leaf that is one of several is writable. So nothing is stored to the folio between the look and the last
//! exchange, but by a space that has it alone by then; a clean leaf is looked at again when it has been taken out.

use core::ops::ControlFlow;

use super::backed::part_everywhere;
use super::split::split;
use super::unmap::{Ageing, Refusal, Survey, Unmapped, age, survey, take_clean, take_ours};
use crate::addr::{PfnRange, VpnRange};
use crate::frame::{FolioLock, MAP, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::SwapEntry;
use crate::swap::{Dry, Leaving, MOST_USERS, Supply};
use crate::table::{self, Cursor, Leaves};
use crate::tlb::Flush;

/// Where a folio may be.
pub(super) struct Place {
    pub(super) home: Home,
    /// Its pages, in every space.
    pub(super) run: VpnRange,
    /// Its frames.
    pub(super) ours: PfnRange,
}

impl Place {
    pub(super) fn of<M: Machine>(mm: &Mm<M>, folio: &FolioLock<'_, M>) -> Self {
        let record = folio.record();
        let (home, pages) = (Home::load(&record.home), 1 << record.order());
        Self {
            home,
            run: VpnRange::new(home.page(), pages),
            ours: PfnRange::new(mm.frames().pfn(folio.frame()), pages),
        }
    }
}

/// Visits the table of each space that may map the folio, parents before children, under its lock.
pub(super) fn for_each_table<'a, M: Machine>(
    mm: &'a Mm<M>,
    place: &Place,
    mut visit: impl FnMut(NodeId, &mut Cursor<'a, M>) -> ControlFlow<()>,
) {
    let top = place.home.node();
    let Some(_family) = mm.family(top) else { return };
    let mut next = Some(top);
    while let Some(id) = next {
        let table = mm.node(id).and_then(|node| table::find(mm.machine(), node.root()?, place.run.start()));
        if let Some(mut cursor) = table.and_then(|table| table.lock(mm))
            && visit(id, &mut cursor).is_break()
        {
            return;
        }
        next = mm.next_of_kin(top, id);
    }
}

/// [`unmap`](super::unmap) of a folio that several spaces map, or another than its home.
#[cold]
pub(super) fn unmap_shared<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    supply: &mut Supply<'a, M>,
    ageing: Ageing,
    flush: &mut Flush<'_, M>,
) -> Unmapped<'a, M> {
    let record = folio.record();
    let place = Place::of(mm, folio);
    let mut seen = Survey::default();
    let mut tables = 0;
    for_each_table(mm, &place, |id, cursor| {
        let here = survey(mm, cursor, place.run, folio);
        if ageing.clears_flags() && here.is_accessed {
            age(cursor, place.run, place.ours, id, flush);
        }
        tables += u64::from(here.mapped > 0);
        seen.join(&here);
        ControlFlow::Continue(())
    });
    if seen.mapped == 0 {
        return Unmapped::Kept(Refusal::Raced);
    }
    if mm.frames().is_pinned(folio.frame()) {
        return Unmapped::Kept(Refusal::Pinned);
    }
    if seen.is_locked {
        return Unmapped::Kept(Refusal::Locked);
    }
    if let Some(refusal) = ageing.refusal(&seen) {
        return Unmapped::Kept(refusal);
    }
    if tables > MOST_USERS {
        // A slot cannot count so many.
        return Unmapped::Kept(Refusal::Dry(Dry::Slots));
    }
    if record.has(flag::BACKED) {
        if !seen.is_dirty
            && let Some(_open) = mm.enter_slots(folio)
        {
            return return_everywhere(mm, folio, &place, flush);
        }
        part_everywhere(mm, folio);
        seen.is_dirty = true;
    }
    if record.has(flag::KEPT) {
        let Some(_open) = mm.enter_slots(folio) else { return Unmapped::Kept(Refusal::Raced) };
        let (Some(first), Some(again)) = (mm.entry_of(folio), Leaving::again(mm, folio)) else {
            return Unmapped::Kept(Refusal::Raced);
        };
        put_out_everywhere(mm, folio, &place, first, flush);
        return Unmapped::Leaving(again);
    }
    if !seen.is_dirty {
        return discard_everywhere(mm, folio, &place, flush);
    }
    match supply.take(folio.frame(), record.order()) {
        Ok(prepared) => {
            let first = prepared.cache(folio.frame(), record.order());
            record.enter_cache(first.area(), first.slot() as u32);
            put_out_everywhere(mm, folio, &place, first, flush);
            // The slots were held by one use each until now. Those that nobody names any more are freed with the rest.
            mm.put_slots(first, place.run.pages(), |_| {});
            Unmapped::Leaving(prepared.commit())
        }
        Err(Dry::Slots | Dry::Rooms) if place.run.pages() > 1 && tables == 1 => {
            split_where_it_is(mm, folio, &place, flush)
        }
        Err(dry) => Unmapped::Kept(Refusal::Dry(dry)),
    }
}

/// Puts swap entries in the places of a folio's leaves, `first` for the first page.
fn put_out_everywhere<M: Machine>(
    mm: &Mm<M>,
    folio: &FolioLock<'_, M>,
    place: &Place,
    first: SwapEntry,
    flush: &mut Flush<'_, M>,
) {
    for_each_table(mm, place, |id, cursor| {
        let leaves = take_ours(cursor, place.run, place.ours, |cursor, leaves| {
            cursor.put_out(leaves, place.run.start(), first);
            leaves.len()
        });
        give_up(mm, folio, id, place, leaves, flush)
    });
}

/// Puts a backed folio's own entries in the places of its leaves, which are clean.
fn return_everywhere<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    place: &Place,
    flush: &mut Flush<'_, M>,
) -> Unmapped<'a, M> {
    let mut stays = false;
    let Some(first) = mm.entry_of(folio) else { return Unmapped::Kept(Refusal::Raced) };
    let put_out = |cursor: &mut Cursor<'_, M>, leaves: &Leaves| {
        cursor.put_out(leaves, place.run.start(), first);
        leaves.len()
    };
    for_each_table(mm, place, |id, cursor| match take_clean(cursor, place.run, place.ours, put_out) {
        Some(leaves) => give_up(mm, folio, id, place, leaves, flush),
        None => {
            // It is this space's alone by now, and nobody else had it.
            stays = true;
            ControlFlow::Break(())
        }
    });
    if stays {
        return Unmapped::Kept(Refusal::Raced);
    }
    mm.leaves_as_it_came(folio);
    Unmapped::Returned
}

/// Empties the places of a folio's leaves, which are clean and not in any slot.
fn discard_everywhere<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    place: &Place,
    flush: &mut Flush<'_, M>,
) -> Unmapped<'a, M> {
    let mut stays = false;
    for_each_table(mm, place, |id, cursor| match take_clean(cursor, place.run, place.ours, |_, leaves| leaves.len()) {
        Some(leaves) => {
            let done = give_up(mm, folio, id, place, leaves, flush);
            // Nothing stands in its place: see `unmap`.
            flush.complete();
            done
        }
        None => {
            stays = true;
            ControlFlow::Continue(())
        }
    });
    if stays { Unmapped::Kept(Refusal::Raced) } else { Unmapped::Discarded }
}

/// Gives back the counts of leaves that were taken out of a table. The caller has a reference.
fn give_up<M: Machine>(
    mm: &Mm<M>,
    folio: &FolioLock<'_, M>,
    node: NodeId,
    place: &Place,
    leaves: usize,
    flush: &mut Flush<'_, M>,
) -> ControlFlow<()> {
    if leaves > 0 {
        flush.note(node, place.run);
        let _ = mm.frames().put(folio.frame(), MAP * leaves as u64);
    }
    ControlFlow::Continue(())
}

/// Splits a large folio that one space maps, another than its home.
fn split_where_it_is<'a, M: Machine>(
    mm: &'a Mm<M>,
    folio: &FolioLock<'_, M>,
    place: &Place,
    flush: &mut Flush<'_, M>,
) -> Unmapped<'a, M> {
    let mut refusal = Refusal::Raced;
    for_each_table(mm, place, |id, cursor| {
        if survey(mm, cursor, place.run, folio).mapped == 0 {
            return ControlFlow::Continue(());
        }
        if split(mm, cursor, folio, id, flush).is_some() {
            refusal = Refusal::Split;
        }
        ControlFlow::Break(())
    });
    Unmapped::Kept(refusal)
}
