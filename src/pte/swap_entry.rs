//! The entry of a page that is out: it names the slot and remembers exclusivity.
//!
//! | bit | meaning |
//! |---|---|
//! | 0, 1 | zero: not valid |
//! | 2 | exclusive: this entry is the only user of the slot |
//! | 3 | zero, kept for write-protection tracking |
//! | 4 | one: the entry of area 0, slot 0 differs from an empty one |
//! | 10:6 | swap area; all ones: none, the page is lost |
//! | 11 | zero |
//! | 61:12 | slot within the area |
//!
//! Bit 52 is part of the slot number here and the contiguous bit in a leaf: neither may be tested without the valid
//! bit. What an entry says is an allegation of the table that holds it until the slot's record confirms it.

use core::fmt;

use super::VALID;

const EXCLUSIVE: u64 = 1 << 2;
const AREA_SHIFT: u32 = 6;
const AREA_MASK: u64 = 0b1_1111;
const SLOT_SHIFT: u32 = 12;
const SLOT_BITS: u32 = 50;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
const KNOWN: u64 = EXCLUSIVE | AREA_MASK << AREA_SHIFT | SLOT_MASK << SLOT_SHIFT;
/// Set in every swap entry, so that area 0, slot 0 differs from an empty entry.
const MARK: u64 = 1 << 4;

/// A non-present entry that names a swap slot.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq)]
pub struct SwapEntry(u64);

impl SwapEntry {
    /// Areas that an entry can name: the last number is that of no area.
    pub const AREAS: usize = 31;

    /// What stands where a page was that could not be read back when its area went away.
    pub const LOST: Self = Self(MARK | EXCLUSIVE | AREA_MASK << AREA_SHIFT);

    /// The entry for slot `slot` of area `area` (below [`SwapEntry::AREAS`]), exclusive.
    #[inline]
    pub const fn exclusive(area: u8, slot: u32) -> Self {
        Self(MARK | EXCLUSIVE | (area as u64 & AREA_MASK) << AREA_SHIFT | (slot as u64) << SLOT_SHIFT)
    }

    /// The entry of the slot `slots` further on in the same area.
    #[inline]
    pub const fn nth(self, slots: u64) -> Self {
        Self(self.0 + (slots << SLOT_SHIFT))
    }

    /// The entry of the slot `slots` before in the same area, if there is one.
    #[inline]
    pub fn before(self, slots: u64) -> Option<Self> {
        (slots <= self.slot()).then_some(Self(self.0.wrapping_sub(slots << SLOT_SHIFT)))
    }

    /// The swap entry that `raw` is, or `None` when no constructor here makes such bits.
    #[inline]
    pub(super) const fn from_raw(raw: u64) -> Option<Self> {
        if raw & VALID == 0 && raw & MARK != 0 && raw & !(KNOWN | MARK) == 0 { Some(Self(raw)) } else { None }
    }

    /// The descriptor's bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The swap area.
    #[inline]
    pub const fn area(self) -> u8 {
        (self.0 >> AREA_SHIFT & AREA_MASK) as u8
    }

    /// The slot within the area. The field has 50 bits; areas are smaller than 2^32 slots.
    #[inline]
    pub const fn slot(self) -> u64 {
        self.0 >> SLOT_SHIFT & SLOT_MASK
    }

    /// Whether this entry is the slot's only user.
    #[inline]
    pub const fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }

    /// The same slot, shared.
    #[inline]
    pub const fn shared(self) -> Self {
        Self(self.0 & !EXCLUSIVE)
    }
}

impl fmt::Debug for SwapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_exclusive() { "exclusive" } else { "shared" };
        write!(f, "swap:{}/{} {kind}", self.area(), self.slot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::{K4, Level};
    use crate::pte::{Decoded, decode};

    #[test]
    fn fields_round_trip_over_their_ranges() {
        for area in [0, 1, 15, 30] {
            for slot in [0, 1, 511, 0x8000_0000, u32::MAX] {
                let entry = SwapEntry::exclusive(area, slot);
                assert_eq!((entry.area(), entry.slot(), entry.is_exclusive()), (area, slot as u64, true));
                assert_eq!(entry.shared().slot(), slot as u64);
                assert!(!entry.shared().is_exclusive());
                assert_eq!(decode::<K4>(entry.raw(), Level::L3), Decoded::Swapped(entry));
                assert!(matches!(decode::<K4>(entry.raw(), Level::L2), Decoded::Unknown(_)));
            }
        }
    }

    #[test]
    fn a_lost_page_is_in_no_area() {
        assert!(SwapEntry::LOST.area() as usize >= SwapEntry::AREAS);
        assert_eq!(decode::<K4>(SwapEntry::LOST.raw(), Level::L3), Decoded::Swapped(SwapEntry::LOST));
    }

    #[test]
    fn slot_bit_40_is_not_the_contiguous_bit() {
        let raw = MARK | 1 << 52;
        assert_eq!(SwapEntry::from_raw(raw).map(SwapEntry::slot), Some(1 << 40));
    }

    #[test]
    fn bits_no_constructor_makes_are_refused() {
        for raw in [1 << 2, MARK | 1 << 3, MARK | 1 << 11, MARK | 1 << 62, MARK | 1 << 63] {
            assert_eq!(SwapEntry::from_raw(raw), None, "{raw:#x}");
        }
    }
}
