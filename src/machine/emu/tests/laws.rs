//! Each law, broken by naive code and kept by right code.

use core::mem::MaybeUninit;

use super::*;

type Small = Rig<K4>;

/// Naive code runs on a quiet machine: the law is found without luck.
fn naive(law: Law, body: impl Fn(&Small)) {
    let rig = Small::quiet();
    rig.emu.expect_violation(law, || body(&rig));
}

/// Right code runs against the whole adversary, under many seeds.
fn right(body: impl Fn(&Small)) {
    for seed in seeds() {
        body(&Small::full(seed));
    }
}

#[test]
fn break_before_make_of_one_page() {
    // Another output address in place; another memory type; a hole without an invalidation; without fences.
    naive(Law::BreakBeforeMake, |rig| {
        let at = rig.map(VA, rig.page(), PAGE);
        rig.emu.exchange_entry(at, rig.page().base::<K4>().bytes() | PAGE);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE);
        rig.emu.exchange_entry(at, frame.base::<K4>().bytes() | PAGE | 3 << 2);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let at = rig.map(VA, rig.page(), PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.fence_tables();
        rig.map(VA, rig.page(), PAGE);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let at = rig.map(VA, rig.page(), PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.invalidate(ASID, Small::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Broadcast);
        rig.emu.fence_invalidations();
        rig.map(VA, rig.page(), PAGE);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let at = rig.map(VA, rig.page(), PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.fence_tables();
        rig.emu.invalidate(ASID, Small::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Broadcast);
        rig.map(VA, rig.page(), PAGE);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let at = rig.map(VA, rig.page(), PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.fence_tables();
        rig.emu.invalidate(ASID, Small::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Local);
        rig.emu.fence_invalidations();
        rig.map(VA, rig.page(), PAGE);
    });
    right(|rig| {
        rig.map(VA, rig.page(), PAGE);
        rig.put(1, VA, 1).unwrap();
        rig.unmap(VA);
        rig.map(VA, rig.page(), PAGE);
        assert_eq!(rig.load(1, VA), Ok(0));
    });
}

#[test]
fn permissions_and_tagging_change_in_place() {
    right(|rig| {
        let frame = rig.page();
        let base = frame.base::<K4>().bytes();
        let at = rig.map(VA, frame, PAGE);
        rig.emu.exchange_entry(at, base | PAGE | READ_ONLY);
        rig.flush(VA, 1);
        assert_eq!(rig.put(2, VA, 1), Err(FaultKind::Permission));
        rig.emu.exchange_entry(at, base | PAGE | TAGGED);
        rig.flush(VA, 1);
        rig.put(2, VA, 1).unwrap();
    });
}

#[test]
fn break_before_make_of_a_group() {
    // Folding in place, unfolding one entry in place, and folding after an invalidation of one page only.
    naive(Law::BreakBeforeMake, |rig| {
        let first = rig.zeroed(16).start();
        rig.map_pages(VA, first, 16, PAGE);
        rig.emu.exchange_entry(rig.at(VA), first.base::<K4>().bytes() | PAGE | CONTIGUOUS);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let first = rig.zeroed(16).start();
        let at = rig.map_group(VA, first, PAGE);
        rig.emu.exchange_entry(at.offset(2), first.offset(2).base::<K4>().bytes() | PAGE);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let first = rig.zeroed(16).start();
        let at = rig.map_group(VA, first, PAGE);
        rig.clear(at, 16);
        rig.flush(VA, 1);
        rig.map(VA, first, PAGE);
        rig.map(VA + 0x1000, first.offset(1), PAGE);
    });
    right(|rig| {
        let first = rig.zeroed(16).start();
        let at = rig.map_group(VA, first, PAGE | READ_ONLY | DBM);
        rig.put(3, VA + 0x7000, 7).unwrap();
        let gathered = (0..16).fold(DBM | READ_ONLY, |seen, page| seen & rig.emu.exchange_entry(at.offset(page), 0));
        assert_eq!(gathered & READ_ONLY, 0, "one of the sixteen is dirty");
        rig.flush(VA, 16);
        rig.map_pages(VA, first, 16, PAGE);
        assert_eq!(rig.load(2, VA + 0x7000), Ok(7));
        rig.emu.check_all_groups();
    });
}

#[test]
fn groups_are_equal_and_congruent() {
    naive(Law::GroupEqual, |rig| {
        let first = rig.zeroed(32).start().offset(1);
        rig.map(VA, first, PAGE | CONTIGUOUS);
    });
    naive(Law::GroupEqual, |rig| {
        let first = rig.zeroed(16).start();
        let at = rig.map_group(VA, first, PAGE);
        rig.emu.exchange_entry(at.offset(5), first.offset(5).base::<K4>().bytes() | PAGE | CONTIGUOUS | READ_ONLY);
        rig.emu.check_groups(at.table);
    });
    naive(Law::GroupEqual, |rig| {
        let at = rig.map_group(VA, rig.zeroed(16).start(), PAGE);
        rig.emu.exchange_entry(at.offset(5), 0);
        rig.emu.check_groups(at.table);
    });
    right(|rig| {
        let at = rig.map_group(VA, rig.zeroed(16).start(), PAGE & !ACCESSED | READ_ONLY | DBM);
        rig.put(0, VA + 0x9000, 1).unwrap();
        rig.emu.check_groups(at.table);
    });
}

#[test]
fn a_live_entry_is_exchanged() {
    naive(Law::LiveEntryStored, |rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE);
        rig.emu.store_entry(at, frame.base::<K4>().bytes() | PAGE | READ_ONLY);
    });
}

#[test]
fn contents_are_read_when_no_program_writes() {
    // A copy before the unmap; between unmap and flush; of a clean page that the hardware may make dirty.
    naive(Law::ReadWhileWritable, |rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE);
        rig.emu.copy_page(frame, rig.page(), Tags::Ignore);
    });
    naive(Law::ReadWhileWritable, |rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.export_page(frame);
    });
    naive(Law::ReadWhileWritable, |rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE | READ_ONLY | DBM);
        rig.emu.repeated_word(frame);
    });
    right(|rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE | TAGGED);
        rig.put(3, VA, 8).unwrap();
        let old = rig.emu.exchange_entry(at, rig.emu.load_entry(at) | READ_ONLY);
        assert_ne!(old & ACCESSED, 0);
        rig.flush(VA, 1);
        let copy = rig.page();
        rig.emu.copy_page(frame, copy, Tags::Include);
        assert_eq!((rig.load(1, VA), rig.emu.peek_word(copy, 0)), (Ok(8), 8));
    });
    let rig = Small::quiet();
    let frame = rig.page();
    rig.map(VA, frame, PAGE | TAGGED);
    rig.emu.expect_violation(Law::ReadWhileWritable, || _ = rig.emu.load_tags(frame, &mut MaybeUninit::uninit()));
}

