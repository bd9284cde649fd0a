//! What a program asks for its memory: to stay, to come, to be single pages; and what it is told of it.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::{Advice, LEAST_CAP_PAGES};
use ebbtide::space::{Access, FaultError, Folios, MapError, MemoryCap, Protection, Residency, Touch};

use support::{RW, RWT, Rig, Setup, Stage, refusal, tagged};

const BASE: u64 = 0x4000_0000;

fn setup<G: Granule>(orders: Option<FolioOrders>) -> Setup {
    let frames = 256 + 6 * G::GROUP_PAGES as u64;
    let slots = 512 + 4 * G::GROUP_PAGES as u32;
    Setup { frames, slots, tag_rooms: slots, orders, adversary: Adversary::Full, ..Setup::default() }
}

const SINGLE: Option<FolioOrders> = Some(FolioOrders::SINGLE);

fn at<G: Granule>(page: u64) -> u64 {
    BASE + (page << G::SHIFT)
}

fn va<G: Granule>(page: u64) -> VirtAddr {
    VirtAddr::new(at::<G>(page))
}

fn tag(page: u64) -> u8 {
    (page % 15) as u8 + 1
}

/// A tagged region of `pages` pages, each of which knows its number and its tag.
fn region<G: Granule>(rig: &Rig<G>, pages: u64) -> Space<Stage<G>> {
    let space = rig.space();
    rig.map(&space, BASE, pages, RWT);
    write(rig, &space, 0..pages);
    space
}

fn write<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, pages: impl IntoIterator<Item = u64>) {
    let program = rig.program(space);
    for page in pages {
        program.stg(at::<G>(page) + 64, tag(page)).unwrap();
        program.store(tagged(at::<G>(page) + 64, tag(page)), page + 1).unwrap();
    }
}

fn check<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, pages: impl IntoIterator<Item = u64>) {
    let program = rig.program(space);
    for page in pages {
        assert_eq!(program.load(tagged(at::<G>(page) + 64, tag(page))), Ok(page + 1), "page {page}");
    }
}

fn advise<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, (first, pages): (u64, u64), advice: Advice) {
    space.advise(&rig.mm, va::<G>(first), pages << G::SHIFT, advice).unwrap();
}

/// Another program takes all the memory that it can get, until it dies of that or has stored so many pages.
fn press<G: Granule>(rig: &Rig<G>, pages: u64) -> u64 {
    let other = rig.space();
    rig.map(&other, BASE, pages, RW);
    rig.activate(0, &other);
    let program = rig.program(&other);
    let stored = (0..pages).take_while(|&page| program.store(at::<G>(page), page).is_ok()).count() as u64;
    rig.destroy(other);
    stored
}

fn comes_as_asked<G: Granule>() {
    for orders in [None, SINGLE] {
        let rig = Rig::<G>::new(setup::<G>(orders));
        let pages = 2 * G::GROUP_PAGES as u64 + 5;
        let space = region(&rig, pages);
        advise(&rig, &space, (0, pages), Advice::PageOut);
        assert_eq!(rig.count("swap_out"), pages);
        advise(&rig, &space, (1, pages - 1), Advice::WillNeed);
        assert_eq!(rig.count("swap_in"), pages - 1, "all but the first, which nobody asked for");
        assert_eq!(rig.count("swap_in_folios"), if orders.is_none() { 1 } else { 0 });
        check(&rig, &space, 1..pages);
        assert_eq!(rig.count("swap_in"), pages - 1, "it has come");
        check(&rig, &space, [0]);
        rig.emu().check_all_groups();
        rig.finish(space);
    }
}

#[test]
fn what_will_be_needed_is_there() {
    comes_as_asked::<K4>();
    comes_as_asked::<K16>();
    comes_as_asked::<K64>();
}

