//! Spaces that come from one another: what one stores, no other sees; what all have is there once.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::{Access, Adversary};
use ebbtide::reclaim::Advice;
use ebbtide::space::Protection;
use ebbtide::swap::{DeviceFlags, SwapOffError};

use support::entries::{VALID, entries};
use support::stage::{in_turns, meanwhile};
use support::{Dice, Program, RWT, Rig, Setup, Stage, tagged};

const BASE: u64 = 0x4000_0000;
const LATE: DeviceFlags = DeviceFlags::STABLE_WRITES;
const CHECKED: DeviceFlags = DeviceFlags::SYNCHRONOUS.union(DeviceFlags::CHECKED);

/// Where a page has its words, and the granule that has its tag.
const WORDS: [u64; 3] = [8, 1024, 4000];
const TAG: u64 = 512;

/// What a page should hold.
#[derive(Copy, Clone, Default, PartialEq, Debug)]
struct Page {
    words: [u64; 3],
    tag: u8,
    /// It was given up, and not stored to since: all of it may be gone.
    may_go: bool,
}

struct Member<G: Granule> {
    space: Space<Stage<G>>,
    pages: Vec<Page>,
}

/// Spaces of one fork tree, or several, and what each should hold.
struct Family<'a, G: Granule> {
    rig: &'a Rig<G>,
    members: Vec<Member<G>>,
}

impl<'a, G: Granule> Family<'a, G> {
    fn new(rig: &'a Rig<G>, pages: u64) -> Self {
        let mut family = Self { rig, members: Vec::new() };
        family.found(pages);
        family
    }

    /// A space that came from none.
    fn found(&mut self, pages: u64) {
        let space = self.rig.space();
        self.rig.map(&space, BASE, pages, RWT);
        self.members.push(Member { space, pages: vec![Page::default(); pages as usize] });
    }

    fn at(page: usize) -> u64 {
        BASE + ((page as u64) << G::SHIFT)
    }

    fn run(&self, who: usize) -> Program<'_, G> {
        self.rig.activate(0, &self.members[who].space);
        self.rig.program(&self.members[who].space)
    }

    fn fork(&mut self, who: usize) -> usize {
        let space = self.members[who].space.fork(&self.rig.mm).expect("there is memory");
        let pages = self.members[who].pages.clone();
        self.members.push(Member { space, pages });
        self.members.len() - 1
    }

    fn end(&mut self, who: usize) {
        self.rig.destroy(self.members.swap_remove(who).space);
    }

    /// Looks whether a page that was given up has gone.
    fn settle(&mut self, who: usize, page: usize, but: Option<usize>) {
        let expected = self.members[who].pages[page];
        if !expected.may_go {
            return;
        }
        let witness = (0..3).find(|&word| Some(word) != but && expected.words[word] != 0);
        let program = self.run(who);
        let has_gone = match witness {
            Some(word) => program.load(Self::at(page) + WORDS[word]) == Ok(0),
            None => program.ldg(Self::at(page) + TAG) != Ok(expected.tag),
        };
        if has_gone {
            let stored = but.map(|word| (word, expected.words[word]));
            self.members[who].pages[page] = Page { may_go: true, ..Page::default() };
            if let Some((word, value)) = stored {
                self.members[who].pages[page].words[word] = value;
            }
        }
    }

    fn store(&mut self, who: usize, page: usize, word: usize, value: u64) {
        self.run(who).store(Self::at(page) + WORDS[word], value).unwrap();
        self.members[who].pages[page].words[word] = value;
        self.settle(who, page, Some(word));
        self.members[who].pages[page].may_go = false;
    }

    fn tag(&mut self, who: usize, page: usize, tag: u8) {
        if self.members[who].pages[page].may_go {
            self.store(who, page, 0, 77);
        }
        self.run(who).stg(Self::at(page) + TAG, tag).unwrap();
        self.members[who].pages[page].tag = tag;
    }

    fn check(&mut self, who: usize, page: usize) {
        self.settle(who, page, None);
        let Page { words, tag, may_go } = self.members[who].pages[page];
        let program = self.run(who);
        let seen = WORDS.map(|at| program.load(Self::at(page) + at).unwrap());
        assert_eq!(seen, words, "page {page} of space {who}");
        if !may_go {
            assert_eq!(program.ldg(Self::at(page) + TAG), Ok(tag), "page {page} of space {who}");
            assert_eq!(program.load(tagged(Self::at(page) + TAG, tag)), Ok(0));
        }
        assert_eq!(program.ldg(Self::at(page) + TAG + 16), Ok(0), "page {page} of space {who}");
    }

    fn check_all(&mut self) {
        for who in 0..self.members.len() {
            (0..self.members[who].pages.len()).for_each(|page| self.check(who, page));
        }
    }

    fn advise(&mut self, who: usize, first: usize, pages: usize, advice: Advice) {
        let start = VirtAddr::new(Self::at(first));
        self.members[who].space.advise(&self.rig.mm, start, (pages as u64) << G::SHIFT, advice).unwrap();
        for page in &mut self.members[who].pages[first..first + pages] {
            match advice {
                Advice::DontNeed => *page = Page::default(),
                Advice::Free => page.may_go = true,
                Advice::Cold | Advice::PageOut | Advice::WillNeed => {}
            }
        }
    }

    fn out(&mut self, who: usize) {
        self.advise(who, 0, self.members[who].pages.len(), Advice::PageOut);
    }

    fn finish(mut self) {
        self.rig.emu().check_all_groups();
        while !self.members.is_empty() {
            self.end(0);
        }
        self.rig.check_nothing_leaked();
    }
}

