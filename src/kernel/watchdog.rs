//! The watchdog: a machine that makes no progress ends in a panic, with the state of each CPU, instead of hanging.
//!
//! Every CPU gives a sign of life, a [`beat`], where it can be interrupted: when it takes an interrupt at EL0, comes
//! out of its idle wait, or changes from one task to another. Its timer is never further away than a tick, a quarter of
//! the limit, so that a CPU which gives none for long is stuck at EL1. That is found in two ways:
//!
//! - by the CPU itself, if it spins: each turn of a wait for a lock or for another CPU goes through [`relax`], which
//!   looks at the counter now and then, and gives up when it has spun for the limit without a beat;
//! - by the others: at its own ticks each CPU looks whether every other one has given a sign since.
//!
//! Both count turns, or ticks, beside time: a machine that was itself stopped for a while is not taken for one that
//! hangs. That every task waits for another one, and for no time, is found at once, where the last CPU would go idle.
//! The times of a kernel task that only looks round, such as the collapser, do not count; that at which it has
//! something of a device does.

use core::sync::atomic::{AtomicU64, Ordering};

use super::percpu::{self, MOST_CPUS};
use super::{panic, time};

/// How long a CPU may go without a beat, in seconds of the virtual counter.
pub const LIMIT_SECONDS: u64 = 40;
/// The same while a self-test runs.
pub const SELFTEST_LIMIT_SECONDS: u64 = 2;
/// Ticks in that time: so many of one CPU another one may be silent.
const TICKS: u64 = 4;

/// Turns of a spinning loop between two looks at the counter.
const TURNS: u64 = 1 << 16;

/// The counter's way from one tick to the next; 0 until [`start`].
static TICK: AtomicU64 = AtomicU64::new(0);

/// What a CPU keeps, on its own.
#[repr(align(128))]
struct Watch {
    /// Turns of spinning since the last beat.
    turns: AtomicU64,
    /// The beat after which they were counted, and the counter's value at the first look.
    turns_of: AtomicU64,
    turns_from: AtomicU64,
    /// When it looks at the others next.
    next_look: AtomicU64,
    /// What it saw of them, and how often the same.
    seen: [AtomicU64; MOST_CPUS],
    same: [AtomicU64; MOST_CPUS],
}

static WATCHES: [Watch; MOST_CPUS] = [const {
    Watch {
        turns: AtomicU64::new(0),
        turns_of: AtomicU64::new(0),
        turns_from: AtomicU64::new(0),
        next_look: AtomicU64::new(0),
        seen: [const { AtomicU64::new(0) }; MOST_CPUS],
        same: [const { AtomicU64::new(0) }; MOST_CPUS],
    }
}; MOST_CPUS];

/// Begins to watch, with a limit of so many seconds.
pub fn start(limit_seconds: u64) {
    TICK.store(time::ticks_of(limit_seconds.saturating_mul(1_000_000_000)) / TICKS, Ordering::Relaxed);
}

/// A sign of life of this CPU.
#[inline]
pub fn beat() {
    let beats = &percpu::here().beats;
    beats.store(beats.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// The alarm that a CPU is to set that needs none before `wanted`.
pub fn alarm(wanted: Option<u64>) -> Option<u64> {
    let tick = TICK.load(Ordering::Relaxed);
    if tick == 0 {
        return wanted;
    }
    let watch = &WATCHES[percpu::number()];
    let mut next = watch.next_look.load(Ordering::Relaxed);
    let now = time::counter();
    if next <= now {
        if next != 0 {
            look_at_others(watch);
        }
        next = now + tick;
        watch.next_look.store(next, Ordering::Relaxed);
    }
    Some(wanted.map_or(next, |wanted| wanted.min(next)))
}

fn look_at_others(watch: &Watch) {
    for other in percpu::all().filter(|other| other.number() != percpu::number()) {
        let number = other.number();
        let beats = other.beats.load(Ordering::Relaxed);
        if watch.seen[number].swap(beats, Ordering::Relaxed) != beats {
            watch.same[number].store(0, Ordering::Relaxed);
        } else if watch.same[number].fetch_add(1, Ordering::Relaxed) >= TICKS {
            panic!("lockup: CPU {number} has not come by for {TICKS} ticks of another one");
        }
    }
}

/// One turn of a wait for another CPU, which is to go on: also under an emulator that runs one at a time.
///
/// By way of `boot/switch.S`, which keeps all registers: those who find their lock free shall not pay for this.
#[inline]
pub fn relax() {
    // SAFETY: calls `spin_turn` below, with every register but the link kept.
    unsafe { core::arch::asm!("bl keep_registers_and_turn", out("x30") _) };
}

#[unsafe(no_mangle)]
extern "C" fn spin_turn() {
    // SAFETY: a hint without operands.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
    let watch = &WATCHES[percpu::number()];
    let turns = watch.turns.load(Ordering::Relaxed) + 1;
    watch.turns.store(turns, Ordering::Relaxed);
    if turns.is_multiple_of(TURNS) {
        look_at_time(watch, turns);
    }
}

/// The same for the library's spinning locks.
#[unsafe(no_mangle)]
fn ebbtide_spin() {
    relax();
}

#[cold]
fn look_at_time(watch: &Watch, turns: u64) {
    panic::stop_if_asked();
    let (now, beats) = (time::counter(), percpu::here().beats.load(Ordering::Relaxed));
    if turns == TURNS || watch.turns_of.swap(beats, Ordering::Relaxed) != beats {
        watch.turns_of.store(beats, Ordering::Relaxed);
        watch.turns_from.store(now, Ordering::Relaxed);
        watch.turns.store(TURNS, Ordering::Relaxed);
        return;
    }
    let limit = TICK.load(Ordering::Relaxed) * TICKS;
    if limit != 0 && now.saturating_sub(watch.turns_from.load(Ordering::Relaxed)) > limit {
        panic!("lockup: a lock is spun on for {turns} turns");
    }
}
