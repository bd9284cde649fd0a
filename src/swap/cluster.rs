//! Clusters: which slots of an area are free.
//!
//! An area is cut into clusters of equal, power-of-two size. Each CPU fills one cluster at a time, in ascending
//! order, so that pages which leave together lie together and CPUs do not meet. A cluster is in one of three places:
//! some CPU's current one, in the list of those with free slots, or nowhere because it is full. A slot freed in a
//! full cluster puts it back in the list. When the list is empty a CPU takes from any cluster, others' current ones
//! too: a slot is refused only when none is free.

use crate::sync::{AtomicU32, Ordering, Spin, SpinGuard};

/// "No cluster".
pub(super) const NONE: u32 = u32::MAX;

/// Slots of a cluster at most: 2 MiB of 4 KiB pages.
const LARGEST: u32 = 512;
/// Clusters of an area at least, as far as that leaves room for the largest folio in each.
const AT_LEAST: u32 = 16;
/// Slots of a cluster at least: the pages of a 64 KiB group at 4 KiB.
const SMALLEST: u32 = 16;

/// log2 of the slots of a cluster in an area of `slots` slots.
pub(super) const fn shift_for(slots: u32) -> u32 {
    let wanted = slots / AT_LEAST;
    let size = if wanted > LARGEST {
        LARGEST
    } else if wanted < SMALLEST {
        SMALLEST
    } else {
        wanted
    };
    size.ilog2()
}

/// Where a cluster is.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Place {
    /// In the list of clusters with free slots.
    Listed,
    /// Some CPU's current one.
    Current,
    /// In no list, as it has no free slot.
    Full,
}

pub(super) struct State {
    free: u32,
    /// Where the search for a free slot goes on.
    cursor: u32,
    place: Place,
}

/// One cluster's record.
pub struct ClusterRecord {
    state: Spin<State>,
    next: AtomicU32,
}

impl ClusterRecord {
    pub(super) const fn new(free: u32, next: u32) -> Self {
        let place = if free == 0 { Place::Full } else { Place::Listed };
        Self { state: Spin::new(State { free, cursor: 0, place }), next: AtomicU32::new(next) }
    }
}

/// The clusters of one area.
pub(super) struct Clusters {
    /// The first cluster of the list.
    list: Spin<u32>,
}

impl Clusters {
    pub(super) const fn new(first: u32) -> Self {
        Self { list: Spin::new(first) }
    }

    /// Takes the first cluster out of the list, for a CPU to make it its current one.
    pub(super) fn pop(&self, records: &[ClusterRecord]) -> Option<u32> {
        // Cluster before list is the order of locks; here the list alone says which cluster, so it is taken out first
        // and nobody else can reach it by the list any more.
        let cluster = {
            let mut list = self.list.lock();
            let cluster = *list;
            *list = records.get(cluster as usize)?.next.load(Ordering::Relaxed);
            cluster
        };
        records.get(cluster as usize)?.state.lock().place = Place::Current;
        Some(cluster)
    }

    /// Takes a slot of `cluster`: the first that `is_free` from the cursor on, marked by `take`, both under the
    /// cluster's lock. `None` when it has none; it is then off every list.
    #[inline]
    pub(super) fn take(
        &self,
        records: &[ClusterRecord],
        cluster: u32,
        shift: u32,
        take: impl Fn(u32) -> Option<()>,
    ) -> Option<u32> {
        let mut state = records.get(cluster as usize)?.state.lock();
        if state.free == 0 {
            if state.place == Place::Current {
                state.place = Place::Full;
            }
            return None;
        }
        let mask = (1 << shift) - 1;
        for step in 0..1u32 << shift {
            let within = (state.cursor + step) & mask;
            let slot = cluster << shift | within;
            if take(slot).is_some() {
                state.cursor = (within + 1) & mask;
                state.free -= 1;
                return Some(slot);
            }
        }
        None
    }

    /// Locks `cluster`, and with it the change of its slots between cached and not.
    #[inline]
    pub(super) fn lock<'a>(&self, records: &'a [ClusterRecord], cluster: u32) -> Option<SpinGuard<'a, State>> {
        Some(records.get(cluster as usize)?.state.lock())
    }

    /// Gives a slot of `cluster` back: `free` marks it, under the cluster's lock.
    #[inline]
    pub(super) fn give(&self, records: &[ClusterRecord], cluster: u32, free: impl FnOnce()) {
        let Some(record) = records.get(cluster as usize) else { return };
        let mut state = record.state.lock();
        free();
        state.free += 1;
        if state.place == Place::Full {
            state.place = Place::Listed;
            let mut list = self.list.lock();
            record.next.store(*list, Ordering::Relaxed);
            *list = cluster;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_has_sixteen_clusters_unless_they_would_be_tiny() {
        assert_eq!(1 << shift_for(1 << 20), 512);
        assert_eq!(1 << shift_for(4096), 256);
        assert_eq!(1 << shift_for(300), 16);
        assert_eq!(1 << shift_for(1), 16);
    }
}
