//! The virtual counter. On QEMU with `-icount shift=0` and a counter of 1 GHz, one tick is one guest
//! instruction, at EL0 and EL1 together, and readings repeat exactly. Without icount a tick is a nanosecond
//! of the host's time.

/// The frequency at which, under icount, a tick is an instruction.
pub const INSTRUCTION_HZ: u64 = 1_000_000_000;

/// Ticks since boot. The ISB keeps the reading from moving before earlier instructions.
#[inline]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "aarch64")]
    let now = {
        let now;
        // SAFETY: reads a counter. Without `nomem` the compiler keeps memory accesses on their side of it.
        unsafe { core::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) now, options(nostack)) };
        now
    };
    #[cfg(not(target_arch = "aarch64"))]
    let now = 0;
    now
}

/// Ticks in a second.
pub fn frequency() -> u64 {
    #[cfg(target_arch = "aarch64")]
    let hz = {
        let hz;
        // SAFETY: reads a constant.
        unsafe { core::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack)) };
        hz
    };
    #[cfg(not(target_arch = "aarch64"))]
    let hz = 0;
    hz
}

/// The ticks that `work` takes, with those of reading the clock in them.
#[inline]
pub fn time(work: impl FnOnce()) -> u64 {
    let begin = ticks();
    work();
    ticks() - begin
}

/// The ticks of an empty interval: what to take off a reading of [`time`].
pub fn overhead() -> u64 {
    (0..8).map(|_| time(|| ())).min().unwrap_or(0)
}
