//! The tables that reclaim takes folios out of, one after the other.
//!
//! Folios that came together leave together, and are neighbours in one table more often than not: its lock, and the
//! family's, stay held from one to the next, for a batch of reclaim at most. Nothing sleeps meanwhile.
//!
//! An entry that is left empty may be filled as soon as its table is free, so that no CPU may know of the old page any
//! more then (law 4): [`Unmapping`] completes the flush before it gives such a table up, one for all that left it. Where
//! a swap entry stands in the page's place, the flush has time until the contents are written.

use super::unmap::mapped_in;
use crate::addr::{PfnRange, VpnRange};
use crate::frame::FolioLock;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::{Home, NodeId};
use crate::sync::SharedGuard;
use crate::table::{self, Cursor};
use crate::tlb::Flush;

/// Folios on their way out: the leaf table of the last one, locked, and what CPUs have yet to forget.
pub(crate) struct Unmapping<'a, M: Machine> {
    mm: &'a Mm<M>,
    site: Option<Site<'a, M>>,
    flush: Flush<'a, M>,
}

impl<'a, M: Machine> Unmapping<'a, M> {
    /// No table is locked, and nothing is to forget.
    pub(crate) fn new(mm: &'a Mm<M>) -> Self {
        Self { mm, site: None, flush: Flush::new(mm) }
    }

    /// The leaf table of `home`, locked instead of the last one. `None` when it is gone.
    #[inline(always)]
    pub(super) fn enter(&mut self, home: Home) -> Option<(&mut Site<'a, M>, &mut Flush<'a, M>)> {
        let stays = |site: &Site<'a, M>| site.node == home.node() && site.cursor.holds(home.page());
        if !self.site.as_ref().is_some_and(stays) {
            self.change(home);
        }
        Some((self.site.as_mut()?, &mut self.flush))
    }

    #[inline(never)]
    fn change(&mut self, home: Home) {
        // One table's lock at a time.
        self.leave();
        self.site = Site::enter(self.mm, home);
    }

    /// Gives the last table up.
    pub(crate) fn leave(&mut self) {
        if self.site.as_ref().is_some_and(|site| site.owes_a_flush) {
            self.flush.complete();
        }
        self.site = None;
    }

    /// Gives the last table up, for who locks others.
    pub(super) fn alone(&mut self) -> &mut Flush<'a, M> {
        self.leave();
        &mut self.flush
    }

    /// Gives the last table up, and waits until no CPU can write to any of the pages.
    pub(crate) fn complete(&mut self) {
        self.leave();
        self.flush.complete();
    }
}

impl<M: Machine> Drop for Unmapping<'_, M> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The leaf table at a folio's home, locked.
pub(super) struct Site<'a, M: Machine> {
    pub(super) cursor: Cursor<'a, M>,
    _family: SharedGuard<'a>,
    node: NodeId,
    /// Other spaces came from this one, and may map the folio as well.
    has_children: bool,
    /// Some entry was left empty, and the flush has yet to say that no CPU knows of what was there.
    owes_a_flush: bool,
}

impl<'a, M: Machine> Site<'a, M> {
    fn enter(mm: &'a Mm<M>, home: Home) -> Option<Self> {
        let family = mm.family(home.node())?;
        let node = mm.node(home.node())?;
        let table = table::find(mm.machine(), node.root()?, home.page())?;
        let has_children = node.has_children();
        Some(Self { cursor: table.lock(mm)?, _family: family, node: home.node(), has_children, owes_a_flush: false })
    }

    /// An entry was left empty whose page is noted in the flush.
    #[inline]
    pub(super) fn owes_a_flush(&mut self) {
        self.owes_a_flush = true;
    }

    /// Whether every leaf of the folio is in this table.
    #[inline]
    pub(super) fn has_all(&self, mm: &Mm<M>, folio: &FolioLock<'_, M>) -> bool {
        if !self.has_children {
            return true;
        }
        let record = folio.record();
        let (pages, first) = (1 << record.order(), Home::load(&record.home).page());
        let ours = PfnRange::new(mm.frames().pfn(folio.frame()), pages);
        mapped_in(&self.cursor, VpnRange::new(first, pages), ours) == record.count.maps() as u64
    }
}
