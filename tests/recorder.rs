//! The recorder: the library's order passes, and each broken order is seen.
//!
//! The emulator below plays no adversary and has no say: its laws are kept from panicking, so that what is found here
//! the recorder found.

use std::cell::RefCell;
use std::ptr::NonNull;

use ebbtide::addr::{Pfn, PfnRange, VirtAddr, Vpn, VpnRange};
use ebbtide::frame::FrameRecord;
use ebbtide::granule::{Granule, K4, K16, K64, Level};
use ebbtide::machine::emu::{self, Emu, EmuConfig, Mode};
use ebbtide::machine::recorder::{Lacking, Log, Recorder, Rule, Violation};
use ebbtide::machine::{Asid, Cached, EntryAt, Features, Machine, Reach, Scope, Tags};
use ebbtide::pte::{Leaf, table_descriptor};
use ebbtide::reclaim::Advice;
use ebbtide::space::{Access, Fault, Growth, MapRequest, Placement, Protection};
use ebbtide::swap::{DeviceError, DeviceFlags, Progress, SwapArea, SwapDevice, memory_needed};
use ebbtide::{Memory, Mm, Space};

const RW: Protection = Protection::READ.union(Protection::WRITE);
const RWT: Protection = RW.union(Protection::TAGGED);
const ASID: Asid = Asid::new(5);

fn log(hook: fn(&Violation)) -> &'static Log {
    Box::leak(Box::new(Log::new(hook)))
}

fn zeroed(bytes: usize) -> NonNull<u8> {
    NonNull::from(Box::leak(vec![0u64; bytes.div_ceil(8)].into_boxed_slice())).cast()
}

// ---- The library lives on it. ----

/// Slot `i` is frame `i` of a run.
struct Ram(PfnRange);

impl<M: Machine> SwapDevice<M> for Ram {
    fn flags(&self) -> DeviceFlags {
        DeviceFlags::SYNCHRONOUS
    }

    fn write(&self, machine: &M, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        let to = self.0.start().offset(slot.into());
        (0..frames.pages()).for_each(|page| {
            machine.copy_page(frames.start().offset(page), to.offset(page), Tags::Ignore);
        });
        Ok(Progress::Done)
    }

    fn read(&self, machine: &M, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        let from = self.0.start().offset(slot.into());
        (0..frames.pages()).for_each(|page| {
            machine.copy_page(from.offset(page), frames.start().offset(page), Tags::Ignore);
        });
        Ok(Progress::Done)
    }
}

fn live<G: Granule>(features: Features) {
    const FRAMES: u64 = 1024;
    const SLOTS: u32 = 400;
    let first = Pfn::new(0x4_0000);
    let emu = Emu::<G>::new(EmuConfig {
        frames: FRAMES,
        first_frame: first,
        cpus: 2,
        features,
        asid_bits: 8,
        ..EmuConfig::default()
    });
    let log = log(|violation| panic!("{violation}"));
    let free = PfnRange::new(first, FRAMES - u64::from(SLOTS));
    let records = zeroed(FRAMES as usize * size_of::<FrameRecord>()).cast();
    // SAFETY: the records are zeroed and leaked; the frames are the library's alone.
    let mm = unsafe { Mm::new(Recorder::new(emu, log), Memory { span: free, records, free: &[free] }) }.unwrap();
    let device: &'static Ram = Box::leak(Box::new(Ram(PfnRange::new(free.end(), SLOTS.into()))));
    let bytes = memory_needed::<G>(SLOTS, SLOTS);
    let area = SwapArea { device, slots: SLOTS, tag_rooms: SLOTS, memory: zeroed(bytes), bytes, priority: 0 };
    // SAFETY: the memory is leaked.
    unsafe { mm.swap_on(area) }.unwrap();
    let fresh = mm.totals();
    let page = G::SIZE as u64;
    for round in 0..3 {
        let space = Space::new(&mm).unwrap();
        let emu = mm.machine().inner();
        (0..2).for_each(|cpu| emu.on_cpu(cpu, || space.activate(&mm)));
        let at = |index: u64| VirtAddr::new(0x40_0000_0000 + index * page);
        let pages = 4 * G::GROUP_PAGES as u64;
        let request = MapRequest {
            placement: Placement::Fixed(at(0)),
            bytes: pages * page,
            protection: if round == 1 { RWT } else { RW },
            growth: Growth::Fixed,
        };
        space.map(&mm, request).unwrap();
        let touch = |cpu: usize, index: u64, access: emu::Access| {
            let fault = |fault: emu::Fault| {
                let access = if fault.access == emu::Access::Load { Access::Read } else { Access::Write };
                space.handle_fault(&mm, Fault { address: fault.address, access })
            };
            emu.user(cpu, fault).access(at(index).bytes(), access)
        };
        let len = |count: u64| count * page;
        for index in 0..pages {
            touch(index as usize % 2, index, emu::Access::Store(index)).unwrap();
        }
        space.protect(&mm, at(3), len(2), Protection::READ).unwrap();
        space.protect(&mm, at(0), len(pages), RWT).unwrap();
        space.advise(&mm, at(5), len(pages / 2), Advice::PageOut).unwrap();
        space.advise(&mm, at(pages / 2), len(3), Advice::Cold).unwrap();
        space.advise(&mm, at(pages / 2), len(7), Advice::Free).unwrap();
        space.advise(&mm, at(pages - 9), len(9), Advice::DontNeed).unwrap();
        for index in 0..pages / 2 {
            assert_eq!(touch(1, index, emu::Access::Load), Ok(index));
        }
        space.unmap(&mm, at(1), len(pages / 2)).unwrap();
        (0..2).for_each(|cpu| emu.on_cpu(cpu, || mm.deactivate()));
        assert!(space.destroy(&mm).is_ok());
        assert_eq!(mm.totals(), fresh);
    }
    assert_eq!((log.violations(), log.unseen(), log.pending()), (0, 0, 0));
    assert!(mm.stats().swap_in.get() > 0 && mm.stats().unfolds.get() > 0);
}

