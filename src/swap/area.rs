//! One swap area: a device, the records of its slots, and the room for tags.

use core::fmt;
use core::ptr::NonNull;

use super::cluster::{self, ClusterRecord, Clusters};
use super::device::SwapDevice;
use super::out::Leaving;
use super::rooms::Rooms;
use super::slot::{SlotLeft, SlotRecord, SlotState};
use crate::frame::{FolioLock, Frame, Frames, REFERENCE, flag};
use crate::granule::Granule;
use crate::machine::{MAX_CPUS, Machine, TagWords, Tags};
use crate::mte::TagImage;
use crate::pte::{Leaf, SwapEntry};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What a porter gives to add a swap area.
pub struct SwapArea<M: Machine> {
    /// Where the data goes.
    pub device: &'static dyn SwapDevice<M>,
    /// Slots of the device: pages that it stores. At most 2^32 - 1.
    pub slots: u32,
    /// Rooms for raw tag images. A quarter of the slots is plenty for programs whose tags come from an allocator; as
    /// many as slots make [`Stats::no_tag_room`](crate::stats::Stats::no_tag_room) impossible.
    pub tag_rooms: u32,
    /// Memory for the records, 8-byte aligned, of at least [`memory_needed`] bytes. It need not be cleared.
    pub memory: NonNull<u8>,
    /// Its length in bytes.
    pub bytes: usize,
}

/// Why an area could not be added.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SwapOnError {
    /// Every number that a swap entry can carry is in use.
    TooManyAreas,
    /// The device has no slot.
    NoSlots,
    /// The memory for the records is smaller than [`memory_needed`], by this many bytes.
    TooLittleMemory(usize),
    /// The memory for the records is not 8-byte aligned.
    Misaligned,
}

impl fmt::Display for SwapOnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyAreas => f.write_str("every swap area number is in use"),
            Self::NoSlots => f.write_str("the device has no slot"),
            Self::TooLittleMemory(bytes) => write!(f, "the memory for the slot records is {bytes} bytes too small"),
            Self::Misaligned => f.write_str("the memory for the slot records is not 8-byte aligned"),
        }
    }
}

/// Bytes of records that an area of `slots` slots and `tag_rooms` rooms needs: 24 a slot, [`Granule::TAG_BYTES`] a
/// room, and a record for each cluster.
pub const fn memory_needed<G: Granule>(slots: u32, tag_rooms: u32) -> usize {
    slots as usize * size_of::<SlotRecord>()
        + tag_rooms as usize * G::TAG_BYTES
        + clusters_of(slots) as usize * size_of::<ClusterRecord>()
}

const fn clusters_of(slots: u32) -> u32 {
    slots.div_ceil(1 << cluster::shift_for(slots))
}

/// A swap area that is on.
pub struct Area<M: Machine> {
    number: u8,
    device: &'static dyn SwapDevice<M>,
    slots: u32,
    shift: u32,
    records: NonNull<SlotRecord>,
    cluster_records: NonNull<ClusterRecord>,
    clusters: Clusters,
    /// The cluster that each CPU fills.
    current: [AtomicU32; MAX_CPUS],
    rooms: Rooms<M::Granule>,
    /// Slots not free. Drops only after a freed slot's clean-up.
    used: AtomicU32,
}

// SAFETY: the records are reached as shared atomics and locks; the device is `Sync`.
unsafe impl<M: Machine> Send for Area<M> {}
// SAFETY: as above.
unsafe impl<M: Machine> Sync for Area<M> {}

/// What was kept of a page's tags.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Kept {
    /// The page had none of its own.
    None,
    /// All of them.
    Tags,
}

impl<M: Machine> Area<M> {
    /// # Safety
    /// `area.memory` is `area.bytes` bytes that stay mapped, and are the area's alone, for its life.
    pub(super) unsafe fn new(number: u8, area: SwapArea<M>) -> Result<Self, SwapOnError> {
        let SwapArea { device, slots, tag_rooms, memory, bytes } = area;
        if slots == 0 {
            return Err(SwapOnError::NoSlots);
        }
        if memory.addr().get() % align_of::<u64>() != 0 {
            return Err(SwapOnError::Misaligned);
        }
        let needed = memory_needed::<M::Granule>(slots, tag_rooms);
        if bytes < needed {
            return Err(SwapOnError::TooLittleMemory(needed - bytes));
        }
        let shift = cluster::shift_for(slots);
        let count = clusters_of(slots);
        let records: NonNull<SlotRecord> = memory.cast();
        // SAFETY: the three arrays lie one after the other within `needed` bytes; each element's size is a multiple
        // of its alignment of at most 8, and so is each array's start.
        let (rooms, cluster_records) = unsafe {
            let rooms: NonNull<AtomicU64> = records.add(slots as usize).cast();
            (rooms, rooms.add(tag_rooms as usize * M::Granule::TAG_WORDS).cast::<ClusterRecord>())
        };
        const { assert!(align_of::<ClusterRecord>() <= 8 && align_of::<SlotRecord>() == 8) };
        // SAFETY: as above; zero is a free slot's record and an empty room, and each cluster record is written.
        unsafe {
            memory
                .write_bytes(0, slots as usize * size_of::<SlotRecord>() + tag_rooms as usize * M::Granule::TAG_BYTES);
            for index in 0..count {
                let free = (slots - (index << shift)).min(1 << shift);
                let next = if index + 1 < count { index + 1 } else { cluster::NONE };
                cluster_records.add(index as usize).write(ClusterRecord::new(free, next));
            }
        }
        Ok(Self {
            number,
            device,
            slots,
            shift,
            records,
            cluster_records,
            clusters: Clusters::new(0),
            current: [const { AtomicU32::new(cluster::NONE) }; MAX_CPUS],
            // SAFETY: the rooms are zeroed above and lie within the area's own memory.
            rooms: unsafe { Rooms::new(rooms, tag_rooms) },
            used: AtomicU32::new(0),
        })
    }

