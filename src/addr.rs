//! Addresses and page numbers as types.
//!
//! Every quantity has one unit and a private field: bytes for [`PhysAddr`] and [`VirtAddr`], pages of the
//! machine's granule for [`Pfn`] and [`Vpn`]. A conversion is a named function that takes the [`Granule`],
//! so that a shift by the wrong amount does not compile.

use core::fmt;

use crate::granule::Granule;

/// A physical address, in bytes.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// Names a physical address by its value in bytes.
    #[inline]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The value in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The frame that holds this byte.
    #[inline]
    pub const fn pfn<G: Granule>(self) -> Pfn {
        Pfn(self.0 >> G::SHIFT)
    }
}

/// A user virtual address, in bytes, without a tag in its top byte.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// Bits 63:56, which TBI ignores and MTE uses for the logical tag in 59:56.
    const TOP_BYTE: u64 = 0xff << 56;

    /// Names an address by its value in bytes; the top byte must be clear already (see [`VirtAddr::untagged`]).
    #[inline]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The address a user pointer means: its top byte is ignored (TCR_EL1.TBI0).
    #[inline]
    pub const fn untagged(pointer: u64) -> Self {
        Self(pointer & !Self::TOP_BYTE)
    }

    /// The value in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The page that holds this byte.
    #[inline]
    pub const fn vpn<G: Granule>(self) -> Vpn {
        Vpn(self.0 >> G::SHIFT)
    }

    /// Whether this is the first byte of a page.
    #[inline]
    pub const fn is_page_aligned<G: Granule>(self) -> bool {
        self.0 & (G::SIZE as u64 - 1) == 0
    }
}

/// A physical frame number: units of the granule, counted from physical address 0.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// Names a frame by its number.
    #[inline]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, in frames.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte.
    #[inline]
    pub const fn base<G: Granule>(self) -> PhysAddr {
        PhysAddr(self.0 << G::SHIFT)
    }

    /// The frame `pages` further up.
    #[inline]
    pub const fn offset(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }
}

/// A virtual page number of a user address space: units of the granule, counted from virtual address 0.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Vpn(u64);

impl Vpn {
    /// Names a page by its number.
    #[inline]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, in pages.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The address of the page's first byte.
    #[inline]
    pub const fn base<G: Granule>(self) -> VirtAddr {
        VirtAddr(self.0 << G::SHIFT)
    }

    /// The page `pages` further up.
    #[inline]
    pub const fn offset(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }

    /// The page `pages` before this one, if there is one.
    #[inline]
    pub const fn before(self, pages: u64) -> Option<Self> {
        match self.0.checked_sub(pages) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

macro_rules! page_range {
    ($(#[$doc:meta])* $name:ident, $number:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq)]
        pub struct $name {
            start: $number,
            pages: u64,
        }

        impl $name {
            /// The run of `pages` pages from `start`.
            #[inline]
            pub const fn new(start: $number, pages: u64) -> Self {
                Self { start, pages }
            }

            /// The run from `start` up to, not including, `end`; empty when `end` is not above `start`.
            #[inline]
            pub const fn between(start: $number, end: $number) -> Self {
                Self { start, pages: end.0.saturating_sub(start.0) }
            }

            /// The first page.
            #[inline]
            pub const fn start(self) -> $number {
                self.start
            }

            /// The page after the last one.
            #[inline]
            pub const fn end(self) -> $number {
                $number(self.start.0 + self.pages)
            }

            /// The length, in pages.
            #[inline]
            pub const fn pages(self) -> u64 {
                self.pages
            }

            /// Whether the run holds no page.
            #[inline]
            pub const fn is_empty(self) -> bool {
                self.pages == 0
            }

            /// Whether `page` lies in the run.
            #[inline]
            pub const fn contains(self, page: $number) -> bool {
                page.0 >= self.start.0 && page.0 - self.start.0 < self.pages
            }

            /// Whether every page of `other` lies in the run.
            #[inline]
            pub const fn covers(self, other: Self) -> bool {
                other.start.0 >= self.start.0 && other.end().0 <= self.end().0
            }

            /// The pages that both runs hold; empty when they do not meet.
            #[inline]
            pub fn intersection(self, other: Self) -> Self {
                let start = self.start.max(other.start);
                Self::between(start, self.end().min(other.end()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}+{}", self.start, self.pages)
            }
        }
    };
}

page_range!(
    /// A run of consecutive frames.
    PfnRange,
    Pfn
);
page_range!(
    /// A run of consecutive virtual pages.
    VpnRange,
    Vpn
);

macro_rules! hex_debug {
    ($name:ident, $prefix:literal) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:#x}"), self.0)
            }
        }
    };
}

hex_debug!(PhysAddr, "pa:");
hex_debug!(VirtAddr, "va:");
hex_debug!(Pfn, "pfn:");
hex_debug!(Vpn, "vpn:");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::{K4, K64};

    #[test]
    fn conversions_use_the_granule() {
        assert_eq!(PhysAddr::new(0x4321_5678).pfn::<K4>(), Pfn::new(0x43215));
        assert_eq!(PhysAddr::new(0x4321_5678).pfn::<K64>(), Pfn::new(0x4321));
        assert_eq!(Pfn::new(3).base::<K64>().bytes(), 0x3_0000);
        assert_eq!(VirtAddr::untagged(0xa700_0040_0020_0010).bytes(), 0x40_0020_0010);
    }

    #[test]
    fn ranges_meet_where_they_overlap() {
        let low = VpnRange::new(Vpn::new(10), 10);
        let high = VpnRange::new(Vpn::new(15), 10);
        assert_eq!(low.intersection(high), VpnRange::new(Vpn::new(15), 5));
        assert!(low.intersection(VpnRange::new(Vpn::new(20), 1)).is_empty());
        assert!(low.covers(VpnRange::new(Vpn::new(19), 1)) && !low.covers(high));
    }
}
