//! What programs see.

use core::mem::MaybeUninit;

use super::*;
use crate::granule::{K16, K64};

fn hardware(features: Features) -> Rig<K4> {
    Rig::new(EmuConfig { features, ..EmuConfig::default() })
}

fn maps_and_faults<G: Granule>() {
    let rig = Rig::<G>::quiet();
    let level = Level::root::<G>(rig.emu.va_bits());
    assert_eq!(rig.load(0, VA), Err(FaultKind::Translation(level)));
    let frame = rig.page();
    rig.map(VA, frame, PAGE);
    assert_eq!(rig.load(0, VA), Ok(0));
    assert_eq!(rig.put(1, VA + 8, 7), Ok(0));
    assert_eq!(rig.load(0, VA + 8), Ok(7));
    assert_eq!(rig.load(0, VA + G::SIZE as u64), Err(FaultKind::Translation(Level::L3)));
    rig.unmap(VA);
    assert_eq!(rig.load(1, VA), Err(FaultKind::Translation(Level::L3)));
    assert_eq!(rig.load(0, 1 << 52), Err(FaultKind::Translation(level)));
    rig.emu.note_freed(PfnRange::new(frame, 1));
}

#[test]
fn programs_see_what_is_mapped() {
    maps_and_faults::<K4>();
    maps_and_faults::<K16>();
    maps_and_faults::<K64>();
}

#[test]
fn a_stale_entry_serves_until_it_is_invalidated() {
    let rig = Rig::<K4>::quiet();
    let at = rig.map(VA, rig.page(), PAGE);
    assert_eq!(rig.put(1, VA, 5), Ok(0));
    rig.emu.exchange_entry(at, 0);
    assert_eq!(rig.load(1, VA), Ok(5), "CPU 1 has it still");
    assert_eq!(rig.load(0, VA), Err(FaultKind::Translation(Level::L3)), "CPU 0 never had it");
    rig.emu.fence_tables();
    rig.emu.invalidate(ASID, Rig::<K4>::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Local);
    rig.emu.fence_invalidations();
    assert_eq!(rig.load(1, VA), Ok(5), "a local invalidation reaches the caller alone");
    rig.flush(VA, 1);
    assert_eq!(rig.load(1, VA), Err(FaultKind::Translation(Level::L3)));
}

#[test]
fn access_flag_with_and_without_hardware() {
    let rig = hardware(Features::all() - Features::HW_ACCESS);
    let at = rig.map(VA, rig.page(), PAGE & !ACCESSED);
    assert_eq!(rig.load(0, VA), Err(FaultKind::AccessFlag));
    assert_eq!(rig.emu.load_entry(at) & ACCESSED, 0);
    let rig = hardware(Features::all());
    let at = rig.map(VA, rig.page(), PAGE & !ACCESSED);
    assert_eq!(rig.load(0, VA), Ok(0));
    assert_ne!(rig.emu.load_entry(at) & ACCESSED, 0);
}

#[test]
fn dirty_state_with_and_without_hardware() {
    let rig = hardware(Features::all() - Features::HW_DIRTY);
    rig.map(VA, rig.page(), PAGE | READ_ONLY | DBM);
    assert_eq!(rig.put(0, VA, 1), Err(FaultKind::Permission));
    let rig = hardware(Features::all());
    let at = rig.map(VA, rig.page(), PAGE | READ_ONLY | DBM);
    assert_eq!(rig.load(0, VA), Ok(0));
    assert_ne!(rig.emu.load_entry(at) & READ_ONLY, 0, "a load leaves it clean");
    assert_eq!(rig.put(0, VA, 1), Ok(0));
    assert_eq!(rig.emu.load_entry(at) & READ_ONLY, 0);
    rig.map(VA + 0x1000, rig.page(), PAGE | READ_ONLY);
    assert_eq!(rig.put(0, VA + 0x1000, 1), Err(FaultKind::Permission));
}

#[test]
fn a_cached_dirty_entry_hides_later_stores() {
    // What a kernel loses that cleans an entry and does not flush.
    let rig = hardware(Features::all());
    let at = rig.map(VA, rig.page(), PAGE | READ_ONLY | DBM);
    assert_eq!(rig.put(0, VA, 1), Ok(0));
    let dirty = rig.emu.load_entry(at);
    assert_eq!(rig.emu.exchange_entry(at, dirty | READ_ONLY), dirty);
    assert_eq!(rig.put(0, VA, 2), Ok(0));
    assert_ne!(rig.emu.load_entry(at) & READ_ONLY, 0, "the TLB did not look at the table");
    rig.flush(VA, 1);
    assert_eq!(rig.put(0, VA, 3), Ok(0));
    assert_eq!(rig.emu.load_entry(at) & READ_ONLY, 0);
}

