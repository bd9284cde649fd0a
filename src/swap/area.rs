//! One swap area: a device, the records of its slots, and the room for tags.

use core::fmt;
use core::ptr::NonNull;
use core::slice;

use super::cluster::{self, ClusterRecord, Clusters, Stretch};
use super::device::{DeviceFlags, SwapDevice};
use super::rooms::Rooms;
use super::slot::{SlotLeft, SlotRecord};
use super::slots::Slots;
use crate::frame::Frame;
use crate::granule::Granule;
use crate::machine::{Machine, TagWords};
use crate::mte::TagImage;
use crate::sync::{AtomicU32, AtomicU64, Ordering, SpinGuard};

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
    /// Areas of a higher priority are filled first; those of one priority in turn.
    pub priority: i16,
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
/// room, a record for each cluster, and their lists.
pub const fn memory_needed<G: Granule>(slots: u32, tag_rooms: u32) -> usize {
    slots as usize * size_of::<SlotRecord>()
        + tag_rooms as usize * G::TAG_BYTES
        + clusters_of(slots, cluster::shift_for::<G>(slots)) as usize * size_of::<ClusterRecord>()
        + size_of::<Clusters>()
}

const fn clusters_of(slots: u32, shift: u32) -> u32 {
    slots.div_ceil(1 << shift)
}

/// A swap area that is on.
pub struct Area<M: Machine> {
    number: u8,
    priority: i16,
    device: &'static dyn SwapDevice<M>,
    flags: DeviceFlags,
    slots: u32,
    records: NonNull<SlotRecord>,
    cluster_records: NonNull<ClusterRecord>,
    clusters: NonNull<Clusters>,
    /// Clusters in all.
    cluster_count: u32,
    pub(super) rooms: Rooms<M::Granule>,
    /// The slot at which the next search for backed folios begins.
    look: AtomicU32,
    /// Slots not free. Drops only after a freed slot's clean-up.
    used: AtomicU32,
}

// SAFETY: the records are reached as shared atomics and locks; the device is `Sync`.
unsafe impl<M: Machine> Send for Area<M> {}
// SAFETY: as above.
unsafe impl<M: Machine> Sync for Area<M> {}

impl<M: Machine> Area<M> {
    /// # Safety
    /// `area.memory` is `area.bytes` bytes that stay mapped, and are the area's alone, for its life.
    pub(super) unsafe fn new(number: u8, area: SwapArea<M>) -> Result<Self, SwapOnError> {
        let SwapArea { device, slots, tag_rooms, memory, bytes, priority } = area;
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
        let shift = cluster::shift_for::<M::Granule>(slots);
        let count = clusters_of(slots, shift);
        let records: NonNull<SlotRecord> = memory.cast();
        // SAFETY: the four arrays lie one after the other within `needed` bytes; each element's size is a multiple
        // of its alignment of at most 8, and so is each array's start.
        let (rooms, cluster_records, clusters) = unsafe {
            let rooms: NonNull<AtomicU64> = records.add(slots as usize).cast();
            let records: NonNull<ClusterRecord> = rooms.add(tag_rooms as usize * M::Granule::TAG_WORDS).cast();
            (rooms, records, records.add(count as usize).cast::<Clusters>())
        };
        const { assert!(align_of::<ClusterRecord>() <= 8 && align_of::<SlotRecord>() == 8) };
        const { assert!(align_of::<Clusters>() <= align_of::<ClusterRecord>()) };
        // SAFETY: as above; zero is a free slot's record and an empty room, and all the others are written.
        unsafe {
            memory
                .write_bytes(0, slots as usize * size_of::<SlotRecord>() + tag_rooms as usize * M::Granule::TAG_BYTES);
            for index in 0..count {
                let free = (slots - (index << shift)).min(1 << shift);
                cluster_records.add(index as usize).write(ClusterRecord::new(free, index, count));
            }
            clusters.write(Clusters::new(count, shift));
        }
        Ok(Self {
            number,
            priority,
            device,
            flags: device.flags(),
            slots,
            records,
            cluster_records,
            clusters,
            cluster_count: count,
            // SAFETY: the rooms are zeroed above and lie within the area's own memory.
            rooms: unsafe { Rooms::new(rooms, tag_rooms) },
            look: AtomicU32::new(0),
            used: AtomicU32::new(0),
        })
    }

