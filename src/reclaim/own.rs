//! Eviction from one space, by a hand that goes round its tables: for a space at its cap.

use core::ops::ControlFlow;

use super::BATCH;
use super::advise::{Rest, evict_first};
use super::evict::Ageing;
use super::list::Batch;
use crate::addr::{Vpn, VpnRange};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::space::{Regions, Space};
use crate::table::{LeafTable, chunks};

/// The least that a space can be capped at, in pages: four batches, and the largest group beside.
pub const LEAST_CAP_PAGES: u64 = 4 * BATCH as u64 + 128;

/// Rounds of the hand: pages used since the one before stay in the first two.
const ROUNDS: [Ageing; 3] = [Ageing::SecondChance, Ageing::SecondChance, Ageing::Ignored];

impl<M: Machine> Space<M> {
    /// Evicts `pages` pages or somewhat more of what the space maps from `hand` on, and leaves that where the next is
    /// to be looked for. As much as can be had in three rounds. Under the space's lock.
    pub(crate) fn evict_own(&self, mm: &Mm<M>, regions: &Regions, hand: &mut Vpn, pages: u64) {
        let mut wanted = pages + 2 * BATCH as u64;
        for ageing in ROUNDS {
            // To the end of the space, then from its start on: a round and somewhat more.
            for _ in 0..2 {
                while let Some(region) = regions.at_or_after(mm, *hand) {
                    let part = region.pages.intersection(VpnRange::between(*hand, region.pages.end()));
                    let done = self.try_each_leaf_table(mm, part, |table, part| {
                        self.evict_run(mm, (table, part), ageing, hand, &mut wanted)
                    });
                    if done.is_break() {
                        return;
                    }
                    *hand = region.pages.end();
                }
                *hand = Vpn::new(0);
            }
        }
    }

    fn evict_run(
        &self,
        mm: &Mm<M>,
        (table, part): (LeafTable, VpnRange),
        ageing: Ageing,
        hand: &mut Vpn,
        wanted: &mut u64,
    ) -> ControlFlow<()> {
        let mut batch = Batch::default();
        for part in chunks(part) {
            let mut left = part;
            while !left.is_empty() {
                let Rest { left: rest, freed } = evict_first(mm, self.node(), (table, left), ageing, &mut batch);
                *wanted = wanted.saturating_sub(freed);
                left = rest;
                *hand = rest.start();
                if *wanted == 0 {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }
}
