//! The frame database: one 32-byte record for each frame, and who owns the frame.
//!
//! **Protocol.** A frame is in exactly one of the kinds of [`Kind`], kept in its record:
//!
//! - *reserved*: never the library's (the kernel's image, the records themselves). Zeroed memory says this.
//! - *free*: in a buddy list or a CPU's magazine ([`buddy`]); nothing maps it and nobody holds it.
//! - *folio*: anonymous memory, 2^order frames; the first is its head, the others are *tails* that name it. Its
//!   `count`, in the head's record, packs leaf entries (maps), references and pins. Whoever brings the count to zero
//!   frees the folio, and nobody else may. A reference keeps the folio from being freed; it does not lock it.
//! - *table*: a table of descriptors. The leaf table's lock and its counts of entries live in its record.
//! - *records*: the library's own cold records ([`slab`], region lists).
//!
//! A frame leaves "free" as an [`OwnedFrame`], which gives it back when dropped: what is prepared undoes itself.
//!
//! **Locks.** `flags` and `count` change by atomic steps. The folio lock is a bit of `flags`; it sleeps. `home`,
//! `slot` and the list links belong to whoever holds what the [`FrameRecord`] says at each.

mod buddy;
mod count;
mod database;
#[cfg(test)]
pub(crate) mod desk;
mod folio;
mod orders;
pub mod slab;
mod standing;

pub use buddy::{MAX_ORDER, Urgency};
pub(crate) use count::{Count, Left, MAP, PIN, REFERENCE};
pub use database::{Frames, OwnedFrame};
pub(crate) use database::{Freeing, Pressure, Spares};
pub use folio::FolioLock;
pub use orders::FolioOrders;
pub(crate) use standing::{Class, Standing};

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A frame of the database, by its index. Only [`Frames`] and its allocator make one, so that the record exists.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Frame(u32);

impl Frame {
    /// The index within the database, for the fields of records that name frames in 32 bits.
    #[inline]
    pub(crate) const fn index(self) -> u32 {
        self.0
    }
}

/// "No frame" in the 32-bit links.
pub(crate) const NO_FRAME: u32 = u32::MAX;

/// Most frames of a database: the four highest indices mark the ends of reclaim's queues in its links.
pub(crate) const MOST_FRAMES: u64 = NO_FRAME as u64 - 3;

/// Counts of leaf entries of one folio, named by its head.
#[derive(Copy, Clone)]
pub(crate) struct Maps {
    pub(crate) folio: Frame,
    pub(crate) maps: u32,
}

/// What a frame is for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Not the library's.
    Reserved = 0,
    /// Free, as the head of its buddy block.
    Free = 1,
    /// The head of a folio.
    Folio = 2,
    /// A later page of a folio, whose `next` names the head; a later page of a free block, or a frame in a magazine,
    /// where nothing looks at it.
    Tail = 3,
    /// A table of descriptors.
    Table = 4,
    /// The library's own records.
    Records = 5,
}

impl Kind {
    #[inline]
    const fn from_flags(flags: u32) -> Self {
        match flags & KIND_MASK {
            1 => Self::Free,
            2 => Self::Folio,
            3 => Self::Tail,
            4 => Self::Table,
            5 => Self::Records,
            _ => Self::Reserved,
        }
    }
}

const KIND_MASK: u32 = 0xf;
const ORDER_SHIFT: u32 = 4;
const ORDER_MASK: u32 = 0xf << ORDER_SHIFT;
const RANK_SHIFT: u32 = 8;
const RANK_MASK: u32 = 3 << RANK_SHIFT;
const AREA_SHIFT: u32 = 10;
const AREA_MASK: u32 = 0x1f << AREA_SHIFT;

/// State bits of [`FrameRecord::flags`].
pub(crate) mod flag {
    // Of a folio, in its head's record: LOCKED, WAITED, LISTED, PROTECTED, CACHED, KEPT, BACKED. Of a page, in each
    // page's own record: TAGS_VALID, CODE_SYNCED.

