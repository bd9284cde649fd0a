//! What fails, fails cleanly: memory that runs out at every point of a scripted life, devices that fail at every
//! operation, slots and tag rooms that run dry. What is not concerned lives on, and at the end everything is back.

mod support;

use ebbtide::addr::VirtAddr;
use ebbtide::granule::{Granule, K4};
use ebbtide::machine::Features;
use ebbtide::machine::emu::{Adversary, Death};
use ebbtide::reclaim::{Advice, Watermarks};
use ebbtide::space::{FaultError, MapError, Protection, SpaceError};
use ebbtide::{Space, Totals};

use support::{Program, RW, RWT, Rig, Setup, Stage, refusal, tagged};

const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 4096;

fn at(page: u64) -> u64 {
    BASE + page * PAGE
}

fn out<G: Granule>(rig: &Rig<G>, space: &Space<Stage<G>>, page: u64, pages: u64) {
    let start = VirtAddr::new(BASE + (page << G::SHIFT));
    space.advise(&rig.mm, start, pages << G::SHIFT, Advice::PageOut).unwrap();
}

/// Stores a word and tags that take a room of their own.
fn write(program: &Program<'_, K4>, page: u64) {
    for granule in 0..256 {
        program.stg(at(page) + granule * 16, (granule * 7 + page) as u8 & 0xf).unwrap();
    }
    program.store(tagged(at(page), page as u8 & 0xf), page + 100).unwrap();
}

/// Checks what [`write`] stored.
fn check(program: &Program<'_, K4>, page: u64) {
    for granule in 0..256 {
        let expected = (granule * 7 + page) as u8 & 0xf;
        assert_eq!(program.ldg(at(page) + granule * 16), Ok(expected), "granule {granule} of page {page}");
    }
    assert_eq!(program.load(tagged(at(page), page as u8 & 0xf)), Ok(page + 100), "page {page}");
}

// ---- Memory that runs out. ----

/// Takes all memory that an ordinary allocation can have but `left` frames: dirty pages, which nothing can evict.
fn hog(rig: &Rig, left: u64) -> Space<Stage<K4>> {
    let space = rig.space();
    rig.map(&space, BASE, 512, RW);
    let program = rig.program(&space);
    let taken = (0..512).find(|&page| program.store(at(page), 1).is_err()).expect("memory is small");
    let given = left.min(taken);
    space.advise(&rig.mm, VirtAddr::new(at(taken - given)), given * PAGE, Advice::DontNeed).unwrap();
    space
}

