//! Splitting a large folio into single pages.
//!
//! Who splits has the folio's lock and the one reference to it beside the counts of its leaf entries, and the lock of
//! the leaf table that has all of these. So nobody else can look at the folio or at a page of it: one compare-exchange
//! of the count is the point of no return. Groups are broken up first, as no single page covers one.

use core::ops::Range;

use super::backed::unback;
use crate::addr::VpnRange;
use crate::frame::{FolioLock, MAP, REFERENCE, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::Decoded;
use crate::table::Cursor;
use crate::tlb::Flush;

/// Makes single pages of a large folio, all of whose entries `cursor` has, the leaf table of `node`. The caller holds a
/// reference, which becomes one to the first page. Pages that nothing maps are freed, the other new ones become the
/// oldest of reclaim's list.
///
/// `None` when somebody else holds the folio, or entries that were taken out wait for their flush: then it is as it
/// was.
pub(crate) fn split<M: Machine>(
    mm: &Mm<M>,
    cursor: &mut Cursor<'_, M>,
    folio: &FolioLock<'_, M>,
    node: NodeId,
    flush: &mut Flush<'_, M>,
) -> Option<()> {
    let frames = mm.frames();
    let head = folio.frame();
    let record = frames.record(head);
    let home = Home::load(&record.home);
    let run = VpnRange::new(home.page(), 1 << record.order());
    let first = frames.pfn(head);
    let is_mapped = |cursor: &Cursor<'_, M>, index: u64| {
        let entry = cursor.read(home.page().offset(index));
        matches!(entry, Decoded::Leaf(leaf) if leaf.pfn::<M::Granule>() == first.offset(index))
    };
    let maps = |cursor: &Cursor<'_, M>, pages: Range<u64>| {
        MAP * pages.filter(|&index| is_mapped(cursor, index)).count() as u64
    };
    let (before, after) = (REFERENCE + maps(cursor, 0..run.pages()), REFERENCE + maps(cursor, 0..1));
    if record.has(flag::BACKED) {
        // Nobody maps it anywhere else.
        (record.count.maps() as u64 == before - REFERENCE).then_some(())?;
        unback(mm, cursor, folio)?;
    }
    record.count.trade(before, after)?;
    cursor.unfold_all(run, node, flush);
    let tails = || (1..run.pages()).filter_map(|index| Some((index, frames.tail(head, index)?)));
    for (index, tail) in tails() {
        frames.promote(tail);
        Home::new(home.node(), home.page().offset(index)).store(&frames.record(tail).home);
        frames.record(tail).count.begin(MAP);
        if !is_mapped(cursor, index) {
            frames.free(mm.machine().cpu(), tail);
        }
    }
    frames.shrink(head);
    let kept = tails().filter(|&(index, _)| is_mapped(cursor, index)).map(|(_, tail)| tail);
    mm.reclaim().insert_old(frames, kept);
    mm.stats().splits.bump();
    Some(())
}
