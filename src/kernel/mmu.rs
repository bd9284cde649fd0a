//! The kernel's own map: static, in TTBR1, made once.
//!
//! A linear map of all RAM from physical address 0 on, in blocks of level 2 where it can (2 MiB, or 32 or 512 with
//! larger pages): readable, writable, never executable, Normal Tagged where memory tags are in use. The image is linked
//! at its place in that map, and there the map is made of pages with the rights of each section and without tags: text
//! executable and not writable, constants neither, data and stacks writable. The lower half of each stack's slot is not
//! mapped at all. One page of UART, and the interrupt controller.
//!
//! The linear map has half of the upper half's addresses. Above it are the tasks' stacks, each in a slot of its own
//! like those in the image.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{TTBR0_EL1, Writeable};
use ebbtide::granule::{Granule, Level};
use ebbtide::machine::Tags;
use ebbtide::machine::aarch64::{ATTR_NORMAL, ATTR_TAGGED};

use super::dt::Tree;
use super::layout::{Ground, Plan};
use super::page::{PAGE, PageGranule};
use super::stack;

/// Where physical address 0 is.
const LINEAR_BASE: u64 = 0xffff_ff80_0000_0000;
/// The physical addresses that the map can show.
pub const LINEAR_BYTES: u64 = LINEAR_BASE.wrapping_neg() / 2;
/// Where the first slot of a task's stack is.
pub const STACKS: u64 = LINEAR_BASE + LINEAR_BYTES;

const ROOT: Level = Level::root::<PageGranule>(39);
/// Bytes of a block: every granule has them at level 2, and above it not all do.
const BLOCK: u64 = 1 << Level::L2.shift::<PageGranule>();

/// AttrIndx of Device-nGnRE memory: the kernel's own part of MAIR_EL1 (`boot/head.S`).
const ATTR_DEVICE: u64 = 2;

/// Descriptor bits of a leaf (Arm ARM, D8.3.2, "Page descriptor and Block descriptor").
mod bits {
    pub const VALID: u64 = 1;
    /// A table above level 3, a page there.
    pub const TABLE_OR_PAGE: u64 = 1 << 1;
    pub const ATTR_SHIFT: u32 = 2;
    pub const READ_ONLY: u64 = 1 << 7;
    pub const INNER_SHAREABLE: u64 = 0b11 << 8;
    pub const ACCESSED: u64 = 1 << 10;
    /// The address of a table below 2^48; the bits under a larger page's alignment are 0.
    pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    pub const PXN: u64 = 1 << 53;
    pub const UXN: u64 = 1 << 54;
}

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __bss_end: u8;
    static empty_root: u8;
    fn install_kernel_table(root: u64, empty: u64);
}

/// The kernel's pointer to a byte of RAM, or of a device.
#[inline]
pub fn linear(physical: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut((LINEAR_BASE + physical) as usize)
}

/// The physical address of something in the linear map, the image included.
#[inline]
pub fn physical<T>(at: *const T) -> u64 {
    at.expose_provenance() as u64 - LINEAR_BASE
}

/// The image, in physical addresses.
pub fn image() -> Range<u64> {
    physical(&raw const __image_start)..physical(&raw const __image_end)
}

/// The text, in kernel addresses: return addresses lie in it.
pub fn text() -> Range<u64> {
    (&raw const __text_start).addr() as u64..(&raw const __text_end).addr() as u64
}

/// What may be done with a part of the map.
#[derive(Copy, Clone)]
enum Rights {
    Text,
    Constants,
    Data,
    Ram(Tags),
    Device,
}

impl Rights {
    fn bits(self) -> u64 {
        let common = bits::VALID | bits::ACCESSED | bits::UXN;
        let normal = common | bits::INNER_SHAREABLE;
        match self {
            Self::Text => normal | ATTR_NORMAL << bits::ATTR_SHIFT | bits::READ_ONLY,
            Self::Constants => normal | ATTR_NORMAL << bits::ATTR_SHIFT | bits::READ_ONLY | bits::PXN,
            Self::Data | Self::Ram(Tags::Ignore) => normal | ATTR_NORMAL << bits::ATTR_SHIFT | bits::PXN,
            Self::Ram(Tags::Include) => normal | ATTR_TAGGED << bits::ATTR_SHIFT | bits::PXN,
            Self::Device => common | ATTR_DEVICE << bits::ATTR_SHIFT | bits::PXN,
        }
    }
}

/// The map under construction. A table is one page, whatever part of it a root needs.
struct Map<'a> {
    root: *mut u64,
    ground: &'a mut Ground,
}

