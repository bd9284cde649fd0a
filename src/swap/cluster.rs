//! Clusters: which slots of an area are free.
//!
//! An area is cut into clusters of equal, power-of-two size. Each CPU fills one cluster at a time for each folio order,
//! in ascending order, so that pages which leave together lie together, folios of one size lie side by side, and CPUs
//! do not meet. A folio's slots are an aligned run within one cluster.
//!
//! A cluster is in one of these places:
//!
//! | place | what it is |
//! |---|---|
//! | empty | all of its slots were free when it came here: any order may begin to fill it |
//! | partial | some order filled it, and an eighth of its slots or more was freed since |
//! | scarce | the same, and fewer were |
//! | fragmented | it has free slots, but had no aligned run for its order when that looked |
//! | current | some CPU fills it |
//! | full | it has no free slot |
//!
//! A CPU may go on filling a cluster that is not its own any more, and a single page takes what is left anywhere: a
//! place says where to look first, the records of the slots say what is free.
//!
//! A search of a cluster for what is free there reads the slots before it, so that a slot of a full cluster costs the
//! more the fewer of them came free. Where pages come back in no order that would be fewer the more clusters there are:
//! scarce ones come after empty ones.
//!
//! A large folio looks for room in its CPU's current cluster, in partial ones of its order, in an empty one, in scarce
//! ones of its order, and in a few fragmented ones: then it is refused, and its owner splits it. A single page takes
//! from any cluster in the end, others' current ones too: it is refused only when no slot is free.
//!
//! Who has several folios to write out takes slots for all of them at once, as far as free ones lie side by side
//! ([`Stretch`]), and gives back what was not needed.
//!
//! **Locks.** A cluster's lock guards its count, its place, and which of its slots are free; the lists' lock, which is
//! taken inside it, guards all links.

use super::slot::SlotRecord;
use super::slots::Slots;
use crate::frame::MAX_ORDER;
use crate::granule::Granule;
use crate::machine::MAX_CPUS;
use crate::sync::{AtomicU32, Ordering, Spin, SpinGuard};

/// "No cluster".
pub(super) const NONE: u32 = u32::MAX;

/// Slots of a cluster at most: 2 MiB of 4 KiB pages.
const LARGEST: u32 = 512;
/// Clusters of an area at least, as far as that leaves room for the largest folio in each.
const AT_LEAST: u32 = 16;

/// log2 of the slots of a cluster for each that is free, from which on it is partial: a search reads 8 slots a page.
const PARTIAL_SHIFT: u32 = 3;

/// Orders of folio, each with its own current clusters and lists.
const ORDERS: usize = MAX_ORDER as usize + 1;

/// Fragmented clusters that a large folio looks at before it gives up: each look costs up to a load a slot.
const FRAGMENTED_LOOKS: usize = 4;

/// log2 of the slots of a cluster in an area of `slots` slots: a contiguous group's at least.
pub(super) const fn shift_for<G: Granule>(slots: u32) -> u32 {
    let (wanted, smallest) = (slots / AT_LEAST, G::GROUP_PAGES as u32);
    let size = if wanted > LARGEST {
        LARGEST
    } else if wanted < smallest {
        smallest
    } else {
        wanted
    };
    size.ilog2()
}

/// Where a cluster is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Place {
    Empty,
    Partial,
    Scarce,
    Fragmented,
    Current,
    Full,
}

impl Place {
    /// Of a cluster that some order has filled and of which, after that, `free` of 2^`shift` slots came free.
    const fn of_filled(free: u32, shift: u32) -> Self {
        if free << PARTIAL_SHIFT < 1 << shift { Self::Scarce } else { Self::Partial }
    }
}

/// What a cluster's lock guards.
pub(super) struct State {
    free: u32,
    /// Where the search for a free slot goes on.
    cursor: u32,
    /// The order that filled it last.
    order: u32,
    place: Place,
}

/// One cluster's record.
pub struct ClusterRecord {
    state: Spin<State>,
    next: AtomicU32,
    prev: AtomicU32,
}

