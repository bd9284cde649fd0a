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
//! certain. So there is no livelock, and no program dies for want of memory that could be had. But where swap, or its
//! room for tags, is full, what a search finds may be just the pages with which programs go on, as those of their code:
//! they come back at once, and each time all of memory is looked at. After [`MOST_MEAGRE`] such searches in a row each
//! looks once at every folio, takes none in use and clears no access flag, as long as no slot is free, or no room for
//! tags: until one frees half a batch, or slots or frames are free again. So each page leaves and comes back once at
//! most before it is said that there is no memory, and whoever asks again at once hears the same.
//!
//! **Watermarks**, in free frames: below *low* the background reclaimer wakes, and works until *high* are free. An
//! ordinary allocation leaves *reserve* frames alone. What a fault or call does that finds no more than those stands at
//! the head of `background`: it waits a little, then reclaims for itself, and gives up with a clear error.
//!
//! **Batches.** Reclaim isolates folios of some [`BATCH`] pages with one hold of the list's lock, unmaps them,
//! completes one flush, then writes them out. It takes folios by try-lock only and never a space's lock. Who takes out
//! pages of its own space, as a program asked or at its cap, needs no reverse map for what it has alone (`at_once`).
//!
//! **Refaults.** The eviction clock counts pages that left. A slot keeps the clock of its page's leaving, modulo 2^31,
//! and whether the page was protected then; when the page comes back after no more evictions than there are frames, a
//! memory of twice the size would have kept it: that is counted as a refault. After no more than three quarters of that
//! it came back *soon*, and the policy is asked where it is to stand. A loop over twice the memory brings each page
//! back after as many evictions as there are frames: that must not count as soon, and much less would miss pages that
//! are worth keeping (`docs/POLICIES.md`). No record is kept beside the slot's.

#![forbid(unsafe_code)]

mod advise;
mod at_once;
mod background;
mod evict;
mod list;
mod outgoing;
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

use evict::evict;
use list::{Returned, Search};

use crate::frame::{Class, Frame, flag};
use crate::machine::{Features, Machine};
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
    /// So many, less than half a batch, after a look at all there is, of which some stayed for want of a slot.
    Meagre(u64),
    /// As many looks as two passes over the list take, and one pass that regards no use, freed nothing.
    Nothing,
}

/// Searches in a row that may be meagre. As many frames as a batch and a magazine have come to be at the price of
/// looking at all of memory 16 times: that is a second for 64 MiB under an emulator, for which a program dies instead.
const MOST_MEAGRE: u32 = 16;

impl<M: Machine> Mm<M> {
    /// Frees some pages: one batch, or as many batches as it takes to free any.
    fn shrink(&self) -> Progress {
        let progress = self.search();
        self.reclaim().hear(progress);
        progress
    }

    fn search(&self) -> Progress {
        // Pages that come in or are used while we scan do not extend the scan: it is bounded by the list as it is now.
        let pass = self.reclaim().len() + BATCH as u64;
        let (mut looked, mut dry) = (0, 0);
        let passes: &[_] = match self.is_meagre() {
            false => &[(Search::Chosen, 2 * pass), (Search::All, pass)],
            true => &[(Search::Unused, pass)],
        };
        for &(search, folios) in passes {
            if search != Search::Chosen {
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
                let evicted = evict(self, &batch, search.ageing());
                looked += batch.folios.len() as u64;
                dry += evicted.dry;
                if evicted.pages > 0 {
                    let is_meagre = looked + BATCH as u64 >= pass && dry > 0 && evicted.pages < BATCH as u64 / 2;
                    let progress = if is_meagre { Progress::Meagre } else { Progress::Freed };
                    return progress(evicted.pages);
                }
                // The pages of a folio that was split are looked at before the next folio.
                left = left.saturating_sub(batch.folios.len() as u64 - evicted.split);
            }
        }
        Progress::Nothing
    }

    /// Whether the search is to be short: see the module's head.
    fn is_meagre(&self) -> bool {
        let meagre = &self.reclaim().meagre;
        if meagre.load(Ordering::Relaxed) < MOST_MEAGRE {
            return false;
        }
        let (slots, rooms) = self.swap().free();
        let rooms = if self.machine().features().contains(Features::MTE) { rooms } else { u64::MAX };
        let least = slots.min(rooms);
        if least >= BATCH as u64 {
            meagre.store(0, Ordering::Relaxed);
        }
        // Else something can leave, used or not, and a whole search takes it.
        least == 0
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
        let returned = self.reclaim().insert_returned(self.frames(), first, shadow, 1, others);
        self.count_return(returned, 1);
        if u64::from(returned.distance) <= self.frames().managed_frames() {
            self.stats().refaults.add(others.len() as u64);
        }
    }

    /// Enters a folio of `pages` pages in the list that came back from slots which kept `shadow`.
    #[inline(always)]
    pub(crate) fn returned(&self, folio: Frame, shadow: u32, pages: u64) {
        self.count_return(self.reclaim().insert_returned(self.frames(), folio, shadow, pages, &[]), pages);
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
