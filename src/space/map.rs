//! Making regions.

use core::fmt;

use super::fault::Access;
use super::protect::usable;
use super::regions::{Region, Regions};
use super::{Protection, Space};
use crate::addr::{VirtAddr, Vpn, VpnRange};
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;

/// Where a new region goes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Placement {
    /// Wherever there is room; at the hint's page if that is free. 0 is no hint.
    Anywhere {
        /// The wanted first byte.
        hint: VirtAddr,
    },
    /// Exactly here; what was there goes.
    Fixed(VirtAddr),
    /// Exactly here, if nothing is there.
    FixedNoReplace(VirtAddr),
}

/// Whether a region grows by being touched.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Growth {
    /// It keeps its size.
    Fixed,
    /// A touch below it, as far as this many bytes below its end and with [`STACK_GAP_BYTES`] to the region below,
    /// makes it reach there: a stack.
    Down {
        /// The size that it grows to at most, in bytes.
        limit_bytes: u64,
    },
}

/// Bytes between a growing region and the one below it: 1 MiB, Linux's 256 pages of 4 KiB, so that a function
/// with a large frame does not step over.
pub const STACK_GAP_BYTES: u64 = 1 << 20;

/// The lowest address of a region: the pages below stay free, so that a null pointer with a small offset faults.
pub const LOWEST_BYTES: u64 = 64 << 10;

/// A new region.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct MapRequest {
    /// Where.
    pub placement: Placement,
    /// Its length in bytes, rounded up to pages.
    pub bytes: u64,
    /// What the program may do with it.
    pub protection: Protection,
    /// Whether it grows.
    pub growth: Growth,
}

/// Why a call on a range failed. Everything stays as it was.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum MapError {
    /// The address is not the first byte of a page.
    Misaligned(VirtAddr),
    /// The length is zero.
    Empty,
    /// The range does not lie in the address space.
    OutOfRange(VirtAddr),
    /// A region is there already.
    Occupied(VirtAddr),
    /// No region is there.
    NotMapped(VirtAddr),
    /// The region is to stay in memory.
    Locked(VirtAddr),
    /// No gap of this many bytes is left.
    NoRoom(u64),
    /// No memory for the library's records.
    NoMemory,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(address) => write!(f, "{address:?} is not page aligned"),
            Self::Empty => f.write_str("the range is empty"),
            Self::OutOfRange(address) => write!(f, "the range at {address:?} leaves the address space"),
            Self::Occupied(address) => write!(f, "a region is at {address:?} already"),
            Self::NotMapped(address) => write!(f, "no region is at {address:?}"),
            Self::Locked(address) => write!(f, "the region at {address:?} is locked in memory"),
            Self::NoRoom(bytes) => write!(f, "no gap of {bytes} bytes is left"),
            Self::NoMemory => f.write_str("no memory for a region's record"),
        }
    }
}

impl<M: Machine> Space<M> {
    /// Makes a region and returns its first byte. No page comes into being before it is touched, and none is promised.
    ///
    /// # Errors
    /// [`MapError::Empty`], [`MapError::Misaligned`] (a fixed address), [`MapError::OutOfRange`],
    /// [`MapError::Occupied`] ([`Placement::FixedNoReplace`]), [`MapError::NoRoom`], [`MapError::NoMemory`].
    pub fn map(&self, mm: &Mm<M>, request: MapRequest) -> Result<VirtAddr, MapError> {
        if request.bytes == 0 {
            return Err(MapError::Empty);
        }
        let limit = self.pages(mm).end();
        let pages = request.bytes.div_ceil(M::Granule::SIZE as u64);
        if pages >= limit.number() {
            return Err(MapError::NoRoom(request.bytes));
        }
        let mut guarded = self.lock(mm);
        let regions = &mut guarded.regions;
        regions.reserve(mm).ok_or(MapError::NoMemory)?;
        let fixed = |address: VirtAddr| {
            let range = self.checked_range(mm, address, request.bytes)?;
            if address.bytes() < LOWEST_BYTES { Err(MapError::OutOfRange(address)) } else { Ok(range) }
        };
        let occupied = |regions: &mut Regions, range: VpnRange| {
            regions.at_or_after(mm, range.start()).filter(|region| region.pages.start() < range.end())
        };
        let range = match request.placement {
            Placement::Fixed(address) => {
                let range = fixed(address)?;
                self.remove(mm, regions, range);
                range
            }
            Placement::FixedNoReplace(address) => {
                let range = fixed(address)?;
                if let Some(region) = occupied(regions, range) {
                    return Err(MapError::Occupied(region.pages.start().base::<M::Granule>()));
                }
                range
            }
            Placement::Anywhere { hint } => {
                let hinted = VpnRange::new(hint.vpn::<M::Granule>(), pages);
                let fits = hint.bytes() >= LOWEST_BYTES && hinted.end() <= limit;
                if fits && occupied(regions, hinted).is_none() {
                    hinted
                } else {
                    let gap = find_gap::<M>(mm, regions, pages, limit);
                    VpnRange::new(gap.ok_or(MapError::NoRoom(request.bytes))?, pages)
                }
            }
        };
        let floor = match request.growth {
            Growth::Fixed => range.start(),
            Growth::Down { limit_bytes } => {
                let most = limit_bytes >> M::Granule::SHIFT;
                let lowest = LOWEST_BYTES >> M::Granule::SHIFT;
                Vpn::new(range.end().number().saturating_sub(most).max(lowest)).min(range.start())
            }
        };
        regions.insert(mm, Region { pages: range, floor, protection: usable(mm, request.protection) });
        let _ = regions.join(mm, range);
        Ok(range.start().base::<M::Granule>())
    }

    /// Whether the touch of `page`, which no region holds, makes a growing region reach it; if so it has, and is the
    /// region of the last look-up.
    #[cold]
    pub(super) fn grow(&self, mm: &Mm<M>, regions: &mut Regions, page: Vpn, access: Access) -> bool {
        let Some(above) = regions.at_or_after(mm, page) else { return false };
        if page < above.floor || !access.is_allowed(above.protection) {
            return false;
        }
        let gap = STACK_GAP_BYTES >> M::Granule::SHIFT;
        // A neighbour that nobody can touch is as good as a gap.
        if let Some(below) = regions.before(mm, page)
            && below.protection.intersects(ACCESS)
            && below.pages.end().offset(gap) > page
        {
            return false;
        }
        let pages = VpnRange::between(page, above.pages.end());
        regions.change(mm, above.pages.start(), |region| region.pages = pages);
        regions.find(mm, page).is_some()
    }
}

/// Any right at all.
const ACCESS: Protection = Protection::READ.union(Protection::WRITE).union(Protection::EXEC);

/// The highest gap of `pages` pages below `limit`, with room for growth below growing regions.
fn find_gap<M: Machine>(mm: &Mm<M>, regions: &mut Regions, pages: u64, limit: Vpn) -> Option<Vpn> {
    let gap = STACK_GAP_BYTES >> M::Granule::SHIFT;
    let lowest = LOWEST_BYTES >> M::Granule::SHIFT;
    let mut top = limit.number();
    loop {
        let below = regions.before(mm, Vpn::new(top));
        let bottom = below.map_or(lowest, |region| region.pages.end().number());
        if top.checked_sub(bottom).is_some_and(|free| free >= pages) {
            return Some(Vpn::new(top - pages));
        }
        let region = below?;
        // The whole room that it may grow into, and the gap below, stay free.
        top = if region.grows() { region.floor.number().saturating_sub(gap) } else { region.pages.start().number() };
    }
}
