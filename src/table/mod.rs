//! Tables of descriptors: finding a leaf table, making one, and the cursor through which alone entries are touched.
//!
//! **Protocol.** Entries of a leaf table are read and written through a [`Cursor`], which holds the table's lock from
//! the first entry on. So no reader takes a transient hole of break-before-make for an empty entry: a hole exists
//! only while the lock is held. The hardware is the one other writer, of AF and AP\[2\]; hence live entries change by
//! exchanges only.
//!
//! A walk from the root down reads table descriptors without a lock. It may be done by whoever holds the space's lock
//! (faults and calls) or the family lock (reclaim): tables are only taken away under both. Making a table needs the
//! space lock.
//!
//! Operations take runs of pages. Where a run cuts a contiguous group, `group` decides what becomes of it.
//!
//! A read without the lock gives a `Racy`: worth a guess about what to prepare, confirmed under the lock.

mod cursor;
pub(crate) mod group;
mod leaves;

pub(crate) use cursor::{Change, Cursor, Taken};
pub(crate) use group::{Edge, Fitted};
pub(crate) use leaves::Leaves;

use crate::addr::{Pfn, Vpn, VpnRange};
use crate::frame::{Frame, Kind, OwnedFrame};
use crate::granule::{Granule, Level};
use crate::machine::{EntryAt, Machine};
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::{Decoded, decode, table_descriptor};
use crate::sync::Ordering;

/// A leaf table, found.
#[derive(Copy, Clone)]
pub(crate) struct LeafTable {
    /// The table's frame.
    at: Pfn,
    /// The first page that the table maps.
    first: Vpn,
}

impl LeafTable {
    /// Whether this is the leaf table of `page`.
    #[inline]
    pub(crate) fn holds<G: Granule>(&self, page: Vpn) -> bool {
        first_page::<G>(page) == self.first
    }

    /// The pages that it maps.
    #[inline]
    pub(crate) fn pages<G: Granule>(&self) -> VpnRange {
        VpnRange::new(self.first, G::ENTRIES as u64)
    }
}

/// Pages that one hold of a leaf table's lock works on at most: the largest group, so that a run of more is cut between
/// groups only. 128 entries of some 30 instructions each keep others waiting for microseconds.
pub(crate) const CHUNK: usize = 128;

const _: () = {
    use crate::granule::{K4, K16, K64};
    assert!(CHUNK.is_multiple_of(K4::GROUP_PAGES) && CHUNK.is_multiple_of(K16::GROUP_PAGES));
    assert!(CHUNK.is_multiple_of(K64::GROUP_PAGES));
};

/// The parts of a run between multiples of [`CHUNK`] pages, in ascending order.
#[inline]
pub(crate) fn chunks(run: VpnRange) -> impl Iterator<Item = VpnRange> {
    let mut left = run;
    core::iter::from_fn(move || {
        let end = (left.start().number() | (CHUNK as u64 - 1)) + 1;
        let part = left.intersection(VpnRange::between(left.start(), Vpn::new(end)));
        left = VpnRange::between(part.end(), left.end());
        (!part.is_empty()).then_some(part)
    })
}

/// The place of the entry that leads to `page` in a table of `level`.
#[inline]
fn entry_of<G: Granule>(table: Pfn, level: Level, page: Vpn) -> EntryAt {
    let shift = level.shift::<G>() - G::SHIFT;
    EntryAt { table, index: (page.number() >> shift) as usize & (G::ENTRIES - 1) }
}

/// The first page of the leaf table that `page` is in.
#[inline]
fn first_page<G: Granule>(page: Vpn) -> Vpn {
    Vpn::new(page.number() & !(G::ENTRIES as u64 - 1))
}

/// One table below, in the count word of a table that is not a leaf table.
const LINK: u64 = 1;

/// What a walk met.
enum Walked {
    /// The leaf table.
    Leaf(LeafTable),
    /// No table below this entry, of this level.
    Missing(EntryAt, Level),
}

#[inline]
fn walk<M: Machine>(machine: &M, root: Pfn, page: Vpn) -> Walked {
    let mut table = root;
    let mut level = Level::root::<M::Granule>(machine.va_bits());
    while let Some(below) = level.below() {
        let at = entry_of::<M::Granule>(table, level, page);
        match decode::<M::Granule>(machine.load_entry(at), level) {
            Decoded::Table(next) => table = next,
            _ => return Walked::Missing(at, level),
        }
        level = below;
    }
    Walked::Leaf(LeafTable { at: table, first: first_page::<M::Granule>(page) })
}

/// The leaf table of `page`, if it exists.
#[inline]
pub(crate) fn find<M: Machine>(machine: &M, root: Pfn, page: Vpn) -> Option<LeafTable> {
    match walk(machine, root, page) {
        Walked::Leaf(table) => Some(table),
        Walked::Missing(..) => None,
    }
}

/// The leaf table of `page`, made if it does not exist. Under the space's lock.
///
/// `None` when there is no memory for a table; tables made on the way stay, empty.
#[inline]
pub(crate) fn find_or_make<M: Machine>(mm: &Mm<M>, root: Pfn, node: NodeId, page: Vpn) -> Option<LeafTable> {
    loop {
        match walk(mm.machine(), root, page) {
            Walked::Leaf(table) => return Some(table),
            Walked::Missing(at, level) => make(mm, at, level, node, page)?,
        }
    }
}

