//! Each law, broken by a kernel that makes one mistake, and kept by the library, in one and the same life.
//!
//! [`Small`] is a small kernel written against the machine's seam. It is right, but for at most one [`Mistake`]. A
//! scripted [`life`] runs on it and on the library. Each mistake is caught: by a law of the emulated machine, or by
//! the life's model of what its program may see. So each check is known to be able to fail.
//!
//! Numbers are those of the list of other kernels' bugs. `E` is the emulator's own test file, `emu/tests/laws.rs`.
//!
//! | what goes wrong | naive | right |
//! |---|---|---|
//! | 1: no DSB before the TLBI | `NoFence`; E `break_before_make_of_one_page` | `life`, `tests/life.rs` |
//! | 2: TLBI operand wrong | `WrongOperand` | `the_highest_and_the_lowest_page_at_every_granule`; `tlbi::tests` |
//! | 3: local instead of broadcast | `LocalFlush` | `life`, `tests/threads.rs` |
//! | 4: live leaf rewritten with another address | `LiveRewrite` | `life`; `threads::a_new_mapping_*` |
//! | 9: frame freed before the flush | `FreeFirst` | `frames_are_free_only_after_the_flush` |
//! | 10: copied before unmapped | `CopyFirst`, `CopyUnflushed` | `life` with a program that stores meanwhile |
//! | 11: present before data | `ShowFirst` | `life`; `threads::a_fault_is_interrupted` |
//! | 12: failure between two tag saves | `SaveMayFail` | `life`; `failures::slots_and_rooms_run_dry_*` |
//! | 14: slot reuse shows old tags or data | `TagsStayInSlot`, `WriteTooLate` | `life` |
//! | 16: zero entry taken for a block | `ZeroIsBlock` | `life`; `pte::tests::zero_is_empty_everywhere` |
//! | 18: present to absent by mprotect leaks | `NoneForgets` | `life` |
//! | 19: n-th allocation fails | (a panic needs no check) | `failures::memory_runs_out_at_every_allocation_of_a_life` |
//! | 20: reclaim looks at one page for ever | E `Law::Livelock` | `failures::reclaim_*` |
//! | 21: page-in needs a frame and has none | `NoReserve` | `life`; `failures::a_swap_in_with_no_free_frame_*` |
//! | contents unordered before the entry | `NoContentsFence` | `life` |
//! | fetch from a frame not synced | `NoSync` | `life`; `failures::a_kept_page_of_code_is_synced_again` |
//! | fresh page shows old data | `OldData` | `life` |
//! | fresh page shows old tags | `OldTags` | `life` |
//! | untagged page shows old tags after mprotect | `TagsAsTheyAre` | `life` |
//! | page dirty no more after it came back | `BackClean` | `life` |
//! | fold or unfold in place, or without all of the TLBI | `FoldInPlace`, `Unfold*` | `tests/edges.rs` |
//! | 7: one entry of a group changed | `ChangeOne` | `tests/edges.rs` |
//! | 6: group not congruent, or of two folios | `Incongruent`, `TwoFolios` | `tests/life.rs` |
//! | a store noted in one entry is lost | `FirstHistory`, `OwnHistory` | `groups::a_store_beside_freed_pages_is_kept` |
//! | MADV_FREE of one page frees its group | `FreeAll` | `groups::a_store_beside_freed_pages_is_kept` |
//! | tags written when the group is visible | `TagsLate` | `tests/life.rs` |
//! | a page in use looks cold | `AgeUnflushed` | `life::a_page_in_use_stays_in` |
//! | table freed or reused while walkers have it | E `tables_die_after_the_flush_of_walks` | every `destroy` |
//! | identifier reused | E `identifiers_are_flushed_before_reuse` | `tests/life.rs` (`Remake`) |

mod support;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::{Access, Adversary, Emu, Law, Mode, TagCheck};
use ebbtide::reclaim::Advice;
use ebbtide::space::Protection;

use support::folding::{Folding, Slip};
use support::script::{BASE, Kernel, PAGE, ROOMS, SLOTS, at, life};
use support::small::{Mistake, Small};
use support::stage::at_step;
use support::{RW, RWT, Rig, Setup, Stage};

// ---- The library as the kernel. ----

