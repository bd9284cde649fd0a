//! The clock: one queue in the order of coming; what was used goes round once more.

use super::super::queues::{Queue, Queues};
use super::{Looked, Policy, Seen};
use crate::frame::{Class, Frames, Standing};

/// See the module's head.
pub(in super::super) struct Clock;

impl Policy for Clock {
    fn choose(&mut self, _: &mut Queues, _: &Frames) -> Queue {
        Queue::Entry
    }

    fn spares(&self, _: Standing) -> bool {
        false
    }

    fn place(&mut self, _: Standing, _: Seen) -> (Queue, Standing) {
        (Queue::Entry, Standing::NEW)
    }

    #[inline]
    fn welcome(&mut self, _: Class, _: u64) -> (Queue, Standing) {
        (Queue::Entry, Standing::NEW)
    }

    fn hear(&mut self, _: Looked) {}
}