#[test]
fn tags_are_checked_on_tagged_pages_only() {
    let rig = Rig::<K4>::quiet();
    rig.map(VA, rig.page(), PAGE | TAGGED);
    rig.map(VA + 0x1000, rig.page(), PAGE);
    rig.emu.set_tag_check(0, TagCheck::Sync);
    let mut user = rig.emu.user(0, Err::<(), Fault>);
    user.stg(VA + 16, 9).unwrap();
    assert_eq!((user.ldg(VA), user.ldg(VA + 16), user.ldg(VA + 24)), (Ok(0), Ok(9), Ok(9)));
    user.store(tagged(VA + 16, 9), 1).unwrap();
    match user.load(tagged(VA + 16, 4)) {
        Err(Death::TagCheck(fault)) => {
            assert_eq!(fault.kind, FaultKind::TagCheck { pointer: 4, memory: 9 });
            assert_eq!(fault.address.bytes(), VA + 16);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.load(1, tagged(VA + 16, 4)), Ok(1), "CPU 1 does not check");
    user.stg(VA + 0x1000, 9).unwrap();
    assert_eq!(user.ldg(VA + 0x1000), Ok(0), "no tag storage behind Normal memory");
    assert_eq!(user.load(tagged(VA + 0x1000, 4)), Ok(0));
}

#[test]
fn tags_travel_in_the_packed_form() {
    let rig = Rig::<K4>::quiet();
    let (one, two) = (rig.page(), rig.page());
    rig.map(VA, one, PAGE | TAGGED);
    let mut user = rig.emu.user(0, Err::<(), Fault>);
    user.tag_page(VA, |index| index as u8 & 0xf).unwrap();
    rig.unmap(VA);
    let words = *rig.emu.load_tags(one, &mut MaybeUninit::uninit());
    assert_eq!(words, [0xfedc_ba98_7654_3210; K4::TAG_WORDS]);
    rig.emu.store_tags(two, &words);
    rig.emu.fence_contents();
    rig.map(VA, two, PAGE | TAGGED);
    assert_eq!(user.ldg(VA + 5 * 16), Ok(5));
}

#[test]
fn a_handler_resolves_faults_and_a_livelock_is_reported() {
    let rig = Rig::<K4>::quiet();
    let mut faults = 0;
    let mut user = rig.emu.user(1, |fault: Fault| {
        assert_eq!(rig.emu.cpu(), 1);
        faults += 1;
        rig.map(fault.address.bytes() & !0xfff, rig.page(), PAGE);
        Ok::<_, ()>(())
    });
    user.fill_page(VA, |index| index as u64).unwrap();
    assert_eq!(user.load(VA + 80), Ok(10));
    assert_eq!(faults, 1);
    rig.emu.expect_violation(Law::Livelock, || {
        assert!(matches!(rig.emu.user(0, |_| Ok::<_, ()>(())).load(VA + 0x1000), Err(Death::Livelock(_))));
    });
}

#[test]
fn blocks_are_walked() {
    let rig = Rig::<K4>::new(EmuConfig { frames: 2048, ..EmuConfig::default() });
    let run: PfnRange = rig.zeroed(512);
    let mut at = rig.at(VA);
    // The level 2 entry above: unlink the leaf table, then put a block there.
    let leaf = at.table;
    for table in 0..rig.next.get() {
        let table = rig.emu.frames().start().offset(table);
        let index = desc::index_of::<K4>(VA >> 12, Level::L2);
        if rig.emu.peek(EntryAt { table, index }) & 0xffff_ffff_f000 == leaf.base::<K4>().bytes() {
            at = EntryAt { table, index };
        }
    }
    rig.emu.exchange_entry(at, 0);
    rig.emu.fence_tables();
    rig.emu.invalidate(ASID, Rig::<K4>::pages(VA, 1), Cached::Walk, Reach::Broadcast);
    rig.emu.fence_invalidations();
    rig.emu.store_entry(at, run.start().base::<K4>().bytes() | PAGE & !0b10);
    rig.emu.fence_tables();
    rig.put(0, VA + 0x5008, 6).unwrap();
    assert_eq!(rig.emu.peek_word(run.start().offset(5), 8), 6);
}

#[test]
fn the_same_seed_replays() {
    let life = |seed| {
        let rig = Rig::<K4>::full(seed);
        let mut trace = Vec::new();
        for step in 0..200 {
            let va = VA + (step % 20) * 0x1000;
            trace.push(rig.load(step as usize % 4, va).is_ok());
            if step % 3 == 0 && rig.emu.peek(rig.at(va)) == 0 {
                rig.map(va, rig.page(), PAGE | READ_ONLY | DBM & !ACCESSED);
            } else if step % 5 == 0 {
                rig.emu.exchange_entry(rig.at(va), 0);
                trace.push(rig.load(1, va).is_ok());
                rig.flush(va, 1);
            }
            trace.push(rig.put(step as usize % 3, va, step).is_ok());
        }
        (trace, rig.emu.last_operations())
    };
    assert_eq!(life(5), life(5));
    assert!(seeds().any(|seed| life(seed) != life(5)));
}

#[test]
fn the_full_adversary_makes_stale_walks_and_whole_groups() {
    let (mut stale, mut whole) = (0, 0);
    for seed in seeds() {
        let rig = Rig::<K4>::full(seed);
        let first = rig.zeroed(16).start();
        let at = rig.map_group(VA, first, PAGE);
        rig.emu.exchange_entry(at.offset(3), 0);
        for cpu in 0..4 {
            // Page 4 is walked; some CPU caches the group with page 3 in it.
            rig.load(cpu, VA + 0x4000).unwrap();
            whole += u32::from(rig.load(cpu, VA + 0x3000).is_ok());
        }
        rig.unmap_group(VA);
        assert_eq!(rig.load(0, VA + 0x3000), Err(FaultKind::Translation(Level::L3)));
        let at = rig.map(VA, rig.page(), PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.invalidate(ASID, Rig::<K4>::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Broadcast);
        stale += u32::from(rig.load(0, VA).is_ok());
    }
    assert!(stale > 0, "an unfenced removal is read back after the invalidation");
    assert!(whole > 0, "a group is cached from one entry");
}
