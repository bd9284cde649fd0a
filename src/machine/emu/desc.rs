//! The emulator's own reading of a VMSAv8-64 stage-1 descriptor.
//!
//! Written from the Arm ARM (D8.3, "Translation table descriptor formats") and on purpose not shared with the
//! library's `pte`: a misreading there must not be copied here.

use crate::addr::Pfn;
use crate::granule::{Granule, Level};

pub(super) const VALID: u64 = 1 << 0;
/// Bit 1: a table above level 3, a page at level 3.
const TABLE_OR_PAGE: u64 = 1 << 1;
const ATTR_SHIFT: u32 = 2;
/// AP\[1\]: EL0 may access.
pub(super) const EL0: u64 = 1 << 6;
/// AP\[2\]: read-only; with DBM, clean.
pub(super) const READ_ONLY: u64 = 1 << 7;
pub(super) const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
pub(super) const DBM: u64 = 1 << 51;
pub(super) const CONTIGUOUS: u64 = 1 << 52;
pub(super) const UXN: u64 = 1 << 54;
/// Output address bits 47:12; the granule masks off the rest.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The AttrIndx that the library gives Normal-Tagged memory.
const ATTR_TAGGED: u64 = 1;

/// What a walker makes of a descriptor.
#[derive(Copy, Clone, Eq, PartialEq)]
pub(super) enum Desc {
    Invalid,
    Table(Pfn),
    /// A page or a block, from its first frame.
    Leaf(Pfn),
}

pub(super) fn decode<G: Granule>(raw: u64, level: Level) -> Desc {
    let pfn = Pfn::new((raw & ADDRESS) >> G::SHIFT);
    match (raw & VALID != 0, raw & TABLE_OR_PAGE != 0, level) {
        (false, ..) => Desc::Invalid,
        (true, true, Level::L3) => Desc::Leaf(pfn),
        (true, true, _) => Desc::Table(pfn),
        // Level 1 blocks exist with the 4 KiB granule only (without FEAT_LPA), level 0 blocks and 0b01 at level 3
        // never.
        (true, false, Level::L2) => Desc::Leaf(pfn),
        (true, false, Level::L1) if G::SHIFT == 12 => Desc::Leaf(pfn),
        (true, false, _) => Desc::Invalid,
    }
}

pub(super) const fn is_global(raw: u64) -> bool {
    raw & NOT_GLOBAL == 0
}

pub(super) const fn attr(raw: u64) -> u64 {
    raw >> ATTR_SHIFT & 0b111
}

pub(super) const fn is_tagged(raw: u64) -> bool {
    attr(raw) == ATTR_TAGGED
}

/// Whether a level-3 leaf is part of a contiguous group. The emulator does not cache contiguous blocks as one.
pub(super) fn is_grouped(raw: u64, level: Level) -> bool {
    raw & CONTIGUOUS != 0 && level == Level::LEAF
}

/// Bits 58:55, which no hardware looks at (Arm ARM, D8.3.1.2).
const SOFTWARE: u64 = 0xf << 55;

/// The bits in which two entries of one contiguous group may differ at rest: AF, AP\[2\] where hardware manages it, and
/// what is the software's own.
pub(super) const fn hardware_bits(raw: u64) -> u64 {
    if raw & DBM != 0 { SOFTWARE | ACCESSED | READ_ONLY } else { SOFTWARE | ACCESSED }
}

/// Pages that one entry of `level` spans.
pub(super) const fn pages_of<G: Granule>(level: Level) -> u64 {
    1 << ((3 - level as u32) * G::INDEX_BITS)
}

/// The index that a walk of page `vpn` uses in a table of `level`.
pub(super) const fn index_of<G: Granule>(vpn: u64, level: Level) -> usize {
    (vpn >> ((3 - level as u32) * G::INDEX_BITS)) as usize & (G::ENTRIES - 1)
}
