//! What a program asks of reclaim for a part of its own memory.
//!
//! A page that a program gives up ([`Advice::Free`]) is made clean, and that is all: reclaim discards a clean page
//! without a slot, whatever made it clean, and a store makes it dirty again, so that it stays. A contiguous group that
//! the range covers in part is unfolded, so that its other pages stay dirty; a folio with clean and dirty pages is
//! split when reclaim comes to it. What is pinned is not given up: a device may store there until the pin goes, without
//! a sign in the entry.

use arrayvec::ArrayVec;

use super::BATCH;
use super::at_once::{is_alone, take_given_up, take_out};
use super::evict::{Ageing, Evicted, evict};
use super::list::Batch;
use super::outgoing::Outgoing;
use crate::addr::{PfnRange, VirtAddr, Vpn, VpnRange};
use crate::frame::Frame;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::pte::{Decoded, Leaf, SwapEntry};
use crate::rmap::{age, split, unback_all};
use crate::space::{Access, MapError, Space, Unused, give_up, is_pinned};
use crate::sync::Ordering;
use crate::table::{CHUNK, Change, Cursor, Edge, Fitted, LeafTable, chunks};
use crate::tlb::{Flush, Lost};

/// What a program says about a range.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Advice {
    /// Its contents may go: the next touch finds zeroes.
    DontNeed,
    /// Its contents may go at any time until they are stored to again; what is out goes at once.
    Free,
    /// It will not be used soon.
    Cold,
    /// It will not be used soon: out with it.
    PageOut,
    /// It will be used soon: what is out comes in.
    WillNeed,
}

impl<M: Machine> Space<M> {
    /// Follows a program's advice, in all parts of the range that are mapped.
    ///
    /// [`Advice::PageOut`] goes as far as slots and tag rooms reach, [`Advice::WillNeed`] as far as memory above the
    /// low watermark and what the device can read, in a space with a cap not at all, and that they do not go further is
    /// no error.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfRange`]: nothing was done. [`MapError::NotMapped`]: a part has no
    /// region; the advice was followed in the others. [`MapError::Locked`]: a part is locked in memory, and the advice,
    /// any but [`Advice::WillNeed`], was followed up to there.
    pub fn advise(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64, advice: Advice) -> Result<(), MapError> {
        self.for_each_region(mm, start, bytes, |part| {
            let pages = part.pages;
            if part.is_locked() && advice != Advice::WillNeed {
                return Err(MapError::Locked(pages.start().base::<M::Granule>()));
            }
            match advice {
                // The flush completes under the space's lock: once that is free, another CPU may map a new page there.
                Advice::DontNeed => self.unmap_pages(mm, pages, &mut Flush::new(mm)),
                Advice::Free => calm(mm, self, pages, Free),
                Advice::Cold => calm(mm, self, pages, Cold),
                Advice::PageOut => page_out(mm, self, pages),
                Advice::WillNeed => self.bring_in(mm, &part, Access::Read),
            }
            Ok(())
        })
    }
}

/// What becomes of a page that stays.
trait Calm {
    /// What to do with a group that the range covers in part.
    const EDGE: Edge;

    /// The first pages of a part of a table that it is for. Under the space's lock alone.
    #[inline]
    fn first<M: Machine>(_: &Mm<M>, _: LeafTable, part: VpnRange) -> VpnRange {
        part
    }

    /// What comes before, for folios of the part of a table. Under the space's lock alone.
    fn prepare<M: Machine>(mm: &Mm<M>, table: LeafTable, part: VpnRange);

    /// The page's leaf from now on.
    fn leaf(was: Leaf) -> Leaf;

    /// What is out: entries that go are taken out, and handed to `gone`.
    fn swapped<M: Machine>(cursor: &mut Cursor<'_, M>, run: Fitted, gone: impl FnMut(VpnRange, SwapEntry));
}

/// Not used lately.
struct Cold;

impl Calm for Cold {
    const EDGE: Edge = Edge::Widen;

    fn prepare<M: Machine>(_: &Mm<M>, _: LeafTable, _: VpnRange) {}

    #[inline]
    fn leaf(was: Leaf) -> Leaf {
        was.without_access()
    }

    #[inline]
    fn swapped<M: Machine>(_: &mut Cursor<'_, M>, _: Fitted, _: impl FnMut(VpnRange, SwapEntry)) {}
}

/// Not used lately, and nothing that must be kept.
struct Free;

impl Calm for Free {
    // A store may be noted in any entry of a group: its other pages must not lose it.
    const EDGE: Edge = Edge::Unfold;

    #[inline]
    fn first<M: Machine>(mm: &Mm<M>, table: LeafTable, part: VpnRange) -> VpnRange {
        if mm.pins.load(Ordering::Relaxed) == 0 { part } else { not_pinned(mm, table, part) }
    }

