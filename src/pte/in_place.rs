//! Which descriptor may take the place of which in one step, with no break between: pure.
//!
//! The Arm ARM (D8.17.1, "Using break-before-make") asks for a break where two TLBs could hold translations of one
//! address that cannot stand side by side: another output address, another size, another memory type, a private one
//! beside a global one. Permissions, AF, dirty and the software's bits may change at any time. The cursor holds itself
//! to this rule, and the [recorder](crate::machine::recorder) holds the library to it.
//!
//! Stricter than the architecture in one thing: it lets Normal and Normal-Tagged memory change places, the library does
//! not, because the tags of a page that begins to show them have to be its own before.

use core::fmt;

use super::leaf::IN_PLACE;
use super::{TABLE_OR_PAGE, VALID, address_mask};
use crate::granule::{Granule, Level};

/// Bit 11: the translation belongs to one address space.
const NOT_GLOBAL: u64 = 1 << 11;
/// Bit 52: one of a contiguous group.
const CONTIGUOUS: u64 = 1 << 52;

/// Why a live descriptor must be broken before the new one is made.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Hazard {
    /// A page or block for a table, or the other way round; or another table.
    Table,
    /// Another frame.
    Address,
    /// The contiguous bit comes or goes: the translation has another size.
    Size,
    /// A private translation becomes global.
    Global,
    /// Memory type or shareability, or a bit of which nobody here knows what it means.
    Attributes,
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "a table comes or goes",
            Self::Address => "the address changes",
            Self::Size => "the contiguous bit changes",
            Self::Global => "a private translation becomes global",
            Self::Attributes => "the memory's attributes change",
        })
    }
}

/// Whether `new` may stand in the place of `old`, both read at `level`, at the next moment. What is not valid is in no
/// TLB: whether something older still is, these two do not tell.
///
/// # Errors
/// [`Hazard`]: what needs a break.
#[inline]
pub fn in_place<G: Granule>(old: u64, new: u64, level: Level) -> Result<(), Hazard> {
    if old & new & VALID == 0 {
        return Ok(());
    }
    let change = old ^ new;
    let is_table = level != Level::LEAF && (old | new) & TABLE_OR_PAGE != 0;
    if change & TABLE_OR_PAGE != 0 || is_table && change & address_mask::<G>() != 0 {
        Err(Hazard::Table)
    } else if change & address_mask::<G>() != 0 {
        Err(Hazard::Address)
    } else if change & CONTIGUOUS != 0 {
        Err(Hazard::Size)
    } else if change & old & NOT_GLOBAL != 0 {
        Err(Hazard::Global)
    } else if change & !(IN_PLACE | NOT_GLOBAL) != 0 {
        Err(Hazard::Attributes)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pfn;
    use crate::granule::{K4, K16, K64};
    use crate::pte::{CodeSynced, Exclusive, Leaf, Protection, table_descriptor};

    /// The hazard of each bit of a leaf, from the format in the Arm ARM, D8.3.1.2.
    fn expected<G: Granule>(bit: u32) -> Result<(), Hazard> {
        match bit {
            0 => Ok(()),
            1 => Err(Hazard::Table),
            6 | 7 | 10 | 51 | 53 | 54 | 55..=58 => Ok(()),
            11 => Err(Hazard::Global),
            52 => Err(Hazard::Size),
            _ if bit >= G::SHIFT && bit < 48 => Err(Hazard::Address),
            _ => Err(Hazard::Attributes),
        }
    }

    fn every_bit<G: Granule>() {
        let leaf = Leaf::page::<G>(Pfn::new(0x4321), Protection::READ).with_write(&Exclusive::proven()).raw();
        for bit in 0..64 {
            assert_eq!(in_place::<G>(leaf, leaf ^ 1 << bit, Level::LEAF), expected::<G>(bit), "bit {bit}");
        }
        assert_eq!(in_place::<G>(leaf & !NOT_GLOBAL, leaf, Level::LEAF), Ok(()));
        assert_eq!(in_place::<G>(0, leaf, Level::LEAF), Ok(()));
        assert_eq!(in_place::<G>(leaf, 0, Level::LEAF), Ok(()));
        let (one, other) = (table_descriptor::<G>(Pfn::new(0x40)), table_descriptor::<G>(Pfn::new(0x80)));
        assert_eq!(in_place::<G>(one, one, Level::L2), Ok(()));
        assert_eq!(in_place::<G>(one, other, Level::L2), Err(Hazard::Table));
        assert_eq!(in_place::<G>(one, one & !TABLE_OR_PAGE, Level::L2), Err(Hazard::Table));
    }

    #[test]
    fn each_bit_of_a_live_descriptor_is_free_or_needs_a_break() {
        every_bit::<K4>();
        every_bit::<K16>();
        every_bit::<K64>();
    }

    #[test]
    fn what_a_cursor_may_do_to_a_leaf_needs_no_break() {
        for old in 0..16 {
            for new in 0..16 {
                let tagged = |bits| Protection::from_bits_retain(bits) - Protection::TAGGED;
                let leaf = Leaf::page::<K4>(Pfn::new(0x43210), tagged(old)).with_contiguous();
                for was in [leaf, leaf.with_write(&Exclusive::proven()), leaf.with_execute(&CodeSynced::proven())] {
                    let is = was.with_protection(tagged(new));
                    for is in [is, is.with_dirty(), is.without_history(), is.without_access(), is.without_exclusive()] {
                        assert_eq!(in_place::<K4>(was.raw(), is.raw(), Level::LEAF), Ok(()), "{was:?} {is:?}");
                    }
                    let tagged = in_place::<K4>(was.raw(), is.with_tags().raw(), Level::LEAF);
                    assert_eq!(tagged, Err(Hazard::Attributes));
                    let alone = in_place::<K4>(was.raw(), is.without_contiguous().raw(), Level::LEAF);
                    assert_eq!(alone, Err(Hazard::Size));
                }
            }
        }
    }
}
