//! The background reclaimer, and what those do who find memory short.
//!
//! **The reclaimer** is one thread of the porter's ([`Mm::reclaimer`]). It sleeps until it is asked, then works until
//! the high watermark is reached or a search frees next to nothing. After each batch it counts a step up.
//!
//! **A request** for a frame that leaves the reserve alone, and finds no more than that, asks the reclaimer and waits
//! for its next step, [`STEPS`] times at most; then it reclaims for itself. So a single reclaimer works ahead of many
//! programs, whose pages it takes by age, as long as it keeps up with them; where it does not, they reclaim side by
//! side. Nobody waits for a reclaimer that is not there, or after a search in vain: so no request waits for long. It
//! searches until a frame is left for it, as others may take what it freed, or a search frees nothing; each search is
//! bounded (see `reclaim`). How a request ended is a [`Relief`], and counted.
//!
//! **In vain** is a search that frees nothing or next to nothing, and looks at all there is to say so. Where swap is
//! full that would be the answer to each page that comes back and so frees its slot, as often as there are frames in the
//! reserve, before anybody hears that memory is out. So from such a search on, until one frees half a batch or frames
//! come free otherwise, a page whose coming in frees a slot takes from the reserve at once; and the reclaimer lets
//! requests pass before it looks again, twice as many each time, up to [`MOST_REST`]. That there is no memory is said
//! all the same after a search alone.
//!
//! **Nothing waits in a circle.** Who waits here may have a space's lock, and folios' locks; the reclaimer never takes
//! the first and only tries the second, and it waits for nobody but a device and those who have folios isolated, who
//! take no frame meanwhile. That no step is missed follows from the order: a request reads the step, then asks, then
//! waits for another step than that; and every answer to a request ends in a step.

use super::{BATCH, Progress};
use crate::frame::{Kind, OwnedFrame, Urgency};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::sync::{AtomicU32, Ordering};

/// Steps that a request waits for: one may be about to end, and have freed what others have taken by now; what comes
/// after it is a whole batch. Who comes away empty twice is one of more than the reclaimer can serve.
const STEPS: u32 = 2;

/// See the module's head.
pub(super) struct Background {
    /// 1 while the reclaimer is asked to work; it sleeps on this word while it is 0.
    request: AtomicU32,
    /// Its batches so far, modulo 2^32. 0 is also: there is no reclaimer.
    steps: AtomicU32,
    /// Searches in vain, anybody's, since the last one that was not.
    vain: AtomicU32,
    /// Requests that it is not told of.
    rest: AtomicU32,
}

/// Requests that pass at most before the reclaimer looks again. A search in vain is some 200 instructions for each
/// folio; a request stands for one frame at least, some 3000 with its reclaim. At 64 MiB of small folios that is a
/// search of three million instructions for 190,000 of the faults' own, as long as memory is out and nobody ends.
const MOST_REST: u32 = 63;

impl Background {
    pub(super) const fn new() -> Self {
        let [request, steps, vain, rest] = [const { AtomicU32::new(0) }; 4];
        Self { request, steps, vain, rest }
    }

    /// Whether searches have been in vain since one last was not, or frames came free otherwise.
    pub(super) fn is_vain(&self) -> bool {
        self.vain.load(Ordering::Relaxed) > 0
    }

    /// Hears what a search came to.
    pub(super) fn hear(&self, progress: Progress) {
        match progress {
            Progress::Nothing | Progress::Meagre(_) => {
                self.vain.fetch_add(1, Ordering::Relaxed);
            }
            Progress::Freed(pages) if pages >= BATCH as u64 / 2 && self.is_vain() => self.forget(),
            // A page that leaves for one that came back is no sign of better times.
            Progress::Freed(_) => {}
        }
    }

    /// Forgets that searches were in vain.
    pub(super) fn forget(&self) {
        self.vain.store(0, Ordering::Relaxed);
        self.rest.store(0, Ordering::Relaxed);
    }

    /// Requests to let pass now.
    fn set_rest(&self) {
        let vain = self.vain.load(Ordering::Relaxed);
        self.rest.store((1 << vain.min(MOST_REST.count_ones())) - 1, Ordering::Relaxed);
    }
}

/// Whether the background reclaimer will hear of a request.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Asked {
    Yes,
    /// It rests.
    No,
}

