//! Leaves on their way out of a locked table, and back.

use arrayvec::ArrayVec;

use super::cursor::{Cursor, OUT, PRESENT};
use super::group::Fitted;
use crate::addr::Vpn;
use crate::frame::MAX_ORDER;
use crate::granule::Level;
use crate::machine::Machine;
use crate::pte::{Decoded, Leaf, SwapEntry, decode};

/// The pages of the largest folio.
const MOST: usize = 1 << MAX_ORDER;

/// Leaves of one folio that were taken out of a table, with their pages.
pub(crate) type Leaves = ArrayVec<(Vpn, Leaf), MOST>;

/// A leaf was not clean.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Dirty;

impl<M: Machine> Cursor<'_, M> {
    /// Puts leaves that [`Cursor::take_leaves`] took back in their places, or another form of them. Whoever takes all
    /// of a group puts all of it back; a walker may use any of its pages as soon as the first entry is there.
    #[inline]
    pub(crate) fn put_back(&mut self, leaves: impl ExactSizeIterator<Item = (Vpn, Leaf)>) {
        self.count(PRESENT * leaves.len() as u64, 0);
        self.mm.machine().fence_contents();
        for (page, leaf) in leaves {
            self.mm.machine().store_entry(self.table.entry(page), leaf.raw());
        }
    }

    /// Takes the leaves of a run out as [`Cursor::take`] does, those that are `wanted`: all of a group or none. Leaves
    /// what is swapped out in place.
    #[inline]
    pub(crate) fn take_leaves(&mut self, run: Fitted, wanted: impl Fn(Leaf) -> bool, mut taken: impl FnMut(Vpn, Leaf)) {
        let machine = self.mm.machine();
        let start = self.table.entry(run.pages().start());
        let mut present = 0;
        for index in 0..run.pages().pages() {
            let at = start.offset(index as usize);
            if let Decoded::Leaf(leaf) = decode::<M::Granule>(machine.load_entry(at), Level::LEAF)
                && wanted(leaf)
                && let Decoded::Leaf(leaf) = decode::<M::Granule>(machine.exchange_entry(at, 0), Level::LEAF)
            {
                present += PRESENT;
                taken(run.pages().start().offset(index), leaf);
            }
        }
        self.count(0, present);
    }

    /// Takes the leaves of a run, all of it, out if all are clean. Else all are as they were: the same frames with the
    /// same rights, as a CPU that holds a translation knows them.
    ///
    /// # Errors
    /// [`Dirty`] when one is not clean: the hardware may come in between at any time.
    #[inline(always)]
    pub(crate) fn take_clean(&mut self, run: Fitted) -> Result<(), Dirty> {
        if run.pages().pages() > 1 {
            return self.take_all_clean(run);
        }
        let machine = self.mm.machine();
        let at = self.table.entry(run.pages().start());
        let was = machine.exchange_entry(at, 0);
        if Leaf::one_is_dirty(was, was) {
            machine.store_entry(at, was);
            return Err(Dirty);
        }
        self.count(0, PRESENT);
        Ok(())
    }

    #[inline(never)]
    fn take_all_clean(&mut self, run: Fitted) -> Result<(), Dirty> {
        let machine = self.mm.machine();
        let start = self.table.entry(run.pages().start());
        let pages = run.pages().pages() as usize;
        let (mut any, mut all) = (0, !0);
        let mut taken: ArrayVec<u64, MOST> = ArrayVec::new();
        for index in 0..pages {
            let was = machine.exchange_entry(start.offset(index), 0);
            any |= was;
            all &= was;
            taken.push(was);
        }
        if Leaf::one_is_dirty(any, all) {
            for (index, &was) in taken.iter().enumerate() {
                machine.store_entry(start.offset(index), was);
            }
            return Err(Dirty);
        }
        self.count(0, PRESENT * pages as u64);
        Ok(())
    }

    /// Leaves swap entries where `leaves` were, which [`Cursor::take_leaves`] took: `first` at `start`, which is
    /// exclusive, and those after it, each as exclusive as the leaf was. The slots have a user more each.
    pub(crate) fn put_out(&mut self, leaves: &[(Vpn, Leaf)], start: Vpn, first: SwapEntry) {
        self.count(OUT * leaves.len() as u64, 0);
        for &(page, leaf) in leaves {
            let entry = first.nth(page.number() - start.number());
            let shared = self.mm.share_slot(entry);
            let entry = if leaf.is_exclusive() { entry } else { shared };
            // An exchange is a release: who finds the entry finds the slot in use.
            self.mm.machine().exchange_entry(self.table.entry(page), entry.raw());
        }
    }
}