impl ClusterRecord {
    /// The record of cluster `index` of `count`, all of whose slots are free: linked with its neighbours.
    pub(super) const fn new(free: u32, index: u32, count: u32) -> Self {
        let next = if index + 1 < count { index + 1 } else { NONE };
        let prev = if index > 0 { index - 1 } else { NONE };
        let state = State { free, cursor: 0, order: 0, place: Place::Empty };
        Self { state: Spin::new(state), next: AtomicU32::new(next), prev: AtomicU32::new(prev) }
    }
}

/// First and last cluster of a list.
#[derive(Copy, Clone)]
struct List {
    first: u32,
    last: u32,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE };

    fn push(&mut self, records: &[ClusterRecord], cluster: u32) {
        let Some(record) = records.get(cluster as usize) else { return };
        record.next.store(NONE, Ordering::Relaxed);
        record.prev.store(self.last, Ordering::Relaxed);
        match records.get(self.last as usize) {
            Some(last) => last.next.store(cluster, Ordering::Relaxed),
            None => self.first = cluster,
        }
        self.last = cluster;
    }

    fn remove(&mut self, records: &[ClusterRecord], cluster: u32) {
        let Some(record) = records.get(cluster as usize) else { return };
        let (next, prev) = (record.next.load(Ordering::Relaxed), record.prev.load(Ordering::Relaxed));
        match records.get(next as usize) {
            Some(next) => next.prev.store(prev, Ordering::Relaxed),
            None => self.last = prev,
        }
        match records.get(prev as usize) {
            Some(prev) => prev.next.store(next, Ordering::Relaxed),
            None => self.first = next,
        }
    }
}

struct Lists {
    empty: List,
    partial: [List; ORDERS],
    scarce: [List; ORDERS],
    fragmented: [List; ORDERS],
}

impl Lists {
    /// The list that a cluster in this place is in.
    fn of(&mut self, place: Place, order: u32) -> Option<&mut List> {
        match place {
            Place::Empty => Some(&mut self.empty),
            Place::Partial => self.partial.get_mut(order as usize),
            Place::Scarce => self.scarce.get_mut(order as usize),
            Place::Fragmented => self.fragmented.get_mut(order as usize),
            Place::Current | Place::Full => None,
        }
    }
}

/// Slots for folios of one size that nobody else has, side by side in one cluster.
pub(super) struct Stretch {
    first: u32,
    order: u32,
    folios: u32,
}

impl Stretch {
    /// log2 of the pages of each folio.
    #[inline]
    pub(super) const fn order(&self) -> u32 {
        self.order
    }

    /// The first of the slots.
    #[inline]
    pub(super) const fn first(&self) -> u32 {
        self.first
    }

    /// Slots of all.
    #[inline]
    pub(super) const fn slots(&self) -> u32 {
        self.folios << self.order
    }

    /// The slots of the next folio, if there are any.
    #[inline]
    pub(super) const fn next(&self) -> Slots {
        Slots::new(self.first, self.order)
    }

    /// Leaves the slots of the next folio to their owner.
    #[inline]
    pub(super) const fn skip(&mut self) {
        debug_assert!(self.folios > 0);
        self.first += 1 << self.order;
        self.folios -= 1;
    }
}

/// The clusters of one area.
pub(super) struct Clusters {
    lists: Spin<Lists>,
    /// The clusters that each CPU fills, by the order of the folios.
    current: [[AtomicU32; ORDERS]; MAX_CPUS],
    shift: u32,
}

impl Clusters {
    /// `count` clusters of 2^`shift` slots each, all empty.
    pub(super) const fn new(count: u32, shift: u32) -> Self {
        let empty = if count > 0 { List { first: 0, last: count - 1 } } else { List::EMPTY };
        let none = [List::EMPTY; ORDERS];
        let lists = Lists { empty, partial: none, scarce: none, fragmented: none };
        let current = [const { [const { AtomicU32::new(NONE) }; ORDERS] }; MAX_CPUS];
        Self { lists: Spin::new(lists), current, shift }
    }

    /// The cluster that the CPU `cpu` fills with folios of 2^`order` pages.
    #[inline]
    pub(super) fn current(&self, cpu: usize, order: u32) -> Option<&AtomicU32> {
        self.current[cpu % MAX_CPUS].get(order as usize)
    }

    /// log2 of the slots of each.
    #[inline]
    pub(super) const fn shift(&self) -> u32 {
        self.shift
    }

