//! What the library asks of a porter, for QEMU's `virt`.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use ebbtide::addr::Pfn;
use ebbtide::machine::Board;

use super::page::PageGranule;
use super::{mmu, percpu, sched, time, watchdog};

/// The machine's only board.
pub struct Virt;

// SAFETY: 1. the linear map shows all of RAM once, Normal Tagged where there is MTE, never executable, from
// `mmu::install` on and for ever; frames of the kernel's image are never given to the library. Bits 59:56 of its
// addresses are 0xf. 2. TPIDR_EL1 names the CPU's block, and EL1 is not preempted. 3. `sched::wait` sleeps only while
// the word holds `seen`, and `sched::wake` makes every sleeper runnable.
unsafe impl Board for Virt {
    type Granule = PageGranule;

    #[inline]
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        // SAFETY: the linear map's base is not zero, and no frame number of RAM carries the sum past 2^64.
        unsafe { NonNull::new_unchecked(mmu::linear(pfn.base::<PageGranule>().bytes())) }
    }

    #[inline]
    fn cpu(&self) -> usize {
        percpu::number()
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    #[inline]
    fn relax(&self) {
        watchdog::relax();
    }

    fn wait(&self, word: &AtomicU32, seen: u32) {
        sched::wait(word, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        sched::wake(word);
    }
}