#[test]
fn contents_are_written_when_no_program_looks() {
    naive(Law::WrittenWhileMapped, |rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE | READ_ONLY);
        rig.emu.zero(PfnRange::new(frame, 1), Tags::Ignore);
    });
    // Present before data; tags zeroed without a break, when mprotect makes an old page Tagged.
    naive(Law::WrittenWhileMapped, |rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE);
        rig.emu.import_page(frame, &[1; K4::ENTRIES]);
    });
    naive(Law::WrittenWhileMapped, |rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE);
        rig.emu.zero_tags(frame);
    });
    right(|rig| {
        let frame = rig.frames(1).start();
        rig.emu.import_page(frame, &[7; K4::ENTRIES]);
        rig.emu.fence_contents();
        rig.map(VA, frame, PAGE);
        assert_eq!(rig.load(2, VA), Ok(7));
        let old = rig.unmap(VA);
        rig.emu.zero_tags(frame);
        rig.emu.fence_contents();
        rig.emu.store_entry(rig.at(VA), old | TAGGED);
        rig.emu.fence_tables();
        assert_eq!(rig.emu.access(1, VA, Access::LoadTag), Ok(0));
    });
}

#[test]
fn frames_are_freed_after_the_flush() {
    naive(Law::FreedWhileMapped, |rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.note_freed(PfnRange::new(frame, 1));
    });
    // Reused as a table, and as the library's own records.
    naive(Law::FreedWhileMapped, |rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE);
        rig.emu.exchange_entry(at, 0);
        rig.emu.store_entry(EntryAt { table: frame, index: 0 }, 0b11);
    });
    naive(Law::FreedWhileMapped, |rig| {
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE | READ_ONLY);
        rig.emu.exchange_entry(at, 0);
        rig.emu.window(frame);
    });
    right(|rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE);
        rig.put(2, VA, 2).unwrap();
        rig.unmap(VA);
        rig.emu.note_freed(PfnRange::new(frame, 1));
    });
}

/// Takes the leaf table of `VA` out and returns the entry it hung on.
fn detach(rig: &Small) -> (EntryAt, Pfn) {
    let leaf = rig.at(VA).table;
    let index = desc::index_of::<K4>(VA >> 12, Level::L2);
    let all = (0..rig.next.get()).map(|frame| EntryAt { table: rig.emu.frames().start().offset(frame), index });
    let above = all.filter(|&at| rig.emu.peek(at) == leaf.base::<K4>().bytes() | 0b11).last().unwrap();
    rig.emu.exchange_entry(above, 0);
    rig.emu.fence_tables();
    (above, leaf)
}

