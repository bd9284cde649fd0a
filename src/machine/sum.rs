//! The sum of a page's data: what a device that is [`CHECKED`](crate::swap::DeviceFlags::CHECKED) is held to.
//!
//! It is made while the page is copied, by one vector instruction for 16 bytes (`aarch64/contents.S`), and this is what
//! it is. Eight lanes of 32 bits run over the page, 32 bytes at a time: each is multiplied by [`FACTOR`], which is odd,
//! and has its part of the block added. So every place of the page weighs differently, and each step can be undone: two
//! pages that differ in one lane's part of one block have different sums. As the top bit of a lane only ever meets
//! itself, each lane's upper bits are folded into its lower ones every [`FOLD_BYTES`] bytes.
//!
//! It is no defence against somebody who chooses the data.

/// What a lane is multiplied by: near 2^32 divided by the golden ratio. It is 5 modulo 8, so that its powers modulo
/// 2^32 repeat after 2^30 steps; a page has 2048 of 64 KiB.
pub const FACTOR: u32 = 0x9e37_79b5;

/// Bytes after which lanes are folded; a page is a multiple.
pub const FOLD_BYTES: usize = 2048;

/// How far the upper bits are moved down.
const FOLD_SHIFT: u32 = 15;

/// Lanes of a block.
const LANES: usize = 8;

/// The sum of a page, given as its words in order.
pub fn of_page(words: impl Iterator<Item = u64>) -> u64 {
    let mut lanes = [FACTOR; LANES];
    for (index, word) in words.enumerate() {
        let first = 2 * index % LANES;
        for (lane, part) in lanes.iter_mut().skip(first).zip([word as u32, (word >> 32) as u32]) {
            *lane = lane.wrapping_mul(FACTOR).wrapping_add(part);
        }
        if (8 * (index + 1)).is_multiple_of(FOLD_BYTES) {
            lanes.iter_mut().for_each(|lane| *lane ^= *lane >> FOLD_SHIFT);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    let joined = [(a, e), (b, f), (c, g), (d, h)].map(|(low, high)| high.wrapping_add(low.wrapping_mul(FACTOR)));
    let [a, b, c, d] = joined.map(u64::from);
    (a | b << 32) ^ (c | d << 32).rotate_right(29)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const WORDS: usize = 512;

    fn page(seed: u64) -> Vec<u64> {
        (1..=WORDS as u64).map(|word| (seed + word).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
    }

    fn sum(page: &[u64]) -> u64 {
        of_page(page.iter().copied())
    }

    #[test]
    fn each_bit_counts() {
        let mut page = page(7);
        let before = sum(&page);
        for bit in 0..64 * WORDS {
            page[bit / 64] ^= 1 << (bit % 64);
            assert_ne!(sum(&page), before, "bit {bit}");
            page[bit / 64] ^= 1 << (bit % 64);
        }
    }

    #[test]
    fn each_place_counts() {
        let mut page = page(8);
        let before = sum(&page);
        for first in 0..WORDS {
            for second in (first + 1..WORDS).step_by(7) {
                page.swap(first, second);
                assert_ne!(sum(&page), before, "words {first} and {second}");
                page.swap(first, second);
            }
        }
    }

    /// A line that is stuck damages every word in the same place.
    #[test]
    fn a_stuck_bit_is_noticed() {
        for bit in 0..64 {
            for stuck in [0, 1 << bit] {
                let good = page(9);
                let bad: Vec<u64> = good.iter().map(|word| word & !(1 << bit) | stuck).collect();
                assert_ne!(sum(&good), sum(&bad), "bit {bit}");
            }
        }
    }

    #[test]
    fn half_of_another_page_is_noticed() {
        let (mut torn, old) = (page(10), page(11));
        let before = sum(&torn);
        for sector in (0..WORDS).step_by(64) {
            torn[sector..sector + 64].copy_from_slice(&old[sector..sector + 64]);
            assert_ne!(sum(&torn), before);
        }
    }
}
