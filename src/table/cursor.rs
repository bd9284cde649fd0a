//! The cursor: one leaf table, locked.

use super::LeafTable;
use super::group::{Fitted, foldable};
use crate::addr::{Vpn, VpnRange};
use crate::frame::{FrameRecord, MAP, flag};
use crate::granule::{Granule, Level};
use crate::machine::{EntryAt, Machine};
use crate::mm::Mm;
use crate::node::NodeId;
use crate::pte::{Decoded, Exclusive, Leaf, Protection, SwapEntry, decode, in_place};
use crate::sync::{HeldMark, Ordering, try_lock_bit, unlock_bits};
use crate::tlb::{self, Flush, Lost};

/// One present entry in a leaf table's count word.
pub(super) const PRESENT: u64 = 1;
/// One swap entry in a leaf table's count word.
pub(super) const OUT: u64 = 1 << 32;

/// What an entry held when it was read without the lock. Says nothing until confirmed through a [`Cursor`].
#[derive(Copy, Clone)]
pub(crate) struct Racy(u64);

impl Racy {
    /// A guess at what the entry is, to prepare for.
    #[inline]
    pub(crate) fn guess<M: Machine>(self) -> Decoded {
        decode::<M::Granule>(self.0, Level::LEAF)
    }
}

/// A live leaf before and after a change.
#[derive(Copy, Clone)]
pub(crate) struct Change {
    pub(crate) was: Leaf,
    pub(crate) is: Leaf,
}

impl Change {
    /// The same change of the leaf that `raw` is, if that differs from the first in its address alone.
    #[inline]
    fn of_alike<G: Granule>(self, raw: u64) -> Option<Self> {
        let was = self.was.alike::<G>(raw)?;
        Some(Self { was, is: self.is.with_address_of::<G>(was) })
    }
}

/// What an entry held that was taken out.
#[derive(Copy, Clone)]
pub(crate) enum Taken {
    /// Pages of one folio; the first one's leaf as it was read, whatever the hardware noted since.
    Leaves(Leaf),
    /// Pages that are out, in slots that follow each other; the first one's entry.
    Swapped(SwapEntry),
}

impl LeafTable {
    #[inline]
    pub(super) fn entry(&self, page: Vpn) -> EntryAt {
        debug_assert!(page >= self.first);
        EntryAt { table: self.at, index: (page.number() - self.first.number()) as usize }
    }

    /// Reads the entry of `page` without the lock.
    #[inline]
    pub(crate) fn peek<M: Machine>(&self, machine: &M, page: Vpn) -> Racy {
        Racy(machine.load_entry(self.entry(page)))
    }

    /// The pages from the start of `run` on that were out in slots which follow that of `first`, the entry of the
    /// first, and as exclusive, when they were looked at, one after the other.
    #[inline]
    pub(crate) fn peek_swapped<M: Machine>(&self, machine: &M, run: VpnRange, first: SwapEntry) -> u64 {
        let at = self.entry(run.start());
        let follows = |&page: &u64| machine.load_entry(at.offset(page as usize)) == first.nth(page).raw();
        (0..run.pages()).take_while(follows).count() as u64
    }

    /// Whether the entries of a run were all empty when looked at, one after the other.
    #[inline]
    pub(crate) fn seems_vacant<M: Machine>(&self, machine: &M, run: VpnRange) -> bool {
        let at = self.entry(run.start());
        (0..run.pages()).all(|page| machine.load_entry(at.offset(page as usize)) == 0)
    }

    /// The place and the bits of the entry of `page`, for a log.
    pub(crate) fn raw<M: Machine>(&self, machine: &M, page: Vpn) -> (EntryAt, u64) {
        (self.entry(page), machine.load_entry(self.entry(page)))
    }

    /// The leaves that it held when it was looked at.
    pub(crate) fn leaves<M: Machine>(&self, mm: &Mm<M>) -> u64 {
        let Some(frame) = mm.frames().frame(self.at) else { return 0 };
        mm.frames().record(frame).count.word().load(Ordering::Relaxed) % OUT / PRESENT
    }

