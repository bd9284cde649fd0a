//! The list of a space's regions: sorted, in frames, two levels.
//!
//! A root frame lists leaves in ascending order, each with its first page and its number of regions; a leaf frame holds
//! regions in ascending order. At 4 KiB that is 170 leaves of 128 regions. A look-up is two binary searches; a few
//! compares when it meets the region of the look-up before, or one next to it. Everything here happens under the
//! space's lock, which is what `&mut self` stands for.
//!
//! A full leaf splits where the new region goes if that is at one of its ends, else in its middle. Two neighbours that
//! both fit in half a leaf become one, so that a list which was long can be short again.
//!
//! **Prepare and commit.** [`Regions::reserve`] makes sure of two spare leaf frames, enough for all insertions of one
//! call: a cut at either end of its range, and a region in between. A third split would need a full leaf where the
//! range starts; but a cut there has split that leaf already, or has left its upper part where the call removes it.
//! After `reserve`, nothing here fails.

use core::cell::Cell;

use arrayvec::ArrayVec;

use super::records::Records;
use crate::addr::{Vpn, VpnRange};
use crate::frame::slab::Plain;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Protection;

/// A run of pages with one protection.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Region {
    /// The pages.
    pub(crate) pages: VpnRange,
    /// The lowest page that it may grow down to; its first page when it does not grow.
    pub(crate) floor: Vpn,
    /// What the program may do.
    pub(crate) protection: Protection,
}

impl Region {
    /// Whether a touch below it makes it larger.
    #[inline]
    pub(crate) fn grows(&self) -> bool {
        self.floor < self.pages.start()
    }

    /// What lies below `page`, and what does not. Both parts of a growing region go on growing: the lower one now, the
    /// upper one once the lower is gone.
    #[inline]
    fn cut(self, page: Vpn) -> (Self, Self) {
        let low = Self { pages: self.pages.intersection(VpnRange::between(Vpn::new(0), page)), ..self };
        if low.pages.is_empty() {
            return (low, self);
        }
        let floor = if self.grows() { self.floor } else { page };
        (low, Self { pages: VpnRange::between(page, self.pages.end()), floor, ..self })
    }
}

const NOTHING: Region =
    Region { pages: VpnRange::new(Vpn::new(0), 0), floor: Vpn::new(0), protection: Protection::empty() };

/// A leaf, as its root lists it.
#[derive(Copy, Clone)]
struct Leaf {
    first: Vpn,
    regions: Records<Region>,
    len: usize,
}

// SAFETY: plain numbers; zero is an empty region or leaf; nothing is owned.
unsafe impl Plain for Region {}
// SAFETY: as above.
unsafe impl Plain for Leaf {}

/// Spare leaf frames that one call may need.
const SPARES: usize = 2;

/// A space's regions.
pub(crate) struct Regions {
    root: Option<Records<Leaf>>,
    leaves: usize,
    spares: ArrayVec<Records<Region>, { SPARES + 1 }>,
    /// The region of the last look-up.
    last: Region,
    /// The place of the last look-up that went far: worth a try, whatever was inserted or removed since.
    near: Cell<Place>,
}

/// The place of a page: a leaf, and how many of its regions start at or below the page.
#[derive(Copy, Clone)]
struct Place {
    leaf: usize,
    within: usize,
}

impl Regions {
    pub(crate) const fn new() -> Self {
        Self {
            root: None,
            leaves: 0,
            spares: ArrayVec::new_const(),
            last: NOTHING,
            near: Cell::new(Place { leaf: 0, within: 0 }),
        }
    }

    /// The leaf with this index, which is below `leaves`.
    fn leaf<M: Machine>(&self, mm: &Mm<M>, index: usize) -> Option<Leaf> {
        if index < self.leaves { Some(self.root?.get(mm, index)) } else { None }
    }

    fn set_leaf<M: Machine>(&mut self, mm: &Mm<M>, index: usize, leaf: Leaf) {
        if let Some(root) = self.root {
            root.set(mm, index, leaf);
        }
    }