fn setup<G: Granule>(device: DeviceFlags) -> Setup {
    let pages = G::GROUP_PAGES as u64;
    let (frames, slots) = (16 * pages + 300, 12 * pages as u32);
    Setup { frames, slots, tag_rooms: slots, adversary: Adversary::Full, device, ..Setup::default() }
}

fn each_store_is_private<G: Granule>() {
    let rig = Rig::<G>::new(setup::<G>(LATE));
    let pages = 2 * G::GROUP_PAGES;
    let mut family = Family::new(&rig, pages as u64);
    for page in 0..pages {
        family.store(0, page, 0, page as u64 + 1);
        family.tag(0, page, (page % 15) as u8 + 1);
    }
    let child = family.fork(0);
    assert_eq!(rig.count("copies"), 0);
    for page in (0..pages).step_by(3) {
        family.store(child, page, 1, 1000 + page as u64);
    }
    for page in (0..pages).step_by(5) {
        family.store(0, page, 2, 2000 + page as u64);
    }
    for page in (1..pages).step_by(7) {
        family.tag(child, page, 3);
    }
    let grandchild = family.fork(child);
    for page in 0..pages {
        family.store(grandchild, page, 0, 3000 + page as u64);
    }
    family.check_all();
    family.end(child);
    family.check_all();
    family.finish();
}

#[test]
fn what_one_stores_no_other_sees() {
    each_store_is_private::<K4>();
    each_store_is_private::<K16>();
    each_store_is_private::<K64>();
}

/// The last one that has a page stores to it without a copy.
#[test]
fn the_last_owner_needs_no_copy() {
    let rig = Rig::<K4>::new(setup::<K4>(LATE));
    let mut family = Family::new(&rig, 32);
    (0..32).for_each(|page| family.store(0, page, 0, page as u64 + 1));
    let child = family.fork(0);
    family.end(child);
    (0..32).for_each(|page| family.store(0, page, 1, page as u64 + 2));
    assert_eq!(rig.count("copies"), 0);
    assert_eq!(rig.count("reuses"), 2, "one for each folio");
    // The child stays when the parent has gone.
    family.fork(0);
    family.end(0);
    (0..32).for_each(|page| family.store(0, page, 2, page as u64 + 3));
    assert_eq!(rig.count("copies"), 0);
    family.check_all();
    family.finish();
}

/// Groups stay groups on both sides until one side stores.
#[test]
fn fork_unfolds_nothing() {
    let rig = Rig::<K4>::new(setup::<K4>(LATE));
    let mut family = Family::new(&rig, 64);
    (0..64).for_each(|page| family.store(0, page, 0, page as u64 + 1));
    let child = family.fork(0);
    assert_eq!(rig.count("unfolds"), 0);
    family.check_all();
    family.store(child, 20, 0, 5);
    assert_eq!((rig.count("unfolds"), rig.count("copies")), (1, 1));
    family.check_all();
    family.finish();
}

