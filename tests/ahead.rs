//! Pages that are read in before they are asked for: with those that a program goes through in order, and no others.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::Advice;
use ebbtide::swap::DeviceFlags;

use support::{Dice, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;

/// A space with a region of some pages, each of which knows its number and has tags of its own.
struct Scene<'a, G: Granule> {
    rig: &'a Rig<G>,
    space: Space<Stage<G>>,
}

impl<'a, G: Granule> Scene<'a, G> {
    /// All of the pages are out.
    fn new(rig: &'a Rig<G>, pages: u64) -> Self {
        let scene = Self { rig, space: rig.space() };
        rig.map(&scene.space, BASE, pages, RWT);
        let program = rig.program(&scene.space);
        for page in 0..pages {
            // Too many runs for a word in each third page; each fourth repeats a word.
            for granule in 0..if page.is_multiple_of(3) { 24 } else { 1 } {
                program.stg(Self::at(page) + 512 + 32 * granule, Self::tag(page)).unwrap();
            }
            if !page.is_multiple_of(4) {
                program.store(Self::at(page) + 8, page + 1).unwrap();
            }
        }
        scene.advise(0, pages, Advice::PageOut);
        assert_eq!(rig.count("swap_out"), pages);
        scene
    }

    fn at(page: u64) -> u64 {
        BASE + (page << G::SHIFT)
    }

    fn tag(page: u64) -> u8 {
        (page % 15) as u8 + 1
    }

    fn advise(&self, first: u64, pages: u64, advice: Advice) {
        self.space.advise(&self.rig.mm, VirtAddr::new(Self::at(first)), pages << G::SHIFT, advice).unwrap();
    }

    fn check(&self, page: u64) {
        let program = self.rig.program(&self.space);
        assert_eq!(
            program.load(Self::at(page) + 8),
            Ok(if page.is_multiple_of(4) { 0 } else { page + 1 }),
            "page {page}"
        );
        assert_eq!(program.ldg(Self::at(page) + 512), Ok(Self::tag(page)), "page {page}");
        assert_eq!(program.load(tagged(Self::at(page) + 512, Self::tag(page))), Ok(0), "page {page}");
        assert_eq!(program.ldg(Self::at(page) + 528), Ok(0), "page {page}");
    }

    /// Goes through `pages`, and says after how many of them how many had come in: each time that changed.
    fn steps(&self, pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut steps = Vec::new();
        for page in pages {
            let before = self.rig.count("swap_in");
            self.check(page);
            steps.extend(Some(self.rig.count("swap_in") - before).filter(|&came| came > 0));
        }
        steps
    }