struct Library {
    rig: Rig,
    space: Space<Stage<K4>>,
}

impl Library {
    fn new(seed: u64) -> Self {
        let adversary = [Adversary::Quiet, Adversary::Full][seed as usize & 1];
        let setup = Setup { cpus: 2, slots: SLOTS, tag_rooms: ROOMS, seed, adversary, ..Setup::default() };
        let rig = Rig::new(setup);
        rig.emu().set_tag_check(1, TagCheck::None);
        let space = rig.space();
        Self { rig, space }
    }
}

impl Kernel for Library {
    fn emu(&self) -> &Emu<K4> {
        self.rig.emu()
    }

    fn access(&self, cpu: usize, pointer: u64, access: Access) -> Option<u64> {
        self.rig.program_on(cpu, &self.space).access(pointer, access).ok()
    }

    fn map(&self, page: u64, protection: Protection) {
        self.rig.map(&self.space, at(page), 1, protection);
    }

    fn unmap(&self, page: u64) {
        self.space.unmap(&self.rig.mm, VirtAddr::new(at(page)), PAGE).unwrap();
    }

    fn page_out(&self, page: u64) {
        self.space.advise(&self.rig.mm, VirtAddr::new(at(page)), PAGE, Advice::PageOut).unwrap();
    }

    fn protect(&self, page: u64, protection: Protection) {
        self.space.protect(&self.rig.mm, VirtAddr::new(at(page)), PAGE, protection).unwrap();
    }
}

// ---- Mistakes. ----

