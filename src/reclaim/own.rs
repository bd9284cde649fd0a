//! Eviction from one space, by a hand that goes round its tables: for a space at its cap.

use super::BATCH;
use super::advise::isolate;
use super::evict::{Ageing, Evicted, evict};
use super::list::Batch;
use crate::addr::{Vpn, VpnRange};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::space::Space;
use crate::table::chunks;

/// The least that a space can be capped at, in pages: two batches, and twice the largest group beside.
pub const LEAST_CAP_PAGES: u64 = 2 * BATCH as u64 + 2 * 128;

/// Where in a space the next page is looked for.
pub(crate) struct Hand {
    pub(crate) at: Vpn,
    /// All of the space.
    pub(crate) all: VpnRange,
}

impl<M: Machine> Space<M> {
    /// Evicts `pages` pages or somewhat more of what the space maps, or what can be had in three rounds: pages used
    /// since the round before stay in the first two. Under the space's lock.
    pub(crate) fn evict_own(&self, mm: &Mm<M>, hand: &mut Hand, pages: u64) {
        let wanted = pages + BATCH as u64;
        let mut gone = 0;
        for ageing in [Ageing::SecondChance, Ageing::SecondChance, Ageing::Ignored] {
            let ahead = VpnRange::between(hand.at, hand.all.end());
            let behind = VpnRange::between(hand.all.start(), hand.at);
            for part in [ahead, behind] {
                self.for_each_leaf_table(mm, part, |table, part| {
                    for part in chunks(part) {
                        let mut left = part;
                        while !left.is_empty() && gone < wanted {
                            let mut batch = Batch::default();
                            let rest = isolate(mm, self.node(), table, left, &mut batch.folios);
                            let Evicted { pages, split } = evict(mm, &batch, ageing);
                            gone += pages;
                            // What had to be split comes again, page by page.
                            if split == 0 {
                                left = rest;
                                hand.at = rest.start();
                            }
                        }
                    }
                });
                if gone >= wanted {
                    return;
                }
            }
        }
    }
}