/// Nothing leaves so that something comes, and that it does not come is no error.
#[test]
fn short_memory_brings_in_nothing() {
    let rig = Rig::<K4>::new(setup::<K4>(SINGLE));
    let space = region(&rig, 200);
    advise(&rig, &space, (0, 200), Advice::PageOut);
    let other = rig.space();
    rig.map(&other, BASE, 512, RW);
    rig.activate(0, &other);
    let filler = rig.program(&other);
    (0..512).take_while(|_| rig.count("background_wakes") == 0).for_each(|page| {
        filler.store(at::<K4>(page), page).unwrap();
    });
    let out = rig.count("swap_out");
    advise(&rig, &space, (0, 200), Advice::WillNeed);
    assert_eq!((rig.count("swap_in"), rig.count("swap_out")), (0, out));
    rig.destroy(other);
    rig.activate(0, &space);
    check(&rig, &space, 0..200);
    rig.finish(space);
}

fn is_made_ready<G: Granule>() {
    for orders in [None, SINGLE] {
        let rig = Rig::<G>::new(setup::<G>(orders));
        let pages = 3 * G::GROUP_PAGES as u64;
        let space = region(&rig, pages);
        let faults = |touch| {
            let before = rig.count("faults");
            // Neither end is a page's.
            let (start, bytes) = (VirtAddr::new(at::<G>(0) + 16), (pages << G::SHIFT) - 32);
            let result = space.populate(&rig.mm, start, bytes, touch);
            (rig.count("faults") - before, result.map_err(|unready| unready.error))
        };
        assert_eq!(faults(Touch::As(Access::Write)), (0, Ok(())), "nothing is counted for what is ready");
        advise(&rig, &space, (0, pages), Advice::Cold);
        advise(&rig, &space, (3, 2), Advice::PageOut);
        assert!((1..=pages).contains(&faults(Touch::AsAllowed).0));
        assert_eq!(rig.count("swap_in"), 2);
        assert_eq!(faults(Touch::As(Access::Read)), (0, Ok(())));
        // Clean, and used since: a load is free, a store is not.
        advise(&rig, &space, (0, pages), Advice::Free);
        assert!(faults(Touch::As(Access::Read)).0 > 0);
        assert_eq!(faults(Touch::As(Access::Read)).0, 0);
        assert!(faults(Touch::As(Access::Write)).0 > 0);
        assert_eq!(faults(Touch::As(Access::Write)).0, 0);
        let child = space.fork(&rig.mm).unwrap();
        assert_eq!(faults(Touch::As(Access::Read)).0, 0);
        let copies = rig.count("copies");
        assert_eq!(faults(Touch::AsAllowed).1, Ok(()));
        assert_eq!(rig.count("copies") - copies, pages, "a store needs pages of its own");
        rig.destroy(child);
        space.protect(&rig.mm, va::<G>(1), 1 << G::SHIFT, Protection::READ).unwrap();
        assert_eq!(faults(Touch::AsAllowed).1, Ok(()), "as a load there");
        advise(&rig, &space, (0, pages), Advice::DontNeed);
        assert_eq!(faults(Touch::As(Access::Write)).1, Err(FaultError::Protection));
        assert_eq!(resident(&rig, &space, 1), 1, "those before it are ready");
        space.unmap(&rig.mm, va::<G>(2), 1 << G::SHIFT).unwrap();
        assert_eq!(faults(Touch::AsAllowed).1, Err(FaultError::NotMapped));
        assert_eq!(space.populate(&rig.mm, va::<G>(2), 0, Touch::AsAllowed), Ok(()), "no page");
        rig.emu().check_all_groups();
        rig.finish(space);
    }
}

#[test]
fn what_is_ready_is_passed_over() {
    is_made_ready::<K4>();
    is_made_ready::<K16>();
    is_made_ready::<K64>();
}

