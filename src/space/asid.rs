//! Address space identifiers: a bitmap.

use crate::machine::Asid;
use crate::sync::Spin;

/// Identifiers of the largest size that a CPU may have, 16 bits.
const MOST: usize = 1 << 16;

/// Identifiers in use. A given-back one has been invalidated on every CPU before.
pub(crate) struct Asids(Spin<[u64; MOST / 64]>);

impl Asids {
    /// All free but that of the empty root.
    pub(crate) const fn new() -> Self {
        let mut words = [0; MOST / 64];
        words[0] = 1;
        Self(Spin::new(words))
    }

    /// Takes the lowest free identifier of `bits` bits.
    pub(crate) fn take(&self, bits: u32) -> Option<Asid> {
        let mut words = self.0.lock();
        let usable = words.iter_mut().take((1 << bits) / 64);
        let (index, word) = usable.enumerate().find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        Some(Asid::new(index as u16 * 64 + bit as u16))
    }

    pub(crate) fn give(&self, asid: Asid) {
        let number = asid.number() as usize;
        if let Some(word) = self.0.lock().get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_roots_identifier_is_never_handed_out() {
        let asids = Asids::new();
        let mut seen = std::vec::Vec::new();
        while let Some(asid) = asids.take(8) {
            assert!(asid != Asid::EMPTY && !seen.contains(&asid));
            seen.push(asid);
        }
        assert_eq!(seen.len(), 255);
        assert_eq!(asids.take(16), Some(Asid::new(256)));
        asids.give(seen[7]);
        assert_eq!(asids.take(8), Some(seen[7]));
    }
}
