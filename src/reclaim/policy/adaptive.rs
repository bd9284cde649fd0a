//! Two queues. What is new is on *probation*; what was used twice there, or came back soon after it left, is
//! *protected*. So a scan, of which no page is used twice, goes through the first queue and leaves the second alone.
//!
//! **Probation.** The first look at a folio is given away (see [`super`]), with a second round; the second look
//! decides.
//!
//! **Protected.** A look that finds a folio used raises its rank, one that does not lowers it, and only one without
//! rank leaves: what is used in most rounds outlives what is used in some. As soon as [`STALE`] of a batch turn out
//! unused the ranks tell of the past (the program has gone on to other pages): then they count for nothing, and the
//! batches to come are of protected folios too, until enough are in use again, or seven eighths of all are on
//! probation: looked at too often everything seems unused, and what was thrown out by mistake would come back to be
//! thrown out again. To hear of it all, a batch of protected folios is looked at when [`PROBE`] signs have come
//! together: one for each batch of probation, [`SIGNS`] for each page that comes back soon after it left from there. A
//! scan that is longer than memory gives few, and what is in use beside it is seldom looked at; a program that goes on
//! to other pages gives many.
//!
//! **Shares.** Otherwise a batch comes from probation if that has more than its share of the folios. A page that left
//! from there and comes back soon says that the share was too small, one that left from the protected says that it was
//! too large: each page moves it by two pages. It stays between a 32nd and a half: less would not span the time
//! between two looks, and with more the protected would be no match for a scan.

use super::super::queues::{Queue, Queues};
use super::{Looked, Policy, Seen};
use crate::frame::{Class, Frames, Standing};

const PROBATION: Queue = Queue::Entry;
const PROTECTED: Queue = Queue::Second;

/// Signs that protected folios may be out of use, after which some are looked at.
const PROBE: u32 = 12;

/// What a page says that leaves from probation and comes back soon, in batches that leave and do not.
const SIGNS: u32 = 2;

/// Unused folios of twenty, from which on a batch shows that ranks are stale.
const STALE: u32 = 13;

/// All folios, as a share.
const WHOLE: u64 = 1 << 32;

/// Ranks: on probation 0 before the first look and 1 after it; of the protected what is said above.
pub(in super::super) struct Adaptive {
    /// Of all listed folios, those that may be on probation, in 2^-32.
    share: u64,
    /// What two pages are of the memory, in 2^-32.
    step: u64,
    /// Signs since the last batch of protected folios.
    signs: u32,
    /// Whether the last batch of protected folios was mostly unused.
    is_stale: bool,
}

impl Adaptive {
    /// What the share is at least, and at first.
    const LEAST: u64 = WHOLE / 32;
    /// What it is at most.
    const MOST: u64 = WHOLE / 2;
    /// What is on probation beyond this leaves first, however stale the protected seem.
    const FLOOD: u64 = WHOLE / 8 * 7;

    pub(super) fn new(frames: u64) -> Self {
        let step = 2 * WHOLE / frames.max(1);
        Self { share: Self::LEAST, step, signs: 0, is_stale: false }
    }
}

impl Policy for Adaptive {
    fn choose(&mut self, queues: &mut Queues, _: &Frames) -> Queue {
        let probation = queues.len() - queues.protected();
        // Both sides stay below 2^64: there are fewer than 2^32 folios.
        let is_over = probation * WHOLE > queues.len() * self.share;
        let is_flood = probation * WHOLE > queues.len() * Self::FLOOD;
        if is_flood || is_over && !self.is_stale && self.signs < PROBE {
            self.signs = self.signs.wrapping_add(1);
            PROBATION
        } else {
            self.signs = 0;
            PROTECTED
        }
    }

    fn spares(&self, standing: Standing) -> bool {
        standing.class == Class::Protected && standing.rank > 0 && !self.is_stale
    }

    fn place(&mut self, standing: Standing, seen: Seen) -> (Queue, Standing) {
        match (standing.class, seen) {
            (Class::Probation, Seen::Used) if standing.rank > 0 => (PROTECTED, Standing::of(Class::Protected)),
            (Class::Probation, Seen::Used) => (PROBATION, standing.raised()),
            (Class::Probation, Seen::Unused | Seen::Nothing) => (PROBATION, standing),
            (Class::Protected, Seen::Used) => (PROTECTED, standing.raised()),
            (Class::Protected, Seen::Unused) => (PROTECTED, standing.lowered()),
            (Class::Protected, Seen::Nothing) => (PROTECTED, standing),
        }
    }

    #[inline]
    fn welcome(&mut self, was: Class, pages: u64) -> (Queue, Standing) {
        // A folio has at most 2^16 pages, and a step is below 2^33.
        let step = self.step * pages;
        self.share = match was {
            Class::Probation => {
                self.signs = self.signs.wrapping_add(SIGNS);
                (self.share + step).min(Self::MOST)
            }
            Class::Protected => self.share.saturating_sub(step).max(Self::LEAST),
        };
        (PROTECTED, Standing::of(Class::Protected))
    }

    fn hear(&mut self, looked: Looked) {
        self.is_stale = (looked.folios - looked.used) * 20 >= looked.folios * STALE;
    }
}
