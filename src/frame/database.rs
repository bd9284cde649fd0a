//! The records as one array, and allocation by typed ownership.

use core::mem;
use core::ptr::NonNull;

use super::buddy::{Buddy, MAX_ORDER, Magazine, Urgency};
use super::{Frame, FrameRecord, Kind, NO_FRAME, REFERENCE, flag};
use crate::addr::{Pfn, PfnRange};
use crate::machine::MAX_CPUS;
use crate::sync::{AtomicU64, Ordering, Spin};

/// The frame database and the allocator over it.
pub struct Frames {
    span: PfnRange,
    records: NonNull<FrameRecord>,
    buddy: Spin<Buddy>,
    magazines: [Spin<Magazine>; MAX_CPUS],
    /// Frames that [`Urgency::Normal`] leaves free.
    reserve: AtomicU64,
    /// Frames ever given to the allocator.
    managed: AtomicU64,
    /// Called for in [`Frames::take`]: fewer free frames than this ask for reclaim.
    low: AtomicU64,
}

// SAFETY: the records are only reached as shared references to atomics; the rest is locked or atomic.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

/// Whether an allocation left memory short.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Pressure {
    /// Enough is free, as far as this allocation looked.
    None,
    /// Fewer frames than the low watermark are free: the background reclaimer should run.
    Low,
}

impl Frames {
    /// A database for `span` with every frame reserved.
    ///
    /// # Safety
    /// `records` points to `span.pages()` zeroed records that stay in place, and are the database's alone, for its
    /// life.
    pub(crate) unsafe fn new(span: PfnRange, records: NonNull<FrameRecord>) -> Self {
        Self {
            span,
            records,
            buddy: Spin::new(Buddy::new()),
            magazines: [const { Spin::new(Magazine::new()) }; MAX_CPUS],
            reserve: AtomicU64::new(0),
            managed: AtomicU64::new(0),
            low: AtomicU64::new(0),
        }
    }

    /// Gives the frames of `run` to the allocator.
    ///
    /// # Safety
    /// Nobody else uses these frames, now or later, and the run was not given before.
    pub(crate) unsafe fn release(&self, run: PfnRange) {
        let run = run.intersection(self.span);
        if let Some(first) = self.frame(run.start()) {
            self.give_run(first, run.pages() as u32);
            self.managed.fetch_add(run.pages(), Ordering::Relaxed);
        }
    }

    /// Sets how many frames stay back for [`Urgency::Reserve`], and below how many free ones reclaim is called.
    pub(crate) fn set_watermarks(&self, reserve: u64, low: u64) {
        self.reserve.store(reserve, Ordering::Relaxed);
        self.low.store(low, Ordering::Relaxed);
    }

    /// The frames that the allocator ever had.
    pub fn managed_frames(&self) -> u64 {
        self.managed.load(Ordering::Relaxed)
    }

    /// Free frames, those in magazines included. Exact when nothing else runs.
    pub fn free_frames(&self) -> u64 {
        let magazines: usize = self.magazines.iter().map(|magazine| magazine.lock().len()).sum();
        self.buddy.lock().free() + magazines as u64
    }

