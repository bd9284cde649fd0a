//! What the ageing policy keeps of a folio: three bits of its head's record.

use super::{FrameRecord, RANK_MASK, RANK_SHIFT, flag};
use crate::sync::Ordering;

/// On which side of the policy a folio stands.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Class {
    /// It has yet to show that it is used again.
    Probation,
    /// It has.
    Protected,
}

/// Where a folio stands. What it means is the policy's.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Standing {
    pub(crate) class: Class,
    /// 0 to [`Standing::HIGHEST`].
    pub(crate) rank: u8,
}

impl Standing {
    /// The highest rank.
    pub(crate) const HIGHEST: u8 = (RANK_MASK >> RANK_SHIFT) as u8;

    /// That of a folio which nobody has looked at: its record's bits are clear.
    pub(crate) const NEW: Self = Self { class: Class::Probation, rank: 0 };

    /// On `class`'s side, with no rank.
    #[inline]
    pub(crate) const fn of(class: Class) -> Self {
        Self { class, rank: 0 }
    }

    /// A rank more, up to the highest.
    #[inline]
    pub(crate) const fn raised(self) -> Self {
        Self { rank: if self.rank < Self::HIGHEST { self.rank + 1 } else { Self::HIGHEST }, ..self }
    }

    /// A rank less, down to none.
    #[inline]
    pub(crate) const fn lowered(self) -> Self {
        Self { rank: self.rank.saturating_sub(1), ..self }
    }

    #[inline]
    pub(super) const fn from_flags(flags: u32) -> Self {
        let class = if flags & flag::PROTECTED == 0 { Class::Probation } else { Class::Protected };
        Self { class, rank: ((flags & RANK_MASK) >> RANK_SHIFT) as u8 }
    }

    /// Its bits in the record.
    #[inline]
    pub(crate) const fn flags(self) -> u32 {
        let class = match self.class {
            Class::Probation => 0,
            Class::Protected => flag::PROTECTED,
        };
        class | (self.rank as u32) << RANK_SHIFT & RANK_MASK
    }
}

impl FrameRecord {
    /// Where the folio stands.
    #[inline]
    pub(crate) fn standing(&self) -> Standing {
        Standing::from_flags(self.flags.load(Ordering::Relaxed))
    }

    /// Gives the folio, which is in no list of reclaim's, another standing. By its isolator, under the list's lock.
    #[inline]
    pub(crate) fn stand(&self, standing: Standing) {
        let change = self.standing().flags() ^ standing.flags();
        // The caller owns these bits; the xor leaves the bits of others alone.
        if change != 0 {
            self.flags.fetch_xor(change, Ordering::Relaxed);
        }
    }

    /// Notes that the folio is in no list of reclaim's any more, and returns where it stands.
    #[inline]
    pub(crate) fn unlist(&self) -> Standing {
        Standing::from_flags(self.flags.fetch_and(!flag::LISTED, Ordering::Relaxed))
    }
}
