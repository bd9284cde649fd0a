//! Contiguous groups: where operations on runs meet them.
//!
//! A group is [`Granule::GROUP_PAGES`] neighbouring entries with the contiguous bit, which a CPU may cache as one
//! translation, read from any one of them (Arm ARM, D8.7.1). **The group law:** while the table's lock is held, an
//! operation on a whole group may leave its entries differing in AP\[2\], DBM, AF, UXN or the software's bits, and the
//! walker may use any of them; when the lock is free they are equal but for AF and dirty. A change of address or of the
//! contiguous bit, and a change of part of a group, goes through break-before-make.
//!
//! Hence an operation that loops over entries must not begin or end inside a group. It asks [`Cursor::fit`] for its
//! run, and says what is to happen to a group that the run covers in part ([`Edge`]); only such a [`Fitted`] run can be
//! looped over. A mapped folio's run is one as it is ([`Cursor::whole`]). A run has two ends, so two groups at most are
//! looked at, and whole groups cost nothing.
//!
//! A group lies within one folio and one region, whose frames and tags and exclusivity it shares. Where the hardware
//! does not manage AF and dirty, all operations treat a group's entries alike, so that these are equal as well.

use super::Cursor;
use crate::addr::{Vpn, VpnRange};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::node::NodeId;
use crate::pte::{Decoded, Leaf};
use crate::tlb::Flush;

/// What an operation does with a group that its run covers in part.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Edge {
    /// The group is broken up: its pages are to differ from now on.
    Unfold,
    /// The run grows by the rest of the group: what the operation does is right for all of its pages.
    Widen,
}

/// A run of one table's pages that neither begins nor ends inside a group. Valid while the cursor that made it lives.
#[derive(Copy, Clone)]
pub(crate) struct Fitted(VpnRange);

impl Fitted {
    /// One page that is in no group, or the group that starts there, of so many pages.
    #[inline]
    pub(super) fn alike(first: Vpn, pages: u64) -> Self {
        Self(VpnRange::new(first, pages))
    }

    /// The pages.
    #[inline]
    pub(crate) fn pages(self) -> VpnRange {
        self.0
    }
}

/// The pages that a group with `page` in it would have.
#[inline]
pub(super) fn group_of<G: Granule>(page: Vpn) -> VpnRange {
    VpnRange::new(Vpn::new(page.number() & !(G::GROUP_PAGES as u64 - 1)), G::GROUP_PAGES as u64)
}

/// The groups that lie in `run`.
#[inline]
pub(crate) fn within<G: Granule>(run: VpnRange) -> VpnRange {
    let mask = G::GROUP_PAGES as u64 - 1;
    let (start, end) = ((run.start().number() + mask) & !mask, run.end().number() & !mask);
    VpnRange::new(Vpn::new(start), end.saturating_sub(start))
}

/// The groups that have pages of `run`.
#[inline]
pub(crate) fn around<G: Granule>(run: VpnRange) -> VpnRange {
    let mask = G::GROUP_PAGES as u64 - 1;
    let (start, end) = (run.start().number() & !mask, (run.end().number() + mask) & !mask);
    VpnRange::between(Vpn::new(start), Vpn::new(end))
}

/// The part of `run` that consists of whole groups, if its pages, as `leaf` maps them, can be groups.
#[inline]
pub(super) fn foldable<G: Granule>(run: VpnRange, leaf: Leaf) -> VpnRange {
    let congruent = (run.start().number() ^ leaf.pfn::<G>().number()) & (G::GROUP_PAGES as u64 - 1) == 0;
    if congruent { within::<G>(run) } else { VpnRange::new(run.end(), 0) }
}

