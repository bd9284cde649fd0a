//! The CPU's control registers: what EL0 may do, and how tags are checked there.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTKCTL_EL1, CPACR_EL1, ID_AA64ISAR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR1_EL1, Readable, SCTLR_EL1, TPIDRRO_EL0,
    VBAR_EL1, Writeable,
};
use ebbtide::machine::Tags;
use ebbtide::space::Access;

/// Bits of SCTLR_EL1 (Arm ARM, "SCTLR_EL1, System Control Register (EL1)").
mod sctlr {
    pub const M: u64 = 1 << 0;
    pub const C: u64 = 1 << 2;
    pub const SA: u64 = 1 << 3;
    pub const SA0: u64 = 1 << 4;
    pub const CP15BEN: u64 = 1 << 5;
    pub const SED: u64 = 1 << 8;
    pub const EOS: u64 = 1 << 11;
    pub const I: u64 = 1 << 12;
    pub const DZE: u64 = 1 << 14;
    pub const UCT: u64 = 1 << 15;
    pub const NTWE: u64 = 1 << 18;
    pub const TSCXT: u64 = 1 << 20;
    pub const EIS: u64 = 1 << 22;
    pub const SPAN: u64 = 1 << 23;
    pub const UCI: u64 = 1 << 26;
    pub const NTLSMD: u64 = 1 << 28;
    pub const LSMAOE: u64 = 1 << 29;
    pub const ITFSB: u64 = 1 << 37;
    pub const TCF0_SHIFT: u32 = 38;
    pub const ATA0: u64 = 1 << 42;
    pub const ATA: u64 = 1 << 43;
    /// MMU and caches, alignment of the stack pointers, exceptions synchronise, EL0 may maintain caches by address,
    /// read CTR_EL0, use DC ZVA and WFE. EL0's WFI traps: no interrupt would end it. SPAN is clear: an exception sets
    /// PSTATE.PAN.
    pub const WANTED: u64 =
        M | C | SA | SA0 | CP15BEN | SED | EOS | I | DZE | UCT | NTWE | TSCXT | EIS | UCI | NTLSMD | LSMAOE;
}

/// How EL0's accesses are checked against the tags of memory: SCTLR_EL1.TCF0.
#[derive(Copy, Clone, Eq, PartialEq)]
#[repr(u64)]
pub enum TagChecks {
    /// Not at all.
    None = 0,
    /// A wrong tag is an exception of the access.
    Sync = 1,
    /// A wrong tag is noted in TFSRE0_EL1, and the access done.
    Async = 2,
    /// A load like `Sync`, a store like `Async`.
    Asymm = 3,
}

impl TagChecks {
    /// The checks of a number, of which the low two bits count.
    pub const fn from_number(number: u64) -> Self {
        match number & 0b11 {
            0 => Self::None,
            1 => Self::Sync,
            2 => Self::Async,
            _ => Self::Asymm,
        }
    }

    /// Whether the outcome of this access' check is known only later, if it is checked at all.
    fn come_late(self, access: Access) -> bool {
        match self {
            Self::None | Self::Sync => false,
            Self::Async => true,
            Self::Asymm => access == Access::Write,
        }
    }
}

unsafe extern "C" {
    static vectors: u8;
    static late_vectors: u8;
}

/// ID_AA64PFR1_EL1.MTE: 1 is tag instructions at EL0, 2 adds storage for tags, 3 adds [`TagChecks::Asymm`].
fn mte_level() -> u64 {
    ID_AA64PFR1_EL1.get() >> 8 & 0xf
}

/// Whether memory has tags.
pub fn has_mte() -> bool {
    mte_level() >= 2
}

/// Whether there is [`TagChecks::Asymm`].
pub fn has_asymmetric_checks() -> bool {
    mte_level() >= 3
}

/// ID_AA64ISAR0_EL1.Atomic: the single-instruction atomics of Armv8.1.
pub fn has_lse() -> bool {
    ID_AA64ISAR0_EL1.get() >> 20 & 0xf >= 2
}

fn has_pan() -> bool {
    ID_AA64MMFR1_EL1.get() >> 20 & 0xf != 0
}

/// Sets what is the same for every program.
pub fn set_controls(tags: Tags) {
    let mut wanted = sctlr::WANTED;
    if !has_pan() {
        // RES1 without FEAT_PAN.
        wanted |= sctlr::SPAN;
    }
    if tags == Tags::Include {
        wanted |= sctlr::ATA | sctlr::ATA0;
        set_tag_seed(TAG_SEED);
        set_excluded_tags(0xffff);
        // It starts as anything.
        forget_wrong_tag();
    }
    SCTLR_EL1.set(wanted);
    // FP and SIMD at EL0 and EL1 (the page copies use q registers); SVE and SME trap.
    CPACR_EL1.set(0b11 << 20);
    // The virtual counter at EL0: CNTVCT_EL0, CNTFRQ_EL0.
    CNTKCTL_EL1.set(1 << 1);
    // EL0 can read it, and has nothing there.
    TPIDRRO_EL0.set(0);
    if has_pan() {
        // SAFETY: the kernel reaches user memory by LDTR and STTR alone, which PAN does not concern.
        unsafe { core::arch::asm!(".arch_extension pan", "msr pan, #1", options(nostack, preserves_flags)) };
    }
    barrier::isb(barrier::SY);
}

