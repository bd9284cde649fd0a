//! Devices of every kind: those that take their time, in any order; those that damage pages; and pages that need none.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::{Adversary, Death};
use ebbtide::reclaim::Advice;
use ebbtide::space::{FaultError, Protection};
use ebbtide::swap::DeviceFlags;

use support::{Dice, Ended, Program, RW, RWT, Rig, Setup, Stage, refusal, tagged};

const BASE: u64 = 0x4000_0000;

const LATE: DeviceFlags = DeviceFlags::STABLE_WRITES;
const CHECKED: DeviceFlags = DeviceFlags::SYNCHRONOUS.union(DeviceFlags::CHECKED);
const LATE_AND_CHECKED: DeviceFlags = LATE.union(DeviceFlags::CHECKED);
const ALL: [DeviceFlags; 4] = [DeviceFlags::SYNCHRONOUS, LATE, CHECKED, LATE_AND_CHECKED];

/// A space with a region of some pages of 2^`shift` bytes.
struct Scene<'a, G: Granule> {
    rig: &'a Rig<G>,
    space: Space<Stage<G>>,
    pages: u64,
}

impl<'a, G: Granule> Scene<'a, G> {
    fn new(rig: &'a Rig<G>, pages: u64, protection: Protection) -> Self {
        let scene = Self { rig, space: rig.space(), pages };
        rig.map(&scene.space, BASE, pages, protection);
        scene
    }

    fn at(page: u64) -> u64 {
        BASE + (page << G::SHIFT)
    }

