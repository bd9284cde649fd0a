//! Anonymous memory, accessed by page number.
//!
//! A region never lends a reference: pages come and go, change permission and are replaced under it. All
//! accesses are volatile loads and stores of 8 bytes at checked page numbers, which is why the methods are
//! safe. What the kernel answers to a forbidden access (death of the program) is not undefined behaviour,
//! merely the end.
//!
//! A page here is 4 KiB; ranges given to the kernel must be multiples of the kernel's own page.

use core::ops::Range;

use crate::{
    PAGE, Tags, WORDS, Words, mte,
    sys::{self, Advice, Errno, Place, Prot},
};

/// Alignment of a region, as large as any folio: 2 MiB.
const ALIGN: usize = 2 << 20;

/// A range of private anonymous memory of this program's.
pub struct Region {
    base: usize,
    pages: usize,
}

impl Region {
    /// Maps `pages` pages at a multiple of 2 MiB.
    pub fn map(pages: usize, prot: Prot) -> Result<Self, Errno> {
        let len = pages * PAGE;
        // Find a hole with room for the alignment, give it back, and take the aligned part of it.
        // SAFETY: new memory that nobody borrows.
        let hole = unsafe { sys::mmap(Place::Anywhere, len + ALIGN, Prot::NONE) }?;
        // SAFETY: the hole just made.
        unsafe { sys::munmap(hole, len + ALIGN) }?;
        let base = hole.next_multiple_of(ALIGN);
        // SAFETY: fails if something is there.
        unsafe { sys::mmap(Place::FixedIfFree(base), len, prot) }?;
        Ok(Self { base, pages })
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The address of a page.
    #[inline]
    fn page(&self, page: usize) -> usize {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        self.base + page * PAGE
    }

    fn bytes(&self, pages: Range<usize>) -> (usize, usize) {
        assert!(pages.start <= pages.end && pages.end <= self.pages, "pages {pages:?} of {}", self.pages);
        (self.base + pages.start * PAGE, pages.len() * PAGE)
    }

    /// mprotect of some pages.
    pub fn protect(&self, pages: Range<usize>, prot: Prot) -> Result<(), Errno> {
        let (address, len) = self.bytes(pages);
        // SAFETY: a region lends no references.
        unsafe { sys::mprotect(address, len, prot) }
    }

    /// madvise of some pages.
    pub fn advise(&self, pages: Range<usize>, advice: Advice) -> Result<(), Errno> {
        let (address, len) = self.bytes(pages);
        // SAFETY: a region lends no references.
        unsafe { sys::madvise(address, len, advice) }
    }

    /// munmap of some pages. The hole is the caller's to fill, by [`Region::remap`], before it maps anything
    /// else.
    pub fn unmap(&self, pages: Range<usize>) -> Result<(), Errno> {
        let (address, len) = self.bytes(pages);
        // SAFETY: a region lends no references.
        unsafe { sys::munmap(address, len) }
    }

    /// mmap with MAP_FIXED over some pages.
    pub fn remap(&self, pages: Range<usize>, prot: Prot) -> Result<(), Errno> {
        let (address, len) = self.bytes(pages);
        // SAFETY: a region lends no references.
        unsafe { sys::mmap(Place::Fixed(address), len, prot) }.map(drop)
    }

    /// One 8-byte load.
    #[inline]
    pub fn load(&self, page: usize, word: usize) -> u64 {
        self.load_tagged(page, word, 0)
    }

    /// One 8-byte store.
    #[inline]
    pub fn store(&self, page: usize, word: usize, value: u64) {
        self.store_tagged(page, word, 0, value);
    }

    /// One 8-byte load through a pointer with a tag.
    #[inline]
    pub fn load_tagged(&self, page: usize, word: usize, tag: u8) -> u64 {
        let address = mte::tagged(self.page(page) + word % WORDS * 8, tag);
        // SAFETY: an aligned word of the region.
        unsafe { (address as *const u64).read_volatile() }
    }

    /// One 8-byte store through a pointer with a tag.
    #[inline]
    pub fn store_tagged(&self, page: usize, word: usize, tag: u8, value: u64) {
        let address = mte::tagged(self.page(page) + word % WORDS * 8, tag);
        // SAFETY: an aligned word of the region.
        unsafe { (address as *mut u64).write_volatile(value) }
    }

    /// One 8-byte store to each page, in order: its own number. The timed loop of the bench, so nothing else
    /// is in it.
    #[inline(never)]
    pub fn touch_store(&self) {
        for page in 0..self.pages {
            // SAFETY: the first word of a page of the region.
            unsafe { ((self.base + page * PAGE) as *mut u64).write_volatile(page as u64) }
        }
    }

    /// One 8-byte load from each page, in order.
    #[inline(never)]
    pub fn touch_load(&self) {
        for page in 0..self.pages {
            // SAFETY: the first word of a page of the region.
            unsafe { ((self.base + page * PAGE) as *const u64).read_volatile() };
        }
    }

    /// One 8-byte load from each page, in the order in which they are given.
    #[inline(never)]
    pub fn touch_load_in(&self, order: &[u16]) {
        for &page in order {
            // SAFETY: the first word of a page of the region.
            unsafe { (self.page(page.into()) as *const u64).read_volatile() };
        }
    }

    /// Stores a whole page.
    pub fn write(&self, page: usize, words: &Words) {
        let to = self.page(page) as *mut u64;
        for (i, &word) in words.iter().enumerate() {
            // SAFETY: `words` is as long as a page.
            unsafe { to.add(i).write_volatile(word) }
        }
    }

    /// How many bytes of a page differ from `want`, and the first word that does.
    pub fn wrong_bytes(&self, page: usize, want: &Words) -> (usize, Option<usize>) {
        let from = self.page(page) as *const u64;
        // SAFETY: `i` is below the words of a page.
        let load = |i: usize| unsafe { from.add(i).read_volatile() };
        // Almost every page is right: find that out without a branch for each word.
        let difference = (0..WORDS).fold(0, |all, i| all | (load(i) ^ want[i]));
        if difference == 0 {
            return (0, None);
        }
        let differing = |i: usize| (load(i) ^ want[i]).to_ne_bytes().iter().filter(|&&b| b != 0).count();
        ((0..WORDS).map(differing).sum(), (0..WORDS).find(|&i| load(i) != want[i]))
    }

    /// Gives every granule of a page its tag. The page must be mapped with [`Prot::MTE`].
    pub fn set_tags(&self, page: usize, tags: &Tags) {
        // SAFETY: a page of the region; one without tags or not writable ends the program.
        unsafe { mte::set_tags(self.page(page), tags) }
    }

    /// Gives one granule of a page its tag.
    pub fn set_tag(&self, page: usize, granule: usize, tag: u8) {
        // SAFETY: a granule of a page of the region.
        unsafe { mte::set_tag(self.page(page) + granule % crate::GRANULES * 16, tag) }
    }

    /// The tag of one granule.
    pub fn tag(&self, page: usize, granule: usize) -> u8 {
        // SAFETY: a granule of a page of the region.
        unsafe { mte::tag(self.page(page) + granule % crate::GRANULES * 16) }
    }

    /// How many granules of a page do not have the tag in `want`, and the first of them.
    pub fn wrong_tags(&self, page: usize, want: &Tags) -> (usize, Option<usize>) {
        // SAFETY: a page of the region.
        unsafe { mte::wrong_tags(self.page(page), want) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // An error leaves memory mapped that nobody uses.
        let _ = self.unmap(0..self.pages);
    }
}
