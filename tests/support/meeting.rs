//! What races have in common: the machine they are on, and what a word may hold that others store to and give up.

use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::Features;
use ebbtide::machine::emu::Adversary;
use shuttle::rand::{Rng, thread_rng};

use super::{DEVICES, Setup};

/// One number below `bound`, of the schedule's own.
pub fn pick(bound: usize) -> usize {
    thread_rng().gen_range(0..bound)
}

/// A machine of any kind.
pub fn any_machine(cpus: usize) -> Setup {
    Setup {
        cpus,
        seed: 1 + pick(1 << 20) as u64,
        features: if pick(4) == 0 { Features::MTE | Features::TLB_RANGE } else { Features::all() },
        adversary: [Adversary::Quiet, Adversary::Full][pick(2)],
        // Three levels of tables, or four.
        va_bits: [32, 32, 32, 48][pick(4)],
        orders: Some([FolioOrders::SINGLE, FolioOrders::group::<K4>()][pick(2)]),
        device: DEVICES[pick(DEVICES.len())],
        ..Setup::default()
    }
}

/// How far a call has come that changes what a page may hold.
#[derive(Copy, Clone, Default, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub enum Phase {
    #[default]
    Ahead,
    Begun,
    Over,
}

/// A word. What is stored to it grows.
#[derive(Copy, Clone, Default, Debug)]
pub struct Word {
    /// The last that was stored for certain.
    pub low: u64,
    /// The last that may have been.
    pub high: u64,
    /// It was given up since, or meanwhile.
    pub may_go: bool,
}

impl Word {
    pub fn admits(self, seen: u64) -> bool {
        (self.low..=self.high).contains(&seen) || seen == 0 && self.may_go
    }
}
