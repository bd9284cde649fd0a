//! A cap on what a space has in memory.
//!
//! A space with a cap makes room for itself: before a fault that might take it above, some of its own pages leave,
//! those first that were not used since the hand that goes round its tables passed them last. What other spaces do is
//! as before. Counted are the pages that its tables map, those included that it shares.
//!
//! Spaces without a cap pay nothing for this: one that has a cap does not remember the table of its last fault, so that
//! each fault takes the longer way, which looks at the cap.

use super::fault::{Access, FaultError, Found};
use super::{Regions, Space, Vpn};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::reclaim::LEAST_CAP_PAGES;
use crate::space::read_ahead::AHEAD_PAGES;

/// See the module's head.
pub(crate) struct Cap {
    /// The most pages that may be mapped.
    pages: u64,
    /// Pages that faults may map before the tables are counted again.
    room: u64,
    /// Where the next page is looked for that may leave.
    hand: Vpn,
}

impl Cap {
    /// The cap, for another space.
    pub(super) fn anew(&self) -> Self {
        Self { pages: self.pages, room: 0, hand: Vpn::new(0) }
    }
}

/// The most that a space may have in memory.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum MemoryCap {
    /// What there is.
    None,
    /// So many pages, or [`LEAST_CAP_PAGES`] if that is less.
    Pages(u64),
}

impl<M: Machine> Space<M> {
    /// Sets the most that the space may have in memory. What it has above that leaves with its next fault. A fork
    /// inherits the cap.
    pub fn set_cap(&self, mm: &Mm<M>, cap: MemoryCap) {
        let mut guarded = self.lock(mm);
        guarded.near = None;
        guarded.cap = match cap {
            MemoryCap::None => None,
            MemoryCap::Pages(pages) => Some(Cap { pages: pages.max(LEAST_CAP_PAGES), room: 0, hand: Vpn::new(0) }),
        };
    }

    /// The most that the space may have in memory.
    pub fn cap(&self, mm: &Mm<M>) -> MemoryCap {
        self.lock(mm).cap.as_ref().map_or(MemoryCap::None, |cap| MemoryCap::Pages(cap.pages))
    }

    /// Pages that the space has in memory, at some moment of the call.
    fn resident_pages(&self, mm: &Mm<M>, regions: &Regions) -> u64 {
        let (mut pages, mut next, mut last) = (0, Vpn::new(0), None);
        while let Some(region) = regions.at_or_after(mm, next) {
            self.for_each_leaf_table(mm, region.pages, |table, _| {
                // Neighbours among the regions may have one table.
                let first = Some(table.pages::<M::Granule>().start());
                if last != first {
                    pages += table.leaves(mm);
                }
                last = first;
            });
            next = region.pages.end();
        }
        pages
    }

    /// Resolves a fault of a space with a cap.
    ///
    /// # Errors
    /// As [`Space::handle_fault`]; also [`FaultError::NoMemory`] when the space is at its cap, and nothing of it can
    /// leave.
    #[cold]
    pub(super) fn resolve_below(
        &self,
        mm: &Mm<M>,
        (cap, regions): (&mut Cap, &Regions),
        at: &Found<'_>,
        access: Access,
    ) -> Result<(), FaultError> {
        self.stay_below(mm, regions, cap)?;
        // A fault maps pages of one table. What reclaim takes from there meanwhile makes as much room.
        let before = at.table.leaves(mm);
        let resolved = self.look_again(mm, at, access);
        cap.room = cap.room.saturating_sub(at.table.leaves(mm).saturating_sub(before));
        resolved
    }

    /// Makes room for what one fault may map.
    fn stay_below(&self, mm: &Mm<M>, regions: &Regions, cap: &mut Cap) -> Result<(), FaultError> {
        let most = (1 << mm.folio_orders().largest()).max(AHEAD_PAGES as u64).min(cap.pages / 2);
        if cap.room < most {
            let resident = self.resident_pages(mm, regions);
            let is_above = resident + most > cap.pages;
            if is_above {
                mm.stats().cap_reclaims.bump();
                self.evict_own(mm, regions, &mut cap.hand, resident + most - cap.pages);
            }
            let resident = if is_above { self.resident_pages(mm, regions) } else { resident };
            cap.room = cap.pages.saturating_sub(resident);
            if cap.room < most {
                return Err(FaultError::NoMemory);
            }
        }
        Ok(())
    }
}
