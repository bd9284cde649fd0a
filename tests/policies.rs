//! Every policy of replacement on the whole library: what holds whichever is chosen, and that reclaim follows its
//! choice.
//!
//! How good the policies are is measured in `reclaim::workloads`.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::Features;
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::{Advice, Replacement};
use ebbtide::space::Access;

use support::op::Op;
use support::world::World;
use support::{Dice, RW, Rig, Setup, Stage};

const BASE: u64 = 0x4000_0000;

const fn at(page: u64) -> u64 {
    BASE + (page << 12)
}

/// A machine of some 500 pages for programs, with room for many more on its device.
fn rig(replacement: Replacement) -> Rig<K4> {
    let orders = Some(FolioOrders::SINGLE);
    Rig::new(Setup { frames: 512, slots: 4096, tag_rooms: 0, orders, replacement, ..Setup::default() })
}

/// Every second access to one of 250 pages, the others in order over `scan` more. Returns the pages that came back.
fn scan_beside_hot(rig: &Rig<K4>, space: &Space<Stage<K4>>, scan: u64) -> u64 {
    let mut dice = Dice::new(7);
    let program = rig.program(space);
    for time in 0..40_000 {
        let page = if time % 2 == 0 { dice.below(250) } else { 250 + time / 2 % scan };
        let seen = program.load(at(page)).unwrap();
        assert!(seen == 0 || seen == page + 1, "page {page} has {seen}");
        if seen == 0 {
            program.store(at(page), page + 1).unwrap();
        }
    }
    rig.count("swap_in")
}

/// What is used beside a scan stays, with the policy that is to see to it; without hardware access flags as well.
#[test]
fn a_scan_drives_out_the_clocks_pages_only() {
    for features in [Features::all(), Features::empty()] {
        let [clock, generations, adaptive] = Replacement::ALL.map(|replacement| {
            let orders = Some(FolioOrders::SINGLE);
            let setup = Setup { frames: 512, slots: 4096, orders, features, replacement, ..Setup::default() };
            let rig = Rig::new(setup);
            let space = rig.space();
            rig.map(&space, BASE, 1000, RW);
            let refaults = scan_beside_hot(&rig, &space, 750);
            rig.finish(space);
            refaults
        });
        println!("refaults: clock {clock}, generations {generations}, adaptive {adaptive}");
        assert!(adaptive * 100 < clock * 85, "adaptive {adaptive}, clock {clock}, {features:?}");
        assert!(generations <= clock, "generations {generations}, clock {clock}, {features:?}");
    }
}

/// What a program calls cold leaves before anything else, however much it was used before.
#[test]
fn what_is_called_cold_leaves_first() {
    for replacement in Replacement::ALL {
        let rig = rig(replacement);
        let space = rig.space();
        rig.map(&space, BASE, 4000, RW);
        scan_beside_hot(&rig, &space, 750);
        let program = rig.program(&space);
        let touch = |pages: std::ops::Range<u64>| {
            let before = rig.count("swap_in");
            pages.for_each(|page| assert!(program.load(at(page)).is_ok()));
            rig.count("swap_in") - before
        };
        let _ = touch(0..200);
        space.advise(&rig.mm, VirtAddr::new(BASE), 100 << 12, Advice::Cold).unwrap();
        let left = rig.count("swap_out");
        // What is new takes some of their frames, but not all.
        let _ = touch(3000..3080);
        let left = rig.count("swap_out") - left;
        assert!((32..=100).contains(&left), "{replacement:?}: {left} pages left");
        assert_eq!(touch(100..200), 0, "{replacement:?}: others left");
        assert!(touch(0..100) >= left, "{replacement:?}: they stayed");
        rig.finish(space);
    }
}

/// Where little can leave, and it stands anywhere, it is found: of all queues of a policy.
#[test]
fn what_is_pinned_hides_nothing() {
    for replacement in Replacement::ALL {
        for spared in 0..8 {
            let rig = rig(replacement);
            let space = rig.space();
            rig.map(&space, BASE, 2000, RW);
            scan_beside_hot(&rig, &space, 750);
            // Nearly all of memory is pinned, wherever it stood.
            let pages = (0..1000).filter(|page| page % 8 != spared).take(430);
            let pins: Vec<_> =
                pages.map(|page| space.pin(&rig.mm, VirtAddr::new(at(page)), Access::Read).unwrap()).collect();
            let free = rig.mm.totals().frames_free;
            let program = rig.program(&space);
            let mut fresh = 0;
            while fresh < 1000 && program.store(at(1000 + fresh), fresh).is_ok() {
                fresh += 1;
            }
            assert_eq!(fresh, 1000, "{replacement:?}, {free} frames were free");
            (0..fresh).for_each(|page| assert_eq!(program.load(at(1000 + page)), Ok(page)));
            pins.into_iter().for_each(|pin| rig.mm.unpin(pin));
            rig.finish(space);
        }
    }
}

/// Anything in any order, under each policy: each byte and tag is as a plain model has it, and nothing leaks.
#[test]
fn long_lives_under_each_policy() {
    for (seed, replacement) in (1..).zip(Replacement::ALL) {
        for (frames, orders) in [(112, None), (400, None), (112, Some(FolioOrders::SINGLE))] {
            let setup = Setup {
                frames,
                slots: 600,
                tag_rooms: 600,
                cpus: 3,
                adversary: Adversary::Full,
                seed,
                orders,
                replacement,
                ..Setup::default()
            };
            let mut world = World::<K4>::new(setup, 2, true);
            let mut dice = Dice::new(seed);
            (0..1500).for_each(|_| world.step(Op::random(&mut dice)));
            world.finish();
        }
    }
}

/// Every page is in use all the time, and reclaim still finds some, under each policy.
#[test]
fn every_page_is_in_use() {
    for replacement in Replacement::ALL {
        let adversary = Adversary::Full;
        let rig = Rig::<K4>::new(Setup { cpus: 2, adversary, replacement, ..Setup::default() });
        let space = rig.space();
        rig.map(&space, BASE, 200, RW);
        // The program on CPU 1 touches what it can between any two steps.
        rig.emu().set_background(|emu, dice| {
            for touch in 0..8 {
                let _ = emu.access(1, at((dice >> (touch * 7)) % 200), ebbtide::machine::emu::Access::Load);
            }
        });
        let program = rig.program(&space);
        for page in (0..200).chain(0..200).chain(0..200) {
            program.store(at(page), page).unwrap();
        }
        (0..200).for_each(|page| assert_eq!(program.load(at(page)), Ok(page), "{replacement:?}"));
        rig.finish(space);
    }
}
