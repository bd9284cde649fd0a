//! The real machine: AArch64 at EL1.
//!
//! [`Aarch64`] makes a [`Machine`] of a [`Board`]. It owns TTBR0_EL1 and the lower half's fields of TCR_EL1; the
//! upper half is the kernel's. It asks four things of the kernel: MAIR_EL1 as [`MAIR`] says; where there is MTE,
//! access to allocation tags at EL1 (SCTLR_EL1.ATA, and HCR_EL2.ATA and SCR_EL3.ATA above); PSTATE.TCO or
//! SCTLR_EL1.TCF such that EL1's own accesses are not tag checked, and one call of [`Aarch64::start_cpu`] on each
//! CPU.
//!
//! No instruction of FEAT_MOPS is used: what one of them costs depends on its operand, and an instruction count over
//! them would mean nothing.

mod contents;
mod invalidate;

use core::arch::asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    ID_AA64ISAR0_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR1_EL1, MAIR_EL1, Readable, SCTLR_EL1, TCR_EL1,
    TTBR0_EL1, Writeable,
};

use crate::addr::{Pfn, PfnRange};
use crate::granule::Granule;
use crate::machine::tlbi;
use crate::machine::{Asid, Board, Cached, EntryAt, Features, Machine, Reach, Scope, TagWords, Tags, Window};
use crate::sync::AtomicU32;
use contents::Blocks;
use invalidate::Invalidate;

/// AttrIndx of Normal Write-Back memory: user pages without tags.
pub const ATTR_NORMAL: u64 = 0;
/// AttrIndx of Normal Tagged memory: PROT_MTE pages, and the kernel's map of all frames.
pub const ATTR_TAGGED: u64 = 1;

/// What the low 16 bits of MAIR_EL1 must hold: attributes 0 and 1; the others are the kernel's. Without MTE attribute 1
/// is the same as 0, as its encoding is reserved there (Arm ARM, D24.2.109).
pub const MAIR: u64 = 0xf0_ff;
/// [`MAIR`] of a CPU without MTE2.
pub const MAIR_WITHOUT_MTE: u64 = 0xff_ff;

/// Bits of a user address: T0SZ = 25 gives three levels at 4 KiB.
const VA_BITS: u32 = 39;

/// Bits of SCTLR_EL1 (Arm ARM, "SCTLR_EL1, System Control Register (EL1)").
mod sctlr {
    pub const ATA: u64 = 1 << 43;
}

/// The lower half's fields of TCR_EL1, and those that both halves share (Arm ARM, D24.2.182).
mod tcr {
    pub const T0SZ: u64 = 0x3f;
    pub const EPD0: u64 = 1 << 7;
    pub const IRGN0_WBWA: u64 = 0b01 << 8;
    pub const ORGN0_WBWA: u64 = 0b01 << 10;
    pub const SH0_INNER: u64 = 0b11 << 12;
    pub const TG0_SHIFT: u32 = 14;
    pub const A1: u64 = 1 << 22;
    pub const AS: u64 = 1 << 36;
    pub const TBI0: u64 = 1 << 37;
    pub const HA: u64 = 1 << 39;
    pub const HD: u64 = 1 << 40;
    pub const TBID0: u64 = 1 << 51;
    pub const TCMA0: u64 = 1 << 57;
    /// All of the above.
    pub const OURS: u64 = T0SZ | EPD0 | 0xff << 8 | A1 | AS | TBI0 | HA | HD | TBID0 | TCMA0;
}

/// Why a CPU cannot be used.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum StartError {
    /// MAIR_EL1 does not hold what [`MAIR`] asks.
    MemoryAttributes {
        /// What it holds.
        found: u64,
    },
    /// SCTLR_EL1.ATA is 0, so that tags would read as zero and their stores be ignored.
    NoTagAccess,
    /// The CPU has no translation granule of this size.
    NoGranule,
}

/// The machine of a board. See the module's head.
pub struct Aarch64<B: Board> {
    board: B,
    blocks: Blocks,
    features: Features,
    asid_bits: u32,
    invalidate: Invalidate,
}

impl<B: Board> Aarch64<B> {
    /// Probes the calling CPU; `without` removes what is not to be used.
    ///
    /// # Safety
    /// EL1, on a CPU whose like all others of the system are. Only one machine at a time, as it owns TTBR0_EL1.
    /// Beside that, the promises of [`Board`].
    pub unsafe fn new(board: B, without: Features) -> Self {
        let mut features = Features::empty();
        // ID_AA64PFR1_EL1.MTE (bits 11:8): 1 is the EL0 instructions alone, without storage for tags.
        features.set(Features::MTE, ID_AA64PFR1_EL1.get() >> 8 & 0xf >= 2);
        let hafdbs = ID_AA64MMFR1_EL1.get() & 0xf;
        features.set(Features::HW_ACCESS, hafdbs >= 1);
        features.set(Features::HW_DIRTY, hafdbs >= 2);
        features.set(Features::TLB_RANGE, ID_AA64ISAR0_EL1.get() >> 56 & 0xf >= 2);
        features.remove(without);
        let asid_bits = if ID_AA64MMFR0_EL1.get() >> 4 & 0xf >= 2 { 16 } else { 8 };
        Self { board, blocks: Blocks::probe(features), features, asid_bits, invalidate: Invalidate::probe(features) }
    }

