//! The tags of objects of one size that lie side by side, as in an allocator's slab, in one word. Pure.
//!
//! Each object has one tag. It may have a header, a granule before it whose tag is 0. What is free is an object of tag
//! 0, so that a slab which is not full is none the worse. The page begins anywhere within an object and ends anywhere.
//!
//! **Form**, from the low end, where a page has 2^b granules: the stride, which is the granules of an object with its
//! header, in b bits; the first granule after the page's start at which an object begins, from 1 to the stride, less
//! one, in b bits; one bit that says whether there are headers; a tag of 4 bits for each object, the one that the
//! page begins with being the first. `2 b + 1 + 4 n <= 64` gives 11 objects at 4 KiB, 10 at 16 KiB, 9 at 64 KiB:
//! objects from 416 bytes on at 4 KiB, where runs would do from 1 KiB on, and with headers from 1.5 KiB on.

use super::{NIBBLES, start_bits};
use crate::granule::Granule;

/// The objects that a word holds, in part or whole: the largest `n` with `2 b + 1 + 4 n <= 64`.
pub const fn max_objects<G: Granule>() -> u32 {
    (63 - 2 * start_bits::<G>()) / 4
}

/// The smallest stride of a page with so many objects at most: all but the first lie behind each other from granule 1.
const fn least_stride<G: Granule>() -> usize {
    ((1 << start_bits::<G>()) - 1usize).div_ceil(max_objects::<G>() as usize - 1)
}

/// The first word in which a page that has more runs than [`max_runs`](super::max_runs) may have the first edge too
/// many: two edges an object, the first of them at granule 1.
pub(super) const fn first_word<G: Granule>() -> usize {
    (super::max_runs::<G>() / 2) as usize * least_stride::<G>() / NIBBLES as usize
}

/// What a word says.
#[derive(Copy, Clone)]
struct Layout {
    /// Granules from object to object.
    stride: usize,
    /// Where the first object begins that the page does not begin with; at most the stride.
    first: usize,
    /// Granules of a header: 0 or 1.
    header: usize,
}

impl Layout {
    /// The objects that lie in part or whole within `granules`.
    const fn objects(self, granules: usize) -> usize {
        1 + granules.saturating_sub(self.first).div_ceil(self.stride)
    }

    /// The granules of the page that have the tag of object `index`; none when its header is all that is left of it.
    fn place(self, index: usize, granules: usize) -> core::ops::Range<usize> {
        let start = self.first + index * self.stride;
        let (start, end) = ((start + self.header).saturating_sub(self.stride), start.min(granules));
        start.min(end)..end
    }
}

#[inline]
fn tag(tags: &[u64], granule: usize) -> u64 {
    tags.get(granule / NIBBLES as usize).map_or(0, |word| word >> (granule % NIBBLES as usize * 4) & 0xf)
}

/// Writes `tag` to some granules whose tags are 0.
fn paint(tags: &mut [u64], granules: core::ops::Range<usize>, tag: u64) {
    for granule in granules {
        if let Some(word) = tags.get_mut(granule / NIBBLES as usize) {
            *word |= tag << (granule % NIBBLES as usize * 4);
        }
    }
}

/// The word for a page's tags, given in the saved form, if they are of this kind.
#[cold]
#[inline(never)]
pub fn encode<G: Granule>(tags: &[u64]) -> Option<u64> {
    let bits = start_bits::<G>();
    let granules = 1 << bits;
    let layout = find::<G>(tags)?;
    let mut word = layout.stride as u64 | (layout.first as u64 - 1) << bits | (layout.header as u64) << (2 * bits);
    for index in 0..layout.objects(granules) {
        let place = layout.place(index, granules);
        let tag = if place.is_empty() { 0 } else { tag(tags, place.start) };
        word |= tag << (2 * bits + 1 + 4 * index as u32);
    }
    let mut again = G::ZERO_TAGS;
    decode::<G>(word, &mut again);
    (again.as_ref() == tags).then_some(word)
}

/// The layout that the edges suggest: an allegation, until all the tags have been compared.
fn find<G: Granule>(tags: &[u64]) -> Option<Layout> {
    let granules = 1 << start_bits::<G>();
    // Objects begin at every edge, or, where there are headers, at those: each of the two is looked at.
    let (mut stride, mut first, mut last) = ([usize::MAX; 2], [0; 2], [None::<usize>; 2]);
    let mut headers = false;
    let mut edges = 0;
    for granule in 1..granules {
        let (before, here) = (tag(tags, granule - 1), tag(tags, granule));
        if before == here {
            continue;
        }
        edges += 1;
        if edges > 2 * max_objects::<G>() {
            return None;
        }
        let is_header = here == 0 && granule + 1 < granules && tag(tags, granule + 1) != 0;
        headers |= is_header;
        for (kind, counts) in [true, is_header].into_iter().enumerate() {
            if counts {
                match last[kind] {
                    None => first[kind] = granule,
                    Some(last) => stride[kind] = stride[kind].min(granule - last),
                }
                last[kind] = Some(granule);
            }
        }
    }
    let kind = usize::from(headers);
    let stride = stride[kind];
    if stride < least_stride::<G>() || stride >= granules {
        return None;
    }
    let first = match first[kind] % stride {
        0 => stride,
        first => first,
    };
    let layout = Layout { stride, first, header: kind };
    (layout.objects(granules) <= max_objects::<G>() as usize).then_some(layout)
}