    /// Takes a cluster in which a folio of `order` may find room out of its list, for a CPU to fill.
    pub(super) fn pop(&self, records: &[ClusterRecord], order: u32) -> Option<u32> {
        loop {
            let first = {
                let mut lists = self.lists.lock();
                let partial = lists.partial[order as usize].first;
                let scarce = lists.scarce[order as usize].first;
                let found = [partial, lists.empty.first, scarce].into_iter().find(|&cluster| cluster != NONE);
                found.or_else(|| self.leftover(&mut lists, order))?
            };
            // Its lock comes before that of the lists: it may be elsewhere by now.
            let mut state = records.get(first as usize)?.state.lock();
            if matches!(state.place, Place::Empty | Place::Partial | Place::Scarce | Place::Fragmented) {
                self.place(records, first, &mut state, Place::Current);
                state.order = order;
                return Some(first);
            }
        }
    }

    /// For a single page, a cluster that some larger order filled.
    fn leftover(&self, lists: &mut Lists, order: u32) -> Option<u32> {
        let filled = lists.partial.iter().chain(&lists.scarce).chain(&lists.fragmented);
        let of_large = filled.map(|list| list.first);
        if order == 0 { of_large.rev().find(|&cluster| cluster != NONE) } else { None }
    }

    /// Takes the room for a folio of `order` out of a fragmented cluster of that order, if one of a few has it.
    #[cold]
    pub(super) fn take_fragmented(
        &self,
        records: &[ClusterRecord],
        slots: &[SlotRecord],
        order: u32,
    ) -> Option<Stretch> {
        for _ in 0..FRAGMENTED_LOOKS {
            let first = self.lists.lock().fragmented[order as usize].first;
            let mut state = records.get(first as usize)?.state.lock();
            if state.place != Place::Fragmented || state.order != order {
                continue;
            }
            if let Some(stretch) = self.take_run(&mut state, slots, first, order, 1) {
                return Some(stretch);
            }
            // To the end of the list: the next look is at another one.
            self.place(records, first, &mut state, Place::Fragmented);
        }
        None
    }

    /// Moves a cluster, whose lock the caller holds, to another place.
    fn place(&self, records: &[ClusterRecord], cluster: u32, state: &mut State, place: Place) {
        let mut lists = self.lists.lock();
        if let Some(list) = lists.of(state.place, state.order) {
            list.remove(records, cluster);
        }
        state.place = place;
        if let Some(list) = lists.of(place, state.order) {
            list.push(records, cluster);
        }
    }

    /// Takes the room for folios of `order` out of `cluster`: the first free aligned run from its cursor on, and those
    /// that follow it, up to `folios` of them. `slots` are the area's. `None` when there is none: a current cluster is
    /// current no more then.
    #[inline]
    pub(super) fn take(
        &self,
        records: &[ClusterRecord],
        slots: &[SlotRecord],
        cluster: u32,
        order: u32,
        folios: u32,
    ) -> Option<Stretch> {
        let mut state = records.get(cluster as usize)?.state.lock();
        if let Some(stretch) = self.take_run(&mut state, slots, cluster, order, folios) {
            return Some(stretch);
        }
        if state.place == Place::Current {
            let place = if state.free == 0 { Place::Full } else { Place::Fragmented };
            self.place(records, cluster, &mut state, place);
        }
        None
    }

    #[inline]
    fn take_run(
        &self,
        state: &mut State,
        slots: &[SlotRecord],
        cluster: u32,
        order: u32,
        folios: u32,
    ) -> Option<Stretch> {
        let pages = 1 << order;
        if state.free < pages {
            return None;
        }
        let size = 1 << self.shift;
        let base = cluster << self.shift;
        let free = |within: u32| {
            let first = (base + within) as usize;
            slots.get(first..first + pages as usize).filter(|run| run.iter().all(SlotRecord::is_free))
        };
        let start = (state.cursor + pages - 1) & !(pages - 1);
        for step in 0..size >> order {
            let within = (start + (step << order)) & (size - 1);
            let Some(mut run) = free(within) else { continue };
            let limit = size.min(within + (folios << order));
            let mut end = within;
            loop {
                run.iter().for_each(SlotRecord::take);
                end += pages;
                match (end < limit).then(|| free(end)).flatten() {
                    Some(next) => run = next,
                    None => break,
                }
            }
            state.cursor = end & (size - 1);
            state.free -= end - within;
            return Some(Stretch { first: base + within, order, folios: (end - within) >> order });
        }
        None
    }

