//! The kernel's only way to a program's memory.
//!
//! Copies run with the program's own rights and synchronous tag checks (`boot/uaccess.S`). A fault within them goes to
//! the address space like the program's own: it is resolved and the access repeated, or the copy ends and the caller
//! has [`Fault`], which a system call returns as -EFAULT. No kernel code dereferences a user address.

use core::ops::Range;
use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{ELR_EL1, Readable, SPSR_EL1, Writeable};
use ebbtide::space::Access;

use super::{cpu, percpu, process};

/// Part of the range is not the program's, or not with these rights, or has other tags than the pointer.
#[derive(Debug)]
pub struct Fault {
    /// Bytes copied before it.
    pub copied: usize,
}

unsafe extern "C" {
    fn copy_from_user_raw(to: *mut u8, from: u64, bytes: usize) -> usize;
    fn copy_to_user_raw(to: u64, from: *const u8, bytes: usize) -> usize;
    static user_copy_start: u8;
    static user_copy_end: u8;
    static user_copy_failed: u8;
    static user_copy_from_wide: u8;
    static user_copy_from_bytes: u8;
    static user_copy_to_wide: u8;
    static user_copy_to_bytes: u8;
}

/// The end of user addresses: 39 bits.
const USER_END: u64 = 1 << 39;
const TOP_BYTE: u64 = 0xff << 56;

/// The address of a range's start, without a tag, if it lies in the user's half. A tag in the pointer is allowed only
/// to a program that asked for the tagged address ABI (Linux's Documentation/arch/arm64/tagged-address-abi.rst).
///
/// # Errors
/// [`Fault`]: it does not.
pub fn range(pointer: u64, bytes: u64) -> Result<u64, Fault> {
    let tag_allowed = pointer & TOP_BYTE == 0 || process::tagged_addresses();
    let start = pointer & !TOP_BYTE;
    let is_user = tag_allowed && start <= USER_END && bytes <= USER_END - start;
    if is_user { Ok(start) } else { Err(Fault { copied: 0 }) }
}

/// Bytes from a pointer to the end of user addresses.
pub fn room(pointer: u64) -> u64 {
    USER_END.saturating_sub(pointer & !TOP_BYTE)
}

fn result(bytes: usize, left: usize) -> Result<(), Fault> {
    if left == 0 { Ok(()) } else { Err(Fault { copied: bytes - left }) }
}

/// Runs a copy, in which exceptions may be taken at EL1.
///
/// Such an exception overwrites ELR_EL1 and SPSR_EL1, where the vectors leave the program's own (`boot/vectors.S`).
fn copying(access: Access, copy: impl FnOnce() -> usize) -> usize {
    let (elr, spsr) = (ELR_EL1.get(), SPSR_EL1.get());
    cpu::check_user_copies(access);
    let left = copy();
    ELR_EL1.set(elr);
    SPSR_EL1.set(spsr);
    left
}

/// Runs `copies`, in which a copy ends at a page that is not there, or not with these rights: for those who hold a
/// spinning lock, and try again without it.
pub fn without_faults<R>(copies: impl FnOnce() -> R) -> R {
    // The CPU stays the same, as nothing in there sleeps.
    let no_faults = &percpu::here().no_faults;
    no_faults.store(1, Ordering::Relaxed);
    let result = copies();
    no_faults.store(0, Ordering::Relaxed);
    result
}

/// Copies from the program.
pub fn read(from: u64, to: &mut [u8]) -> Result<(), Fault> {
    range(from, to.len() as u64)?;
    // SAFETY: the destination is a slice; the source is in the user's half, where faults are resolved or end the copy.
    result(to.len(), copying(Access::Read, || unsafe { copy_from_user_raw(to.as_mut_ptr(), from, to.len()) }))
}

/// Copies to the program.
pub fn write(to: u64, from: &[u8]) -> Result<(), Fault> {
    range(to, from.len() as u64)?;
    // SAFETY: the source is a slice; the destination as in `read`.
    result(from.len(), copying(Access::Write, || unsafe { copy_to_user_raw(to, from.as_ptr(), from.len()) }))
}

/// Reads `N` words.
pub fn read_words<const N: usize>(from: u64) -> Result<[u64; N], Fault> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        read(from.wrapping_add(8 * index as u64), &mut bytes)?;
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}

/// Writes words.
pub fn write_words(to: u64, words: &[u64]) -> Result<(), Fault> {
    for (index, word) in words.iter().enumerate() {
        write(to.wrapping_add(8 * index as u64), &word.to_le_bytes())?;
    }
    Ok(())
}

/// Whether an exception at `pc` came from a copy.
pub fn is_copy(pc: u64) -> bool {
    let code = (&raw const user_copy_start).addr() as u64..(&raw const user_copy_end).addr() as u64;
    code.contains(&pc)
}

/// Where a copy continues after a fault at `pc` that stays: a wide step is repeated byte by byte, so that what lies
/// before the bad byte is copied; a byte ends it.
pub fn continuation(pc: u64) -> u64 {
    let at = |label: *const u8| label.addr() as u64;
    let wide: [(Range<u64>, u64); 2] = [
        (at(&raw const user_copy_from_wide)..at(&raw const user_copy_from_bytes), at(&raw const user_copy_from_bytes)),
        (at(&raw const user_copy_to_wide)..at(&raw const user_copy_to_bytes), at(&raw const user_copy_to_bytes)),
    ];
    wide.iter().find(|(steps, _)| steps.contains(&pc)).map_or(at(&raw const user_copy_failed), |&(_, bytes)| bytes)
}