    /// The board.
    #[inline]
    pub fn board(&self) -> &B {
        &self.board
    }

    /// Sets the lower half's fields of TCR_EL1 on the calling CPU.
    ///
    /// # Errors
    /// What the CPU or the kernel's set-up lacks; nothing was changed then.
    pub fn start_cpu(&self) -> Result<(), StartError> {
        let mair = MAIR_EL1.get() & 0xffff;
        let tagged = self.features.contains(Features::MTE);
        if mair != MAIR && (tagged || mair != MAIR_WITHOUT_MTE) {
            return Err(StartError::MemoryAttributes { found: mair });
        }
        if tagged && SCTLR_EL1.get() & sctlr::ATA == 0 {
            return Err(StartError::NoTagAccess);
        }
        if !has_granule::<B::Granule>() {
            return Err(StartError::NoGranule);
        }
        let mut wanted = u64::from(64 - VA_BITS)
            | tcr::IRGN0_WBWA
            | tcr::ORGN0_WBWA
            | tcr::SH0_INNER
            | B::Granule::TCR_TG0 << tcr::TG0_SHIFT
            | tcr::TBI0;
        for (has, bit) in [
            (self.asid_bits == 16, tcr::AS),
            (self.features.contains(Features::HW_ACCESS), tcr::HA),
            (self.features.contains(Features::HW_DIRTY), tcr::HD),
        ] {
            if has {
                wanted |= bit;
            }
        }
        TCR_EL1.set(TCR_EL1.get() & !tcr::OURS | wanted);
        barrier::isb(barrier::SY);
        // The fields may be cached in the TLB (Arm ARM, D8.14, "permitted to be cached in a TLB").
        // SAFETY: invalidation of the calling CPU's TLB removes nothing that a walk does not bring back.
        unsafe { asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
        Ok(())
    }

    #[inline]
    fn frame(&self, pfn: Pfn) -> *mut u8 {
        self.board.frame_ptr(pfn).as_ptr()
    }

    #[inline]
    fn entry(&self, at: EntryAt) -> &AtomicU64 {
        debug_assert!(at.index < <B::Granule as Granule>::ENTRIES);
        // SAFETY: the frame is mapped for the board's life and holds a table, and the index is below its end; 8-byte
        // aligned; the library and the walkers access it only as single-copy atomic doublewords.
        unsafe { &*self.frame(at.table).cast::<AtomicU64>().add(at.index) }
    }

    #[inline]
    fn tagged(&self, tags: Tags) -> Tags {
        if self.features.contains(Features::MTE) { tags } else { Tags::Ignore }
    }
}

/// Whether the CPU has the granule (ID_AA64MMFR0_EL1.TGran4, TGran16, TGran64; Arm ARM, D24.2.67).
fn has_granule<G: Granule>() -> bool {
    let fields = ID_AA64MMFR0_EL1.get();
    match G::SHIFT {
        12 => fields >> 28 & 0xf != 0xf,
        14 => fields >> 20 & 0xf != 0,
        _ => fields >> 24 & 0xf != 0xf,
    }
}

/// The sums that the pages of a run have room for: all, if the caller keeps to the contract.
#[inline]
fn of_run(run: PfnRange, sums: &mut [u64]) -> &mut [u64] {
    debug_assert_eq!(run.pages(), sums.len() as u64);
    let count = sums.len().min(run.pages() as usize);
    &mut sums[..count]
}

/// Bytes of a run of frames.
#[inline]
fn bytes_of<G: Granule>(run: PfnRange) -> usize {
    (run.pages() as usize) << G::SHIFT
}

// SAFETY: entries are accessed as single-copy atomics; the fences are the barriers that the trait's texts name;
// contents are moved by the assembly over frames that the board maps; the rest is the board's.
unsafe impl<B: Board> Machine for Aarch64<B> {
    type Granule = B::Granule;

    #[inline]
    fn load_entry(&self, at: EntryAt) -> u64 {
        self.entry(at).load(Ordering::Relaxed)
    }

    #[inline]
    fn store_entry(&self, at: EntryAt, raw: u64) {
        self.entry(at).store(raw, Ordering::Relaxed);
    }

    #[inline]
    fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64 {
        self.entry(at).swap(raw, Ordering::Release)
    }

    #[inline]
    fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64> {
        self.entry(at).compare_exchange(seen, raw, Ordering::Relaxed, Ordering::Relaxed).map(drop)
    }

    #[inline]
    fn fence_tables(&self) {
        barrier::dsb(barrier::ISHST);
    }

    #[inline]
    fn fence_contents(&self) {
        barrier::dmb(barrier::ISHST);
    }

    #[inline]
    fn fence_invalidations(&self) {
        barrier::dsb(barrier::ISH);
    }

    #[inline]
    fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach) {
        match scope {
            Scope::Pages(run) => self.invalidate.pages::<B::Granule>(run, asid, cached, reach),
            Scope::Space => self.invalidate.space(asid, reach),
            Scope::All => self.invalidate.all(reach),
        }
    }

