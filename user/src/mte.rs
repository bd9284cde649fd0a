//! Tagged pointers and the tag instructions of EL0. Tags are given explicitly (no IRG): what a granule must
//! hold is a formula of the program's, never chance.
//!
//! A bare-metal build has no `mte` target feature, so each instruction is an `asm!` with the extension
//! switched on for its own line. On a CPU without MTE the programs do not come here.

use crate::{GRANULES, Tags};

const TAG_SHIFT: u32 = 56;

/// `address` with the logical tag `tag`.
#[inline]
pub fn tagged(address: usize, tag: u8) -> usize {
    address & !(0xf << TAG_SHIFT) | usize::from(tag & 15) << TAG_SHIFT
}

/// Gives the granule at `address` the tag `tag`.
///
/// # Safety
/// `address` is 16-byte aligned, in memory of the caller's that is mapped with tags and writable.
#[inline]
pub unsafe fn set_tag(address: usize, tag: u8) {
    let _pointer = tagged(address, tag);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: changes a tag of the caller's memory, no data.
    unsafe {
        core::arch::asm!(
            ".arch_extension memtag",
            "stg {0}, [{0}]",
            in(reg) _pointer,
            options(nostack),
        );
    }
}

/// Gives the two granules from `address` on the tag `tag`.
///
/// # Safety
/// As for [`set_tag`], for both granules.
#[inline]
unsafe fn set_tag_pair(address: usize, tag: u8) {
    let _pointer = tagged(address, tag);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: changes two tags of the caller's memory, no data.
    unsafe {
        core::arch::asm!(
            ".arch_extension memtag",
            "st2g {0}, [{0}]",
            in(reg) _pointer,
            options(nostack),
        );
    }
}

/// The tag of the granule at `address`.
///
/// # Safety
/// `address` is in memory of the caller's that is mapped and readable.
#[inline]
pub unsafe fn tag(address: usize) -> u8 {
    #[cfg(target_arch = "aarch64")]
    let pointer = {
        let mut pointer = address;
        // SAFETY: reads a tag; LDG replaces bits 59:56 of the register.
        unsafe {
            core::arch::asm!(
                ".arch_extension memtag",
                "ldg {0}, [{0}]",
                inout(reg) pointer,
                options(nostack, readonly),
            );
        }
        pointer
    };
    #[cfg(not(target_arch = "aarch64"))]
    let pointer = address;
    (pointer >> TAG_SHIFT) as u8 & 15
}

/// Gives every granule of the page at `page` its tag, two at once where they are equal.
///
/// # Safety
/// As for [`set_tag`], for the whole page.
pub unsafe fn set_tags(page: usize, tags: &Tags) {
    for (i, pair) in tags.chunks_exact(2).enumerate() {
        let address = page + i * 32;
        // SAFETY: inside the page that the caller promises.
        unsafe {
            if pair[0] == pair[1] {
                set_tag_pair(address, pair[0]);
            } else {
                set_tag(address, pair[0]);
                set_tag(address + 16, pair[1]);
            }
        }
    }
}

/// How many granules of the page at `page` do not have their tag, and the first of them.
///
/// # Safety
/// As for [`tag`], for the whole page.
pub unsafe fn wrong_tags(page: usize, tags: &Tags) -> (usize, Option<usize>) {
    let (mut wrong, mut first) = (0, GRANULES);
    for (granule, &want) in tags.iter().enumerate() {
        // SAFETY: inside the page that the caller promises.
        if unsafe { tag(page + granule * 16) } != want {
            wrong += 1;
            first = first.min(granule);
        }
    }
    (wrong, (wrong != 0).then_some(first))
}
