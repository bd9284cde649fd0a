//! Contiguous groups and large folios, one promise at a time: they are broken up and heal, and nothing that a program
//! stored goes with that.

mod support;

use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::Features;
use ebbtide::machine::emu::{Adversary, Death};
use ebbtide::reclaim::{Advice, Replacement};
use ebbtide::space::{FaultError, MapError, Protection};
use ebbtide::swap::DeviceFlags;
use ebbtide::{Space, Totals};

use support::entries::{CONTIGUOUS, VALID, entries, folded, is_dirty};
use support::{Program, RW, RWT, RWXT, Rig, Setup, Stage, refusal, tagged};

const BASE: u64 = 0x4000_0000;
/// Where that is which presses on memory.
const FAR: u64 = 0x70_0000_0000;
const RX: Protection = Protection::READ.union(Protection::EXEC);

/// Slots for everything.
const ROOMY: Setup = Setup { slots: 2000, tag_rooms: 600, ..DRY };
/// No slot: dirty pages must stay.
const DRY: Setup = Setup {
    frames: 0,
    slots: 0,
    tag_rooms: 0,
    cpus: 1,
    seed: 1,
    features: Features::all(),
    adversary: Adversary::Quiet,
    asid_bits: 8,
    va_bits: 48,
    orders: None,
    device: DeviceFlags::SYNCHRONOUS,
    replacement: Replacement::Adaptive,
};

/// A program with a region of three groups, in a memory that has room for five.
struct Scene<G: Granule> {
    rig: Rig<G>,
    space: Space<Stage<G>>,
}

impl<G: Granule> Scene<G> {
    const GROUP: u64 = G::GROUP_PAGES as u64;

    fn new(protection: Protection, setup: Setup) -> Self {
        let rig = Rig::new(Setup { frames: 5 * Self::GROUP + 64, ..setup });
        let space = rig.space();
        rig.map(&space, BASE, 3 * Self::GROUP, protection);
        Self { rig, space }
    }

    fn at(page: u64) -> u64 {
        BASE + (page << G::SHIFT)
    }

    fn program(&self) -> Program<'_, G> {
        self.rig.program(&self.space)
    }

    fn store(&self, pages: impl IntoIterator<Item = u64>) {
        pages.into_iter().for_each(|page| self.program().store(Self::at(page), page + 100).unwrap());
    }

    fn check(&self, pages: impl IntoIterator<Item = u64>) {
        pages.into_iter().for_each(|page| assert_eq!(self.program().load(Self::at(page)), Ok(page + 100), "{page}"));
    }

    fn protect(&self, first: u64, pages: u64, protection: Protection) {
        self.space.protect(&self.rig.mm, VirtAddr::new(Self::at(first)), pages << G::SHIFT, protection).unwrap();
    }

    fn unmap(&self, first: u64, pages: u64) {
        self.space.unmap(&self.rig.mm, VirtAddr::new(Self::at(first)), pages << G::SHIFT).unwrap();
    }

    fn advise(&self, first: u64, pages: u64, advice: Advice) {
        self.space.advise(&self.rig.mm, VirtAddr::new(Self::at(first)), pages << G::SHIFT, advice).unwrap();
    }

    fn entries(&self) -> Vec<u64> {
        entries(&self.rig, &self.space, BASE, 3 * Self::GROUP)
    }

    fn folded(&self) -> Vec<bool> {
        folded::<G>(&self.entries())
    }

    fn count(&self, name: &str) -> u64 {
        self.rig.count(name)
    }

    /// Stores to new pages elsewhere until `is_enough`.
    fn press(&self, is_enough: impl Fn(&Self) -> bool) {
        let pages = 20 * Self::GROUP + 512;
        self.rig.map(&self.space, FAR, pages, RW);
        let stored = (0..pages).find(|&page| {
            let enough = is_enough(self);
            if !enough {
                self.program().store(FAR + (page << G::SHIFT), 1).unwrap();
            }
            enough
        });
        assert!(stored.is_some(), "there is no pressure");
    }

    /// Presses until all of the three groups had to leave.
    fn press_hard(&self) {
        let frames = self.rig.emu().config().frames;
        let first = self.count("first_touches");
        self.press(|scene| scene.count("first_touches") > first + 2 * frames);
    }

    fn finish(self) {
        self.rig.emu().check_all_groups();
        self.rig.finish(self.space);
    }
}

