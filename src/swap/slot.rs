//! The record of a swap slot, 24 bytes.

use crate::mte::TagImage;
use crate::sync::{AtomicU64, Ordering};

/// One slot's record.
///
/// `state`, from the low end: 32 bits of cached frame or refault shadow, 16 bits of count, 3 bits of kind, 3 bits of
/// tag kind, the same-filled and poison bits, and 4 bits of the order of the folio that went out in one piece.
#[repr(C)]
pub struct SlotRecord {
    state: AtomicU64,
    /// Uniform: the tag. Packed: the runs. Raw: the room's number.
    tags: AtomicU64,
    /// The page's repeated word, or the check of its contents.
    check_or_pattern: AtomicU64,
}

const _: () = assert!(size_of::<SlotRecord>() == 24);

const COUNT_SHIFT: u32 = 32;
const COUNT_ONE: u64 = 1 << COUNT_SHIFT;
const COUNT_MASK: u64 = 0xffff << COUNT_SHIFT;
const KIND_SHIFT: u32 = 48;
const KIND_MASK: u64 = 0b111 << KIND_SHIFT;
const TAGS_SHIFT: u32 = 51;
const TAGS_MASK: u64 = 0b111 << TAGS_SHIFT;

const FREE: u64 = 0 << KIND_SHIFT;
// 1 is kept for slots that a device declares bad.
const TAKEN: u64 = 2 << KIND_SHIFT;
const CACHED: u64 = 3 << KIND_SHIFT;
const OUT: u64 = 4 << KIND_SHIFT;

const ORDER_SHIFT: u32 = 56;
const ORDER_MASK: u64 = 0xf << ORDER_SHIFT;

const UNTAGGED: u64 = 0 << TAGS_SHIFT;
const UNIFORM: u64 = 1 << TAGS_SHIFT;
const PACKED: u64 = 2 << TAGS_SHIFT;
const RAW: u64 = 3 << TAGS_SHIFT;

/// What a slot is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum SlotState {
    /// Nobody's.
    Free,
    /// Nothing that is written here: a damaged record.
    Unknown,
    /// Taken for a page that is about to be unmapped.
    Taken,
    /// `frame` (by index) holds the page; so many swap entries name the slot.
    Cached { frame: u32, count: u16 },
    /// The device holds the page; `shadow` is the eviction clock of when it went.
    Out { shadow: u32, count: u16 },
}

/// What giving back a use of a slot left.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use = "the last user of a slot frees it, or the cached frame's holder does"]
pub(crate) enum SlotLeft {
    /// Other swap entries name the slot.
    Shared,
    /// None does, and the device alone held the page: the caller frees the slot.
    Unused,
    /// None does, and a frame is still in the cache.
    UnusedButCached,
}

impl SlotRecord {
    #[inline]
    fn parse(state: u64) -> SlotState {
        let payload = state as u32;
        let count = (state >> COUNT_SHIFT) as u16;
        match state & KIND_MASK {
            FREE => SlotState::Free,
            TAKEN => SlotState::Taken,
            CACHED => SlotState::Cached { frame: payload, count },
            OUT => SlotState::Out { shadow: payload, count },
            _ => SlotState::Unknown,
        }
    }

    /// The state now.
    #[inline]
    pub(crate) fn state(&self) -> SlotState {
        Self::parse(self.state.load(Ordering::Acquire))
    }

    /// Free to taken. Under the cluster's lock.
    #[inline]
    pub(crate) fn take(&self) {
        self.state.store(TAKEN, Ordering::Relaxed);
    }

    /// Taken to cached, with one swap entry, which the caller is about to install by an exchange, which is a release:
    /// a fault that finds the entry finds this. `frame` is the index of the page's frame, of a folio of 2^`order` pages.
    #[inline]
    pub(crate) fn cache(&self, frame: u32, order: u32) {
        self.state.store((order as u64) << ORDER_SHIFT | CACHED | COUNT_ONE | frame as u64, Ordering::Relaxed);
    }

    /// log2 of the pages of the folio that left, or is leaving, in one piece.
    #[inline]
    pub(crate) fn order(&self) -> u32 {
        ((self.state.load(Ordering::Relaxed) & ORDER_MASK) >> ORDER_SHIFT) as u32
    }

    /// The page is of a single folio now. Under the lock of the folio that it was of.
    pub(crate) fn set_single(&self) {
        self.state.fetch_and(!ORDER_MASK, Ordering::Relaxed);
    }

    /// Cached to out: the device has the page. `None`, and still cached, when no swap entry is left.
    /// The caller holds the folio lock.
    #[inline]
    pub(crate) fn wrote(&self, shadow: u32) -> Option<()> {
        let mut seen = self.state.load(Ordering::Relaxed);
        while seen & COUNT_MASK != 0 {
            let new = OUT | seen & (COUNT_MASK | TAGS_MASK | ORDER_MASK) | shadow as u64;
            match self.state.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(()),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Gives back one swap entry's use. Under the lock of the table that held the entry.
    #[inline]
    pub(crate) fn put(&self) -> SlotLeft {
        let before = self.state.fetch_sub(COUNT_ONE, Ordering::AcqRel);
        debug_assert!(before & COUNT_MASK != 0, "the count of a slot went below zero");
        match Self::parse(before) {
            SlotState::Cached { count: 1, .. } => SlotLeft::UnusedButCached,
            SlotState::Out { count: 1, .. } => SlotLeft::Unused,
            _ => SlotLeft::Shared,
        }
    }

    /// To free, everything else having been cleaned up. Under the cluster's lock.
    #[inline]
    pub(crate) fn free(&self) {
        self.tags.store(0, Ordering::Relaxed);
        self.check_or_pattern.store(0, Ordering::Relaxed);
        self.state.store(FREE, Ordering::Release);
    }

    /// Records what was kept of the tags. Before [`SlotRecord::wrote`], under the folio lock.
    #[inline]
    pub(crate) fn set_tags(&self, image: TagImage) {
        let (kind, word) = match image {
            TagImage::Untagged => (UNTAGGED, 0),
            TagImage::Uniform(tag) => (UNIFORM, tag as u64),
            TagImage::Packed(runs) => (PACKED, runs),
            TagImage::Raw(room) => (RAW, room as u64),
        };
        self.tags.store(word, Ordering::Relaxed);
        let seen = self.state.load(Ordering::Relaxed) & TAGS_MASK;
        self.state.fetch_xor(seen ^ kind, Ordering::Release);
    }

    /// What was kept of the tags.
    #[inline]
    pub(crate) fn tags(&self) -> TagImage {
        let word = self.tags.load(Ordering::Relaxed);
        match self.state.load(Ordering::Acquire) & TAGS_MASK {
            UNIFORM => TagImage::Uniform(word as u8),
            PACKED => TagImage::Packed(word),
            RAW => TagImage::Raw(word as u32),
            _ => TagImage::Untagged,
        }
    }
}