    /// The area's number in swap entries.
    #[inline]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// See [`SwapArea::priority`].
    pub fn priority(&self) -> i16 {
        self.priority
    }

    /// The memory that was given for its records.
    pub(super) fn memory(&self) -> NonNull<u8> {
        self.records.cast()
    }

    /// Where the data is.
    #[inline]
    pub(crate) fn device(&self) -> &'static dyn SwapDevice<M> {
        self.device
    }

    /// What the device said of itself.
    #[inline]
    pub fn flags(&self) -> DeviceFlags {
        self.flags
    }

    /// Slots in all, and free ones.
    pub fn slots(&self) -> (u32, u32) {
        // A slot freed and taken again is counted twice until who freed it has counted it off.
        (self.slots, self.slots.saturating_sub(self.used.load(Ordering::Acquire)))
    }

    /// Where a search that looks at `looks` slots begins.
    pub(super) fn next_look(&self, looks: u64) -> u64 {
        let first = self.look.load(Ordering::Relaxed);
        let next = first as u64 + looks;
        self.look.store(if next < self.slots as u64 { next as u32 } else { 0 }, Ordering::Relaxed);
        first.into()
    }

    /// The number of slots that are in use, if any is.
    pub(crate) fn in_use(&self) -> Option<u32> {
        Some(self.used.load(Ordering::Acquire)).filter(|&slots| slots > 0)
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

    /// The records of the slots from `first` on, `count` or as many as the area has.
    #[inline]
    pub(crate) fn records(&self, first: u64, count: u64) -> &[SlotRecord] {
        let first = first.min(self.slots as u64);
        let count = count.min(self.slots as u64 - first);
        // SAFETY: as above; none of these is beyond `slots`.
        unsafe { slice::from_raw_parts(self.records.as_ptr().add(first as usize), count as usize) }
    }

    /// The records of a folio's slots.
    #[inline]
    pub(super) fn records_of(&self, slots: Slots) -> &[SlotRecord] {
        self.records(slots.first() as u64, slots.pages())
    }

    /// Calls `each` with the records of a folio's slots and the indices of its frames, whose head is `head`. Where the
    /// order is known to be 0 no loop is left.
    #[inline(always)]
    pub(super) fn each_record(&self, slots: Slots, head: Frame, mut each: impl FnMut(u32, &SlotRecord)) {
        if slots.order() == 0 {
            if let Some(record) = self.slot(slots.first() as u64) {
                each(head.index(), record);
            }
            return;
        }
        for (frame, record) in (head.index()..).zip(self.records_of(slots)) {
            each(frame, record);
        }
    }

    #[inline]
    fn cluster_records(&self) -> &[ClusterRecord] {
        // SAFETY: `new` wrote one record for each cluster.
        unsafe { slice::from_raw_parts(self.cluster_records.as_ptr(), self.cluster_count as usize) }
    }

    #[inline]
    fn clusters(&self) -> &Clusters {
        // SAFETY: `new` wrote it.
        unsafe { self.clusters.as_ref() }
    }

    #[inline]
    fn take_in(&self, cluster: u32, order: u32, folios: u32) -> Option<Stretch> {
        let slots = self.records(0, self.slots as u64);
        self.clusters().take(self.cluster_records(), slots, cluster, order, folios)
    }

    /// Takes free slots, side by side, for folios of 2^`order` pages, for one at least and for `folios` at most, for
    /// the CPU `cpu`.
    pub(super) fn take_slots(&self, cpu: usize, order: u32, folios: u32) -> Option<Stretch> {
        let current = self.clusters().current(cpu, order)?;
        let near = self.take_in(current.load(Ordering::Relaxed), order, folios);
        let stretch = near.or_else(|| self.take_slots_elsewhere(current, order, folios))?;
        self.used.fetch_add(stretch.slots(), Ordering::Relaxed);
        Some(stretch)
    }

    #[cold]
    fn take_slots_elsewhere(&self, current: &AtomicU32, order: u32, folios: u32) -> Option<Stretch> {
        if order > self.clusters().shift() {
            return None;
        }
        while let Some(cluster) = self.clusters().pop(self.cluster_records(), order) {
            current.store(cluster, Ordering::Relaxed);
            if let Some(stretch) = self.take_in(cluster, order, folios) {
                return Some(stretch);
            }
        }
        current.store(cluster::NONE, Ordering::Relaxed);
        if order > 0 {
            let slots = self.records(0, self.slots as u64);
            return self.clusters().take_fragmented(self.cluster_records(), slots, order);
        }
        if self.slots().1 == 0 {
            return None;
        }
        // Free slots are left in other CPUs' current clusters only.
        (0..self.cluster_count).find_map(|cluster| self.take_in(cluster, 0, folios))
    }

    /// Frees slots of one cluster that nobody uses: tags and words first, then the slots, then the usage count.
    pub(crate) fn free_slots(&self, first: u32, count: u32) {
        let slots = self.records(first as u64, count as u64);
        let first_room = AtomicU64::new(0);
        let mut rooms = self.rooms.returning(&first_room);
        slots.iter().filter_map(SlotRecord::room).for_each(|room| rooms.push(room));
        rooms.end();
        self.free_emptied(first, slots);
    }

    /// Frees slots of one cluster, from `first` on, whose rooms have been given back.
    #[inline(always)]
    fn free_emptied(&self, first: u32, slots: &[SlotRecord]) {
        let count = slots.len() as u32;
        self.clusters().give(self.cluster_records(), first, count, || slots.iter().for_each(SlotRecord::free));
        // Last: once no slot is in use, the area may go away.
        self.used.fetch_sub(count, Ordering::Release);
    }

    /// [`Area::free_slots`] of one.
    #[inline(always)]
    fn free_slot(&self, slot: u32, record: &SlotRecord) {
        if let Some(room) = record.room() {
            self.rooms.give(room);
        }
        self.free_emptied(slot, slice::from_ref(record));
    }

    /// Gives back the uses of `count` swap entries of slots from `first` on, under the lock of the table that held
    /// them. A slot whose last use that was, and whose page is still in memory, is handed to `cached`: the holder of
    /// its frame frees it.
    #[inline(always)]
    pub(crate) fn put(&self, first: u64, count: u64, mut cached: impl FnMut(u64)) {
        if count == 1 {
            let Some(record) = self.slot(first) else { return };
            return match record.put() {
                SlotLeft::Unused => self.free_slot(first as u32, record),
                SlotLeft::UnusedButCached => cached(first),
                SlotLeft::Shared => {}
            };
        }
        let shift = self.clusters().shift();
        let (mut slot, mut left) = (first, self.records(first, count));
        while !left.is_empty() {
            // Unused slots of one cluster are freed together.
            let in_cluster = (((slot >> shift) + 1) << shift) - slot;
            let here = left.get(..in_cluster as usize).unwrap_or(left);
            let first_room = AtomicU64::new(0);
            let mut rooms = self.rooms.returning(&first_room);
            let (mut rest, mut other) = (here, None);
            while let [record, after @ ..] = rest {
                match record.put_seeing_room() {
                    (SlotLeft::Unused, None) => {}
                    (SlotLeft::Unused, Some(room)) => rooms.push(room),
                    (left, _) => {
                        other = Some(left);
                        break;
                    }
                }
                rest = after;
            }
            rooms.end();
            let unused = here.len() - rest.len();
            let looked_at = unused + usize::from(other.is_some());
            if let Some(emptied) = here.get(..unused).filter(|emptied| !emptied.is_empty()) {
                self.free_emptied(slot as u32, emptied);
            }
            if other == Some(SlotLeft::UnusedButCached) {
                cached(slot + unused as u64);
            }
            (slot, left) = (slot + looked_at as u64, left.get(looked_at..).unwrap_or(&[]));
        }
    }

    /// Locks the cluster of `slot`: a frame enters and leaves the cache under it.
    pub(super) fn lock_cluster(&self, slot: u32) -> Option<SpinGuard<'_, cluster::State>> {
        self.clusters().lock(self.cluster_records(), slot)
    }

    /// Writes an image to a room, of which one was reserved.
    #[inline]
    pub(super) fn keep_image(&self, image: &TagWords<M>) -> Option<TagImage> {
        let room = self.rooms.take()?;
        self.rooms.store(room, image);
        Some(TagImage::Raw(room))
    }
}
