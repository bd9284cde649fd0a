//! Who gets which part of RAM.
//!
//! QEMU's RAM is the managed machine, `memory=MIB` from the base of RAM, and above it what only the RAM swap devices
//! use: their pages, then their records. The managed machine pays for everything else itself: image, stacks and heap,
//! the copy of the initrd, the kernel's tables, the frame records.
//!
//! ```text
//! RAM base   +2 MiB                                        managed end          swap end      RAM end
//! | free ... | image | initrd | tables | frame records | free ... | swap pages ...    | swap records |
//!                    `---- Ground gives these out ----'
//! ```
//!
//! QEMU puts initrd and device tree anywhere in RAM. Both are read or copied to their place before the first frame is
//! given to the library, so neither is in anybody's way.

use core::fmt;
use core::ptr::NonNull;

use ebbtide::addr::{PfnRange, PhysAddr};
use ebbtide::frame::FrameRecord;
use ebbtide::machine::{Machine, Tags};
use ebbtide::reclaim::Replacement;
use ebbtide::{Memory, Mm};

use super::bootargs::BootArgs;
use super::dt::Tree;
use super::page::{PAGE, PageGranule};
use super::{Hardware, cannot_start, global, initrd, mmu, stack};

const MIB: u64 = 1 << 20;

/// Page-aligned runs of RAM.
pub struct Plan {
    /// All of RAM.
    pub ram: PfnRange,
    /// What the library manages.
    pub managed: PfnRange,
    /// The swap devices' pages.
    pub swap: PfnRange,
    /// The rest: their records.
    pub spare: PfnRange,
}

/// Memory above the image, given out from the bottom and never taken back.
pub struct Ground {
    next: u64,
    end: u64,
}

/// Why the machine cannot be divided up.
pub enum PlanError {
    /// `memory=` and `swap=` ask for more than there is.
    TooSmall {
        /// RAM, in MiB.
        has: u64,
        /// What was asked for, in MiB.
        needs: u64,
    },
    /// RAM ends above what the kernel's map can show.
    TooHigh,
    /// RAM is not where the image is linked.
    Elsewhere,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { has, needs } => {
                write!(f, "the machine has {has} MiB, memory= and swap= ask for {needs} MiB")
            }
            Self::TooHigh => write!(f, "the machine's RAM ends above {} GiB", mmu::LINEAR_BYTES >> 30),
            Self::Elsewhere => f.write_str("the image does not lie in the managed part of RAM"),
        }
    }
}

/// The run of whole pages within two addresses.
fn pages(start: u64, end: u64) -> PfnRange {
    let first = PhysAddr::new(start.next_multiple_of(PAGE)).pfn::<PageGranule>();
    PfnRange::between(first, PhysAddr::new(end).pfn::<PageGranule>())
}

/// Divides RAM up.
pub fn plan(tree: &Tree, args: &BootArgs<'_>) -> Result<(Plan, Ground), PlanError> {
    let (start, bytes) = tree.ram;
    if bytes > mmu::LINEAR_BYTES.saturating_sub(start) {
        return Err(PlanError::TooHigh);
    }
    let swap_bytes = args.swap.iter().fold(0, |sum: u64, size| sum.saturating_add(size.bytes()));
    let managed_bytes = args.memory_mib.map_or(bytes.saturating_sub(swap_bytes), |mib| mib.saturating_mul(MIB));
    let asked = managed_bytes.saturating_add(swap_bytes);
    if asked > bytes || managed_bytes == 0 {
        return Err(PlanError::TooSmall { has: bytes / MIB, needs: asked / MIB });
    }
    let managed_end = start + managed_bytes;
    let swap_end = managed_end + swap_bytes;
    let image = mmu::image();
    if image.start < start || image.end > managed_end {
        return Err(PlanError::Elsewhere);
    }
    stack::set_memory(managed_bytes);
    let plan = Plan {
        ram: pages(start, start + bytes),
        managed: pages(start, managed_end),
        swap: pages(managed_end, swap_end),
        spare: pages(swap_end, start + bytes),
    };
    Ok((plan, Ground { next: image.end, end: managed_end }))
}

impl Ground {
    /// The physical address of `bytes` bytes, page aligned, with undefined contents.
    pub fn take(&mut self, bytes: u64) -> u64 {
        let start = self.next;
        let end = start + bytes.next_multiple_of(PAGE);
        if end > self.end {
            cannot_start(format_args!("memory= is too small for the kernel itself"));
        }
        self.next = end;
        start
    }
}

/// Moves the initrd to the bottom of the ground.
///
/// # Safety
/// The early map shows the initrd and the ground; nothing of the ground is in use; the device tree is not read again.
pub unsafe fn relocate_initrd(tree: &Tree, ground: &mut Ground) -> Option<initrd::Files> {
    let (start, end) = tree.initrd?;
    let bytes = end - start;
    let place = ground.take(bytes);
    let (from, to) = (mmu::linear(start), mmu::linear(place));
    // SAFETY: the caller's promise; `copy` allows that the two overlap.
    unsafe { core::ptr::copy(from, to, bytes as usize) };
    // SAFETY: the ground's memory is never taken back, and nobody writes here again.
    Some(initrd::Files::new(unsafe { core::slice::from_raw_parts(to, bytes as usize) }))
}

/// The root object is on the stack twice while it is made: as the library builds it, and as it is returned.
const _: () = assert!(3 * size_of::<Mm<Hardware>>() <= stack::STACK);

/// Hands the managed machine to the library. Not inlined: its frame holds the library's root object while that is made,
/// and shall not lie below all that follows.
#[inline(never)]
pub fn start_mm(machine: Hardware, plan: &Plan, ground: &mut Ground, policy: Replacement) -> &'static Mm<Hardware> {
    let bytes = plan.managed.pages() * size_of::<FrameRecord>() as u64;
    let records = ground.take(bytes);
    machine.zero(pages(records, records + bytes.next_multiple_of(PAGE)), Tags::Ignore);
    let Some(records) = NonNull::new(mmu::linear(records).cast()) else {
        unreachable!("the linear map starts above 0")
    };
    let image = mmu::image();
    let start = plan.managed.start().base::<PageGranule>().bytes();
    let free = [pages(start, image.start), pages(ground.next, ground.end)];
    // From here on the rest of the ground is the library's.
    ground.end = ground.next;
    let memory = Memory { span: plan.managed, records, free: &free };
    // SAFETY: the two free runs are RAM that nothing uses: below the image, and above all that the ground gave out. The
    // records are zeroed, one for each managed frame, and nobody else's.
    match global::set_mm(|| unsafe { Mm::with_policy(machine, memory, policy) }) {
        Ok(mm) => mm,
        Err(error) => cannot_start(format_args!("memory= is of no use: {error:?}")),
    }
}
