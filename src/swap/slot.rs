//! The record of a swap slot, 24 bytes.

use crate::machine::MAX_CPUS;
use crate::mte::TagImage;
use crate::sync::{AtomicU64, Ordering, Word};

/// One slot's record.
///
/// `state`, from the low end: 32 bits of cached frame or refault shadow, 16 bits of count, 3 bits of kind, 3 bits of
/// tag kind, the same-filled and poison bits, and 4 bits of the order of the folio that went out in one piece. Generic
/// over the word, so that the models below run its very steps on loom's.
#[repr(C)]
#[cfg_attr(test, derive(Default))]
pub struct SlotRecord<W = AtomicU64> {
    state: W,
    /// Uniform: the tag. Packed: the runs. Strided: the objects. Raw: the room's number.
    tags: W,
    /// Same-filled: the word that the page repeats. Else, on a device that is `CHECKED`: the sum of the page.
    sum_or_word: W,
}

const _: () = assert!(size_of::<SlotRecord>() == 24);

const COUNT_SHIFT: u32 = 32;
const COUNT_ONE: u64 = 1 << COUNT_SHIFT;
const COUNT_MASK: u64 = 0xffff << COUNT_SHIFT;
/// Users that fork gives a slot at most, and spaces from which reclaim takes a page at most: each of these becomes a
/// user as well. The count goes to 65,535, and every CPU may have looked before any has added one.
pub(crate) const MOST_USERS: u64 = 0x7f00;
const _: () = assert!(2 * (MOST_USERS + MAX_CPUS as u64) < 0xffff);
const KIND_SHIFT: u32 = 48;
const KIND_MASK: u64 = 0b111 << KIND_SHIFT;
const TAGS_SHIFT: u32 = 51;
const TAGS_MASK: u64 = 0b111 << TAGS_SHIFT;

const FREE: u64 = 0 << KIND_SHIFT;
// 1 is kept for slots that a device declares bad.
const TAKEN: u64 = 2 << KIND_SHIFT;
const CACHED: u64 = 3 << KIND_SHIFT;
const OUT: u64 = 4 << KIND_SHIFT;

/// All of the page is one word: the device has nothing of it.
const SAME: u64 = 1 << 54;
/// The page came back another than it left: nobody gets it.
const POISON: u64 = 1 << 55;

const ORDER_SHIFT: u32 = 56;
const ORDER_MASK: u64 = 0xf << ORDER_SHIFT;

const UNTAGGED: u64 = 0 << TAGS_SHIFT;
const UNIFORM: u64 = 1 << TAGS_SHIFT;
const PACKED: u64 = 2 << TAGS_SHIFT;
const RAW: u64 = 3 << TAGS_SHIFT;
const STRIDED: u64 = 4 << TAGS_SHIFT;

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

impl<W: Word<Bits = u64>> SlotRecord<W> {
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

