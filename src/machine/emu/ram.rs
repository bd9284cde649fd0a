//! RAM: words of data and packed tags, all of them atomics, at addresses that never change.
//!
//! At the start every frame holds garbage that is recognisable in a report, looks like a valid descriptor to a walker
//! (bits 1:0 are 0b11) and carries tags that differ from granule to granule: what nobody initialised is seen at once.

use core::marker::PhantomData;
use core::ptr::NonNull;
use std::boxed::Box;

use crate::addr::{Pfn, PfnRange};
use crate::granule::{Granule, TAG_GRANULE_BYTES};
use crate::machine::{EntryAt, Window, sum};
use crate::sync::Ordering::Relaxed;
use crate::sync::stepless::AtomicU64;

/// The upper half of every garbage word.
pub const GARBAGE: u64 = 0x0bad_f00d_0000_0000;

pub(super) struct Ram<G> {
    frames: PfnRange,
    /// One page longer than needed, so that frame 0 can start at a page boundary of the host.
    words: Box<[AtomicU64]>,
    /// Index of the first word of the first frame.
    first_word: usize,
    tags: Box<[AtomicU64]>,
    granule: PhantomData<G>,
}

impl<G: Granule> Ram<G> {
    pub(super) fn new(frames: PfnRange) -> Self {
        let count = frames.pages() as usize;
        let words: Box<[_]> = (0..(count + 1) * G::ENTRIES).map(|_| AtomicU64::new(0)).collect();
        let first_word = words.as_ptr().align_offset(G::SIZE);
        assert!(first_word < G::ENTRIES, "the host cannot align RAM");
        let tags = (0..count * G::TAG_WORDS).map(|_| AtomicU64::new(0)).collect();
        let ram = Self { frames, words, first_word, tags, granule: PhantomData };
        for frame in 0..count as u64 {
            ram.scribble(frames.start().offset(frame));
        }
        ram
    }

    pub(super) fn frames(&self) -> PfnRange {
        self.frames
    }

    pub(super) fn contains(&self, pfn: Pfn) -> bool {
        self.frames.contains(pfn)
    }

    /// The number of a frame, counted from the first one. The caller names frames of this RAM only.
    #[inline]
    pub(super) fn slot(&self, pfn: Pfn) -> usize {
        assert!(self.frames.contains(pfn), "{pfn:?} is not RAM of this machine ({:?})", self.frames);
        (pfn.number() - self.frames.start().number()) as usize
    }

    #[inline]
    fn page(&self, pfn: Pfn) -> &[AtomicU64] {
        let first = self.first_word + self.slot(pfn) * G::ENTRIES;
        &self.words[first..first + G::ENTRIES]
    }

    #[inline]
    fn tags(&self, pfn: Pfn) -> &[AtomicU64] {
        let first = self.slot(pfn) * G::TAG_WORDS;
        &self.tags[first..first + G::TAG_WORDS]
    }

    #[inline]
    pub(super) fn entry(&self, at: EntryAt) -> &AtomicU64 {
        &self.page(at.table)[at.index]
    }

    /// Fills a frame and its tags with garbage.
    pub(super) fn scribble(&self, pfn: Pfn) {
        for (index, word) in self.page(pfn).iter().enumerate() {
            word.store(GARBAGE | pfn.number() << 16 & 0xffff_0000 | (index as u64) << 2 & 0xfffc | 0b11, Relaxed);
        }
        self.scribble_tags(pfn);
    }

    pub(super) fn scribble_tags(&self, pfn: Pfn) {
        for (index, word) in self.tags(pfn).iter().enumerate() {
            word.store((pfn.number() + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), Relaxed);
        }
    }

    pub(super) fn zero(&self, pfn: Pfn) {
        self.page(pfn).iter().for_each(|word| word.store(0, Relaxed));
    }

    pub(super) fn copy(&self, from: Pfn, to: Pfn) {
        for (from, to) in self.page(from).iter().zip(self.page(to)) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

    pub(super) fn sum(&self, pfn: Pfn) -> u64 {
        sum::of_page(self.page(pfn).iter().map(|word| word.load(Relaxed)))
    }

    pub(super) fn repeated_word(&self, pfn: Pfn) -> Option<u64> {
        let page = self.page(pfn);
        let first = page[0].load(Relaxed);
        page.iter().all(|word| word.load(Relaxed) == first).then_some(first)
    }

    pub(super) fn fill(&self, pfn: Pfn, with: u64) {
        self.page(pfn).iter().for_each(|word| word.store(with, Relaxed));
    }

    pub(super) fn read(&self, pfn: Pfn, into: &mut [u64]) {
        for (word, into) in self.page(pfn).iter().zip(into) {
            *into = word.load(Relaxed);
        }
    }

    pub(super) fn write(&self, pfn: Pfn, from: &[u64]) {
        for (word, from) in self.page(pfn).iter().zip(from) {
            word.store(*from, Relaxed);
        }
    }

    /// The data word at byte `offset` of a frame.
    pub(super) fn word(&self, pfn: Pfn, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "an access of 8 bytes is aligned to 8");
        &self.page(pfn)[offset / 8]
    }

    pub(super) fn zero_tags(&self, pfn: Pfn) {
        self.tags(pfn).iter().for_each(|word| word.store(0, Relaxed));
    }

    pub(super) fn copy_tags(&self, from: Pfn, to: Pfn) {
        for (from, to) in self.tags(from).iter().zip(self.tags(to)) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

    pub(super) fn read_tags(&self, pfn: Pfn, into: &mut [u64]) {
        for (word, into) in self.tags(pfn).iter().zip(into) {
            *into = word.load(Relaxed);
        }
    }

    pub(super) fn write_tags(&self, pfn: Pfn, from: &[u64]) {
        for (word, from) in self.tags(pfn).iter().zip(from) {
            word.store(*from, Relaxed);
        }
    }

    /// The tag of the granule at byte `offset` of a frame.
    pub(super) fn tag(&self, pfn: Pfn, offset: usize) -> u8 {
        let granule = offset / TAG_GRANULE_BYTES;
        (self.tags(pfn)[granule / 16].load(Relaxed) >> (granule % 16 * 4) & 0xf) as u8
    }

    pub(super) fn set_tag(&self, pfn: Pfn, offset: usize, tag: u8) {
        let granule = offset / TAG_GRANULE_BYTES;
        let shift = granule % 16 * 4;
        let word = &self.tags(pfn)[granule / 16];
        word.store(word.load(Relaxed) & !(0xf << shift) | u64::from(tag & 0xf) << shift, Relaxed);
    }

    pub(super) fn window(&self, pfn: Pfn) -> Window<'_> {
        let first = NonNull::from(self.page(pfn)).cast();
        // SAFETY: the page's words are interior-mutable, whole, and stay where they are as long as `self` is borrowed.
        unsafe { Window::new(first, G::SIZE) }
    }
}
