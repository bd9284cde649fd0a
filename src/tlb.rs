//! The flush: it owns what was removed from the tables until no CPU can reach it any more.
//!
//! **Protocol.** Whoever removes an entry, or takes a right away from one, notes the page in a [`Flush`] and moves
//! what the entry held (a frame's reference, a detached table) into it, all under the leaf table's lock.
//! [`Flush::complete`], or dropping the flush, orders the table stores (DSB ISHST), invalidates every noted run on
//! every CPU, waits (DSB ISH), and only then gives the frames and tables back. So "freed before flushed" has no
//! spelling.
//!
//! A batch pays one pair of barriers, whatever its size. Adjacent pages become one run, and a run is one range
//! invalidation where the CPU has them.
//!
//! One entry that is replaced under a single hold of its table's lock needs no flush: [`invalidate_everywhere`] removes
//! the old translation, and whoever replaced it gives the old page's count back after that.
//!
//! Contents may be copied for write-out only after [`Flush::complete`]: until then some CPU may still write.

use arrayvec::ArrayVec;

use crate::addr::{Vpn, VpnRange};
use crate::frame::{Frame, Maps};
use crate::granule::Level;
use crate::machine::{Cached, Machine, Reach, Scope};
use crate::mm::Mm;
use crate::node::NodeId;

/// Folios, and tables, that one flush owns at most. Two barriers over 64 folios are below one instruction a page.
pub(crate) const CAPACITY: usize = 64;

/// Runs noted before they are invalidated. A batch has [`CAPACITY`] scattered pages at most.
const RUNS: usize = CAPACITY;

/// What suffices where no table was detached.
const LEAVES: Cached = Cached::Leaf(Level::LEAF);

struct Run {
    node: NodeId,
    pages: VpnRange,
    cached: Cached,
}

/// Removed translations, and what they kept alive.
#[must_use = "dropping a flush completes it"]
pub(crate) struct Flush<'a, M: Machine> {
    mm: &'a Mm<M>,
    runs: ArrayVec<Run, RUNS>,
    /// The counts of the entries that were taken out.
    folios: ArrayVec<Maps, CAPACITY>,
    tables: ArrayVec<Frame, CAPACITY>,
    /// A space of which no translation is left: what is noted of it needs nothing more.
    retired: Option<NodeId>,
}

impl<'a, M: Machine> Flush<'a, M> {
    /// An empty flush.
    #[inline]
    pub(crate) fn new(mm: &'a Mm<M>) -> Self {
        Self { mm, runs: ArrayVec::new(), folios: ArrayVec::new(), tables: ArrayVec::new(), retired: None }
    }

    /// Notes that the translations of `pages` lost something.
    #[inline]
    pub(crate) fn note(&mut self, node: NodeId, pages: VpnRange) {
        self.note_here(node, pages);
    }

    /// [`Flush::note`], for who notes page after page and has registers to spare.
    #[inline(always)]
    pub(crate) fn note_here(&mut self, node: NodeId, pages: VpnRange) {
        if let Some(last) = self.runs.last_mut()
            && last.node == node
            && last.pages.end() == pages.start()
            && last.cached == LEAVES
        {
            last.pages = VpnRange::new(last.pages.start(), last.pages.pages() + pages.pages());
            return;
        }
        self.note_run(Run { node, pages, cached: LEAVES });
    }

    /// Notes that a table which mapped `pages` was detached.
    pub(crate) fn note_table(&mut self, node: NodeId, pages: VpnRange) {
        self.note_run(Run { node, pages, cached: Cached::Walk });
    }

    fn note_run(&mut self, run: Run) {
        if self.retired == Some(run.node) {
            return;
        }
        if let Err(full) = self.runs.try_push(run) {
            self.invalidate();
            self.runs.push(full.element());
        }
    }

    /// Removes every translation of a space that no CPU has installed, tables' as well, and waits until that is done.
    /// As no walker can enter its tables again, what is taken out of them from now on needs no invalidation.
    pub(crate) fn retire(&mut self, node: NodeId) {
        let machine = self.mm.machine();
        machine.fence_tables();
        machine.invalidate(self.mm.asid(node), Scope::Space, Cached::Walk, Reach::Broadcast);
        machine.fence_invalidations();
        self.mm.stats().flushes.bump();
        self.retired = Some(node);
    }

    /// Moves a detached table in, noted by [`Flush::note_table`] or of a retired space; it is freed after the flush.
    pub(crate) fn own_table(&mut self, table: Frame) {
        if self.tables.try_push(table).is_err() {
            self.complete();
            self.tables.push(table);
        }
    }