/// Swap entries are shared; a page that several have comes in once, and goes back for nothing.
#[test]
fn what_is_out_is_shared() {
    for device in [DeviceFlags::SYNCHRONOUS, LATE, CHECKED] {
        for orders in [None, Some(FolioOrders::SINGLE)] {
            let rig = Rig::<K4>::new(Setup { orders, ..setup::<K4>(device) });
            let mut family = Family::new(&rig, 64);
            (0..64).for_each(|page| family.store(0, page, 0, page as u64 + 1));
            (0..64).step_by(3).for_each(|page| family.tag(0, page, 5));
            family.out(0);
            let child = family.fork(0);
            let grandchild = family.fork(child);
            assert_eq!(rig.mm.totals().slots - rig.mm.totals().slots_free, 64);
            family.check_all();
            assert_eq!(rig.count("swap_in"), 64, "each page came in once");
            assert_eq!(rig.count("copies"), 0);
            family.out(0);
            family.check_all();
            (0..64).for_each(|page| family.store(child, page, 1, 7 + page as u64));
            family.out(child);
            family.out(grandchild);
            family.check_all();
            family.end(0);
            family.check_all();
            family.finish();
        }
    }
}

/// A page goes out of every space that has it, whichever of them it came in for.
#[test]
fn reclaim_finds_every_mapping() {
    for orders in [None, Some(FolioOrders::SINGLE)] {
        let rig = Rig::<K4>::new(Setup { orders, ..setup::<K4>(DeviceFlags::SYNCHRONOUS) });
        let mut family = Family::new(&rig, 32);
        (0..32).for_each(|page| family.store(0, page, 0, page as u64 + 1));
        let child = family.fork(0);
        let grandchild = family.fork(child);
        family.out(0);
        let free = rig.mm.totals().frames_free;
        for reader in [grandchild, child, 0] {
            (0..32).for_each(|page| family.check(reader, page));
        }
        assert_eq!(rig.mm.totals().frames_free, free - 32);
        family.out(child);
        assert_eq!(rig.mm.totals().frames_free, free);
        family.check_all();
        family.finish();
    }
}

/// A page that went out while it was shared, and comes back for the last that has it, is that one's own.
#[test]
fn the_last_entry_is_exclusive() {
    let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
    let mut family = Family::new(&rig, 16);
    (0..16).for_each(|page| family.store(0, page, 0, page as u64 + 1));
    family.fork(0);
    family.out(0);
    assert_eq!(rig.count("swap_out"), 16);
    family.end(0);
    (0..16).for_each(|page| family.store(0, page, 1, page as u64 + 1));
    assert_eq!((rig.count("copies"), rig.count("reuses")), (0, 0));
    assert_eq!(rig.mm.totals().slots_free, rig.mm.totals().slots);
    family.check_all();
    family.finish();
}

/// What one gives up, the others keep.
#[test]
fn what_one_gives_up_the_others_keep() {
    for first in [0, 1] {
        let rig = Rig::<K4>::new(setup::<K4>(LATE));
        let mut family = Family::new(&rig, 32);
        (0..32).for_each(|page| family.store(0, page, 0, page as u64 + 1));
        family.fork(0);
        family.advise(first, 3, 20, Advice::Free);
        family.out(0);
        family.out(1);
        family.check_all();
        family.advise(first, 0, 32, Advice::Free);
        (0..32).step_by(2).for_each(|page| family.store(first, page, 1, 9));
        family.out(1 - first);
        family.out(first);
        family.check_all();
        family.finish();
    }
}

/// What one takes away is gone on every CPU when the call returns: also where reclaim has taken the page from all, and
/// its flush is still to come.
#[test]
fn what_one_takes_away_is_gone() {
    for unmaps in [true, false] {
        meanwhile(|curtain| {
            let rig = Rig::<K4>::new(Setup { cpus: 2, ..setup::<K4>(LATE) });
            let mut family = Family::new(&rig, 2);
            (0..2).for_each(|page| family.store(0, page, 0, 5));
            family.fork(0);
            let [parent, child] = &family.members[..] else { unreachable!() };
            rig.activate(1, &child.space);
            assert_eq!(rig.program_on(1, &child.space).load(BASE + WORDS[0]), Ok(5));
            let page_out = || parent.space.advise(&rig.mm, VirtAddr::new(BASE), 8192, Advice::PageOut).unwrap();
            let take_away = || {
                rig.emu().set_cpu(1);
                let start = VirtAddr::new(BASE);
                if unmaps {
                    child.space.unmap(&rig.mm, start, 4096).unwrap();
                } else {
                    child.space.advise(&rig.mm, start, 4096, Advice::DontNeed).unwrap();
                }
                assert!(rig.emu().access(1, BASE + WORDS[0], Access::Load).is_err(), "it is still there");
            };
            curtain(&mut { page_out }, &take_away);
            family.check(0, 0);
            family.finish();
        });
    }
}