// ---- Folding. ----

#[test]
fn a_group_breaks_up_and_heals() {
    fn visit<G: Granule>() {
        let scene = Scene::<G>::new(RW, ROOMY);
        let group = Scene::<G>::GROUP;
        let all = 3 * group;
        scene.store(0..all);
        assert_eq!((scene.count("folds"), scene.folded()), (3, vec![true; 3]));
        for (first, pages) in [(group + 3, 4), (group - 1, 2), (1, all - 2)] {
            let (unfolds, refolds) = (scene.count("unfolds"), scene.count("refolds"));
            scene.protect(first, pages, Protection::READ);
            let is_cut = |number: u64| number == first / group || number == (first + pages - 1) / group;
            assert_eq!(scene.folded(), (0..3).map(|number| !is_cut(number)).collect::<Vec<_>>());
            let cut = (0..3).filter(|&number| is_cut(number)).count() as u64;
            assert_eq!((scene.count("unfolds") - unfolds, scene.count("refolds") - refolds), (cut, 0));
            assert_eq!(refusal(scene.program().store(Scene::<G>::at(first), 1)), FaultError::Protection);
            scene.protect(first, pages, RW);
            assert_eq!(scene.folded(), [true; 3]);
            assert_eq!((scene.count("unfolds") - unfolds, scene.count("refolds") - refolds), (cut, cut));
            scene.check(0..all);
        }
        assert_eq!((scene.count("splits"), scene.count("folds")), (0, 3));
        scene.store(0..all);
        scene.finish();
    }
    visit::<K4>();
    visit::<K16>();
    visit::<K64>();
}

/// Two regions whose entries are equal until a fetch: what a fault adds to a group must not reach into the other.
#[test]
fn a_group_does_not_heal_across_two_regions() {
    let scene = Scene::<K4>::new(RW, ROOMY);
    scene.store(0..16);
    scene.protect(8, 8, RW | Protection::EXEC);
    let raws = scene.entries();
    let like = |page: usize| raws[page] - ((page as u64) << K4::SHIFT);
    assert!((0..16).all(|page| like(page) == like(0)), "the entries are equal: {raws:x?}");
    assert!(!scene.folded()[0]);
    assert_eq!(scene.program().fetch(Scene::<K4>::at(9)), Ok(109));
    assert_eq!(refusal(scene.program().fetch(Scene::<K4>::at(7))), FaultError::Protection);
    // Different rights, told by different entries.
    scene.protect(0, 4, Protection::READ);
    scene.protect(4, 12, Protection::empty());
    assert_eq!((scene.folded()[0], scene.count("refolds")), (false, 0));
    scene.protect(4, 12, Protection::READ);
    assert_eq!((scene.folded()[0], scene.count("refolds")), (true, 1));
    scene.check(0..16);
    scene.finish();
}

/// Single pages stay single, even where their frames are neighbours and congruent: each has a history and a life of its
/// own.
#[test]
fn single_pages_are_no_group() {
    let scene = Scene::<K4>::new(RW, DRY);
    scene.store(0..16);
    assert!(scene.folded()[0]);
    // Split for a slot that there is not: the pages stay where they are.
    scene.advise(0, 16, Advice::PageOut);
    assert_eq!((scene.count("splits"), scene.folded()[0]), (1, false));
    let raws = scene.entries();
    let frame = |page: usize| raws[page] >> K4::SHIFT & 0xf_ffff_ffff;
    assert!((0..16).all(|page| frame(page) == frame(0) + page as u64) && frame(0) % 16 == 0, "{raws:x?}");
    for (first, pages) in [(3, 5), (0, 16), (8, 8)] {
        scene.protect(first, pages, Protection::READ);
        scene.protect(first, pages, RW);
        assert!(scene.entries().iter().all(|raw| raw & CONTIGUOUS == 0));
    }
    assert_eq!(scene.count("refolds"), 0);
    scene.check(0..16);
    // The others stay when one goes.
    let free = scene.rig.mm.totals().frames_free;
    scene.unmap(5, 1);
    assert_eq!(scene.rig.mm.totals().frames_free, free + 1);
    scene.check((0..16).filter(|&page| page != 5));
    scene.finish();
}

