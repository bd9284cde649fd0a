//! Two queues. What is new is on *probation*; what was used twice there, or came back soon after it left, is
//! *protected*. So a scan, of which no page is used twice, goes through the first queue and leaves the second alone.
//!
//! **Probation.** The first look at a folio is given away (see [`super`]), with a second round; the second look decides.
//!
//! **Protected.** A look that finds a folio used raises its rank, one that does not lowers it, and only one without rank
//! leaves: what is used in most rounds outlives what is used in some. As soon as [`STALE`] of a batch turn out unused
//! the ranks tell of the past (the program has gone on to other pages): then they count for nothing, and the batches to
//! come are of protected folios too, until one is in use again. To hear of that, every [`PROBE`]th batch is of protected
//! folios.
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

/// Batches of probation between two of protected folios.
const PROBE: u32 = 8;

/// Unused folios of ten, from which on a batch shows that ranks are stale.
const STALE: u32 = 7;

/// All folios, as a share.
const WHOLE: u64 = 1 << 32;

/// Ranks: on probation 0 before the first look and 1 after it; of the protected what is said above.
pub(in super::super) struct Adaptive {
    /// Of all listed folios, those that may be on probation, in 2^-32.
    share: u64,
    /// What two pages are of the memory, in 2^-32.
    step: u64,
    /// Batches of probation since the last of protected folios.
    since: u32,
    /// Whether the last batch of protected folios was mostly unused.
    is_stale: bool,
}

impl Adaptive {
    const LEAST: u64 = WHOLE / 32;
    const MOST: u64 = WHOLE / 2;

    pub(super) fn new(frames: u64) -> Self {
        let step = 2 * WHOLE / frames.max(1);
        Self { share: Self::LEAST, step, since: 0, is_stale: false }
    }
}

impl Policy for Adaptive {
    fn choose(&mut self, queues: &mut Queues, _: &Frames) -> Queue {
        let probation = queues.len() - queues.protected();
        // Both sides stay below 2^64: there are fewer than 2^32 folios.
        let is_over = probation * WHOLE > queues.len() * self.share;
        if is_over && !self.is_stale && self.since < PROBE {
            self.since += 1;
            PROBATION
        } else {
            self.since = 0;
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
            Class::Probation => (self.share + step).min(Self::MOST),
            Class::Protected => self.share.saturating_sub(step).max(Self::LEAST),
        };
        (PROTECTED, Standing::of(Class::Protected))
    }

    fn hear(&mut self, looked: Looked) {
        self.is_stale = (looked.folios - looked.used) * 10 >= looked.folios * STALE;
    }
}