    /// Whether it is nobody's. Under the cluster's lock.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.state.load(Ordering::Acquire) & KIND_MASK == FREE
    }

    /// Free to taken. Under the cluster's lock.
    #[inline]
    pub(crate) fn take(&self) {
        self.state.store(TAKEN, Ordering::Relaxed);
    }

    /// Taken to cached, with one swap entry, which the caller is about to install by an exchange, which is a release: a
    /// fault that finds the entry finds this. `frame` is the index of the page's frame, of a folio of 2^`order` pages.
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

    /// Cached to out: the device has the page of `frame`. `None`, and still cached, when no swap entry is left.
    /// The caller holds the folio lock and the cluster's, so that all but the count is as it was.
    #[inline]
    pub(crate) fn wrote(&self, frame: u32, shadow: u32) -> Option<()> {
        let change = CACHED ^ OUT | (frame ^ shadow) as u64;
        if self.state.fetch_xor(change, Ordering::AcqRel) & COUNT_MASK != 0 {
            return Some(());
        }
        // No entry leads here any more.
        self.state.fetch_xor(change, Ordering::Relaxed);
        None
    }

    /// Out to cached: the page has been read into `frame`. Under the cluster's lock, by which it is still out.
    pub(crate) fn keep(&self, frame: u32) {
        let seen = self.state.load(Ordering::Relaxed);
        debug_assert_eq!(seen & KIND_MASK, OUT, "kept twice");
        // Others may change the count meanwhile.
        self.state.fetch_xor(CACHED ^ OUT | (seen as u32 ^ frame) as u64, Ordering::Release);
    }

    /// Whether the device alone has the page, for one swap entry: by one look, as who brings it in for another entry
    /// caches it first, and gives that entry's use back after.
    pub(crate) fn is_out_for_one(&self) -> bool {
        self.state.load(Ordering::Acquire) & (KIND_MASK | COUNT_MASK) == OUT | COUNT_ONE
    }

    /// Whether one swap entry names it.
    pub(crate) fn is_used_once(&self) -> bool {
        self.state.load(Ordering::Acquire) & COUNT_MASK == COUNT_ONE
    }

    /// A swap entry is about to name the slot: beside another, whose table's lock the caller holds, or the first of a
    /// slot that is cached, under the folio lock.
    pub(crate) fn add_user(&self) {
        self.state.fetch_add(COUNT_ONE, Ordering::Relaxed);
    }

    /// Whether there may be one user more.
    pub(crate) fn takes_another_user(&self) -> bool {
        (self.state.load(Ordering::Relaxed) & COUNT_MASK) >> COUNT_SHIFT < MOST_USERS
    }

    /// Gives back one swap entry's use. Under the lock of the table that held the entry.
    ///
    /// The one user of a page that is out is alone with the slot: it leaves the count to who frees it.
    #[inline]
    pub(crate) fn put(&self) -> SlotLeft {
        if self.is_out_for_one() {
            return SlotLeft::Unused;
        }
        self.put_shared()
    }

    /// [`SlotRecord::put`] with [`SlotRecord::room`] of a slot that is unused now: by one look.
    #[inline]
    pub(crate) fn put_seeing_room(&self) -> (SlotLeft, Option<u32>) {
        let seen = self.state.load(Ordering::Acquire);
        if seen & (KIND_MASK | COUNT_MASK) == OUT | COUNT_ONE {
            return (SlotLeft::Unused, self.room_in(seen));
        }
        match self.put_shared() {
            SlotLeft::Unused => (SlotLeft::Unused, self.room()),
            left => (left, None),
        }
    }

    /// [`SlotRecord::put`] of a slot that has other users, or had.
    #[cold]
    fn put_shared(&self) -> SlotLeft {
        let before = self.state.fetch_sub(COUNT_ONE, Ordering::AcqRel);
        debug_assert!(before & COUNT_MASK != 0, "the count of a slot went below zero");
        match Self::parse(before) {
            SlotState::Cached { count: 1, .. } => SlotLeft::UnusedButCached,
            SlotState::Out { count: 1, .. } => SlotLeft::Unused,
            _ => SlotLeft::Shared,
        }
    }

    /// To free, everything else having been cleaned up. Under the cluster's lock. The tags' word means
    /// nothing without the kind that says what it holds.
    #[inline]
    pub(crate) fn free(&self) {
        self.state.store(FREE, Ordering::Release);
    }

    /// Records what was kept of the tags. Before [`SlotRecord::wrote`], under the folio lock.
    #[inline]
    pub(crate) fn set_tags(&self, image: TagImage) {
        let (kind, word) = match image {
            TagImage::Untagged => (UNTAGGED, 0),
            TagImage::Uniform(tag) => (UNIFORM, tag as u64),
            TagImage::Packed(runs) => (PACKED, runs),
            TagImage::Strided(word) => (STRIDED, word),
            TagImage::Raw(room) => (RAW, room as u64),
        };
        self.tags.store(word, Ordering::Relaxed);
        let seen = self.state.load(Ordering::Relaxed) & TAGS_MASK;
        self.state.fetch_xor(seen ^ kind, Ordering::Release);
    }

    /// Records that the page is `word` all over. Before [`SlotRecord::wrote`], under the folio lock.
    #[inline]
    pub(crate) fn set_same(&self, word: u64) {
        self.sum_or_word.store(word, Ordering::Relaxed);
        self.state.fetch_or(SAME, Ordering::Release);
    }

    /// Whether the slot has a word in place of the device's page.
    #[inline]
    pub(crate) fn is_same(&self) -> bool {
        self.state.load(Ordering::Acquire) & SAME != 0
    }

    /// The word that the page repeats, if the slot has it in place of the device.
    #[inline]
    pub(crate) fn same(&self) -> Option<u64> {
        self.is_same().then(|| self.sum_or_word.load(Ordering::Relaxed))
    }

    /// Records the sum of the page's data and tags. Before [`SlotRecord::wrote`], under the folio lock.
    #[inline]
    pub(crate) fn set_sum(&self, sum: u64) {
        self.sum_or_word.store(sum, Ordering::Relaxed);
    }

    /// The sum, for whoever has found the page out.
    #[inline]
    pub(crate) fn sum(&self) -> u64 {
        self.sum_or_word.load(Ordering::Relaxed)
    }

    /// Marks a page that came back damaged. Lasts until the slot is freed.
    pub(crate) fn poison(&self) {
        self.state.fetch_or(POISON, Ordering::Relaxed);
    }

    /// Whether it is so marked.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.state.load(Ordering::Relaxed) & POISON != 0
    }

    /// The room that the tags took, if they took one. By whoever frees the slot, or has found its page out: nobody
    /// changes it any more.
    #[inline]
    pub(crate) fn room(&self) -> Option<u32> {
        self.room_in(self.state.load(Ordering::Relaxed))
    }

    #[inline]
    fn room_in(&self, state: u64) -> Option<u32> {
        (state & TAGS_MASK == RAW).then(|| self.tags.load(Ordering::Relaxed) as u32)
    }

    /// What was kept of the tags.
    #[inline]
    pub(crate) fn tags(&self) -> TagImage {
        let word = self.tags.load(Ordering::Relaxed);
        match self.state.load(Ordering::Acquire) & TAGS_MASK {
            UNIFORM => TagImage::Uniform(word as u8),
            PACKED => TagImage::Packed(word),
            STRIDED => TagImage::Strided(word),
            RAW => TagImage::Raw(word as u32),
            _ => TagImage::Untagged,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicU32 as Modelled32, AtomicU64 as Modelled};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use crate::frame::{Count, Left, REFERENCE};
    use crate::sync::{try_lock_bit, unlock_bits};

    const LOCK: u32 = 1;
    /// A swap entry that names the slot.
    const ENTRY: u64 = 5 << 12;
    const LEAF: u64 = 3;
    const FRAME: u32 = 7;

    /// A slot, the entry and the table that name it, the frame that is cached under it, and what the device holds.
    struct Page {
        slot: SlotRecord<Modelled>,
        entry: Modelled,
        table: Modelled32,
        cluster: Mutex<()>,
        frame: Count<Modelled>,
        /// 1 when it was written out; 2 when the slot was freed.
        device: UnsafeCell<u64>,
        contents: UnsafeCell<u64>,
    }

    // SAFETY: loom watches each use of the cells.
    unsafe impl Sync for Page {}

    fn set(cell: &UnsafeCell<u64>, value: u64) {
        // SAFETY: loom checks that nobody looks at it meanwhile.
        cell.with_mut(|cell| unsafe { *cell = value });
    }

    fn look(cell: &UnsafeCell<u64>) -> u64 {
        // SAFETY: loom checks that nobody changes it meanwhile.
        cell.with(|cell| unsafe { *cell })
    }

    impl Page {
        fn new(state: u64, entry: u64) -> Arc<Self> {
            let word = Modelled::new;
            Arc::new(Self {
                slot: SlotRecord { state: word(state), tags: word(0), sum_or_word: word(0) },
                entry: word(entry),
                table: Modelled32::new(0),
                cluster: Mutex::new(()),
                frame: Count::of(word(REFERENCE)),
                device: UnsafeCell::new(0),
                contents: UnsafeCell::new(0),
            })
        }

        fn locked<R>(&self, body: impl FnOnce() -> R) -> R {
            while !try_lock_bit(&self.table, LOCK) {
                thread::yield_now();
            }
            let result = body();
            unlock_bits(&self.table, LOCK);
            result
        }

        /// Unmapping: the slot names the frame, then the entry names the slot, in the order of the machine's exchange.
        fn leave(&self) {
            self.locked(|| {
                self.slot.cache(FRAME, 0);
                self.entry.swap(ENTRY, Ordering::Release);
            });
        }

        /// Write-out, after the flush: tags, data, and the frame leaves the cache.
        fn write(&self) {
            self.slot.set_tags(TagImage::Packed(0x9abc));
            set(&self.device, 1);
            let out = {
                let _cluster = self.cluster.lock().unwrap();
                self.slot.wrote(FRAME, 11)
            };
            if out.is_none() {
                self.free();
            }
            if self.frame.put(REFERENCE) == Left::Nobody {
                set(&self.contents, 0xdead);
            }
        }

        /// The clean-up of a slot that nobody uses.
        fn free(&self) {
            assert_ne!(look(&self.device), 2, "freed twice");
            set(&self.device, 2);
            self.slot.free();
        }

        /// munmap of an entry, of whatever table.
        fn give_up(&self) -> SlotLeft {
            let left = self.slot.put();
            if left == SlotLeft::Unused {
                self.free();
            }
            left
        }
    }

    /// A thread that does something with the page.
    fn with(page: &Arc<Page>, body: impl FnOnce(&Page) + 'static) -> thread::JoinHandle<()> {
        let page = Arc::clone(page);
        thread::spawn(move || body(&page))
    }

    /// The slot has had a life before: what is left of that must not be taken for the page's.
    #[test]
    fn who_finds_the_entry_finds_the_record() {
        loom::model(|| {
            let page = Page::new(OUT | COUNT_ONE, LEAF);
            page.slot.free();
            page.slot.take();
            let reclaim = with(&page, |page| page.leave());
            // The address of the record follows from the entry, which orders the two loads on the machine. The language
            // calls nothing less than acquire an order.
            if page.entry.load(Ordering::Acquire) == ENTRY {
                assert_eq!(page.slot.state(), SlotState::Cached { frame: FRAME, count: 1 });
            }
            // Without that a second look is needed, under the lock.
            if page.entry.load(Ordering::Relaxed) == ENTRY {
                page.locked(|| {
                    assert_eq!(page.entry.load(Ordering::Relaxed), ENTRY);
                    assert_eq!(page.slot.state(), SlotState::Cached { frame: FRAME, count: 1 });
                });
            }
            reclaim.join().unwrap();
        });
    }

    #[test]
    fn who_finds_a_page_out_finds_its_tags_and_its_data() {
        loom::model(|| {
            let page = Page::new(CACHED | COUNT_ONE | FRAME as u64, ENTRY);
            let fault = with(&page, |page| {
                if matches!(page.slot.state(), SlotState::Out { shadow: 11, count: 1 }) {
                    assert_eq!(look(&page.device), 1);
                    assert_eq!(page.slot.tags(), TagImage::Packed(0x9abc));
                }
            });
            page.write();
            fault.join().unwrap();
        });
    }

    /// The last entry goes while the page is written: one of the two frees the slot.
    #[test]
    fn a_slot_is_freed_once() {
        loom::model(|| {
            let page = Page::new(CACHED | COUNT_ONE | FRAME as u64, ENTRY);
            let reclaim = with(&page, |page| page.write());
            let left = page.give_up();
            assert!(matches!(left, SlotLeft::Unused | SlotLeft::UnusedButCached));
            reclaim.join().unwrap();
            assert_eq!((page.slot.state(), look(&page.device)), (SlotState::Free, 2));
            assert_eq!(page.slot.tags(), TagImage::Untagged);
        });
    }

    /// So many users, and then as many mappings that become users: the rest of the word stays as it is.
    #[test]
    fn a_slot_counts_all_that_may_use_it() {
        loom::model(|| {
            let page = Page::new(CACHED | ((MOST_USERS - 1) * COUNT_ONE) | FRAME as u64, ENTRY);
            assert!(page.slot.takes_another_user());
            page.slot.add_user();
            assert!(!page.slot.takes_another_user());
            let page = Page::new(CACHED | ((2 * MOST_USERS - 1) * COUNT_ONE) | FRAME as u64, ENTRY);
            page.slot.add_user();
            assert_eq!(page.slot.state(), SlotState::Cached { frame: FRAME, count: 2 * MOST_USERS as u16 });
        });
    }

    /// Two entries name the slot.
    #[test]
    fn of_two_entries_the_last_frees_the_slot() {
        loom::model(|| {
            let page = Page::new(OUT | (2 * COUNT_ONE), ENTRY);
            let other = with(&page, |page| {
                assert_eq!(look(&page.device), 0);
                let _ = page.give_up();
            });
            assert_eq!(look(&page.device), 0);
            let _ = page.give_up();
            other.join().unwrap();
            assert_eq!((page.slot.state(), look(&page.device)), (SlotState::Free, 2));
        });
    }

    /// A frame is found in the cache with a reference, or not at all.
    #[test]
    fn what_is_found_in_the_cache_is_alive() {
        loom::model(|| {
            let page = Page::new(CACHED | COUNT_ONE | FRAME as u64, ENTRY);
            let reclaim = with(&page, |page| page.write());
            let found = {
                let _cluster = page.cluster.lock().unwrap();
                match page.slot.state() {
                    SlotState::Cached { .. } => {
                        assert!(page.frame.get(), "a cached frame is nobody's");
                        true
                    }
                    _ => false,
                }
            };
            if found {
                assert_eq!(look(&page.contents), 0);
                if page.frame.put(REFERENCE) == Left::Nobody {
                    set(&page.contents, 0xdead);
                }
            }
            reclaim.join().unwrap();
            assert_eq!(look(&page.contents), 0xdead);
            assert!(!page.frame.get());
        });
    }
}