    /// The area's number in swap entries.
    #[inline]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where the data is.
    #[inline]
    pub(crate) fn device(&self) -> &'static dyn SwapDevice<M> {
        self.device
    }

    /// Slots in all, and free ones.
    pub fn slots(&self) -> (u32, u32) {
        // A slot freed and taken again is counted twice until who freed it has counted it off.
        (self.slots, self.slots.saturating_sub(self.used.load(Ordering::Acquire)))
    }

    /// Rooms for raw tag images in all, and free ones.
    pub fn tag_rooms(&self) -> (u32, u32) {
        self.rooms.count()
    }

    /// The record of a slot that an entry names; `None` when the area has no such slot.
    #[inline]
    pub(crate) fn slot(&self, slot: u64) -> Option<&SlotRecord> {
        if slot >= self.slots as u64 {
            return None;
        }
        // SAFETY: `new` laid out and zeroed `slots` records; `slot` is below.
        Some(unsafe { self.records.add(slot as usize).as_ref() })
    }

    #[inline]
    fn cluster_records(&self) -> &[ClusterRecord] {
        // SAFETY: `new` wrote one record for each cluster.
        unsafe { core::slice::from_raw_parts(self.cluster_records.as_ptr(), clusters_of(self.slots) as usize) }
    }

    #[inline]
    fn take_in(&self, cluster: u32) -> Option<u32> {
        let slot = self.clusters.take(self.cluster_records(), cluster, self.shift, |slot| {
            let record = self.slot(slot as u64)?;
            if record.state() != SlotState::Free {
                return None;
            }
            record.take();
            Some(())
        })?;
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(slot)
    }

    /// Takes a free slot, for the CPU `cpu`.
    #[inline]
    pub(super) fn take_slot(&self, cpu: usize) -> Option<u32> {
        let current = &self.current[cpu % MAX_CPUS];
        if let Some(slot) = self.take_in(current.load(Ordering::Relaxed)) {
            return Some(slot);
        }
        self.take_slot_elsewhere(current)
    }

    #[cold]
    fn take_slot_elsewhere(&self, current: &AtomicU32) -> Option<u32> {
        while let Some(cluster) = self.clusters.pop(self.cluster_records()) {
            current.store(cluster, Ordering::Relaxed);
            if let Some(slot) = self.take_in(cluster) {
                return Some(slot);
            }
        }
        current.store(cluster::NONE, Ordering::Relaxed);
        if self.slots().1 == 0 {
            return None;
        }
        // Free slots are left in other CPUs' current clusters only.
        (0..clusters_of(self.slots)).find_map(|cluster| self.take_in(cluster))
    }

    /// Frees a slot that nobody uses: tags and words first, then the slot, then the usage count.
    pub(crate) fn free_slot(&self, slot: u32) {
        let Some(record) = self.slot(slot as u64) else { return };
        if let TagImage::Raw(room) = record.tags() {
            self.rooms.give(room);
        }
        self.clusters.give(self.cluster_records(), slot >> self.shift, || record.free());
        self.used.fetch_sub(1, Ordering::Release);
    }

    /// Gives back the use of one swap entry, under the lock of the table that held it. The index of the cached frame is
    /// returned when that was the last use and the page is still in memory: its holder frees the slot.
    #[inline]
    pub(crate) fn put(&self, slot: u64) -> Option<u32> {
        match self.slot(slot)?.put() {
            SlotLeft::Shared => None,
            SlotLeft::Unused => {
                self.free_slot(slot as u32);
                None
            }
            SlotLeft::UnusedButCached(frame) => Some(frame),
        }
    }

    /// Takes a reference to the frame that holds the page of `slot`, if one does.
    ///
    /// A frame leaves the cache under the cluster's lock ([`Area::wrote`]), and its reference of the cache's is given
    /// back after. So it cannot become something else between the look and the reference.
    pub(crate) fn get_cached(&self, frames: &Frames, slot: u64) -> Option<Frame> {
        let record = self.slot(slot)?;
        let _cluster = self.clusters.lock(self.cluster_records(), slot as u32 >> self.shift)?;
        match record.state() {
            SlotState::Cached { frame, .. } => frames.frame_at(frame).filter(|&frame| frames.get(frame)),
            _ => None,
        }
    }

    /// Whether `frame` holds the page of `slot`. Under its folio lock.
    pub(crate) fn is_cached(&self, slot: u64, frame: Frame) -> bool {
        let state = self.slot(slot).map(SlotRecord::state);
        matches!(state, Some(SlotState::Cached { frame: found, .. }) if found == frame.index())
    }

    /// The device has the page of `slot`: its frame leaves the cache. When no swap entry is left, the slot is freed
    /// as well. Under the folio lock.
    #[inline]
    pub(super) fn wrote(&self, slot: u32, shadow: u32) {
        let Some(record) = self.slot(slot as u64) else { return };
        let out = {
            let _cluster = self.clusters.lock(self.cluster_records(), slot >> self.shift);
            record.wrote(shadow)
        };
        if out.is_none() {
            self.free_slot(slot);
        }
    }

    /// The folio, whose slot no swap entry names any more, leaves the cache, and the slot is freed.
    pub(crate) fn leave_cache(&self, frames: &Frames, folio: &FolioLock<'_, M>, slot: u32) {
        uncache(frames, folio);
        self.free_slot(slot);
    }

    /// Hands the tags that were kept of a slot to `show`, if the page had some of its own: at 64 KiB they
    /// are 2 KiB, which nobody should copy.
    #[inline]
    pub(crate) fn load_tags(&self, slot: &SlotRecord, show: impl FnOnce(&TagWords<M>)) -> Kept {
        match slot.tags() {
            TagImage::Untagged => return Kept::None,
            TagImage::Uniform(tag) => {
                let mut words = M::Granule::ZERO_TAGS;
                words.as_mut().fill(crate::mte::repeated(tag));
                show(&words);
            }
            TagImage::Packed(runs) => {
                let mut words = M::Granule::ZERO_TAGS;
                crate::mte::unpack::<M::Granule>(runs, &mut words);
                show(&words);
            }
            TagImage::Raw(room) => show(&self.rooms.load(room)),
        }
        Kept::Tags
    }

    /// Gives back a room that was reserved and is not needed.
    #[inline]
    pub(super) fn give_room(&self, room: Option<u32>) {
        if let Some(room) = room {
            self.rooms.give(room);
        }
    }

    /// Writes an image to a room that was reserved; the room is the slot's that will name it.
    #[inline]
    pub(super) fn keep_image(&self, room: u32, image: &TagWords<M>) -> TagImage {
        self.rooms.store(room, image);
        TagImage::Raw(room)
    }
}

