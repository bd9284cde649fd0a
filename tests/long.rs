//! A million operations against the adversary: lives as in `tests/life.rs`, with four CPUs, of which in half of the
//! lives one never waits, on swap devices of each kind, in single pages and in large folios. The two tests take some
//! two minutes of one core.

mod support;

use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::Features;
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::Replacement;
use ebbtide::swap::DeviceFlags;

use support::op::{Op, What};
use support::world::World;
use support::{Dice, Setup};

/// Steps of one life: after them its spaces end, and everything must be back. Large folios come while memory is whole.
const LIFE: u64 = 1000;

/// Lives lives of three programs, `steps` steps in all, the first of them under `seed`. Returns the large folios made.
fn live<G: Granule>(seed: u64, steps: u64, setup: Setup) -> u64 {
    let mut large = 0;
    for life in 0..steps.div_ceil(LIFE) {
        let seed = seed + life;
        // From less memory than is wanted to more.
        let frames = setup.frames * (1 + seed % 3);
        let device = DEVICES[seed as usize % DEVICES.len()];
        let mut world = World::<G>::new(Setup { seed, frames, device, ..setup }, 3, (seed / 3).is_multiple_of(2));
        let mut dice = Dice::new(seed);
        for _ in 0..LIFE.min(steps - life * LIFE) {
            let op = Op::random(&mut dice);
            let what = if dice.below(24) == 0 { What::MapGroups } else { op.what };
            world.step(Op { what, ..op });
        }
        large += world.rig.count("large_folios");
        world.finish();
    }
    large
}

/// At once, late, and checked or not.
const DEVICES: [DeviceFlags; 4] = [
    DeviceFlags::SYNCHRONOUS,
    DeviceFlags::STABLE_WRITES,
    DeviceFlags::SYNCHRONOUS.union(DeviceFlags::CHECKED),
    DeviceFlags::STABLE_WRITES.union(DeviceFlags::CHECKED),
];

const SINGLE: Setup = Setup {
    frames: 112,
    slots: 1200,
    tag_rooms: 1200,
    cpus: 4,
    seed: 0,
    features: Features::all(),
    adversary: Adversary::Full,
    asid_bits: 16,
    va_bits: 48,
    orders: Some(FolioOrders::SINGLE),
    device: DeviceFlags::SYNCHRONOUS,
    replacement: Replacement::Adaptive,
};
const LARGE: Setup = Setup { orders: None, ..SINGLE };

#[test]
fn six_hundred_thousand_operations_in_single_pages() {
    assert_eq!(live::<K4>(1000, 600_000, SINGLE), 0);
}

#[test]
fn four_hundred_thousand_operations_in_large_folios() {
    let large = live::<K4>(2000, 380_000, Setup { frames: 280, ..LARGE })
        + live::<K16>(3000, 10_000, Setup { frames: 600, ..LARGE })
        + live::<K64>(4000, 10_000, Setup { frames: 240, ..LARGE });
    assert!(large > 10_000, "{large} large folios");
}
