//! Three generations. What comes in is of the middle one, what is used again of the youngest, and the oldest leaves.
//!
//! When the oldest generation is used up, each becomes the next older one, whole: two links change, and no folio is
//! touched. So a folio that was used again outlives everything that came in meanwhile, and a folio that came in once
//! has one generation's time to be used.

use super::super::queues::{Queue, Queues};
use super::{Looked, Policy, Seen};
use crate::frame::{Class, Frames, Standing};

const YOUNGEST: Queue = Queue::Second;
const MIDDLE: Queue = Queue::Entry;
const OLDEST: Queue = Queue::Third;

/// Ranks: 0 before the first look, 1 after it.
pub(in super::super) struct Generations;

impl Policy for Generations {
    fn choose(&mut self, queues: &mut Queues, frames: &Frames) -> Queue {
        // Twice, where all are in the youngest.
        for _ in 0..2 {
            if queues.is_empty(OLDEST) {
                queues.append(frames, MIDDLE, OLDEST);
                queues.append(frames, YOUNGEST, MIDDLE);
            }
        }
        OLDEST
    }

    fn spares(&self, _: Standing) -> bool {
        false
    }

    fn place(&mut self, standing: Standing, seen: Seen) -> (Queue, Standing) {
        match (seen, standing.rank) {
            (Seen::Used, 0) => (MIDDLE, standing.raised()),
            (Seen::Used, _) => (YOUNGEST, standing),
            (Seen::Unused | Seen::Nothing, _) => (MIDDLE, standing),
        }
    }

    #[inline]
    fn welcome(&mut self, _: Class, _: u64) -> (Queue, Standing) {
        (YOUNGEST, Standing::NEW)
    }

    fn hear(&mut self, _: Looked) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::desk::Desk;

    #[test]
    fn what_was_used_twice_outlives_what_is_new_and_leaves_after_it() {
        let desk = Desk::new(8);
        let [used, new] = [desk.folio(), desk.folio()].map(Option::unwrap);
        let (mut queues, mut policy) = (Queues::new(), Generations);
        let (_, once) = policy.place(Standing::NEW, Seen::Used);
        let (queue, twice) = policy.place(once, Seen::Used);
        queues.push(&desk, queue, used, twice);
        queues.push(&desk, MIDDLE, new, Standing::NEW);
        for expected in [new, used] {
            let oldest = policy.choose(&mut queues, &desk);
            assert_eq!(queues.pop(&desk, oldest).map(|(frame, _)| frame), Some(expected));
        }
    }
}