/// Where IRG's sequence starts (RGSR_EL1): the same tags in each run of the same program. A seed of 0 would ask QEMU's
/// host for randomness.
pub const TAG_SEED: u64 = 0x1234 << 8;

/// Clears what EL0's wrong tags are noted in. For a CPU with MTE2.
pub fn forget_wrong_tag() {
    // SAFETY: TFSRE0_EL1 exists with MTE2, which the caller has seen.
    unsafe { core::arch::asm!("msr S3_0_C5_C6_1, xzr", options(nostack, preserves_flags)) };
}

/// Sets where IRG's sequence is. For a CPU with MTE2.
pub fn set_tag_seed(seed: u64) {
    // SAFETY: RGSR_EL1 exists with MTE2, which the caller has seen, and concerns IRG alone.
    unsafe { core::arch::asm!("msr S3_0_C1_C0_5, {}", in(reg) seed, options(nostack, preserves_flags)) };
}

/// Where IRG's sequence is. For a CPU with MTE2.
pub fn tag_seed() -> u64 {
    let seed;
    // SAFETY: as above.
    unsafe { core::arch::asm!("mrs {}, S3_0_C1_C0_5", out(reg) seed, options(nostack, preserves_flags)) };
    seed
}

/// Whether EL0 may use tags: [`set_controls`] was told so.
pub fn tags_in_use() -> bool {
    SCTLR_EL1.get() & sctlr::ATA0 != 0
}

/// Sets the tags that IRG may not choose: GCR_EL1.Exclude, with RRND. For a CPU with MTE2.
pub fn set_excluded_tags(excluded: u16) {
    /// GCR_EL1.RRND: the order of the chosen tags is the CPU's own.
    const RRND: u64 = 1 << 16;
    let control = RRND | u64::from(excluded);
    // SAFETY: GCR_EL1 exists with MTE2, which the caller has seen, and concerns IRG alone.
    unsafe { core::arch::asm!("msr S3_0_C1_C0_6, {}", in(reg) control, options(nostack, preserves_flags)) };
}

/// Sets EL0's tag checks.
///
/// Where wrong tags may be noted instead of faulting, an exception takes them to TFSRE0_EL1 (SCTLR_EL1.ITFSB), and the
/// vectors look there.
pub fn set_tag_checks(checks: TagChecks) {
    let (table, synchronise) =
        if checks.come_late(Access::Write) { (&raw const late_vectors, sctlr::ITFSB) } else { (&raw const vectors, 0) };
    let others = SCTLR_EL1.get() & !(0b11 << sctlr::TCF0_SHIFT | sctlr::ITFSB);
    VBAR_EL1.set(table.addr() as u64);
    SCTLR_EL1.set(others | (checks as u64) << sctlr::TCF0_SHIFT | synchronise);
    barrier::isb(barrier::SY);
}

/// EL0's tag checks.
fn tag_checks() -> TagChecks {
    TagChecks::from_number(SCTLR_EL1.get() >> sctlr::TCF0_SHIFT)
}

/// Whether a wrong tag of EL0 is noted, where [`TagChecks`] come late.
pub fn wrong_tag_noted() -> bool {
    if !tag_checks().come_late(Access::Write) {
        return false;
    }
    let noted: u64;
    // SAFETY: TFSRE0_EL1 exists where there are such checks.
    unsafe { core::arch::asm!("mrs {}, S3_0_C5_C6_1", out(reg) noted, options(nostack, preserves_flags)) };
    noted & 1 != 0
}

/// Lets LDTR or STTR be checked as EL0's own loads or stores are, or not at all where a wrong tag would only be noted:
/// as on Linux, what the kernel does for a program never leads to an asynchronous fault. (PSTATE.TCO. EL1's other
/// accesses are never checked, as SCTLR_EL1.TCF is 0.)
pub fn check_user_copies(access: Access) {
    const TCO: u64 = 1 << 25;
    if has_mte() {
        let unchecked = if tag_checks().come_late(access) { TCO } else { 0 };
        // SAFETY: PSTATE.TCO exists with MTE2, and concerns tag checks alone.
        unsafe { core::arch::asm!("msr S3_3_C4_C2_7, {}", in(reg) unchecked, options(nostack, preserves_flags)) };
    }
}
