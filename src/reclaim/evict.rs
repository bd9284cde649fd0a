//! Eviction of a batch: unmap, one flush, write out.

use arrayvec::ArrayVec;

use super::BATCH;
use super::list::{Batch, Kept};
use super::outgoing::{Outgoing, release};
use super::policy::Seen;
use crate::frame::{FolioLock, Frame, REFERENCE, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::rmap::{Refusal, Unmapped, Unmapping, unback_dirty, unmap};
use crate::stats::Stats;
use crate::swap::{Demand, Dry, Leaving, Supply};

pub(super) use crate::rmap::Ageing;

/// What became of a batch.
pub(super) struct Evicted {
    /// Pages freed.
    pub(super) pages: u64,
    /// Large folios that could not leave as one and are single pages now, listed as the oldest.
    pub(super) split: u64,
    /// Folios that stay for want of a slot, or of room for tags.
    pub(super) dry: u64,
}

/// Evicts what it can of `batch`; the rest goes back to the list.
pub(super) fn evict<M: Machine>(mm: &Mm<M>, batch: &Batch, ageing: Ageing) -> Evicted {
    let frames = mm.frames();
    let cpu = mm.machine().cpu();
    let stats = mm.stats();
    stats.scanned.add(batch.folios.len() as u64);

    let mut kept = Kept::new();
    let mut split: ArrayVec<Frame, BATCH> = ArrayVec::new();
    let mut clean: ArrayVec<FolioLock<'_, M>, BATCH> = ArrayVec::new();
    let mut outgoing = Outgoing::new();
    // Of those whose use counts, most may stay.
    let mut supply = Supply::new(mm, if ageing == Ageing::Ignored { Demand::Sure } else { Demand::Unsure });
    let mut unmapping = Unmapping::new(mm);
    let spared = batch.spared(ageing);
    let mut dry = 0;
    for (index, &frame) in batch.folios.iter().enumerate() {
        let Some(folio) = frames.try_lock(mm.machine(), frame) else {
            stats.busy.bump();
            kept.push((frame, Seen::Nothing));
            continue;
        };
        let record = frames.record(frame);
        if record.count.maps() == 0 && record.has(flag::KEPT) {
            // Written once in vain; its swap entry is in place already.
            match Leaving::again(mm, &folio) {
                Some(again) => outgoing.push(folio, again),
                None => kept.push((frame, Seen::Nothing)),
            }
            continue;
        }
        let ageing = if spared >> index & 1 == 0 { ageing } else { Ageing::Spared };
        if record.has(flag::BACKED) {
            unback_dirty(mm, &folio, &mut unmapping);
        }
        supply.plan_for((batch.folios.len() - index) as u32);
        let outcome = loop {
            match unmap(mm, &folio, &mut supply, ageing, &mut unmapping) {
                Unmapped::Kept(Refusal::Dry(Dry::Backed)) => {
                    unmapping.leave();
                    mm.unback_some();
                    supply.insist();
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Unmapped::Discarded | Unmapped::Returned => clean.push(folio),
            Unmapped::Leaving(way) => outgoing.push(folio, way),
            Unmapped::Kept(Refusal::Split) => split.push(frame),
            Unmapped::Kept(refusal) => {
                dry += u64::from(matches!(refusal, Refusal::Dry(_)));
                kept.push((frame, count(stats, refusal)));
            }
        }
    }
    drop(supply);
    // From here on no CPU can write to any of these pages.
    unmapping.complete();

    let (mut freed, mut discarded) = (0, 0);
    let mut freeing = frames.freeing(cpu);
    for folio in clean.drain(..) {
        let record = folio.record();
        let pages = 1 << record.order();
        if record.has(flag::CACHED) {
            mm.returned_to_slots(&folio);
        } else {
            discarded += pages;
        }
        freed += release(frames, folio, pages, &mut freeing);
    }
    stats.clean_discards.add(discarded);
    freed += outgoing.write_out(mm, &mut freeing, &mut kept);
    drop(freeing);
    mm.reclaim().put_back(frames, batch, &kept);
    if !kept.is_empty() {
        mm.release(kept.iter().map(|&(frame, _)| (frame, REFERENCE)));
    }
    if !split.is_empty() {
        mm.reclaim().insert_old(frames, split.iter().copied());
        mm.release(split.iter().map(|&frame| (frame, REFERENCE)));
    }
    mm.reclaim().settled(mm.machine(), batch.folios.len());
    Evicted { pages: freed, split: split.len() as u64, dry }
}

/// Counts why a folio stays, and says what that tells of its use.
fn count(stats: &Stats, refusal: Refusal) -> Seen {
    match refusal {
        Refusal::Referenced => {
            stats.referenced.bump();
            return Seen::Used;
        }
        Refusal::Spared => {
            stats.spared.bump();
            return Seen::Unused;
        }
        Refusal::Pinned => stats.busy.bump(),
        Refusal::Locked => stats.locked.bump(),
        Refusal::Raced => stats.raced.bump(),
        Refusal::Dry(Dry::Slots | Dry::Backed) => stats.no_slot.bump(),
        Refusal::Dry(Dry::Rooms) => stats.no_tag_room.bump(),
        // Counted where it is done.
        Refusal::Split => {}
    }
    Seen::Nothing
}