    #[inline]
    fn install_root(&self, root: Pfn, asid: Asid) {
        // TCR_EL1.A1 is 0: the ASID comes from TTBR0_EL1, and changes in the same write as the root.
        TTBR0_EL1.set(tlbi::asid_field(asid) | root.base::<B::Granule>().bytes());
        barrier::isb(barrier::SY);
    }

    #[inline]
    fn zero(&self, run: PfnRange, tags: Tags) {
        if run.is_empty() {
            return;
        }
        // SAFETY: the board maps the frames writable, Normal Tagged where there is MTE.
        unsafe { self.blocks.zero(self.frame(run.start()), bytes_of::<B::Granule>(run), self.tagged(tags)) }
    }

    #[inline]
    fn zero_tags(&self, frame: Pfn) {
        if self.features.contains(Features::MTE) {
            // SAFETY: as for `zero`.
            unsafe { self.blocks.zero_tags(self.frame(frame), <B::Granule as Granule>::SIZE) }
        }
    }

    #[inline]
    fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags) {
        // SAFETY: as for `zero`; two frames do not overlap.
        unsafe {
            self.blocks.copy(self.frame(to), self.frame(from), <B::Granule as Granule>::SIZE, self.tagged(tags));
        }
    }

    #[inline]
    fn copy_run(&self, from: PfnRange, to: Pfn) {
        if from.is_empty() {
            return;
        }
        // SAFETY: as for `zero`; the caller says that the two do not overlap.
        unsafe {
            let bytes = bytes_of::<B::Granule>(from);
            self.blocks.copy(self.frame(to), self.frame(from.start()), bytes, Tags::Ignore);
        }
    }

    #[inline]
    fn sum(&self, run: PfnRange, sums: &mut [u64]) {
        let sums = of_run(run, sums);
        if !sums.is_empty() {
            // SAFETY: the board maps the frames readable, and the sums are no more than those.
            unsafe { self.blocks.sum(self.frame(run.start()), <B::Granule as Granule>::SIZE, sums) }
        }
    }

    #[inline]
    fn copy_run_summed(&self, from: PfnRange, to: Pfn, sums: &mut [u64]) {
        let sums = of_run(from, sums);
        if !sums.is_empty() {
            let (to, from) = (self.frame(to), self.frame(from.start()));
            // SAFETY: as for `copy_run`; the sums are no more than the frames.
            unsafe { self.blocks.copy_summed(to, from, <B::Granule as Granule>::SIZE, sums) }
        }
    }

    #[inline]
    fn repeated_word(&self, frame: Pfn) -> Option<u64> {
        // SAFETY: the board maps the frame readable.
        unsafe { self.blocks.repeated_word(self.frame(frame), <B::Granule as Granule>::SIZE) }
    }

    #[inline]
    fn fill(&self, frame: Pfn, word: u64) {
        // SAFETY: the board maps the frame writable.
        unsafe { self.blocks.fill(self.frame(frame), <B::Granule as Granule>::SIZE, word) }
    }

    #[inline]
    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<TagWords<Self>>) -> &'a TagWords<Self> {
        // SAFETY: as for `zero`; one word stands for 256 bytes of the frame, and all `TAG_WORDS` words of the array
        // are written.
        unsafe {
            self.blocks.load_tags(self.frame(frame), into.as_mut_ptr().cast(), B::Granule::TAG_WORDS);
            into.assume_init_ref()
        }
    }

    #[inline]
    fn store_tags(&self, frame: Pfn, tags: &TagWords<Self>) {
        // SAFETY: as for `zero`; one word stands for 256 bytes of the frame.
        unsafe { self.blocks.store_tags(self.frame(frame), tags.as_ref()) }
    }

    #[inline]
    fn window(&self, frame: Pfn) -> Window<'_> {
        // SAFETY: the board maps the frame for its own life, which the machine's is.
        unsafe { Window::new(self.board.frame_ptr(frame), <B::Granule as Granule>::SIZE) }
    }

    fn sync_code(&self, run: PfnRange) {
        if !run.is_empty() {
            // SAFETY: the board maps the frames readable.
            unsafe { self.blocks.sync_code(self.frame(run.start()), bytes_of::<B::Granule>(run)) }
        }
    }

    #[inline]
    fn features(&self) -> Features {
        self.features
    }

    #[inline]
    fn asid_bits(&self) -> u32 {
        self.asid_bits
    }

    #[inline]
    fn va_bits(&self) -> u32 {
        VA_BITS
    }

    #[inline]
    fn cpu(&self) -> usize {
        self.board.cpu()
    }

    #[inline]
    fn now_ns(&self) -> u64 {
        self.board.now_ns()
    }

    #[inline]
    fn relax(&self) {
        self.board.relax();
    }

    #[inline]
    fn wait(&self, word: &AtomicU32, seen: u32) {
        self.board.wait(word, seen);
    }

    #[inline]
    fn wake(&self, word: &AtomicU32) {
        self.board.wake(word);
    }
}