/// A program's scripted life. Says what its program saw; stops at the first error that is not for want of memory.
fn life(rig: &Rig) -> Result<Vec<u64>, String> {
    let mut seen = Vec::new();
    let space = match rig.try_space() {
        Ok(space) => space,
        Err(SpaceError::NoMemory) => return Ok(seen),
    };
    rig.activate(0, &space);
    let short = |result: Result<(), MapError>| match result {
        Ok(()) | Err(MapError::NoMemory) => Ok(()),
        Err(MapError::NotMapped(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    let far = 0x70_0000_0000;
    short(rig.try_map(&space, BASE, 4, RWT).map(drop))?;
    short(rig.try_map(&space, far, 4, RW).map(drop))?;
    let program = rig.program(&space);
    for address in [at(0), at(3), far, far + 3 * PAGE, BASE + (1 << 30)] {
        match program.store(address, address) {
            Ok(()) => seen.push(program.load(address).map_err(|error| format!("{error:?}"))?),
            Err(Death::Refused(_, FaultError::NoMemory | FaultError::NotMapped)) => {}
            Err(error) => return Err(format!("{error:?}")),
        }
    }
    short(space.unmap(&rig.mm, VirtAddr::new(at(1)), PAGE))?;
    short(space.protect(&rig.mm, VirtAddr::new(far), PAGE, Protection::READ))?;
    short(space.protect(&rig.mm, VirtAddr::new(far), 2 * PAGE, RWT))?;
    match program.load(at(0)) {
        Ok(value) => seen.push(value),
        Err(Death::Refused(_, FaultError::NoMemory | FaultError::NotMapped)) => {}
        Err(error) => return Err(format!("{error:?}")),
    }
    rig.destroy(space);
    Ok(seen)
}

#[test]
fn memory_runs_out_at_every_allocation_of_a_life() {
    let mut whole = None;
    for left in (0..40).rev() {
        let rig = Rig::<K4>::new(Setup { slots: 0, ..Setup::default() });
        let hog = hog(&rig, left);
        let before = rig.mm.totals();
        let seen = life(&rig).unwrap_or_else(|error| panic!("with {left} frames: {error}"));
        assert_eq!(rig.mm.totals(), before, "with {left} frames");
        // More memory never lets a program see less.
        let most = whole.get_or_insert(seen.len());
        assert!(seen.len() <= *most, "with {left} frames");
        *most = seen.len();
        rig.finish(hog);
    }
    assert_eq!(whole, Some(0), "the first allocation failed as well");
}

#[test]
fn memory_and_slots_run_out_at_every_allocation_of_a_life() {
    for left in 0..24 {
        let rig = Rig::<K4>::new(Setup { slots: 30, tag_rooms: 4, ..Setup::default() });
        let hog = hog(&rig, left);
        let before = rig.mm.totals();
        life(&rig).unwrap_or_else(|error| panic!("with {left} frames: {error}"));
        let after = rig.mm.totals();
        // The hog's own pages may have changed places meanwhile.
        assert_eq!(free(after), free(before), "with {left} frames");
        rig.finish(hog);
    }
}

fn free(totals: Totals) -> u64 {
    totals.frames_free + totals.slots_free
}

/// A program without memory can still give some back.
#[test]
fn giving_back_needs_no_memory() {
    let rig = Rig::<K4>::new(Setup { slots: 4, ..Setup::default() });
    let hog = hog(&rig, 0);
    let space = rig.try_space();
    assert_eq!(space.err(), Some(SpaceError::NoMemory));
    let before = free(rig.mm.totals());
    hog.advise(&rig.mm, VirtAddr::new(BASE), 8 * PAGE, Advice::DontNeed).unwrap();
    assert_eq!(free(rig.mm.totals()), before + 8);
    assert_eq!(rig.program(&hog).store(at(0), 1), Ok(()));
    assert_eq!(hog.unmap(&rig.mm, VirtAddr::new(BASE), 512 * PAGE), Ok(()));
    rig.finish(hog);
}

/// A page comes back although not one ordinary frame is free and no slot either: the reserve is for that.
#[test]
fn a_swap_in_with_no_free_frame_and_no_free_slot_takes_the_reserve() {
    let rig = Rig::<K4>::new(Setup { slots: 8, ..Setup::default() });
    let space = rig.space();
    rig.map(&space, BASE, 512, RW);
    let program = rig.program(&space);
    let stored = (0..512).take_while(|&page| program.store(at(page), page).is_ok()).count() as u64;
    assert_eq!(refusal(program.store(at(stored), 0)), FaultError::NoMemory);
    let totals = rig.mm.totals();
    assert_eq!(totals.slots_free, 0);
    assert!(0 < totals.frames_free && totals.frames_free <= totals.frames / 16, "{totals:?}");
    // Each visit to a page that is out gives its slot back, which lets another page out.
    for round in 0..2 {
        for page in 0..stored {
            assert_eq!(program.load(at(page)), Ok(page), "round {round}");
        }
    }
    rig.finish(space);
}

/// Where nothing can leave, reclaim says so after a bounded search.
#[test]
fn reclaim_gives_up_after_two_passes() {
    for (slots, tag_rooms, counter) in [(0, 0, "no_slot"), (512, 0, "no_tag_room")] {
        let rig = Rig::<K4>::new(Setup { slots, tag_rooms, ..Setup::default() });
        let space = rig.space();
        rig.map(&space, BASE, 512, RWT);
        let program = rig.program(&space);
        let pages = (0..512).take_while(|&page| program.stg(at(page), 1).is_ok()).count() as u64;
        let (scanned, refused) = (rig.count("scanned"), rig.count(counter));
        assert_eq!(refusal(program.stg(at(pages), 1)), FaultError::NoMemory);
        let scanned = rig.count("scanned") - scanned;
        // Two passes and a batch for the fault; as much again for tables that it may need.
        assert!(scanned <= 2 * (2 * pages + 32), "{scanned} looks at {pages} pages");
        assert!(rig.count(counter) > refused);
        // Those that are in live on.
        (0..pages).for_each(|page| assert_eq!(program.ldg(at(page)), Ok(1)));
        rig.finish(space);
    }
}

/// All pages are in use all the time, and reclaim still finds some: no page is passed over for ever.
#[test]
fn reclaim_makes_progress_when_every_page_is_referenced() {
    for features in [Features::all(), Features::empty()] {
        let rig = Rig::<K4>::new(Setup { cpus: 2, features, adversary: Adversary::Full, ..Setup::default() });
        let space = rig.space();
        rig.map(&space, BASE, 200, RW);
        // The program on CPU 1 touches what it can between any two steps.
        rig.emu().set_background(|emu, dice| {
            for touch in 0..8 {
                let _ = emu.access(1, at((dice >> (touch * 7)) % 200), ebbtide::machine::emu::Access::Load);
            }
        });
        let program = rig.program(&space);
        for page in (0..200).chain(0..200) {
            program.store(at(page), page).unwrap();
        }
        assert!(rig.count("swap_out") > 100);
        (0..200).for_each(|page| assert_eq!(program.load(at(page)), Ok(page)));
        rig.finish(space);
    }
}

/// The background reclaimer's work ends at the high watermark: not before, and no more than a batch behind it.
#[test]
fn background_reclaim_ends_at_the_high_watermark() {
    let rig = Rig::<K4>::new(Setup { frames: 4096, slots: 1024, ..Setup::default() });
    let space = rig.space();
    rig.map(&space, BASE, 4096, RW);
    let marks = Watermarks::of(rig.mm.totals().frames);
    let program = rig.program(&space);
    (0..4096).take_while(|_| rig.count("direct_reclaims") == 0).for_each(|page| program.store(at(page), page).unwrap());
    assert!(rig.mm.totals().frames_free < marks.low && rig.count("background_wakes") > 0);
    rig.mm.balance();
    // Some of what is free lies in a magazine, where the watermarks do not see it.
    let free = rig.mm.totals().frames_free;
    assert!(marks.high <= free && free <= marks.high + 2 * 64, "{free} frames are free, {marks:?}");
    rig.finish(space);
}

// ---- Devices that fail. ----

/// A failure at operation `k` of a scripted life on the device, for every `k`: all the same, each page is as it was,
/// or its program was told.
#[test]
fn the_device_fails_at_every_operation_of_a_life() {
    let mut k = 0;
    loop {
        let rig = Rig::<K4>::new(Setup::default());
        let space = rig.space();
        rig.map(&space, BASE, 6, RWT);
        let program = rig.program(&space);
        rig.device.fail_after(k);
        (0..6).for_each(|page| write(&program, page));
        out(&rig, &space, 0, 6);
        let mut told = 0;
        for _ in 0..2 {
            for page in 0..6 {
                // The device fails once: who is told may ask again.
                if let Err(error) = program.load(tagged(at(page), page as u8)) {
                    assert!(matches!(error, Death::Refused(_, FaultError::Unreadable { area: 0, .. })), "{error:?}");
                    told += 1;
                }
                check(&program, page);
            }
            out(&rig, &space, 0, 6);
        }
        assert_eq!(told, rig.count("faults_unreadable"));
        let failed = rig.count("read_errors") + rig.count("write_errors");
        // Of pages that come together nobody is told: the one that is wanted comes alone then.
        assert!(told <= rig.count("read_errors"));
        rig.finish(space);
        if failed == 0 {
            break;
        }
        assert_eq!(failed, 1, "operation {k}");
        k += 1;
    }
    assert_eq!(k, 3 * 6 + 2 * 4, "six pages went three times, and came twice: 1, 1, 2 and 2 of them");
}

/// A page whose write failed stays in memory, with its swap entry: each way on from there.
fn kept(then: impl Fn(&Rig, &Space<Stage<K4>>, &Program<'_, K4>)) {
    for left in [false, true] {
        let rig = Rig::<K4>::new(Setup::default());
        let space = rig.space();
        rig.map(&space, BASE, 4, RWT);
        let program = rig.program(&space);
        write(&program, 0);
        write(&program, 1);
        // From the first cut on, the space has what its region list may need.
        space.unmap(&rig.mm, VirtAddr::new(at(3)), PAGE).unwrap();
        let before = rig.mm.totals();
        rig.device.fail_after(0);
        out(&rig, &space, 0, 1);
        assert_eq!((rig.count("write_errors"), rig.count("swap_out")), (1, 0));
        let after = rig.mm.totals();
        assert_eq!(after.frames_free, before.frames_free, "the frame is the only copy");
        assert_eq!(after.slots_free, before.slots_free - 1);
        if left {
            // With a neighbour that did leave.
            out(&rig, &space, 1, 1);
            assert_eq!(rig.count("swap_out"), 1);
        }
        then(&rig, &space, &program);
        check(&program, 1);
        rig.finish(space);
    }
}

#[test]
fn a_kept_page_is_touched() {
    kept(|rig, _, program| {
        check(program, 0);
        assert_eq!((rig.count("swap_in"), rig.count("swap_cache_hits")), (0, 1));
    });
}

#[test]
fn a_kept_page_is_touched_and_leaves_later() {
    kept(|rig, space, program| {
        program.store(tagged(at(0) + 64, 12), 5).unwrap();
        out(rig, space, 0, 1);
        assert!(rig.count("swap_out") > 0);
        check(program, 0);
        assert_eq!(program.load(tagged(at(0) + 64, 12)), Ok(5));
    });
}

#[test]
fn a_kept_page_is_tried_again_under_pressure() {
    kept(|rig, space, program| {
        rig.map(space, at(8), 200, RW);
        (8..208).for_each(|page| program.store(at(page), page).unwrap());
        // It left, and nobody had to touch it first.
        assert_eq!(rig.count("swap_cache_hits"), 0);
        check(program, 0);
        assert_eq!(rig.count("swap_cache_hits"), 0);
    });
}

#[test]
fn a_kept_page_fails_again_and_again() {
    kept(|rig, space, program| {
        rig.map(space, at(8), 200, RW);
        for round in 0..4 {
            rig.device.fail_after(round);
            for page in 8..208 {
                // Told that the page is unreadable now, the program asks again.
                let stored = program.store(at(page), page).or_else(|_| program.store(at(page), page));
                assert_eq!(stored, Ok(()));
            }
        }
        assert!(rig.count("write_errors") > 1);
        check(program, 0);
        (8..208).for_each(|page| assert_eq!(program.load(at(page)), Ok(page)));
    });
}

#[test]
fn a_kept_page_is_unmapped() {
    kept(|rig, space, program| {
        let before = rig.mm.totals();
        space.unmap(&rig.mm, VirtAddr::new(BASE), PAGE).unwrap();
        let after = rig.mm.totals();
        assert_eq!(after.frames_free, before.frames_free + 1);
        assert_eq!(after.slots_free, before.slots_free + 1);
        assert_eq!(after.tag_rooms_free, before.tag_rooms_free + 1);
        assert_eq!(refusal(program.load(BASE)), FaultError::NotMapped);
    });
}

#[test]
fn a_kept_page_is_not_needed() {
    kept(|rig, space, program| {
        space.advise(&rig.mm, VirtAddr::new(BASE), PAGE, Advice::DontNeed).unwrap();
        assert_eq!((program.load(BASE), program.ldg(BASE)), (Ok(0), Ok(0)));
    });
}

#[test]
fn a_kept_page_goes_with_its_space() {
    kept(|_, _, _| {});
}

#[test]
fn a_kept_page_is_paged_out_again_before_a_touch() {
    kept(|rig, space, program| {
        // Its entry is a swap entry already: only reclaim tries it again, in its own time.
        out(rig, space, 0, 3);
        check(program, 0);
    });
}

#[test]
fn a_kept_page_changes_its_protection() {
    kept(|rig, space, program| {
        space.protect(&rig.mm, VirtAddr::new(BASE), PAGE, Protection::READ).unwrap();
        check(program, 0);
        assert_eq!(refusal(program.store(BASE, 1)), FaultError::Protection);
    });
}

/// Code that is written anew while its page is kept is synced anew.
#[test]
fn a_kept_page_of_code_is_synced_again() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    let (start, code) = (VirtAddr::new(BASE), Protection::READ | Protection::EXEC);
    rig.map(&space, BASE, 1, RW);
    let program = rig.program(&space);
    program.store(BASE, 1).unwrap();
    space.protect(&rig.mm, start, PAGE, code).unwrap();
    assert_eq!(program.fetch(BASE), Ok(1));
    rig.device.fail_after(0);
    out(&rig, &space, 0, 1);
    space.protect(&rig.mm, start, PAGE, RW).unwrap();
    program.store(BASE, 2).unwrap();
    space.protect(&rig.mm, start, PAGE, code).unwrap();
    assert_eq!(program.fetch(BASE), Ok(2));
    rig.finish(space);
}

/// An untagged page that is kept while its region becomes tagged shows tags of zero.
#[test]
fn a_kept_page_becomes_tagged() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    rig.map(&space, BASE, 1, RW);
    let program = rig.program(&space);
    program.store(BASE, 1).unwrap();
    rig.device.fail_after(0);
    out(&rig, &space, 0, 1);
    space.protect(&rig.mm, VirtAddr::new(BASE), PAGE, RWT).unwrap();
    (0..256).for_each(|granule| assert_eq!(program.ldg(BASE + granule * 16), Ok(0)));
    assert_eq!(program.load(BASE), Ok(1));
    rig.finish(space);
}

/// One page cannot be read, for good. Its program is told each time, with the slot; everything else lives.
#[test]
fn an_unreadable_page_is_told_and_the_rest_lives() {
    let rig = Rig::<K4>::new(Setup::default());
    let (space, other) = (rig.try_space().unwrap(), rig.try_space().unwrap());
    for space in [&space, &other] {
        rig.activate(0, space);
        rig.map(space, BASE, 5, RWT);
        (0..5).for_each(|page| write(&rig.program(space), page));
        out(&rig, space, 0, 5);
    }
    rig.activate(0, &space);
    let program = rig.program(&space);
    let lost = (0..rig.device.slots()).find(|&slot| rig.device.page(slot).is_some_and(|page| page[0] == 102)).unwrap();
    rig.device.discard(lost);
    for _ in 0..3 {
        let unreadable = FaultError::Unreadable { area: 0, slot: lost.into() };
        assert_eq!(refusal(program.load(at(2))), unreadable);
        assert_eq!(refusal(program.store(at(2), 1)), unreadable);
        assert_eq!(refusal(program.ldg(at(2))), unreadable);
    }
    [0, 1, 3, 4].into_iter().for_each(|page| check(&program, page));
    rig.activate(0, &other);
    (0..5).for_each(|page| check(&rig.program(&other), page));
    // The program may let go of it, and have a new page there.
    rig.activate(0, &space);
    space.advise(&rig.mm, VirtAddr::new(at(2)), PAGE, Advice::DontNeed).unwrap();
    assert_eq!((program.load(at(2)), program.ldg(at(2))), (Ok(0), Ok(0)));
    rig.destroy(other);
    rig.finish(space);
}

#[test]
fn an_unreadable_page_goes_with_its_space() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    rig.map(&space, BASE, 2, RWT);
    write(&rig.program(&space), 0);
    out(&rig, &space, 0, 1);
    (0..rig.device.slots()).for_each(|slot| rig.device.discard(slot));
    assert!(matches!(refusal(rig.program(&space).load(BASE)), FaultError::Unreadable { .. }));
    rig.finish(space);
}

/// The library does not check contents: a device that lies is seen by the program, in that page alone. It is also
/// seen by the models of these tests, or they could not fail.
#[test]
fn a_device_that_lies_changes_one_page() {
    let rig = Rig::<K4>::new(Setup::default());
    let space = rig.space();
    rig.map(&space, BASE, 2, RWT);
    let program = rig.program(&space);
    (0..2).for_each(|page| write(&program, page));
    out(&rig, &space, 0, 2);
    rig.device.corrupt_after(0);
    assert_eq!(program.load(tagged(at(0), 0)), Ok(101), "100, with one wrong bit");
    check(&program, 1);
    rig.finish(space);
}

// ---- Slots and rooms that run dry. ----

/// MADV_PAGEOUT goes as far as slots and rooms reach; what is in, stays.
#[test]
fn slots_and_rooms_run_dry_in_the_middle_of_a_batch() {
    for (slots, tag_rooms) in (0..10).map(|few| (few, 64)).chain((0..10).map(|few| (64, few))) {
        let rig = Rig::<K4>::new(Setup { slots, tag_rooms, ..Setup::default() });
        let space = rig.space();
        rig.map(&space, BASE, 8, RWT);
        let program = rig.program(&space);
        (0..8).for_each(|page| write(&program, page));
        out(&rig, &space, 0, 8);
        assert_eq!(rig.count("swap_out"), u64::from(slots.min(tag_rooms)).min(8), "{slots} slots, {tag_rooms} rooms");
        (0..8).for_each(|page| check(&program, page));
        rig.finish(space);
    }
}

/// A room is reserved for any tagged page, and given back at once when its tags need none.
#[test]
fn one_room_serves_any_number_of_pages_with_simple_tags() {
    let rig = Rig::<K4>::new(Setup { tag_rooms: 1, ..Setup::default() });
    let space = rig.space();
    rig.map(&space, BASE, 30, RWT);
    let program = rig.program(&space);
    (0..30).for_each(|page| program.stg(at(page), 5).unwrap());
    for _ in 0..30 {
        out(&rig, &space, 0, 30);
    }
    assert_eq!(rig.mm.totals().tag_rooms_free, 1);
    assert!(rig.count("swap_out") >= 1);
    (0..30).for_each(|page| assert_eq!(program.ldg(at(page)), Ok(5)));
    rig.finish(space);
}
