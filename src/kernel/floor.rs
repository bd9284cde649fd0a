//! The floor of each page operation, measured in the same boot as the operation itself.
//!
//! Only under exact instruction counts, where the counter's ticks are instructions.

use core::arch::asm;

#[cfg(feature = "selftest")]
use ebbtide::addr::{Pfn, PhysAddr};

use super::global::Late;
use super::layout::Ground;
use super::page::PAGE;
#[cfg(feature = "selftest")]
use super::page::PageGranule;
use super::{cpu, mmu};

unsafe extern "C" {
    fn floor_empty() -> u64;
    fn floor_zero(page: *mut u8) -> u64;
    fn floor_zero_tagged(page: *mut u8) -> u64;
    fn floor_copy(to: *mut u8, from: *const u8) -> u64;
    fn floor_save_tags(page: *mut u8, into: *mut u64) -> u64;
    fn floor_restore_tags(page: *mut u8, from: *const u64) -> u64;
    fn floor_exception() -> u64;
    fn floor_descriptor(entry: *mut u8) -> u64;
    fn floor_tlbi() -> u64;
    fn floor_scan_zero(page: *const u8) -> u64;
    fn floor_scan_word(page: *const u8) -> u64;
    fn floor_fill(page: *mut u8) -> u64;
    fn floor_copy_tagged(to: *mut u8, from: *const u8) -> u64;
}

struct Scratch {
    pages: [u64; 2],
    counter: Counter,
}

/// What the counter counts.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Counter {
    /// Time.
    Time,
    /// Instructions: QEMU runs with exact counts.
    Instructions,
}

static SCRATCH: Late<Scratch> = Late::new();

/// Sets two pages aside.
pub fn start(ground: &mut Ground, counter: Counter) {
    SCRATCH.set(Scratch { pages: [ground.take(PAGE), ground.take(PAGE)], counter });
}

/// Two frames that nothing else uses.
#[cfg(feature = "selftest")]
pub fn scratch() -> Option<[Pfn; 2]> {
    Some(SCRATCH.get()?.pages.map(|page| PhysAddr::new(page).pfn::<PageGranule>()))
}

/// Whether the counter counts instructions.
pub fn is_exact() -> bool {
    SCRATCH.get().is_some_and(|scratch| scratch.counter == Counter::Instructions)
}

/// The pointer with 0 in bits 59:56, which DC GZVA would write as the tag.
fn untagged(physical: u64) -> *mut u8 {
    mmu::linear(physical).map_addr(|address| address & !(0xf << 56))
}

/// Whether this CPU's blocks are those for which `boot/floors.S` is unrolled: DC ZVA of 64 bytes, LDGM of 256.
fn fits(kind: u64) -> bool {
    // DCZID_EL0: DZP prohibits DC ZVA and DC GZVA, BS is log2 of a block's words.
    let zva = || {
        let dczid: u64;
        // SAFETY: DCZID_EL0 is a read-only identification register.
        unsafe { asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack, preserves_flags)) };
        dczid & 0b1_1111 == 4
    };
    let tags = || {
        let gmid: u64;
        // SAFETY: GMID_EL1 (S3_1_C0_C0_4) is an identification register of MTE2, which has been seen.
        unsafe { asm!("mrs {}, S3_1_C0_C0_4", out(reg) gmid, options(nomem, nostack, preserves_flags)) };
        gmid & 0xf == 6
    };
    match kind {
        0 => zva(),
        1 => cpu::has_mte() && zva(),
        3 | 4 | 11 => cpu::has_mte() && tags(),
        _ => true,
    }
}

/// Instructions of one operation on 4 KiB; `None` for an unknown kind, without exact counts, or where the CPU has not
/// what the floor is made of.
pub fn measure(kind: u64) -> Option<u64> {
    let scratch = SCRATCH.get().filter(|scratch| scratch.counter == Counter::Instructions)?;
    let [first, second] = scratch.pages.map(untagged);
    if !fits(kind) {
        return None;
    }
    // SAFETY: the scratch pages are mapped, at least as large as what the functions work on, and nobody else's; 16
    // words of tags fit in one. The exception's handler only returns.
    let (spent, own) = unsafe {
        let spent = match kind {
            0 => floor_zero(first),
            1 => floor_zero_tagged(first),
            2 => floor_copy(first, second),
            3 => floor_save_tags(first, second.cast()),
            4 => floor_restore_tags(first, second.cast()),
            5 => floor_exception(),
            6 => floor_descriptor(first),
            7 => floor_tlbi(),
            8 => floor_scan_zero(first),
            9 => floor_scan_word(first),
            10 => floor_fill(first),
            11 => floor_copy_tagged(first, second),
            _ => return None,
        };
        (spent, floor_empty())
    };
    Some(spent.saturating_sub(own))
}