impl<M: Machine> Cursor<'_, M> {
    /// The smallest run with `run` in it, or `run` itself with the groups at its ends broken up: as `edge` says. Lies
    /// in this table, as `run` does.
    #[inline]
    pub(crate) fn fit(&mut self, run: VpnRange, edge: Edge, node: NodeId, flush: &mut Flush<'_, M>) -> Fitted {
        let (mut start, mut end) = (run.start(), run.end());
        if let Some(group) = self.group_across(start) {
            match edge {
                Edge::Unfold => self.unfold(group, node, flush),
                Edge::Widen => start = group.start(),
            }
        }
        if let Some(group) = self.group_across(end) {
            match edge {
                Edge::Unfold => self.unfold(group, node, flush),
                Edge::Widen => end = group.end(),
            }
        }
        if edge == Edge::Unfold && self.holds_swapped() {
            self.see_groups_at_ends(run);
        }
        Fitted(VpnRange::between(start, end))
    }

    /// Reads the entries of the groups that `run` covers in part. Reclaim may have taken a group out whose flush is
    /// still to come: until a walker sees *every* entry of it gone, it may read the translation of all of its pages
    /// from one that is not in the run. What this CPU has seen gone, its next fence makes so for every walker.
    #[inline(never)]
    fn see_groups_at_ends(&self, run: VpnRange) {
        for page in [run.start(), run.end()] {
            let group = group_of::<M::Granule>(page);
            if group.start() != page {
                (0..group.pages()).for_each(|page| _ = self.read(group.start().offset(page)));
            }
        }
    }

    /// The pages of a folio, all of which are mapped: as a group lies in one folio, none goes beyond.
    #[inline]
    pub(crate) fn whole(&self, folio: VpnRange) -> Fitted {
        debug_assert!(self.group_across(folio.start()).is_none() && self.group_across(folio.end()).is_none());
        Fitted(folio)
    }

    /// The run that widening makes of one page: its group, if it is in one.
    #[inline]
    pub(crate) fn widen(&self, page: Vpn) -> Fitted {
        match self.read(page) {
            Decoded::Leaf(leaf) if leaf.is_contiguous() => Fitted(group_of::<M::Granule>(page)),
            _ => Fitted(VpnRange::new(page, 1)),
        }
    }

    /// The group that has pages on both sides of the start of `page`.
    #[inline]
    fn group_across(&self, page: Vpn) -> Option<VpnRange> {
        let group = group_of::<M::Granule>(page);
        if group.start() == page {
            return None;
        }
        match self.read(page) {
            Decoded::Leaf(leaf) if leaf.is_contiguous() => Some(group),
            _ => None,
        }
    }

    /// Breaks a group up. Its entries stay live, and each has the history of all: the hardware notes a use of one page
    /// in any one entry of the group.
    fn unfold(&mut self, group: VpnRange, node: NodeId, flush: &mut Flush<'_, M>) {
        self.remake(group, node, flush, Leaf::without_contiguous);
        self.mm.stats().unfolds.bump();
    }

    /// Breaks every group of a run up, whose ends lie in none.
    pub(crate) fn unfold_all(&mut self, run: VpnRange, node: NodeId, flush: &mut Flush<'_, M>) {
        let pages = M::Granule::GROUP_PAGES as u64;
        let mut group = group_of::<M::Granule>(run.start());
        while group.start() < run.end() {
            // A group is whole, so that its first entry tells of all.
            if matches!(self.read(group.start()), Decoded::Leaf(leaf) if leaf.is_contiguous()) {
                self.unfold(group, node, flush);
            }
            group = VpnRange::new(group.end(), pages);
        }
    }

    /// Folds each group of a run of whole groups that is uniform, of one folio, and not folded: one that was broken up
    /// heals when its pages become equal. The run lies in one region.
    pub(crate) fn refold(&mut self, run: VpnRange, node: NodeId, flush: &mut Flush<'_, M>) {
        let pages = M::Granule::GROUP_PAGES as u64;
        debug_assert_eq!(within::<M::Granule>(run), run);
        let mut group = VpnRange::new(run.start(), pages);
        while group.start() < run.end() {
            if self.is_uniform(group) {
                self.remake(group, node, flush, Leaf::with_contiguous);
                self.mm.stats().refolds.bump();
            }
            group = VpnRange::new(group.end(), pages);
        }
    }

    /// Whether single entries map all of `group`, alike, with the frames of one folio.
    #[inline]
    fn is_uniform(&self, group: VpnRange) -> bool {
        let Decoded::Leaf(first) = self.read(group.start()) else { return false };
        let frames = self.mm.frames();
        let pfn = first.pfn::<M::Granule>();
        let one_folio = |frame| frames.record(frame).order() >= M::Granule::GROUP_ORDER;
        if first.is_contiguous() || pfn.number() & (group.pages() - 1) != 0 || !frames.frame(pfn).is_some_and(one_folio)
        {
            return false;
        }
        (1..group.pages()).all(|page| {
            let expected = first.nth::<M::Granule>(page).without_history();
            matches!(self.read(group.start().offset(page)), Decoded::Leaf(leaf) if leaf.without_history() == expected)
        })
    }

    /// Break-before-make of the live, equal entries of one group: they come back with what `change` makes of them and
    /// with the history of all. The hole exists under the table's lock alone.
    fn remake(&mut self, group: VpnRange, node: NodeId, flush: &mut Flush<'_, M>, change: impl FnOnce(Leaf) -> Leaf) {
        let at = self.table.entry(group.start());
        let old = self.exchange_group(at, |_| 0);
        flush.note(node, group);
        flush.invalidate();
        let first = change(old);
        for page in 0..M::Granule::GROUP_PAGES {
            self.mm.machine().store_entry(at.offset(page), first.nth::<M::Granule>(page as u64).raw());
        }
    }
}