    /// The folio lock.
    pub const LOCKED: u32 = 1 << 16;
    /// Somebody sleeps for the folio lock.
    pub const WAITED: u32 = 1 << 17;
    /// The allocation tags are this page's own; otherwise they are some earlier owner's.
    pub const TAGS_VALID: u32 = 1 << 18;
    /// The instruction side sees the contents.
    pub const CODE_SYNCED: u32 = 1 << 19;
    /// In a reclaim list.
    pub const LISTED: u32 = 1 << 20;
    /// In the swap cache: `slot` and the area bits name a slot whose record names this folio.
    pub const CACHED: u32 = 1 << 21;
    /// Cached, and the cache holds a reference of its own: the device refused the page.
    pub const KEPT: u32 = 1 << 23;
    /// Cached, mapped, and the slots have the page as good as memory: see [`crate::swap`], "backed".
    pub const BACKED: u32 = 1 << 24;
    /// The ageing policy's: see [`Class`](super::Class).
    pub const PROTECTED: u32 = 1 << 25;
    /// The lock of a leaf table.
    pub const TABLE_LOCKED: u32 = 1 << 22;
}

/// One frame's record.
///
/// 32 bytes, so that a database costs 1/128 of memory at 4 KiB and two records share a cache line of 64 bytes.
#[repr(C)]
pub struct FrameRecord {
    /// Folio: maps in bits 31:0, references in 47:32, pins in 63:48. Leaf table: present entries in bits 31:0, swap
    /// entries in 63:32, under the table's lock. Another table: the tables linked in it, under the space's lock.
    pub(crate) count: Count,
    /// Kind in bits 3:0, order in 7:4, the policy's rank in 9:8, swap area in 14:10, state bits from 16 up.
    pub(crate) flags: AtomicU32,
    /// Folio with `CACHED`: its first slot. Under the folio lock.
    pub(crate) slot: AtomicU32,
    /// Folio: where it may be mapped, a fork-tree node and a virtual page ([`crate::node::Home`]). Leaf table: the
    /// same for its first entry. Written before the frame is published.
    pub(crate) home: AtomicU64,
    /// Free block, reclaim list, flush: the next frame. Tail: the head. Under the list's lock.
    pub(crate) next: AtomicU32,
    /// Free block, reclaim list: the frame before. Under the list's lock.
    pub(crate) prev: AtomicU32,
}

const _: () = assert!(size_of::<FrameRecord>() == 32 && align_of::<FrameRecord>() == 8);

impl FrameRecord {
    /// What the frame is for.
    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        Kind::from_flags(self.flags.load(Ordering::Relaxed))
    }

    /// log2 of the pages that the folio or free block has.
    #[inline]
    pub(crate) fn order(&self) -> u32 {
        (self.flags.load(Ordering::Relaxed) & ORDER_MASK) >> ORDER_SHIFT
    }

    /// Whether all bits of `mask` are set.
    #[inline]
    pub(crate) fn has(&self, mask: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & mask == mask
    }

    /// Whether it is a folio of one page in reclaim's list, and not in the swap cache.
    #[inline]
    pub(crate) fn is_listed_single(&self) -> bool {
        let looked_at = KIND_MASK | ORDER_MASK | flag::LISTED | flag::CACHED;
        self.flags.load(Ordering::Relaxed) & looked_at == Kind::Folio as u32 | flag::LISTED
    }

    #[inline]
    pub(crate) fn set(&self, mask: u32) {
        self.flags.fetch_or(mask, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn clear(&self, mask: u32) {
        self.flags.fetch_and(!mask, Ordering::Relaxed);
    }

    /// Starts a life as `kind`: every state bit clear. The caller owns the frame alone.
    #[inline]
    fn begin(&self, kind: Kind, order: u32) {
        self.flags.store(kind as u32 | order << ORDER_SHIFT, Ordering::Relaxed);
    }

    /// Starts a life as the tail of a folio. The caller owns the frame alone.
    #[inline]
    fn follow(&self, head: Frame, order: u32) {
        self.begin(Kind::Tail, order);
        self.next.store(head.0, Ordering::Relaxed);
    }

    /// The swap area of a cached folio.
    #[inline]
    pub(crate) fn area(&self) -> u8 {
        ((self.flags.load(Ordering::Relaxed) & AREA_MASK) >> AREA_SHIFT) as u8
    }

    /// Enters the folio in the swap cache under `slot` of `area`. Under the folio lock.
    #[inline]
    pub(crate) fn enter_cache(&self, area: u8, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
        let seen = self.flags.load(Ordering::Relaxed);
        let new = seen & !AREA_MASK | (area as u32) << AREA_SHIFT | flag::CACHED;
        // The lock's holder owns these bits; the xor leaves the bits of others alone.
        self.flags.fetch_xor(seen & (AREA_MASK | flag::CACHED) ^ new & (AREA_MASK | flag::CACHED), Ordering::Relaxed);
    }
}