/// The hardware notes a store in one entry of a group; when the group is broken up, each of its entries tells.
#[test]
fn a_broken_up_group_has_the_history_of_all() {
    let scene = Scene::<K4>::new(RW, ROOMY);
    assert_eq!(scene.program().load(BASE), Ok(0));
    scene.store([9]);
    assert_eq!(scene.entries()[..16].iter().filter(|&&raw| is_dirty(raw)).count(), 1);
    scene.protect(2, 1, Protection::READ);
    assert!(scene.entries()[..16].iter().all(|&raw| is_dirty(raw)));
    scene.finish();
}

// ---- What a program gives up, and what it does not. ----

/// A store may be noted in any entry of a group: it is not lost when another page is given up.
#[test]
fn a_store_beside_freed_pages_is_kept() {
    fn visit<G: Granule>(seeds: u64) {
        let group = Scene::<G>::GROUP;
        for seed in 1..=seeds {
            let scene = Scene::<G>::new(RW, Setup { seed, adversary: Adversary::Full, cpus: 2, ..ROOMY });
            (0..3).for_each(|number| _ = scene.program().load(Scene::<G>::at(number * group)).unwrap());
            assert_eq!(scene.folded(), [true; 3]);
            // One dirty page in each, and another that is given up.
            let kept = [seed % group, group + (seed * 7) % group, 2 * group + (seed * 3) % group];
            scene.store(kept);
            for page in kept {
                let other = page / group * group + (page + 1 + seed % (group - 1)) % group;
                scene.advise(other, 1, Advice::Free);
            }
            scene.press_hard();
            scene.check(kept);
            for page in (0..3 * group).filter(|page| !kept.contains(page)) {
                assert_eq!(scene.program().load(Scene::<G>::at(page)), Ok(0), "page {page}");
            }
            scene.finish();
        }
    }
    visit::<K4>(24);
    visit::<K16>(2);
    visit::<K64>(2);
}

#[test]
fn what_is_freed_goes_without_a_write() {
    let scene = Scene::<K4>::new(RW, ROOMY);
    scene.store(0..48);
    scene.advise(0, 48, Advice::Free);
    assert_eq!((scene.folded(), scene.count("lazy_freed")), (vec![true; 3], 48));
    scene.check(0..48);
    // The look at it saves it once: that it is old is said again.
    scene.advise(0, 48, Advice::Free);
    scene.press(|scene| scene.count("clean_discards") >= 48);
    assert_eq!((scene.count("clean_discards"), scene.count("swap_out"), scene.count("splits")), (48, 0, 0));
    assert_eq!(scene.rig.device.operations(), (0, 0));
    (0..48).for_each(|page| assert_eq!(scene.program().load(Scene::<K4>::at(page)), Ok(0)));
    scene.finish();
}

/// A store after MADV_FREE and before reclaim keeps its page; the others of the group may go or stay, each as a whole.
#[test]
fn what_is_stored_after_it_was_freed_stays() {
    for seed in 1..=12 {
        let scene = Scene::<K4>::new(RW, Setup { seed, adversary: Adversary::Full, ..ROOMY });
        scene.store(0..48);
        scene.advise(0, 48, Advice::Free);
        let kept = [seed % 16, 16 + (seed * 5) % 16];
        kept.iter().for_each(|&page| scene.program().store(Scene::<K4>::at(page) + 8, 7).unwrap());
        scene.press_hard();
        for page in 0..48 {
            let seen = scene.program().load(Scene::<K4>::at(page)).unwrap();
            assert!(seen == page + 100 || seen == 0 && !kept.contains(&page), "page {page}: {seen}");
            let stored = scene.program().load(Scene::<K4>::at(page) + 8);
            assert_eq!(stored, Ok(if kept.contains(&page) { 7 } else { 0 }), "page {page}");
        }
        scene.finish();
    }
}

#[test]
fn a_clean_folio_goes_as_one() {
    let scene = Scene::<K4>::new(RWT, ROOMY);
    (0..3).for_each(|group| assert_eq!(scene.program().load(Scene::<K4>::at(group * 16)), Ok(0)));
    scene.advise(0, 48, Advice::Cold);
    scene.press(|scene| scene.count("clean_discards") > 0);
    assert_eq!(scene.count("clean_discards") % 16, 0);
    assert_eq!((scene.count("splits"), scene.count("unfolds"), scene.count("swap_out")), (0, 0, 0));
    let gone = scene.entries().chunks(16).filter(|group| group.iter().all(|&raw| raw == 0)).count() as u64;
    assert_eq!(16 * gone, scene.count("clean_discards"));
    scene.finish();
}

