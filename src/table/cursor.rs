//! The cursor: one leaf table, locked.

use super::LeafTable;
use crate::addr::Vpn;
use crate::frame::{FrameRecord, flag};
use crate::granule::Level;
use crate::machine::{EntryAt, Machine};
use crate::mm::Mm;
use crate::pte::{Decoded, Exclusive, Leaf, SwapEntry, decode};
use crate::sync::{HeldMark, Ordering};

/// One present entry in a leaf table's count word.
const PRESENT: u64 = 1;
/// One swap entry in a leaf table's count word.
const OUT: u64 = 1 << 32;

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

impl LeafTable {
    #[inline]
    fn entry(&self, page: Vpn) -> EntryAt {
        debug_assert!(page >= self.first);
        EntryAt { table: self.at, index: (page.number() - self.first.number()) as usize }
    }

    /// Reads the entry of `page` without the lock.
    #[inline]
    pub(crate) fn peek<M: Machine>(&self, machine: &M, page: Vpn) -> Racy {
        Racy(machine.load_entry(self.entry(page)))
    }

    /// The place and the bits of the entry of `page`, for a log.
    pub(crate) fn raw<M: Machine>(&self, machine: &M, page: Vpn) -> (EntryAt, u64) {
        (self.entry(page), machine.load_entry(self.entry(page)))
    }

    /// Locks the table. `None` when its frame is not one of the database's: then it is not a table of the library's.
    #[inline]
    pub(crate) fn lock<'a, M: Machine>(self, mm: &'a Mm<M>) -> Option<Cursor<'a, M>> {
        let record = mm.frames().record(mm.frames().frame(self.at)?);
        while record.flags.fetch_or(flag::TABLE_LOCKED, Ordering::Acquire) & flag::TABLE_LOCKED != 0 {
            mm.machine().relax();
        }
        Some(Cursor { machine: mm.machine(), table: self, record, _held: HeldMark::new() })
    }
}

/// A leaf table's entries, under its lock.
pub(crate) struct Cursor<'a, M: Machine> {
    machine: &'a M,
    table: LeafTable,
    record: &'a FrameRecord,
    _held: HeldMark,
}

impl<M: Machine> Cursor<'_, M> {
    /// What the entry of `page` is now.
    #[inline]
    pub(crate) fn read(&self, page: Vpn) -> Decoded {
        decode::<M::Granule>(self.machine.load_entry(self.table.entry(page)), Level::LEAF)
    }

    /// Whether the table holds neither a leaf nor a swap entry.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.record.count.load(Ordering::Relaxed) == 0
    }

    /// The count of entries changes under the lock only, so that a load and a store suffice.
    #[inline]
    fn count(&self, add: u64, sub: u64) {
        let count = self.record.count.load(Ordering::Relaxed);
        self.record.count.store(count.wrapping_add(add).wrapping_sub(sub), Ordering::Relaxed);
    }

    /// Maps `leaf` where nothing is. The page's contents and tags become visible before the entry does.
    #[inline]
    pub(crate) fn map(&mut self, page: Vpn, leaf: Leaf) {
        debug_assert_eq!(self.read(page), Decoded::Empty);
        self.machine.fence_contents();
        self.machine.store_entry(self.table.entry(page), leaf.raw());
        self.count(PRESENT, 0);
    }

    /// Maps `leaf` where a swap entry is; its use of the slot passes to the caller.
    #[inline]
    pub(crate) fn map_back(&mut self, page: Vpn, leaf: Leaf) {
        debug_assert!(matches!(self.read(page), Decoded::Swapped(_)));
        self.machine.fence_contents();
        self.machine.store_entry(self.table.entry(page), leaf.raw());
        self.count(PRESENT, OUT);
    }

    /// Changes a live leaf in place, without losing what the hardware writes meanwhile; returns what it was. `None`
    /// when the entry is no leaf. The change may touch permissions, AF, dirty and software bits only; it is lent the
    /// proof of exclusivity when the leaf has it.
    #[inline]
    pub(crate) fn update(
        &mut self,
        page: Vpn,
        change: impl Fn(Leaf, Option<&Exclusive<'_>>) -> Leaf,
    ) -> Option<Change> {
        let at = self.table.entry(page);
        let mut raw = self.machine.load_entry(at);
        loop {
            let Decoded::Leaf(seen) = decode::<M::Granule>(raw, Level::LEAF) else { return None };
            let proof = Exclusive::proven();
            let new = change(seen, seen.is_exclusive().then_some(&proof));
            if new == seen {
                return Some(Change { was: seen, is: new });
            }
            match self.machine.compare_exchange_entry(at, raw, new.raw()) {
                Ok(()) => return Some(Change { was: seen, is: new }),
                Err(now) => raw = now,
            }
        }
    }

    /// Takes a live leaf out; the frame's count passes to the caller. The entry is empty.
    #[inline]
    pub(crate) fn take(&mut self, page: Vpn) -> Option<Leaf> {
        let old = self.machine.exchange_entry(self.table.entry(page), 0);
        self.count(0, PRESENT);
        match decode::<M::Granule>(old, Level::LEAF) {
            Decoded::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// Takes a live leaf out and leaves `entry` in its place.
    #[inline]
    pub(crate) fn swap_out(&mut self, page: Vpn, entry: SwapEntry) -> Option<Leaf> {
        let old = self.machine.exchange_entry(self.table.entry(page), entry.raw());
        self.count(OUT, PRESENT);
        match decode::<M::Granule>(old, Level::LEAF) {
            Decoded::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// Takes a swap entry out; its use of the slot passes to the caller. The entry is empty.
    #[inline]
    pub(crate) fn drop_swapped(&mut self, page: Vpn) {
        self.machine.store_entry(self.table.entry(page), 0);
        self.count(0, OUT);
    }
}

impl<M: Machine> Drop for Cursor<'_, M> {
    #[inline]
    fn drop(&mut self) {
        self.record.flags.fetch_and(!flag::TABLE_LOCKED, Ordering::Release);
    }
}
