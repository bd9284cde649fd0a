//! Stacks: slots of 128 KiB in the image, of which the upper half is mapped and the lower half is the guard.
//!
//! The vector for EL1's own exceptions tells a good stack pointer by one bit of it (`boot/vectors.S`), hence sizes
//! and alignment. The last slot is the emergency stack, on which an overflow is reported.

use core::ops::Range;

/// log2 of a stack's bytes, and of its guard's: a page of the largest granule. Boot needs the most, in an unoptimised
/// build: the library's root object is made on the stack.
pub const SHIFT: u32 = 16;
/// Bytes of a stack.
pub const STACK: usize = 1 << SHIFT;
const SLOT: usize = 2 * STACK;
/// Boot thread, two kernel threads, emergency.
const SLOTS: usize = 4;
/// The boot thread's stack.
pub const BOOT: usize = 0;

unsafe extern "C" {
    static stack_slots: u8;
}

/// The addresses of a slot's stack.
pub fn stack(slot: usize) -> Range<usize> {
    assert!(slot < SLOTS);
    let top = (&raw const stack_slots).addr() + (slot + 1) * SLOT;
    top - STACK..top
}

/// Every stack.
pub fn all() -> impl Iterator<Item = Range<usize>> {
    (0..SLOTS).map(stack)
}

/// The stack that holds an address.
pub fn holding(address: usize) -> Option<Range<usize>> {
    all().find(|stack| stack.contains(&address))
}