fn stays<G: Granule>() {
    for orders in [None, SINGLE] {
        // Slots for all that presses: else it dies, and what is in memory then is anybody's.
        let setup = setup::<G>(orders);
        let slots = 3 * setup.frames as u32;
        let rig = Rig::<G>::new(Setup { slots, tag_rooms: slots, ..setup });
        let group = G::GROUP_PAGES as u64;
        let pages = 4 * group;
        let space = region(&rig, pages);
        let locked = 3 * group / 2..5 * group / 2;
        // From the middle of one folio to the middle of the next.
        space.mlock(&rig.mm, va::<G>(locked.start), group << G::SHIFT).unwrap();
        let size = 2 * rig.mm.totals().frames;
        press(&rig, size);
        assert!(rig.count("locked") > 0);
        rig.activate(0, &space);
        let reads = rig.count("swap_in");
        check(&rig, &space, locked.clone());
        assert_eq!(rig.count("swap_in"), reads, "what is locked never left");
        check(&rig, &space, 0..pages);
        assert!(rig.count("swap_in") > reads, "the others did");
        for advice in [Advice::DontNeed, Advice::Free, Advice::Cold, Advice::PageOut] {
            let refused = space.advise(&rig.mm, va::<G>(0), pages << G::SHIFT, advice);
            assert_eq!(refused, Err(MapError::Locked(va::<G>(locked.start))));
            write(&rig, &space, 0..pages);
        }
        // Rights come and go, and it stays.
        space.protect(&rig.mm, va::<G>(0), pages << G::SHIFT, Protection::READ).unwrap();
        press(&rig, size);
        rig.activate(0, &space);
        let reads = rig.count("swap_in");
        check(&rig, &space, locked.clone());
        assert_eq!(rig.count("swap_in"), reads);
        space.munlock(&rig.mm, va::<G>(0), pages << G::SHIFT).unwrap();
        press(&rig, size);
        rig.activate(0, &space);
        check(&rig, &space, 0..pages);
        assert!(rig.count("swap_in") >= reads + pages);
        rig.emu().check_all_groups();
        rig.finish(space);
    }
}

#[test]
fn what_is_locked_stays() {
    stays::<K4>();
    stays::<K16>();
    stays::<K64>();
}

/// What comes to a locked region is locked as well: by a first touch, from a slot, as a copy. A child's is not.
#[test]
fn what_comes_is_locked() {
    let rig = Rig::<K4>::new(setup::<K4>(None));
    let space = region(&rig, 64);
    advise(&rig, &space, (0, 32), Advice::PageOut);
    space.mlock(&rig.mm, va::<K4>(0), 64 << 12).unwrap();
    rig.map(&space, at::<K4>(64), 16, RWT | Protection::LOCKED);
    write(&rig, &space, 64..80);
    check(&rig, &space, 0..64);
    let child = space.fork(&rig.mm).unwrap();
    write(&rig, &space, 0..8);
    let size = 2 * rig.mm.totals().frames;
    press(&rig, size);
    rig.activate(0, &space);
    let reads = rig.count("swap_in");
    check(&rig, &space, 0..80);
    assert_eq!(rig.count("swap_in"), reads);
    // The parent's copies left the child with the pages alone.
    rig.activate(0, &child);
    advise(&rig, &child, (0, 8), Advice::PageOut);
    check(&rig, &child, 0..80);
    assert!(rig.count("swap_in") >= reads + 8);
    rig.destroy(space);
    press(&rig, size);
    rig.activate(0, &child);
    let reads = rig.count("swap_in");
    check(&rig, &child, 0..80);
    assert!(rig.count("swap_in") > reads + 20);
    rig.finish(child);
}