    fn prepare<M: Machine>(mm: &Mm<M>, table: LeafTable, part: VpnRange) {
        // Clean is to mean given up.
        if mm.swap().some_are_backed() {
            unback_all(mm, table, part, |_| true);
        }
    }

    #[inline]
    fn leaf(was: Leaf) -> Leaf {
        was.without_history()
    }

    fn swapped<M: Machine>(cursor: &mut Cursor<'_, M>, run: Fitted, gone: impl FnMut(VpnRange, SwapEntry)) {
        cursor.take_swapped(run, gone);
    }
}

/// Makes the pages of `range` cold or free, and their folios the first that reclaim looks at.
fn calm<M: Machine, C: Calm>(mm: &Mm<M>, space: &Space<M>, range: VpnRange, _: C) {
    let mut flush = Flush::new(mm);
    space.for_each_leaf_table(mm, range, |table, part| {
        for mut part in chunks(part) {
            while !part.is_empty() {
                let first = C::first(mm, table, part);
                if !first.is_empty() {
                    calm_chunk::<M, C>(mm, space.node(), table, first, &mut flush);
                }
                part = VpnRange::between(first.end(), part.end());
            }
        }
    });
}

/// The first pages in a row of a part of a table that are not pinned; none, at its end, if all are. They stay so under
/// the space's lock.
#[cold]
fn not_pinned<M: Machine>(mm: &Mm<M>, table: LeafTable, part: VpnRange) -> VpnRange {
    let none = VpnRange::new(part.end(), 0);
    let Some(cursor) = table.lock(mm) else { return none };
    let mut pages = (0..part.pages()).map(|page| part.start().offset(page));
    let Some(start) = pages.by_ref().find(|&page| !is_pinned(mm, &cursor, page)) else { return none };
    VpnRange::between(start, pages.find(|&page| is_pinned(mm, &cursor, page)).unwrap_or(part.end()))
}

fn calm_chunk<M: Machine, C: Calm>(
    mm: &Mm<M>,
    node: NodeId,
    table: LeafTable,
    part: VpnRange,
    flush: &mut Flush<'_, M>,
) {
    let mut unused = Unused::new();
    C::prepare(mm, table, part);
    {
        let Some(mut cursor) = table.lock(mm) else { return };
        let run = cursor.fit(part, C::EDGE, node, flush);
        let mut folios: ArrayVec<Frame, CHUNK> = ArrayVec::new();
        let mut freed = 0;
        let mut lost = Lost::new(node, flush);
        cursor.update_each(
            run,
            |leaf, _| C::leaf(leaf),
            |leaf| {
                if let Some(frame) = mm.frames().frame(leaf.pfn::<M::Granule>()) {
                    let head = mm.frames().head(frame);
                    if folios.last() != Some(&head) {
                        let _ = folios.try_push(head);
                    }
                }
            },
            |pages, Change { was, is }| {
                if was.is_dirty() && !is.is_dirty() {
                    freed += pages.pages();
                }
                if was != is {
                    lost.add(pages);
                }
            },
        );
        drop(lost);
        mm.reclaim().make_old(mm.frames(), &folios);
        mm.stats().lazy_freed.add(freed);
        C::swapped(&mut cursor, run, |pages, entry| give_up(mm, node, (pages, entry), &mut unused, flush));
    }
    for &entry in &unused {
        mm.drop_unused(entry);
    }
}

/// Writes out the pages of `range` whatever their use.
fn page_out<M: Machine>(mm: &Mm<M>, space: &Space<M>, range: VpnRange) {
    space.for_each_leaf_table(mm, range, |table, part| {
        let mut left = part;
        // One for all turns, which no turn moves.
        let mut batch = Batch::default();
        while !left.is_empty() {
            left = evict_first(mm, space.node(), (table, left), Ageing::Ignored, &mut batch).left;
        }
    });
}

/// What is to be done after [`evict_first`].
pub(super) struct Rest {
    /// The pages after those that it looked at; from those on, if some had to be split: they come again, page by page.
    pub(super) left: VpnRange,
    /// Pages that were freed.
    pub(super) freed: u64,
}

/// Evicts the folios of the first pages of a part of a table, up to a batch, and as many single pages again that leave
/// where they are found. Under the space's lock.
pub(super) fn evict_first<M: Machine>(
    mm: &Mm<M>,
    node: NodeId,
    (table, part): (LeafTable, VpnRange),
    ageing: Ageing,
    batch: &mut Batch,
) -> Rest {
    let mut outgoing = Outgoing::new();
    let Rest { left, mut freed } = isolate(mm, node, (table, part), ageing, &mut batch.folios, &mut outgoing);
    if !outgoing.is_empty() {
        freed += outgoing.send(mm);
    }
    if batch.folios.is_empty() {
        return Rest { left, freed };
    }
    let Evicted { pages, split, .. } = evict(mm, batch, ageing);
    Rest { left: if split == 0 { left } else { part }, freed: freed + pages }
}

/// Isolates the folios of the first pages of `part`, up to a batch. Large ones that are not covered are split. Single
/// pages that this space has alone leave the table at once, for `outgoing`; and where use does not count, what needs no
/// slot goes as if it were unmapped. Where use gives a second chance, single
/// pages that were used stay behind with their access flags cleared, and no policy hears of them: what a space at its
/// cap has is looked at so often that a use tells it little.
fn isolate<'a, M: Machine>(
    mm: &'a Mm<M>,
    node: NodeId,
    (table, part): (LeafTable, VpnRange),
    ageing: Ageing,
    batch: &mut ArrayVec<Frame, BATCH>,
    outgoing: &mut Outgoing<'a, M>,
) -> Rest {
    batch.clear();
    let mut page = part.start();
    // Completes when the table's lock is free again, under the space's: until then nobody maps a new page where one
    // went (law 4).
    let mut flush = Flush::new(mm);
    let Some(mut cursor) = table.lock(mm) else { return Rest { left: VpnRange::new(part.end(), 0), freed: 0 } };
    let (mut used, mut freed) = (0, 0);
    while page < part.end() && !batch.is_full() && outgoing.room() > 0 && freed < CHUNK as u64 {
        let Decoded::Leaf(leaf) = cursor.read(page) else {
            page = page.offset(1);
            continue;
        };
        if ageing == Ageing::SecondChance && age_single(mm, &mut cursor, (page, leaf), node, &mut flush) {
            used += 1;
            page = page.offset(1);
            continue;
        }
        if ageing == Ageing::Ignored && !leaf.is_dirty() {
            let gone = take_given_up(mm, &mut cursor, VpnRange::between(page, part.end()), node, &mut flush);
            if gone > 0 {
                freed += gone;
                page = page.offset(gone);
                continue;
            }
        }
        let gone = take_out(mm, &mut cursor, VpnRange::between(page, part.end()), (node, ageing), outgoing, &mut flush);
        if gone > 0 {
            page = page.offset(gone);
            continue;
        }
        let found = within(mm, &mut cursor, (page, leaf), (part, &*batch), node, &mut flush);
        let next = found.map_or(page.offset(1), |(_, end)| end);
        batch.extend(found.map(|(frame, _)| frame));
        page = next;
    }
    mm.reclaim().isolate_all(mm.frames(), batch);
    mm.stats().scanned.add(used);
    mm.stats().referenced.add(used);
    mm.stats().clean_discards.add(freed);
    Rest { left: VpnRange::between(page, part.end()), freed }
}

/// Clears the access flag of a folio of one page; whether it was set.
#[inline]
fn age_single<M: Machine>(
    mm: &Mm<M>,
    cursor: &mut Cursor<'_, M>,
    (page, leaf): (Vpn, Leaf),
    node: NodeId,
    flush: &mut Flush<'_, M>,
) -> bool {
    let frames = mm.frames();
    let Some(frame) = frames.frame(leaf.pfn::<M::Granule>()).filter(|_| leaf.is_accessed()) else { return false };
    // A large one ages as one.
    if frames.head(frame) != frame || frames.record(frame).order() > 0 {
        return false;
    }
    age(cursor, VpnRange::new(page, 1), PfnRange::new(leaf.pfn::<M::Granule>(), 1), node, flush);
    true
}

/// The folio that a leaf shows, if it is not in `batch` yet, and the page to go on with: a folio of `range` alone, split
/// off if it was part of a larger one. `None` when somebody else looks at the larger folio.
#[inline(always)]
fn within<M: Machine>(
    mm: &Mm<M>,
    cursor: &mut Cursor<'_, M>,
    (page, leaf): (Vpn, Leaf),
    (range, batch): (VpnRange, &[Frame]),
    node: NodeId,
    flush: &mut Flush<'_, M>,
) -> Option<(Frame, Vpn)> {
    let frames = mm.frames();
    let frame = frames.frame(leaf.pfn::<M::Granule>())?;
    let head = frames.head(frame);
    let record = frames.record(head);
    let pages = VpnRange::new(Home::load(&record.home).page(), 1 << record.order());
    if range.covers(pages) {
        if pages.pages() == 1 || is_alone(record, leaf) {
            return Some((head, pages.end()));
        }
        // Others may stand in the places of its pages: copies, or what was touched after it had been given up.
        return (!batch.contains(&head)).then_some((head, page.offset(1)));
    }
    if frames.get(head) {
        let folio = frames.try_lock(mm.machine(), head);
        let done = folio.and_then(|folio| split(mm, cursor, &folio, node, flush));
        mm.release_folio(head);
        done?;
    }
    Some((frame, page.offset(1)))
}