/// MADV_PAGEOUT takes pages that stand where a large folio would have them as well: copies, and pages that were given
/// up and touched again.
#[test]
fn pages_in_the_place_of_a_folios_leave_too() {
    for who in [0, 1] {
        let rig = Rig::<K4>::new(setup::<K4>(DeviceFlags::SYNCHRONOUS));
        let mut family = Family::new(&rig, 16);
        (0..16).for_each(|page| family.store(0, page, 0, page as u64 + 1));
        family.fork(0);
        family.store(who, 5, 1, 9);
        family.advise(who, 9, 1, Advice::DontNeed);
        family.store(who, 9, 2, 8);
        family.out(who);
        let raws = entries(&rig, &family.members[who].space, BASE, 16);
        assert_eq!(raws.iter().filter(|&&raw| raw & VALID != 0).count(), 0, "space {who} has pages in memory");
        family.check_all();
        family.finish();
    }
}

/// Without memory at any point fork leaves everything as it was.
#[test]
fn fork_without_memory_changes_nothing() {
    let rig = Rig::<K4>::new(Setup { slots: 0, frames: 300, ..setup::<K4>(LATE) });
    let mut family = Family::new(&rig, 64);
    (0..64).for_each(|page| family.store(0, page, 0, page as u64 + 1));
    let mut hogs = Vec::new();
    while let Ok(space) = family.members[0].space.fork(&rig.mm) {
        hogs.push(space);
    }
    assert!(hogs.len() > 10);
    family.check_all();
    let forks = rig.count("forks");
    assert!(family.members[0].space.fork(&rig.mm).is_err());
    assert_eq!(rig.count("forks"), forks);
    hogs.drain(..).for_each(|space| rig.destroy(space));
    family.check_all();
    (0..64).for_each(|page| family.store(0, page, 1, page as u64 + 1));
    family.finish();
}

/// The page that a store is to copy is the only one that can leave memory: its copy takes its place.
#[test]
fn a_copy_takes_the_place_of_its_page() {
    let orders = Some(FolioOrders::SINGLE);
    let rig = Rig::<K4>::new(Setup { frames: 128, slots: 1, tag_rooms: 1, orders, ..setup::<K4>(LATE) });
    let mut family = Family::new(&rig, 128);
    family.store(0, 0, 0, 7);
    family.advise(0, 0, 1, Advice::PageOut);
    let child = family.fork(0);
    let hog = (1..128).take_while(|&page| family.run(0).store(Family::<K4>::at(page), 9).is_ok()).count();
    assert!((20..127).contains(&hog), "{hog} pages fit");
    family.check(child, 0);
    in_turns(100, || family.store(child, 0, 1, 8));
    assert_eq!(rig.count("copies"), 0);
    family.check(child, 0);
    family.advise(0, 1, 127, Advice::DontNeed);
    family.check_all();
    family.finish();
}

/// Swapoff while several have what is in the area.
#[test]
fn swapoff_brings_back_what_is_shared() {
    for device in [DeviceFlags::SYNCHRONOUS, LATE] {
        let rig = Rig::<K4>::new(Setup { slots: 0, ..setup::<K4>(device) });
        let test_device = std::sync::Arc::new(ebbtide::machine::emu::TestDevice::new(128, device));
        let area = rig.swap_on(test_device, 128, 0).unwrap();
        let mut family = Family::new(&rig, 48);
        (0..48).for_each(|page| family.store(0, page, 0, page as u64 + 1));
        family.out(0);
        let child = family.fork(0);
        (0..20).for_each(|page| family.check(child, page));
        let spaces: Vec<_> = family.members.iter().map(|member| &member.space).collect();
        assert!(rig.mm.swap_off(area, &spaces).is_ok());
        family.check_all();
        (0..48).for_each(|page| family.store(0, page, 1, 3));
        family.check_all();
        family.finish();
    }
}