    /// Removes the noted translations from every CPU, and waits until that is done. What the flush owns stays.
    pub(crate) fn invalidate(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let machine = self.mm.machine();
        machine.fence_tables();
        self.mm.stats().flushes.bump();
        self.mm.stats().invalidations.add(self.runs.len() as u64);
        let mut last = None;
        for run in self.runs.drain(..) {
            // Read after the fence: `node::asid` says why.
            let asid = match last {
                Some((node, asid)) if node == run.node => asid,
                _ => self.mm.asid(run.node),
            };
            last = Some((run.node, asid));
            machine.invalidate(asid, Scope::Pages(run.pages), run.cached, Reach::Broadcast);
        }
        machine.fence_invalidations();
    }

    /// Completes the flush: invalidates, waits, and gives back what it owns. The flush is empty afterwards.
    pub(crate) fn complete(&mut self) {
        self.invalidate();
        if !self.folios.is_empty() {
            self.mm.release_maps(&self.folios);
            self.folios.clear();
        }
        for table in self.tables.drain(..) {
            self.mm.stats().tables_freed.bump();
            self.mm.frames().free(self.mm.machine().cpu(), table);
        }
    }
}

/// Runs of pages on their way into a flush: neighbours are put together in registers, before they are noted. The flush
/// is this one's meanwhile, so that it cannot be completed, and give back what it owns, while a run is not in it yet.
pub(crate) struct Lost<'f, 'a, M: Machine> {
    flush: &'f mut Flush<'a, M>,
    node: NodeId,
    run: VpnRange,
}

impl<'f, 'a, M: Machine> Lost<'f, 'a, M> {
    /// Nothing of a space lost yet.
    #[inline]
    pub(crate) const fn new(node: NodeId, flush: &'f mut Flush<'a, M>) -> Self {
        Self { flush, node, run: VpnRange::new(Vpn::new(0), 0) }
    }

    /// The translations of `pages` lost something.
    #[inline]
    pub(crate) fn add(&mut self, pages: VpnRange) {
        if pages.start() == self.run.end() {
            self.run = VpnRange::new(self.run.start(), self.run.pages() + pages.pages());
        } else {
            self.note();
            self.run = pages;
        }
    }

    /// Moves the counts of `maps` entries of a folio into the flush, which were taken out; they are given back after it.
    #[inline]
    pub(crate) fn own(&mut self, folio: Frame, maps: u32) {
        if let Some(last) = self.flush.folios.last_mut()
            && last.folio == folio
        {
            last.maps += maps;
            return;
        }
        if self.flush.folios.is_full() {
            self.noted().complete();
        }
        self.flush.folios.push(Maps { folio, maps });
    }

    /// The flush, with all that was lost so far.
    #[inline]
    pub(crate) fn noted(&mut self) -> &mut Flush<'a, M> {
        self.note();
        self.flush
    }

    #[inline]
    fn note(&mut self) {
        if !self.run.is_empty() {
            self.flush.note(self.node, self.run);
            self.run = VpnRange::new(self.run.end(), 0);
        }
    }
}

impl<M: Machine> Drop for Lost<'_, '_, M> {
    #[inline]
    fn drop(&mut self) {
        self.note();
    }
}

/// Removes the calling CPU's translations of pages whose entries became more permissive: enough, as another CPU with
/// the old ones faults and does the same.
#[inline]
pub(crate) fn invalidate_here<M: Machine>(mm: &Mm<M>, node: NodeId, pages: VpnRange) {
    let machine = mm.machine();
    machine.fence_tables();
    machine.invalidate(mm.asid(node), Scope::Pages(pages), LEAVES, Reach::Local);
    machine.fence_invalidations();
}

/// Removes a page's translation from every CPU, and waits until that is done: for break-before-make of one entry, whose
/// page stays somebody's meanwhile.
#[inline]
pub(crate) fn invalidate_everywhere<M: Machine>(mm: &Mm<M>, node: NodeId, page: Vpn) {
    let machine = mm.machine();
    machine.fence_tables();
    mm.stats().flushes.bump();
    mm.stats().invalidations.bump();
    // Read after the fence: `node::asid` says why.
    machine.invalidate(mm.asid(node), Scope::Pages(VpnRange::new(page, 1)), LEAVES, Reach::Broadcast);
    machine.fence_invalidations();
}

impl<M: Machine> Drop for Flush<'_, M> {
    #[inline]
    fn drop(&mut self) {
        self.complete();
    }
}
