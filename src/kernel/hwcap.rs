//! AT_HWCAP and AT_HWCAP2: what EL0 can use of this CPU (Linux's Documentation/arch/arm64/elf_hwcaps.rst).
//!
//! Only what works here: no SVE and SME (they trap), no pointer authentication (its keys are not set), no MRS
//! emulation.

use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, ID_AA64ISAR1_EL1, ID_AA64MMFR2_EL1, ID_AA64PFR0_EL1, Readable};
use ebbtide::machine::Features;

use super::cpu;

/// A field of an identification register: lowest bit, the least value that has the feature, bit of the capability word.
type Field = (u32, u64, u32);

const ISAR0: &[Field] = &[
    (4, 1, 3),   // AES
    (4, 2, 4),   // PMULL
    (8, 1, 5),   // SHA1
    (12, 1, 6),  // SHA2
    (12, 2, 21), // SHA512
    (16, 1, 7),  // CRC32
    (20, 2, 8),  // ATOMICS
    (28, 1, 12), // ASIMDRDM
    (32, 1, 17), // SHA3
    (36, 1, 18), // SM3
    (40, 1, 19), // SM4
    (44, 1, 20), // ASIMDDP
    (48, 1, 23), // ASIMDFHM
    (52, 1, 27), // FLAGM
];
const ISAR0_2: &[Field] = &[(52, 2, 7), (60, 1, 16)]; // FLAGM2, RNG
const ISAR1: &[Field] = &[
    (0, 1, 16),  // DCPOP
    (12, 1, 13), // JSCVT
    (16, 1, 14), // FCMA
    (20, 1, 15), // LRCPC
    (20, 2, 26), // ILRCPC
    (36, 1, 29), // SB
];
const ISAR1_2: &[Field] = &[(0, 2, 0), (32, 1, 8), (44, 1, 14), (52, 1, 13)]; // DCPODP, FRINT, BF16, I8MM
const MMFR2: &[Field] = &[(32, 1, 25)]; // USCAT
const PFR0: &[Field] = &[(48, 1, 24)]; // DIT

const FP: u64 = 1 << 0;
const ASIMD: u64 = 1 << 1;
const FPHP: u64 = 1 << 9;
const ASIMDHP: u64 = 1 << 10;
const MTE2: u64 = 1 << 18;
const MTE3: u64 = 1 << 22;

fn bits(register: u64, fields: &[Field]) -> u64 {
    let has = |&&(shift, least, _): &&Field| register >> shift & 0xf >= least;
    fields.iter().filter(has).fold(0, |word, &(_, _, bit)| word | 1 << bit)
}

/// AT_HWCAP.
pub fn first() -> u64 {
    let pfr0 = ID_AA64PFR0_EL1.get();
    // These two are signed: 0xf is "absent", 1 adds half precision.
    let with_half = |shift: u32, base: u64, half: u64| match pfr0 >> shift & 0xf {
        0xf => 0,
        0 => base,
        _ => base | half,
    };
    with_half(16, FP, FPHP)
        | with_half(20, ASIMD, ASIMDHP)
        | bits(ID_AA64ISAR0_EL1.get(), ISAR0)
        | bits(ID_AA64ISAR1_EL1.get(), ISAR1)
        | bits(ID_AA64MMFR2_EL1.get(), MMFR2)
        | bits(pfr0, PFR0)
}

/// AT_HWCAP2.
pub fn second(features: Features) -> u64 {
    let asymmetric = if cpu::has_asymmetric_checks() { MTE3 } else { 0 };
    let tags = if features.contains(Features::MTE) { MTE2 | asymmetric } else { 0 };
    tags | bits(ID_AA64ISAR0_EL1.get(), ISAR0_2) | bits(ID_AA64ISAR1_EL1.get(), ISAR1_2)
}