/// Swapoff with less memory than several share in the area: what is in memory for one, and out for the others, leaves
/// for another area meanwhile.
#[test]
fn swapoff_needs_no_memory_for_all_that_is_shared() {
    for (device, orders) in [DeviceFlags::SYNCHRONOUS, LATE, CHECKED]
        .into_iter()
        .flat_map(|device| [(device, FolioOrders::SINGLE), (device, FolioOrders::group::<K4>())])
    {
        let rig = Rig::<K4>::new(Setup { slots: 512, frames: 112, orders: Some(orders), ..setup::<K4>(device) });
        let test_device = std::sync::Arc::new(ebbtide::machine::emu::TestDevice::new(256, device));
        let first = rig.swap_on(test_device, 256, 1).unwrap();
        let mut family = Family::new(&rig, 128);
        (0..128).for_each(|page| {
            family.store(0, page, 0, page as u64 + 1);
            family.tag(0, page, page as u8 & 0xf);
        });
        family.out(0);
        let child = family.fork(0);
        family.fork(child);
        let spaces: Vec<_> = family.members.iter().map(|member| &member.space).collect();
        assert!(rig.mm.swap_off(first, &spaces).is_ok());
        assert!(rig.count("parted") > 0);
        family.check_all();
        (0..128).for_each(|page| family.store(page % 3, page, 1, 3));
        family.check_all();
        // There is nowhere else to go: the area stays, and all is there.
        let spaces: Vec<_> = family.members.iter().map(|member| &member.space).collect();
        assert_eq!(rig.mm.swap_off(rig.area.unwrap(), &spaces).err(), Some(SwapOffError::NoMemory));
        family.check_all();
        family.finish();
    }
}

fn random_life<G: Granule>(seed: u64, device: DeviceFlags, orders: Option<FolioOrders>, steps: u64) {
    let setup = setup::<G>(device);
    // Too little for all at once.
    let frames = if seed % 4 < 2 { 6 * G::GROUP_PAGES as u64 + 80 } else { setup.frames };
    let rig = Rig::<G>::new(Setup { seed, orders, frames, ..setup });
    let pages = 3 * G::GROUP_PAGES;
    let mut dice = Dice::new(seed);
    let mut family = Family::new(&rig, pages as u64);
    for step in 0..steps {
        let who = dice.below(family.members.len() as u64) as usize;
        let page = dice.below(pages as u64) as usize;
        let some = 1 + dice.below((pages - page).min(G::GROUP_PAGES + 3) as u64) as usize;
        match dice.below(24) {
            0..7 => family.store(who, page, dice.below(3) as usize, step + 1),
            7..9 => (page..page + some).for_each(|page| family.store(who, page, dice.below(3) as usize, step + 1)),
            9..12 => family.tag(who, page, dice.below(16) as u8),
            12..16 => (page..page + some).for_each(|page| family.check(who, page)),
            16 if family.members.len() < 5 => drop(family.fork(who)),
            17 if family.members.len() > 1 => family.end(who),
            18 => family.advise(who, page, some, Advice::PageOut),
            19 => family.out(who),
            20 => family.advise(who, page, some, Advice::Free),
            21 => family.advise(who, page, some, Advice::DontNeed),
            22 => {
                let start = VirtAddr::new(Family::<G>::at(page));
                let protect = |protection: Protection| {
                    let bytes = (some as u64) << G::SHIFT;
                    family.members[who].space.protect(&rig.mm, start, bytes, protection).unwrap();
                };
                protect(Protection::READ);
                protect(RWT);
            }
            _ => family.advise(who, page, some, Advice::Cold),
        }
        if step % 64 == 0 {
            rig.emu().check_all_groups();
        }
    }
    family.check_all();
    family.finish();
}

#[test]
fn random_families() {
    for seed in 0..24 {
        let device = [DeviceFlags::SYNCHRONOUS, LATE, CHECKED][seed as usize % 3];
        let orders = if seed % 2 == 0 { None } else { Some(FolioOrders::SINGLE) };
        random_life::<K4>(seed, device, orders, 600);
    }
}

#[test]
fn random_families_at_other_granules() {
    for seed in 0..4 {
        random_life::<K16>(seed, LATE, None, 200);
        random_life::<K64>(seed, LATE, None, 300);
    }
}
