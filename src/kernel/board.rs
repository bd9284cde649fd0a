//! What the library asks of a porter, for QEMU's `virt`.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use ebbtide::addr::Pfn;
use ebbtide::machine::Board;

use super::page::PageGranule;
use super::{mmu, sched, time};

/// The machine's only board.
pub struct Virt;

// SAFETY: 1. the linear map shows all of RAM once, Normal Tagged where there is MTE, never executable, from
// `mmu::install` on and for ever; frames of the kernel's image are never given to the library. Bits 59:56 of its
// addresses are 0xf. 2. One CPU is in use. 3. `sched::wait` sleeps only while the word holds `seen`, and
// `sched::wake` makes every sleeper runnable.
unsafe impl Board for Virt {
    type Granule = PageGranule;

    #[inline]
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        // SAFETY: the linear map's base is not zero, and no frame number of RAM carries the sum past 2^64.
        unsafe { NonNull::new_unchecked(mmu::linear(pfn.base::<PageGranule>().bytes())) }
    }

    #[inline]
    fn cpu(&self) -> usize {
        0
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    #[inline]
    fn relax(&self) {
        // SAFETY: a hint without operands.
        unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
    }

    fn wait(&self, word: &AtomicU32, seen: u32) {
        sched::wait(word, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        sched::wake(word);
    }
}