/// What finds a mistake.
#[derive(Copy, Clone, Debug)]
enum Finder {
    /// A law of the machine.
    Law(Law),
    /// The life's model, in words that contain these.
    Model(&'static str),
    /// The count of what is free at the end.
    Count,
}

fn check(mistake: Mistake, finder: Finder) {
    let small = Small::new(mistake);
    small.emu.set_mode(Mode::Record);
    let seen = life(&small);
    let broken = small.emu.take_violations();
    let found = match finder {
        Finder::Law(law) => broken.first().is_some_and(|first| first.law == law),
        Finder::Model(words) => broken.is_empty() && seen.as_ref().is_err_and(|told| told.contains(words)),
        Finder::Count => broken.is_empty() && seen.is_ok() && small.missing().is_some(),
    };
    assert!(found, "{mistake:?} was not found by {finder:?}: {seen:?}, {:?}, {:?}", broken.first(), small.missing());
}

#[test]
fn the_small_kernel_without_a_mistake_is_right() {
    let small = Small::new(Mistake::Nothing);
    assert_eq!(life(&small), Ok(()));
    assert_eq!(small.missing(), None);
}

#[test]
fn each_mistake_is_found() {
    use Finder::{Count, Law as Broken, Model};
    let table = [
        (Mistake::NoFence, Broken(Law::ReadWhileWritable)),
        (Mistake::WrongOperand, Broken(Law::ReadWhileWritable)),
        (Mistake::LocalFlush, Broken(Law::ReadWhileWritable)),
        (Mistake::LiveRewrite, Broken(Law::BreakBeforeMake)),
        (Mistake::FreeFirst, Broken(Law::FreedWhileMapped)),
        (Mistake::CopyFirst, Broken(Law::ReadWhileWritable)),
        (Mistake::CopyUnflushed, Broken(Law::ReadWhileWritable)),
        (Mistake::ShowFirst, Broken(Law::WrittenWhileMapped)),
        (Mistake::SaveMayFail, Model("tag 0 of page 2")),
        (Mistake::TagsStayInSlot, Model("tag 0 of page 2")),
        (Mistake::WriteTooLate, Model("page 0 holds")),
        (Mistake::ZeroIsBlock, Broken(Law::Livelock)),
        (Mistake::NoneForgets, Count),
        (Mistake::NoReserve, Model("page 0 holds None")),
        (Mistake::NoContentsFence, Broken(Law::ContentsBeforeEntry)),
        (Mistake::NoSync, Broken(Law::FetchUnsynced)),
        (Mistake::OldData, Broken(Law::DataUnset)),
        (Mistake::OldTags, Broken(Law::TagsUnset)),
        (Mistake::TagsAsTheyAre, Broken(Law::TagsUnset)),
        (Mistake::BackClean, Model("page 0 holds")),
    ];
    table.into_iter().for_each(|(mistake, finder)| check(mistake, finder));
}

#[test]
fn the_small_kernel_with_a_group_is_right() {
    assert_eq!(Folding::new(Slip::Nothing, Adversary::Quiet, 1).life(), Ok(()));
    for seed in 1..=40 {
        assert_eq!(Folding::new(Slip::Nothing, Adversary::Full, seed).life(), Ok(()), "seed {seed}");
    }
}

#[test]
fn each_slip_with_a_group_is_found() {
    use Finder::{Law as Broken, Model};
    let table = [
        (Slip::FoldInPlace, Broken(Law::BreakBeforeMake)),
        (Slip::UnfoldInPlace, Broken(Law::BreakBeforeMake)),
        (Slip::UnfoldUnflushed, Broken(Law::BreakBeforeMake)),
        (Slip::UnfoldOnePage, Broken(Law::BreakBeforeMake)),
        (Slip::ChangeOne, Broken(Law::GroupEqual)),
        (Slip::FirstHistory, Model("page 7 holds")),
        (Slip::FreeAll, Model("page 9 holds")),
        (Slip::TagsLate, Broken(Law::TagsUnset)),
        (Slip::Incongruent, Broken(Law::GroupEqual)),
        (Slip::TwoFolios, Broken(Law::BreakBeforeMake)),
        (Slip::AgeUnflushed, Model("page 6 is in use")),
    ];
    for (slip, finder) in table {
        let kernel = Folding::new(slip, Adversary::Quiet, 1);
        kernel.emu.set_mode(Mode::Record);
        let seen = kernel.life();
        let broken = kernel.emu.take_violations();
        let found = match finder {
            Broken(law) => broken.first().is_some_and(|first| first.law == law),
            Model(words) => broken.is_empty() && seen.as_ref().is_err_and(|told| told.contains(words)),
            Finder::Count => false,
        };
        assert!(found, "{slip:?} was not found by {finder:?}: {seen:?}, {:?}", broken.first());
    }
    // Where the hardware notes a store in the stored-to entry alone, this one is right.
    assert_eq!(Folding::new(Slip::OwnHistory, Adversary::Quiet, 1).life(), Ok(()));
    let lives = (1..=40).map(|seed| Folding::new(Slip::OwnHistory, Adversary::Full, seed).life());
    let lost = lives.filter(|seen| seen.as_ref().is_err_and(|told| told.contains("holds"))).count();
    assert!(lost > 5, "OwnHistory lost a store under {lost} of 40 seeds");
}

#[test]
fn the_library_is_right() {
    for seed in 0..12 {
        let library = Library::new(seed);
        assert_eq!(life(&library), Ok(()), "seed {seed}");
        library.rig.finish(library.space);
    }
}

// ---- What the life does not reach. ----

/// The largest and the smallest addresses that a program can have, at every granule: what is invalidated is what was
/// mapped.
#[test]
fn the_highest_and_the_lowest_page_at_every_granule() {
    fn visit<G: Granule>() {
        let rig = Rig::<G>::new(Setup { cpus: 2, ..Setup::default() });
        let space = rig.space();
        let top = (1 << rig.emu().config().va_bits) - G::SIZE as u64;
        for place in [top, 1 << 47, (1 << 47) - G::SIZE as u64, 64 << 10] {
            let page = VirtAddr::new(place);
            rig.map(&space, place, 1, RWT);
            for cpu in 0..2 {
                rig.program_on(cpu, &space).store(place, 5).unwrap();
            }
            space.advise(&rig.mm, page, G::SIZE as u64, Advice::PageOut).unwrap();
            assert!(rig.emu().access(1, place, Access::Load).is_err(), "{place:#x} is out");
            assert_eq!(rig.program_on(1, &space).load(place), Ok(5));
            space.protect(&rig.mm, page, G::SIZE as u64, Protection::READ).unwrap();
            assert!(rig.emu().access(1, place, Access::Store(1)).is_err(), "{place:#x} is read-only");
            assert_eq!(rig.program_on(1, &space).load(place), Ok(5));
            space.protect(&rig.mm, page, G::SIZE as u64, Protection::empty()).unwrap();
            assert!(rig.emu().access(1, place, Access::Load).is_err(), "{place:#x} is shut");
            space.unmap(&rig.mm, page, G::SIZE as u64).unwrap();
            assert!(rig.emu().access(1, place, Access::Load).is_err(), "{place:#x} is gone");
        }
        rig.finish(space);
    }
    visit::<K4>();
    visit::<K16>();
    visit::<K64>();
}

/// More runs than a flush notes at one time, in one call: none of them is forgotten.
#[test]
fn a_call_on_many_scattered_pages_reaches_all_of_them() {
    let rig = Rig::<K4>::new(Setup { frames: 300, cpus: 2, orders: Some(FolioOrders::SINGLE), ..Setup::default() });
    let space = rig.space();
    rig.map(&space, BASE, 400, RW);
    let pages = || (0..400).step_by(2);
    for page in pages() {
        rig.program(&space).store(at(page), page).unwrap();
        assert_eq!(rig.program_on(1, &space).store(at(page), page), Ok(()));
    }
    space.protect(&rig.mm, VirtAddr::new(BASE), 400 * PAGE, Protection::READ).unwrap();
    for page in pages() {
        assert!(rig.emu().access(1, at(page), Access::Store(1)).is_err(), "page {page} is read-only");
    }
    rig.finish(space);
}

/// Something that the library is asked for, of so many pages at `BASE`.
type Call = fn(&Rig, &Space<Stage<K4>>, u64);

/// From the store that takes an entry away to the fence that completes its flush, no frame becomes free.
fn is_free_only_after_the_flush(setup: Setup, pages: u64, calls: &[Call]) {
    for (call, clean) in calls.iter().flat_map(|call| [(call, false), (call, true)]) {
        let mut before = u64::MAX;
        // The same life again and again, looked at one step later each time.
        for step in 0.. {
            let rig = Arc::new(Rig::<K4>::new(setup));
            let space = rig.space();
            rig.map(&space, BASE, pages, RWT);
            let touch = if clean { Access::Load } else { Access::Store(1) };
            (0..pages).for_each(|page| _ = rig.program(&space).access(at(page), touch).unwrap());
            let seen = Arc::new(Mutex::new((0, false)));
            let (watched, told) = (Arc::clone(&rig), Arc::clone(&seen));
            let look = move || {
                let unflushed = watched.mm.machine().unflushed.load(Relaxed);
                *told.lock().unwrap() = (watched.mm.totals().frames_free, unflushed);
            };
            let ((), interrupted) = at_step(step, look, || call(&rig, &space, pages));
            let (free, unflushed) = *seen.lock().unwrap();
            assert!(!unflushed || free <= before, "step {step}: a frame became free before the flush");
            before = free;
            rig.finish(space);
            if !interrupted {
                break;
            }
        }
    }
}

const BASE_AT: VirtAddr = VirtAddr::new(BASE);

#[test]
fn frames_are_free_only_after_the_flush() {
    let calls: [Call; 5] = [
        |rig, space, pages| space.unmap(&rig.mm, BASE_AT, pages * PAGE).unwrap(),
        |rig, space, pages| space.advise(&rig.mm, BASE_AT, pages * PAGE, Advice::DontNeed).unwrap(),
        |rig, space, pages| space.advise(&rig.mm, BASE_AT, pages * PAGE, Advice::PageOut).unwrap(),
        |rig, space, pages| rig.map(space, BASE, pages, RW),
        |rig, space, pages| space.protect(&rig.mm, BASE_AT, pages * PAGE, Protection::empty()).unwrap(),
    ];
    is_free_only_after_the_flush(Setup::default(), 4, &calls);
}

/// Neighbours, and more folios than a flush owns: it is completed while one run of pages is still being put together.
#[test]
fn frames_of_a_long_run_are_free_only_after_the_flush() {
    let setup = Setup { frames: 200, orders: Some(FolioOrders::SINGLE), ..Setup::default() };
    let calls: [Call; 2] = [
        |rig, space, pages| space.unmap(&rig.mm, BASE_AT, pages * PAGE).unwrap(),
        |rig, space, pages| space.advise(&rig.mm, BASE_AT, pages * PAGE, Advice::PageOut).unwrap(),
    ];
    is_free_only_after_the_flush(setup, 100, &calls);
}
