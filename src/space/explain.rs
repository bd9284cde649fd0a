//! What is known of one address, for a log: its region, its entry, the frame or slot that the entry names.
//!
//! Nothing here waits, so that it can be asked on the way to a panic, too: when somebody holds the space's lock, the
//! answer is that. What reclaim on another CPU changes meanwhile may be told half old and half new.

use core::fmt;

use super::{Protection, Region, Space};
use crate::addr::VirtAddr;
use crate::frame::{Frame, Kind, flag};
use crate::granule::{Granule, Level};
use crate::machine::{EntryAt, Machine};
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Decoded, SwapEntry, decode};
use crate::sync::Ordering;
use crate::table;

/// Everything about one address. Printed, it takes three lines at most.
pub struct Explanation<'a, M: Machine> {
    mm: &'a Mm<M>,
    address: VirtAddr,
    /// `None` when somebody holds the space's lock.
    found: Option<Found>,
}

struct Found {
    region: Option<Region>,
    /// The entry's place and bits, if there is a leaf table.
    entry: Option<(EntryAt, u64)>,
}

impl<M: Machine> Space<M> {
    /// What there is at `address`.
    pub fn explain<'a>(&self, mm: &'a Mm<M>, address: VirtAddr) -> Explanation<'a, M> {
        let page = address.vpn::<M::Granule>();
        let found = self.guarded.try_lock(mm.machine()).map(|mut guarded| {
            let regions = &mut guarded.regions;
            let inside = self.pages(mm).contains(page);
            let table = if inside { table::find(mm.machine(), self.root, page) } else { None };
            Found { region: regions.find(mm, page), entry: table.map(|table| table.raw(mm.machine(), page)) }
        });
        Explanation { mm, address, found }
    }
}

impl<M: Machine> fmt::Display for Explanation<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: ", self.address.bytes())?;
        let Some(Found { region, entry }) = &self.found else { return f.write_str("the space is locked") };
        match region {
            Some(region) => write_region::<M>(f, region)?,
            None => f.write_str("no region")?,
        }
        let Some((EntryAt { table, index }, raw)) = *entry else { return f.write_str("; no leaf table") };
        let decoded = decode::<M::Granule>(raw, Level::LEAF);
        write!(f, "\n  entry {table:?}[{index}]: {decoded:?}")?;
        match decoded {
            Decoded::Leaf(leaf) => match self.mm.frames().frame(leaf.pfn::<M::Granule>()) {
                Some(frame) => write_frame(f, self.mm, frame),
                None => f.write_str("\n  a frame that is not the library's"),
            },
            Decoded::Swapped(SwapEntry::LOST) => f.write_str("\n  lost with its swap area"),
            Decoded::Swapped(entry) => {
                match self.mm.swap().enter(entry.area()).as_ref().map(|area| area.slot(entry.slot())) {
                    Some(Some(slot)) => {
                        write!(f, "\n  slot {}/{}: {:?}, {:?}", entry.area(), entry.slot(), slot.state(), slot.tags())
                    }
                    Some(None) => write!(f, "\n  no slot {} in area {}", entry.slot(), entry.area()),
                    None => write!(f, "\n  no swap area {}", entry.area()),
                }
            }
            Decoded::Empty | Decoded::Table(_) | Decoded::Unknown(_) => Ok(()),
        }
    }
}

fn write_region<M: Machine>(f: &mut fmt::Formatter<'_>, region: &Region) -> fmt::Result {
    let name = |right, name| if region.protection.contains(right) { name } else { '-' };
    let first = region.pages.start().base::<M::Granule>().bytes();
    let bytes = region.pages.pages() << M::Granule::SHIFT;
    write!(
        f,
        "region {first:#x}+{bytes:#x} {}{}{}{}{}",
        name(Protection::READ, 'r'),
        name(Protection::WRITE, 'w'),
        name(Protection::EXEC, 'x'),
        name(Protection::TAGGED, 't'),
        if region.grows() { ", grows down" } else { "" },
    )
}

fn write_frame<M: Machine>(f: &mut fmt::Formatter<'_>, mm: &Mm<M>, frame: Frame) -> fmt::Result {
    let record = mm.frames().record(frame);
    let count = record.count.word().load(Ordering::Relaxed);
    let (maps, references, pins) = (count as u32, (count >> 32) as u16, count >> 48);
    let kind = record.kind();
    write!(f, "\n  {:?}: {kind:?} of order {}", mm.frames().pfn(frame), record.order())?;
    if kind == Kind::Folio {
        let home = Home::load(&record.home);
        write!(f, ", {maps} maps, {references} references, {pins} pins, {home:?}")?;
    }
    for (mask, name) in [
        (flag::LOCKED, "locked"),
        (flag::LISTED, "listed"),
        (flag::CACHED, "in the swap cache"),
        (flag::KEPT, "kept after a failed write"),
        (flag::TAGS_VALID, "tags valid"),
        (flag::CODE_SYNCED, "code synced"),
    ] {
        if record.has(mask) {
            write!(f, ", {name}")?;
        }
    }
    Ok(())
}
