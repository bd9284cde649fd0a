//! Operands of the TLBI instructions: pure arithmetic, so that a host can test it.
//!
//! QEMU ignores most of what stands here (it has no ASIDs in its TLB and flushes all of it for ranges of four pages and
//! more), so a wrong operand shows only on hardware: the tests below are the check.
//!
//! Arm ARM, C5.5, "A64 system instructions for TLB maintenance".

use core::marker::PhantomData;

use crate::addr::VpnRange;
use crate::granule::{Granule, Level};
use crate::machine::{Asid, Features};

/// Pages above which an invalidation of the whole space is cheaper than single operations: those of a leaf table at
/// 4 KiB.
pub const MAX_SINGLE: u64 = 512;

/// Pages above which it is cheaper than range operations: what the largest of them covers, 32 << 16.
pub const MAX_RANGE: u64 = 32 << 16;

/// Whether a run of so many pages is to be invalidated with all of its space, where `features` are what there is.
#[inline]
pub const fn is_whole_space(pages: u64, features: Features) -> bool {
    pages > if features.contains(Features::TLB_RANGE) { MAX_RANGE } else { MAX_SINGLE }
}

/// Bits 43:0 of a single operand: VA\[55:12\], whatever the granule.
const SINGLE_ADDRESS: u64 = (1 << 44) - 1;
/// Bits 36:0 of a range operand: the address in units of the granule.
const RANGE_ADDRESS: u64 = (1 << 37) - 1;

/// The ASID field, of single and range operands and of TLBI ASIDE1.
#[inline]
pub const fn asid_field(asid: Asid) -> u64 {
    (asid.number() as u64) << 48
}

/// The operand of TLBI VAE1 and VALE1 for one page.
///
/// With `leaf` a level hint goes along (FEAT_TTL: bits 47:44 are granule and level); without, the field is 0: any
/// level. A wrong hint lets an entry stay, hence none for an invalidation that removes table entries as well.
#[inline]
pub const fn single<G: Granule>(page: u64, asid: Asid, leaf: Option<Level>) -> u64 {
    let address = (page << (G::SHIFT - 12)) & SINGLE_ADDRESS;
    let hint = match leaf {
        Some(level) => (G::TLBI_TG << 2 | level as u64) << 44,
        None => 0,
    };
    asid_field(asid) | hint | address
}

/// The operands of TLBI RVAE1 and RVALE1 that cover a run, from its start on, and the odd last page.
///
/// One range operation covers (NUM + 1) << (5 * SCALE + 1) pages, an even number. The run is split from the
/// largest scale down; each scale takes up to 32 of its units, so that few operations are needed.
pub struct Ranges<G> {
    page: u64,
    left: u64,
    fixed: u64,
    granule: PhantomData<G>,
}

/// One operation of a run's invalidation.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Operation {
    /// A range operand.
    Range(u64),
    /// The number of a page for a single operation.
    Single(u64),
}

/// See [`Ranges`].
#[inline]
pub const fn ranges<G: Granule>(run: VpnRange, asid: Asid, leaf: Option<Level>) -> Ranges<G> {
    let level = match leaf {
        Some(level) => (level as u64) << 37,
        None => 0,
    };
    let fixed = asid_field(asid) | G::TLBI_TG << 46 | level;
    Ranges { page: run.start().number(), left: run.pages(), fixed, granule: PhantomData }
}

impl<G: Granule> Iterator for Ranges<G> {
    type Item = Operation;

