//! What a space maps, run by run, for tests and logs.
//!
//! As with [`Space::explain`], nothing waits, and what reclaim changes meanwhile may be told half old and half new.

use core::convert::Infallible;
use core::fmt;

use super::Space;
use crate::addr::{VirtAddr, Vpn, VpnRange};
use crate::granule::{Granule, Level};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::{Decoded, Leaf, SwapEntry, decode};
use crate::table;

/// What a range maps. Printed, a line for each run of entries that continue each other: neighbouring frames with the
/// same rights, or neighbouring slots. Holes are left out.
pub struct Dump<'a, M: Machine> {
    mm: &'a Mm<M>,
    space: &'a Space<M>,
    range: VpnRange,
}

impl<M: Machine> Space<M> {
    /// What the pages from `start` to `end`, exclusive, map.
    pub fn dump<'a>(&'a self, mm: &'a Mm<M>, start: VirtAddr, end: VirtAddr) -> Dump<'a, M> {
        let all = self.pages(mm);
        let range = VpnRange::between(start.vpn::<M::Granule>(), end.vpn::<M::Granule>());
        Dump { mm, space: self, range: range.intersection(all) }
    }
}

/// What an entry holds, without what may differ within a run.
#[derive(Copy, Clone)]
enum Content {
    Pages(Leaf),
    Slots(SwapEntry),
    Unknown(u64),
}

impl Content {
    fn of<G: Granule>(raw: u64) -> Option<Self> {
        match decode::<G>(raw, Level::LEAF) {
            Decoded::Empty | Decoded::Table(_) => None,
            Decoded::Leaf(leaf) => Some(Self::Pages(leaf)),
            Decoded::Swapped(entry) => Some(Self::Slots(entry)),
            Decoded::Unknown(raw) => Some(Self::Unknown(raw)),
        }
    }

    /// Whether `next`, so many pages further on, continues this.
    fn continues<G: Granule>(self, next: Self, pages: u64) -> bool {
        match (self, next) {
            (Self::Pages(first), Self::Pages(leaf)) => {
                first.nth::<G>(pages).without_history() == leaf.without_history()
            }
            (Self::Slots(first), Self::Slots(entry)) => {
                (first.area(), first.is_exclusive()) == (entry.area(), entry.is_exclusive())
                    && first.slot() + pages == entry.slot()
            }
            _ => false,
        }
    }
}

/// A run that is being put together.
struct Run {
    start: Vpn,
    pages: u64,
    first: Content,
    /// The pages that were used, and those that were stored to, since somebody last cleared that.
    accessed: u64,
    dirty: u64,
}

impl Run {
    fn new(start: Vpn, first: Content) -> Self {
        Self { start, pages: 0, first, accessed: 0, dirty: 0 }
    }

    fn add(&mut self, content: Content) {
        self.pages += 1;
        if let Content::Pages(leaf) = content {
            self.accessed += u64::from(leaf.is_accessed());
            self.dirty += u64::from(leaf.is_dirty());
        }
    }

    fn print<G: Granule>(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x} ", self.start.base::<G>().bytes(), self.pages << G::SHIFT)?;
        match self.first {
            Content::Pages(leaf) => {
                write!(f, "{:?}", leaf.without_history())?;
                if leaf.is_contiguous() {
                    write!(f, " {} groups", self.pages >> G::GROUP_ORDER)?;
                }
                writeln!(f, ", {} accessed, {} dirty", self.accessed, self.dirty)
            }
            Content::Slots(entry) => writeln!(f, "{entry:?}"),
            Content::Unknown(raw) => writeln!(f, "{raw:#x}, which nobody here wrote"),
        }
    }
}

impl<M: Machine> fmt::Display for Dump<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.mm.machine();
        let Some(_held) = self.space.guarded.try_lock(machine) else { return f.write_str("the space is locked\n") };
        let mut run: Option<Run> = None;
        let mut result = Ok(());
        let done: Result<(), Infallible> =
            table::for_each_leaf_table(machine, self.space.root, self.range, |table, part| {
                for page in (0..part.pages()).map(|index| part.start().offset(index)) {
                    let Some(content) = Content::of::<M::Granule>(table.raw(machine, page).1) else { continue };
                    let goes_on = run.as_ref().is_some_and(|run| {
                        run.start.offset(run.pages) == page && run.first.continues::<M::Granule>(content, run.pages)
                    });
                    if !goes_on && let Some(done) = run.replace(Run::new(page, content)) {
                        result = result.and(done.print::<M::Granule>(f));
                    }
                    run.get_or_insert_with(|| Run::new(page, content)).add(content);
                }
                Ok(())
            });
        let Ok(()) = done;
        result?;
        run.map_or(Ok(()), |run| run.print::<M::Granule>(f))
    }
}
