//! Stacks: slots of 128 KiB, of which the upper half is mapped and the lower half is the guard.
//!
//! The vector for EL1's own exceptions tells a good stack pointer by one bit of it (`boot/vectors.S`), hence sizes and
//! alignment. Two slots lie in the image: boot's, on which the first CPU idles later, and its emergency stack, on which
//! an overflow is reported. The others lie in a part of the upper half of their own, where a guard takes addresses and
//! no memory (`mmu::install`): those of the tasks, as many as the machine's memory is good for, and two for each
//! further CPU.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::percpu::MOST_CPUS;
use super::{mmu, percpu};

/// log2 of a stack's bytes, and of its guard's: a page of the largest granule. Boot needs the most, in an unoptimised
/// build: the library's root object is made on the stack.
pub const SHIFT: u32 = 16;
/// Bytes of a stack.
pub const STACK: usize = 1 << SHIFT;
const SLOT: usize = 2 * STACK;
/// Boot, emergency.
const IMAGE_SLOTS: usize = 2;
/// Tasks at most. (With a space each they stay within the nodes that the library has from the start, so that none of
/// its memory counts as leaked after a program that had many.)
pub const MOST_TASKS: usize = 48;
const FEWEST_TASKS: usize = 8;

static TASKS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static stack_slots: u8;
}

/// The mapped half of a slot.
fn upper_half(first: usize, slot: usize) -> Range<usize> {
    let top = first + (slot + 1) * SLOT;
    top - STACK..top
}

/// The stacks in the image.
pub fn in_image() -> impl Iterator<Item = Range<usize>> {
    (0..IMAGE_SLOTS).map(|slot| upper_half((&raw const stack_slots).addr(), slot))
}

/// Decides how many tasks there can be: a 32nd of the memory is for their stacks.
pub fn set_memory(bytes: u64) {
    let tasks = (bytes >> 5 >> SHIFT) as usize;
    TASKS.store(tasks.clamp(FEWEST_TASKS, MOST_TASKS), Ordering::Relaxed);
}

/// How many tasks there can be.
pub fn tasks() -> usize {
    TASKS.load(Ordering::Relaxed)
}

/// The stack of a task.
pub fn of_task(number: usize) -> Range<usize> {
    assert!(number < tasks());
    upper_half(mmu::STACKS as usize, number)
}

/// The stack on which a CPU other than the first starts and idles, and its emergency stack.
pub fn of_cpu(number: usize) -> [Range<usize>; 2] {
    assert!((1..MOST_CPUS).contains(&number));
    [0, 1].map(|which| upper_half(mmu::STACKS as usize, MOST_TASKS + 2 * (number - 1) + which))
}

/// The stack that holds an address.
pub fn holding(address: usize) -> Option<Range<usize>> {
    let of_cpus = (1..percpu::count()).flat_map(of_cpu);
    in_image().chain((0..tasks()).map(of_task)).chain(of_cpus).find(|stack| stack.contains(&address))
}
