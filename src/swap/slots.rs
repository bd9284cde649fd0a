//! A folio's slots.

/// An aligned run of slots, one for each page of a folio. Pages and slots meet in [`Slots::each`] alone, or step by
/// step with the records of the run (`Area::records_of`).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Slots {
    first: u32,
    order: u32,
}

impl Slots {
    /// The slots of a folio of 2^`order` pages, from `first` on, which is a multiple of that.
    #[inline]
    pub(crate) const fn new(first: u32, order: u32) -> Self {
        debug_assert!(first & ((1 << order) - 1) == 0);
        Self { first, order }
    }

    /// The slot of the first page.
    #[inline]
    pub(crate) const fn first(self) -> u32 {
        self.first
    }

    /// Pages of the folio.
    #[inline]
    pub(crate) const fn pages(self) -> u64 {
        1 << self.order
    }

    /// log2 of the pages.
    #[inline]
    pub(crate) const fn order(self) -> u32 {
        self.order
    }

    /// Every page with its slot.
    #[inline]
    pub(crate) fn each(self) -> impl Iterator<Item = (u64, u32)> {
        (0..self.pages()).zip(self.first..)
    }
}
