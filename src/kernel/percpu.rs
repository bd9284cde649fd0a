//! What each CPU has for itself: a block of its own, which TPIDR_EL1 names.
//!
//! The first words are laid out for `boot/vectors.S` and `boot/head.S`, which find them by their offsets. A CPU writes
//! its own block, with two exceptions: whoever starts a CPU fills its block before, and [`PerCpu::work`] gets bits from
//! others, which the scheduler's lock orders.
//!
//! A CPU's number is read where it is needed and never kept across a wait: the task may go on on another CPU.

use core::arch::asm;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::process::Memory;

/// CPUs at most: as many as a GICv2 serves.
pub const MOST_CPUS: usize = 8;

/// In [`PerCpu::task`]: none runs.
pub const NO_TASK: u32 = u32::MAX;

/// log2 of the bytes of a block.
const SHIFT: u32 = 9;

/// A CPU's block.
#[repr(C, align(512))]
pub struct PerCpu {
    /// What is to be done before the return to EL0: see [`sched::work`](super::sched::work).
    pub work: AtomicU32,
    /// The CPU's number.
    number: AtomicU32,
    /// The memory of the running program: for the way of a fault, on which each instruction counts.
    pub memory: AtomicPtr<Memory>,
    /// The top of the stack on which an overflow and what else is not expected are reported.
    emergency_stack: AtomicUsize,
    /// The top of the stack on which the CPU starts and idles.
    stack: AtomicUsize,
    /// The root of the kernel's table, for the start.
    root: AtomicU64,
    /// The number of the running task, or [`NO_TASK`].
    pub task: AtomicU32,
    /// MPIDR_EL1's affinity fields.
    affinity: AtomicU64,
    /// Whether user copies may not bring pages in: see [`uaccess`](super::uaccess).
    pub no_faults: AtomicU32,
    /// Whether the CPU has come up.
    pub running: AtomicU32,
    /// How often the CPU had nothing to do and waited for an interrupt.
    pub idle_wfi: AtomicU64,
    /// For how many ticks of the counter, and since when it waits now; 0 for not at all.
    idle_ticks: AtomicU64,
    idle_since: AtomicU64,
    /// How often it came by where it can be interrupted: see [`watchdog`](super::watchdog).
    pub beats: AtomicU64,
    /// Its frame pointer where it stopped for another one's panic.
    pub stopped_at: AtomicUsize,
}

const _: () = assert!(size_of::<PerCpu>() == 1 << SHIFT);
// What the assembly knows.
const _: () = assert!(offset_of!(PerCpu, work) == 0 && offset_of!(PerCpu, emergency_stack) == 16);
const _: () = assert!(offset_of!(PerCpu, stack) == 24 && offset_of!(PerCpu, root) == 32);

impl PerCpu {
    const fn new(number: usize) -> Self {
        Self {
            work: AtomicU32::new(0),
            number: AtomicU32::new(number as u32),
            memory: AtomicPtr::new(ptr::null_mut()),
            emergency_stack: AtomicUsize::new(0),
            stack: AtomicUsize::new(0),
            root: AtomicU64::new(0),
            task: AtomicU32::new(NO_TASK),
            affinity: AtomicU64::new(0),
            no_faults: AtomicU32::new(0),
            running: AtomicU32::new(0),
            idle_wfi: AtomicU64::new(0),
            idle_ticks: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            stopped_at: AtomicUsize::new(0),
        }
    }

    /// Fills what the CPU needs to start: its affinity, the tops of its two stacks, the kernel's root table.
    pub fn prepare(&self, affinity: u64, stack: usize, emergency_stack: usize, root: u64) {
        self.affinity.store(affinity, Ordering::Relaxed);
        self.stack.store(stack, Ordering::Relaxed);
        self.emergency_stack.store(emergency_stack, Ordering::Relaxed);
        self.root.store(root, Ordering::Relaxed);
    }

    /// Notes that it waits for an interrupt, from a value of the counter on.
    pub fn begin_idling(&self, now: u64) {
        self.idle_wfi.fetch_add(1, Ordering::Relaxed);
        self.idle_since.store(now, Ordering::Relaxed);
    }

    /// Notes that it does not any more.
    pub fn end_idling(&self, now: u64) {
        let since = self.idle_since.swap(0, Ordering::Relaxed);
        self.idle_ticks.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
    }

    /// For how long it has waited until now, in ticks of the counter.
    pub fn idle_ticks(&self, now: u64) -> u64 {
        let waits = match self.idle_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        };
        self.idle_ticks.load(Ordering::Relaxed) + waits
    }

    /// Whether it has stopped for another one's panic.
    pub fn has_stopped(&self) -> bool {
        self.stopped_at.load(Ordering::Acquire) != 0
    }

    /// The top of its emergency stack.
    pub fn emergency_stack(&self) -> usize {
        self.emergency_stack.load(Ordering::Relaxed)
    }

    /// MPIDR_EL1's affinity fields.
    pub fn affinity(&self) -> u64 {
        self.affinity.load(Ordering::Relaxed)
    }

    /// The CPU's number.
    pub fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed) as usize
    }
}

/// The blocks, by the CPUs' numbers. `boot/head.S` gives the first one to the CPU that boots.
#[unsafe(no_mangle)]
static CPUS: [PerCpu; MOST_CPUS] = {
    let mut cpus = [const { PerCpu::new(0) }; MOST_CPUS];
    let mut number = 1;
    while number < MOST_CPUS {
        cpus[number] = PerCpu::new(number);
        number += 1;
    }
    cpus
};

/// CPUs in use.
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// The calling CPU's block.
#[inline]
pub fn here() -> &'static PerCpu {
    let block: *const PerCpu;
    // SAFETY: reads a register. Not `pure`: it may differ after a wait.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) block, options(nomem, nostack, preserves_flags)) };
    // SAFETY: each CPU's TPIDR_EL1 names its block of `CPUS`, from before its first Rust code on.
    unsafe { &*block }
}

/// The calling CPU's number.
#[inline]
pub fn number() -> usize {
    here().number()
}

/// The block of a CPU.
pub fn of(number: usize) -> &'static PerCpu {
    &CPUS[number]
}

/// Those of the CPUs in use.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    CPUS[..count()].iter()
}

/// How many CPUs are in use: their numbers are those below.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Counts one more CPU, which has come up. Called at boot.
pub fn add() {
    COUNT.fetch_add(1, Ordering::Release);
}