    /// Locks the cluster of `slot`, and with it the change of its slots between cached and not.
    #[inline]
    pub(super) fn lock<'a>(&self, records: &'a [ClusterRecord], slot: u32) -> Option<SpinGuard<'a, State>> {
        Some(records.get((slot >> self.shift) as usize)?.state.lock())
    }

    /// Gives `count` slots of the cluster that has `slot` back: `free` marks them, under the cluster's lock.
    #[inline]
    pub(super) fn give(&self, records: &[ClusterRecord], slot: u32, count: u32, free: impl FnOnce()) {
        let cluster = slot >> self.shift;
        let Some(record) = records.get(cluster as usize) else { return };
        let mut state = record.state.lock();
        free();
        state.free += count;
        let within = slot & ((1 << self.shift) - 1);
        if (within + count) & ((1 << self.shift) - 1) == state.cursor {
            // What was taken last is next again.
            state.cursor = within;
        }
        if state.free == 1 << self.shift {
            state.cursor = 0;
            if state.place != Place::Current {
                self.place(records, cluster, &mut state, Place::Empty);
            }
        } else if matches!(state.place, Place::Full | Place::Scarce) {
            let place = Place::of_filled(state.free, self.shift);
            if place != state.place {
                self.place(records, cluster, &mut state, place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;
    use crate::granule::{K4, K16};

    const SHIFT: u32 = 6;
    const SIZE: u32 = 1 << SHIFT;

    /// An area without its pages, and one CPU that fills it with single ones.
    struct Singles {
        clusters: Clusters,
        records: Vec<ClusterRecord>,
        slots: Vec<SlotRecord>,
    }

    impl Singles {
        fn new(count: u32) -> Self {
            Self {
                clusters: Clusters::new(count, SHIFT),
                records: (0..count).map(|index| ClusterRecord::new(SIZE, index, count)).collect(),
                slots: (0..count << SHIFT).map(|_| SlotRecord::default()).collect(),
            }
        }

        fn take(&self) -> Option<u32> {
            let current = self.clusters.current(0, 0)?;
            loop {
                let cluster = current.load(Ordering::Relaxed);
                if let Some(stretch) = self.clusters.take(&self.records, &self.slots, cluster, 0, 1) {
                    return Some(stretch.first());
                }
                current.store(self.clusters.pop(&self.records, 0)?, Ordering::Relaxed);
            }
        }

        fn give(&self, slot: u32) {
            self.clusters.give(&self.records, slot, 1, || self.slots[slot as usize].free());
        }
    }

    /// Slots that come free one here, one there are left alone until an eighth of a cluster is free, or no cluster is
    /// empty; then all of them are found.
    #[test]
    fn a_cluster_with_few_free_slots_comes_after_the_empty_ones() {
        let area = Singles::new(8);
        for slot in 0..4 * SIZE {
            assert_eq!(area.take(), Some(slot));
        }
        (0..3).for_each(|cluster| area.give(cluster * SIZE + 5));
        (1..8).for_each(|more| area.give(2 * SIZE + 5 + 4 * more));
        // The third has an eighth of its slots free.
        for more in 0..8 {
            assert_eq!(area.take(), Some(2 * SIZE + 5 + 4 * more));
        }
        for slot in 4 * SIZE..8 * SIZE {
            assert_eq!(area.take(), Some(slot));
        }
        let rest: BTreeSet<_> = core::iter::from_fn(|| area.take()).collect();
        assert_eq!(rest, BTreeSet::from([5, SIZE + 5]));
    }

    #[test]
    fn an_area_has_sixteen_clusters_unless_they_would_be_tiny() {
        assert_eq!(1 << shift_for::<K4>(1 << 20), 512);
        assert_eq!(1 << shift_for::<K4>(4096), 256);
        assert_eq!(1 << shift_for::<K4>(300), 16);
        assert_eq!(1 << shift_for::<K4>(1), 16);
        assert_eq!(1 << shift_for::<K16>(1), 128);
    }
}
