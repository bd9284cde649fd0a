//! Folios on their way out: taken out of their tables, not yet written.
//!
//! Each is locked and in the swap cache, with swap entries in the places of its leaves; who took it out of the list has
//! a reference to it. They are written after the flush that covers them. What a device refuses stays cached, and goes
//! back to the list.

use arrayvec::ArrayVec;

use super::BATCH;
use super::list::{Batch, Kept};
use super::policy::Seen;
use crate::frame::{FolioLock, Frames, Freeing, Left, REFERENCE, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::swap::{Late, Leaving, Saved, Written};

/// See the module's head.
pub(super) struct Outgoing<'a, M: Machine> {
    // In the order in which they are let go of: the rooms before the lock.
    folios: ArrayVec<(Leaving<'a, M>, FolioLock<'a, M>), BATCH>,
}

impl<'a, M: Machine> Outgoing<'a, M> {
    /// None.
    #[inline]
    pub(super) const fn new() -> Self {
        Self { folios: ArrayVec::new_const() }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.folios.is_empty()
    }

    /// As many more as there is room for.
    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        self.folios.remaining_capacity()
    }

    /// Adds a folio.
    #[inline(always)]
    pub(super) fn push(&mut self, folio: FolioLock<'a, M>, way: Leaving<'a, M>) {
        self.folios.push((way, folio));
    }

    /// Writes them out, and frees their frames: those that stay join `kept`, and the references to them are the
    /// caller's to give back. After the flush. Returns the pages freed.
    #[inline(always)]
    pub(super) fn write_out(&mut self, mm: &Mm<M>, freeing: &mut Freeing<'_>, kept: &mut Kept) -> u64 {
        let frames = mm.frames();
        let mut saved = Saved::default();
        let mut freed = 0;
        // What the device takes its time for: all of it is under way before the first is waited for.
        let mut late: Late<'_, M, BATCH> = Late::new();
        let mut waiting: ArrayVec<FolioLock<'_, M>, BATCH> = ArrayVec::new();
        for (way, folio) in self.folios.drain(..) {
            let pages = way.pages();
            match way.write_out(mm, &folio, &mut saved, &mut late) {
                Written::Gone => freed += release(frames, folio, pages, freeing),
                Written::Kept => keep(&folio, kept),
                Written::Late => waiting.push(folio),
            }
        }
        for (folio, writing) in waiting.drain(..).zip(late.drain(..)) {
            let pages = writing.pages();
            match writing.finish(mm, &folio, &mut saved) {
                Written::Gone => freed += release(frames, folio, pages, freeing),
                Written::Kept | Written::Late => keep(&folio, kept),
            }
        }
        saved.count(mm.stats());
        freed
    }

    /// [`Outgoing::write_out`] of all that was isolated of a batch, and whatever comes after. Returns the pages freed.
    #[inline(never)]
    pub(super) fn send(&mut self, mm: &Mm<M>) -> u64 {
        let folios = self.folios.len();
        mm.stats().scanned.add(folios as u64);
        let mut kept = Kept::new();
        let freed = self.write_out(mm, &mut mm.frames().freeing(mm.machine().cpu()), &mut kept);
        mm.reclaim().put_back(mm.frames(), &Batch::default(), &kept);
        if !kept.is_empty() {
            mm.release(kept.iter().map(|&(frame, _)| (frame, REFERENCE)));
        }
        mm.reclaim().settled(mm.machine(), folios);
        freed
    }
}

/// The cache keeps a reference of its own to a folio that the device refused; reclaim's goes back with the others of
/// `kept`.
#[cold]
fn keep<M: Machine>(folio: &FolioLock<'_, M>, kept: &mut Kept) {
    let record = folio.record();
    if !record.has(flag::KEPT) {
        record.set(flag::KEPT);
        record.count.add(REFERENCE);
    }
    kept.push((folio.frame(), Seen::Nothing));
}

/// Gives back reclaim's reference to a folio of `pages` pages that nobody maps any more, and frees it unless somebody
/// else looks at it. Returns the pages freed.
#[inline(always)]
pub(super) fn release<M: Machine>(
    frames: &Frames,
    folio: FolioLock<'_, M>,
    pages: u64,
    freeing: &mut Freeing<'_>,
) -> u64 {
    let frame = folio.frame();
    drop(folio);
    match frames.put(frame, REFERENCE) {
        Left::Nobody => {
            freeing.push(frame);
            pages
        }
        Left::Shared => 0,
    }
}
