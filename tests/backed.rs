//! Pages that keep their slots when they come in: they leave again without a request, and never another than they are.

mod support;

use std::sync::Arc;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::{Adversary, TestDevice};
use ebbtide::reclaim::Advice;
use ebbtide::space::Protection;
use ebbtide::swap::DeviceFlags;

use support::{Program, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const LATE: DeviceFlags = DeviceFlags::STABLE_WRITES;
const CHECKED: DeviceFlags = LATE.union(DeviceFlags::CHECKED);

/// A space with a region of some pages, each of which knows its number and has tags of its own.
struct Scene<'a, G: Granule> {
    rig: &'a Rig<G>,
    space: Space<Stage<G>>,
    pages: u64,
}

impl<'a, G: Granule> Scene<'a, G> {
    fn new(rig: &'a Rig<G>, pages: u64) -> Self {
        let scene = Self { rig, space: rig.space(), pages };
        rig.map(&scene.space, BASE, pages, RWT);
        for page in 0..pages {
            // Too many runs for a word in each third page.
            for granule in 0..if page % 3 == 0 { 24 } else { 1 } {
                scene.program().stg(Self::at(page) + 512 + 32 * granule, Self::tag(page)).unwrap();
            }
            scene.program().store(Self::at(page) + 8, page + 1).unwrap();
        }
        scene
    }

    fn at(page: u64) -> u64 {
        BASE + (page << G::SHIFT)
    }

    fn tag(page: u64) -> u8 {
        (page % 15) as u8 + 1
    }