#[test]
fn cold_folios_leave_before_others() {
    for cold in 0..3 {
        let scene = Scene::<K4>::new(RW, ROOMY);
        scene.store(0..48);
        scene.advise(cold * 16, 16, Advice::Cold);
        scene.press(|scene| scene.count("swap_out") > 0);
        for (page, raw) in (0..).zip(scene.entries()) {
            assert!(raw & VALID != 0 || page / 16 == cold, "page {page} left before group {cold}");
        }
        scene.check(0..48);
        scene.finish();
    }
}

// ---- Splitting. ----

/// Tags and synced code stay with each page of a folio that is split, and what is synced is known page by page.
#[test]
fn a_split_keeps_tags_and_code() {
    for seed in 1..=8 {
        let adversary = [Adversary::Quiet, Adversary::Full][seed as usize % 2];
        let scene = Scene::<K4>::new(RWXT, Setup { seed, adversary, ..ROOMY });
        let program = scene.program();
        let place = |page: u64| tagged(Scene::<K4>::at(page), page as u8 & 0xf);
        let check = |round: u64| {
            for page in 0..16 {
                assert_eq!(program.ldg(place(page)), Ok(page as u8), "page {page}");
                assert_eq!(program.ldg(place(page) + 16), Ok(15 - page as u8), "page {page}");
                assert_eq!(program.load(place(page)), Ok(page + round), "page {page}");
                assert_eq!(program.fetch(place(page)), Ok(page + round), "page {page}");
            }
        };
        let write = |round: u64| (0..16).for_each(|page| program.store(place(page), page + round).unwrap());
        for page in 0..16 {
            program.stg(place(page), page as u8).unwrap();
            program.stg(place(page) + 16, 15 - page as u8).unwrap();
        }
        write(100);
        check(100);
        let fetches = scene.count("faults_execute");
        scene.advise(seed, 1, Advice::PageOut);
        assert_eq!(scene.count("splits"), 1);
        (0..16).filter(|&page| page != seed).for_each(|page| _ = program.fetch(place(page)).unwrap());
        assert_eq!(scene.count("faults_execute"), fetches, "the others kept the right to execute");
        check(100);
        // New code: each page is synced anew before it is fetched.
        scene.protect(0, 16, RW);
        write(200);
        scene.protect(0, 16, RX);
        check(200);
        scene.advise(0, 16, Advice::PageOut);
        check(200);
        scene.finish();
    }
}

/// Pages of a large folio that were unmapped alone are freed when reclaim comes to the folio.
#[test]
fn unmapped_pages_of_a_folio_are_freed() {
    for (first, pages) in [(0, 1), (4, 8), (15, 1), (1, 15), (0, 15)] {
        let rest = || (0..16).filter(move |page| !(first..first + pages).contains(page));
        let scene = Scene::<K4>::new(RW, ROOMY);
        scene.store(0..16);
        // The regions' list has what one more cut may need.
        scene.unmap(40, 1);
        let before = scene.rig.mm.totals().frames_free;
        scene.unmap(first, pages);
        assert!(!scene.folded()[0]);
        scene.advise(rest().next().unwrap(), 1, Advice::PageOut);
        assert_eq!(scene.rig.mm.totals().frames_free, before + pages + 1, "{pages} from {first}");
        scene.check(rest());
        assert_eq!(refusal(scene.program().load(Scene::<K4>::at(first))), FaultError::NotMapped);
        scene.finish();

        // Without a slot nothing else can be had: under pressure, these very pages are found.
        let most = |unmap: bool| {
            let scene = Scene::<K4>::new(RW, DRY);
            scene.store(0..16);
            scene.unmap(40, 1);
            if unmap {
                scene.unmap(first, pages);
            }
            scene.rig.mm.set_folio_orders(FolioOrders::SINGLE);
            scene.rig.map(&scene.space, FAR, 512, RW);
            let stored = (0..512).take_while(|&page| scene.program().store(FAR + (page << 12), 1).is_ok()).count();
            if unmap {
                scene.check(rest());
            }
            scene.finish();
            stored as u64
        };
        assert_eq!(most(true), most(false) + pages, "{pages} from {first}");
    }
}

