//! Unmapping a folio at its home, for reclaim.

use super::Home;
use crate::addr::Vpn;
use crate::frame::{FolioLock, MAP};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;
use crate::swap::{Dry, Leaving, Prepared};
use crate::table::{self, Cursor};
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
    /// No slot, or no room for its tags.
    Dry(Dry),
}

/// What became of a folio.
pub(crate) enum Unmapped<'a, M: Machine> {
    /// Clean since birth: the entry is empty, the next touch makes the same page again.
    Discarded,
    /// A swap entry stands in its place; the contents wait for the flush to be written.
    Leaving(Leaving<'a, M>),
    /// It stays, for this reason.
    Kept(Refusal),
}

/// Takes the folio out of the table of its home. `spare` is a prepared slot, if there is one; it is used up only by a
/// folio that leaves. The pages whose translations go are noted in `flush`; the count of the entry is given back at
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
    let page = home.page();
    let Some(node) = mm.node(home.node()) else { return Unmapped::Kept(Refusal::Raced) };
    let _family = node.family.read();
    let Some((root, asid)) = node.tables() else { return Unmapped::Kept(Refusal::Raced) };
    let Some(mut cursor) = table::find(mm.machine(), root, page).and_then(|table| table.lock(mm)) else {
        return Unmapped::Kept(Refusal::Raced);
    };
    let leaf = match cursor.read(page) {
        Decoded::Leaf(leaf) if leaf.pfn::<M::Granule>() == frames.pfn(frame) => leaf,
        _ => return Unmapped::Kept(Refusal::Raced),
    };
    if frames.is_pinned(frame) {
        return Unmapped::Kept(Refusal::Pinned);
    }
    if ageing == Ageing::SecondChance && leaf.is_accessed() {
        cursor.update(page, |leaf, _| leaf.without_access());
        // Without the invalidation a CPU that keeps the translation would not set the flag again, and a hot page
        // would look cold. One operation a page, one barrier pair a batch.
        flush.note(asid, page);
        return Unmapped::Kept(Refusal::Referenced);
    }
    if !leaf.is_dirty() && discard(&mut cursor, page) {
        flush.note(asid, page);
        // Nothing stands in its place, so that another CPU may map a new page as soon as the table is free: no
        // translation of the old one may be left then.
        flush.complete();
        let _ = frames.put(frame, MAP);
        return Unmapped::Discarded;
    }
    let prepared = match core::mem::replace(spare, Err(Dry::Slots)) {
        Ok(prepared) => prepared,
        Err(dry) => return Unmapped::Kept(Refusal::Dry(dry)),
    };
    // Nothing fails from here on. The slot names the frame before any CPU can find the entry that names the slot.
    let entry = prepared.cache(frame, leaf);
    record.enter_cache(prepared.area_number(), prepared.slot());
    cursor.swap_out(page, entry);
    flush.note(asid, page);
    let _ = frames.put(frame, MAP);
    Unmapped::Leaving(prepared.commit())
}

/// Takes a clean leaf out, unless a store makes it dirty at the last moment: then it is back as it was.
fn discard<M: Machine>(cursor: &mut Cursor<'_, M>, page: Vpn) -> bool {
    match cursor.take(page) {
        Some(leaf) if leaf.is_dirty() => {
            // Same frame, same rights: a CPU that still holds the translation holds this one.
            cursor.map(page, leaf);
            false
        }
        _ => true,
    }
}
