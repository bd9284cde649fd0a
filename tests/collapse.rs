//! Single pages that become a large folio again, with their data and tags, and those that must not.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::Advice;
use ebbtide::space::{Access, Folios, Protection, Search};

use support::{RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const GROUPS: u64 = 4;

fn at<G: Granule>(page: u64) -> u64 {
    BASE + (page << G::SHIFT)
}

fn va<G: Granule>(page: u64) -> VirtAddr {
    VirtAddr::new(at::<G>(page))
}

fn tag(page: u64) -> u8 {
    (page % 15) as u8 + 1
}

/// A space whose region of some groups is single pages, each of which knows its number and its tag.
struct Scene<'a, G: Granule> {
    rig: &'a Rig<G>,
    space: Space<Stage<G>>,
}

impl<'a, G: Granule> Scene<'a, G> {
    const GROUP: u64 = G::GROUP_PAGES as u64;
    const PAGES: u64 = GROUPS * Self::GROUP;

    fn new(rig: &'a Rig<G>) -> Self {
        let scene = Self { rig, space: rig.space() };
        rig.map(&scene.space, BASE, Self::PAGES, RWT);
        rig.mm.set_folio_orders(FolioOrders::SINGLE);
        scene.write(0..Self::PAGES);
        rig.mm.set_folio_orders(FolioOrders::group::<G>());
        assert_eq!(rig.count("large_folios"), 0);
        scene
    }

    fn write(&self, pages: impl IntoIterator<Item = u64>) {
        let program = self.rig.program(&self.space);
        for page in pages {
            program.stg(at::<G>(page) + 64, tag(page)).unwrap();
            program.store(tagged(at::<G>(page) + 64, tag(page)), page + 1).unwrap();
        }
    }

    fn check(&self, pages: impl IntoIterator<Item = u64>) {
        let program = self.rig.program(&self.space);
        for page in pages {
            assert_eq!(program.load(tagged(at::<G>(page) + 64, tag(page))), Ok(page + 1), "page {page}");
            assert_eq!(program.ldg(at::<G>(page) + 80), Ok(0), "page {page}");
        }
    }

    fn advise(&self, first: u64, pages: u64, advice: Advice) {
        self.space.advise(&self.rig.mm, va::<G>(first), pages << G::SHIFT, advice).unwrap();
    }

    /// Looks at all of the space; returns how many folios came of it.
    fn collapse(&self) -> u64 {
        let before = self.rig.count("collapses");
        assert_eq!(self.space.collapse(&self.rig.mm, VirtAddr::new(0), 1000), Search::Done);
        self.rig.emu().check_all_groups();
        self.rig.count("collapses") - before
    }

    fn finish(self) {
        self.rig.finish(self.space);
    }
}

fn setup<G: Granule>() -> Setup {
    let frames = 256 + 2 * (GROUPS + 2) * G::GROUP_PAGES as u64;
    let slots = 2 * GROUPS as u32 * G::GROUP_PAGES as u32;
    Setup { frames, slots, tag_rooms: slots, adversary: Adversary::Full, ..Setup::default() }
}

fn become_one<G: Granule>() {
    let rig = Rig::<G>::new(setup::<G>());
    let scene = Scene::new(&rig);
    let (pages, group) = (Scene::<G>::PAGES, Scene::<G>::GROUP);
    assert_eq!(scene.collapse(), GROUPS);
    scene.check(0..pages);
    assert_eq!(scene.collapse(), 0, "they are whole");
    // They are folios: they leave as such.
    scene.advise(0, pages, Advice::PageOut);
    assert_eq!((rig.count("swap_out_folios"), rig.count("splits")), (GROUPS, 0));
    scene.check(0..pages);
    // One was split, and a part of it is out.
    scene.write(0..pages);
    scene.advise(group + 1, group / 4, Advice::PageOut);
    assert!(scene.collapse() >= 1);
    scene.check(0..pages);
    scene.write(0..pages);
    scene.finish();
}

#[test]
fn single_pages_become_one_folio() {
    become_one::<K4>();
    become_one::<K16>();
    become_one::<K64>();
}