    /// Where `page` belongs: in the last leaf that starts at or below it, after the last region that does. `None` below
    /// all regions.
    #[inline]
    fn place<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> Option<Place> {
        let place = self.place_near(mm, page).or_else(|| self.place_afar(mm, page))?;
        self.near.set(place);
        Some(place)
    }

    /// [`Regions::place`], if it is that of the last look-up, or next to it.
    #[inline]
    fn place_near<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> Option<Place> {
        let Place { leaf, within } = self.near.get();
        let Leaf { regions, len, .. } = self.leaf(mm, leaf)?;
        let starts_by_then = |index: usize| index < len && regions.get(mm, index).pages.start() <= page;
        let within = match within.checked_sub(1) {
            Some(before) if starts_by_then(before) => within + usize::from(starts_by_then(within)),
            Some(before) if before > 0 && starts_by_then(before - 1) => before,
            _ => return None,
        };
        // Further on within the leaf, or in the next leaf?
        let is_last = if within < len {
            !starts_by_then(within)
        } else {
            self.leaf(mm, leaf + 1).is_none_or(|next| page < next.first)
        };
        is_last.then_some(Place { leaf, within })
    }

    #[inline(never)]
    fn place_afar<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> Option<Place> {
        let leaf = self.root?.partition(mm, self.leaves, |leaf| leaf.first <= page).checked_sub(1)?;
        let Leaf { regions, len, .. } = self.leaf(mm, leaf)?;
        Some(Place { leaf, within: regions.partition(mm, len, |region| region.pages.start() <= page) })
    }

    /// The region just before a place, in its leaf.
    fn below<M: Machine>(&self, mm: &Mm<M>, place: Place) -> Option<Region> {
        let Leaf { regions, .. } = self.leaf(mm, place.leaf)?;
        Some(regions.get(mm, place.within.checked_sub(1)?))
    }

    /// Whether the region of the last look-up holds `page`.
    #[inline]
    pub(crate) fn is_near(&self, page: Vpn) -> bool {
        self.last.pages.contains(page)
    }

    /// The region of the last look-up.
    #[inline]
    pub(crate) fn near(&self) -> &Region {
        &self.last
    }