    fn program(&self) -> Program<'_, G> {
        self.rig.program(&self.space)
    }

    fn advise(&self, first: u64, pages: u64, advice: Advice) {
        self.space.advise(&self.rig.mm, VirtAddr::new(Self::at(first)), pages << G::SHIFT, advice).unwrap();
    }

    fn out(&self) {
        self.advise(0, self.pages, Advice::PageOut);
    }

    fn check(&self, page: u64) {
        let program = self.program();
        assert_eq!(program.load(Self::at(page) + 8), Ok(page + 1), "page {page}");
        assert_eq!(program.ldg(Self::at(page) + 512), Ok(Self::tag(page)), "page {page}");
        assert_eq!(program.load(tagged(Self::at(page) + 512, Self::tag(page))), Ok(0), "page {page}");
        assert_eq!(program.ldg(Self::at(page) + 528), Ok(0), "page {page}");
    }

    fn check_all(&self) {
        (0..self.pages).for_each(|page| self.check(page));
    }

    fn writes(&self) -> u64 {
        self.rig.device.operations().1
    }

    fn finish(self) {
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

fn setup<G: Granule>(device: DeviceFlags) -> Setup {
    let pages = G::GROUP_PAGES as u64;
    let (frames, slots) = (16 * pages + 256, 9 * pages as u32);
    Setup { frames, slots, tag_rooms: slots, adversary: Adversary::Full, device, ..Setup::default() }
}

fn only_read<G: Granule>(device: DeviceFlags) {
    let rig = Rig::<G>::new(setup::<G>(device));
    let scene = Scene::new(&rig, 4 * G::GROUP_PAGES as u64);
    scene.out();
    let (written, out) = (scene.writes(), rig.count("swap_out"));
    for round in 1..4 {
        scene.check_all();
        scene.out();
        assert_eq!((scene.writes(), rig.count("swap_out")), (written, out), "written again in round {round}");
        assert_eq!(rig.count("swap_out_clean"), round * scene.pages);
    }
    assert!(rig.count("swap_in_folios") > 0);
    scene.check_all();
    scene.finish();
}

#[test]
fn what_was_only_read_leaves_without_a_request() {
    for device in [LATE, CHECKED] {
        only_read::<K4>(device);
        only_read::<K16>(device);
        only_read::<K64>(device);
    }
}

/// A copy in memory costs no more than a look at it.
#[test]
fn a_device_as_fast_as_memory_backs_nothing() {
    let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
    let scene = Scene::new(&rig, 64);
    scene.out();
    scene.check_all();
    assert_eq!(rig.mm.totals().slots_free, rig.mm.totals().slots);
    scene.finish();
}

/// A store, or the store of a tag alone, and the page leaves as it is then.
#[test]
fn what_was_stored_to_is_written_again() {
    for device in [LATE, CHECKED] {
        let rig = Rig::<K4>::new(setup::<K4>(device));
        let scene = Scene::new(&rig, 64);
        for round in 1..6 {
            scene.out();
            scene.check_all();
            let out = rig.count("swap_out");
            for page in (round..64).step_by(5) {
                scene.program().store(scene_at(page) + 16, page ^ round).unwrap();
            }
            for page in (round..64).step_by(7) {
                scene.program().stg(scene_at(page) + 256, round as u8).unwrap();
            }
            scene.out();
            assert!(rig.count("swap_out") > out);
            for page in (round..64).step_by(5) {
                assert_eq!(scene.program().load(scene_at(page) + 16), Ok(page ^ round));
            }
            for page in (round..64).step_by(7) {
                assert_eq!(scene.program().ldg(scene_at(page) + 256), Ok(round as u8));
            }
            scene.check_all();
        }
        assert!(rig.count("swap_out_clean") > 0);
        scene.finish();
    }
}

fn scene_at(page: u64) -> u64 {
    Scene::<K4>::at(page)
}

/// A page that comes in for a store gives its slot back at once.
#[test]
fn a_store_wants_no_slot() {
    let rig = Rig::<K4>::new(setup::<K4>(LATE));
    let scene = Scene::new(&rig, 1);
    scene.out();
    scene.program().store(BASE + 16, 5).unwrap();
    assert_eq!(rig.mm.totals().slots_free, rig.mm.totals().slots);
    scene.check(0);
    scene.finish();
}

/// What is given up while its slot has it does not come back from there, and its neighbours do not go with it.
#[test]
fn what_is_given_up_is_not_in_its_slot() {
    for given_up in [0..64, 16..32, 20..23, 0..1] {
        let rig = Rig::<K4>::new(setup::<K4>(LATE));
        let scene = Scene::new(&rig, 64);
        scene.out();
        scene.check_all();
        scene.advise(given_up.start, given_up.end - given_up.start, Advice::Free);
        scene.out();
        for page in 0..64 {
            if given_up.contains(&page) {
                assert_eq!(scene.program().load(scene_at(page) + 8), Ok(0), "page {page}");
                assert_eq!(scene.program().ldg(scene_at(page) + 512), Ok(0), "page {page}");
            } else {
                scene.check(page);
            }
        }
        scene.finish();
    }
}

/// Parts of folios that keep their slots: unmapped, put out, protected.
#[test]
fn parts_of_a_backed_folio() {
    for (first, pages) in [(0, 16), (5, 3), (15, 2), (31, 33)] {
        let rig = Rig::<K4>::new(setup::<K4>(LATE));
        let scene = Scene::new(&rig, 64);
        scene.out();
        scene.check_all();
        scene.advise(first, pages, Advice::PageOut);
        scene.check_all();
        let part = VirtAddr::new(scene_at(first));
        scene.space.protect(&rig.mm, part, pages << 12, Protection::READ).unwrap();
        scene.out();
        scene.check_all();
        scene.space.protect(&rig.mm, part, pages << 12, RWT).unwrap();
        scene.out();
        scene.check_all();
        scene.space.unmap(&rig.mm, part, pages << 12).unwrap();
        (0..64).filter(|&page| page < first || page >= first + pages).for_each(|page| scene.check(page));
        scene.advise(0, first, Advice::PageOut);
        (0..first).for_each(|page| scene.check(page));
        scene.finish();
    }
}

/// Slots that mapped pages keep are there for those that have none.
#[test]
fn slots_are_given_up_when_they_are_short() {
    for orders in [None, Some(FolioOrders::SINGLE)] {
        let rig = Rig::<K4>::new(Setup { slots: 100, tag_rooms: 100, orders, ..setup::<K4>(LATE) });
        let scene = Scene::new(&rig, 150);
        // So many as the area backs.
        scene.advise(0, 64, Advice::PageOut);
        (0..64).for_each(|page| scene.check(page));
        let in_use = || rig.mm.totals().slots - rig.mm.totals().slots_free;
        assert!((32..=52).contains(&in_use()), "{} slots are kept", in_use());
        // More than there is room for beside those.
        scene.advise(64, 86, Advice::PageOut);
        assert_eq!((in_use(), rig.count("no_slot")), (86, 0));
        scene.check_all();
        scene.finish();
    }
}

/// An area goes away, and with it what is kept there.
#[test]
fn swapoff_takes_the_slots_of_mapped_pages() {
    for device in [LATE, CHECKED] {
        let rig = Rig::<K4>::new(Setup { slots: 0, ..setup::<K4>(device) });
        let area = rig.swap_on(Arc::new(TestDevice::new(160, device)), 160, 0).unwrap();
        let scene = Scene::new(&rig, 64);
        scene.out();
        (0..40).for_each(|page| scene.check(page));
        assert!(rig.mm.totals().slots_free < rig.mm.totals().slots - 40);
        assert!(rig.mm.swap_off(area, &[&scene.space]).is_ok());
        // Nowhere to go: all of it is dirty.
        scene.out();
        scene.check_all();
        scene.finish();
    }
}
