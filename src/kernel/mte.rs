//! Memory tags: the boot-time proof that this machine keeps one per granule, and the look at one tag for a report.

use core::arch::asm;

use aarch64_cpu::registers::{PAR_EL1, Readable};

use super::layout::Ground;
use super::mmu;

/// Tags of two granules of one page, set and read back.
///
/// QEMU before 8.0 uses the page's first tag for every granule of the page: everything seems to work until a page has
/// two tags, so it is refused here.
pub fn self_check(ground: &mut Ground) -> Result<(), &'static str> {
    let page = mmu::linear(ground.take(4096));
    let (first, third) = (with_tag(page, 3), with_tag(page.wrapping_add(32), 7));
    // SAFETY: the page is Normal Tagged memory of the linear map and nobody else's.
    let found = unsafe {
        asm!(
            ".arch_extension memtag", "stg {0}, [{0}]", "stg {1}, [{1}]",
            in(reg) first, in(reg) third, options(nostack, preserves_flags)
        );
        load_tag(page)
    };
    match found {
        3 => Ok(()),
        7 => Err("MTE of this QEMU is broken (one tag for a whole page): QEMU 8.0 or newer is needed, or --no-mte"),
        _ => Err("memory tags do not keep their values on this machine: use --no-mte"),
    }
}

fn with_tag(at: *mut u8, tag: usize) -> *mut u8 {
    at.map_addr(|address| address & !(0xf << 56) | tag << 56)
}

/// The allocation tag at a kernel address.
///
/// # Safety
/// Mapped, on a CPU with MTE2.
unsafe fn load_tag(at: *const u8) -> u8 {
    let mut found = at.addr();
    // SAFETY: the caller's promise.
    unsafe {
        asm!(".arch_extension memtag", "ldg {0}, [{0}]", inout(reg) found, options(nostack, preserves_flags, readonly))
    };
    (found >> 56 & 0xf) as u8
}

/// The allocation tag at a program's address, if it is mapped readable there.
pub fn tag_of_user(address: u64) -> Option<u8> {
    // SAFETY: an address translation, as EL0 would read: it changes PAR_EL1 and perhaps an access flag.
    unsafe { asm!("at s1e0r, {}", "isb", in(reg) address, options(nostack, preserves_flags)) };
    let result = PAR_EL1.get();
    if result & 1 != 0 {
        return None;
    }
    let physical = result & 0x000f_ffff_ffff_f000 | address & 0xfff;
    // SAFETY: the frame is one of the program's, in the linear map; the caller reports a tag check fault, so there is
    // MTE.
    Some(unsafe { load_tag(mmu::linear(physical)) })
}
