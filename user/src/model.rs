//! What a page must hold, by formula: data and tags are functions of a seed and the page's number, so that
//! any page can be checked, byte by byte and granule by granule, without a copy of it.
//!
//! The mix is meant to look like a program's memory to a swap implementation. Data: one page in sixteen is
//! zero, one filled with a single word, one holds text, the rest is noise. Tags: one page in eight has none,
//! three have one tag (a large object), three have two to six runs (a size class of a heap, neighbours
//! differ), one has another tag from granule to granule, which no compression will help. Of these, "page" is
//! one of the kernel's, so that it has pages of every kind to deal with whatever their size; of the data it is
//! one of 4 KiB.

use crate::{
    GRANULES, PAGE, Tags, WORDS, Words, eprintln,
    pattern::{self, Pattern, mix},
    region::Region,
};

/// Hash of (seed, page, use), for any choice that must repeat.
#[inline]
pub const fn hash(seed: u64, page: u64, what: u64) -> u64 {
    mix(mix(seed ^ mix(page)).wrapping_add(what))
}

/// How the tags of a page of the kernel look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagKind {
    /// All 0.
    Untagged,
    /// All equal.
    Uniform,
    /// Two to six runs.
    Runs,
    /// Another one from granule to granule.
    Granules,
}

/// How the tags of a page of the kernel look under this seed.
pub const fn tag_kind(seed: u64, page: u64) -> TagKind {
    match hash(seed, page, 1) % 8 {
        0 => TagKind::Untagged,
        1..=3 => TagKind::Uniform,
        4..=6 => TagKind::Runs,
        _ => TagKind::Granules,
    }
}

/// The contents of one page.
pub struct Contents {
    /// Its data.
    pub words: Words,
    /// Its tags.
    pub tags: Tags,
    /// Pages of 4 KiB in one of the kernel's.
    span: usize,
}

impl Contents {
    /// A page that nobody has touched, for a kernel with pages of `kernel_page` bytes.
    pub const fn new(kernel_page: usize) -> Self {
        let span = if kernel_page > PAGE { kernel_page / PAGE } else { 1 };
        Self { words: [0; WORDS], tags: [0; GRANULES], span }
    }

    /// Sets the data that belongs to (seed, page).
    pub fn set_words(&mut self, seed: u64, page: u64) {
        let h = hash(seed, page, 0);
        match h % 16 {
            0 => self.words.fill(0),
            1 => self.words.fill(h),
            2 => pattern::page(&mut self.words, Pattern::Text, h),
            _ => {
                // A counter, whirled a little: cheap, no two words alike, and a word out of place shows.
                let mut counter = h;
                self.words.fill_with(|| {
                    counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    counter ^ (counter >> 29)
                });
            }
        }
    }

    /// Sets the tags that belong to (seed, page).
    pub fn set_tags(&mut self, seed: u64, page: u64) {
        let whole = page / self.span as u64;
        // The granules of the kernel's page that lie before this page's.
        let before = page as usize % self.span * GRANULES;
        let h = hash(seed, whole, 2);
        match tag_kind(seed, whole) {
            TagKind::Untagged => self.tags.fill(0),
            TagKind::Uniform => self.tags.fill(1 + (h % 15) as u8),
            TagKind::Runs => {
                // Granules of an object in 4 KiB: a half, a third, a quarter, a fifth, a sixth of a page.
                const SIZE: [usize; 5] = [128, 85, 64, 52, 44];
                let size = SIZE[(h >> 8) as usize % SIZE.len()] * self.span;
                let here = |granule: usize| granule.clamp(before, before + GRANULES) - before;
                let mut start = 0;
                let mut tag = 1 + (h % 15) as u8;
                let mut steps = h >> 16;
                while start < before + GRANULES {
                    self.tags[here(start)..here(start + size)].fill(tag);
                    // 1 to 14 further on, among 1 to 15: never the same, never 0.
                    tag = 1 + (tag + (steps % 14) as u8) % 15;
                    steps >>= 4;
                    start += size;
                }
            }
            TagKind::Granules => {
                for (granule, tag) in self.tags.iter_mut().enumerate() {
                    *tag = pattern::tag(h & 0xffff, before + granule);
                }
            }
        }
    }
}

