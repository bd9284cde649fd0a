//! Address spaces: regions, faults, and the calls that change them.
//!
//! **Protocol.** A [`Space`] has one sleeping lock around its list of regions. Faults and calls hold it from
//! start to end, so that between them a region and the entries under it agree; it is never taken by reclaim, which
//! meets the space only in its tables, under the family lock and the leaf table's lock. So a fault may reclaim, and
//! sleep for a device, with its space locked.
//!
//! Each call has two halves. *Prepare* finds everything that can fail: arguments, regions, frames, tables, room in the
//! region list. *Commit* changes regions first, then entries, and cannot fail.
//!
//! A region says what is allowed; an entry says what is there. A right that a region has and an entry lacks is added
//! at the next fault; a right that a region lost is taken from the entries before the call returns, on every CPU.
//!
//! **Ending.** [`Space::destroy`] marks the node dead under the family lock, so that reclaim stays out, takes every
//! entry away, then the tables, behind one invalidation of the whole ASID.

mod cap;
mod collapse;
mod copy;
mod dump;
mod explain;
mod fault;
mod first_touch;
mod fork;
mod map;
mod pin;
mod populate;
mod protect;
mod read_ahead;
mod records;
mod regions;
mod residency;
mod swap_in;
mod swap_off;
mod unmap;
mod will_need;

pub use cap::MemoryCap;
pub use collapse::Search;
pub use dump::Dump;
pub use explain::Explanation;
pub use fault::{Access, Fault, FaultError};
pub use map::{Growth, MapError, MapRequest, Placement};
pub use pin::{Pin, PinError};
pub use populate::{Touch, Unready};
pub use protect::Folios;
pub use residency::{Residency, Size};

pub use crate::pte::Protection;
pub(crate) use cap::Cap;
pub(crate) use pin::is_pinned;
pub(crate) use unmap::{Unused, give_up};

use core::convert::Infallible;
use core::fmt;
use core::marker::PhantomData;
use core::ops::ControlFlow;

use crate::addr::{Pfn, VirtAddr, Vpn, VpnRange};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::NodeId;
use crate::sync::{Sleep, SleepGuard};
use crate::table::{self, Hole, LeafTable};
use crate::tlb::Flush;
use read_ahead::Streams;
use regions::Region;
pub(crate) use regions::Regions;

/// Why a space could not be made.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SpaceError {
    /// No memory for its root table or its node.
    NoMemory,
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no memory for a new address space",
        })
    }
}

/// What the space's lock guards, beside the tables.
struct Guarded {
    regions: Regions,
    /// The leaf table of the last fault: the next fault is mostly near. Forgotten when tables are taken away. None in a
    /// space with a cap.
    near: Option<LeafTable>,
    streams: Streams,
    cap: Option<Cap>,
}

/// The part of a range that lies in one region.
pub(crate) struct Part<'a> {
    pub(crate) pages: VpnRange,
    region: Region,
    streams: &'a Streams,
    /// Whether the space has a cap.
    is_capped: bool,
}

impl Part<'_> {
    /// Whether the program asked for it to stay in memory.
    pub(crate) fn is_locked(&self) -> bool {
        self.region.protection.contains(Protection::LOCKED)
    }
}