// ---- Memory that runs out. ----

/// What a program with large folios knows of its 48 pages.
struct Life<'a> {
    rig: &'a Rig,
    space: &'a Space<Stage<K4>>,
    words: [u64; 48],
}

impl Life<'_> {
    fn write(&mut self, page: u64, value: u64) {
        match self.rig.program(self.space).store(BASE + page * 4096, value) {
            Ok(()) => self.words[page as usize] = value,
            Err(Death::Refused(_, FaultError::NoMemory | FaultError::Protection | FaultError::NotMapped)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    fn check(&self) {
        for (page, &word) in (0..).zip(&self.words) {
            match self.rig.program(self.space).load(BASE + page * 4096) {
                Err(Death::Refused(_, FaultError::NoMemory | FaultError::NotMapped)) => {}
                seen => assert_eq!(seen, Ok(word), "page {page}"),
            }
        }
        self.rig.emu().check_all_groups();
    }

    fn protect(&self, page: u64, pages: u64, protection: Protection) -> bool {
        bear(self.space.protect(&self.rig.mm, VirtAddr::new(BASE + page * 4096), pages * 4096, protection))
    }

    fn live(&mut self) {
        let (space, mm) = (self.space, &self.rig.mm);
        let at = |page: u64| VirtAddr::new(BASE + page * 4096);
        (0..48).for_each(|page| self.write(page, page + 100));
        self.check();
        for (page, pages) in [(3, 4), (14, 4), (20, 20)] {
            let is_shut = self.protect(page, pages, Protection::READ);
            self.write(page, 7);
            assert!(!is_shut || self.words[page as usize] != 7, "a store to a read-only page");
            self.protect(page, pages, RW);
            self.check();
        }
        space.advise(mm, at(5), 20 * 4096, Advice::PageOut).unwrap();
        self.check();
        space.advise(mm, at(30), 4 * 4096, Advice::DontNeed).unwrap();
        self.words[30..34].fill(0);
        self.check();
        if bear(space.unmap(mm, at(40), 4 * 4096)) {
            self.words[40..44].fill(0);
        }
        (0..48).for_each(|page| self.write(page, page + 200));
        self.check();
    }
}

/// Whether there was memory for it.
fn bear(done: Result<(), MapError>) -> bool {
    match done {
        Ok(()) => true,
        Err(MapError::NoMemory) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Takes all memory but so many frames, in single dirty pages.
fn hog(rig: &Rig, left: u64) -> Space<Stage<K4>> {
    rig.mm.set_folio_orders(FolioOrders::SINGLE);
    let space = rig.space();
    rig.map(&space, FAR, 512, RW);
    let program = rig.program(&space);
    let taken = (0..512).find(|&page| program.store(FAR + page * 4096, 1).is_err()).expect("memory is small");
    let given = left.min(taken);
    space.advise(&rig.mm, VirtAddr::new(FAR + (taken - given) * 4096), given * 4096, Advice::DontNeed).unwrap();
    rig.mm.set_folio_orders(FolioOrders::group::<K4>());
    space
}

#[test]
fn memory_runs_out_at_every_frame_beside_large_folios() {
    let free = |totals: Totals| totals.frames_free + totals.slots_free;
    let mut large = 0;
    for (slots, tag_rooms, left) in (0..100).flat_map(|left| [(0, 0, left), (20, 3, left)]) {
        let rig = Rig::<K4>::new(Setup { slots, tag_rooms, frames: 160, ..Setup::default() });
        let hog = hog(&rig, left);
        let before = rig.mm.totals();
        if let Ok(space) = rig.try_space() {
            rig.activate(0, &space);
            if bear(rig.try_map(&space, BASE, 48, RWT).map(drop)) {
                Life { rig: &rig, space: &space, words: [0; 48] }.live();
            }
            rig.destroy(space);
        }
        large += rig.count("large_folios");
        // The hog's pages may have left for slots meanwhile.
        assert_eq!(free(rig.mm.totals()), free(before), "with {left} frames");
        rig.finish(hog);
    }
    assert!(large > 100, "{large} large folios");
}