    #[inline]
    fn next(&mut self) -> Option<Operation> {
        if self.left == 0 {
            return None;
        }
        let start = self.page;
        if self.left == 1 {
            self.left = 0;
            return Some(Operation::Single(start));
        }
        // The largest scale whose unit fits.
        let scale = u64::from((self.left.ilog2() - 1) / 5).min(3);
        let shift = 5 * scale + 1;
        let units = (self.left >> shift).min(32);
        self.page += units << shift;
        self.left -= units << shift;
        let operand = self.fixed | scale << 44 | (units - 1) << 39 | start & RANGE_ADDRESS;
        Some(Operation::Range(operand))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::addr::{Vpn, VpnRange};
    use crate::granule::{K4, K16, K64};
    use std::vec::Vec;

    fn run(start: u64, pages: u64) -> VpnRange {
        VpnRange::new(Vpn::new(start), pages)
    }

    #[test]
    fn single_holds_address_bits_55_to_12_at_every_granule() {
        // VA 0x7f_1234_5000 and its neighbours with the granule's alignment.
        assert_eq!(single::<K4>(0x7f_1234_5000 >> 12, Asid::new(0), None), 0x7f1_2345);
        assert_eq!(single::<K16>(0x7f_1234_4000 >> 14, Asid::new(0), None), 0x7f1_2344);
        assert_eq!(single::<K64>(0x7f_1234_0000 >> 16, Asid::new(0), None), 0x7f1_2340);
    }

    #[test]
    fn single_cuts_an_upper_half_address_at_bit_55() {
        let operand = single::<K4>(0xffff_ff80_4020_0000 >> 12, Asid::new(0xffff), None);
        assert_eq!(operand, 0xffff_0fff_f804_0200, "bits 47:44 are the hint's, not the address's");
    }

    #[test]
    fn single_carries_asid_and_hint() {
        assert_eq!(single::<K4>(0, Asid::new(0xabcd), Some(Level::L3)), 0xabcd_7000_0000_0000);
        assert_eq!(single::<K16>(0, Asid::new(1), Some(Level::L3)), 0x0001_b000_0000_0000);
        assert_eq!(single::<K64>(0, Asid::new(1), Some(Level::L2)), 0x0001_e000_0000_0000);
    }

    fn covered(operations: &[Operation]) -> Vec<(u64, u64)> {
        operations
            .iter()
            .map(|operation| match *operation {
                Operation::Single(page) => (page, 1),
                Operation::Range(raw) => {
                    let (num, scale) = (raw >> 39 & 0x1f, raw >> 44 & 3);
                    (raw & RANGE_ADDRESS, (num + 1) << (5 * scale + 1))
                }
            })
            .collect()
    }

    #[test]
    fn ranges_cover_each_page_once_and_no_other() {
        for pages in (1..300).chain([511, 512, 2048, 2049, 65_535, 65_536, 2_097_151, 2_097_152, 5_000_001]) {
            let start = 0x12_3456;
            let operations: Vec<_> = ranges::<K4>(run(start, pages), Asid::new(7), Some(Level::L3)).collect();
            let mut next = start;
            for (first, count) in covered(&operations) {
                assert_eq!(first, next, "{pages} pages");
                next += count;
            }
            assert_eq!(next, start + pages);
            assert!(operations.len() <= 8, "{pages} pages took {}", operations.len());
        }
    }

    #[test]
    fn a_range_operand_has_its_fields_in_place() {
        let one: Vec<_> = ranges::<K4>(run(0x7f1_2345, 2), Asid::new(0xabcd), Some(Level::L3)).collect();
        assert_eq!(one, [Operation::Range(0xabcd << 48 | 1 << 46 | 3 << 37 | 0x7f1_2345)]);
        // 64 KiB pages: the address counts granules, TG is 3.
        let big: Vec<_> = ranges::<K64>(run(0x7f_1234, 64), Asid::new(1), None).collect();
        assert_eq!(big, [Operation::Range(1 << 48 | 3 << 46 | 1 << 44 | 0x7f_1234)]);
        let odd: Vec<_> = ranges::<K16>(run(8, 5), Asid::new(1), None).collect();
        assert_eq!(odd, [Operation::Range(1 << 48 | 2 << 46 | 1 << 39 | 8), Operation::Single(12)]);
    }

    #[test]
    fn a_large_run_goes_with_its_space() {
        let ranges = Features::TLB_RANGE;
        assert!(!is_whole_space(512, Features::empty()) && is_whole_space(513, Features::empty()));
        assert!(!is_whole_space(1 << 21, ranges) && is_whole_space((1 << 21) + 1, ranges));
    }

    #[test]
    fn a_range_of_upper_half_pages_keeps_37_bits() {
        let high: Vec<_> = ranges::<K4>(run(0xffff_ff80_4020_0000 >> 12, 2), Asid::new(0), None).collect();
        assert_eq!(high, [Operation::Range(1 << 46 | 0x1f_f804_0200)]);
    }
}
