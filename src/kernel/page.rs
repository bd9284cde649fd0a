//! The translation granule of this build: pages of 4 KiB, or of 16 or 64 with a cargo feature.
//!
//! User space, the kernel's own map and the files of `boot/` all use this one.

use ebbtide::granule::Granule;

#[cfg(all(feature = "granule-16k", feature = "granule-64k"))]
compile_error!("a kernel has one granule: granule-16k or granule-64k, not both");

/// The granule.
#[cfg(feature = "granule-16k")]
pub type PageGranule = ebbtide::granule::K16;
/// The granule.
#[cfg(all(feature = "granule-64k", not(feature = "granule-16k")))]
pub type PageGranule = ebbtide::granule::K64;
/// The granule.
#[cfg(not(any(feature = "granule-16k", feature = "granule-64k")))]
pub type PageGranule = ebbtide::granule::K4;

/// log2 of the bytes of a page.
pub const SHIFT: u32 = PageGranule::SHIFT;
/// Bytes of a page.
pub const PAGE: u64 = 1 << SHIFT;
