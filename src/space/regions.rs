//! The list of a space's regions: sorted, in frames, two levels.
//!
//! A root frame lists leaves in ascending order, each with its first page and its number of regions; a leaf frame
//! holds regions in ascending order. At 4 KiB that is 170 leaves of 128 regions: a look-up is two binary searches, or
//! two compares when it meets the region of the look-up before. Everything here happens under the space's lock.
//!
//! **Prepare and commit.** [`Regions::reserve`] makes sure of two spare leaf frames, enough for the two insertions that
//! one call can need (a cut at either end of its range); after it, nothing here fails.

use arrayvec::ArrayVec;

use crate::addr::{Pfn, PfnRange, Vpn, VpnRange};
use crate::frame::Kind;
use crate::frame::slab::Plain;
use crate::machine::{Machine, Tags, Window};
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
}

const NOTHING: Region =
    Region { pages: VpnRange::new(Vpn::new(0), 0), floor: Vpn::new(0), protection: Protection::empty() };

/// A leaf, as its root lists it.
#[derive(Copy, Clone)]
struct Leaf {
    first: Vpn,
    frame: Pfn,
    len: usize,
}

// SAFETY: plain numbers; zero is an empty region or leaf; nothing is owned; both are reached under the space's lock.
unsafe impl Plain for Region {}
// SAFETY: as above.
unsafe impl Plain for Leaf {}

/// Spare leaf frames that one call may need.
const SPARES: usize = 2;

/// A space's regions.
pub(crate) struct Regions {
    root: Option<Pfn>,
    leaves: usize,
    spares: ArrayVec<Pfn, { SPARES + 1 }>,
    /// The region of the last look-up.
    last: Region,
}

/// All records of type `T` in a frame of the list.
///
/// # Safety
/// The frame belongs to a list whose space lock the caller holds, and holds `T`s.
#[inline]
unsafe fn records_mut<'a, T: Plain>(window: Window<'a>) -> &'a mut [T] {
    // SAFETY: the frame was zeroed when it joined the list, the window spans it, and the lock makes this the only
    // reference.
    unsafe { core::slice::from_raw_parts_mut(window.first().cast().as_ptr(), window.bytes() / size_of::<T>()) }
}

impl Regions {
    pub(crate) const fn new() -> Self {
        Self { root: None, leaves: 0, spares: ArrayVec::new_const(), last: NOTHING }
    }

