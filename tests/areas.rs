//! Several swap areas: which is filled first, and what becomes of the pages when one is turned off.

mod support;

use std::sync::Arc;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::emu::{Adversary, TestDevice};
use ebbtide::reclaim::Advice;
use ebbtide::space::FaultError;
use ebbtide::swap::{AreaId, DeviceFlags, SwapOffError, SwapOnError};

use support::{Dice, Program, RWT, Rig, Setup, Stage, refusal, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;

fn at(page: u64) -> u64 {
    BASE + page * PAGE
}

/// No area yet.
fn rig(frames: u64) -> Rig {
    Rig::new(Setup { frames, slots: 0, tag_rooms: 0, adversary: Adversary::Full, ..Setup::default() })
}

fn device(slots: u32) -> Arc<TestDevice> {
    Arc::new(TestDevice::new(slots, DeviceFlags::SYNCHRONOUS))
}

fn written(device: &TestDevice) -> u32 {
    (0..device.slots()).filter(|&slot| device.page(slot).is_some()).count() as u32
}

fn write(program: &Program<'_, K4>, page: u64) {
    let granules = if page.is_multiple_of(3) { 100 } else { 2 };
    (0..granules).for_each(|granule| program.stg(at(page) + 32 * granule, (page + granule) as u8 & 0xf).unwrap());
    program.store(tagged(at(page), page as u8 & 0xf), page + 100).unwrap();
}

fn check(program: &Program<'_, K4>, page: u64) {
    assert_eq!(program.load(tagged(at(page), page as u8 & 0xf)), Ok(page + 100), "page {page}");
    assert_eq!(program.ldg(at(page) + 32), Ok((page + 1) as u8 & 0xf), "page {page}");
    assert_eq!(program.ldg(at(page) + 48), Ok(0), "page {page}");
}

fn out(rig: &Rig, space: &Space<Stage<K4>>, page: u64, pages: u64) {
    space.advise(&rig.mm, VirtAddr::new(at(page)), pages * PAGE, Advice::PageOut).unwrap();
}

/// A program with so many pages, all of them written.
fn space(rig: &Rig, pages: u64) -> Space<Stage<K4>> {
    let space = rig.space();
    rig.map(&space, BASE, pages, RWT);
    (0..pages).for_each(|page| write(&rig.program(&space), page));
    space
}

/// The space goes, every area goes, and nothing is missing.
fn end(rig: &Rig, space: Space<Stage<K4>>, areas: &[AreaId]) {
    rig.destroy(space);
    let totals = rig.mm.totals();
    assert_eq!((totals.slots_free, totals.tag_rooms_free), (totals.slots, totals.tag_rooms));
    areas.iter().for_each(|&area| assert!(rig.mm.swap_off(area, &[]).is_ok()));
    rig.check_nothing_leaked();
}

#[test]
fn the_higher_priority_is_filled_first_and_equals_in_turn() {
    let rig = rig(400);
    rig.mm.set_folio_orders(FolioOrders::SINGLE);
    let devices: Vec<_> = (0..4).map(|_| device(20)).collect();
    let priorities = [5, -3, 7, 5];
    let areas: Vec<_> = devices
        .iter()
        .zip(priorities)
        .map(|(device, priority)| rig.swap_on(Arc::clone(device), 20, priority).unwrap())
        .collect();
    let space = space(&rig, 64);
    let in_use = || devices.iter().map(|device| written(device)).collect::<Vec<_>>();
    out(&rig, &space, 1, 20);
    assert_eq!(in_use(), [0, 0, 20, 0]);
    // One call after the other: a stretch of slots at a time.
    (0..10).for_each(|page| out(&rig, &space, 21 + page, 1));
    assert_eq!(in_use(), [5, 0, 20, 5]);
    out(&rig, &space, 31, 33);
    assert_eq!(in_use(), [20, 3, 20, 20]);
    (0..64).for_each(|page| check(&rig.program(&space), page));
    end(&rig, space, &areas);
}

#[test]
fn a_large_folio_goes_where_it_fits() {
    let rig = rig(400);
    let (small, large) = (device(15), device(64));
    let areas = [rig.swap_on(Arc::clone(&small), 15, 1).unwrap(), rig.swap_on(Arc::clone(&large), 64, 0).unwrap()];
    let space = space(&rig, 32);
    out(&rig, &space, 0, 32);
    assert_eq!((written(&small), written(&large), rig.count("swap_out_folios")), (0, 32, 2));
    (0..32).for_each(|page| check(&rig.program(&space), page));
    end(&rig, space, &areas);
}

/// Pages, folios, words and tags come back, and the number serves again.
#[test]
fn swapoff_brings_everything_back() {
    for flags in [DeviceFlags::SYNCHRONOUS, DeviceFlags::STABLE_WRITES | DeviceFlags::CHECKED] {
        let rig = rig(400);
        let space = space(&rig, 60);
        for round in 0..40 {
            let device = Arc::new(TestDevice::new(64, flags));
            let area = rig.swap_on(Arc::clone(&device), 64, 0).unwrap();
            assert_eq!(area.number(), 0);
            out(&rig, &space, round, 60 - round);
            assert_eq!(u64::from(written(&device)), 60 - round);
            assert!(rig.mm.swap_off(area, &[&space]).is_ok());
            assert_eq!((rig.mm.totals().slots, rig.count("pages_lost")), (0, 0));
            // Nobody asks the device for anything any more.
            (0..64).for_each(|slot| device.discard(slot));
            (0..60).for_each(|page| check(&rig.program(&space), page));
            assert!(matches!(rig.mm.swap_off(area, &[&space]), Err(SwapOffError::NoSuchArea)));
        }
        end(&rig, space, &[]);
    }
}

/// Without memory for all the pages the area stays, and each page is somewhere.
#[test]
fn swapoff_without_memory_changes_nothing() {
    let rig = rig(112);
    let device = device(300);
    let area = rig.swap_on(Arc::clone(&device), 300, 0).unwrap();
    let space = space(&rig, 200);
    assert_eq!(rig.mm.swap_off(area, &[&space]), Err(SwapOffError::NoMemory));
    (0..200).for_each(|page| check(&rig.program(&space), page));
    assert_eq!(rig.mm.swap_off(area, &[]).map(drop), Err(SwapOffError::InUse(rig_slots_in_use(&rig))));
    // It takes pages as before.
    (0..200).for_each(|page| write(&rig.program(&space), page));
    (0..200).for_each(|page| check(&rig.program(&space), page));
    // With another area the pages have a place to go.
    let other = rig.swap_on(self::device(300), 300, 0).unwrap();
    assert!(rig.mm.swap_off(area, &[&space]).is_ok());
    (0..200).for_each(|page| check(&rig.program(&space), page));
    end(&rig, space, &[other]);
}

fn rig_slots_in_use(rig: &Rig) -> u32 {
    let totals = rig.mm.totals();
    (totals.slots - totals.slots_free) as u32
}

/// A page that cannot be read back does not stop it: who touches it is told, for good; the rest lives.
#[test]
fn swapoff_gives_up_what_cannot_be_read() {
    let rig = rig(400);
    let device = device(64);
    let area = rig.swap_on(Arc::clone(&device), 64, 0).unwrap();
    let space = space(&rig, 40);
    out(&rig, &space, 0, 40);
    let lost = [3, 20, 21];
    for page in lost {
        let slot = (0..64).find(|&slot| device.page(slot).is_some_and(|words| words[0] == page + 100)).unwrap();
        device.discard(slot);
    }
    assert!(rig.mm.swap_off(area, &[&space]).is_ok());
    assert_eq!(rig.count("pages_lost"), 3);
    let program = rig.program(&space);
    for page in 0..40 {
        if lost.contains(&page) {
            assert_eq!(refusal(program.load(at(page))), FaultError::Lost);
            assert_eq!(refusal(program.stg(at(page), 1)), FaultError::Lost);
        } else {
            check(&program, page);
        }
    }
    // Another area of the same number is not asked for them.
    let again = rig.swap_on(self::device(64), 64, 0).unwrap();
    out(&rig, &space, 0, 40);
    assert_eq!(refusal(program.load(at(20))), FaultError::Lost);
    space.advise(&rig.mm, VirtAddr::new(at(20)), PAGE, Advice::DontNeed).unwrap();
    assert_eq!(program.load(at(20)), Ok(0));
    (0..40).filter(|page| !lost.contains(page)).for_each(|page| check(&program, page));
    end(&rig, space, &[again]);
}

/// A request that fails once is made again.
#[test]
fn swapoff_asks_again() {
    for k in 0..8 {
        let rig = rig(400);
        let device = device(64);
        let area = rig.swap_on(Arc::clone(&device), 64, 0).unwrap();
        let space = space(&rig, 40);
        out(&rig, &space, 0, 40);
        device.fail_after(k);
        assert!(rig.mm.swap_off(area, &[&space]).is_ok());
        assert_eq!((rig.count("read_errors"), rig.count("pages_lost")), (1, 0));
        (0..40).for_each(|page| check(&rig.program(&space), page));
        end(&rig, space, &[]);
    }
}

/// What the device refused is in memory, and named by swap entries.
#[test]
fn swapoff_finds_what_was_kept() {
    let rig = rig(400);
    let device = device(64);
    let area = rig.swap_on(Arc::clone(&device), 64, 0).unwrap();
    let space = space(&rig, 40);
    device.fail_after(1);
    out(&rig, &space, 0, 40);
    assert_eq!(rig.count("write_errors"), 1);
    space.unmap(&rig.mm, VirtAddr::new(at(17)), PAGE).unwrap();
    assert!(rig.mm.swap_off(area, &[&space]).is_ok());
    (0..40).filter(|&page| page != 17).for_each(|page| check(&rig.program(&space), page));
    end(&rig, space, &[]);
}

#[test]
fn there_are_so_many_areas() {
    let rig = rig(128);
    let areas: Vec<_> = (0..31).map(|_| rig.swap_on(device(1), 1, 0).unwrap()).collect();
    assert_eq!(rig.swap_on(device(1), 1, 0), Err(SwapOnError::TooManyAreas));
    assert!(rig.mm.swap_off(areas[13], &[]).is_ok());
    assert_eq!(rig.swap_on(device(1), 1, 0), Ok(areas[13]));
    let space = space(&rig, 33);
    out(&rig, &space, 0, 33);
    assert_eq!((rig.count("swap_out"), rig.count("no_slot")), (31, 2));
    (0..33).for_each(|page| check(&rig.program(&space), page));
    end(&rig, space, &areas);
}

/// Areas come and go at random under a program that needs them.
#[test]
fn areas_come_and_go() {
    for seed in 0..6 {
        let rig = rig(160);
        let mut dice = Dice::new(seed);
        let space = space(&rig, 60);
        let mut model: Vec<u64> = (0..60).map(|page| page + 100).collect();
        let mut areas = Vec::new();
        for turn in 0..600 {
            let page = dice.below(60);
            let pointer = tagged(at(page), page as u8 & 0xf);
            match dice.below(8) {
                0 | 1 => assert_eq!(rig.program(&space).load(pointer), Ok(model[page as usize])),
                2 | 3 => {
                    rig.program(&space).store(pointer, turn).unwrap();
                    model[page as usize] = turn;
                }
                4 | 5 => out(&rig, &space, page, (1 + dice.below(20)).min(60 - page)),
                6 if areas.len() < 4 => {
                    let flags =
                        [DeviceFlags::SYNCHRONOUS, DeviceFlags::empty(), DeviceFlags::CHECKED][dice.below(3) as usize];
                    let device = Arc::new(TestDevice::new(8 + dice.below(40) as u32, flags));
                    areas.push(rig.swap_on(device, 40, dice.below(2) as i16).unwrap());
                }
                _ if !areas.is_empty() => {
                    let area = areas.swap_remove(dice.below(areas.len() as u64) as usize);
                    assert!(rig.mm.swap_off(area, &[&space]).is_ok());
                }
                _ => {}
            }
        }
        for (page, &word) in (0..).zip(&model) {
            assert_eq!(rig.program(&space).load(tagged(at(page), page as u8 & 0xf)), Ok(word));
            assert_eq!(rig.program(&space).ldg(at(page) + 32), Ok((page + 1) as u8 & 0xf));
        }
        end(&rig, space, &areas);
    }
}