    /// Free frames in the buddy lists: what the watermarks look at.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.buddy.lock().free()
    }

    /// The record of a frame.
    #[inline]
    pub(crate) fn record(&self, frame: Frame) -> &FrameRecord {
        debug_assert!((frame.0 as u64) < self.span.pages());
        // SAFETY: a `Frame` is made in this file and in `buddy.rs` only, from an index below `span.pages()`: of a run
        // within the span, of a record's link, or of a block's part. The array has that many.
        unsafe { self.records.add(frame.0 as usize).as_ref() }
    }

    /// The frame number of a frame.
    #[inline]
    pub(crate) fn pfn(&self, frame: Frame) -> Pfn {
        self.span.start().offset(frame.0 as u64)
    }

    /// The frame with number `pfn`, if the database has it.
    #[inline]
    pub(crate) fn frame(&self, pfn: Pfn) -> Option<Frame> {
        if self.span.contains(pfn) { Some(Frame((pfn.number() - self.span.start().number()) as u32)) } else { None }
    }

    /// The frame with index `index`, if the database has it.
    #[inline]
    pub(crate) fn frame_at(&self, index: u32) -> Option<Frame> {
        if (index as u64) < self.span.pages() { Some(Frame(index)) } else { None }
    }

    /// The `count` frames from `first` on, as far as the database has them: the pages of a folio.
    #[inline]
    pub(crate) fn pages(&self, first: Frame, count: u64) -> impl Iterator<Item = Frame> {
        let end = (first.0 as u64 + count).min(self.span.pages());
        (first.0..end as u32).map(Frame)
    }

    /// The block of the same order that merges with `block`, if all of it is in the database.
    pub(super) fn buddy_of(&self, block: Frame, order: u32) -> Option<Frame> {
        let number = self.pfn(block).number() ^ (1 << order);
        let buddy = PfnRange::new(Pfn::new(number), 1 << order);
        if self.span.covers(buddy) { self.frame(buddy.start()) } else { None }
    }

    /// Takes one frame from the calling CPU's magazine, if there is one: the way of most faults. `cpu` is the caller's.
    ///
    /// Contents and tags are some earlier owner's.
    #[inline]
    pub(crate) fn take_near(&self, cpu: usize, kind: Kind) -> Option<OwnedFrame<'_>> {
        let frame = self.magazines[cpu % MAX_CPUS].lock().take()?;
        Some(self.own(frame, kind, 0))
    }

    /// Takes a folio of 2^`order` pages, if that leaves memory above the low watermark: a large folio is a gain of
    /// time, for which nobody reclaims.
    pub(crate) fn take_large(&self, order: u32) -> Option<OwnedFrame<'_>> {
        let (frame, _) = self.take_block(order, self.low.load(Ordering::Relaxed))?;
        Some(self.own(frame, Kind::Folio, order))
    }

    /// Takes 2^`order` frames as a block nobody else knows of, and says how much is left. `cpu` is the caller's.
    ///
    /// Contents and tags are some earlier owner's.
    pub(crate) fn take(
        &self,
        cpu: usize,
        order: u32,
        kind: Kind,
        urgency: Urgency,
    ) -> Option<(OwnedFrame<'_>, Pressure)> {
        let reserve = self.reserve.load(Ordering::Relaxed);
        let (frame, left) = if order == 0 {
            self.magazines[cpu % MAX_CPUS].lock().refill_and_take(self, &self.buddy, urgency, reserve)?
        } else {
            self.take_block(order, if urgency == Urgency::Reserve { 0 } else { reserve })?
        };
        let pressure = if left < self.low.load(Ordering::Relaxed) { Pressure::Low } else { Pressure::None };
        Some((self.own(frame, kind, order), pressure))
    }

    #[inline]
    fn own(&self, frame: Frame, kind: Kind, order: u32) -> OwnedFrame<'_> {
        let record = self.record(frame);
        record.begin(kind, order);
        record.count.begin(REFERENCE);
        OwnedFrame { frames: self, frame }
    }

    fn take_block(&self, order: u32, reserve: u64) -> Option<(Frame, u64)> {
        let mut buddy = self.buddy.lock();
        let head = buddy.take(self, order, reserve)?;
        let free = buddy.free();
        drop(buddy);
        for tail in 1..1 << order {
            self.record(Frame(head.0 + tail)).follow(head, order);
        }
        Some((head, free))
    }

    /// Takes one frame, from the magazine of another CPU if need be. `None` when no more than the reserve is free.
    /// `cpu` is the caller's.
    #[cold]
    pub(crate) fn take_from_anywhere(&self, cpu: usize, kind: Kind) -> Option<OwnedFrame<'_>> {
        loop {
            for magazine in &self.magazines {
                magazine.lock().drain(self, &self.buddy, 0);
            }
            if let Some((frame, _)) = self.take(cpu, 0, kind, Urgency::Normal) {
                return Some(frame);
            }
            // Unless another CPU has filled its magazine in between, that was all.
            if self.free_frames() <= self.reserve.load(Ordering::Relaxed) {
                return None;
            }
        }
    }

    /// Gives a run to the buddy lists, in the largest blocks that it has.
    fn give_run(&self, first: Frame, pages: u32) {
        let mut buddy = self.buddy.lock();
        let (mut next, end) = (first.0, first.0 + pages);
        while next < end {
            let aligned = self.pfn(Frame(next)).number().trailing_zeros();
            let order = aligned.min((end - next).ilog2()).min(MAX_ORDER);
            buddy.give(self, Frame(next), order);
            next += 1 << order;
        }
    }

    /// Ends the life of the block headed by `frame`, whose last owner is the caller. Returns its order.
    #[inline]
    fn end(&self, frame: Frame) -> u32 {
        let record = self.record(frame);
        debug_assert!(matches!(record.kind(), Kind::Folio | Kind::Table | Kind::Records), "{:?}", record.kind());
        debug_assert!(
            !record.has(flag::LISTED) && !record.has(flag::CACHED),
            "a freed frame is still listed or cached"
        );
        let order = record.order();
        record.begin(Kind::Tail, 0);
        order
    }

    /// Frees many blocks, with the work for neighbours shared.
    pub(crate) fn freeing(&self, cpu: usize) -> Freeing<'_> {
        Freeing { frames: self, cpu: (cpu % MAX_CPUS) as u32, first: Frame(0), pages: 0 }
    }

    /// Frees the block headed by `frame`, whose last owner is the caller. `cpu` is the caller's.
    #[inline]
    pub(crate) fn free(&self, cpu: usize, frame: Frame) {
        let order = self.end(frame);
        if order == 0 {
            self.magazines[cpu % MAX_CPUS].lock().put(self, &self.buddy, frame);
        } else {
            self.buddy.lock().give(self, frame, order);
        }
    }
}