    fn program(&self) -> Program<'_, G> {
        self.rig.program(&self.space)
    }

    /// Stores `word` all over a page.
    fn fill(&self, page: u64, word: u64) {
        (0..G::SIZE as u64 / 8).for_each(|index| self.program().store(Self::at(page) + 8 * index, word).unwrap());
    }

    /// Whether a page is `word` all over.
    fn is(&self, page: u64, word: u64) -> bool {
        (0..G::SIZE as u64 / 8).all(|index| self.program().load(Self::at(page) + 8 * index) == Ok(word))
    }

    fn out(&self) {
        self.space.advise(&self.rig.mm, VirtAddr::new(BASE), self.pages << G::SHIFT, Advice::PageOut).unwrap();
    }

    fn finish(self) {
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

fn setup<G: Granule>(device: DeviceFlags) -> Setup {
    let pages = G::GROUP_PAGES as u64;
    let (frames, slots) = (8 * pages + 200, 8 * pages as u32);
    Setup { frames, slots, tag_rooms: slots, adversary: Adversary::Full, device, ..Setup::default() }
}

// ---- Pages that repeat one word. ----

/// Zero or not, tagged or not: no request, and all comes back.
#[test]
fn a_page_of_one_word_needs_no_device() {
    for device in ALL {
        let rig = Rig::<K4>::new(setup::<K4>(device));
        let scene = Scene::new(&rig, 4, RWT);
        let program = scene.program();
        let words = [0, 0, u64::MAX, 0x0123_4567_89ab_cdef];
        let tag = |granule: u64| (granule * 7 % 15) as u8 + 1;
        for round in 1..4 {
            // Tags first, while all stores still go through tag 0.
            for (page, &word) in (0..).zip(&words) {
                (0..256).for_each(|granule| program.stg(scene_at(page) + 16 * granule, 0).unwrap());
                scene.fill(page, word);
            }
            (0..256).for_each(|granule| program.stg(scene_at(1) + 16 * granule, tag(granule)).unwrap());
            program.stg(scene_at(3) + 1024, 9).unwrap();
            scene.out();
            assert_eq!((rig.count("swap_out"), rig.count("swap_out_same")), (4 * round, 4 * round));
            // Tags differ from zero on a page of zeros.
            for granule in 0..256 {
                let at = scene_at(1) + 16 * granule;
                assert_eq!((program.ldg(at), program.load(tagged(at, tag(granule)))), (Ok(tag(granule)), Ok(0)));
            }
            assert!(scene.is(0, words[0]) && scene.is(2, words[2]));
            assert_eq!((program.ldg(scene_at(3) + 1024), program.ldg(scene_at(3) + 1040)), (Ok(9), Ok(0)));
            assert_eq!(program.load(tagged(scene_at(3) + 1024, 9)), Ok(words[3]));
            assert_eq!((rig.count("swap_in"), rig.count("swap_in_same")), (4 * round, 4 * round));
        }
        assert_eq!(rig.device.operations(), (0, 0));
        scene.finish();
    }
}

fn scene_at(page: u64) -> u64 {
    Scene::<K4>::at(page)
}

/// One other word, wherever it is, makes a page as good as any.
#[test]
fn one_other_word_is_not_lost() {
    let rig = Rig::<K4>::new(Setup { adversary: Adversary::Quiet, ..setup::<K4>(DeviceFlags::SYNCHRONOUS) });
    let scene = Scene::new(&rig, 1, RW);
    for word in [0, 77] {
        scene.fill(0, word);
        for index in (0..512).step_by(13).chain([1, 511]) {
            scene.program().store(BASE + 8 * index, !word).unwrap();
            scene.out();
            assert_eq!(scene.program().load(BASE + 8 * index), Ok(!word));
            scene.program().store(BASE + 8 * index, word).unwrap();
            assert!(scene.is(0, word));
        }
    }
    assert_eq!(rig.count("swap_out_same"), 0);
    scene.finish();
}

/// A slot that held one word holds a page after, and the other way round.
#[test]
fn a_slot_forgets_the_word() {
    for device in ALL {
        let rig = Rig::<K4>::new(Setup { slots: 1, tag_rooms: 1, ..setup::<K4>(device) });
        let scene = Scene::new(&rig, 1, RWT);
        for round in 0..6 {
            scene.fill(0, round);
            if round % 2 == 1 {
                scene.program().store(BASE + 800, 99).unwrap();
            }
            scene.out();
            let expected = if round % 2 == 1 { 99 } else { round };
            assert_eq!(scene.program().load(BASE + 800), Ok(expected), "round {round}");
            assert_eq!(scene.program().load(BASE + 808), Ok(round), "round {round}");
        }
        assert_eq!((rig.count("swap_out"), rig.count("swap_out_same")), (6, 3));
        scene.finish();
    }
}

/// A large folio with some such pages goes and comes as one; the device is asked for what lies between them.
fn mixed<G: Granule>(device: DeviceFlags) {
    let rig = Rig::<G>::new(setup::<G>(device));
    let group = G::GROUP_PAGES as u64;
    let scene = Scene::new(&rig, 2 * group, RWT);
    let program = scene.program();
    let is_same = |page: u64| page.is_multiple_of(5) || page % 7 == 3;
    for page in 0..2 * group {
        let at = Scene::<G>::at(page);
        if is_same(page) {
            program.store(at, 0).unwrap();
        } else {
            program.store(at + 8, page + 1).unwrap();
        }
        program.stg(at + 256, (page % 15) as u8 + 1).unwrap();
    }
    for _ in 0..3 {
        scene.out();
        for page in 0..2 * group {
            let at = Scene::<G>::at(page);
            assert_eq!(program.load(at + 8), Ok(if is_same(page) { 0 } else { page + 1 }), "page {page}");
            assert_eq!(program.ldg(at + 256), Ok((page % 15) as u8 + 1), "page {page}");
        }
        // What is not stored to would leave as it came.
        (0..2 * group).for_each(|page| program.store(Scene::<G>::at(page), 0).unwrap());
    }
    let same = 3 * (0..2 * group).filter(|&page| is_same(page)).count() as u64;
    assert_eq!((rig.count("swap_out_same"), rig.count("swap_in_same")), (same, same));
    assert!(rig.count("swap_in_folios") > 0);
    scene.finish();
}

#[test]
fn large_folios_with_pages_of_one_word() {
    for device in ALL {
        mixed::<K4>(device);
        mixed::<K16>(device);
    }
    mixed::<K64>(LATE_AND_CHECKED);
}

// ---- Devices that take their time. ----

/// What a batch leaves is under way together, and lands in any order.
#[test]
fn a_late_device_loses_nothing() {
    for device in [LATE, LATE_AND_CHECKED] {
        let rig = Rig::<K4>::new(setup::<K4>(device));
        let scene = Scene::new(&rig, 48, RWT);
        let program = scene.program();
        for round in 1..5 {
            (0..48).for_each(|page| program.store(scene_at(page) + 8 * round, page ^ round << 8).unwrap());
            (0..48).for_each(|page| program.stg(scene_at(page) + 16 * round + 512, (page % 16) as u8).unwrap());
            scene.out();
            assert_eq!(rig.count("swap_out"), 48 * round);
            for (page, back) in (0..48).flat_map(|page| (1..=round).map(move |back| (page, back))) {
                assert_eq!(program.load(scene_at(page) + 8 * back), Ok(page ^ back << 8));
                assert_eq!(program.ldg(scene_at(page) + 16 * back + 512), Ok((page % 16) as u8));
            }
        }
        scene.finish();
    }
}

/// At random, at each granule, on each kind of device, with failures now and then: a page is as its program left it, or
/// the program is told.
#[test]
fn random_failures_of_every_device() {
    fn suffer<G: Granule>(seed: u64, turns: usize, device: DeviceFlags) {
        let setup = Setup { frames: 96, slots: 300, tag_rooms: 300, seed, ..setup::<G>(device) };
        let rig = Rig::<G>::new(setup);
        let scene = Scene::new(&rig, 150, RWT);
        let program = scene.program();
        let mut dice = Dice::new(seed);
        let mut model = [(0u64, 0u8); 150];
        let bear = |result: Result<u64, Ended>| match result {
            Ok(value) => Some(value),
            Err(Death::Refused(_, FaultError::Unreadable { .. })) => None,
            Err(error) => panic!("{error:?}"),
        };
        for turn in 0..turns {
            if dice.below(4) == 0 {
                rig.device.fail_after(dice.below(6));
            }
            let page = dice.below(150);
            let (word, tag) = model[page as usize];
            let place = Scene::<G>::at(page);
            match dice.below(4) {
                0 => bear(program.load(tagged(place, tag))).into_iter().for_each(|seen| assert_eq!(seen, word)),
                1 => {
                    let stored = bear(program.store(tagged(place, tag), turn as u64).map(|()| 0));
                    stored.into_iter().for_each(|_| model[page as usize].0 = turn as u64);
                }
                2 => {
                    let stored = bear(program.stg(place, turn as u8 & 0xf).map(|()| 0));
                    stored.into_iter().for_each(|_| model[page as usize].1 = turn as u8 & 0xf);
                }
                _ => {
                    let pages = 4.min(150 - page) << G::SHIFT;
                    scene.space.advise(&rig.mm, VirtAddr::new(place), pages, Advice::PageOut).unwrap();
                }
            }
        }
        assert!(rig.count("write_errors") > 5 && rig.count("faults_unreadable") > 0);
        assert_eq!(rig.count("damaged"), 0);
        scene.finish();
    }
    for device in ALL {
        (1..3).for_each(|seed| suffer::<K4>(seed, 1500, device));
        suffer::<K64>(4, 600, device);
    }
}

// ---- Devices that damage pages. ----

/// Whichever bit turns round, the program that reads the page is told, with the slot; so is who comes after it, without
/// another look at the device; all else lives, and the slot serves again.
#[test]
fn a_damaged_page_reaches_nobody() {
    for device in [CHECKED, LATE_AND_CHECKED] {
        for bit in (0..8 * 4096).step_by(1009) {
            let rig = Rig::<K4>::new(Setup { slots: 6, adversary: Adversary::Quiet, ..setup::<K4>(device) });
            let scene = Scene::new(&rig, 6, RWT);
            let program = scene.program();
            for page in 0..6 {
                program.stg(scene_at(page) + 512, page as u8 + 3).unwrap();
                program.store(scene_at(page) + 8, page + 100).unwrap();
            }
            scene.out();
            let slot =
                |page: u64| (0..6).find(|&slot| rig.device.page(slot).is_some_and(|words| words[1] == page + 100));
            let slot = slot(2).expect("page 2 is out");
            rig.device.damage(slot, bit);
            for _ in 0..3 {
                let damaged = FaultError::Damaged { area: 0, slot: slot.into() };
                assert_eq!(refusal(program.load(scene_at(2))), damaged, "bit {bit}");
                assert_eq!(refusal(program.stg(scene_at(2), 1)), damaged, "bit {bit}");
            }
            assert_eq!((rig.count("damaged"), rig.device.operations().0), (1, 1));
            for page in [0, 1, 3, 4, 5] {
                assert_eq!(
                    (program.load(scene_at(page) + 8), program.ldg(scene_at(page) + 512)),
                    (Ok(page + 100), Ok(page as u8 + 3))
                );
            }
            scene.space.advise(&rig.mm, VirtAddr::new(scene_at(2)), 4096, Advice::DontNeed).unwrap();
            assert_eq!((program.load(scene_at(2) + 8), program.ldg(scene_at(2) + 512)), (Ok(0), Ok(0)));
            (0..6).for_each(|page| program.store(scene_at(page) + 16, page + 7).unwrap());
            scene.out();
            (0..6).for_each(|page| assert_eq!(program.load(scene_at(page) + 16), Ok(page + 7)));
            scene.finish();
        }
    }
}

/// Of a large folio one page is lost, and no other.
#[test]
fn a_damaged_page_of_a_large_folio() {
    for (device, victim) in
        [CHECKED, LATE_AND_CHECKED].into_iter().flat_map(|device| (0..16).map(move |at| (device, at)))
    {
        let rig = Rig::<K4>::new(Setup { adversary: Adversary::Quiet, ..setup::<K4>(device) });
        let scene = Scene::new(&rig, 48, RWT);
        let program = scene.program();
        for page in 0..48 {
            program.stg(scene_at(page) + 512, (page % 16) as u8).unwrap();
            program.store(scene_at(page) + 8, page + 100).unwrap();
        }
        scene.out();
        assert_eq!(rig.count("swap_out_folios"), 3);
        let slots = rig.device.slots();
        let slot =
            (0..slots).find(|&slot| rig.device.page(slot).is_some_and(|words| words[1] == victim + 116)).unwrap();
        rig.device.damage(slot, 999);
        for page in 0..48 {
            if page == 16 + victim {
                assert_eq!(refusal(program.load(scene_at(page))), FaultError::Damaged { area: 0, slot: slot.into() });
            } else {
                assert_eq!(program.load(scene_at(page) + 8), Ok(page + 100), "page {page}");
                assert_eq!(program.ldg(scene_at(page) + 512), Ok((page % 16) as u8), "page {page}");
            }
        }
        assert_eq!(rig.count("damaged"), 1);
        scene.finish();
    }
}

/// A device that gives a slot's former page, or another slot's, is found out.
#[test]
fn an_older_page_is_not_taken_for_the_newer() {
    let rig = Rig::<K4>::new(Setup { adversary: Adversary::Quiet, slots: 1, ..setup::<K4>(CHECKED) });
    let scene = Scene::new(&rig, 1, RW);
    let program = scene.program();
    program.store(BASE, 1).unwrap();
    scene.out();
    program.store(BASE, 3).unwrap();
    scene.out();
    // 3 becomes the 1 of before.
    rig.device.damage(0, 1);
    assert_eq!(refusal(program.load(BASE)), FaultError::Damaged { area: 0, slot: 0 });
    scene.finish();
}