/// It goes on where it stopped, and looks at no more than it was told to.
#[test]
fn a_search_is_bounded() {
    let rig = Rig::<K4>::new(setup::<K4>());
    let scene = Scene::new(&rig);
    let mut from = VirtAddr::new(0);
    for groups in 1..=GROUPS {
        match scene.space.collapse(&rig.mm, from, 1) {
            Search::At(next) => from = next,
            Search::Done => assert_eq!(groups, GROUPS),
        }
        assert_eq!(rig.count("collapses"), groups);
    }
    scene.check(0..Scene::<K4>::PAGES);
    scene.finish();
}

/// Each thing that keeps a group of single pages.
#[test]
fn what_stays_single() {
    let group = Scene::<K4>::GROUP;
    type Keep<'a> = &'a dyn Fn(&Scene<'_, K4>);
    let keeps: [Keep<'_>; 9] = [
        &|scene| scene.advise(group, group, Advice::Cold),
        &|scene| scene.advise(group + 2, 1, Advice::Free),
        &|scene| scene.advise(group + 2, 1, Advice::DontNeed),
        &|scene| scene.advise(group, group / 2 + 1, Advice::PageOut),
        &|scene| scene.space.prefer_folios(&scene.rig.mm, va::<K4>(group), group << 12, Folios::Single).unwrap(),
        &|scene| scene.space.mlock(&scene.rig.mm, va::<K4>(group), group << 12).unwrap(),
        // Two regions have it.
        &|scene| scene.space.protect(&scene.rig.mm, va::<K4>(group), 2 << 12, Protection::READ).unwrap(),
        &|scene| scene.space.unmap(&scene.rig.mm, va::<K4>(2 * group - 1), 1 << 12).unwrap(),
        // It stays: a pin ends by `Mm::unpin` alone.
        &|scene| assert!(scene.space.pin(&scene.rig.mm, va::<K4>(group + 3), Access::Read).is_ok()),
    ];
    for (index, keep) in keeps.iter().enumerate() {
        // Quiet: a CPU may use a page of which nobody knows.
        let rig = Rig::<K4>::new(Setup { adversary: Adversary::Quiet, ..setup::<K4>() });
        let scene = Scene::new(&rig);
        keep(&scene);
        assert_eq!(scene.collapse(), GROUPS - 1, "case {index}");
        scene.check((0..group).chain(2 * group..4 * group));
        if index < keeps.len() - 1 {
            scene.finish();
        }
    }
}

#[test]
fn shared_pages_stay_where_they_are() {
    let rig = Rig::<K4>::new(setup::<K4>());
    let scene = Scene::new(&rig);
    let (group, pages) = (Scene::<K4>::GROUP, Scene::<K4>::PAGES);
    let child = Scene { rig: &rig, space: scene.space.fork(&rig.mm).unwrap() };
    assert_eq!(scene.collapse(), 0);
    // What is copied page by page becomes one.
    scene.write(group..2 * group);
    assert_eq!(scene.collapse(), 1);
    rig.activate(0, &child.space);
    child.check(0..pages);
    rig.destroy(scene.space);
    rig.activate(0, &child.space);
    assert_eq!(child.collapse(), 0, "nobody has stored to them yet, so they are not its own");
    child.write(0..pages);
    assert_eq!(child.collapse(), GROUPS);
    child.check(0..pages);
    child.finish();
}

/// Nothing leaves for it.
#[test]
fn short_memory_makes_no_folio() {
    let rig = Rig::<K4>::new(Setup { frames: 256, ..setup::<K4>() });
    let scene = Scene::new(&rig);
    let other = rig.space();
    rig.map(&other, BASE, 512, RWT);
    rig.activate(0, &other);
    let filler = rig.program(&other);
    (0..512).take_while(|_| rig.count("background_wakes") == 0).for_each(|page| {
        filler.store(at::<K4>(page), page).unwrap();
    });
    let out = rig.count("swap_out");
    assert_eq!(scene.collapse(), 0);
    assert_eq!(rig.count("swap_out"), out);
    rig.destroy(other);
    rig.activate(0, &scene.space);
    scene.check(0..Scene::<K4>::PAGES);
    scene.finish();
}