/// All that a program has is locked: another one dies for want of memory, and soon.
#[test]
fn all_is_locked() {
    let rig = Rig::<K4>::new(setup::<K4>(None));
    let pages = 200;
    let space = region(&rig, pages);
    space.mlock(&rig.mm, va::<K4>(0), pages << 12).unwrap();
    let (frames, scanned) = (rig.mm.totals().frames, rig.count("scanned"));
    let slots = rig.mm.totals().slots;
    let stored = press(&rig, 4 * (frames + slots));
    assert!(stored < 4 * (frames + slots), "it died");
    assert!(rig.count("scanned") - scanned < 40 * stored.max(frames), "within few looks a page");
    rig.activate(0, &space);
    let reads = rig.count("swap_in");
    check(&rig, &space, 0..pages);
    assert_eq!(rig.count("swap_in"), reads);
    rig.finish(space);
}

#[test]
fn single_pages_where_they_are_asked_for() {
    let rig = Rig::<K4>::new(setup::<K4>(None));
    let space = rig.space();
    rig.map(&space, BASE, 64, RWT);
    space.prefer_folios(&rig.mm, va::<K4>(16), 32 << 12, Folios::Single).unwrap();
    write(&rig, &space, 0..64);
    assert_eq!((rig.count("large_folios"), rig.count("first_touches")), (2, 64));
    advise(&rig, &space, (0, 64), Advice::DontNeed);
    space.prefer_folios(&rig.mm, va::<K4>(16), 32 << 12, Folios::Any).unwrap();
    write(&rig, &space, 0..64);
    assert_eq!(rig.count("large_folios"), 6);
    rig.finish(space);
}

#[test]
fn a_program_is_told_what_is_there() {
    use Residency::{Absent, Out, Resident};
    let rig = Rig::<K4>::new(setup::<K4>(SINGLE));
    let space = region(&rig, 20);
    // As long as a table and more: nothing is there, not even a table.
    rig.map(&space, at::<K4>(20), 1200, RW);
    advise(&rig, &space, (3, 2), Advice::PageOut);
    advise(&rig, &space, (7, 1), Advice::DontNeed);
    rig.program(&space).store(at::<K4>(1210), 1).unwrap();
    let mut told = Vec::new();
    space.residency(&rig.mm, va::<K4>(0), 1220 << 12, |residency| told.push(residency)).unwrap();
    assert_eq!(told.len(), 1220);
    for (page, &residency) in told.iter().enumerate() {
        let expected = match page {
            3 | 4 => Out,
            0..20 | 1210 if page != 7 => Resident,
            _ => Absent,
        };
        assert_eq!(residency, expected, "page {page}");
    }
    // Kept by a device that failed: out, and in memory.
    rig.device.fail_after(0);
    advise(&rig, &space, (10, 1), Advice::PageOut);
    space.residency(&rig.mm, va::<K4>(10), 1, |residency| assert_eq!(residency, Resident)).unwrap();
    let all = (va::<K4>(0), 1220 << 12);
    assert_eq!(space.region_from(&rig.mm, VirtAddr::new(0)).map(|(start, _)| start), Some(all.0));
    let second = space.region_from(&rig.mm, va::<K4>(1219)).map(|(start, bytes)| start.bytes() + bytes);
    assert_eq!(second, Some(all.0.bytes() + all.1));
    assert_eq!(space.region_from(&rig.mm, va::<K4>(1220)), None);
    let beyond = space.residency(&rig.mm, va::<K4>(1219), 2 << 12, |_| {});
    assert_eq!(beyond, Err(MapError::NotMapped(va::<K4>(1220))));
    rig.finish(space);
}

fn resident<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, pages: u64) -> u64 {
    let mut resident = 0;
    let count = |residency| resident += u64::from(residency == Residency::Resident);
    space.residency(&rig.mm, va::<G>(0), pages << G::SHIFT, count).unwrap();
    resident
}

