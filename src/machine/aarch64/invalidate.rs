//! TLB invalidation: which instruction, and how many of them.

use core::arch::asm;

use aarch64_cpu::registers::{ID_AA64MMFR2_EL1, Readable};

use crate::addr::VpnRange;
use crate::granule::{Granule, Level};
use crate::machine::tlbi::{self, Operation};
use crate::machine::{Asid, Cached, Features, Reach};

macro_rules! issue {
    ($operation:literal $(, $operand:expr)?) => {
        // SAFETY: an invalidation removes only what a walk brings back. Not `nomem`: the compiler must keep the
        // stores to tables on their side of it.
        unsafe {
            asm!(
                ".arch_extension tlb-rmi", concat!("tlbi ", $operation $(, issue!(@ $operand))?),
                $(in(reg) $operand,)? options(nostack, preserves_flags)
            )
        }
    };
    (@ $operand:expr) => { ", {}" };
}

/// What this CPU's TLBI instructions take.
pub(super) struct Invalidate {
    /// Of which FEAT_TLBIRANGE matters here.
    features: Features,
    /// The level hint of a single operation is bits 47:44; cleared where there is no FEAT_TTL.
    hint_mask: u64,
}

impl Invalidate {
    /// Reads what the CPU has; range operations are used where `features` has them.
    pub(super) fn probe(features: Features) -> Self {
        let has_ttl = ID_AA64MMFR2_EL1.get() >> 48 & 0xf >= 1;
        Self { features, hint_mask: if has_ttl { !0 } else { !(0xf << 44) } }
    }

    /// Invalidates a run of pages.
    #[inline]
    pub(super) fn pages<G: Granule>(&self, run: VpnRange, asid: Asid, cached: Cached, reach: Reach) {
        if run.pages() == 1 {
            self.page::<G>(run.start().number(), asid, cached, reach);
        } else {
            self.run::<G>(run, asid, cached, reach);
        }
    }

    fn run<G: Granule>(&self, run: VpnRange, asid: Asid, cached: Cached, reach: Reach) {
        if tlbi::is_whole_space(run.pages(), self.features) {
            self.space(asid, reach);
        } else if self.features.contains(Features::TLB_RANGE) {
            for operation in tlbi::ranges::<G>(run, asid, leaf_level(cached)) {
                match operation {
                    Operation::Range(operand) => range(operand, cached, reach),
                    Operation::Single(page) => self.page::<G>(page, asid, cached, reach),
                }
            }
        } else {
            for page in run.start().number()..run.end().number() {
                self.page::<G>(page, asid, cached, reach);
            }
        }
    }

    #[inline]
    fn page<G: Granule>(&self, page: u64, asid: Asid, cached: Cached, reach: Reach) {
        let operand = tlbi::single::<G>(page, asid, leaf_level(cached)) & self.hint_mask;
        single(operand, cached, reach);
    }

    /// Invalidates all of an address space.
    #[inline]
    pub(super) fn space(&self, asid: Asid, reach: Reach) {
        let operand = tlbi::asid_field(asid);
        match reach {
            Reach::Broadcast => issue!("aside1is", operand),
            Reach::Local => issue!("aside1", operand),
        }
    }

    /// Invalidates everything.
    pub(super) fn all(&self, reach: Reach) {
        match reach {
            Reach::Broadcast => issue!("vmalle1is"),
            Reach::Local => issue!("vmalle1"),
        }
    }
}

#[inline]
fn leaf_level(cached: Cached) -> Option<Level> {
    match cached {
        Cached::Leaf(level) => Some(level),
        Cached::Walk => None,
    }
}

#[inline]
fn single(operand: u64, cached: Cached, reach: Reach) {
    match (cached, reach) {
        (Cached::Leaf(_), Reach::Broadcast) => issue!("vale1is", operand),
        (Cached::Leaf(_), Reach::Local) => issue!("vale1", operand),
        (Cached::Walk, Reach::Broadcast) => issue!("vae1is", operand),
        (Cached::Walk, Reach::Local) => issue!("vae1", operand),
    }
}

#[inline]
fn range(operand: u64, cached: Cached, reach: Reach) {
    match (cached, reach) {
        (Cached::Leaf(_), Reach::Broadcast) => issue!("rvale1is", operand),
        (Cached::Leaf(_), Reach::Local) => issue!("rvale1", operand),
        (Cached::Walk, Reach::Broadcast) => issue!("rvae1is", operand),
        (Cached::Walk, Reach::Local) => issue!("rvae1", operand),
    }
}
