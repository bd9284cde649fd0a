//! Collapse in the background: a task that looks for groups of single pages which could be one folio again, and makes
//! them one ([`Space::collapse`](ebbtide::Space::collapse)).
//!
//! **Bounded.** In a round all programs' groups are looked at, one after the other, and [`GROUPS_PER_SECOND`] of them,
//! however much memory there is: the task sleeps after each one, so that it never keeps a program from its CPU for
//! longer than one group takes. Where a large folio is not to be had nothing is made way for it. The counter
//! `collapses` says how many were made.
//!
//! Programs start and end between two groups, not while one is looked at.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ebbtide::granule::Granule;

use super::page::PageGranule;
use super::process::collapse_group;
use super::sched::{self, TaskId};
use super::time;

/// The copies of so many bytes take half a million instructions, less than a thousandth of what a CPU does in a second.
const BYTES_PER_SECOND: u64 = 4 << 20;

/// 64 of 16 pages of 4 KiB; 2 of the 2 MiB that a group has with larger pages.
const GROUPS_PER_SECOND: u64 = BYTES_PER_SECOND / PageGranule::GROUP_BYTES as u64;
const _: () = assert!(GROUPS_PER_SECOND > 0);

/// Time from the beginning of a round to that of the next, if it takes no longer, unless the command line says another:
/// long beside what a program takes to use what it has just brought in.
pub const EVERY_MS: u64 = 10_000;

static GAP_MS: AtomicU64 = AtomicU64::new(0);

/// Starts the task, with a round every `gap_ms` milliseconds; none when that is 0.
pub fn start(gap_ms: u64) {
    if gap_ms > 0 {
        GAP_MS.store(gap_ms, Ordering::Relaxed);
        sched::spawn(collapser);
    }
}

extern "C" fn collapser() -> ! {
    let round = time::ticks_of(GAP_MS.load(Ordering::Relaxed).saturating_mul(1_000_000));
    let pause = time::ticks_of(1_000_000_000 / GROUPS_PER_SECOND);
    let mut next_round = time::counter().saturating_add(round);
    loop {
        sleep_until(next_round);
        next_round = time::counter().saturating_add(round);
        let mut from = TaskId::new(0);
        while let Some(next) = collapse_group(from) {
            from = next;
            sleep_until(time::counter() + pause);
        }
    }
}

/// Not as for a device: nothing comes of it for anybody else.
fn sleep_until(at: u64) {
    let nobody_wakes = AtomicU32::new(0);
    while time::counter() < at {
        sched::wait_breakable(&nobody_wakes, 0, Some(at));
    }
}