#[test]
fn the_library_keeps_the_order() {
    for features in [Features::all(), Features::empty()] {
        live::<K4>(features);
    }
}

#[test]
fn the_library_keeps_the_order_with_larger_pages() {
    live::<K16>(Features::all());
    live::<K64>(Features::all());
}

// ---- Each rule can fail. ----

thread_local! {
    static BROKEN: RefCell<Vec<Rule>> = const { RefCell::new(Vec::new()) };
}

/// A root with one leaf table, and pages.
struct Raw {
    machine: Recorder<Emu<K4>>,
    first: Pfn,
}

/// The first page that the leaf table maps.
const FIRST: u64 = 512 * 7;

impl Raw {
    fn new() -> Self {
        let emu = Emu::<K4>::new(EmuConfig { frames: 64, cpus: 2, va_bits: 39, ..EmuConfig::default() });
        emu.set_mode(Mode::Record);
        let first = emu.frames().start();
        let raw = Self {
            machine: Recorder::new(emu, log(|violation| BROKEN.with_borrow_mut(|all| all.push(violation.rule)))),
            first,
        };
        BROKEN.take();
        raw.machine.zero(PfnRange::new(first, 64), Tags::Include);
        raw.machine.fence_contents();
        let link = |table, index, to| {
            raw.machine.store_entry(EntryAt { table: raw.frame(table), index }, table_descriptor::<K4>(raw.frame(to)));
        };
        link(0, 0, 1);
        raw.machine.install_root(raw.frame(0), ASID);
        link(1, 7, 2);
        raw
    }

    fn frame(&self, number: u64) -> Pfn {
        self.first.offset(number)
    }

    fn at(&self, index: usize) -> EntryAt {
        EntryAt { table: self.frame(2), index }
    }

    fn leaf(&self, frame: u64) -> u64 {
        Leaf::page::<K4>(self.frame(frame), RW).with_access().raw()
    }

    fn map(&self, index: usize, frame: u64) {
        self.machine.store_entry(self.at(index), self.leaf(frame));
    }

    fn clear(&self, index: usize) {
        self.machine.exchange_entry(self.at(index), 0);
    }

    fn invalidate(&self, index: u64, pages: u64, reach: Reach) {
        let scope = Scope::Pages(VpnRange::new(Vpn::new(FIRST + index), pages));
        self.machine.invalidate(ASID, scope, Cached::Leaf(Level::L3), reach);
    }

    fn flush(&self, index: u64, pages: u64) {
        self.machine.fence_tables();
        self.invalidate(index, pages, Reach::Broadcast);
        self.machine.fence_invalidations();
    }

