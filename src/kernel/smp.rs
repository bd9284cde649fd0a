//! The other CPUs: PSCI starts each at `secondary_entry` (`boot/head.S`), one after the other.

use core::sync::atomic::{AtomicU64, Ordering};

use ebbtide::machine::{Machine, Tags};

use super::dt::Tree;
use super::percpu;
use super::{cannot_start, cpu, global, interrupt, mmu, sched, stack, time, watchdog};

unsafe extern "C" {
    fn secondary_entry();
}

/// What the CPUs that start are to know: whether tags are in use, in bit 0, and above that how many redistributors
/// there are.
static SETTING: AtomicU64 = AtomicU64::new(0);

/// Time for a CPU to come up: an emulator may have much else to do.
const PATIENCE_NS: u64 = 60_000_000_000;

/// Starts every CPU of the device tree but this one, which is the first.
pub fn start(tree: &Tree, tags: Tags) {
    percpu::here().prepare(tree.cpus[0], 0, percpu::here().emergency_stack(), 0);
    SETTING.store((tree.cpus_present as u64) << 1 | u64::from(tags == Tags::Include), Ordering::Relaxed);
    for (number, &affinity) in tree.cpus.iter().enumerate().skip(1) {
        let block = percpu::of(number);
        let [stack, emergency] = stack::of_cpu(number);
        block.prepare(affinity, stack.end, emergency.end, mmu::kernel_root());
        mmu::clean(block);
        let entry = mmu::physical(secondary_entry as *const ());
        if let Err(error) = tree.psci.start_cpu(affinity, entry, mmu::physical(block)) {
            cannot_start(format_args!("CPU {number} cannot be started: {error}"));
        }
        let until = time::counter().saturating_add(time::ticks_of(PATIENCE_NS));
        while block.running.load(Ordering::Acquire) == 0 {
            if time::counter() > until {
                cannot_start(format_args!("CPU {number} does not come up"));
            }
            watchdog::relax();
            watchdog::beat();
        }
        percpu::add();
    }
}

/// Called by `boot/head.S` on each CPU but the first, on its own stack, in the final map.
#[unsafe(no_mangle)]
extern "C" fn secondary_main() -> ! {
    let setting = SETTING.load(Ordering::Relaxed);
    mmu::leave_early_map();
    cpu::set_controls(if setting & 1 != 0 { Tags::Include } else { Tags::Ignore });
    let mm = global::mm();
    if let Err(error) = mm.machine().start_cpu() {
        cannot_start(format_args!("CPU {} cannot be used: {error:?}", mm.machine().cpu()));
    }
    mm.deactivate();
    if let Err(why) = interrupt::start_cpu((setting >> 1) as usize) {
        cannot_start(format_args!("{why}"));
    }
    percpu::here().running.store(1, Ordering::Release);
    sched::idle()
}
