//! A cap on what a space has in memory.
//!
//! A space with a cap makes room for itself: before a fault that might take it above, some of its own pages leave,
//! those first that were not used since the hand that goes round its tables passed them last. What other spaces do is
//! as before, but that a page which several share leaves all of them. Counted are the pages that its tables map, those
//! included that it shares.
//!
//! Spaces without a cap pay nothing for this: one that has a cap does not remember the table of its last fault, so that
//! each fault takes the longer way, which looks at the cap.

use super::fault::{Access, FaultError, Found};
use super::{Regions, Space, Vpn};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;
use crate::reclaim::LEAST_CAP_PAGES;
use crate::space::read_ahead::AHEAD_PAGES;

/// How often a space at its cap waits for what others have in hand, before it gives up.
const TRIES: u32 = 64;

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
    /// Pages have come past the faults: they are to be counted.
    pub(super) fn recount(&mut self) {
        self.room = 0;
    }

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
    /// So many pages. No less than [`Mm::least_cap_pages`] are kept.
    Pages(u64),
}

/// Pages that one fault may map.
fn most_at_once<M: Machine>(mm: &Mm<M>) -> u64 {
    (1 << mm.folio_orders().largest()).max(AHEAD_PAGES as u64)
}

impl<M: Machine> Mm<M> {
    /// The least cap that is kept to the page: [`LEAST_CAP_PAGES`], or four of the largest folios that are made. A
    /// space with a smaller one may have so much.
    pub fn least_cap_pages(&self) -> u64 {
        LEAST_CAP_PAGES.max(4 * most_at_once(self))
    }
}

impl<M: Machine> Space<M> {
    /// Sets the most that the space may have in memory. What it has above that leaves with its next fault that brings
    /// a page. A fork inherits the cap.
    pub fn set_cap(&self, mm: &Mm<M>, cap: MemoryCap) {
        let mut guarded = self.lock(mm);
        guarded.near = None;
        guarded.cap = match cap {
            MemoryCap::None => None,
            MemoryCap::Pages(pages) => Some(Cap { pages: pages.max(LEAST_CAP_PAGES), room: 0, hand: Vpn::new(0) }),
        };
    }

    /// The cap that was set, or [`LEAST_CAP_PAGES`] if that is more. What is kept is no less than
    /// [`Mm::least_cap_pages`].
    pub fn cap(&self, mm: &Mm<M>) -> MemoryCap {
        self.lock(mm).cap.as_ref().map_or(MemoryCap::None, |cap| MemoryCap::Pages(cap.pages))
    }

    /// Resolves a fault of a space with a cap.
    ///
    /// # Errors
    /// As [`Space::handle_fault`]; [`FaultError::Capped`] when a page is to come, the space is at its cap, or less than
    /// a folio below, and nothing of it can leave.
    #[cold]
    pub(super) fn resolve_below(
        &self,
        mm: &Mm<M>,
        (cap, regions): (&mut Cap, &Regions),
        at: &Found<'_>,
        access: Access,
    ) -> Result<(), FaultError> {
        // What is there needs no room, nor does a copy in its place.
        if !matches!(at.table.peek(mm.machine(), at.page).guess::<M>(), Decoded::Leaf(_)) {
            self.stay_below(mm, regions, cap)?;
        }
        // A fault maps pages of one table. What reclaim takes from there meanwhile makes as much room.
        let before = at.table.leaves(mm);
        let resolved = self.look_again(mm, at, access);
        cap.room = cap.room.saturating_sub(at.table.leaves(mm).saturating_sub(before));
        resolved
    }

    /// Makes room for what one fault may map.
    fn stay_below(&self, mm: &Mm<M>, regions: &Regions, cap: &mut Cap) -> Result<(), FaultError> {
        let most = most_at_once(mm);
        let pages = cap.pages.max(4 * most);
        let mut tries = TRIES;
        while cap.room < most {
            let resident = self.size_of(mm, regions).resident;
            cap.room = pages.saturating_sub(resident);
            if cap.room >= most {
                break;
            }
            mm.stats().cap_reclaims.bump();
            let others = mm.reclaim().isolated();
            self.evict_own(mm, regions, &mut cap.hand, most - cap.room);
            cap.room = pages.saturating_sub(self.size_of(mm, regions).resident);
            if cap.room < most {
                // Others may have the space's pages in hand: theirs is the progress to wait for.
                let others = others.or_else(|| mm.reclaim().isolated());
                let others = others.filter(|_| tries > 0).ok_or(FaultError::Capped)?;
                mm.reclaim().wait_for_others(mm.machine(), others);
                tries -= 1;
            }
        }
        Ok(())
    }
}
