//! TLBI operands as a CPU reads them: what the library's own arithmetic ([`tlbi`]) puts there is taken apart here, so
//! that a wrong address, count, level or granule leaves a translation in the TLBs, as it would on hardware.
//!
//! Written from the Arm ARM (C5.5, "A64 system instructions for TLB maintenance"), like `desc`.

use std::vec::Vec;

use crate::addr::{Vpn, VpnRange};
use crate::granule::{Granule, Level};
use crate::machine::tlbi::{self, Operation};
use crate::machine::{Asid, Cached, Features, Scope};

/// What one operation names.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Named {
    pub asid: Asid,
    pub scope: Scope,
    pub cached: Cached,
}

const fn field(operand: u64, high: u32, low: u32) -> u64 {
    operand >> low & ((1 << (high - low + 1)) - 1)
}

const fn level(number: u64) -> Level {
    match number {
        0 => Level::L0,
        1 => Level::L1,
        2 => Level::L2,
        _ => Level::L3,
    }
}

/// The granule that a TG field names, as log2 of its bytes.
const fn granule_shift(tg: u64) -> Option<u32> {
    match tg {
        0b01 => Some(12),
        0b10 => Some(14),
        0b11 => Some(16),
        _ => None,
    }
}

/// TLBI VAE1 and VALE1, of a user address. `None`: the hint names another granule, and the operation need not do
/// anything.
fn single<G: Granule>(operand: u64, cached: Cached) -> Option<Named> {
    let ttl = field(operand, 47, 44);
    let page = (field(operand, 43, 0) << 12) >> G::SHIFT;
    let cached = match (cached, granule_shift(ttl >> 2)) {
        (Cached::Leaf(_), Some(shift)) if shift == G::SHIFT => Cached::Leaf(level(ttl & 0b11)),
        (_, None) => cached,
        _ => return None,
    };
    let asid = Asid::new(field(operand, 63, 48) as u16);
    Some(Named { asid, scope: Scope::Pages(VpnRange::new(Vpn::new(page), 1)), cached })
}

/// TLBI RVAE1 and RVALE1. `None` as above.
fn range<G: Granule>(operand: u64, cached: Cached) -> Option<Named> {
    if granule_shift(field(operand, 47, 46)) != Some(G::SHIFT) {
        return None;
    }
    let pages = (field(operand, 43, 39) + 1) << (5 * field(operand, 45, 44) + 1);
    let cached = match (cached, field(operand, 38, 37)) {
        (_, 0) | (Cached::Walk, _) => cached,
        (Cached::Leaf(_), number) => Cached::Leaf(level(number)),
    };
    let asid = Asid::new(field(operand, 63, 48) as u16);
    Some(Named { asid, scope: Scope::Pages(VpnRange::new(Vpn::new(field(operand, 36, 0)), pages)), cached })
}

/// The operations that an invalidation comes to on a CPU with `features`, as that CPU reads them.
pub(super) fn operations<G: Granule>(asid: Asid, scope: Scope, cached: Cached, features: Features) -> Vec<Named> {
    let run = match scope {
        Scope::Pages(run) if !tlbi::is_whole_space(run.pages(), features) => run,
        Scope::Pages(_) => return Vec::from([Named { asid, scope: Scope::Space, cached: Cached::Walk }]),
        Scope::Space | Scope::All => return Vec::from([Named { asid, scope, cached }]),
    };
    let leaf = match cached {
        Cached::Leaf(level) => Some(level),
        Cached::Walk => None,
    };
    let one = |page| single::<G>(tlbi::single::<G>(page, asid, leaf), cached);
    if !features.contains(Features::TLB_RANGE) {
        return (run.start().number()..run.end().number()).filter_map(one).collect();
    }
    let named = |operation| match operation {
        Operation::Range(operand) => range::<G>(operand, cached),
        Operation::Single(page) => one(page),
    };
    tlbi::ranges::<G>(run, asid, leaf).filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::{K4, K16, K64};

    fn all_pages<G: Granule>(features: Features) {
        for (start, pages) in [(0, 1), (5, 2), (16, 16), (0x7_ffff, 33), (1 << 20, 511), (9, 2048 + 67)] {
            let run = VpnRange::new(Vpn::new(start), pages);
            let mut next = run.start();
            for named in operations::<G>(Asid::new(7), Scope::Pages(run), Cached::Leaf(Level::L3), features) {
                match named.scope {
                    Scope::Pages(part) => {
                        assert_eq!((part.start(), named.cached), (next, Cached::Leaf(Level::L3)));
                        next = part.end();
                    }
                    _ => next = run.end(),
                }
                assert_eq!(named.asid, Asid::new(7));
            }
            assert_eq!(next, run.end(), "{run:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_what_a_cpu_reads() {
        for features in [Features::empty(), Features::TLB_RANGE] {
            all_pages::<K4>(features);
            all_pages::<K16>(features);
            all_pages::<K64>(features);
        }
    }

    #[test]
    fn another_granules_operand_names_nothing() {
        let operand = tlbi::single::<K16>(4, Asid::new(1), Some(Level::L3));
        assert_eq!(single::<K4>(operand, Cached::Leaf(Level::L3)), None);
        let run = VpnRange::new(Vpn::new(4), 8);
        let Some(Operation::Range(operand)) = tlbi::ranges::<K64>(run, Asid::new(1), None).next() else { panic!() };
        assert_eq!(range::<K4>(operand, Cached::Walk), None);
    }
}