/// Fewest neighbours that go to the buddy lists as a run, past the magazine: half a batch of its own.
const RUN: u32 = 16;

/// Blocks on their way to the allocator; see [`Frames::freeing`]. Dropped, it hands over the last of them.
pub(crate) struct Freeing<'a> {
    frames: &'a Frames,
    cpu: u32,
    first: Frame,
    pages: u32,
}

impl Freeing<'_> {
    /// Frees the block headed by `frame`, whose last owner is the caller.
    #[inline]
    pub(crate) fn push(&mut self, frame: Frame) {
        let order = self.frames.end(frame);
        if frame.0 != self.first.0 + self.pages {
            self.hand_over();
            self.first = frame;
        }
        self.pages += 1 << order;
    }

    fn hand_over(&mut self) {
        let pages = mem::take(&mut self.pages);
        if pages >= RUN {
            self.frames.give_run(self.first, pages);
        } else if pages > 0 {
            let mut magazine = self.frames.magazines[self.cpu as usize].lock();
            for page in 0..pages {
                magazine.put(self.frames, &self.frames.buddy, Frame(self.first.0 + page));
            }
        }
    }
}

impl Drop for Freeing<'_> {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// A block that has left the allocator and that nobody else knows of. Dropped, it goes back.
#[must_use = "dropping an owned frame frees it"]
pub struct OwnedFrame<'a> {
    frames: &'a Frames,
    frame: Frame,
}

impl OwnedFrame<'_> {
    /// The (first) frame's number.
    #[inline]
    pub fn pfn(&self) -> Pfn {
        self.frames.pfn(self.frame)
    }

    /// Sets state bits of its `pages` pages.
    #[inline]
    pub(crate) fn mark(&self, pages: u64, mask: u32) {
        for page in 0..pages as u32 {
            self.mark_page(Frame(self.frame.0 + page), mask);
        }
    }

    /// Sets state bits of a page of it.
    #[inline]
    pub(crate) fn mark_page(&self, page: Frame, mask: u32) {
        let flags = &self.frames.record(page).flags;
        // Nobody else knows of the block.
        flags.store(flags.load(Ordering::Relaxed) | mask, Ordering::Relaxed);
    }

    /// The record handle, the block staying owned.
    #[inline]
    pub(crate) fn frame(&self) -> Frame {
        self.frame
    }

    /// Hands the block to whatever structure names it from now on.
    #[inline]
    pub(crate) fn publish(self) -> Frame {
        let frame = self.frame;
        mem::forget(self);
        frame
    }
}

/// Frames that were taken for later, linked through their records. Dropped, they go back.
pub(crate) struct Spares<'a> {
    frames: &'a Frames,
    first: u32,
}

impl<'a> Spares<'a> {
    /// None yet.
    pub(crate) fn new(frames: &'a Frames) -> Self {
        Self { frames, first: NO_FRAME }
    }

    /// Adds a single frame.
    pub(crate) fn push(&mut self, frame: OwnedFrame<'a>) {
        let frame = frame.publish();
        self.frames.record(frame).next.store(self.first, Ordering::Relaxed);
        self.first = frame.0;
    }

    /// Takes one out, as a folio of one page.
    pub(crate) fn pop(&mut self) -> Option<OwnedFrame<'a>> {
        let frame = self.frames.frame_at(self.first)?;
        self.first = self.frames.record(frame).next.load(Ordering::Relaxed);
        Some(self.frames.own(frame, Kind::Folio, 0))
    }
}

impl Drop for Spares<'_> {
    fn drop(&mut self) {
        while let Some(frame) = self.pop() {
            drop(frame);
        }
    }
}

impl Drop for OwnedFrame<'_> {
    fn drop(&mut self) {
        // Rare: it goes past the magazines, whose CPU it would have to remember.
        let order = self.frames.end(self.frame);
        self.frames.buddy.lock().give(self.frames, self.frame, order);
    }
}
