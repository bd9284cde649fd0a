//! Time, from the virtual counter.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, Readable};

/// Nanoseconds since the machine started.
pub fn now_ns() -> u64 {
    ns_of(CNTVCT_EL0.get())
}

/// Nanoseconds of so many ticks of the counter.
pub fn ns_of(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(CNTFRQ_EL0.get().max(1))) as u64
}

/// The counter.
pub fn counter() -> u64 {
    CNTVCT_EL0.get()
}

/// How far the counter comes in so many nanoseconds, rounded up.
pub fn ticks_of(ns: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(CNTFRQ_EL0.get().max(1));
    u64::try_from(ticks.div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
}

/// Nanoseconds of one tick, at least 1.
pub fn resolution_ns() -> u64 {
    (1_000_000_000 / CNTFRQ_EL0.get().max(1)).max(1)
}

/// The counter, not before what stands in front of it and not after what follows.
#[inline]
pub fn ticks() -> u64 {
    barrier::isb(barrier::SY);
    let ticks = CNTVCT_EL0.get();
    barrier::isb(barrier::SY);
    ticks
}