/// Takes the marks of the cache off a folio. The caller has a reference of its own.
#[inline]
pub(super) fn uncache<M: Machine>(frames: &Frames, folio: &FolioLock<'_, M>) {
    let record = frames.record(folio.frame());
    if record.has(flag::KEPT) {
        // The cache's reference, taken when the device refused the page.
        let _ = frames.put(folio.frame(), REFERENCE);
    }
    record.clear(flag::CACHED | flag::KEPT);
}

/// What a page needs to leave: a slot, and room for its tags. Dropped, it gives both back.
#[must_use = "dropping what was prepared gives the slot back"]
pub(crate) struct Prepared<'a, M: Machine> {
    area: &'a Area<M>,
    slot: u32,
    room: Option<u32>,
}

impl<'a, M: Machine> Prepared<'a, M> {
    /// A slot just taken.
    #[inline]
    pub(super) fn new(area: &'a Area<M>, slot: u32) -> Self {
        Self { area, slot, room: None }
    }

    /// Makes sure of room for what a page of this kind needs: with [`Tags::Include`] for a raw tag image. False when
    /// the pool of rooms is dry.
    #[inline]
    pub(crate) fn fit(&mut self, tags: Tags) -> bool {
        if tags == Tags::Include && self.room.is_none() {
            self.room = self.area.rooms.take();
        }
        tags == Tags::Ignore || self.room.is_some()
    }

    /// Names `frame` in the slot's record, with one swap entry to come; returns that entry, exclusive as `leaf` is.
    #[inline]
    pub(crate) fn cache(&self, frame: Frame, leaf: Leaf) -> SwapEntry {
        if let Some(record) = self.area.slot(self.slot as u64) {
            record.cache(frame.index());
        }
        let entry = SwapEntry::exclusive(self.area.number, self.slot);
        if leaf.is_exclusive() { entry } else { entry.shared() }
    }

    /// The area's number.
    #[inline]
    pub(crate) fn area_number(&self) -> u8 {
        self.area.number
    }

    /// The slot's number.
    #[inline]
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// The swap entry stands in a table: the slot is the entry's from now on.
    #[inline]
    pub(crate) fn commit(self) -> Leaving<'a, M> {
        let leaving = Leaving { area: self.area, slot: self.slot, room: self.room };
        core::mem::forget(self);
        leaving
    }
}

impl<M: Machine> Drop for Prepared<'_, M> {
    fn drop(&mut self) {
        self.area.give_room(self.room);
        self.area.free_slot(self.slot);
    }
}
