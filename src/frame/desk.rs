//! A frame database on ordinary memory, for tests of what works on records alone.

use core::ops::Deref;
use core::ptr::NonNull;
use std::boxed::Box;

use super::{Frame, FrameRecord, Frames, Kind, Left, MAP, REFERENCE, Urgency};
use crate::addr::{Pfn, PfnRange};

/// The database. Its frames are numbers, with no memory behind them.
pub(crate) struct Desk {
    frames: Frames,
}

impl Desk {
    /// All of `count` frames are free.
    pub(crate) fn new(count: u64) -> Self {
        let span = PfnRange::new(Pfn::new(0x4_0000), count);
        // SAFETY: zeroes are a record: atomics of zero.
        let records = Box::leak(unsafe { Box::<[FrameRecord]>::new_zeroed_slice(count as usize).assume_init() });
        // SAFETY: as many zeroed records as the span has frames, which stay for ever.
        let frames = unsafe { Frames::new(span, NonNull::from(records).cast()) };
        // SAFETY: nobody else knows of these frames.
        unsafe { frames.release(span) };
        Self { frames }
    }

    /// A folio of one page, mapped once, if a frame is free.
    pub(crate) fn folio(&self) -> Option<Frame> {
        let (frame, _) = self.frames.take(0, 0, Kind::Folio, Urgency::Normal)?;
        let frame = frame.publish();
        self.record(frame).count.begin(MAP);
        Some(frame)
    }

    /// Unmaps and frees a folio to which the caller has the one reference.
    pub(crate) fn free_folio(&self, frame: Frame) {
        assert!(self.frames.put(frame, MAP) == Left::Shared && self.frames.put(frame, REFERENCE) == Left::Nobody);
        self.frames.free(0, frame);
    }
}

impl Deref for Desk {
    type Target = Frames;

    fn deref(&self) -> &Frames {
        &self.frames
    }
}
