//! The sizes of folio that first touch makes.

use super::MAX_ORDER;
use crate::granule::Granule;

/// A set of folio orders. Order 0 is always in it: there is always a page that nothing larger fits.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct FolioOrders(u32);

impl FolioOrders {
    /// Single pages alone.
    pub const SINGLE: Self = Self(1);

    /// Single pages, and folios of one contiguous group of `G`.
    pub const fn group<G: Granule>() -> Self {
        Self(1 | 1 << G::GROUP_ORDER)
    }

    /// The set with `order` in it as well. `None` above [`MAX_ORDER`].
    pub const fn with(self, order: u32) -> Option<Self> {
        if order > MAX_ORDER { None } else { Some(Self(self.0 | 1 << order)) }
    }

    /// Whether `order` is in the set.
    #[inline]
    pub const fn has(self, order: u32) -> bool {
        self.0 >> order & 1 != 0
    }

    /// The largest order in the set.
    pub const fn largest(self) -> u32 {
        self.0.ilog2()
    }

    /// As a word: bit `order` for each.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The set that [`FolioOrders::bits`] made.
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits | 1)
    }

    /// The orders above 0, the largest first.
    #[inline]
    pub(crate) fn large(self) -> impl Iterator<Item = u32> {
        let mut left = self.0 & !1;
        core::iter::from_fn(move || {
            let order = left.checked_ilog2()?;
            left &= !(1 << order);
            Some(order)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::granule::{K4, K64};
    use std::vec::Vec;

    #[test]
    fn the_largest_comes_first_and_zero_is_always_there() {
        let orders = FolioOrders::group::<K4>().with(9).and_then(|orders| orders.with(0));
        assert_eq!(orders.map(|orders| orders.large().collect()), Some(Vec::from([9, 4])));
        assert_eq!(FolioOrders::SINGLE.large().count(), 0);
        assert_eq!(FolioOrders::group::<K64>().large().collect::<Vec<_>>(), [5]);
        assert_eq!(FolioOrders::SINGLE.with(MAX_ORDER + 1), None);
    }
}
