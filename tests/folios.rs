//! Large folios on their way out and back: whole where that can be, in single pages where it cannot, and never with one
//! page's data or tags in another's place.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::{FolioOrders, MAX_ORDER};
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::Advice;
use ebbtide::space::Protection;

use support::{Program, RW, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;

/// A space with a region of some groups, each of which one folio has.
struct Scene<'a, G: Granule> {
    rig: &'a Rig<G>,
    space: Space<Stage<G>>,
}

impl<'a, G: Granule> Scene<'a, G> {
    const GROUP: u64 = G::GROUP_PAGES as u64;

    fn new(rig: &'a Rig<G>, groups: u64) -> Self {
        let scene = Self { rig, space: rig.space() };
        rig.map(&scene.space, BASE, groups * Self::GROUP, RWT);
        for page in 0..groups * Self::GROUP {
            Self::write(&scene.program(), page);
        }
        assert_eq!(rig.count("large_folios"), groups);
        scene
    }

    fn program(&self) -> Program<'_, G> {
        self.rig.program(&self.space)
    }

    fn at(page: u64) -> u64 {
        BASE + (page << G::SHIFT)
    }

    /// The tag of a page's third granule, and of more of them in every third page: too many runs for a word.
    fn tag(page: u64) -> u8 {
        (page % 15) as u8 + 1
    }

    fn write(program: &Program<'_, G>, page: u64) {
        let granules = if page % 3 == 2 { 24 } else { 1 };
        for granule in 0..granules {
            program.stg(Self::at(page) + 32 + 32 * granule, Self::tag(page)).unwrap();
        }
        program.store(tagged(Self::at(page) + 32, Self::tag(page)), page + 1).unwrap();
        program.store(Self::at(page) + 1024, page + 2).unwrap();
    }

    fn check(program: &Program<'_, G>, page: u64) {
        assert_eq!(program.ldg(Self::at(page) + 32), Ok(Self::tag(page)), "page {page}");
        assert_eq!(program.load(tagged(Self::at(page) + 32, Self::tag(page))), Ok(page + 1), "page {page}");
        assert_eq!(program.load(Self::at(page) + 1024), Ok(page + 2), "page {page}");
        assert_eq!(program.ldg(Self::at(page)), Ok(0), "page {page}");
    }

    fn check_all(&self, pages: impl IntoIterator<Item = u64>) {
        let program = self.program();
        pages.into_iter().for_each(|page| Self::check(&program, page));
    }

    fn advise(&self, first: u64, pages: u64, advice: Advice) {
        self.space.advise(&self.rig.mm, VirtAddr::new(Self::at(first)), pages << G::SHIFT, advice).unwrap();
    }

    fn out(&self, groups: u64) {
        self.advise(0, groups * Self::GROUP, Advice::PageOut);
    }

    fn finish(self) {
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

fn setup<G: Granule>() -> Setup {
    let pages = G::GROUP_PAGES as u64;
    let (frames, slots) = (16 * pages + 256, 8 * pages as u32);
    Setup { frames, slots, tag_rooms: slots, adversary: Adversary::Full, ..Setup::default() }
}

fn whole<G: Granule>() {
    let rig = Rig::<G>::new(setup::<G>());
    let scene = Scene::new(&rig, 4);
    let pages = 4 * Scene::<G>::GROUP;
    for round in 1..4 {
        let (_, writes) = rig.device.operations();
        scene.out(4);
        assert_eq!(rig.device.operations().1, writes + 4, "one request a folio");
        assert_eq!((rig.count("swap_out"), rig.count("swap_out_folios")), (round * pages, round * 4));
        // The first group page by page, the others, as the program goes on, whole.
        scene.check_all(0..pages);
        assert_eq!((rig.count("swap_in"), rig.count("swap_in_folios")), (round * pages, round * 3));
        assert_eq!((rig.count("splits"), rig.count("unfolds")), (0, 0));
        // What came page by page is single.
        scene.advise(0, Scene::<G>::GROUP, Advice::DontNeed);
        (0..Scene::<G>::GROUP).for_each(|page| Scene::write(&scene.program(), page));
    }
    scene.finish();
    assert!(rig.count("tags_raw") > 0 && rig.count("tags_packed") > 0);
}

#[test]
fn folios_leave_and_come_back_whole() {
    whole::<K4>();
    whole::<K16>();
    whole::<K64>();
}

#[test]
fn a_program_that_goes_down_gets_folios_as_well() {
    let rig = Rig::<K4>::new(setup::<K4>());
    let scene = Scene::new(&rig, 4);
    scene.out(4);
    scene.check_all((0..64).rev());
    assert_eq!(rig.count("swap_in_folios"), 3);
    scene.finish();
}

/// A program that jumps about reads no page that it does not touch.
#[test]
fn a_page_may_come_alone() {
    let rig = Rig::<K4>::new(setup::<K4>());
    let scene = Scene::new(&rig, 4);
    scene.out(4);
    scene.check_all([37, 5, 50, 20, 9, 33]);
    assert_eq!((rig.count("swap_in"), rig.count("swap_in_folios")), (6, 0));
    scene.check_all(0..64);
    scene.finish();
}

/// Of a folio that is out, a part goes: the others come back alone.
#[test]
fn a_part_of_a_folio_goes_while_it_is_out() {
    let rig = Rig::<K4>::new(setup::<K4>());
    let scene = Scene::new(&rig, 4);
    scene.out(4);
    let free = rig.mm.totals().slots_free;
    scene.space.unmap(&rig.mm, VirtAddr::new(Scene::<K4>::at(20)), 3 << K4::SHIFT).unwrap();
    assert_eq!(rig.mm.totals().slots_free, free + 3);
    scene.check_all((0..20).chain(23..64));
    assert_eq!(rig.count("swap_in_folios"), 2);
    scene.finish();
}

/// The device refuses a folio. What is then asked of its pages, each of them, finds them all.
fn refused(then: impl Fn(&Scene<'_, K4>)) {
    for groups in [1, 2] {
        let rig = Rig::<K4>::new(setup::<K4>());
        let scene = Scene::new(&rig, 2);
        // From the first cut on, the space has what its region list may need.
        rig.map(&scene.space, 1 << 32, 3, RW);
        scene.space.unmap(&rig.mm, VirtAddr::new((1 << 32) + (1 << 12)), 1 << 12).unwrap();
        let before = rig.mm.totals();
        rig.device.fail_after(0);
        scene.out(groups);
        assert_eq!((rig.count("write_errors"), rig.count("swap_out_folios")), (1, groups - 1));
        let after = rig.mm.totals();
        assert_eq!(after.frames_free, before.frames_free + 16 * (groups - 1), "memory has the only copy");
        assert_eq!(after.slots_free, before.slots_free - 16 * groups);
        then(&scene);
        scene.finish();
    }
}

#[test]
fn a_refused_folio_is_mapped_again_as_one() {
    refused(|scene| {
        scene.check_all([7]);
        assert_eq!((scene.rig.count("swap_cache_hits"), scene.rig.count("splits")), (1, 0));
        scene.check_all(0..32);
        assert_eq!(scene.rig.count("swap_cache_hits"), 1);
        scene.out(2);
        scene.check_all(0..32);
    });
}

#[test]
fn a_refused_folio_is_tried_again() {
    refused(|scene| {
        let (start, pages) = (1 << 33, 480);
        scene.rig.map(&scene.space, start, pages, RW);
        (0..pages).for_each(|page| scene.program().store(start + (page << 12), 1).unwrap());
        assert!(scene.rig.count("swap_out") >= 32);
        scene.check_all(0..32);
        assert_eq!(scene.rig.count("swap_cache_hits"), 0);
    });
}

#[test]
fn a_part_of_a_refused_folio_is_unmapped() {
    refused(|scene| {
        let before = scene.rig.mm.totals();
        scene.space.unmap(&scene.rig.mm, VirtAddr::new(Scene::<K4>::at(3)), 2 << K4::SHIFT).unwrap();
        let after = scene.rig.mm.totals();
        assert_eq!((after.frames_free, after.slots_free), (before.frames_free + 2, before.slots_free + 2));
        scene.check_all((0..3).chain(5..32));
    });
}

#[test]
fn a_refused_folio_is_unmapped_page_by_page() {
    refused(|scene| {
        for page in (0..16).map(|page| page * 7 % 16) {
            scene.check_all((17..32).filter(|_| page == 3));
            scene.space.unmap(&scene.rig.mm, VirtAddr::new(Scene::<K4>::at(page)), 1 << K4::SHIFT).unwrap();
        }
    });
}

#[test]
fn the_region_of_a_refused_folio_falls_into_parts() {
    refused(|scene| {
        let half = VirtAddr::new(Scene::<K4>::at(8));
        scene.space.protect(&scene.rig.mm, half, 4 << K4::SHIFT, Protection::READ).unwrap();
        scene.check_all([2, 9, 14]);
        assert_eq!(scene.rig.count("splits"), 1);
        scene.check_all(0..32);
        assert!(scene.program().store(Scene::<K4>::at(10), 1).is_err());
    });
}

#[test]
fn a_refused_folio_is_given_up_in_part() {
    refused(|scene| {
        scene.advise(4, 4, Advice::Free);
        scene.check_all((0..4).chain(8..32));
        assert_eq!(scene.program().load(Scene::<K4>::at(5)), Ok(0));
    });
}

/// No run of slots is free, though there are slots enough: the folio leaves page by page.
#[test]
fn a_folio_without_a_run_of_slots_is_split() {
    let rig = Rig::<K4>::new(Setup { slots: 48, tag_rooms: 48, ..setup::<K4>() });
    let scene = Scene::new(&rig, 2);
    // Single pages in every slot; then every other one is free.
    rig.mm.set_folio_orders(FolioOrders::SINGLE);
    let (start, pages) = (1 << 33, 48);
    rig.map(&scene.space, start, pages, RW);
    (0..pages).for_each(|page| scene.program().store(start + (page << 12), page).unwrap());
    scene.space.advise(&rig.mm, VirtAddr::new(start), pages << 12, Advice::PageOut).unwrap();
    assert_eq!(rig.mm.totals().slots_free, 0);
    for page in (0..pages).step_by(2) {
        scene.space.unmap(&rig.mm, VirtAddr::new(start + (page << 12)), 1 << 12).unwrap();
    }
    assert_eq!(rig.mm.totals().slots_free, 24);
    scene.out(2);
    // A single page is refused only when no slot is free.
    assert_eq!((rig.mm.totals().slots_free, rig.count("swap_out_folios")), (0, 0));
    assert!(rig.count("splits") > 0);
    scene.check_all(0..32);
    (1..pages).step_by(2).for_each(|page| assert_eq!(scene.program().load(start + (page << 12)), Ok(page)));
    scene.finish();
}

/// Rooms for some of a folio's tags, not for all: those pages leave that find room.
#[test]
fn a_folio_without_rooms_for_all_tags_is_split() {
    let rig = Rig::<K4>::new(Setup { tag_rooms: 10, ..setup::<K4>() });
    let scene = Scene::new(&rig, 2);
    scene.out(2);
    assert_eq!(rig.count("swap_out_folios"), 0);
    // A batch reserves before it writes: ten pages, and then as many as those have left rooms for.
    assert_eq!((rig.count("splits"), rig.count("swap_out")), (2, 17));
    assert_eq!(rig.mm.totals().tag_rooms_free, 10 - rig.count("tags_raw"));
    scene.check_all(0..32);
    scene.finish();
}

/// Each operation of the device fails in turn: a page is as it was, or its program is told and asks again.
#[test]
fn the_device_fails_at_each_operation_of_folios() {
    for operation in 0..40 {
        let rig = Rig::<K4>::new(setup::<K4>());
        let scene = Scene::new(&rig, 4);
        rig.device.fail_after(operation);
        for _ in 0..2 {
            scene.out(4);
            for page in 0..64 {
                let again = scene.program().load(Scene::<K4>::at(page) + 1024).is_err();
                assert!(!again || rig.count("read_errors") == 1);
                scene.check_all([page]);
            }
        }
        scene.finish();
    }
}

/// Slots of one size and another are taken and given back: what is free stays usable, and nothing is lost.
#[test]
fn slots_of_all_sizes_come_and_go() {
    let rig = Rig::<K4>::new(Setup { frames: 1024, slots: 300, tag_rooms: 300, ..setup::<K4>() });
    let scene = Scene::new(&rig, 12);
    let mut dice = support::Dice::new(5);
    for _ in 0..300 {
        let first = dice.below(190);
        let pages = 1 + dice.below(40).min(191 - first);
        match dice.below(3) {
            0 => scene.advise(first, pages, Advice::PageOut),
            1 => scene.check_all(first..first + pages),
            _ => {
                scene.advise(first, pages, Advice::DontNeed);
                (first..first + pages).for_each(|page| Scene::write(&scene.program(), page));
            }
        }
    }
    scene.check_all(0..192);
    assert!(rig.count("swap_out_folios") > 2 && rig.count("splits") > 10);
    scene.finish();
}

/// The largest that there are: longer than what is looked at in one piece elsewhere.
#[test]
fn the_largest_folios_leave_in_every_way() {
    const PAGES: u64 = 1 << MAX_ORDER;
    let orders = FolioOrders::SINGLE.with(MAX_ORDER);
    // A run of so many slots lies in one of sixteen clusters.
    let slots = 16 * PAGES as u32;
    let rig = Rig::<K4>::new(Setup { frames: 4 * PAGES, slots, tag_rooms: slots, orders, ..setup::<K4>() });
    let scene = Scene { rig: &rig, space: rig.space() };
    rig.map(&scene.space, BASE, PAGES, RWT);
    let write = |program: &Program<'_, K4>| (0..PAGES).for_each(|page| Scene::write(program, page));
    write(&scene.program());
    assert_eq!(rig.count("large_folios"), 1);
    scene.advise(0, PAGES, Advice::PageOut);
    assert_eq!(rig.count("swap_out"), PAGES);
    scene.check_all(0..PAGES);
    // Given up.
    scene.advise(0, PAGES, Advice::DontNeed);
    write(&scene.program());
    scene.advise(0, PAGES, Advice::Free);
    scene.advise(0, PAGES, Advice::PageOut);
    assert_eq!(rig.count("clean_discards"), PAGES);
    // Shared.
    write(&scene.program());
    let child = scene.space.fork(&rig.mm).unwrap();
    scene.advise(0, PAGES, Advice::PageOut);
    assert_eq!(rig.count("swap_out"), 2 * PAGES);
    scene.check_all(0..PAGES);
    rig.activate(0, &child);
    (0..PAGES).for_each(|page| Scene::check(&rig.program(&child), page));
    rig.destroy(child);
    // Given up by both.
    rig.activate(0, &scene.space);
    scene.advise(0, PAGES, Advice::DontNeed);
    write(&scene.program());
    let child = scene.space.fork(&rig.mm).unwrap();
    scene.advise(0, PAGES, Advice::Free);
    rig.activate(0, &child);
    child.advise(&rig.mm, VirtAddr::new(BASE), PAGES << K4::SHIFT, Advice::Free).unwrap();
    child.advise(&rig.mm, VirtAddr::new(BASE), PAGES << K4::SHIFT, Advice::PageOut).unwrap();
    rig.destroy(child);
    rig.activate(0, &scene.space);
    scene.finish();
}