    fn root<'a, M: Machine>(&mut self, mm: &'a Mm<M>) -> &'a mut [Leaf] {
        match self.root {
            // SAFETY: `&mut self` is the space's lock; the root frame holds leaves.
            Some(root) => unsafe { records_mut(mm.machine().window(root)) },
            None => &mut [],
        }
    }

    fn regions_of<'a, M: Machine>(&mut self, mm: &'a Mm<M>, leaf: Leaf) -> &'a mut [Region] {
        // SAFETY: as above; a leaf's frame holds regions.
        unsafe { records_mut(mm.machine().window(leaf.frame)) }
    }

    /// The place of `page`: the last leaf that starts at or below it, and within it the number of regions that do.
    fn place<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) -> Option<(usize, usize)> {
        let leaves = self.leaves;
        let root = self.root(mm);
        let leaf = root[..leaves].partition_point(|leaf| leaf.first <= page).checked_sub(1)?;
        let entry = root[leaf];
        let within = self.regions_of(mm, entry)[..entry.len].partition_point(|region| region.pages.start() <= page);
        Some((leaf, within))
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
    fn search<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        let (leaf, within) = self.place(mm, page)?;
        let entry = self.root(mm)[leaf];
        self.regions_of(mm, entry)[..within].last().copied().filter(|region| region.pages.contains(page))
    }

    /// The region that holds `page`, or the next one above.
    pub(crate) fn at_or_after<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        let (leaf, within) = self.place(mm, page).unwrap_or((0, 0));
        for index in leaf..self.leaves {
            let entry = self.root(mm)[index];
            let regions = &self.regions_of(mm, entry)[..entry.len];
            let from = if index == leaf { within.saturating_sub(1) } else { 0 };
            if let Some(region) = regions[from..].iter().find(|region| region.pages.end() > page) {
                return Some(*region);
            }
        }
        None
    }

    /// The last region that starts below `page`.
    pub(crate) fn before<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) -> Option<Region> {
        let below = Vpn::new(page.number().checked_sub(1)?);
        let (leaf, within) = self.place(mm, below)?;
        let entry = self.root(mm)[leaf];
        self.regions_of(mm, entry)[..within].last().copied()
    }

    /// Makes sure that one call's insertions will find room. `None` when there is no memory, or the list is full.
    pub(crate) fn reserve<M: Machine>(&mut self, mm: &Mm<M>) -> Option<()> {
        let frame = || {
            let frame = mm.take_frame(Kind::Records)?;
            mm.machine().zero(PfnRange::new(frame.pfn(), 1), Tags::Ignore);
            let pfn = frame.pfn();
            frame.publish();
            Some(pfn)
        };
        if self.root.is_none() {
            self.root = Some(frame()?);
        }
        while self.spares.len() < SPARES {
            self.spares.push(frame()?);
        }
        if self.leaves + SPARES > self.root(mm).len() { None } else { Some(()) }
    }

    /// Adds a region that meets no other. After [`Regions::reserve`].
    pub(crate) fn insert<M: Machine>(&mut self, mm: &Mm<M>, region: Region) {
        self.last = NOTHING;
        if self.leaves == 0 {
            let Some(frame) = self.spares.pop() else { return debug_assert!(false, "no leaf was reserved") };
            self.root(mm)[0] = Leaf { first: region.pages.start(), frame, len: 0 };
            self.leaves = 1;
        }
        let (mut leaf, mut within) = self.place(mm, region.pages.start()).unwrap_or((0, 0));
        let entry = self.root(mm)[leaf];
        if entry.len == self.regions_of(mm, entry).len() {
            self.split_leaf(mm, leaf);
            (leaf, within) = self.place(mm, region.pages.start()).unwrap_or((0, 0));
        }
        let entry = self.root(mm)[leaf];
        let regions = self.regions_of(mm, entry);
        regions.copy_within(within..entry.len, within + 1);
        regions[within] = region;
        let first = regions[0].pages.start();
        self.root(mm)[leaf] = Leaf { first, len: entry.len + 1, ..entry };
    }

    /// Moves the upper half of a full leaf to a spare one.
    fn split_leaf<M: Machine>(&mut self, mm: &Mm<M>, leaf: usize) {
        let Some(frame) = self.spares.pop() else { return debug_assert!(false, "no leaf was reserved") };
        let lower = self.root(mm)[leaf];
        let half = lower.len / 2;
        let moved = lower.len - half;
        let mut upper = Leaf { first: lower.first, frame, len: moved };
        let from = self.regions_of(mm, lower);
        // Two different frames: the slices do not overlap.
        self.regions_of(mm, upper)[..moved].copy_from_slice(&from[half..lower.len]);
        upper.first = from[half].pages.start();
        let leaves = self.leaves;
        let root = self.root(mm);
        root.copy_within(leaf + 1..leaves, leaf + 2);
        root[leaf].len = half;
        root[leaf + 1] = upper;
        self.leaves += 1;
    }

    /// Removes the region that starts at `start`.
    pub(crate) fn remove<M: Machine>(&mut self, mm: &Mm<M>, start: Vpn) {
        self.last = NOTHING;
        let Some((leaf, within)) = self.place(mm, start) else { return };
        let entry = self.root(mm)[leaf];
        let regions = self.regions_of(mm, entry);
        let Some(index) = within.checked_sub(1).filter(|&index| regions[index].pages.start() == start) else { return };
        regions.copy_within(index + 1..entry.len, index);
        let first = regions[0].pages.start();
        if entry.len > 1 {
            self.root(mm)[leaf] = Leaf { first, len: entry.len - 1, ..entry };
            return;
        }
        let leaves = self.leaves;
        self.root(mm).copy_within(leaf + 1..leaves, leaf);
        self.leaves -= 1;
        if self.spares.try_push(entry.frame).is_err() {
            free_frame(mm, entry.frame);
        }
    }

    /// Changes the region that starts at `start`; its first page may change only while it stays in place among the
    /// others.
    pub(crate) fn change<M: Machine>(&mut self, mm: &Mm<M>, start: Vpn, change: impl FnOnce(&mut Region)) {
        self.last = NOTHING;
        let Some((leaf, within)) = self.place(mm, start) else { return };
        let entry = self.root(mm)[leaf];
        let regions = self.regions_of(mm, entry);
        if let Some(region) = regions[..within].last_mut().filter(|region| region.pages.start() == start) {
            change(region);
        }
        let first = regions[0].pages.start();
        self.root(mm)[leaf].first = first;
    }

    /// Cuts the region that spans `page`, if one does, so that one starts there. After [`Regions::reserve`].
    pub(crate) fn cut<M: Machine>(&mut self, mm: &Mm<M>, page: Vpn) {
        let Some(region) = self.search(mm, page).filter(|region| region.pages.start() < page) else { return };
        self.change(mm, region.pages.start(), |low| low.pages = VpnRange::between(region.pages.start(), page));
        // Both parts of a growing region go on growing: the lower one now, the upper one once the lower is gone.
        let floor = if region.grows() { region.floor } else { page };
        self.insert(mm, Region { pages: VpnRange::between(page, region.pages.end()), floor, ..region });
    }

    /// Joins neighbours that differ in nothing, from the one before `range` to the one after.
    pub(crate) fn join<M: Machine>(&mut self, mm: &Mm<M>, range: VpnRange) {
        let Some(mut low) = self.before(mm, range.start()).or_else(|| self.at_or_after(mm, range.start())) else {
            return;
        };
        while low.pages.start() < range.end() {
            let Some(high) = self.at_or_after(mm, low.pages.end()) else { return };
            if high.pages.start() == low.pages.end()
                && high.protection == low.protection
                && !low.grows()
                && !high.grows()
            {
                self.remove(mm, high.pages.start());
                let pages = VpnRange::between(low.pages.start(), high.pages.end());
                self.change(mm, low.pages.start(), |region| region.pages = pages);
                low.pages = pages;
            } else {
                low = high;
            }
        }
    }

    /// Gives back the list's own frames; the list is empty afterwards.
    pub(crate) fn free<M: Machine>(&mut self, mm: &Mm<M>) {
        for index in 0..self.leaves {
            let frame = self.root(mm)[index].frame;
            free_frame(mm, frame);
        }
        for frame in self.spares.drain(..) {
            free_frame(mm, frame);
        }
        if let Some(root) = self.root.take() {
            free_frame(mm, root);
        }
        *self = Self::new();
    }
}

fn free_frame<M: Machine>(mm: &Mm<M>, frame: Pfn) {
    if let Some(frame) = mm.frames().frame(frame) {
        mm.frames().free(mm.machine().cpu(), frame);
    }
}
