//! What is kept of the tags that a heap has: bytes for each page, beside 128 of raw image at 4 KiB.
//!
//! **The heap.** Objects lie in runs of pages of one size class, side by side from a class-aligned start, as in a slab;
//! the classes are those with four steps an octave, from 16 bytes to 64 KiB. Each object has a tag of its own, from 1
//! to 15, other than its neighbour's, as allocators give them; freed objects keep a tag, of nobody. What is mapped and
//! not given out yet has tag 0. One kind of heap has a header of one granule before each object, which is tagged 0 (as
//! allocators have that keep their own words from their programs); the other has none. Every octave of sizes has as
//! many pages as every other: small objects are many, large ones are large. That is harsher than the heaps of programs,
//! which have most of their bytes in large objects.
//!
//! The sum is of what is kept per page that has tags: the word in the slot's record, and a raw image where it takes
//! one.

mod support;

use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::mte::{Encoded, encode, repeated, strided, unpack};

use support::Dice;

/// What lies before each object.
#[derive(Copy, Clone, Debug)]
enum Header {
    None,
    Granule,
}

/// Bytes of an object with its header, in granules of 16.
fn classes() -> impl Iterator<Item = usize> {
    (0..12).flat_map(|octave| (4..8).map(move |quarter| ((quarter << octave) / 4).max(1)))
}

/// Tags of the pages of a slab of one class, granule by granule.
fn slab(dice: &mut Dice, granules: usize, class: usize, header: Header) -> Vec<u8> {
    let mut tags = vec![0; granules];
    let mut last = 0;
    // The last part of some slabs is not given out yet.
    let used = if dice.below(4) == 0 { granules - dice.below(granules as u64 / 2) as usize } else { granules };
    let mut start = 0;
    while start + class <= used {
        let tag = loop {
            let tag = 1 + dice.below(15) as u8;
            if tag != last {
                break tag;
            }
        };
        last = tag;
        let first = match header {
            Header::Granule if class > 1 => start + 1,
            _ => start,
        };
        tags[first..start + class].fill(tag);
        start += class;
    }
    tags
}

fn packed(tags: &[u8]) -> Vec<u64> {
    tags.chunks(16).map(|granules| granules.iter().rev().fold(0, |word, &tag| word << 4 | u64::from(tag))).collect()
}

/// The image of a page's tags, which brings them back.
fn check<G: Granule>(tags: &[u8]) -> Encoded {
    let tags = packed(tags);
    let image = encode::<G>(&tags);
    let mut again = G::ZERO_TAGS;
    match image {
        Encoded::Uniform(tag) => again.as_mut().fill(repeated(tag)),
        Encoded::Packed(runs) => unpack::<G>(runs, &mut again),
        Encoded::Strided(word) => strided::decode::<G>(word, &mut again),
        Encoded::Raw => return image,
    }
    assert_eq!(again.as_ref(), tags);
    image
}

/// Bytes for some pages with tags.
#[derive(Default)]
struct Kept {
    pages: usize,
    /// By this library.
    ours: usize,
    /// If a word held one tag or a few runs, and nothing else.
    runs: usize,
}

impl Kept {
    fn add<G: Granule>(&mut self, tags: &[u8]) {
        let image = check::<G>(tags);
        self.pages += 1;
        self.ours += size_of::<u64>() + if image == Encoded::Raw { G::TAG_BYTES } else { 0 };
        let in_runs = matches!(image, Encoded::Uniform(_) | Encoded::Packed(_));
        self.runs += size_of::<u64>() + if in_runs { 0 } else { G::TAG_BYTES };
    }

    fn print<G: Granule>(&self, what: &str) -> [f64; 2] {
        let ratios = [self.ours, self.runs].map(|kept| (self.pages * G::TAG_BYTES) as f64 / kept as f64);
        let per_page = self.ours as f64 / self.pages as f64;
        let [ours, runs] = ratios;
        let size = G::SIZE >> 10;
        println!("{size:>2} KiB, {what:<8} {per_page:6.1} bytes a page: {ours:.2} times less; by runs alone {runs:.2}");
        ratios
    }
}

fn heap<G: Granule>(header: Header) -> [f64; 2] {
    let mut dice = Dice::new(1);
    let mut kept = Kept::default();
    let page = 16 * G::TAG_WORDS;
    for class in classes() {
        let slab = slab(&mut dice, (64 * page).max(4 * class).next_multiple_of(page), class, header);
        slab.chunks(page).filter(|tags| tags.iter().any(|&tag| tag != 0)).take(64).for_each(|tags| kept.add::<G>(tags));
    }
    kept.print::<G>(match header {
        Header::None => "heap",
        Header::Granule => "headers",
    })
}

fn random<G: Granule>() {
    let mut dice = Dice::new(2);
    let mut kept = Kept::default();
    for _ in 0..500 {
        kept.add::<G>(&(0..16 * G::TAG_WORDS).map(|_| dice.below(16) as u8).collect::<Vec<_>>());
    }
    // Nothing can be gained, and no more than the word is lost.
    let [ours, _] = kept.print::<G>("random");
    assert!(ours * (G::TAG_BYTES + size_of::<u64>()) as f64 >= G::TAG_BYTES as f64);
}

#[test]
fn a_heap_keeps_less_than_half() {
    for header in [Header::None, Header::Granule] {
        let [ours, runs] = heap::<K4>(header);
        assert!(ours > 2.1 && ours > 1.1 * runs, "{ours} and {runs}");
        heap::<K16>(header);
        heap::<K64>(header);
    }
    random::<K4>();
    random::<K16>();
    random::<K64>();
}

/// A slab's page with one tag that is not as the others say.
#[test]
fn a_stray_tag_is_kept() {
    let mut dice = Dice::new(3);
    for class in 26..50 {
        for header in [Header::None, Header::Granule] {
            let tags = slab(&mut dice, 256, class, header);
            for granule in 0..256 {
                let mut tags = tags.clone();
                tags[granule] ^= 1 + dice.below(15) as u8;
                check::<K4>(&tags);
            }
        }
    }
}