/// How a request for a frame ended that had found no more than the reserve.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Relief {
    /// Frames had come free meanwhile.
    Progress,
    /// The background reclaimer freed some while it waited.
    Waited,
    /// It reclaimed for itself.
    Direct,
    /// A whole search freed nothing, no CPU has folios in hand, and none has a frame in its magazine.
    NoProgress,
}

impl<M: Machine> Mm<M> {
    /// Takes a frame where there seemed to be none: the slow half of [`Mm::take_frame`].
    #[cold]
    pub(crate) fn take_frame_when_short(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        let (frame, relief) = match self.take_frame_after_wait(kind) {
            Some((frame, relief)) => (Some(frame), relief),
            None => self.take_frame_by_reclaim(kind),
        };
        let stats = self.stats();
        match relief {
            Relief::Progress => &stats.short_progress,
            Relief::Waited => &stats.short_waits,
            Relief::Direct => &stats.direct_reclaims,
            Relief::NoProgress => &stats.short_failures,
        }
        .bump();
        frame
    }

    /// Has the background reclaimer work, and waits for it where that promises something.
    fn take_frame_after_wait(&self, kind: Kind) -> Option<(OwnedFrame<'_>, Relief)> {
        let background @ Background { steps, .. } = &self.reclaim().background;
        let mut relief = Relief::Progress;
        for _ in 0..STEPS {
            let seen = steps.load(Ordering::Acquire);
            if let Some((frame, _)) = self.frames().take(self.machine().cpu(), 0, kind, Urgency::Normal) {
                return Some((frame, relief));
            }
            // Who was not asked takes no step.
            if self.wake_reclaimer() == Asked::No || seen == 0 || background.is_vain() {
                return None;
            }
            while steps.load(Ordering::Acquire) == seen {
                self.machine().wait(steps, seen);
            }
            relief = Relief::Waited;
        }
        self.frames().take(self.machine().cpu(), 0, kind, Urgency::Normal).map(|(frame, _)| (frame, relief))
    }

    fn take_frame_by_reclaim(&self, kind: Kind) -> (Option<OwnedFrame<'_>>, Relief) {
        loop {
            if self.shrink() == Progress::Nothing {
                let frame = self.frames().take_from_anywhere(self.machine().cpu(), kind);
                let relief = if frame.is_some() { Relief::Direct } else { Relief::NoProgress };
                return (frame, relief);
            }
            // What was freed here another CPU may have taken since.
            if let Some((frame, _)) = self.frames().take(self.machine().cpu(), 0, kind, Urgency::Normal) {
                return (Some(frame), Relief::Direct);
            }
        }
    }

    /// Asks the background reclaimer to work.
    #[cold]
    pub(crate) fn wake_reclaimer(&self) -> Asked {
        let Background { request, rest, .. } = &self.reclaim().background;
        let left = rest.load(Ordering::Relaxed);
        if left > 0 {
            // Two who do this at once count as one.
            rest.store(left - 1, Ordering::Relaxed);
            self.stats().background_rests.bump();
            return Asked::No;
        }
        if request.swap(1, Ordering::Release) == 0 {
            self.stats().background_wakes.bump();
            self.machine().wake(request);
        }
        Asked::Yes
    }

    /// Works until the high watermark is reached, or a search of all there is frees next to nothing: what a kernel
    /// calls that has no thread for [`Mm::reclaimer`].
    pub fn balance(&self) {
        self.balance_by_steps(|| {});
    }

    /// The same; calls `each` after every batch.
    fn balance_by_steps(&self, each: impl Fn()) {
        while self.frames().free_blocks() < self.reclaim().watermarks().high {
            let progress = self.shrink();
            each();
            if matches!(progress, Progress::Nothing | Progress::Meagre(_)) {
                return;
            }
        }
    }

    /// The body of the background reclaimer's thread: sleeps until memory is short, then works until it is not.
    pub fn reclaimer(&self) -> ! {
        let background @ Background { request, steps, .. } = &self.reclaim().background;
        let count_step = || {
            steps.fetch_add(1, Ordering::Release);
            self.machine().wake(steps);
        };
        // Others may count on it from here on.
        count_step();
        loop {
            if request.swap(0, Ordering::Acquire) == 0 {
                self.machine().wait(request, 0);
                continue;
            }
            self.balance_by_steps(count_step);
            background.set_rest();
            // That there was nothing to do any more is what somebody may wait for, too.
            count_step();
        }
    }
}
