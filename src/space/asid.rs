//! Address space identifiers: a bitmap.

use crate::machine::Asid;
use crate::sync::Spin;

/// Identifiers handed out: those that every CPU has, 8 bits.
const ASIDS: usize = 256;

/// Identifiers in use. A given-back one has been invalidated on every CPU before.
pub(crate) struct Asids(Spin<[u64; ASIDS / 64]>);

impl Asids {
    /// All free but that of the empty root.
    pub(crate) const fn new() -> Self {
        Self(Spin::new([1, 0, 0, 0]))
    }

    pub(crate) fn take(&self) -> Option<Asid> {
        let mut words = self.0.lock();
        let (index, word) = words.iter_mut().enumerate().find(|(_, word)| **word != u64::MAX)?;
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
        while let Some(asid) = asids.take() {
            assert!(asid != Asid::EMPTY && !seen.contains(&asid));
            seen.push(asid);
        }
        assert_eq!(seen.len(), ASIDS - 1);
        asids.give(seen[7]);
        assert_eq!(asids.take(), Some(seen[7]));
    }
}