/// Links a new, empty table at `at`, an entry of `level`.
#[cold]
fn make<M: Machine>(mm: &Mm<M>, at: EntryAt, level: Level, node: NodeId, page: Vpn) -> Option<()> {
    let table = zeroed(mm)?;
    let record = mm.frames().record(table.frame());
    if level.below() == Some(Level::LEAF) {
        Home::new(node, first_page::<M::Granule>(page)).store(&record.home);
    }
    record.count.begin(0);
    // The walker must not see the table before it sees its zeroes.
    mm.machine().fence_contents();
    mm.machine().store_entry(at, table_descriptor::<M::Granule>(table.pfn()));
    if let Some(above) = mm.frames().frame(at.table) {
        mm.frames().record(above).count.word().fetch_add(LINK, Ordering::Relaxed);
    }
    table.publish();
    mm.stats().tables_made.bump();
    Some(())
}

/// A zeroed frame of kind table, for a root or a table below it.
pub(crate) fn zeroed<M: Machine>(mm: &Mm<M>) -> Option<OwnedFrame<'_>> {
    let table = mm.take_frame(Kind::Table)?;
    mm.machine().zero(crate::addr::PfnRange::new(table.pfn(), 1), crate::machine::Tags::Ignore);
    Some(table)
}

/// Calls `visit` with each existing leaf table under `root` and the part of `range` that lies in it, in ascending
/// order, skipping what has no table. Under the space's lock. `visit` says when to stop.
pub(crate) fn for_each_leaf_table<M: Machine, E>(
    machine: &M,
    root: Pfn,
    range: VpnRange,
    mut visit: impl FnMut(LeafTable, VpnRange) -> Result<(), E>,
) -> Result<(), E> {
    let mut page = range.start();
    while page < range.end() {
        page = match walk(machine, root, page) {
            Walked::Leaf(table) => {
                let end = Vpn::new(table.first.number() + M::Granule::ENTRIES as u64).min(range.end());
                visit(table, VpnRange::between(page, end))?;
                end
            }
            Walked::Missing(at, level) => end_of_hole(machine, (at, level), page, range.end()),
        };
    }
    Ok(())
}

/// The first page behind `page` and before `limit` that may have a table, where the entry `at`, of a table of `level`,
/// leads to none: the entries beside it are looked at without a walk from the root for each.
#[inline(never)]
fn end_of_hole<M: Machine>(machine: &M, (mut at, level): (EntryAt, Level), page: Vpn, limit: Vpn) -> Vpn {
    let span = 1 << (level.shift::<M::Granule>() - M::Granule::SHIFT);
    let mut end = (page.number() & !(span - 1)) + span;
    at.index += 1;
    while end < limit.number() && at.index < M::Granule::ENTRIES {
        if let Decoded::Table(_) = decode::<M::Granule>(machine.load_entry(at), level) {
            break;
        }
        end += span;
        at.index += 1;
    }
    Vpn::new(end).min(limit)
}

/// Whether `hole` holds all the pages of some leaf table: otherwise there is nothing to prune.
#[inline]
pub(crate) fn may_cover_a_table<M: Machine>(hole: VpnRange) -> bool {
    let entries = M::Granule::ENTRIES as u64;
    let first = first_page::<M::Granule>(Vpn::new(hole.start().number() + entries - 1));
    first.number() + entries <= hole.end().number()
}

/// Pages that nothing maps.
#[derive(Copy, Clone)]
pub(crate) struct Hole {
    /// All of it.
    pub(crate) pages: VpnRange,
    /// What was mapped until now: a table outside was looked at before.
    pub(crate) new: VpnRange,
}

/// Detaches the tables that map pages of `hole` alone, and hands each to `free` with the pages that it mapped, leaf
/// tables first; the root stays. Under the space's lock and the family lock, held exclusively.
pub(crate) fn prune<M: Machine>(mm: &Mm<M>, root: Pfn, hole: Hole, free: &mut impl FnMut(Frame, VpnRange)) {
    let level = Level::root::<M::Granule>(mm.machine().va_bits());
    prune_below(mm, root, level, Vpn::new(0), hole, free);
}

fn prune_below<M: Machine>(
    mm: &Mm<M>,
    table: Pfn,
    level: Level,
    first: Vpn,
    hole: Hole,
    free: &mut impl FnMut(Frame, VpnRange),
) {
    let Some(below) = level.below() else { return };
    let shift = level.shift::<M::Granule>() - M::Granule::SHIFT;
    let part = VpnRange::new(first, (M::Granule::ENTRIES as u64) << shift).intersection(hole.new);
    if part.is_empty() {
        return;
    }
    let index = |page: Vpn| ((page.number() - first.number()) >> shift) as usize;
    for index in index(part.start())..=index(Vpn::new(part.end().number() - 1)) {
        let at = EntryAt { table, index };
        let Decoded::Table(next) = decode::<M::Granule>(mm.machine().load_entry(at), level) else { continue };
        let Some(frame) = mm.frames().frame(next) else { continue };
        let pages = VpnRange::new(Vpn::new(first.number() + ((index as u64) << shift)), 1 << shift);
        prune_below(mm, next, below, pages.start(), hole, free);
        if hole.pages.covers(pages) && mm.frames().record(frame).count.word().load(Ordering::Relaxed) == 0 {
            mm.machine().exchange_entry(at, 0);
            if let Some(above) = mm.frames().frame(table) {
                mm.frames().record(above).count.word().fetch_sub(LINK, Ordering::Relaxed);
            }
            free(frame, pages);
        }
    }
}
