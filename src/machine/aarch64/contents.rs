//! Page contents by the assembly of `contents.S`, and the choice among its forms.
//!
//! The choice is made once, when the machine is set up, and kept as small numbers, so that each call costs one load.

use core::arch::{asm, global_asm};

use crate::machine::{Features, Tags};

global_asm!(include_str!("contents.S"), options(raw));

unsafe extern "C" {
    fn ebbtide_zero_zva(at: *mut u8, bytes: usize);
    fn ebbtide_zero_gzva(at: *mut u8, bytes: usize);
    fn ebbtide_zero_zva_any(at: *mut u8, bytes: usize, block: usize);
    fn ebbtide_zero_gzva_any(at: *mut u8, bytes: usize, block: usize);
    fn ebbtide_zero_stp(at: *mut u8, bytes: usize);
    fn ebbtide_zero_stz2g(at: *mut u8, bytes: usize);
    fn ebbtide_copy(to: *mut u8, from: *const u8, bytes: usize);
    fn ebbtide_copy_tagged(to: *mut u8, from: *const u8, bytes: usize);
    fn ebbtide_sum(unused: *mut u8, from: *const u8, bytes: usize, sums: *mut u64, page: usize);
    fn ebbtide_copy_summed(to: *mut u8, from: *const u8, bytes: usize, sums: *mut u64, page: usize);
    fn ebbtide_load_tags(at: *const u8, into: *mut u64, words: usize);
    fn ebbtide_store_tags(at: *mut u8, from: *const u64, words: usize);
    fn ebbtide_load_tags_any(at: *const u8, into: *mut u64, words: usize, block: usize);
    fn ebbtide_store_tags_any(at: *mut u8, from: *const u64, words: usize, block: usize);
    fn ebbtide_zero_tags(at: *mut u8, bytes: usize, block: usize);
    fn ebbtide_repeats(at: *const u8, bytes: usize) -> u64;
    fn ebbtide_fill(at: *mut u8, bytes: usize, word: u64);
    fn ebbtide_clean_data(at: *const u8, bytes: usize, line: usize);
    fn ebbtide_invalidate_code(at: *const u8, bytes: usize, line: usize);
}

/// Bytes whose tags fill one 64-bit word.
const WORD_SPAN: usize = 256;

/// Clears bits 59:56, the logical tag that the tag instructions would write or be checked against.
#[inline]
fn untagged<T>(at: *mut T) -> *mut T {
    at.map_addr(|address| address & !(0xf << 56))
}

/// The block sizes of this CPU.
pub(super) struct Blocks {
    /// Bytes of one DC ZVA, DC GVA, DC GZVA; 0 where they are prohibited.
    zva: u16,
    /// Bytes whose tags one LDGM moves: 4 << GMID_EL1.BS. 0 without MTE.
    tags: u16,
    /// Bytes of the smallest data cache line to clean for code; 0: CTR_EL0.IDC, none needed.
    data_line: u16,
    /// Bytes of the smallest instruction cache line to invalidate; 0: CTR_EL0.DIC, none needed.
    code_line: u16,
}