    fn finish(self) {
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

fn setup<G: Granule>(device: DeviceFlags) -> Setup {
    let frames = 512 + 4 * G::GROUP_PAGES as u64;
    let (slots, tag_rooms, orders) = (512, 256, Some(FolioOrders::SINGLE));
    Setup { frames, slots, tag_rooms, orders, adversary: Adversary::Full, device, ..Setup::default() }
}

const DEVICES: [DeviceFlags; 3] =
    [DeviceFlags::SYNCHRONOUS, DeviceFlags::STABLE_WRITES, DeviceFlags::STABLE_WRITES.union(DeviceFlags::CHECKED)];

fn in_order<G: Granule>() {
    for device in DEVICES {
        let rig = Rig::<G>::new(setup::<G>(device));
        let scene = Scene::new(&rig, 43);
        let (reads, _) = rig.device.operations();
        // Never more than were used before, and never past the region.
        assert_eq!(scene.steps(0..43), [1, 1, 2, 4, 8, 8, 8, 8, 2, 1]);
        assert_eq!(rig.count("swap_in_ahead"), 33);
        assert!(rig.device.operations().0 > reads);
        assert_eq!(rig.count("folds"), 0, "single pages are no group");
        scene.advise(0, 43, Advice::PageOut);
        // Elsewhere than where it went on last: not in order.
        assert_eq!(scene.steps([7, 3, 12, 20]), [1; 4]);
        scene.finish();
    }
}

#[test]
fn a_program_that_goes_in_order_finds_its_pages() {
    in_order::<K4>();
    in_order::<K16>();
    in_order::<K64>();
}

/// The device has one request for the pages that come together, where none of them repeats a word.
#[test]
fn what_comes_together_is_one_request() {
    let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
    let space = rig.space();
    rig.map(&space, BASE, 32, RWT);
    let program = rig.program(&space);
    let at = Scene::<K4>::at;
    (0..32).for_each(|page| program.store(at(page) + 8, page + 1).unwrap());
    space.advise(&rig.mm, VirtAddr::new(BASE), 32 << 12, Advice::PageOut).unwrap();
    let (reads, _) = rig.device.operations();
    (0..32).for_each(|page| assert_eq!(program.load(at(page) + 8), Ok(page + 1)));
    assert_eq!(rig.device.operations().0 - reads, 7, "1, 1, 2, 4, 8, 8 and 8 pages");
    rig.finish(space);
}

#[test]
fn a_program_that_jumps_gets_what_it_touches() {
    let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
    let scene = Scene::new(&rig, 128);
    let mut dice = Dice::new(7);
    for _ in 0..100 {
        let page = dice.below(64) * 2;
        scene.check(page);
    }
    assert_eq!(rig.count("swap_in_ahead"), 0);
    scene.finish();
}

/// What does not follow ends the run: a page that is there, one that never was, one whose slot is elsewhere, one that
/// another space has as well.
#[test]
fn a_run_ends_where_the_slots_do() {
    let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
    let scene = Scene::new(&rig, 64);
    scene.check(20);
    assert_eq!(scene.steps((0..20).chain(21..25)), [1, 1, 2, 4, 8, 4, 4]);
    // 40 is to leave for another slot.
    scene.check(40);
    scene.check(50);
    scene.advise(50, 1, Advice::PageOut);
    scene.advise(40, 1, Advice::PageOut);
    assert_eq!(scene.steps(25..40).iter().sum::<u64>(), 15);
    let child = scene.space.fork(&rig.mm).unwrap();
    assert_eq!(scene.steps(52..60), [1; 8], "each may have come for the other");
    rig.destroy(child);
    scene.finish();
}

/// Nothing leaves so that something comes in ahead.
#[test]
fn short_memory_reads_nothing_ahead() {
    let rig = Rig::<K4>::new(Setup { frames: 256, ..setup::<K4>(DeviceFlags::SYNCHRONOUS) });
    let scene = Scene::new(&rig, 64);
    let other = rig.space();
    rig.activate(0, &other);
    rig.map(&other, BASE, 256, RWT);
    let filler = rig.program(&other);
    (0..256).take_while(|_| rig.count("background_wakes") == 0).for_each(|page| {
        filler.store(Scene::<K4>::at(page), page).unwrap();
    });
    let out = rig.count("swap_out");
    rig.activate(0, &scene.space);
    scene.steps(0..8);
    assert_eq!(rig.count("swap_in_ahead"), 0);
    assert_eq!(rig.count("swap_out"), out);
    rig.destroy(other);
    scene.finish();
}

/// A failure of the device, at each operation: each page is as it was, and who asked for another was not told.
#[test]
fn a_page_that_cannot_be_read_comes_alone() {
    let mut failures = 0;
    for k in 0.. {
        let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
        let scene = Scene::new(&rig, 16);
        rig.device.fail_after(k);
        let program = rig.program(&scene.space);
        let told = (0..16).filter(|&page| program.load(Scene::<K4>::at(page)).is_err()).count() as u64;
        assert_eq!(told, rig.count("faults_unreadable"));
        (0..16).for_each(|page| scene.check(page));
        let failed = rig.count("read_errors");
        scene.finish();
        if failed == 0 {
            break;
        }
        failures += 1;
    }
    assert!(failures > 4);
}
