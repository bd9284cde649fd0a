//! The data and tags of the side-by-side with Linux: the same formulas as in the program that measured Linux,
//! so that both kernels move the same pages.

use crate::{PAGE, Words};

/// Contents of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// All zero.
    Zero,
    /// One word, over and over, another one for each page.
    Same,
    /// Lower-case words and numbers; compresses about as well as text does.
    Text,
    /// Incompressible.
    Random,
}

/// A hash of 64 bits to 64 bits, a bijection (the finisher of splitmix64).
#[inline]
pub const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The next value of xorshift64. The state must not be 0.
#[inline]
pub const fn next(state: &mut u64) -> u64 {
    let mut x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    x
}

/// The contents of page `index` under a pattern.
pub fn page(to: &mut Words, pattern: Pattern, index: u64) {
    let mut state = mix(index.wrapping_mul(4).wrapping_add(1)) | 1;
    match pattern {
        Pattern::Zero => to.fill(0),
        Pattern::Same => to.fill(state),
        Pattern::Random => to.fill_with(|| next(&mut state)),
        Pattern::Text => text(to, state),
    }
}

/// The allocation tag of granule `granule` of page `page`: another one from granule to granule.
#[inline]
pub const fn tag(page: u64, granule: usize) -> u8 {
    let g = granule as u64;
    (page.wrapping_mul(7).wrapping_add(g * 5 + (g >> 4) * 3).wrapping_add(page >> 3) & 15) as u8
}

#[rustfmt::skip]
const DICTIONARY: [&str; 64] = [
    "the", "of", "page", "swap", "and", "kernel", "memory", "to", "in", "table", "a",
    "granule", "tag", "is", "that", "fault", "entry", "for", "it", "folio", "cache",
    "was", "on", "are", "as", "with", "his", "they", "at", "be", "this", "have",
    "from", "or", "one", "had", "by", "word", "but", "not", "what", "all", "were",
    "we", "when", "your", "can", "said", "there", "use", "an", "each", "which",
    "she", "do", "how", "their", "if", "will", "up", "other", "about", "out", "many",
];

/// The words as they are laid down: each with a space after it, lowest byte first, and how many bytes that
/// is. Together never more than eight.
const SPACED: [(u64, usize); 64] = {
    let mut spaced = [(0, 0); 64];
    let mut i = 0;
    while i < spaced.len() {
        let word = DICTIONARY[i].as_bytes();
        let mut packed = b' ' as u64;
        let mut j = word.len();
        while j > 0 {
            j -= 1;
            packed = packed << 8 | word[j] as u64;
        }
        spaced[i] = (packed, word.len() + 1);
        i += 1;
    }
    spaced
};

/// A page of text under construction. Bytes gather in a word, so that all stores are of eight.
struct Text<'a> {
    to: &'a mut Words,
    len: usize,
    gathered: u64,
}

impl Text<'_> {
    /// Appends `len` bytes, at most eight, lowest first. What runs over the page is lost.
    fn push(&mut self, (bytes, len): (u64, usize)) {
        let filled = self.len % 8;
        self.gathered |= bytes << (filled * 8);
        if filled + len >= 8 {
            if let Some(word) = self.to.get_mut(self.len / 8) {
                *word = self.gathered;
            }
            // In two steps, as nothing can be shifted by 64.
            self.gathered = bytes >> ((7 - filled) * 8) >> 8;
        }
        self.len += len;
    }
}

fn text(to: &mut Words, mut state: u64) {
    let mut out = Text { to, len: 0, gathered: 0 };
    let mut words = 0;
    while out.len < PAGE {
        let r = next(&mut state) >> 11;
        words += 1;
        if words % 8 == 0 {
            // A number of up to five digits, lowest first.
            let mut number = (r >> 12) as u32 % 100_000;
            loop {
                out.push((u64::from(b'0') + u64::from(number % 10), 1));
                number /= 10;
                if number == 0 {
                    break;
                }
            }
            out.push((u64::from(b' '), 1));
        } else {
            // A phrase of one to three words; the AND skews the choice to few of them.
            let mut k = (r & (r >> 6) & 63) as usize;
            out.push(SPACED[k]);
            for _ in 1..(r >> 12) & 3 {
                k = (k * 5 + 1) & 63;
                out.push(SPACED[k]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WORDS;

    /// FNV-1a over the little-endian bytes of pages 0 to 99.
    fn digest(pattern: Pattern) -> u64 {
        let mut words = [0; WORDS];
        (0..100).fold(0xcbf2_9ce4_8422_2325, |hash, index| {
            page(&mut words, pattern, index);
            words.iter().flat_map(|w| w.to_le_bytes()).fold(hash, fnv)
        })
    }

    fn fnv(hash: u64, byte: u8) -> u64 {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    }

    #[test]
    fn same_pages_as_in_the_measurement_of_linux() {
        // Digests of the C source that Linux was measured with.
        assert_eq!(digest(Pattern::Zero), 0x4fdd_de64_55ff_2325);
        assert_eq!(digest(Pattern::Same), 0x980b_0120_b6bc_2b25);
        assert_eq!(digest(Pattern::Text), 0x47c4_5c1f_d25a_5a66);
        assert_eq!(digest(Pattern::Random), 0xec67_64d1_cc86_d08b);
    }

    #[test]
    fn same_tags_as_in_the_measurement_of_linux() {
        let tags = (0..100).flat_map(|page| (0..256).map(move |granule| tag(page, granule)));
        assert_eq!(tags.fold(0xcbf2_9ce4_8422_2325, fnv), 0xb75d_5177_5e34_5225);
    }
}