/// Writes the tags that `word` stands for, in the saved form.
pub fn decode<G: Granule>(word: u64, tags: &mut G::TagWords) {
    let bits = start_bits::<G>();
    let granules = 1 << bits;
    let field = |shift: u32| (word >> shift) as usize & (granules - 1);
    // A word of no layout at all decodes to something, and ends.
    let layout = Layout { stride: field(0).max(1), first: field(bits) + 1, header: (word >> (2 * bits) & 1) as usize };
    let tags = tags.as_mut();
    tags.fill(0);
    for index in 0..layout.objects(granules).min(max_objects::<G>() as usize) {
        let tag = word >> (2 * bits + 1 + 4 * index as u32) & 0xf;
        paint(tags, layout.place(index, granules), tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::{K4, K16, K64};
    use crate::mte::{Encoded, max_runs};
    use std::vec;
    use std::vec::Vec;

    /// A page of objects; `seed` chooses the tags, of which some are 0.
    fn page<G: Granule>(stride: usize, first: usize, header: usize, seed: u64) -> Vec<u64> {
        let granules = 1 << start_bits::<G>();
        let layout = Layout { stride, first, header };
        let mut tags = vec![0; G::TAG_WORDS];
        let mut state = seed;
        for index in 0..layout.objects(granules) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            paint(&mut tags, layout.place(index, granules), state >> 33 & 0xf);
        }
        tags
    }

    /// Whatever is kept brings the same tags back; the number of pages that needed no raw image.
    fn round_trip<G: Granule>(tags: &[u64]) -> bool {
        let mut again = G::ZERO_TAGS;
        match crate::mte::encode::<G>(tags) {
            Encoded::Uniform(tag) => again.as_mut().fill(crate::mte::repeated(tag)),
            Encoded::Packed(runs) => crate::mte::unpack::<G>(runs, &mut again),
            Encoded::Strided(word) => decode::<G>(word, &mut again),
            Encoded::Raw => return false,
        }
        assert_eq!(again.as_ref(), tags);
        true
    }

    fn every_layout<G: Granule>(step: usize) {
        let granules: usize = 1 << start_bits::<G>();
        let (mut fitting, mut kept) = (0, 0);
        for stride in (2..granules).step_by(step) {
            for first in (1..=stride).step_by(step) {
                for header in [0, 1] {
                    for seed in 1..4 {
                        let tags = page::<G>(stride, first, header, seed);
                        let fits = Layout { stride, first, header }.objects(granules) <= max_objects::<G>() as usize;
                        let is_kept = round_trip::<G>(&tags);
                        fitting += u32::from(fits);
                        kept += u32::from(fits && is_kept);
                    }
                }
            }
        }
        // The layout of a few is not to be seen in their tags: neighbours that are equal, a header between free
        // objects.
        assert!(kept * 100 > fitting * 97, "{kept} of {fitting}");
    }

    #[test]
    fn every_layout_round_trips() {
        every_layout::<K4>(1);
        every_layout::<K16>(7);
        every_layout::<K64>(61);
    }

    #[test]
    fn a_word_holds_the_objects_of_the_sum() {
        assert_eq!((max_objects::<K4>(), max_objects::<K16>(), max_objects::<K64>()), (11, 10, 9));
        assert_eq!(least_stride::<K4>(), 26);
        // What is refused early could not have been kept.
        assert!(first_word::<K4>() * 16 <= (max_runs::<K4>() / 2) as usize * least_stride::<K4>());
    }

    /// One granule that is not as the others say.
    #[test]
    fn a_stray_tag_is_not_lost() {
        for stride in 26..60 {
            for header in [0, 1] {
                let tags = page::<K4>(stride, stride / 2, header, 9);
                for granule in 0..256 {
                    let mut tags = tags.clone();
                    tags[granule / 16] ^= 5 << (granule % 16 * 4);
                    round_trip::<K4>(&tags);
                }
            }
        }
    }

    #[test]
    fn random_words_decode_to_something() {
        let mut state = 7u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (mut small, mut large) = (K4::ZERO_TAGS, K64::ZERO_TAGS);
            decode::<K4>(state, &mut small);
            decode::<K64>(state.rotate_left(17), &mut large);
        }
    }
}