/// One address space. Ends by [`Space::destroy`]; one that is merely dropped keeps its memory.
pub struct Space<M: Machine> {
    node: NodeId,
    root: Pfn,
    guarded: Sleep<Guarded>,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> Space<M> {
    /// An empty space.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing is kept then.
    pub fn new(mm: &Mm<M>) -> Result<Self, SpaceError> {
        Self::below(mm, None)
    }

    /// An empty space, at the top of a fork tree or as a child of `parent`, whose space's lock the caller holds.
    fn below(mm: &Mm<M>, parent: Option<NodeId>) -> Result<Self, SpaceError> {
        let root = table::zeroed(mm).ok_or(SpaceError::NoMemory)?;
        let node = mm.take_node().ok_or(SpaceError::NoMemory)?;
        mm.frames().record(root.frame()).count.begin(0);
        let pfn = root.pfn();
        root.publish();
        mm.machine().fence_contents();
        mm.plant(node, parent, pfn);
        Ok(Self {
            node,
            root: pfn,
            guarded: Sleep::new(Guarded { regions: Regions::new(), near: None, streams: Streams::new(), cap: None }),
            machine: PhantomData,
        })
    }

    /// Makes this the space of the calling CPU.
    pub fn activate(&self, mm: &Mm<M>) {
        mm.activate(self.node, self.root);
    }

    /// Ends the space: gives back every frame, slot, tag room and table. The calling CPU, if it ran the space, is
    /// left with none.
    ///
    /// # Errors
    /// The space, as it was, when another CPU runs it: that one must [`Mm::deactivate`] it, or activate another, first.
    #[expect(clippy::result_large_err, reason = "the space itself is the error: it goes back to its owner")]
    pub fn destroy(mut self, mm: &Mm<M>) -> Result<(), Self> {
        let here = mm.machine().cpu();
        if mm.running(self.node).any(|cpu| cpu != here) {
            return Err(self);
        }
        if mm.running(self.node).any(|cpu| cpu == here) {
            mm.deactivate();
        }
        mm.kill(self.node);
        let mut flush = Flush::new(mm);
        flush.retire(self.node);
        self.unmap_pages(mm, self.pages(mm), &mut flush);
        let hole = Hole { pages: self.pages(mm), new: self.pages(mm) };
        table::prune(mm, self.root, hole, &mut |table, _| flush.own_table(table));
        if let Some(root) = mm.frames().frame(self.root) {
            flush.own_table(root);
        }
        flush.complete();
        self.guarded.get_mut().regions.free(mm);
        mm.bury(self.node);
        Ok(())
    }

    /// Its node.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// The frame of its root table.
    pub(crate) fn root(&self) -> Pfn {
        self.root
    }

    /// Every page that a program could map.
    fn pages(&self, mm: &Mm<M>) -> VpnRange {
        VpnRange::new(Vpn::new(0), 1 << (mm.machine().va_bits() - M::Granule::SHIFT))
    }

    #[inline]
    fn lock<'a>(&'a self, mm: &'a Mm<M>) -> SleepGuard<'a, Guarded, M> {
        self.guarded.lock(mm.machine())
    }

    /// Calls `visit` for each existing leaf table and the part of `range` in it. Under the space's lock.
    pub(crate) fn for_each_leaf_table(&self, mm: &Mm<M>, range: VpnRange, mut visit: impl FnMut(LeafTable, VpnRange)) {
        let done: Result<(), Infallible> = table::for_each_leaf_table(mm.machine(), self.root, range, |table, part| {
            visit(table, part);
            Ok(())
        });
        let Ok(()) = done;
    }

    /// The same until `visit` breaks off.
    pub(crate) fn try_each_leaf_table(
        &self,
        mm: &Mm<M>,
        range: VpnRange,
        mut visit: impl FnMut(LeafTable, VpnRange) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let all = table::for_each_leaf_table(mm.machine(), self.root, range, |table, part| match visit(table, part) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(()),
        });
        if all.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Calls `visit` with the mapped parts of a program's range, under the space's lock, until it refuses one.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfRange`], what `visit` says; [`MapError::NotMapped`] when a part has
    /// no region, after the others were visited.
    pub(crate) fn for_each_region(
        &self,
        mm: &Mm<M>,
        start: VirtAddr,
        bytes: u64,
        mut visit: impl FnMut(Part<'_>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let range = self.checked_range(mm, start, bytes)?;
        let guarded = self.lock(mm);
        let Guarded { regions, streams, cap, .. } = &*guarded;
        let mut page = range.start();
        let mut gap = None;
        while page < range.end() {
            let Some(region) = regions.at_or_after::<M>(mm, page) else {
                gap.get_or_insert(page);
                break;
            };
            if region.pages.start() > page {
                gap.get_or_insert(page);
            }
            let pages = region.pages.intersection(range);
            if pages.is_empty() {
                break;
            }
            visit(Part { pages, region, streams, is_capped: cap.is_some() })?;
            page = pages.end();
        }
        match gap {
            Some(page) => Err(MapError::NotMapped(page.base::<M::Granule>())),
            None => Ok(()),
        }
    }

    /// Whether all of a range is mapped.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfRange`]; [`MapError::NotMapped`] with the first page that is not.
    pub fn check_mapped(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64) -> Result<(), MapError> {
        self.for_each_region(mm, start, bytes, |_| Ok(()))
    }

    /// A program's range in whole pages: `start` aligned, the length rounded up.
    fn checked_range(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64) -> Result<VpnRange, MapError> {
        if !start.is_page_aligned::<M::Granule>() {
            return Err(MapError::Misaligned(start));
        }
        let limit = 1u64 << mm.machine().va_bits();
        let end = start.bytes().checked_add(bytes).filter(|&end| end <= limit);
        if end.is_none() {
            return Err(MapError::OutOfRange(start));
        }
        Ok(VpnRange::new(start.vpn::<M::Granule>(), bytes.div_ceil(M::Granule::SIZE as u64)))
    }
}