/// A space at its cap makes room for itself; nobody else's pages leave for it.
fn stays_below<G: Granule>() {
    for orders in [None, SINGLE] {
        let pages = 3 * LEAST_CAP_PAGES.max(4 * G::GROUP_PAGES as u64);
        let (frames, slots) = (4 * pages, 4 * pages as u32);
        let rig = Rig::<G>::new(Setup { frames, slots, tag_rooms: slots, ..setup::<G>(orders) });
        let cap = rig.mm.least_cap_pages();
        let other = region(&rig, 64);
        let space = rig.space();
        rig.activate(0, &space);
        rig.map(&space, BASE, pages, RWT);
        space.set_cap(&rig.mm, MemoryCap::Pages(0));
        assert_eq!(space.cap(&rig.mm), MemoryCap::Pages(LEAST_CAP_PAGES));
        for page in 0..pages {
            write(&rig, &space, [page]);
            assert!(page % 64 > 0 || resident(&rig, &space, pages) <= cap);
        }
        assert!(resident(&rig, &space, pages) > LEAST_CAP_PAGES / 2, "what is allowed is used");
        check(&rig, &space, (0..pages).rev());
        check(&rig, &space, 0..pages);
        assert!(resident(&rig, &space, pages) <= cap);
        // A pin finds its page all the same.
        let pin = space.pin(&rig.mm, va::<G>(7), Access::Read).unwrap();
        check(&rig, &space, 0..pages);
        rig.mm.unpin(pin);
        let child = space.fork(&rig.mm).unwrap();
        assert_eq!(child.cap(&rig.mm), MemoryCap::Pages(LEAST_CAP_PAGES));
        rig.activate(0, &child);
        check(&rig, &child, 0..pages);
        assert!(resident(&rig, &child, pages) <= cap);
        rig.destroy(child);
        rig.activate(0, &space);
        check(&rig, &space, 0..pages);
        assert_eq!(resident(&rig, &other, 64), 64);
        assert_eq!((rig.count("direct_reclaims"), rig.count("background_wakes")), (0, 0));
        space.set_cap(&rig.mm, MemoryCap::None);
        check(&rig, &space, 0..pages);
        assert_eq!(resident(&rig, &space, pages), pages);
        rig.emu().check_all_groups();
        rig.destroy(other);
        rig.finish(space);
    }
}

#[test]
fn a_space_stays_below_its_cap() {
    stays_below::<K4>();
    stays_below::<K16>();
    stays_below::<K64>();
}

/// Nothing of it can leave: its faults are refused, and others go on.
#[test]
fn a_space_at_its_cap_without_slots() {
    let rig = Rig::<K4>::new(Setup { frames: 2048, slots: 0, ..setup::<K4>(None) });
    let (space, other) = (rig.space(), rig.space());
    rig.map(&space, BASE, 1024, RW);
    rig.map(&other, BASE, 64, RW);
    space.set_cap(&rig.mm, MemoryCap::Pages(400));
    rig.activate(0, &space);
    let program = rig.program(&space);
    let stored = (0..1024).take_while(|&page| program.store(at::<K4>(page), page).is_ok()).count() as u64;
    assert!((380..=400).contains(&stored), "{stored}");
    assert_eq!(refusal(program.store(at::<K4>(1000), 1)), FaultError::Capped);
    (0..stored).for_each(|page| assert_eq!(program.load(at::<K4>(page)), Ok(page)));
    // What is there needs no room.
    space.protect(&rig.mm, va::<K4>(0), 1024 << 12, Protection::READ).unwrap();
    space.protect(&rig.mm, va::<K4>(0), 1024 << 12, RW).unwrap();
    let child = space.fork(&rig.mm).unwrap();
    rig.destroy(child);
    rig.activate(0, &space);
    (0..stored).for_each(|page| program.store(at::<K4>(page), page).unwrap());
    rig.activate(0, &other);
    let program = rig.program(&other);
    (0..64).for_each(|page| program.store(at::<K4>(page), page).unwrap());
    // It gives some up, and goes on.
    space.advise(&rig.mm, va::<K4>(0), 64 << 12, Advice::DontNeed).unwrap();
    rig.activate(0, &space);
    rig.program(&space).store(at::<K4>(1000), 1).unwrap();
    rig.destroy(other);
    rig.finish(space);
}

