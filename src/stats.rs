//! Counters, one per outcome. Every room counts here; nothing in the library reads them back to decide.
//!
//! All are relaxed and only grow. Pages are base pages of the granule, whatever the size of the folio.

use crate::sync::Ordering;
use crate::sync::stepless::AtomicU64;

/// One counter.
#[derive(Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    #[inline]
    pub fn bump(&self) {
        self.add(1);
    }

    /// Counts `count` at once.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Every counter of one [`Mm`](crate::Mm).
        #[derive(Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Stats {
            /// Calls `visit` with the name and the count of each counter, in the order of this file.
            pub fn for_each(&self, mut visit: impl FnMut(&'static str, u64)) {
                $(visit(stringify!($name), self.$name.get());)*
            }
        }
    };
}

counters! {
    /// Faults handed to the library.
    faults,
    /// Faults that found a fitting entry already: another CPU was first, or the TLB was stale.
    faults_spurious,
    /// Pages that came into being, zeroed, on first touch.
    first_touches,
    /// Large folios that first touch made; their pages count as first touches, too.
    large_folios,
    /// Contiguous groups mapped as such.
    folds,
    /// Contiguous groups broken up, as their pages came to differ.
    unfolds,
    /// Contiguous groups folded again, as their pages became alike.
    refolds,
    /// Large folios split into pages.
    splits,
    /// Groups of single pages of which one large folio was made.
    collapses,
    /// Pages that a program gave up (MADV_FREE) and that were made clean.
    lazy_freed,
    /// Spaces that were forked.
    forks,
    /// Stores to shared pages that made a copy.
    copies,
    /// Stores to pages that had been shared, and of which the space had the last mapping: they are its own again.
    reuses,
    /// Faults that only set the access flag or made a clean page dirty (no hardware management).
    faults_flag,
    /// Faults that made a page executable after its code sync.
    faults_execute,
    /// Faults refused, of pins as well: no region there.
    faults_unmapped,
    /// The same: the region forbids the access.
    faults_forbidden,
    /// The same: no memory and nothing left to reclaim.
    faults_no_memory,
    /// The same: the space is at its cap, and nothing of it can leave.
    faults_capped,
    /// The same: the page's swap slot could not be read, or held another page than the one that left.
    faults_unreadable,
    /// Pages written to a swap slot.
    swap_out,
    /// Of these, pages that repeat one word: the slot's record has it, and the device nothing.
    swap_out_same,
    /// Large folios written to their slots in one piece; their pages count as swapped out, too.
    swap_out_folios,
    /// Pages read from a swap slot.
    swap_in,
    /// Pages that repeat one word and were read in, without the device.
    swap_in_same,
    /// Large folios read from their slots in one piece; their pages count as swapped in, too.
    swap_in_folios,
    /// Pages that were read in with one before them, for a program that goes in order.
    swap_in_ahead,
    /// Swap-ins of pages that a larger memory would have kept (see `reclaim`).
    refaults,
    /// Swap-ins of pages that came back so soon that the policy protects them from what comes once.
    refaults_protected,
    /// Pages that left again as they had come, by no request: their slots still had them.
    swap_out_clean,
    /// Pages in memory for some spaces and out for others that became two pages, as their area is being turned off.
    parted,
    /// Faults that found their page still in memory, on its way out or kept after a failed write.
    swap_cache_hits,
    /// Pages whose write to the device failed; they stay in memory.
    write_errors,
    /// Pages whose read from the device failed.
    read_errors,
    /// Pages that came back from a device that is checked other than they left; their slots are poisoned.
    damaged,
    /// Pages that could not be read back when their swap area was turned off, and are lost.
    pages_lost,
    /// Saved pages without tags.
    tags_untagged,
    /// Saved pages with one tag throughout.
    tags_uniform,
    /// Saved pages whose tags fit in the slot record as a few runs.
    tags_packed,
    /// Saved pages whose tags fit in the slot record as objects of one size.
    tags_strided,
    /// Saved pages whose tags took a raw image.
    tags_raw,
    /// Evictions given up for want of room for tags; the page stays mapped.
    no_tag_room,
    /// Evictions given up for want of a swap slot; the page stays mapped.
    no_slot,
    /// Evictions that discarded a page which was clean: never stored to, or not since the program gave it up.
    clean_discards,
    /// Pages that reclaim looked at.
    scanned,
    /// Pages that reclaim passed over as recently used.
    referenced,
    /// Pages that reclaim found unused and passed over, as earlier looks had found them used.
    spared,
    /// Pages that reclaim passed over as locked or pinned by somebody else.
    busy,
    /// Pages that reclaim passed over as locked in memory.
    locked,
    /// Pages that changed hands between reclaim's choice and its unmapping.
    raced,
    /// Requests for a frame that found no more than the reserve, and then some that had come free meanwhile.
    short_progress,
    /// The same, after they had waited for the background reclaimer.
    short_waits,
    /// The same, that reclaimed for themselves.
    direct_reclaims,
    /// The same, that found nothing to reclaim in a whole search.
    short_failures,
    /// Faults that reclaimed from their own space, which was at its cap.
    cap_reclaims,
    /// Times the background reclaimer was woken.
    background_wakes,
    /// Requests that the background reclaimer was not woken for, as it had found nothing before.
    background_rests,
    /// Programs that were killed for want of memory; counted by the kernel, as are the next three.
    oom_kills,
    /// Faults that found no memory, and waited for the end of a program that had been chosen, or was about to end.
    oom_waits,
    /// Faults that found no memory, and some at the second look, before anybody was chosen.
    oom_averted,
    /// Faults that found no memory, of programs that were about to end themselves.
    oom_ends,
    /// Leaf and higher tables made.
    tables_made,
    /// Tables freed.
    tables_freed,
    /// Invalidation batches completed: one barrier pair each.
    flushes,
    /// Pages or runs invalidated.
    invalidations,
}
