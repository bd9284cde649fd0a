//! Tag images: what is kept of a page's allocation tags while the page is out. Pure.
//!
//! A page has a 4-bit tag for every 16 bytes: 256 granules and 128 bytes at 4 KiB. The saved form is ours, whatever
//! the registers do: nibble `i % 16` of word `i / 16` is the tag of granule `i`, so the lowest address is the lowest
//! nibble.
//!
//! | kind | what is kept | where |
//! |---|---|---|
//! | untagged | nothing: the page never had tags of its own | the slot's state word |
//! | uniform | one tag | the slot's tags word |
//! | packed | up to [`max_runs`] runs of equal tags | the slot's tags word |
//! | strided | objects of one size, up to [`strided::max_objects`] in part or whole | the slot's tags word |
//! | raw | all of them | a room of the area's pool |
//!
//! **Packed form.** Memory from an allocator has one tag an object, so that most pages are a few runs. `r` runs have
//! `r` tags of 4 bits and `r - 1` starts of `b` bits, where a page has 2^b granules; `4 r + b (r - 1) <= 64` gives 6
//! runs at 4 KiB (24 + 40 bits), 5 at 16 KiB (20 + 40) and 4 at 64 KiB (16 + 36). Tags stand in the low bits, starts
//! above them in ascending order; a start of 0 says that there are no more runs, as only the first run starts at 0.

pub mod strided;

use crate::granule::{Granule, TAG_GRANULE_BYTES};

/// What was kept of a page's tags.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum TagImage {
    /// The page has no tags of its own; they read as zero.
    Untagged,
    /// One tag throughout.
    Uniform(u8),
    /// A few runs, in the form of the module's head.
    Packed(u64),
    /// Objects of one size, in the form of [`strided`].
    Strided(u64),
    /// A full image, in the room with this number.
    Raw(u32),
}

/// A page's tags as they fit in a slot's word, or not.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Encoded {
    /// One tag throughout.
    Uniform(u8),
    /// A few runs.
    Packed(u64),
    /// Objects of one size.
    Strided(u64),
    /// Nothing that fits in a word: needs a raw room.
    Raw,
}

/// Nibbles of a word.
const NIBBLES: u32 = 16;
const LOW_NIBBLES: u64 = 0x1111_1111_1111_1111;

/// log2 of a page's granules.
const fn start_bits<G: Granule>() -> u32 {
    (G::SIZE / TAG_GRANULE_BYTES).trailing_zeros()
}

/// The runs that a word holds: the largest `r` with `4 r + b (r - 1) <= 64`.
pub const fn max_runs<G: Granule>() -> u32 {
    (64 + start_bits::<G>()) / (4 + start_bits::<G>())
}

/// The word that repeats `tag` in every nibble.
pub const fn repeated(tag: u8) -> u64 {
    (tag & 0xf) as u64 * LOW_NIBBLES
}

/// How many nibbles of a word that has only their lowest bits are set.
///
/// The product's top nibble is the sum of 15 nibbles; the 16th is added apart, as the sum would wrap. A population
/// count without FP/SIMD registers takes a dozen instructions.
#[inline]
const fn ones(low_nibbles: u64) -> u32 {
    ((low_nibbles & LOW_NIBBLES >> 4).wrapping_mul(LOW_NIBBLES) >> 60) as u32 + (low_nibbles >> 60) as u32
}

/// Encodes a page's tags, given in the saved form.
#[inline]
pub fn encode<G: Granule>(tags: &[u64]) -> Encoded {
    let bits = start_bits::<G>();
    let runs = max_runs::<G>();
    let mut packed = tags.first().copied().unwrap_or(0) & 0xf;
    let mut found = 1;
    let mut last = packed;
    for (index, &word) in tags.iter().enumerate() {
        // Nibble i is nonzero where granule i differs from the one before it.
        let differs = word ^ (word << 4 | last);
        last = word >> 60;
        if differs == 0 {
            continue;
        }
        let mut edges = (differs | differs >> 1 | differs >> 2 | differs >> 3) & LOW_NIBBLES;
        if found + ones(edges) > runs {
            // So many edges so early are those of objects that are too small for it.
            if index < strided::first_word::<G>() {
                return Encoded::Raw;
            }
            return strided::encode::<G>(tags).map_or(Encoded::Raw, Encoded::Strided);
        }
        while edges != 0 {
            let nibble = edges.trailing_zeros() / 4;
            let start = index as u64 * NIBBLES as u64 + nibble as u64;
            packed |= (word >> (4 * nibble) & 0xf) << (4 * found);
            packed |= start << (4 * runs + bits * (found - 1));
            found += 1;
            edges &= edges - 1;
        }
    }
    if found == 1 { Encoded::Uniform((packed & 0xf) as u8) } else { Encoded::Packed(packed) }
}

