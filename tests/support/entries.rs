//! The entries behind a program's pages, as memory holds them: what a test says of folding and of history.

use std::fmt::Debug;

use ebbtide::Space;
use ebbtide::addr::{Pfn, VirtAddr};
use ebbtide::granule::{Granule, K4};
use ebbtide::machine::EntryAt;

use super::{Rig, Stage};

pub const VALID: u64 = 1 << 0;
pub const READ_ONLY: u64 = 1 << 7;
pub const ACCESSED: u64 = 1 << 10;
pub const WRITABLE: u64 = 1 << 51;
pub const CONTIGUOUS: u64 = 1 << 52;
pub const UXN: u64 = 1 << 54;
pub const SOFT_DIRTY: u64 = 1 << 55;

/// Whether a leaf says that its page was stored to: to the hardware, or to the library.
pub const fn is_dirty(raw: u64) -> bool {
    raw & SOFT_DIRTY != 0 || raw & (WRITABLE | READ_ONLY) == WRITABLE
}

/// A leaf without its history and its group: what no neighbour may change.
pub const fn lasting(raw: u64) -> u64 {
    (raw | READ_ONLY) & !(ACCESSED | SOFT_DIRTY | CONTIGUOUS)
}

/// The place of the entry of a page, where there is a leaf table. The library does not tell its tables to programs, so
/// this is read from what it says in a log.
pub fn place<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, address: u64) -> Option<EntryAt> {
    let said = format!("{}", space.explain(&rig.mm, VirtAddr::new(address)));
    let (_, entry) = said.split_once("\n  entry ")?;
    let (table, rest) = entry.split_once('[')?;
    let (index, _) = rest.split_once(']')?;
    let digits = table.trim_start_matches(|c: char| c != '0').trim_start_matches("0x").trim_end_matches(')');
    let table = Pfn::new(u64::from_str_radix(digits, 16).expect("a frame's number"));
    Some(EntryAt { table, index: index.parse().expect("an index") })
}

/// The entries of a run of pages in one leaf table; zeroes where there is no table.
pub fn entries<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, start: u64, pages: u64) -> Vec<u64> {
    let first = place(rig, space, start);
    let entry = |page: u64| first.map_or(0, |first| rig.emu().peek(first.offset(page as usize)));
    (0..pages).map(entry).collect()
}

/// The groups of a run, which begins with one, whose entries all have the contiguous bit.
pub fn folded<G: Granule>(raws: &[u64]) -> Vec<bool> {
    let has = |raw: &u64| raw & (VALID | CONTIGUOUS) == VALID | CONTIGUOUS;
    raws.chunks(G::GROUP_PAGES).map(|group| group.iter().all(has)).collect()
}

/// The frame of a leaf of single pages of 4 KiB, and of what else has an address there.
pub const fn frame_of(raw: u64) -> u64 {
    (raw & 0xffff_ffff_f000) >> 12
}

/// Bit of a swap entry: no other space names its slot.
const OUT_EXCLUSIVE: u64 = 1 << 2;

/// Looks at the entries of `spaces` for a run of pages, as memory holds them: nobody may store to a frame that another
/// has as well, or believes a slot to be its own that another names.
pub fn check_sharing(rig: &Rig, spaces: &[&Space<Stage<K4>>], start: u64, pages: u64, told: &dyn Debug) {
    let raws: Vec<_> = spaces.iter().map(|space| entries(rig, space, start, pages)).collect();
    let may_store = |raw: u64| raw & READ_ONLY == 0 || raw & WRITABLE != 0;
    for (index, raw) in raws.iter().enumerate() {
        for (&one, &other) in raws[index + 1..].iter().flat_map(|others| raw.iter().zip(others)) {
            let wrong = match (one & VALID, other & VALID) {
                (1, 1) => frame_of(one) == frame_of(other) && (may_store(one) || may_store(other)),
                (0, 0) => {
                    let is_one = one != 0 && one | OUT_EXCLUSIVE == other | OUT_EXCLUSIVE;
                    is_one && (one | other) & OUT_EXCLUSIVE != 0
                }
                _ => false,
            };
            assert!(!wrong, "{one:#x} and {other:#x} are shared, and not: {told:?}");
        }
    }
}
