//! What a program asks of reclaim for a part of its own memory.

use super::evict::{Ageing, evict};
use super::list::Batch;
use crate::addr::{VirtAddr, VpnRange};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;
use crate::space::{MapError, Space};
use crate::table::LeafTable;
use crate::tlb::Flush;

/// What a program says about a range.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Advice {
    /// Its contents may go: the next touch finds zeroes.
    DontNeed,
    /// It will not be used soon: out with it.
    PageOut,
}

impl<M: Machine> Space<M> {
    /// Follows a program's advice, in all parts of the range that are mapped.
    ///
    /// [`Advice::PageOut`] goes as far as slots and tag rooms reach, and that it does not go further is no error.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfRange`]: nothing was done. [`MapError::NotMapped`]: a part has no
    /// region; the advice was followed in the others.
    pub fn advise(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64, advice: Advice) -> Result<(), MapError> {
        self.for_each_region(mm, start, bytes, |part| match advice {
            // The flush completes under the space's lock: once that is free, another CPU may map a new page there.
            Advice::DontNeed => self.unmap_pages(mm, part, &mut Flush::new(mm)),
            Advice::PageOut => page_out(mm, self, part),
        })
    }
}

/// Writes out the pages of `range` whatever their use.
fn page_out<M: Machine>(mm: &Mm<M>, space: &Space<M>, range: VpnRange) {
    space.for_each_leaf_table(mm, range, |table, mut part| {
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
            if let Decoded::Leaf(leaf) = cursor.read(page)
                && let Some(frame) = mm.frames().frame(leaf.pfn::<M::Granule>())
                && mm.reclaim().isolate_one(mm.frames(), frame).is_some()
            {
                batch.push(frame);
            }
            page = page.offset(1);
        }
    } else {
        page = part.end();
    }
    *part = VpnRange::between(page, part.end());
    batch
}