    /// The region that holds `page`.
    #[inline]
    pub(crate) fn find<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        if !self.last.pages.contains(page) {
            self.last = self.search(mm, page)?;
        }
        Some(self.last)
    }

    #[cold]
    fn search<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        self.below(mm, self.place(mm, page)?).filter(|region| region.pages.contains(page))
    }

    /// The region that holds `page`, or the next one above.
    pub(crate) fn at_or_after<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        let place = self.place(mm, page).unwrap_or(Place { leaf: 0, within: 0 });
        if let Some(region) = self.below(mm, place).filter(|region| region.pages.contains(page)) {
            return Some(region);
        }
        let leaf = self.leaf(mm, place.leaf)?;
        if place.within < leaf.len {
            return Some(leaf.regions.get(mm, place.within));
        }
        Some(self.leaf(mm, place.leaf + 1)?.regions.get(mm, 0))
    }

    /// The last region that starts below `page`.
    pub(crate) fn before<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        self.below(mm, self.place(mm, Vpn::new(page.number().checked_sub(1)?))?)
    }

    /// Whether a region reaches over `page`, so that a cut there makes two of one.
    pub(crate) fn spans<M: Machine>(&self, mm: &Mm<M>, page: Vpn) -> bool {
        self.search(mm, page).is_some_and(|region| region.pages.start() < page)
    }

    /// Makes sure that one call's insertions will find room. `None` when there is no memory, or the list is full.
    #[inline]
    pub(crate) fn reserve<M: Machine>(&mut self, mm: &Mm<M>) -> Option<()> {
        if self.root.is_none() || self.spares.len() < SPARES {
            self.refill(mm)?;
        }
        if self.leaves + SPARES > Records::<Leaf>::capacity::<M>() { None } else { Some(()) }
    }

    #[cold]
    fn refill<M: Machine>(&mut self, mm: &Mm<M>) -> Option<()> {
        if self.root.is_none() {
            self.root = Some(Records::take(mm)?);
        }
        while self.spares.len() < SPARES {
            self.spares.push(Records::take(mm)?);
        }
        Some(())
    }

    /// Adds a region that meets no other. After [`Regions::reserve`].
    pub(crate) fn insert<M: Machine>(&mut self, mm: &Mm<M>, region: Region) {
        let place = self.place(mm, region.pages.start()).unwrap_or(Place { leaf: 0, within: 0 });
        self.insert_at(mm, place, [region]);
    }

    /// Adds neighbouring regions where the first of them belongs.
    fn insert_at<M: Machine, const N: usize>(&mut self, mm: &Mm<M>, place: Place, regions: [Region; N]) {
        self.last = NOTHING;
        let Some((place, leaf)) = self.room(mm, place, N) else { return debug_assert!(false, "no leaf was reserved") };
        leaf.regions.shift(mm, place.within, leaf.regions, place.within + N, leaf.len - place.within);
        for (index, region) in regions.into_iter().enumerate() {
            leaf.regions.set(mm, place.within + index, region);
        }
        let first = if place.within == 0 { regions[0].pages.start() } else { leaf.first };
        self.set_leaf(mm, place.leaf, Leaf { first, len: leaf.len + N, ..leaf });
        // The next call is mostly for what comes after.
        self.near.set(Place { within: place.within + N, ..place });
    }

    /// A place with room for `count` more regions, where they are to be inserted at `place`.
    #[inline]
    fn room<M: Machine>(&mut self, mm: &Mm<M>, place: Place, count: usize) -> Option<(Place, Leaf)> {
        match self.leaf(mm, place.leaf) {
            Some(leaf) if leaf.len + count <= Records::<Region>::capacity::<M>() => Some((place, leaf)),
            Some(leaf) => self.split(mm, place, leaf),
            None => Some((Place { leaf: 0, within: 0 }, self.add_leaf(mm, 0)?)),
        }
    }

    /// Makes two leaves of one. Returns where `place` is then.
    #[cold]
    fn split<M: Machine>(&mut self, mm: &Mm<M>, place: Place, leaf: Leaf) -> Option<(Place, Leaf)> {
        let ends = [0, leaf.len];
        let at = if ends.contains(&place.within) { place.within } else { leaf.len / 2 };
        let upper = self.add_leaf(mm, place.leaf + 1)?;
        leaf.regions.shift(mm, at, upper.regions, 0, leaf.len - at);
        let lower = Leaf { len: at, ..leaf };
        let first = if at < leaf.len { upper.regions.get(mm, 0).pages.start() } else { leaf.first };
        let upper = Leaf { first, len: leaf.len - at, ..upper };
        self.set_leaf(mm, place.leaf, lower);
        self.set_leaf(mm, place.leaf + 1, upper);
        if place.within > at || at == leaf.len {
            Some((Place { leaf: place.leaf + 1, within: place.within - at }, upper))
        } else {
            Some((place, lower))
        }
    }

    /// Enters an empty leaf in the root at `index`.
    fn add_leaf<M: Machine>(&mut self, mm: &Mm<M>, index: usize) -> Option<Leaf> {
        let root = self.root?;
        let leaf = Leaf { first: Vpn::new(0), regions: self.spares.pop()?, len: 0 };
        root.shift(mm, index, root, index + 1, self.leaves - index);
        root.set(mm, index, leaf);
        self.leaves += 1;
        Some(leaf)
    }

    /// Takes a leaf out of the root. Its frame becomes a spare one, or is given back.
    fn drop_leaf<M: Machine>(&mut self, mm: &Mm<M>, index: usize) {
        let (Some(root), Some(leaf)) = (self.root, self.leaf(mm, index)) else { return };
        root.shift(mm, index + 1, root, index, self.leaves - index - 1);
        self.leaves -= 1;
        if let Err(full) = self.spares.try_push(leaf.regions) {
            full.element().give(mm);
        }
    }

    /// Removes the region that starts at `start`.
    pub(crate) fn remove<M: Machine>(&mut self, mm: &Mm<M>, start: Vpn) {
        self.last = NOTHING;
        let Some(Place { leaf: index, within }) = self.place(mm, start) else { return };
        let Some(leaf) = self.leaf(mm, index) else { return };
        let Some(gone) = within.checked_sub(1) else { return };
        if leaf.regions.get(mm, gone).pages.start() != start {
            return;
        }
        if leaf.len == 1 {
            return self.drop_leaf(mm, index);
        }
        leaf.regions.shift(mm, within, leaf.regions, gone, leaf.len - within);
        let first = leaf.regions.get(mm, 0).pages.start();
        self.set_leaf(mm, index, Leaf { first, len: leaf.len - 1, ..leaf });
        self.merge(mm, index);
        if let Some(before) = index.checked_sub(1) {
            self.merge(mm, before);
        }
    }

    /// Makes one leaf of this and the next, if half a leaf holds both.
    fn merge<M: Machine>(&mut self, mm: &Mm<M>, index: usize) {
        let (Some(low), Some(high)) = (self.leaf(mm, index), self.leaf(mm, index + 1)) else { return };
        if low.len + high.len <= Records::<Region>::capacity::<M>() / 2 {
            high.regions.shift(mm, 0, low.regions, low.len, high.len);
            self.set_leaf(mm, index, Leaf { len: low.len + high.len, ..low });
            self.drop_leaf(mm, index + 1);
        }
    }

    /// The part of `range` up to its first page that no region holds.
    #[inline]
    pub(crate) fn covered<M: Machine>(&self, mm: &Mm<M>, range: VpnRange) -> VpnRange {
        let mut end = range.start();
        while end < range.end()
            && let Some(region) = self.place(mm, end).and_then(|place| self.below(mm, place))
            && region.pages.contains(end)
        {
            end = region.pages.end();
        }
        range.intersection(VpnRange::between(range.start(), end))
    }

    /// Gives the part of `range` that lies in the region of its first page the protection that `change` makes of the
    /// region's own. Returns that region as it was. After [`Regions::reserve`].
    #[inline]
    pub(crate) fn protect<M: Machine>(
        &mut self,
        mm: &Mm<M>,
        range: VpnRange,
        change: impl FnOnce(Protection) -> Protection,
    ) -> Option<Region> {
        let place = self.place(mm, range.start())?;
        let (leaf, region) = (self.leaf(mm, place.leaf)?, self.below(mm, place)?);
        if !region.pages.contains(range.start()) {
            return None;
        }
        let protection = change(region.protection);
        if protection != region.protection {
            self.last = NOTHING;
            let (low, rest) = region.cut(range.start());
            let (part, high) = rest.cut(range.end());
            let part = Region { protection, ..part };
            leaf.regions.set(mm, place.within - 1, if low.pages.is_empty() { part } else { low });
            match (low.pages.is_empty(), high.pages.is_empty()) {
                (false, false) => self.insert_at(mm, place, [part, high]),
                (false, true) => self.insert_at(mm, place, [part]),
                (true, false) => self.insert_at(mm, place, [high]),
                (true, true) => {}
            }
        }
        Some(region)
    }

    /// Changes the region that starts at `start`; its first page may change only while it stays in place among the
    /// others.
    pub(crate) fn change<M: Machine>(&mut self, mm: &Mm<M>, start: Vpn, change: impl FnOnce(&mut Region)) {
        self.last = NOTHING;
        let Some(Place { leaf: index, within }) = self.place(mm, start) else { return };
        let (Some(leaf), Some(at)) = (self.leaf(mm, index), within.checked_sub(1)) else { return };
        let mut region = leaf.regions.get(mm, at);
        if region.pages.start() == start {
            change(&mut region);
            leaf.regions.set(mm, at, region);
            let first = leaf.regions.get(mm, 0).pages.start();
            self.set_leaf(mm, index, Leaf { first, ..leaf });
        }
    }

    /// Cuts the region that spans `page`, if one does, so that one starts there. After [`Regions::reserve`].
    pub(crate) fn cut<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) {
        let Some(place) = self.place(mm, page) else { return };
        let (Some(leaf), Some(region)) = (self.leaf(mm, place.leaf), self.below(mm, place)) else { return };
        if region.pages.start() == page || !region.pages.contains(page) {
            return;
        }
        let (low, high) = region.cut(page);
        leaf.regions.set(mm, place.within - 1, low);
        self.insert_at(mm, place, [high]);
    }

    /// The place of the region after the one at `place`.
    #[inline]
    fn after<M: Machine>(&self, mm: &Mm<M>, place: Place) -> Option<Place> {
        let next = Place { within: place.within + 1, ..place };
        if place.within < self.leaf(mm, place.leaf)?.len {
            return Some(next);
        }
        Some(Place { leaf: place.leaf + 1, within: 1 }).filter(|next| next.leaf < self.leaves)
    }

    /// Joins neighbours that differ in nothing, from the one before `range` to the one after. Returns the region that
    /// holds the first page of `range` then.
    pub(crate) fn join<M: Machine>(&mut self, mm: &Mm<M>, range: VpnRange) -> Option<Region> {
        let before = range.start().number().checked_sub(1).and_then(|page| self.place(mm, Vpn::new(page)));
        let mut place = before.or_else(|| self.place(mm, range.start()))?;
        let mut low = self.below(mm, place)?;
        let mut first = None;
        while low.pages.start() < range.end() {
            if low.pages.contains(range.start()) {
                first = Some(low);
            }
            let Some(next) = self.after(mm, place) else { break };
            let Some(high) = self.below(mm, next) else { break };
            let same = high.protection == low.protection && !low.grows() && !high.grows();
            if same && high.pages.start() == low.pages.end() {
                self.remove(mm, high.pages.start());
                let pages = VpnRange::between(low.pages.start(), high.pages.end());
                self.change(mm, low.pages.start(), |region| region.pages = pages);
                low.pages = pages;
                place = self.place(mm, pages.start())?;
            } else {
                (low, place) = (high, next);
            }
        }
        // The next call is mostly for what comes after.
        self.near.set(place);
        first
    }

    /// The same regions, in frames of their own. `None` without memory; nothing is kept then.
    pub(crate) fn duplicate<M: Machine>(&self, mm: &Mm<M>) -> Option<Self> {
        let mut other = Self::new();
        let done = self.duplicate_into(mm, &mut other);
        if done.is_none() {
            other.free(mm);
        }
        done.map(|()| other)
    }

    fn duplicate_into<M: Machine>(&self, mm: &Mm<M>, other: &mut Self) -> Option<()> {
        let Some(root) = self.root else { return Some(()) };
        let copy = Records::take(mm)?;
        other.root = Some(copy);
        for index in 0..self.leaves {
            let Leaf { first, regions, len } = root.get(mm, index);
            let into = Records::take(mm)?;
            regions.shift(mm, 0, into, 0, len);
            copy.set(mm, index, Leaf { first, regions: into, len });
            other.leaves += 1;
        }
        Some(())
    }

    /// Takes the lock off every region.
    pub(crate) fn unlock<M: Machine>(&mut self, mm: &Mm<M>) {
        let mut page = Vpn::new(0);
        while let Some(region) = self.at_or_after(mm, page) {
            if region.protection.contains(Protection::LOCKED) {
                self.change(mm, region.pages.start(), |region| region.protection -= Protection::LOCKED);
            }
            page = region.pages.end();
        }
    }

    /// Gives back the list's own frames; the list is empty afterwards.
    pub(crate) fn free<M: Machine>(&mut self, mm: &Mm<M>) {
        while self.leaves > 0 {
            self.drop_leaf(mm, self.leaves - 1);
        }
        for spare in self.spares.drain(..) {
            spare.give(mm);
        }
        if let Some(root) = self.root.take() {
            root.give(mm);
        }
        *self = Self::new();
    }
}