/// What was never stored to needs no slot, but what is locked stays, also in the last round, which no use stops.
#[test]
fn what_is_locked_stays_at_the_cap() {
    // Without slots, and pages that were never stored to; and the other way round.
    for (orders, slots) in [(None, 0), (SINGLE, 0), (None, 2048), (SINGLE, 2048)] {
        let rig = Rig::<K4>::new(Setup { frames: 2048, slots, ..setup::<K4>(orders) });
        let space = rig.space();
        rig.activate(0, &space);
        rig.map(&space, BASE, 256, RW | Protection::LOCKED);
        rig.map(&space, at::<K4>(256), 1024, RW);
        space.set_cap(&rig.mm, MemoryCap::Pages(400));
        let program = rig.program(&space);
        for page in 0..256 {
            match slots {
                0 => assert_eq!(program.load(at::<K4>(page)), Ok(0)),
                _ => program.store(at::<K4>(page), page).unwrap(),
            }
        }
        let stored = (256..1024).take_while(|&page| program.store(at::<K4>(page), page).is_ok()).count();
        assert!(if slots == 0 { (100..=144).contains(&stored) } else { stored == 768 }, "{stored}");
        assert_eq!(resident(&rig, &space, 256), 256);
        rig.finish(space);
    }
}

/// A page that a CPU uses without end stays below the cap: its translation is asked for again after each look.
#[test]
fn a_page_in_use_stays_below_the_cap() {
    let rig = Rig::<K4>::new(Setup { cpus: 2, slots: 1024, adversary: Adversary::Quiet, ..setup::<K4>(SINGLE) });
    let space = rig.space();
    rig.map(&space, BASE, 900, RW);
    space.set_cap(&rig.mm, MemoryCap::Pages(LEAST_CAP_PAGES));
    let mut returns = 0;
    for page in 1..900 {
        rig.program(&space).store(at::<K4>(page), page).unwrap();
        let before = rig.count("swap_in");
        // CPU 1 does nothing else.
        rig.program_on(1, &space).store(BASE, page).unwrap();
        // When the cap is met for the first time, all below it is in use: then any page may go.
        if page > 2 * LEAST_CAP_PAGES {
            returns += rig.count("swap_in") - before;
        }
    }
    assert!(rig.count("swap_out") > 200);
    assert_eq!(returns, 0, "it left and came back");
    rig.finish(space);
}

/// Of pages that lie side by side those leave for the cap that were not used since the last look.
#[test]
fn what_is_used_stays_beside_what_is_not() {
    let (cap, some) = (2 * LEAST_CAP_PAGES, 300..400);
    let frames = 2 * cap;
    let rig = Rig::<K4>::new(Setup { frames, slots: 4096, adversary: Adversary::Quiet, ..setup::<K4>(SINGLE) });
    let space = rig.space();
    rig.activate(0, &space);
    rig.map(&space, BASE, 4 * cap, RW);
    space.set_cap(&rig.mm, MemoryCap::Pages(cap));
    let is_there = |page: u64| {
        let mut seen = Vec::new();
        space.residency(&rig.mm, va::<K4>(page), 1 << 12, |residency| seen.push(residency)).unwrap();
        seen == [Residency::Resident]
    };
    let program = rig.program(&space);
    let mut stores = (0..4 * cap).map(|page| program.store(at::<K4>(page), page).unwrap());
    // The cap is met: all pages have been looked at, and the first have left.
    while rig.count("swap_out") == 0 {
        stores.next().expect("the cap is never met");
    }
    assert!(some.clone().all(is_there));
    some.clone().step_by(2).for_each(|page| assert_eq!(program.load(at::<K4>(page)), Ok(page)));
    while some.clone().skip(1).step_by(2).any(is_there) {
        stores.next().expect("they never leave");
    }
    assert!(some.step_by(2).all(is_there), "a page that was used has left");
    rig.finish(space);
}
