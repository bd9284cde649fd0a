//! One descriptor: what its 64 bits mean at its level, and the only constructors of leaves.
//!
//! Pure: nothing here reads a table. [`decode`] is total: every bit pattern at every level is exactly one of the arms
//! of [`Decoded`], and a bit this file does not know survives every `with_` function.
//!
//! **Bits of a leaf** (Arm ARM, D8.3.1.2; software owns 58:55):
//!
//! | bit | name | meaning here |
//! |---|---|---|
//! | 0, 1 | valid, page | both set in a level-3 leaf; bit 1 clear in a block of level 1 or 2 |
//! | 4:2 | AttrIndx | 0 Normal Write-Back, 1 the same with allocation tags |
//! | 6 | AP\[1\] | EL0 may access; clear for PROT_NONE |
//! | 7 | AP\[2\] | no writes now |
//! | 10 | AF | accessed |
//! | 11 | nG | always set: user pages belong to an ASID |
//! | 51 | DBM | writable: the hardware, or the fault handler, clears AP\[2\] on the first store |
//! | 52 | CONT | one of a contiguous group |
//! | 53, 54 | PXN, UXN | PXN always set; UXN clear only on a code-synced frame |
//! | 55 | dirty | written, and DBM since taken away |
//! | 56 | exclusive | this entry is the only mapping of its page |
//!
//! A clean writable page is DBM with AP\[2\] set: AP\[2\] alone does not mean "read-only". Dirty is bit 55, or DBM with
//! AP\[2\] clear. Taking DBM away therefore moves the dirty state into bit 55 in the same step.

mod in_place;
mod leaf;
mod swap_entry;

pub use in_place::{Hazard, in_place};
pub use leaf::{CodeSynced, Exclusive, Leaf, Loss, Protection, Rights};
pub use swap_entry::SwapEntry;

use crate::addr::Pfn;
use crate::granule::{Granule, Level};

/// Bit 0: the walker uses the descriptor.
const VALID: u64 = 1 << 0;
/// Bit 1: a table (levels 0 to 2) or a page (level 3); clear in a block.
const TABLE_OR_PAGE: u64 = 1 << 1;

/// What a descriptor is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Decoded {
    /// All zero: nothing here.
    Empty,
    /// The next level's table.
    Table(Pfn),
    /// A page or a block.
    Leaf(Leaf),
    /// A page that is out, in a swap slot. Level 3 only.
    Swapped(SwapEntry),
    /// Bits that no constructor of this library makes. The walker does not use them.
    Unknown(u64),
}

/// The output address field of a 48-bit descriptor.
#[inline]
const fn address_mask<G: Granule>() -> u64 {
    ((1 << 48) - 1) & !(G::SIZE as u64 - 1)
}

/// Says what the descriptor `raw` is, read at `level`.
#[inline]
pub fn decode<G: Granule>(raw: u64, level: Level) -> Decoded {
    if raw == 0 {
        return Decoded::Empty;
    }
    if raw & VALID == 0 {
        return match (level, SwapEntry::from_raw(raw)) {
            (Level::L3, Some(entry)) => Decoded::Swapped(entry),
            _ => Decoded::Unknown(raw),
        };
    }
    match (level, raw & TABLE_OR_PAGE != 0) {
        (Level::L3, true) => Decoded::Leaf(Leaf::from_raw(raw)),
        // Reserved at level 3; blocks do not exist at level 0 without 52-bit addresses.
        (Level::L3 | Level::L0, false) => Decoded::Unknown(raw),
        (_, true) => Decoded::Table(Pfn::new((raw & address_mask::<G>()) >> G::SHIFT)),
        (_, false) => Decoded::Leaf(Leaf::from_raw(raw)),
    }
}

/// The descriptor of the table in `frame`. Its hierarchical permission bits are zero: leaves decide alone.
#[inline]
pub fn table_descriptor<G: Granule>(frame: Pfn) -> u64 {
    frame.base::<G>().bytes() | VALID | TABLE_OR_PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::{K4, K16, K64};

    fn decoding_is_total<G: Granule>() {
        for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
            for low in 0..0x1000u64 {
                for high in [0, 1 << 16, 0xffff << 48, 1 << 61] {
                    let raw = low | high;
                    match decode::<G>(raw, level) {
                        Decoded::Empty => assert_eq!(raw, 0),
                        Decoded::Table(_) => assert!(level != Level::L3 && raw & 3 == 3),
                        Decoded::Leaf(leaf) => {
                            assert_eq!(leaf.raw(), raw);
                            assert_eq!(raw & 3, if level == Level::L3 { 3 } else { 1 });
                        }
                        Decoded::Swapped(entry) => {
                            assert_eq!(level, Level::L3);
                            assert_eq!(entry.raw(), raw);
                        }
                        Decoded::Unknown(bits) => assert_eq!(bits, raw),
                    }
                }
            }
        }
    }

    #[test]
    fn every_pattern_decodes_at_every_level() {
        decoding_is_total::<K4>();
        decoding_is_total::<K16>();
        decoding_is_total::<K64>();
    }

    #[test]
    fn zero_is_empty_everywhere() {
        for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
            assert_eq!(decode::<K4>(0, level), Decoded::Empty);
        }
    }
}
