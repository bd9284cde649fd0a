//! The flush: it owns what was removed from the tables until no CPU can reach it any more.
//!
//! **Protocol.** Whoever removes an entry, or takes a right away from one, notes the page in a [`Flush`] and moves what
//! the entry held (a frame's reference, a detached table) into it, all under the leaf table's lock. [`Flush::complete`],
//! or dropping the flush, orders the table stores (DSB ISHST), invalidates every noted run on every CPU, waits (DSB ISH),
//! and only then gives the frames and tables back. So "freed before flushed" has no spelling.
//!
//! A batch pays one pair of barriers, whatever its size. Adjacent pages become one run, and a run is one range
//! invalidation where the CPU has them. More runs than fit make the flush drop the whole address space instead.
//!
//! Contents may be copied for write-out only after [`Flush::complete`]: until then some CPU may still write.

use arrayvec::ArrayVec;

use crate::addr::{Vpn, VpnRange};
use crate::frame::Frame;
use crate::granule::Level;
use crate::machine::{Asid, Cached, Machine, Reach, Scope};
use crate::mm::Mm;

/// Frames and tables that one flush owns at most; also the pages that a caller unmaps between two barrier pairs. Two
/// barriers over 64 pages are below one instruction a page.
pub(crate) const CAPACITY: usize = 64;

/// Runs noted before the whole space is dropped. A batch of reclaim has [`CAPACITY`] scattered pages at most.
const RUNS: usize = CAPACITY;

struct Run {
    asid: Asid,
    pages: VpnRange,
}

/// Removed translations, and what they kept alive.
#[must_use = "dropping a flush completes it"]
pub(crate) struct Flush<'a, M: Machine> {
    mm: &'a Mm<M>,
    runs: ArrayVec<Run, RUNS>,
    /// One reference each.
    frames: ArrayVec<Frame, CAPACITY>,
    tables: ArrayVec<Frame, CAPACITY>,
    /// Spaces to drop as a whole: the runs did not fit.
    whole: Option<Asid>,
}

impl<'a, M: Machine> Flush<'a, M> {
    /// An empty flush.
    #[inline]
    pub(crate) fn new(mm: &'a Mm<M>) -> Self {
        Self { mm, runs: ArrayVec::new(), frames: ArrayVec::new(), tables: ArrayVec::new(), whole: None }
    }

    /// Notes that the translation of `page` lost something.
    #[inline]
    pub(crate) fn note(&mut self, asid: Asid, page: Vpn) {
        if let Some(last) = self.runs.last_mut()
            && last.asid == asid
            && last.pages.end() == page
        {
            last.pages = VpnRange::new(last.pages.start(), last.pages.pages() + 1);
            return;
        }
        self.note_run(asid, VpnRange::new(page, 1));
    }

    fn note_run(&mut self, asid: Asid, pages: VpnRange) {
        if self.whole == Some(asid) {
            return;
        }
        if self.runs.try_push(Run { asid, pages }).is_err() {
            self.invalidate();
            self.runs.push(Run { asid, pages });
        }
    }

    /// Notes that every translation of a space goes, tables included.
    pub(crate) fn note_space(&mut self, asid: Asid) {
        self.whole = Some(asid);
    }

    /// Moves a reference to a folio in; it is given back after the flush.
    #[inline]
    pub(crate) fn own(&mut self, frame: Frame) {
        if self.frames.try_push(frame).is_err() {
            self.complete();
            self.frames.push(frame);
        }
    }

    /// Moves a detached table in; it is freed after the flush. Only together with [`Flush::note_space`].
    pub(crate) fn own_table(&mut self, table: Frame) {
        debug_assert!(self.whole.is_some(), "a leaf-only invalidation leaves the walk cache of a freed table");
        if self.tables.try_push(table).is_err() {
            self.complete_keeping_space();
            self.tables.push(table);
        }
    }

    /// Whether another frame fits without completing.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        !self.frames.is_full()
    }

    /// Removes the noted translations from every CPU, and waits until that is done.
    fn invalidate(&mut self) {
        let whole = self.whole.take();
        if self.runs.is_empty() && whole.is_none() {
            return;
        }
        let machine = self.mm.machine();
        machine.fence_tables();
        self.mm.stats().flushes.bump();
        self.mm.stats().invalidations.add(self.runs.len() as u64);
        for run in self.runs.drain(..) {
            machine.invalidate(run.asid, Scope::Pages(run.pages), Cached::Leaf(Level::LEAF), Reach::Broadcast);
        }
        if let Some(asid) = whole {
            machine.invalidate(asid, Scope::Space, Cached::Walk, Reach::Broadcast);
        }
        machine.fence_invalidations();
    }

    fn complete_keeping_space(&mut self) {
        let whole = self.whole;
        self.complete();
        self.whole = whole;
    }

    /// Completes the flush: invalidates, waits, and gives back what it owns. The flush is empty afterwards.
    pub(crate) fn complete(&mut self) {
        self.invalidate();
        if !self.frames.is_empty() {
            self.mm.release_folios(&self.frames);
            self.frames.clear();
        }
        for table in self.tables.drain(..) {
            self.mm.stats().tables_freed.bump();
            self.mm.frames().free(self.mm.machine().cpu(), table);
        }
    }
}

impl<M: Machine> Drop for Flush<'_, M> {
    #[inline]
    fn drop(&mut self) {
        self.complete();
    }
}