impl Blocks {
    /// Reads the sizes. GMID_EL1 exists only with MTE2.
    pub(super) fn probe(features: Features) -> Self {
        let dczid: u64;
        // SAFETY: DCZID_EL0 is a read-only identification register.
        unsafe { asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack, preserves_flags)) };
        // DZP (bit 4) prohibits DC ZVA, DC GVA and DC GZVA; BS (3:0) is log2 of the block in words.
        let zva = if dczid >> 4 & 1 == 1 { 0 } else { 4 << (dczid & 0xf) };
        let tags = if features.contains(Features::MTE) {
            let gmid: u64;
            // SAFETY: GMID_EL1 (S3_1_C0_C0_4) is readable at EL1 where MTE2 is implemented, as `features` says.
            unsafe { asm!("mrs {}, S3_1_C0_C0_4", out(reg) gmid, options(nomem, nostack, preserves_flags)) };
            4 << (gmid & 0xf)
        } else {
            0
        };
        let ctr: u64;
        // SAFETY: CTR_EL0 is a read-only identification register.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
        let line = |shift: u32| 4 << (ctr >> shift & 0xf);
        let data_line = if ctr >> 28 & 1 == 1 { 0 } else { line(16) };
        let code_line = if ctr >> 29 & 1 == 1 { 0 } else { line(0) };
        Self { zva, tags, data_line, code_line }
    }

    /// Zeroes `bytes` bytes, with [`Tags::Include`] their tags as well.
    ///
    /// # Safety
    /// Whole pages, mapped writable; with tags, MTE2 and Normal Tagged memory.
    #[inline]
    pub(super) unsafe fn zero(&self, at: *mut u8, bytes: usize, tags: Tags) {
        let at = untagged(at);
        // SAFETY: the caller's promise; the block sizes are this CPU's.
        unsafe {
            match (self.zva, tags) {
                (64, Tags::Include) => ebbtide_zero_gzva(at, bytes),
                (64, Tags::Ignore) => ebbtide_zero_zva(at, bytes),
                (1..=512, Tags::Include) => ebbtide_zero_gzva_any(at, bytes, self.zva.into()),
                (1..=512, Tags::Ignore) => ebbtide_zero_zva_any(at, bytes, self.zva.into()),
                (_, Tags::Include) => ebbtide_zero_stz2g(at, bytes),
                (_, Tags::Ignore) => ebbtide_zero_stp(at, bytes),
            }
        }
    }

    /// Zeroes the tags of `bytes` bytes.
    ///
    /// # Safety
    /// As [`Blocks::zero`] with tags.
    #[inline]
    pub(super) unsafe fn zero_tags(&self, at: *mut u8, bytes: usize) {
        // SAFETY: the caller's promise; the block size is this CPU's.
        unsafe { ebbtide_zero_tags(untagged(at), bytes, self.tags.into()) }
    }

    /// Copies `bytes` bytes, with [`Tags::Include`] their tags as well.
    ///
    /// # Safety
    /// Whole pages that do not overlap, mapped readable and writable; with tags as in [`Blocks::zero`].
    #[inline]
    pub(super) unsafe fn copy(&self, to: *mut u8, from: *mut u8, bytes: usize, tags: Tags) {
        // SAFETY: the caller's promise; the block size is this CPU's.
        unsafe {
            if tags == Tags::Ignore {
                return ebbtide_copy(to, from, bytes);
            }
            let (to, from) = (untagged(to), untagged(from));
            if usize::from(self.tags) == WORD_SPAN {
                return ebbtide_copy_tagged(to, from, bytes);
            }
            let mut done = 0;
            while done < bytes {
                let mut word = 0;
                ebbtide_load_tags_any(from.add(done), &mut word, 1, self.tags.into());
                ebbtide_store_tags_any(to.add(done), &word, 1, self.tags.into());
                done += WORD_SPAN;
            }
            ebbtide_copy(to, from, bytes);
        }
    }

    /// Sums the data of pages of `page` bytes at `from`.
    ///
    /// # Safety
    /// As many whole pages, mapped readable, as `sums` has elements.
    #[inline]
    pub(super) unsafe fn sum(&self, from: *mut u8, page: usize, sums: &mut [u64]) {
        // SAFETY: the caller's promise; the first argument is not looked at.
        unsafe { ebbtide_sum(core::ptr::null_mut(), from, sums.len() * page, sums.as_mut_ptr(), page) }
    }

    /// Copies and sums the data of pages of `page` bytes.
    ///
    /// # Safety
    /// As many whole pages that do not overlap, mapped readable and writable, as `sums` has elements.
    #[inline]
    pub(super) unsafe fn copy_summed(&self, to: *mut u8, from: *mut u8, page: usize, sums: &mut [u64]) {
        // SAFETY: the caller's promise.
        unsafe { ebbtide_copy_summed(to, from, sums.len() * page, sums.as_mut_ptr(), page) }
    }

    /// Reads the tags of whole pages; without MTE they are zero.
    ///
    /// # Safety
    /// Whole pages, mapped readable, where there is MTE as Normal Tagged memory, for 256 bytes for each word; `into`
    /// has room for `words` words, a multiple of 16. All of them are written.
    #[inline]
    pub(super) unsafe fn load_tags(&self, at: *mut u8, into: *mut u64, words: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if usize::from(self.tags) == WORD_SPAN {
                ebbtide_load_tags(untagged(at), into, words);
            } else if self.tags == 0 {
                into.write_bytes(0, words);
            } else {
                ebbtide_load_tags_any(untagged(at), into, words, self.tags.into());
            }
        }
    }

    /// Writes the tags of whole pages; without MTE there are none.
    ///
    /// # Safety
    /// Whole pages, mapped writable, where there is MTE as Normal Tagged memory, for 256 bytes for each word of `from`,
    /// which holds a multiple of 16 words.
    #[inline]
    pub(super) unsafe fn store_tags(&self, at: *mut u8, from: &[u64]) {
        // SAFETY: the caller's promise; the slice is as long as it says.
        unsafe {
            if usize::from(self.tags) == WORD_SPAN {
                ebbtide_store_tags(untagged(at), from.as_ptr(), from.len());
            } else if self.tags != 0 {
                ebbtide_store_tags_any(untagged(at), from.as_ptr(), from.len(), self.tags.into());
            }
        }
    }

    /// The word that `bytes` bytes repeat.
    ///
    /// # Safety
    /// Whole pages, mapped readable.
    #[inline]
    pub(super) unsafe fn repeated_word(&self, at: *const u8, bytes: usize) -> Option<u64> {
        // SAFETY: the caller's promise; a page is aligned to a word.
        unsafe {
            let first = at.cast::<u64>().read();
            // Most pages need no call.
            let may_repeat = first == at.add(bytes - size_of::<u64>()).cast::<u64>().read();
            (may_repeat && ebbtide_repeats(at, bytes) != 0).then_some(first)
        }
    }

    /// Stores `word` all over `bytes` bytes.
    ///
    /// # Safety
    /// Whole pages, mapped writable.
    #[inline]
    pub(super) unsafe fn fill(&self, at: *mut u8, bytes: usize, word: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            if word == 0 {
                self.zero(at, bytes, Tags::Ignore);
            } else {
                ebbtide_fill(at, bytes, word);
            }
        }
    }

    /// Makes the instruction side see stores to `bytes` bytes (Arm ARM, B2.7.4.2, "Data and instruction caches").
    ///
    /// # Safety
    /// Whole pages, mapped readable.
    pub(super) unsafe fn sync_code(&self, at: *const u8, bytes: usize) {
        // SAFETY: cache maintenance by address on mapped memory, in lines of this CPU; the barriers have no operands.
        unsafe {
            if self.data_line != 0 {
                ebbtide_clean_data(at, bytes, self.data_line.into());
            }
            asm!("dsb ish", options(nostack, preserves_flags));
            if self.code_line != 0 {
                ebbtide_invalidate_code(at, bytes, self.code_line.into());
                asm!("dsb ish", options(nostack, preserves_flags));
            }
            asm!("isb", options(nostack, preserves_flags));
        }
    }
}