/// What the checks found.
#[derive(Default)]
pub struct Tally {
    bytes: u64,
    tags: u64,
    told: u32,
}

impl Tally {
    /// The first findings are told one by one; the rest is counted.
    const TELL: u32 = 8;

    /// Bytes and tags that were wrong.
    pub fn total(&self) -> u64 {
        self.bytes + self.tags
    }

    /// Compares a word, as loaded, with what it must be.
    pub fn value(&mut self, page: usize, word: usize, got: u64, want: u64) {
        if got != want {
            self.count_bytes((got ^ want).to_ne_bytes().iter().filter(|&&b| b != 0).count(), page, word, got, want);
        }
    }

    /// Compares the data of a page with what it must be.
    pub fn words(&mut self, region: &Region, page: usize, want: &Words) {
        if let (wrong, Some(first)) = region.wrong_bytes(page, want) {
            self.count_bytes(wrong, page, first, region.load(page, first), want[first]);
        }
    }

    /// Compares the tags of a page with what they must be.
    pub fn tags(&mut self, region: &Region, page: usize, want: &Tags) {
        if let (wrong, Some(first)) = region.wrong_tags(page, want) {
            self.tags += wrong as u64;
            if self.tell() {
                let (got, want) = (region.tag(page, first), want[first]);
                eprintln!("page {page}: {wrong} wrong tags, first of granule {first}: {got:#x}, not {want:#x}");
            }
        }
    }

    fn count_bytes(&mut self, wrong: usize, page: usize, word: usize, got: u64, want: u64) {
        self.bytes += wrong as u64;
        if self.tell() {
            let at = word * 8;
            eprintln!("page {page}: {wrong} wrong bytes, first word at +{at:#x}: {got:#018x}, not {want:#018x}");
        }
    }

    fn tell(&mut self) -> bool {
        self.told += 1;
        self.told <= Self::TELL
    }

    /// Prints the last line of a program, and gives its exit status.
    pub fn conclude(&self) -> i32 {
        if self.total() != 0 {
            eprintln!("{} bytes and {} tags were wrong", self.bytes, self.tags);
        }
        crate::println!("{} mismatches", self.total());
        i32::from(self.total() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn tags_are_of_their_kind() {
        for span in [1, 4, 16] {
            let mut contents = Contents::new(span * PAGE);
            let mut seen = [0; 4];
            for whole in 0..4000 {
                let mut tags = Vec::new();
                for page in whole * span as u64..(whole + 1) * span as u64 {
                    contents.set_tags(7, page);
                    tags.extend(contents.tags);
                }
                let runs = 1 + tags.windows(2).filter(|w| w[0] != w[1]).count();
                let kind = tag_kind(7, whole);
                seen[kind as usize] += 1;
                match kind {
                    TagKind::Untagged => assert!(runs == 1 && tags[0] == 0),
                    TagKind::Uniform => assert!(runs == 1 && tags[0] != 0),
                    TagKind::Runs => assert!((2..=6).contains(&runs) && tags.iter().all(|t| (1..16).contains(t))),
                    TagKind::Granules => assert!(runs > 200 * span && tags.iter().all(|t| *t < 16)),
                }
            }
            for (count, eighths) in seen.into_iter().zip([1, 3, 3, 1]) {
                assert!((400 * eighths..600 * eighths).contains(&count), "{seen:?}");
            }
        }
    }

    #[test]
    fn contents_repeat_and_differ() {
        let (mut one, mut two) = (Contents::new(PAGE), Contents::new(PAGE));
        one.set_words(1, 100);
        two.set_words(1, 101);
        assert_ne!(one.words, two.words);
        two.set_words(1, 100);
        assert_eq!(one.words, two.words);
        two.set_words(2, 100);
        assert_ne!(one.words, two.words);
    }
}
