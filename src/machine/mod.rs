//! The seam between the library and the hardware.
//!
//! Two traits, seen from both sides:
//!
//! - [`Board`] is what a porter writes: six facts about a kernel (where a frame is mapped, which CPU this is, what
//!   time it is, how to spin, how to sleep, how to wake). `aarch64::Aarch64` makes a [`Machine`] of it.
//! - [`Machine`] is what the library calls: descriptors, barriers and TLB invalidation, page contents, and the rest.
//!   Besides the real one there is the emulated machine of [`emu`] (feature `emu`), and [`recorder`] wraps any of them
//!   and checks the order of what is asked of it.
//!
//! **What the library promises a `Machine`.** It names frames only from the ranges handed to
//! [`Mm::new`](crate::Mm::new) or [`Mm::swap_on`](crate::Mm::swap_on). It touches a table's entries only through the
//! entry functions. It orders by the purpose of a fence, never by what one implementation happens to need. It calls
//! nothing here from an interrupt handler.
//!
//! **What an implementer must do**, and what a mistake costs, stands at each function. A function that does less than
//! it says shows as lost data or as one program reading another's memory, not as an error: hence the `unsafe`.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
#[cfg(any(test, feature = "emu"))]
pub mod emu;
pub mod recorder;
pub mod sum;
pub mod tlbi;

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::addr::{Pfn, VpnRange};
use crate::granule::{Granule, Level};
use crate::sync::AtomicU32;

/// CPUs that the library keeps per-CPU state for. [`Board::cpu`] stays below it.
pub const MAX_CPUS: usize = 16;

/// What a porter writes for the real machine.
///
/// # Safety
/// The implementer promises, for as long as any [`Mm`](crate::Mm) uses the board:
///
/// 1. `frame_ptr` returns, for each frame of the ranges given to the library, the frame's first byte in a mapping
///    that stays, is readable and writable at EL1 and never executable, is Normal Write-Back memory (Normal Tagged
///    where the CPU has MTE2), and whose bits 59:56 are 0 or 0xf. Two different frames never overlap. Nothing else in
///    the kernel writes there. A mistake lets the library overwrite the kernel.
/// 2. `cpu` returns a number below [`MAX_CPUS`] that no other CPU returns at the same time, and that does not change
///    while the library is on the stack: EL1 is not preempted inside the library. A mistake corrupts per-CPU lists.
/// 3. `wait` returns, at the latest, some time after a `wake` of the same word that follows the word's change. It may
///    return early. A mistake hangs a fault for ever.
pub unsafe trait Board: Send + Sync + 'static {
    /// The page size in use.
    type Granule: Granule;

    /// The kernel's pointer to the first byte of a frame.
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8>;

    /// The number of the CPU that calls, below [`MAX_CPUS`].
    fn cpu(&self) -> usize;

    /// Monotonic time, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// One turn of a spinning loop: `yield` on a CPU that shares its core or runs under an emulator.
    fn relax(&self);

    /// Sleeps while `word` holds `seen`; checks and sleeps as one step with respect to [`Board::wake`].
    /// Called with no spinning lock held.
    fn wait(&self, word: &AtomicU32, seen: u32);

    /// Wakes every sleeper on `word`. The caller has changed the word before, and may hold spinning locks of the
    /// library's, which is not called from here.
    fn wake(&self, word: &AtomicU32);
}

bitflags::bitflags! {
    /// What the CPU can do, found at run time. A part that is absent runs the same code with that part idle.
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    pub struct Features: u32 {
        /// FEAT_MTE2 or later, with tag storage behind the frames.
        const MTE = 1 << 0;
        /// FEAT_HAFDBS: the walker sets the access flag.
        const HW_ACCESS = 1 << 1;
        /// FEAT_HAFDBS: the walker clears AP\[2\] of an entry with DBM on a store.
        const HW_DIRTY = 1 << 2;
        /// FEAT_TLBIRANGE.
        const TLB_RANGE = 1 << 3;
    }
}

/// An address space identifier, as TTBR0_EL1 and TLBI carry it. ASID 0 belongs to the empty root.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Asid(u16);

impl Asid {
    /// The identifier of the empty root.
    pub const EMPTY: Self = Self(0);

