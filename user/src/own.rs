//! The mini-kernel's own system calls, far above Linux's numbers. Elsewhere they answer `ENOSYS`, and each
//! function here then gives `None`.

use crate::sys;

const STATS: usize = 0x6501;
const ICOUNT: usize = 0x6502;
const FLOOR: usize = 0x6503;
const FOLIO_KIB: usize = 0x6504;

/// The kernel's counters, in the order in which [`stats`] gives them.
pub const COUNTERS: [&str; 13] = [
    "faults",
    "swap_out",
    "swap_in",
    "refaults",
    "tags_untagged",
    "tags_uniform",
    "tags_packed",
    "tags_raw",
    "clean_discards",
    "direct_reclaims",
    "background_wakes",
    "oom_kills",
    "damaged",
];

/// Index in [`COUNTERS`] of the pages written out.
pub const SWAP_OUT: usize = 1;
/// Index in [`COUNTERS`] of the pages read in.
pub const SWAP_IN: usize = 2;
/// Index in [`COUNTERS`] of the pages that came back soon.
pub const REFAULTS: usize = 3;
/// Index in [`COUNTERS`] of the pages that came back damaged.
pub const DAMAGED: usize = 12;

/// The kernel's counters since boot. A kernel that has fewer leaves the rest 0.
pub fn stats() -> Option<[u64; COUNTERS.len()]> {
    let mut values = [0; COUNTERS.len()];
    let args = [values.as_mut_ptr() as usize, values.len(), 0, 0, 0, 0];
    // SAFETY: (address, words) is the array; the kernel writes at most that many u64 values.
    unsafe { sys::call(STATS, args) }.ok()?;
    Some(values)
}

/// Whether one tick of the counter is one instruction (QEMU runs with `-icount shift=0`).
pub fn icount() -> Option<bool> {
    // SAFETY: takes nothing and changes nothing.
    unsafe { sys::call(ICOUNT, [0; 6]) }.ok().map(|answer| answer == 1)
}

/// KiB of the largest folio that the kernel makes on first touch.
pub fn folio_kib() -> Option<usize> {
    // SAFETY: takes nothing and changes nothing.
    unsafe { sys::call(FOLIO_KIB, [0; 6]) }.ok()
}

/// A piece of work that some operation cannot avoid, measured by the kernel as its fully unrolled loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Floor {
    /// Zero the data of a page.
    Zero = 0,
    /// Zero the data and the tags of a page.
    ZeroTagged = 1,
    /// Copy the data of a page.
    Copy = 2,
    /// Read the tags of a page.
    SaveTags = 3,
    /// Write the tags of a page.
    RestoreTags = 4,
    /// From EL0 to EL1 and back.
    RoundTrip = 5,
    /// Write one descriptor.
    Descriptor = 6,
    /// One TLBI.
    Invalidate = 7,
    /// Find out that a page is zero.
    ScanZero = 8,
    /// Find out that a page repeats one word.
    ScanWord = 9,
    /// Store one word all over a page.
    Fill = 10,
    /// Copy the data and the tags of a page.
    CopyTagged = 11,
}

/// Guest instructions of that work, for a page of 4 KiB.
pub fn floor(kind: Floor) -> Option<u64> {
    // SAFETY: takes a number and changes nothing of the program's.
    unsafe { sys::call(FLOOR, [kind as usize, 0, 0, 0, 0, 0]) }.ok().map(|n| n as u64)
}