/// Writes the tags that `packed` stands for, in the saved form.
pub fn unpack<G: Granule>(packed: u64, tags: &mut G::TagWords) {
    let bits = start_bits::<G>();
    let runs = max_runs::<G>();
    let granules = 1 << bits;
    let start_of = |run: u32| {
        if run == 0 {
            return 0;
        }
        if run >= runs {
            return granules;
        }
        match packed >> (4 * runs + bits * (run - 1)) & ((1 << bits) - 1) {
            0 => granules,
            start => start,
        }
    };
    let mut run = 0;
    let mut end = start_of(1);
    for (index, word) in tags.as_mut().iter_mut().enumerate() {
        let first = index as u64 * NIBBLES as u64;
        if end >= first + NIBBLES as u64 {
            *word = repeated((packed >> (4 * run) & 0xf) as u8);
            continue;
        }
        *word = 0;
        for nibble in 0..NIBBLES as u64 {
            while run + 1 < runs && first + nibble >= end {
                run += 1;
                end = start_of(run + 1);
            }
            *word |= (packed >> (4 * run) & 0xf) << (4 * nibble);
        }
        if end <= first + NIBBLES as u64 && run + 1 < runs && end < granules {
            run += 1;
            end = start_of(run + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::{K4, K16, K64};
    use std::vec;
    use std::vec::Vec;

    fn tags_of_runs<G: Granule>(runs: &[(usize, u8)]) -> Vec<u64> {
        let mut tags = vec![0u64; G::TAG_WORDS];
        for (index, &(start, tag)) in runs.iter().enumerate() {
            let end = runs.get(index + 1).map_or(G::TAG_WORDS * 16, |next| next.0);
            for granule in start..end {
                tags[granule / 16] |= (tag as u64) << (granule % 16 * 4);
            }
        }
        tags
    }

    fn round_trip<G: Granule>(runs: &[(usize, u8)]) {
        let tags = tags_of_runs::<G>(runs);
        let back = match encode::<G>(&tags) {
            Encoded::Uniform(tag) => vec![repeated(tag); G::TAG_WORDS],
            Encoded::Packed(packed) => {
                let mut tags = G::ZERO_TAGS;
                unpack::<G>(packed, &mut tags);
                tags.as_ref().to_vec()
            }
            Encoded::Strided(word) => {
                let mut tags = G::ZERO_TAGS;
                strided::decode::<G>(word, &mut tags);
                tags.as_ref().to_vec()
            }
            Encoded::Raw => {
                assert!(runs.len() as u32 > max_runs::<G>(), "{runs:?} should fit");
                return;
            }
        };
        assert_eq!(tags, back, "{runs:?}");
    }

    #[test]
    fn a_word_holds_the_runs_of_the_sum() {
        assert_eq!((max_runs::<K4>(), max_runs::<K16>(), max_runs::<K64>()), (6, 5, 4));
    }

    #[test]
    fn every_single_edge_round_trips() {
        for edge in 1..256 {
            for (low, high) in [(0, 1), (1, 0), (15, 14), (0, 15)] {
                round_trip::<K4>(&[(0, low), (edge, high)]);
            }
        }
    }

    #[test]
    fn every_pair_of_edges_round_trips() {
        for first in 1..255 {
            for second in first + 1..256 {
                round_trip::<K4>(&[(0, 9), (first, 0), (second, 9)]);
            }
        }
    }

    fn random_runs<G: Granule>(seed: u64) {
        let granules = G::TAG_WORDS * 16;
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        for _ in 0..20_000 {
            let wanted = 1 + next() % (max_runs::<G>() as usize + 1);
            let mut starts: Vec<usize> = (1..wanted).map(|_| 1 + next() % (granules - 1)).collect();
            starts.push(0);
            starts.sort_unstable();
            starts.dedup();
            let mut tag = next() as u8 & 15;
            let runs: Vec<(usize, u8)> = starts
                .into_iter()
                .map(|start| {
                    tag = (tag + 1 + next() as u8 % 15) & 15;
                    (start, tag)
                })
                .collect();
            round_trip::<G>(&runs);
        }
    }

    #[test]
    fn random_runs_round_trip_at_every_granule() {
        random_runs::<K4>(1);
        random_runs::<K16>(2);
        random_runs::<K64>(3);
    }

    #[test]
    fn alternating_tags_need_a_raw_image() {
        assert_eq!(encode::<K4>(&[0xf0f0_f0f0_f0f0_f0f0; 16]), Encoded::Raw);
    }
}