    /// Names an identifier by its number.
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    #[inline]
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The place of one descriptor: the frame of its table, and its index there, below [`Granule::ENTRIES`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct EntryAt {
    /// The frame that holds the table.
    pub table: Pfn,
    /// The index within the table.
    pub index: usize,
}

impl EntryAt {
    /// The entry `count` places further up in the same table.
    #[inline]
    pub const fn offset(self, count: usize) -> Self {
        Self { table: self.table, index: self.index + count }
    }
}

/// Which translations an invalidation removes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Scope {
    /// Those of a run of pages.
    Pages(VpnRange),
    /// All of the address space.
    Space,
    /// Those of every address space, whatever identifier is named.
    All,
}

/// Which cached descriptors of these translations an invalidation removes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Cached {
    /// Only leaf descriptors of this level: enough when no table was unlinked.
    Leaf(Level),
    /// Leaf and table descriptors: needed before a table's frame is freed.
    Walk,
}

/// Which CPUs an invalidation reaches.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Reach {
    /// The calling CPU alone: only after an entry became more permissive.
    Local,
    /// Every CPU of the inner shareable domain.
    Broadcast,
}

/// Whether an operation on contents includes the allocation tags.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Tags {
    /// The data alone. The tags of the destination are undefined afterwards.
    Ignore,
    /// Data and tags. Without [`Features::MTE`] the same as [`Tags::Ignore`].
    Include,
}

/// A view of one frame's bytes, for the library's own records that live in frames.
#[derive(Copy, Clone)]
pub struct Window<'a> {
    first: NonNull<u8>,
    bytes: usize,
    machine: PhantomData<&'a ()>,
}

impl<'a> Window<'a> {
    /// A view of `bytes` bytes from `first`.
    ///
    /// # Safety
    /// The bytes stay mapped, readable and writable for `'a`.
    #[inline]
    pub const unsafe fn new(first: NonNull<u8>, bytes: usize) -> Self {
        Self { first, bytes, machine: PhantomData }
    }

    /// The first byte. Aligned to the page.
    #[inline]
    pub const fn first(self) -> NonNull<u8> {
        self.first
    }

    /// The length in bytes: one page.
    #[inline]
    pub const fn bytes(self) -> usize {
        self.bytes
    }
}

/// A page's packed tags on the machine `M`.
pub type TagWords<M> = <<M as Machine>::Granule as Granule>::TagWords;

/// What the library calls. See the module's head for the promises of both sides.
///
/// # Safety
/// Each function does all that its text says. See there what a mistake costs.
pub unsafe trait Machine: Send + Sync + Sized + 'static {
    /// The page size in use.
    type Granule: Granule;

    // ---- Entries: 64-bit single-copy atomic accesses, naturally aligned. ----

    /// Reads a descriptor. A plain relaxed load: the hardware may change AF and AP\[2\] at any time.
    fn load_entry(&self, at: EntryAt) -> u64;

    /// Writes a descriptor over an invalid one. Over a valid one only the exchanges are right: a plain store would
    /// lose a concurrent hardware update.
    fn store_entry(&self, at: EntryAt, raw: u64);

    /// Replaces a descriptor and returns the old one, as one atomic step with respect to the hardware's updates. A
    /// release: whoever sees the new descriptor sees what the caller stored before, a swap slot's record above all.
    fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64;

    /// Replaces a descriptor if it holds `seen`.
    ///
    /// # Errors
    /// The value found, when it is another; nothing was written then.
    fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64>;

    // ---- Order and TLB. ----

    /// Earlier table stores are visible to every walker before anything later, in particular before a later
    /// invalidation takes effect: DSB ISHST. Without it a walker may reload the old entry after the invalidation.
    fn fence_tables(&self);

    /// Earlier stores to page contents and tags are visible to every CPU before a later table store is:
    /// DMB ISHST. Without it a program sees a page's previous owner's bytes.
    fn fence_contents(&self);

    /// Earlier invalidations have completed on every CPU, and no access through a removed translation is still under
    /// way: DSB ISH. Without it a freed frame may still be written.
    fn fence_invalidations(&self);

    /// Removes cached translations. Takes effect at the next [`Machine::fence_invalidations`]. May remove more than
    /// asked.
    fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach);

    /// Makes `root` the calling CPU's user translation table and orders it for what follows (ISB).
    fn install_root(&self, root: Pfn, asid: Asid);

    // ---- Contents. ----

    /// Zeroes a run of frames; with [`Tags::Include`] their tags as well.
    fn zero(&self, run: crate::addr::PfnRange, tags: Tags);

    /// Zeroes the tags of one frame and leaves its data.
    fn zero_tags(&self, frame: Pfn);

    /// Copies one page; with [`Tags::Include`] its tags as well.
    fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags);

    /// Copies the data of a run of pages to as many others from `to` on; the two do not overlap.
    #[inline]
    fn copy_run(&self, from: crate::addr::PfnRange, to: Pfn) {
        for page in 0..from.pages() {
            self.copy_page(from.start().offset(page), to.offset(page), Tags::Ignore);
        }
    }

    /// Sums the data of each page of a run, as [`sum`] says, into `sums`, which is as long as the run.
    fn sum(&self, run: crate::addr::PfnRange, sums: &mut [u64]);

    /// [`Machine::copy_run`], and [`Machine::sum`] of what was copied, in one go where the machine can.
    #[inline]
    fn copy_run_summed(&self, from: crate::addr::PfnRange, to: Pfn, sums: &mut [u64]) {
        self.copy_run(from, to);
        self.sum(crate::addr::PfnRange::new(to, from.pages()), sums);
    }

    /// The 64-bit word that the whole page repeats, if it does.
    fn repeated_word(&self, frame: Pfn) -> Option<u64>;

    /// Stores `word` all over one frame. Its tags are undefined afterwards.
    fn fill(&self, frame: Pfn, word: u64);

    /// Reads a page's tags: nibble `i % 16` of word `i / 16` is the tag of granule `i`, whatever GMID_EL1.BS is.
    /// Writes all of `into`, and returns it.
    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<TagWords<Self>>) -> &'a TagWords<Self>;

    /// Writes a page's tags in the form of [`Machine::load_tags`].
    fn store_tags(&self, frame: Pfn, tags: &TagWords<Self>);

    /// A view of a frame that holds the library's own records.
    fn window(&self, frame: Pfn) -> Window<'_>;

    /// Makes the instruction side see what was stored to a run of frames, as CTR_EL0.IDC and DIC ask.
    fn sync_code(&self, run: crate::addr::PfnRange);

    // ---- The rest. ----

    /// What this machine can do. Constant over its life.
    fn features(&self) -> Features;

    /// Bits of an ASID: 8 or 16.
    fn asid_bits(&self) -> u32;

    /// Bits of a user virtual address.
    fn va_bits(&self) -> u32;

    /// See [`Board::cpu`].
    fn cpu(&self) -> usize;

    /// See [`Board::now_ns`].
    fn now_ns(&self) -> u64;

    /// See [`Board::relax`].
    fn relax(&self);

    /// See [`Board::wait`].
    fn wait(&self, word: &AtomicU32, seen: u32);

    /// See [`Board::wake`].
    fn wake(&self, word: &AtomicU32);
}