    fn zero(&self, frame: u64) {
        self.machine.zero(PfnRange::new(self.frame(frame), 1), Tags::Include);
    }

    fn broken(&self) -> Vec<Rule> {
        BROKEN.take()
    }
}

#[test]
fn contents_are_fenced_before_the_entry() {
    let raw = Raw::new();
    let unfenced = vec![Rule::ContentsBeforeEntry(raw.frame(9))];
    raw.zero(9);
    raw.map(0, 9);
    assert_eq!(raw.broken(), unfenced);
    let writes: [fn(&Raw); 4] = [
        |raw| raw.machine.copy_page(raw.frame(8), raw.frame(9), Tags::Ignore),
        |raw| raw.machine.store_tags(raw.frame(9), &[0; 16]),
        |raw| raw.machine.zero_tags(raw.frame(9)),
        |raw| assert_eq!(raw.machine.window(raw.frame(9)).bytes(), 4096),
    ];
    for write in writes {
        raw.clear(0);
        raw.flush(0, 1);
        write(&raw);
        assert_eq!(raw.machine.compare_exchange_entry(raw.at(0), 0, raw.leaf(9)), Ok(()));
        assert_eq!(raw.broken(), unfenced);
    }
    // Another CPU's fence is not this one's; each of the three fences is one.
    let fences: [fn(&Raw); 3] =
        [|raw| raw.machine.fence_contents(), |raw| raw.machine.fence_tables(), |raw| raw.machine.fence_invalidations()];
    for fence in fences {
        raw.clear(0);
        raw.flush(0, 1);
        raw.zero(9);
        raw.machine.inner().on_cpu(1, || fence(&raw));
        raw.machine.exchange_entry(raw.at(0), raw.leaf(9));
        assert_eq!(raw.broken(), unfenced);
        raw.clear(0);
        raw.flush(0, 1);
        raw.zero(9);
        fence(&raw);
        raw.machine.exchange_entry(raw.at(0), raw.leaf(9));
        assert_eq!(raw.broken(), []);
    }
}

#[test]
fn a_frame_is_used_after_the_flush() {
    let raw = Raw::new();
    let (m, frame) = (&raw.machine, raw.frame(9));
    type Step = fn(&Raw);
    let steps: [(Step, Lacking); 6] = [
        (|_| (), Lacking::TableFence),
        (|raw| raw.machine.fence_tables(), Lacking::Invalidation),
        (|raw| raw.invalidate(4, 1, Reach::Broadcast), Lacking::TableFence),
        (
            |raw| {
                raw.machine.fence_tables();
                raw.invalidate(3, 1, Reach::Broadcast);
                raw.invalidate(5, 1, Reach::Broadcast);
                raw.machine.fence_invalidations();
            },
            Lacking::Invalidation,
        ),
        (
            |raw| {
                raw.machine.fence_tables();
                raw.invalidate(4, 1, Reach::Local);
                raw.machine.fence_invalidations();
            },
            Lacking::Broadcast,
        ),
        (
            |raw| {
                raw.machine.fence_tables();
                raw.invalidate(0, 8, Reach::Broadcast);
            },
            Lacking::Completion,
        ),
    ];
    for (step, lacking) in steps {
        let early = [Rule::FlushBeforeContents(frame, lacking)];
        raw.map(4, 9);
        raw.clear(4);
        step(&raw);
        raw.zero(9);
        assert_eq!(raw.broken(), early);
        m.copy_page(frame, raw.frame(10), Tags::Include);
        assert_eq!(raw.broken(), early);
        m.copy_page(raw.frame(10), frame, Tags::Include);
        assert_eq!(raw.broken(), early);
        m.load_tags(frame, &mut core::mem::MaybeUninit::uninit());
        assert_eq!(raw.broken(), early);
        m.store_tags(frame, &[0; 16]);
        assert_eq!(raw.broken(), early);
        m.zero_tags(frame);
        assert_eq!(raw.broken(), early);
        m.repeated_word(frame);
        assert_eq!(raw.broken(), early);
        m.window(frame);
        assert_eq!(raw.broken(), early);
        m.fence_contents();
        raw.map(6, 9);
        assert_eq!(raw.broken(), [Rule::FlushBeforeReuse(frame, lacking)]);
        raw.clear(6);
        raw.map(4, 11);
        assert_eq!(raw.broken(), [Rule::BreakBeforeMake(lacking)]);
        raw.clear(4);
        raw.flush(0, 512);
        raw.zero(9);
        raw.map(6, 9);
        raw.clear(6);
        m.fence_tables();
        m.invalidate(ASID, Scope::Space, Cached::Walk, Reach::Broadcast);
        m.fence_invalidations();
        raw.zero(9);
        m.fence_contents();
        raw.broken();
        assert_eq!(m.log().pending(), 0);
    }
}