    /// The swap entries that it held when it was looked at.
    pub(crate) fn swap_entries<M: Machine>(&self, mm: &Mm<M>) -> u64 {
        let Some(frame) = mm.frames().frame(self.at) else { return 0 };
        mm.frames().record(frame).count.word().load(Ordering::Relaxed) / OUT
    }

    /// Locks the table. `None` when its frame is not one of the database's: then it is not a table of the library's.
    #[inline]
    pub(crate) fn lock<'a, M: Machine>(self, mm: &'a Mm<M>) -> Option<Cursor<'a, M>> {
        let record = mm.frames().record(mm.frames().frame(self.at)?);
        while !try_lock_bit(&record.flags, flag::TABLE_LOCKED) {
            mm.machine().relax();
        }
        Some(Cursor { mm, table: self, record, _held: HeldMark::new() })
    }
}

/// A leaf table's entries, under its lock.
pub(crate) struct Cursor<'a, M: Machine> {
    pub(super) mm: &'a Mm<M>,
    pub(super) table: LeafTable,
    record: &'a FrameRecord,
    _held: HeldMark,
}

impl<M: Machine> Cursor<'_, M> {
    /// Whether this is the leaf table of `page`.
    #[inline]
    pub(crate) fn holds(&self, page: Vpn) -> bool {
        self.table.holds::<M::Granule>(page)
    }

    /// What the entry of `page` is now.
    #[inline]
    pub(crate) fn read(&self, page: Vpn) -> Decoded {
        decode::<M::Granule>(self.mm.machine().load_entry(self.table.entry(page)), Level::LEAF)
    }

    /// Whether the table holds neither a leaf nor a swap entry.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.record.count.word().load(Ordering::Relaxed) == 0
    }

    /// Whether the table holds swap entries.
    #[inline]
    pub(crate) fn holds_swapped(&self) -> bool {
        self.record.count.word().load(Ordering::Relaxed) >= OUT
    }

    /// Whether nothing is there in all of `run`.
    #[inline(always)]
    pub(crate) fn is_vacant(&self, run: VpnRange) -> bool {
        self.table.seems_vacant(self.mm.machine(), run)
    }

    /// The count of entries changes under the lock only, so that a load and a store suffice.
    #[inline]
    pub(super) fn count(&self, add: u64, sub: u64) {
        let count = self.record.count.word().load(Ordering::Relaxed);
        self.record.count.word().store(count.wrapping_add(add).wrapping_sub(sub), Ordering::Relaxed);
    }

    /// Stores the leaves of a run of one folio, of which `first` is the first, over entries that are not valid. What
    /// is a whole group becomes one. The pages' contents and tags become visible before the entries do.
    #[inline(always)]
    fn show(&mut self, run: VpnRange, first: Leaf) {
        let machine = self.mm.machine();
        machine.fence_contents();
        let at = self.table.entry(run.start());
        if run.pages() == 1 {
            return machine.store_entry(at, first.raw());
        }
        let groups = foldable::<M::Granule>(run, first);
        for page in 0..run.pages() {
            let leaf = first.nth::<M::Granule>(page);
            let folded = groups.contains(run.start().offset(page));
            let leaf = if folded { leaf.with_contiguous() } else { leaf };
            machine.store_entry(at.offset(page as usize), leaf.raw());
        }
        self.mm.stats().folds.add(groups.pages() >> M::Granule::GROUP_ORDER);
    }

    /// Maps a run of one folio where nothing is; `first` is the first page's leaf.
    #[inline(always)]
    pub(crate) fn map(&mut self, run: VpnRange, first: Leaf) {
        debug_assert!(self.is_vacant(run));
        self.show(run, first);
        self.count(PRESENT * run.pages(), 0);
    }

    /// Maps a run of one folio where swap entries are; their uses of the slots pass to the caller.
    #[inline]
    pub(crate) fn map_back(&mut self, run: VpnRange, first: Leaf) {
        debug_assert!(matches!(self.read(run.start()), Decoded::Swapped(_)));
        self.show(run, first);
        self.count(PRESENT * run.pages(), OUT * run.pages());
    }

    /// Changes live leaves in place, without losing what the hardware writes meanwhile, and tells `seen` of each run
    /// that was alike, changed or not: a group, or single pages that differ in their addresses alone, with the change
    /// of the first. The change may touch permissions, AF, dirty and software bits only, looks at nothing else, and
    /// gives leaves that differ in AF and dirty alone ones that do; it is lent the proof of exclusivity when the leaf
    /// has it.
    #[inline]
    pub(crate) fn update(
        &mut self,
        run: Fitted,
        change: impl Fn(Leaf, Option<&Exclusive<'_>>) -> Leaf,
        seen: impl FnMut(VpnRange, Change),
    ) {
        self.update_each(run, change, |_| {}, seen);
    }

    /// [`Cursor::update`], which also tells `each` of every page's leaf as it was, and of a group's first.
    #[inline]
    pub(crate) fn update_each(
        &mut self,
        run: Fitted,
        change: impl Fn(Leaf, Option<&Exclusive<'_>>) -> Leaf,
        mut each: impl FnMut(Leaf),
        mut seen: impl FnMut(VpnRange, Change),
    ) {
        let machine = self.mm.machine();
        let proof = Exclusive::proven();
        let change = |was: Leaf| {
            let is = change(was, was.is_exclusive().then_some(&proof));
            debug_assert_eq!(in_place::<M::Granule>(was.raw(), is.raw(), Level::LEAF), Ok(()));
            is
        };
        let start = self.table.entry(run.pages().start());
        let mut index = 0;
        while index < run.pages().pages() {
            let at = start.offset(index as usize);
            let page = run.pages().start().offset(index);
            let Decoded::Leaf(was) = decode::<M::Granule>(machine.load_entry(at), Level::LEAF) else {
                index += 1;
                continue;
            };
            let (pages, change) = if was.is_contiguous() {
                each(was);
                (M::Granule::GROUP_PAGES as u64, self.update_group(at, was, &change))
            } else {
                let change = Change { was, is: change(was) };
                (self.update_alike(at, run.pages().pages() - index, change, |_, change| each(change.was)), change)
            };
            // None at all when the hardware came in between: then the leaf is looked at once more.
            if pages > 0 {
                index += pages;
                seen(VpnRange::new(page, pages), change);
            }
        }
    }

    /// Makes `change` of the first of `pages` single leaves from `at` on that are like the one that it was made for,
    /// and tells `each` of every one. Ends early at one that is not, or that the hardware writes to just then. Returns
    /// how many were changed.
    #[inline(always)]
    fn update_alike(&mut self, at: EntryAt, pages: u64, change: Change, mut each: impl FnMut(u64, Change)) -> u64 {
        let machine = self.mm.machine();
        for page in 0..pages {
            let at = at.offset(page as usize);
            let raw = machine.load_entry(at);
            let Some(this) = change.of_alike::<M::Granule>(raw) else { return page };
            if change.was != change.is && machine.compare_exchange_entry(at, raw, this.is.raw()).is_err() {
                return page;
            }
            each(page, this);
        }
        pages
    }

    /// Changes the group that starts at `at`, whose first leaf is `first`. What it was has the history of all entries.
    ///
    /// Every entry is exchanged for the same new leaf, made from what is known of the group so far. If the old ones had
    /// more history than that, once more: a use that the hardware notes late is in some old entry.
    #[inline]
    fn update_group(&mut self, at: EntryAt, first: Leaf, change: &impl Fn(Leaf) -> Leaf) -> Change {
        let mut is = change(first);
        let mut was = self.exchange_group(at, |page| is.nth::<M::Granule>(page).raw());
        loop {
            let next = change(was);
            if next == is {
                return Change { was, is };
            }
            is = next;
            was = was.with_history_of(self.exchange_group_again(at, is));
        }
    }

    #[cold]
    #[inline(never)]
    fn exchange_group_again(&mut self, at: EntryAt, first: Leaf) -> Leaf {
        self.exchange_group(at, |page| first.nth::<M::Granule>(page).raw())
    }

    /// Exchanges the entry of each page of a group for what `new` gives. Returns the old first leaf with the history
    /// of all.
    #[inline]
    pub(super) fn exchange_group(&mut self, at: EntryAt, new: impl Fn(u64) -> u64) -> Leaf {
        let machine = self.mm.machine();
        let (mut any, mut all) = (0, !0);
        for page in 0..M::Granule::GROUP_PAGES {
            let old = machine.exchange_entry(at.offset(page), new(page as u64));
            any |= old;
            all &= old;
        }
        Leaf::merged(any, all)
    }

    /// Makes the pages of a run shared with another space, whose table `into` has nothing there: the entries of both
    /// are alike then, none is exclusive, and each folio and slot has as many more uses. The rights that this one loses
    /// are noted in `flush`. What is pinned stays this one's: the other gets the leaf that `copy` makes of the page and
    /// its leaf.
    pub(crate) fn share(
        &mut self,
        into: &mut Self,
        run: Fitted,
        node: NodeId,
        flush: &mut Flush<'_, M>,
        mut copy: impl FnMut(Vpn, Leaf) -> Option<Leaf>,
    ) {
        let (machine, frames) = (self.mm.machine(), self.mm.frames());
        let (from, to) = (self.table.entry(run.pages().start()), into.table.entry(run.pages().start()));
        let (mut present, mut out, mut index) = (0, 0, 0);
        let mut lost = Lost::new(node, flush);
        // None becomes pinned meanwhile: that needs the space's lock.
        let some_are_pinned = self.mm.pins.load(Ordering::Relaxed) > 0;
        while index < run.pages().pages() {
            let at = from.offset(index as usize);
            let raw = machine.load_entry(at);
            let to = to.offset(index as usize);
            let mut pages = 1;
            match decode::<M::Granule>(raw, Level::LEAF) {
                Decoded::Leaf(leaf) => {
                    if leaf.is_contiguous() {
                        pages = M::Granule::GROUP_PAGES as u64;
                    }
                    if some_are_pinned && self.is_pinned(leaf) {
                        let alike = Fitted::alike(run.pages().start().offset(index), pages);
                        present += PRESENT * self.share_pinned(to, alike, node, lost.noted(), &mut copy);
                        index += pages;
                        continue;
                    }
                    let count = |first: Leaf, pages| {
                        if let Some(frame) = frames.frame(first.pfn::<M::Granule>()) {
                            frames.record(frames.head(frame)).count.add(MAP * pages);
                        }
                    };
                    let was = if leaf.is_contiguous() {
                        let Change { was, is } = self.update_group(at, leaf, &Leaf::without_exclusive);
                        count(is, pages);
                        let theirs = is.locked_as(Protection::empty());
                        for page in 0..pages {
                            machine.store_entry(to.offset(page as usize), theirs.nth::<M::Granule>(page).raw());
                        }
                        was
                    } else {
                        let change = Change { was: leaf, is: leaf.without_exclusive() };
                        // None at all when the hardware came in between: then the leaf is looked at once more.
                        let most = if some_are_pinned { 1 } else { run.pages().pages() - index };
                        pages = self.update_alike(at, most, change, |page, this| {
                            count(this.is, 1);
                            machine.store_entry(to.offset(page as usize), this.is.locked_as(Protection::empty()).raw());
                        });
                        leaf
                    };
                    if was.is_writable() {
                        lost.add(VpnRange::new(run.pages().start().offset(index), pages));
                    }
                    present += PRESENT * pages;
                }
                Decoded::Swapped(entry) => {
                    // Reclaim took a writable leaf away, and its flush may be still to come: what is stored from now on
                    // is this space's alone.
                    if entry.is_exclusive() && self.mm.is_cached(entry) {
                        lost.add(VpnRange::new(run.pages().start().offset(index), 1));
                    }
                    let shared = self.mm.share_slot(entry);
                    if shared != entry {
                        machine.exchange_entry(at, shared.raw());
                    }
                    machine.exchange_entry(to, shared.raw());
                    out += OUT;
                }
                Decoded::Empty | Decoded::Table(_) | Decoded::Unknown(_) => {}
            }
            index += pages;
        }
        into.count(present + out, 0);
    }

    /// Whether the folio that a leaf shows is pinned.
    fn is_pinned(&self, leaf: Leaf) -> bool {
        let frames = self.mm.frames();
        frames.frame(leaf.pfn::<M::Granule>()).is_some_and(|frame| frames.is_pinned(frames.head(frame)))
    }

    /// Gives another space, from its table's entry `to` on, the leaves that `copy` makes of a pinned page, or of the
    /// pages of a pinned group. Returns how many.
    #[cold]
    fn share_pinned(
        &mut self,
        to: EntryAt,
        alike: Fitted,
        node: NodeId,
        flush: &mut Flush<'_, M>,
        mut copy: impl FnMut(Vpn, Leaf) -> Option<Leaf>,
    ) -> u64 {
        let (run, Decoded::Leaf(first)) = (alike.pages(), self.read(alike.pages().start())) else { return 0 };
        // No program stores to it while it is copied.
        self.update(alike, |leaf, _| leaf.without_write(), |_, _| {});
        flush.note(node, run);
        flush.invalidate();
        let mut copied = 0;
        for page in 0..run.pages() {
            let leaf = first.nth::<M::Granule>(page).without_contiguous().locked_as(Protection::empty());
            if let Some(leaf) = copy(run.start().offset(page), leaf) {
                self.mm.machine().store_entry(to.offset(page as usize), leaf.raw());
                copied += 1;
            }
        }
        if first.is_writable() {
            let regain = |leaf: Leaf, proof: Option<&Exclusive<'_>>| proof.map_or(leaf, |proof| leaf.with_write(proof));
            self.update(alike, regain, |_, _| {});
        }
        copied
    }

    /// Puts another page's leaf in the place of a page's that is in no group, by break-before-make: every CPU has
    /// forgotten the old one when the new one is there. The old one's count passes to the caller.
    #[inline]
    pub(crate) fn replace(&mut self, page: Vpn, node: NodeId, new: Leaf) {
        debug_assert!(matches!(self.read(page), Decoded::Leaf(leaf) if !leaf.is_contiguous()));
        let machine = self.mm.machine();
        machine.exchange_entry(self.table.entry(page), 0);
        tlb::invalidate_everywhere(self.mm, node, page);
        self.show(VpnRange::new(page, 1), new);
    }

    /// Takes every entry of a run out, and hands what was there to `taken`, by runs that were alike: a group, or one
    /// page. The leaves' counts, or a swap entry's use of its slot, pass along. The entries are empty.
    #[inline]
    pub(crate) fn take(&mut self, run: Fitted, mut taken: impl FnMut(VpnRange, Taken)) {
        let machine = self.mm.machine();
        let start = self.table.entry(run.pages().start());
        let (mut present, mut out, mut index) = (0, 0, 0);
        while index < run.pages().pages() {
            let at = start.offset(index as usize);
            let page = run.pages().start().offset(index);
            index += 1;
            match decode::<M::Granule>(machine.load_entry(at), Level::LEAF) {
                Decoded::Leaf(leaf) => {
                    machine.exchange_entry(at, 0);
                    let pages = if leaf.is_contiguous() { M::Granule::GROUP_PAGES } else { 1 };
                    for next in 1..pages {
                        machine.exchange_entry(at.offset(next), 0);
                    }
                    index += pages as u64 - 1;
                    present += PRESENT * pages as u64;
                    taken(VpnRange::new(page, pages as u64), Taken::Leaves(leaf));
                }
                Decoded::Swapped(entry) => {
                    let pages = self.take_slots(VpnRange::between(page, run.pages().end()), entry);
                    index += pages - 1;
                    out += OUT * pages;
                    taken(VpnRange::new(page, pages), Taken::Swapped(entry));
                }
                Decoded::Empty | Decoded::Table(_) | Decoded::Unknown(_) => {}
            }
        }
        self.count(0, present + out);
    }

    /// Takes the swap entries of a run out as [`Cursor::take`] does, and leaves what is present in place.
    pub(crate) fn take_swapped(&mut self, run: Fitted, mut taken: impl FnMut(VpnRange, SwapEntry)) {
        if !self.holds_swapped() {
            return;
        }
        let (mut page, end) = (run.pages().start(), run.pages().end());
        let mut out = 0;
        while page < end {
            let mut pages = 1;
            if let Decoded::Swapped(entry) = self.read(page) {
                pages = self.take_slots(VpnRange::between(page, end), entry);
                out += OUT * pages;
                taken(VpnRange::new(page, pages), entry);
            }
            page = page.offset(pages);
        }
        self.count(0, out);
    }

    /// Empties the entries from the start of `run` on that are swap entries of slots which follow that of `first`, the
    /// entry of the first. Returns how many.
    #[inline(never)]
    fn take_slots(&mut self, run: VpnRange, first: SwapEntry) -> u64 {
        let at = self.table.entry(run.start());
        let machine = self.mm.machine();
        for page in 0..run.pages() {
            if machine.load_entry(at.offset(page as usize)) != first.nth(page).raw() {
                return page;
            }
            machine.store_entry(at.offset(page as usize), 0);
        }
        run.pages()
    }

    /// Puts `now` in the place of the swap entry of a page.
    pub(crate) fn exchange_swapped(&mut self, page: Vpn, now: SwapEntry) {
        debug_assert!(matches!(self.read(page), Decoded::Swapped(_)), "no swap entry is there");
        self.mm.machine().exchange_entry(self.table.entry(page), now.raw());
    }

    /// The pages from the start of `run` on that are out in slots which follow that of `first`, the entry of the first,
    /// and are as exclusive.
    #[inline]
    pub(crate) fn swapped(&self, run: VpnRange, first: SwapEntry) -> u64 {
        self.table.peek_swapped(self.mm.machine(), run, first)
    }

    /// Takes the live leaves of a run, all of it, out, and leaves the entries of a run of slots in their places:
    /// `first`, which is exclusive, and those after it, each as exclusive as the leaf was.
    #[inline(always)]
    pub(crate) fn swap_out(&mut self, run: Fitted, first: SwapEntry) {
        let machine = self.mm.machine();
        let start = self.table.entry(run.pages().start());
        for index in 0..run.pages().pages() {
            let at = start.offset(index as usize);
            let entry = match decode::<M::Granule>(machine.load_entry(at), Level::LEAF) {
                // The hardware changes other bits.
                Decoded::Leaf(leaf) if !leaf.is_exclusive() => first.nth(index).shared(),
                _ => first.nth(index),
            };
            machine.exchange_entry(at, entry.raw());
        }
        self.count(OUT * run.pages().pages(), PRESENT * run.pages().pages());
    }

    /// Takes the live leaves of the first pages of `run` out, each in no group and this space's alone, and leaves the
    /// entries that `out` makes of them in their places, as long as it does. Returns how many.
    #[inline(always)]
    pub(crate) fn swap_out_first(&mut self, run: VpnRange, mut out: impl FnMut(Leaf) -> Option<SwapEntry>) -> u64 {
        let machine = self.mm.machine();
        let start = self.table.entry(run.start());
        let mut pages = 0;
        while pages < run.pages()
            && let at = start.offset(pages as usize)
            && let Decoded::Leaf(leaf) = decode::<M::Granule>(machine.load_entry(at), Level::LEAF)
            && let Some(entry) = out(leaf)
        {
            debug_assert!(leaf.is_exclusive() && !leaf.is_contiguous() && entry.is_exclusive());
            machine.exchange_entry(at, entry.raw());
            pages += 1;
        }
        self.count(OUT * pages, PRESENT * pages);
        pages
    }
}

impl<M: Machine> Drop for Cursor<'_, M> {
    #[inline]
    fn drop(&mut self) {
        unlock_bits(&self.record.flags, flag::TABLE_LOCKED);
    }
}