impl Map<'_> {
    fn table(ground: &mut Ground) -> *mut u64 {
        let table: *mut u64 = linear(ground.take(PAGE)).cast();
        // SAFETY: the ground's memory is mapped and this page is nobody else's.
        unsafe { table.write_bytes(0, PageGranule::ENTRIES) };
        table
    }

    /// The table below an entry, made if it is missing.
    ///
    /// # Safety
    /// `entry` lies in a table of this map.
    unsafe fn below(entry: *mut u64, ground: &mut Ground) -> *mut u64 {
        // SAFETY: the caller's promise.
        let found = unsafe { *entry };
        if found & bits::VALID != 0 {
            assert!(found & bits::TABLE_OR_PAGE != 0, "a block is in the way of a table");
            return linear(found & bits::ADDRESS).cast();
        }
        let table = Self::table(ground);
        // SAFETY: the caller's promise.
        unsafe { *entry = physical(table) | bits::TABLE_OR_PAGE | bits::VALID };
        table
    }

    /// Maps physical addresses, page aligned, at their place in the linear map.
    fn add(&mut self, range: Range<u64>, rights: Rights) {
        let mut at = range.start;
        while at < range.end {
            let leaf = if at.is_multiple_of(BLOCK) && range.end - at >= BLOCK { Level::L2 } else { Level::L3 };
            self.add_leaf(LINEAR_BASE + at, at, leaf, rights);
            at += 1 << leaf.shift::<PageGranule>();
        }
    }

    /// Maps new memory at the pages of a range of addresses.
    fn add_new(&mut self, range: Range<u64>, rights: Rights) {
        for at in range.step_by(PAGE as usize) {
            let page = self.ground.take(PAGE);
            self.add_leaf(at, page, Level::L3, rights);
        }
    }

    fn add_leaf(&mut self, at: u64, physical: u64, leaf: Level, rights: Rights) {
        let (mut table, mut level) = (self.root, ROOT);
        let kind = if leaf == Level::L3 { bits::TABLE_OR_PAGE } else { 0 };
        // SAFETY: indices are below the entries of a table; tables are this map's.
        unsafe {
            while level < leaf
                && let Some(below) = level.below()
            {
                table = Self::below(table.add(index(at, level)), self.ground);
                level = below;
            }
            *table.add(index(at, leaf)) = physical | rights.bits() | kind;
        }
    }
}

/// Which entry of a table of that level an address of the upper half belongs to.
fn index(at: u64, level: Level) -> usize {
    ((at - LINEAR_BASE) >> level.shift::<PageGranule>()) as usize % PageGranule::ENTRIES
}

/// Builds the map and changes over to it. The lower half is empty afterwards.
///
/// # Safety
/// Called once, on the early map of `boot/head.S`; what `ground` has not given out is not in use.
pub unsafe fn install(plan: &Plan, tree: &Tree, ground: &mut Ground, tags: Tags) {
    let ram = plan.ram.start().number() * PAGE..plan.ram.end().number() * PAGE;
    let image = image();
    let root = Map::table(ground);
    let mut map = Map { root, ground };
    map.add(ram.start..image.start, Rights::Ram(tags));
    map.add(physical(&raw const __text_start)..physical(&raw const __text_end), Rights::Text);
    map.add(physical(&raw const __rodata_start)..physical(&raw const __rodata_end), Rights::Constants);
    let data_end = physical(&raw const __bss_end).next_multiple_of(PAGE);
    map.add(physical(&raw const __data_start)..data_end, Rights::Data);
    for stack in stack::in_image() {
        map.add(physical(stack.start as *const u8)..physical(stack.end as *const u8), Rights::Data);
    }
    map.add(image.end..ram.end, Rights::Ram(tags));
    for task in 0..stack::tasks() {
        let stack = stack::of_task(task);
        // With the attributes of the linear map, which shows the same memory.
        map.add_new(stack.start as u64..stack.end as u64, Rights::Ram(tags));
    }
    for stack in (1..tree.cpus.len()).flat_map(stack::of_cpu) {
        map.add_new(stack.start as u64..stack.end as u64, Rights::Ram(tags));
    }
    map.add(tree.uart & !(PAGE - 1)..(tree.uart & !(PAGE - 1)) + PAGE, Rights::Device);
    for (start, bytes) in tree.interrupts.into_iter().flat_map(|controller| controller.registers) {
        map.add(start & !(PAGE - 1)..(start + bytes).next_multiple_of(PAGE), Rights::Device);
    }
    barrier::dsb(barrier::ISHST);

    let low_half = physical(install_kernel_table as *const ()) as usize;
    // SAFETY: the function's code at its identity address, which the early map of the lower half shows.
    let change: unsafe extern "C" fn(u64, u64) = unsafe { core::mem::transmute(low_half) };
    let empty = physical(&raw const empty_root);
    // SAFETY: the new map shows the image, the stacks and all RAM where the early one did.
    unsafe { change(physical(root), empty) };
    KERNEL_ROOT.store(physical(root), Ordering::Relaxed);
    leave_early_map();
}

static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);

/// The physical address of the final map's root.
pub fn kernel_root() -> u64 {
    KERNEL_ROOT.load(Ordering::Relaxed)
}

/// Empties the calling CPU's lower half, in which the early map was.
pub fn leave_early_map() {
    TTBR0_EL1.set(physical(&raw const empty_root));
    // SAFETY: invalidation removes nothing that a walk does not bring back; the identity map is not used any more.
    unsafe { core::arch::asm!("isb", "tlbi vmalle1", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Writes the cache lines of a value back to memory, for a CPU whose MMU is off.
pub fn clean<T>(value: &T) {
    const LEAST_LINE: usize = 16;
    let start = core::ptr::from_ref(value).addr();
    for line in (start & !(LEAST_LINE - 1)..start + size_of::<T>()).step_by(LEAST_LINE) {
        // SAFETY: cache maintenance changes no contents.
        unsafe { core::arch::asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    barrier::dsb(barrier::SY);
}
