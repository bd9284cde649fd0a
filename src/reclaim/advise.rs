//! What a program asks of reclaim for a part of its own memory.

use super::evict::{Ageing, evict};
use super::list::Batch;
use crate::addr::VpnRange;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::space::Space;
use crate::table::LeafTable;

/// Writes out the pages of `range` whatever their use, as far as slots and tag room reach. Under the space's lock.
pub(crate) fn page_out<M: Machine>(mm: &Mm<M>, space: &Space<M>, range: VpnRange) {
    space.for_each_leaf_table(mm, range, |table: LeafTable, mut part: VpnRange| {
        while !part.is_empty() {
            let batch = isolate(mm, table, &mut part);
            evict(mm, &batch, Ageing::Ignored);
        }
    });
}

/// Isolates the folios of the first pages of `part`, up to a batch, and cuts these pages off.
fn isolate<M: Machine>(mm: &Mm<M>, table: LeafTable, part: &mut VpnRange) -> Batch {
    let mut batch = Batch::new();
    let mut page = part.start();
    if let Some(cursor) = table.lock(mm) {
        while page < part.end() && !batch.is_full() {
            if let crate::pte::Decoded::Leaf(leaf) = cursor.read(page)
                && let Some(frame) = mm.frames().frame(leaf.pfn::<M::Granule>())
                && mm.reclaim().isolate_one(mm.frames(), frame).is_some()
            {
                batch.push(frame);
            }
            page = page.offset(1);
        }
        *part = VpnRange::between(page, part.end());
    } else {
        *part = VpnRange::between(part.end(), part.end());
    }
    batch
}