#[test]
fn tables_die_after_the_flush_of_walks() {
    naive(Law::TableAfterDetach, |rig| {
        let (_, leaf) = detach(rig);
        rig.emu.invalidate(ASID, Small::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Broadcast);
        rig.emu.fence_invalidations();
        rig.emu.zero(PfnRange::new(leaf, 1), Tags::Ignore);
    });
    naive(Law::TableAfterDetach, |rig| {
        let leaf = rig.at(VA).table;
        rig.emu.zero(PfnRange::new(leaf, 1), Tags::Ignore);
    });
    naive(Law::BreakBeforeMake, |rig| {
        let (above, _) = detach(rig);
        rig.emu.store_entry(above, rig.table().base::<K4>().bytes() | 0b11);
    });
    right(|rig| {
        rig.map(VA, rig.page(), PAGE);
        rig.put(1, VA, 1).unwrap();
        let (_, leaf) = detach(rig);
        rig.emu.invalidate(ASID, Small::pages(VA, 512), Cached::Walk, Reach::Broadcast);
        rig.emu.fence_invalidations();
        rig.emu.zero(PfnRange::new(leaf, 1), Tags::Ignore);
        assert!(rig.load(1, VA).is_err());
    });
}

#[test]
fn contents_come_before_the_entry() {
    naive(Law::ContentsBeforeEntry, |rig| {
        let frame = rig.frames(1);
        rig.at(VA);
        rig.emu.zero(frame, Tags::Include);
        rig.map(VA, frame.start(), PAGE);
    });
    naive(Law::ContentsBeforeEntry, |rig| {
        let frame = rig.frames(1);
        rig.emu.zero(frame, Tags::Include);
        rig.emu.store_entry(EntryAt { table: rig.root, index: 9 }, frame.start().base::<K4>().bytes() | 0b11);
    });
}

#[test]
fn nothing_old_is_shown() {
    naive(Law::DataUnset, |rig| _ = rig.map(VA, rig.frames(1).start(), PAGE));
    naive(Law::TagsUnset, |rig| {
        let frame = rig.frames(1);
        rig.emu.zero(frame, Tags::Ignore);
        rig.emu.fence_contents();
        rig.map(VA, frame.start(), PAGE | TAGGED);
    });
    naive(Law::TagsUnset, |rig| {
        let frame = rig.frames(1);
        rig.emu.zero(frame, Tags::Ignore);
        rig.emu.load_tags(frame.start(), &mut MaybeUninit::uninit());
    });
}

#[test]
fn code_is_synced_before_it_runs() {
    naive(Law::FetchUnsynced, |rig| {
        rig.map(VA, rig.page(), PAGE & !UXN);
        rig.emu.access(0, VA, Access::Fetch).unwrap();
    });
    right(|rig| {
        let frame = rig.zeroed(1);
        rig.emu.sync_code(frame);
        let at = rig.map(VA, frame.start(), PAGE & !UXN | READ_ONLY);
        rig.emu.access(2, VA, Access::Fetch).unwrap();
        rig.emu.exchange_entry(at, rig.emu.load_entry(at) | UXN);
        rig.flush(VA, 1);
        assert_eq!(rig.emu.access(2, VA, Access::Fetch).unwrap_err().kind, FaultKind::Permission);
    });
}

#[test]
fn entries_name_ram() {
    naive(Law::WildEntry, |rig| _ = rig.map(VA, Pfn::new(7), PAGE));
    naive(Law::WildEntry, |rig| rig.emu.store_entry(EntryAt { table: rig.root, index: 4 }, 0x7003));
}

#[test]
fn identifiers_are_flushed_before_reuse() {
    naive(Law::AsidReused, |rig| rig.emu.install_root(rig.table(), ASID));
    naive(Law::AsidReused, |rig| {
        rig.emu.install_root(rig.table(), Asid::new(4));
        rig.emu.on_cpu(1, || rig.emu.install_root(rig.table(), Asid::new(5)));
        // Nobody runs it, but its translations were not flushed.
        rig.emu.install_root(rig.table(), ASID);
    });
    right(|rig| {
        let frame = rig.page();
        rig.map(VA, frame, PAGE);
        rig.put(1, VA, 1).unwrap();
        let empty = rig.table();
        (0..4).for_each(|cpu| rig.emu.on_cpu(cpu, || rig.emu.install_root(empty, Asid::EMPTY)));
        rig.emu.invalidate(ASID, Scope::Space, Cached::Walk, Reach::Broadcast);
        rig.emu.fence_invalidations();
        // The whole dead tree is free, and its identifier too.
        rig.emu.note_freed(PfnRange::new(frame, 1));
        rig.emu.zero(PfnRange::new(rig.root, 1), Tags::Ignore);
        rig.emu.fence_contents();
        let other = rig.table();
        rig.emu.on_cpu(1, || rig.emu.install_root(other, ASID));
        assert!(rig.load(1, VA).is_err());
    });
}

#[test]
fn a_report_is_readable() {
    let rig = Small::quiet();
    rig.emu.set_mode(Mode::Record);
    let at = rig.map(VA, rig.page(), PAGE);
    rig.emu.exchange_entry(at, 0);
    rig.emu.invalidate(ASID, Small::pages(VA, 1), Cached::Leaf(Level::L3), Reach::Broadcast);
    rig.emu.fence_invalidations();
    rig.map(VA, rig.page(), PAGE);
    let reports = rig.emu.take_violations();
    let text = std::format!("{}", reports[0]);
    for part in ["BreakBeforeMake", "was not fenced before the invalidation", "invalidate asid 3", "seed: 0x1"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(reports[0].before.len() == 20);
}
