//! Reclaim: which pages leave, when, and how many.
//!
//! **The list.** Folios that a table maps, and cached ones whose write failed, stand in a few queues, linked through
//! their records, under one lock. What is new enters without a question. From which queue reclaim takes, and where
//! those go that stay, is the [`policy`]'s: it hears what each look at an access flag found, and what comes back soon.
//! What a program called cold, and what was split, is looked at before all else, whatever the policy.
//!
//! **Every search ends.** One search for a page to evict looks at twice as many folios as the list has, as the policy
//! chooses. A folio that was used since the last look, or that the policy spares, stays, with its flag cleared. Then
//! all queues become one ([`Reclaim::line_up`]), and each folio is looked at once without regard to use or policy: as
//! other CPUs may use every page between two looks, and a policy may look where nothing can leave, only that ends for
//! certain. So there is no livelock, and no program dies for want of memory that could be had.
//!
//! **Watermarks**, in free frames: below *low* the background reclaimer wakes, and works until *high* are free. An
//! ordinary allocation leaves *reserve* frames alone. A fault or call that finds nothing reclaims for itself
//! ([`Mm::take_frame`]); it gives up, with a clear error to its caller, when a search freed nothing, no other CPU has
//! folios in hand, and none has free frames in its magazine.
//!
//! **Batches.** Reclaim isolates folios of some [`BATCH`] pages with one hold of the list's lock, unmaps them,
//! completes one flush, then writes them out. It takes folios by try-lock only and never a space's lock.
//!
//! **Refaults.** The eviction clock counts pages that left. A slot keeps the clock of its page's leaving, modulo 2^31,
//! and whether the page was protected then; when the page comes back after no more evictions than there are frames, a
//! memory of twice the size would have kept it: that is counted as a refault. After no more than three quarters of that
//! it came back *soon*, and the policy is asked where it is to stand. A loop over twice the memory brings each page
//! back after as many evictions as there are frames: that must not count as soon, and much less would miss pages that
//! are worth keeping (`docs/POLICIES.md`). No record is kept beside the slot's.

#![forbid(unsafe_code)]

mod advise;
mod evict;
mod list;
mod own;
mod policy;
mod queues;
mod watermarks;
#[cfg(test)]
mod workloads;

pub use advise::Advice;
pub(crate) use list::Reclaim;
pub use own::LEAST_CAP_PAGES;
pub use policy::Replacement;
pub use watermarks::Watermarks;

use arrayvec::ArrayVec;

use evict::{Evicted, evict};
use list::{Returned, Search};

use crate::frame::{Class, Frame, Kind, OwnedFrame, Urgency, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::sync::Ordering;
use crate::tlb;

/// Folios that one round isolates at most, and the pages at which it stops. Two barriers and one hold of the list's
/// lock, spread over 32 pages of some 600 instructions each, are below 1 % of the work; a fault waits for one round at
/// most.
pub(crate) const BATCH: usize = 32;

/// What a request for frames came to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Progress {
    /// So many pages were freed.
    Freed(u64),
    /// As many looks as two passes over the list take, and one pass that regards no use, freed nothing.
    Nothing,
}

impl<M: Machine> Mm<M> {
    /// Frees some pages: one batch, or as many batches as it takes to free any.
    fn shrink(&self) -> Progress {
        // Pages that come in or are used while we scan do not extend the scan: it is bounded by the list as it is now.
        let pass = self.reclaim().len() + BATCH as u64;
        for (search, folios) in [(Search::Chosen, 2 * pass), (Search::All, pass)] {
            if search == Search::All {
                self.reclaim().line_up(self.frames());
            }
            let mut left = folios;
            while left > 0 {
                let batch = self.reclaim().isolate(self.frames(), search);
                if batch.folios.is_empty() {
                    // Others may have all of it in hand; then theirs is the progress to wait for.
                    let Some(others) = self.reclaim().isolated() else { break };
                    self.reclaim().wait_for_others(self.machine(), others);
                    left -= 1;
                    continue;
                }
                let Evicted { pages, split } = evict(self, &batch, search.ageing());
                if pages > 0 {
                    return Progress::Freed(pages);
                }
                // The pages of a folio that was split are looked at before the next folio.
                left = left.saturating_sub(batch.folios.len() as u64 - split);
            }
        }
        Progress::Nothing
    }

    /// Takes a frame after reclaiming: the slow half of [`Mm::take_frame`].
    #[cold]
    pub(crate) fn take_frame_by_reclaim(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        self.stats().direct_reclaims.bump();
        self.wake_reclaimer();
        loop {
            if self.shrink() == Progress::Nothing {
                return self.frames().take_from_anywhere(self.machine().cpu(), kind);
            }
            // What was freed here another CPU may have taken since.
            if let Some((frame, _)) = self.frames().take(self.machine().cpu(), 0, kind, Urgency::Normal) {
                return Some(frame);
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

    /// Gives back counts of folios, each of the weight that stands with it, and frees those that nobody holds any more.
    pub(crate) fn release(&self, mut folios: impl Iterator<Item = (Frame, u64)>) {
        let frames = self.frames();
        let mut gone: ArrayVec<Frame, { tlb::CAPACITY }> = ArrayVec::new();
        loop {
            self.reclaim().drop_counts(frames, &mut folios, &mut gone);
            if self.swap().some_are_backed() {
                gone.iter()
                    .filter(|&&head| frames.record(head).has(flag::BACKED))
                    .for_each(|&head| self.end_with_slots(head));
            }
            let mut freeing = frames.freeing(self.machine().cpu());
            for &frame in &gone {
                freeing.push(frame);
            }
            if !gone.is_full() {
                return;
            }
            gone.clear();
        }
    }

    /// Counts pages of a folio that left, and returns their slots' refault shadow.
    #[inline]
    pub(crate) fn evicted(&self, folio: Frame, pages: u64) -> u32 {
        self.reclaim().evicted(self.frames(), folio, pages)
    }

    /// Enters single pages that came back together from slots of which the first kept `shadow`: that one, which was
    /// asked for, as [`Mm::returned`] does, the others as new ones, of which nobody knows yet whether they will be
    /// used.
    pub(crate) fn returned_together(&self, folios: &[Frame], shadow: u32) {
        let Some((&first, others)) = folios.split_first() else { return };
        let returned = self.reclaim().insert_returned(self.frames(), first, shadow, 1);
        self.count_return(returned, 1);
        if u64::from(returned.distance) <= self.frames().managed_frames() {
            self.stats().refaults.add(others.len() as u64);
        }
        self.reclaim().insert_all(self.frames(), others);
    }

    /// Enters a folio of `pages` pages in the list that came back from slots which kept `shadow`.
    #[inline(always)]
    pub(crate) fn returned(&self, folio: Frame, shadow: u32, pages: u64) {
        self.count_return(self.reclaim().insert_returned(self.frames(), folio, shadow, pages), pages);
    }

    #[inline(always)]
    fn count_return(&self, Returned { distance, class }: Returned, pages: u64) {
        if u64::from(distance) <= self.frames().managed_frames() {
            self.stats().refaults.add(pages);
        }
        if class == Class::Protected {
            self.stats().refaults_protected.add(pages);
        }
    }
}