#[test]
fn a_lost_right_is_flushed_as_well() {
    let raw = Raw::new();
    raw.map(1, 9);
    let none = Leaf::page::<K4>(raw.frame(9), Protection::empty()).raw();
    raw.machine.exchange_entry(raw.at(1), none);
    raw.machine.repeated_word(raw.frame(9));
    assert_eq!(raw.broken(), [Rule::FlushBeforeContents(raw.frame(9), Lacking::TableFence)]);
    // More rights need nothing.
    raw.flush(1, 1);
    raw.machine.exchange_entry(raw.at(1), raw.leaf(9));
    raw.machine.repeated_word(raw.frame(9));
    assert_eq!(raw.broken(), []);
}

#[test]
fn what_comes_back_needs_no_flush() {
    let raw = Raw::new();
    (0..3).for_each(|index| raw.map(index, 20 + index as u64));
    (0..3).for_each(|index| raw.clear(index));
    assert_eq!(raw.machine.log().pending(), 1);
    raw.map(1, 21);
    assert_eq!(raw.machine.log().pending(), 2);
    raw.map(0, 20);
    raw.map(2, 22);
    assert_eq!((raw.machine.log().pending(), raw.broken()), (0, vec![]));
}

#[test]
fn live_entries_are_exchanged_and_keep_their_frames() {
    let raw = Raw::new();
    raw.map(1, 9);
    raw.map(1, 9);
    assert_eq!(raw.broken(), [Rule::LiveEntryStored]);
    raw.machine.exchange_entry(raw.at(1), raw.leaf(10));
    assert_eq!(raw.broken(), [Rule::BreakBeforeMake(Lacking::Invalidation)]);
}

#[test]
fn a_table_waits_for_its_walks() {
    let raw = Raw::new();
    raw.machine.exchange_entry(EntryAt { table: raw.frame(1), index: 7 }, 0);
    raw.flush(0, 512);
    raw.zero(2);
    assert_eq!(raw.broken(), [Rule::FlushBeforeContents(raw.frame(2), Lacking::Invalidation)]);
    let pages = Scope::Pages(VpnRange::new(Vpn::new(FIRST), 512));
    raw.machine.invalidate(ASID, pages, Cached::Walk, Reach::Broadcast);
    raw.machine.fence_invalidations();
    raw.zero(2);
    assert_eq!(raw.broken(), []);
}

#[test]
fn another_cpus_flush_is_not_ones_own() {
    let raw = Raw::new();
    raw.map(1, 9);
    raw.clear(1);
    raw.machine.inner().on_cpu(1, || raw.flush(1, 1));
    raw.zero(9);
    assert_eq!(raw.broken(), [Rule::FlushBeforeContents(raw.frame(9), Lacking::TableFence)]);
}

#[test]
fn what_does_not_fit_is_counted() {
    let raw = Raw::new();
    // Every second page: no two removals make a run.
    for round in 0..4 {
        for index in (0..512).step_by(2) {
            raw.map(index, 10 + round);
            raw.clear(index);
        }
    }
    assert!(raw.machine.log().unseen() > 0 && raw.machine.log().violations() > 0);
}

#[test]
fn a_report_says_what_came_before() {
    thread_local! {
        static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
    }
    let emu = Emu::<K4>::new(EmuConfig { frames: 64, va_bits: 39, ..EmuConfig::default() });
    emu.set_mode(Mode::Record);
    let machine = Recorder::new(emu, log(|violation| TEXT.set(format!("{violation}"))));
    let first = machine.inner().frames().start();
    machine.zero(machine.inner().frames(), Tags::Ignore);
    machine.store_entry(EntryAt { table: first, index: 3 }, Leaf::page::<K4>(first.offset(9), RW).raw());
    let text = TEXT.take();
    assert!(text.starts_with("order broken on CPU 0: pfn:0x40009 is shown before"), "{text}");
    assert!(text.contains("\n  CPU 0: zero") && text.contains("\n  CPU 0: store"), "{text}");
}