/// Forwards to the machine within: a kernel that has handed its machine to an [`Mm`](crate::Mm) can lend it.
macro_rules! forward {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        $(#[inline]
        fn $name(&self $(, $argument: $type)*) $(-> $result)? {
            M::$name(self $(, $argument)*)
        })*
    };
}

// SAFETY: each function is that of the machine behind the reference.
unsafe impl<M: Machine> Machine for &'static M {
    type Granule = M::Granule;

    forward! {
        fn load_entry(&self, at: EntryAt) -> u64;
        fn store_entry(&self, at: EntryAt, raw: u64);
        fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64;
        fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64>;
        fn fence_tables(&self);
        fn fence_contents(&self);
        fn fence_invalidations(&self);
        fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach);
        fn install_root(&self, root: Pfn, asid: Asid);
        fn zero(&self, run: crate::addr::PfnRange, tags: Tags);
        fn zero_tags(&self, frame: Pfn);
        fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags);
        fn copy_run(&self, from: crate::addr::PfnRange, to: Pfn);
        fn sum(&self, run: crate::addr::PfnRange, sums: &mut [u64]);
        fn copy_run_summed(&self, from: crate::addr::PfnRange, to: Pfn, sums: &mut [u64]);
        fn repeated_word(&self, frame: Pfn) -> Option<u64>;
        fn fill(&self, frame: Pfn, word: u64);
        fn store_tags(&self, frame: Pfn, tags: &TagWords<Self>);
        fn window(&self, frame: Pfn) -> Window<'_>;
        fn sync_code(&self, run: crate::addr::PfnRange);
        fn features(&self) -> Features;
        fn asid_bits(&self) -> u32;
        fn va_bits(&self) -> u32;
        fn cpu(&self) -> usize;
        fn now_ns(&self) -> u64;
        fn relax(&self);
        fn wait(&self, word: &AtomicU32, seen: u32);
        fn wake(&self, word: &AtomicU32);
    }

    #[inline]
    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<TagWords<Self>>) -> &'a TagWords<Self> {
        M::load_tags(self, frame, into)
    }
}
