//! Short of frames: who waits for the background reclaimer, what a page takes from the reserve, and how many folios are
//! looked at before it is said that there is no memory.

mod support;

use std::thread;

use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::reclaim::Advice;
use ebbtide::space::{FaultError, Protection, Size};

use support::{Ended, Program, RW, RWT, Rig, Setup, refusal, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;

fn at(page: u64) -> u64 {
    BASE + page * PAGE
}

/// How requests for a frame ended that found none beside the reserve.
fn ends(rig: &Rig) -> [u64; 4] {
    ["short_progress", "short_waits", "direct_reclaims", "short_failures"].map(|name| rig.count(name))
}

/// One program on CPU 0, and a reclaimer on CPU 1 that works when it is asked: faults wait for it, and hardly ever
/// reclaim for themselves. Without one all do.
#[test]
fn faults_wait_for_the_background_reclaimer() {
    for has_reclaimer in [true, false] {
        let setup = Setup { frames: 512, slots: 4096, cpus: 2, orders: Some(FolioOrders::SINGLE), ..Setup::default() };
        // The reclaimer never ends.
        let rig: &'static Rig = Box::leak(Box::new(Rig::<K4>::new(setup)));
        if has_reclaimer {
            thread::spawn(|| {
                rig.emu().set_cpu(1);
                rig.mm.reclaimer()
            });
            // It is there from its first step on.
            for _ in 0..1000 {
                if ends(rig)[1] > 0 {
                    break;
                }
                let space = rig.space();
                rig.map(&space, BASE, 600, RW);
                let program = rig.program(&space);
                (0..600).for_each(|page| program.store(at(page), page).unwrap());
                rig.destroy(space);
            }
        }
        let space = rig.space();
        rig.map(&space, BASE, 3000, RW);
        let program = rig.program(&space);
        let before = ends(rig);
        (0..3000).for_each(|page| program.store(at(page), page).unwrap());
        (0..3000).for_each(|page| assert_eq!(program.load(at(page)), Ok(page)));
        let [progress, waits, direct, failures] =
            ends(rig).iter().zip(before).map(|(now, before)| now - before).collect::<Vec<_>>()[..]
        else {
            unreachable!()
        };
        assert_eq!(failures, 0);
        if has_reclaimer {
            assert!(waits > 10 && waits > 10 * direct, "{waits} waits, {direct} direct reclaims");
        } else {
            assert!(progress + waits == 0 && direct > 10, "{progress} and {waits}, {direct} direct reclaims");
        }
        rig.destroy(space);
    }
}

/// A program that stores to page after page until it hears that there is no memory. Returns the pages that it stored
/// to.
fn fill(store: impl Fn(u64) -> Result<(), Ended>, most: u64) -> u64 {
    let error = (0..most).find_map(|page| Some((page, store(page).err()?)));
    let (page, _) = error.expect("there is less memory than that");
    assert_eq!(refusal(store(page)), FaultError::NoMemory);
    page
}

/// All that may leave are a few pages that were never stored to, which the program uses over and over, and more of
/// which there are than frames for them. It hears that there is no memory after a few searches: it is not left to go on by a
/// search of all of memory for each page.
fn is_out(setup: Setup, protection: Protection, store: impl Fn(&Program<'_, K4>, u64) -> Result<(), Ended>) {
    const CLEAN: u64 = 10;
    let rig = Rig::<K4>::new(Setup { frames: 2048, orders: Some(FolioOrders::SINGLE), ..setup });
    let space = rig.space();
    rig.map(&space, BASE, 4096, protection);
    let program = rig.program(&space);
    let stored = fill(|page| store(&program, page), 4096) - CLEAN;
    space.advise(&rig.mm, VirtAddr::new(at(stored)), CLEAN * PAGE, Advice::DontNeed).unwrap();
    let before = rig.count("scanned");
    let cycle = |turn| at(stored + turn % (2 * CLEAN));
    let refused = (0..1000).find(|&turn| program.load(cycle(turn)).is_err()).expect("it is not refused");
    let searches = (rig.count("scanned") - before) / (3 * stored);
    assert!((2..40).contains(&searches), "{searches} searches");
    // It may ask again: having been looked at has not made the pages any less used.
    (0..10).for_each(|_| assert_eq!(refusal(program.load(cycle(refused))), FaultError::NoMemory));
    (0..stored).for_each(|page| assert_eq!(program.load(tagged(at(page), store_tag(protection, page))), Ok(page)));
    // With memory free again it goes on, and what is in use leaves for what comes.
    space.advise(&rig.mm, VirtAddr::new(at(0)), 200 * PAGE, Advice::DontNeed).unwrap();
    (0..600).for_each(|turn| assert_eq!(program.load(at(stored + turn % 300)), Ok(0)));
    rig.finish(space);
}

/// The tag of a page's first granule.
fn store_tag(protection: Protection, page: u64) -> u8 {
    if protection.contains(Protection::TAGGED) { 1 + (page % 15) as u8 } else { 0 }
}

#[test]
fn memory_is_out_when_only_pages_in_use_can_leave() {
    // There is no swap.
    is_out(Setup { slots: 0, ..Setup::default() }, RW, |program, page| program.store(at(page), page));
    // There is no room for the tags of all these granules, which follow no rule.
    is_out(Setup { slots: 4096, tag_rooms: 0, ..Setup::default() }, RWT, |program, page| {
        let tag = store_tag(RWT, page);
        let others = (1..60).map(|granule| (granule, ((page + granule * granule * 2654435761) >> 7) as u8 & 15));
        others.chain([(0, tag)]).try_for_each(|(granule, tag)| program.stg(at(page) + 16 * granule, tag))?;
        program.store(tagged(at(page), tag), page)
    });
}

/// What a space has is what its pages say, those that it shares included.
#[test]
fn the_size_of_a_space() {
    let rig = Rig::<K4>::new(Setup { frames: 1024, ..Setup::default() });
    let space = rig.space();
    assert_eq!(space.size(&rig.mm), Size::default());
    rig.map(&space, BASE, 100, RW);
    // Another region of the same table.
    rig.map(&space, at(104), 8, RW);
    let program = rig.program(&space);
    (0..100).for_each(|page| program.store(at(page), page).unwrap());
    (104..112).for_each(|page| program.store(at(page), page).unwrap());
    assert_eq!(space.size(&rig.mm), Size { resident: 108, swapped: 0 });
    space.advise(&rig.mm, VirtAddr::new(at(32)), 32 * PAGE, Advice::PageOut).unwrap();
    assert_eq!(space.size(&rig.mm), Size { resident: 76, swapped: 32 });
    let child = space.fork(&rig.mm).unwrap();
    assert_eq!(child.size(&rig.mm), Size { resident: 76, swapped: 32 });
    assert_eq!(child.size(&rig.mm).pages(), 108);
    space.unmap(&rig.mm, VirtAddr::new(at(0)), 40 * PAGE).unwrap();
    assert_eq!(space.size(&rig.mm), Size { resident: 44, swapped: 24 });
    rig.destroy(child);
    rig.finish(space);
}
