//! What leaves where it is found, for who takes out pages of its own space: no reverse map is asked.
//!
//! **Protocol.** The caller holds the space's lock and the table's, and its flush completes when the table is free
//! again, before anything is written or freed (laws 2 and 4). A folio is taken if this space has it alone, nobody has pinned
//! or locked it, and it is in no slot yet; all others are left to [`evict`](super::evict), which knows every case.

use super::evict::Ageing;
use super::outgoing::Outgoing;
use crate::addr::{PfnRange, VpnRange};
use crate::frame::{FrameRecord, flag};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::NodeId;
use crate::pte::{Decoded, Leaf};
use crate::rmap::mapped_in;
use crate::table::{CHUNK, Cursor};
use crate::tlb::{Flush, Lost};

/// Whether who has this leaf maps all that anybody maps of its folio: who has a page alone does.
#[inline(always)]
pub(super) fn is_alone(folio: &FrameRecord, leaf: Leaf) -> bool {
    leaf.is_exclusive() && folio.count.maps() == 1 << folio.order()
}

/// Takes the first folios of `run` out of the table that need no slot, as munmap would: all of each is clean, in no
/// slot, mapped here alone, and may go. Returns how many pages they had.
#[inline(never)]
pub(super) fn take_given_up<M: Machine>(
    mm: &Mm<M>,
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    node: NodeId,
    flush: &mut Flush<'_, M>,
) -> u64 {
    let frames = mm.frames();
    let mut lost = Lost::new(node, flush);
    let mut page = run.start();
    while page < run.end()
        && page.number() - run.start().number() < CHUNK as u64
        && let Decoded::Leaf(leaf) = cursor.read(page)
        && let Some(frame) = frames.frame(leaf.pfn::<M::Granule>())
    {
        let head = frames.head(frame);
        let record = frames.record(head);
        let pages = VpnRange::new(page, 1 << record.order());
        let ours = PfnRange::new(frames.pfn(head), pages.pages());
        // A group is there as a whole.
        let is_all = pages.pages() == if leaf.is_contiguous() { M::Granule::GROUP_PAGES as u64 } else { 1 };
        let may_go = head == frame
            && run.covers(pages)
            && is_alone(record, leaf)
            && !leaf.is_locked()
            && !record.count.is_pinned()
            && !record.has(flag::CACHED)
            && (is_all || mapped_in(cursor, pages, ours) == pages.pages());
        if !may_go || cursor.take_clean(cursor.whole(pages)).is_err() {
            break;
        }
        lost.add(pages);
        lost.own(head, pages.pages() as u32);
        page = pages.end();
    }
    page.number() - run.start().number()
}

/// Takes the first pages of `run` out of the table that are folios of their own, to be written, and may go, as far as
/// slots that lie side by side reach; they join `outgoing`. Returns how many.
///
/// Where use counts, a page goes that was not used since its access flag was cleared.
#[inline(never)]
pub(super) fn take_out<'a, M: Machine>(
    mm: &'a Mm<M>,
    cursor: &mut Cursor<'_, M>,
    run: VpnRange,
    (node, ageing): (NodeId, Ageing),
    outgoing: &mut Outgoing<'a, M>,
    flush: &mut Flush<'_, M>,
) -> u64 {
    let frames = mm.frames();
    // Others may lack what is taken here for pages that stay.
    let run = VpnRange::new(run.start(), lead(cursor, run, outgoing.room() as u64, ageing));
    let Decoded::Leaf(first) = cursor.read(run.start()) else { return 0 };
    let Some(frame) = frames.frame(first.pfn::<M::Granule>()).filter(|_| !run.is_empty()) else { return 0 };
    if !frames.record(frame).is_listed_single() {
        return 0;
    }
    let tagged = frames.tagged_pages(frame, 0);
    let prepared = mm.swap().prepare(mm.machine().cpu(), 0, tagged, run.pages() as u32);
    let Ok(mut prepared) = prepared else { return 0 };
    let mut list = mm.reclaim().isolating(frames);
    let taken = cursor.swap_out_first(run, |leaf| {
        let frame = frames.frame(leaf.pfn::<M::Granule>())?;
        let record = frames.record(frame);
        if !record.is_listed_single() || !prepared.fit(0, frames.tagged_pages(frame, 0)) {
            return None;
        }
        let folio = frames.try_lock(mm.machine(), frame)?;
        // No slot and no pin is added but under the lock that is held now.
        if record.has(flag::CACHED) || !record.count.is_mapped_once() {
            return None;
        }
        list.take(frame);
        record.count.keep();
        // Nothing fails from here on. The slot names the frame before any CPU can find the entry that names the slot.
        let entry = prepared.cache(frame, 0);
        record.enter_cache(entry.area(), entry.slot() as u32);
        outgoing.push(folio, prepared.commit());
        Some(entry)
    });
    if taken > 0 {
        flush.note(node, VpnRange::new(run.start(), taken));
    }
    taken
}

/// The first pages of `run` that may go, if they are folios of their own; `most` of them at most.
#[inline(always)]
fn lead<M: Machine>(cursor: &Cursor<'_, M>, run: VpnRange, most: u64, ageing: Ageing) -> u64 {
    let goes = |&page: &u64| match cursor.read(run.start().offset(page)) {
        Decoded::Leaf(leaf) => may_go(leaf, ageing),
        _ => false,
    };
    (0..run.pages().min(most)).take_while(goes).count() as u64
}

/// Whether a page of its own folio goes: this space has it alone, and it has to be written.
#[inline(always)]
fn may_go(leaf: Leaf, ageing: Ageing) -> bool {
    leaf.is_dirty()
        && leaf.is_exclusive()
        && !leaf.is_contiguous()
        && !leaf.is_locked()
        && (ageing == Ageing::Ignored || !leaf.is_accessed())
}
