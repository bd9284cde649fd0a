//! Reclaim: which pages leave, when, and how many.
//!
//! **The list.** Folios that a table maps, and cached ones whose write failed, stand in one list through their
//! records, in the order in which they came. Reclaim takes from the old end. A page used since it was last looked at
//! (its access flag) goes to the young end with the flag cleared: second chance. A second pass of
//! the same search looks at no flag, and so finds something to evict even when all is in use: there is no livelock.
//!
//! **Watermarks**, in free frames: below *low* the background reclaimer wakes, and works until *high* are free. An
//! ordinary allocation leaves *reserve* frames alone. A fault or call that finds nothing reclaims for itself
//! ([`Mm::take_frame`]); it gives up, with a clear error to its caller, when two passes over the whole list freed
//! nothing.
//!
//! **Batches.** Reclaim isolates up to [`BATCH`] folios with one hold of the list's lock, unmaps them, completes one
//! flush, then writes them out. It takes folios by try-lock only and never a space's lock.
//!
//! **Refaults.** The eviction clock counts pages that left. A slot keeps the clock of its page's leaving; when the page
//! comes back after no more evictions than there are frames, a memory of twice the size would have kept it: that is
//! counted as a refault.

#![forbid(unsafe_code)]

mod advise;
mod evict;
mod list;
mod watermarks;

pub use advise::Advice;
pub(crate) use list::Reclaim;
pub use watermarks::Watermarks;

use evict::{Ageing, evict};

use crate::frame::{Kind, OwnedFrame, Urgency};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::sync::Ordering;

/// Folios that one round isolates. Two barriers and one hold of the list's lock, spread over 32 pages of some 600
/// instructions each, are below 1 % of the work; a fault waits for one round at most.
pub(crate) const BATCH: usize = 32;

/// What a request for frames came to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Progress {
    /// So many pages were freed.
    Freed(u64),
    /// Two passes over the whole list freed nothing.
    Nothing,
}

impl<M: Machine> Mm<M> {
    /// Frees some pages: one batch, or as many batches as it takes to free any.
    fn shrink(&self) -> Progress {
        // Pages that came in while we scan do not extend the scan: it is bounded by the list as it is now.
        let pass = self.reclaim().len();
        let mut left = 2 * pass + BATCH as u64;
        loop {
            let batch = self.reclaim().isolate(self.frames());
            if batch.is_empty() {
                return Progress::Nothing;
            }
            // Programs on other CPUs may use every page between the two passes: the second one looks at no flag.
            let ageing = if left > pass { Ageing::SecondChance } else { Ageing::Ignored };
            let freed = evict(self, &batch, ageing);
            if freed > 0 {
                return Progress::Freed(freed);
            }
            left = left.saturating_sub(batch.len() as u64);
            if left == 0 {
                return Progress::Nothing;
            }
        }
    }

    /// Takes a frame after reclaiming: the slow half of [`Mm::take_frame`].
    #[cold]
    pub(crate) fn take_frame_by_reclaim(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        self.stats().direct_reclaims.bump();
        self.wake_reclaimer();
        loop {
            let progress = self.shrink();
            // What was freed lies in this CPU's magazine first; another CPU may have taken it since.
            if let Some((frame, _)) = self.frames().take(self.machine().cpu(), 0, kind, Urgency::Normal) {
                return Some(frame);
            }
            if progress == Progress::Nothing {
                // Frames at other CPUs' hands are free as well.
                self.frames().gather();
                return Some(self.frames().take(self.machine().cpu(), 0, kind, Urgency::Normal)?.0);
            }
        }
    }

    /// Asks the background reclaimer to work.
    #[cold]
    pub(crate) fn wake_reclaimer(&self) {
        if self.reclaim().request.swap(1, Ordering::Release) == 0 {
            self.stats().background_wakes.bump();
            self.machine().wake(&self.reclaim().request);
        }
    }

    /// Works until the high watermark is reached, or nothing more can be freed.
    pub fn balance(&self) {
        while self.frames().free_blocks() < self.reclaim().watermarks().high {
            if self.shrink() == Progress::Nothing {
                return;
            }
        }
    }

    /// The body of the background reclaimer's thread: sleeps until memory is short, then works until it is not.
    pub fn reclaimer(&self) -> ! {
        loop {
            let request = &self.reclaim().request;
            if request.swap(0, Ordering::Acquire) == 0 {
                self.machine().wait(request, 0);
                continue;
            }
            self.balance();
        }
    }

    /// Counts a page that left, and returns the eviction clock as its slot's refault shadow.
    #[inline]
    pub(crate) fn evicted(&self) -> u32 {
        self.reclaim().clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts the return of a page whose slot kept `shadow`.
    #[inline]
    pub(crate) fn returned(&self, shadow: u32) {
        let distance = self.reclaim().clock.load(Ordering::Relaxed).wrapping_sub(shadow);
        if distance as u64 <= self.frames().managed_frames() {
            self.stats().refaults.bump();
        }
    }
}
