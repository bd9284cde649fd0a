//! The conformance suite on the emulated machine, and on machines that do one thing wrong.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use ebbtide::addr::{Pfn, PfnRange};
use ebbtide::conformance::{Program, Scratch, Summary, Touch, Walker, memory_needed, run};
use ebbtide::granule::{Granule, K4, K16, K64};
use ebbtide::machine::emu::{self, Adversary, Emu, EmuConfig, Mode, TagCheck};
use ebbtide::machine::recorder::{Log, Recorder};
use ebbtide::machine::{Asid, Cached, EntryAt, Features, Machine, Reach, Scope, TagWords, Tags, Window};
use ebbtide::space::Fault;
use ebbtide::sync::AtomicU32;

const FRAMES: u64 = 1024;

/// What a porter's program is here: one that goes through the emulator's TLB, and carries the right tags.
struct OnEmu;

impl<G: Granule> Program<Emu<G>> for OnEmu {
    fn touch(&self, emu: &Emu<G>, _root: Pfn, address: u64, touch: Touch) -> Result<u64, Fault> {
        let access = match touch {
            Touch::Load => emu::Access::Load,
            Touch::Store(value) => emu::Access::Store(value),
            Touch::LoadTag => emu::Access::LoadTag,
            Touch::StoreTag(tag) => emu::Access::StoreTag(tag),
        };
        emu.access(0, address, access).map_err(|fault| Fault { address: fault.address, access: touch.access() })
    }
}

fn emu<G: Granule>(features: Features, adversary: Adversary) -> Emu<G> {
    let emu = Emu::new(EmuConfig { frames: FRAMES, features, adversary, asid_bits: 8, ..EmuConfig::default() });
    emu.set_tag_check(0, TagCheck::None);
    emu
}

/// Runs the suite; returns how it ended, and what failed and why.
fn suite<M: Machine>(machine: M, program: &dyn Program<M>) -> (Summary, Vec<(&'static str, String)>) {
    let bytes = memory_needed::<M>(FRAMES);
    let room = Box::leak(vec![0u64; (bytes + M::Granule::SIZE).div_ceil(8)].into_boxed_slice());
    let memory: NonNull<u8> = NonNull::from(room).cast();
    // SAFETY: a page more than is needed was allocated.
    let memory = unsafe { memory.add(memory.align_offset(M::Granule::SIZE)) };
    let log = Box::leak(Box::new(Log::new(|violation| println!("{violation}"))));
    let scratch = Scratch { frames: PfnRange::new(Pfn::new(0x4_0000), FRAMES), memory, bytes, log };
    let mut failures = Vec::new();
    // SAFETY: the emulator's frames, and leaked memory.
    let summary = unsafe {
        run(machine, scratch, program, &mut |name, outcome| {
            if let Err(failure) = outcome {
                failures.push((name, failure.to_string()));
            }
        })
    };
    assert_eq!(summary.failed as usize, failures.len());
    (summary, failures)
}

fn conforms<G: Granule>(features: Features, adversary: Adversary) -> u32 {
    let (summary, failures) = suite(emu::<G>(features, adversary), &OnEmu);
    assert_eq!(failures, []);
    summary.passed
}

#[test]
fn the_emulator_conforms() {
    for adversary in [Adversary::Quiet, Adversary::Full] {
        assert_eq!(conforms::<K4>(Features::all(), adversary), 24);
    }
    conforms::<K4>(Features::MTE, Adversary::Quiet);
    assert_eq!(conforms::<K4>(Features::empty(), Adversary::Full), 21);
}

#[test]
fn the_emulator_conforms_with_larger_pages() {
    conforms::<K16>(Features::all(), Adversary::Quiet);
    conforms::<K64>(Features::all(), Adversary::Quiet);
}

/// The walker as the program. It uses pages through the kernel's mapping while programs may reach them: the emulator,
/// which forbids that to a kernel, only takes note.
#[test]
fn the_walker_is_a_program() {
    for features in [Features::all(), Features::MTE | Features::HW_ACCESS, Features::empty()] {
        let emu = emu::<K4>(features, Adversary::Quiet);
        emu.set_mode(Mode::Record);
        assert_eq!(suite(emu, &Walker).1, []);
    }
}

// ---- Wrong machines. ----

/// What a machine does wrong.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Wrong {
    Nothing,
    ExchangeIsStale,
    CompareAlways,
    CompareSaysSeen,
    ZeroMissesLast,
    ZeroKeepsTags,
    CopyLosesTags,
    CopyMissesWord,
    FillMissesWord,
    SumInAnyOrder,
    RepeatsByFirst,
    TagsSwapped,
    TagsSpill,
    FramesMeet,
    TimeGoesBack,
    TooManyCpus,
    DirtyAlone,
    NoInvalidation,
    LocalInvalidation,
    NoTableFence,
    NoContentsFence,
    NoCompletion,
}

/// The emulator with one mistake, and what a recorder below sees of it.
struct Bad {
    below: Recorder<Emu<K4>>,
    wrong: Wrong,
}

impl Bad {
    fn emu(&self) -> &Emu<K4> {
        self.below.inner()
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }
}

// SAFETY: none: it is wrong on purpose, within the emulator's memory.
unsafe impl Machine for Bad {
    type Granule = K4;

    fn load_entry(&self, at: EntryAt) -> u64 {
        self.below.load_entry(at)
    }
    fn store_entry(&self, at: EntryAt, raw: u64) {
        self.below.store_entry(at, raw);
    }
    fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64 {
        let old = self.below.exchange_entry(at, raw);
        if self.is(Wrong::ExchangeIsStale) { raw } else { old }
    }
    fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64> {
        if self.is(Wrong::CompareAlways) {
            self.below.exchange_entry(at, raw);
            return Ok(());
        }
        let done = self.below.compare_exchange_entry(at, seen, raw);
        if self.is(Wrong::CompareSaysSeen) { done.map_err(|_| seen) } else { done }
    }
    fn fence_tables(&self) {
        if !self.is(Wrong::NoTableFence) {
            self.below.fence_tables();
        }
    }
    fn fence_contents(&self) {
        if !self.is(Wrong::NoContentsFence) {
            self.below.fence_contents();
        }
    }
    fn fence_invalidations(&self) {
        if !self.is(Wrong::NoCompletion) {
            self.below.fence_invalidations();
        }
    }
    fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach) {
        if !self.is(Wrong::NoInvalidation) {
            let reach = if self.is(Wrong::LocalInvalidation) { Reach::Local } else { reach };
            self.below.invalidate(asid, scope, cached, reach);
        }
    }
    fn install_root(&self, root: Pfn, asid: Asid) {
        self.below.install_root(root, asid);
    }
    fn zero(&self, run: PfnRange, tags: Tags) {
        let less = u64::from(self.is(Wrong::ZeroMissesLast) && run.pages() > 1);
        let tags = if self.is(Wrong::ZeroKeepsTags) { Tags::Ignore } else { tags };
        self.below.zero(PfnRange::new(run.start(), run.pages() - less), tags);
    }
    fn zero_tags(&self, frame: Pfn) {
        self.below.zero_tags(frame);
    }
    fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags) {
        let tags = if self.is(Wrong::CopyLosesTags) { Tags::Ignore } else { tags };
        self.below.copy_page(from, to, tags);
        if self.is(Wrong::CopyMissesWord) {
            // SAFETY: a word of the emulator's memory, which one thread uses.
            unsafe { self.below.window(to).first().cast::<u64>().add(311).write(0) };
        }
    }
    fn sum(&self, run: PfnRange, sums: &mut [u64]) {
        self.below.sum(run, sums);
        if self.is(Wrong::SumInAnyOrder) {
            for (page, sum) in (0..).zip(sums) {
                let words = (0..K4::ENTRIES).map(|word| self.emu().peek_word(run.start().offset(page), 8 * word));
                *sum = words.fold(0, u64::wrapping_add);
            }
        }
    }
    fn repeated_word(&self, frame: Pfn) -> Option<u64> {
        let found = self.below.repeated_word(frame);
        if self.is(Wrong::RepeatsByFirst) { Some(self.emu().peek_word(frame, 0)) } else { found }
    }
    fn fill(&self, frame: Pfn, word: u64) {
        self.below.fill(frame, word);
        if self.is(Wrong::FillMissesWord) {
            // SAFETY: a word of the emulator's memory, which one thread uses.
            unsafe { self.below.window(frame).first().cast::<u64>().add(311).write(!word) };
        }
    }
    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<TagWords<Self>>) -> &'a TagWords<Self> {
        self.below.load_tags(frame, into)
    }
    fn store_tags(&self, frame: Pfn, tags: &TagWords<Self>) {
        let mut tags = *tags;
        if self.is(Wrong::TagsSwapped) {
            tags.iter_mut().for_each(|word| *word = word.swap_bytes());
        }
        self.below.store_tags(frame, &tags);
        let next = frame.offset(1);
        if self.is(Wrong::TagsSpill) && self.emu().frames().contains(next) {
            self.below.zero_tags(next);
        }
    }
    fn window(&self, frame: Pfn) -> Window<'_> {
        let odd = self.is(Wrong::FramesMeet) && frame.number() % 2 == 1;
        self.below.window(if odd { Pfn::new(frame.number() - 1) } else { frame })
    }
    fn sync_code(&self, run: PfnRange) {
        self.below.sync_code(run);
    }
    fn features(&self) -> Features {
        let features = self.below.features();
        if self.is(Wrong::DirtyAlone) { features - Features::HW_ACCESS } else { features }
    }
    fn asid_bits(&self) -> u32 {
        self.below.asid_bits()
    }
    fn va_bits(&self) -> u32 {
        self.below.va_bits()
    }
    fn cpu(&self) -> usize {
        if self.is(Wrong::TooManyCpus) { 16 } else { self.below.cpu() }
    }
    fn now_ns(&self) -> u64 {
        let now = self.below.now_ns();
        if self.is(Wrong::TimeGoesBack) { u64::MAX - now } else { now }
    }
    fn relax(&self) {
        self.below.relax();
    }
    fn wait(&self, word: &AtomicU32, seen: u32) {
        self.below.wait(word, seen);
    }
    fn wake(&self, word: &AtomicU32) {
        self.below.wake(word);
    }
}

impl Program<Bad> for OnEmu {
    fn touch(&self, machine: &Bad, root: Pfn, address: u64, touch: Touch) -> Result<u64, Fault> {
        Program::<Emu<K4>>::touch(self, machine.emu(), root, address, touch)
    }
}

#[test]
fn a_wrong_machine_fails_the_check_that_is_about_it() {
    let cases = [
        (Wrong::Nothing, None),
        (Wrong::ExchangeIsStale, Some("entries")),
        (Wrong::CompareAlways, Some("entries")),
        (Wrong::CompareSaysSeen, Some("entries")),
        (Wrong::ZeroMissesLast, Some("zero")),
        (Wrong::ZeroKeepsTags, Some("tags of a page")),
        (Wrong::CopyLosesTags, Some("tags of a page")),
        (Wrong::CopyMissesWord, Some("copy")),
        (Wrong::FillMissesWord, Some("repeated word")),
        (Wrong::SumInAnyOrder, Some("sums")),
        (Wrong::RepeatsByFirst, Some("repeated word")),
        (Wrong::TagsSwapped, Some("tags of each granule")),
        (Wrong::TagsSpill, Some("tags of neighbours")),
        (Wrong::FramesMeet, Some("frames")),
        (Wrong::TimeGoesBack, Some("time")),
        (Wrong::TooManyCpus, Some("cpu")),
        (Wrong::DirtyAlone, Some("features")),
        (Wrong::NoInvalidation, Some("life: first touch")),
    ];
    for (wrong, expected) in cases {
        let (failures, _) = wrong_suite(wrong);
        let first = failures.first().map(|(name, _)| *name);
        assert_eq!(first, expected, "{wrong:?}: {failures:?}");
    }
}

/// What runs on a machine does not see whether its fences do anything; what lies below the mistake does.
#[test]
fn a_missing_fence_is_seen_below() {
    for (wrong, is_seen) in [
        (Wrong::Nothing, false),
        (Wrong::NoTableFence, true),
        (Wrong::NoContentsFence, true),
        (Wrong::NoCompletion, true),
        (Wrong::LocalInvalidation, true),
    ] {
        let (_, below) = wrong_suite(wrong);
        assert_eq!(below.violations() > 0, is_seen, "{wrong:?}");
    }
}

fn wrong_suite(wrong: Wrong) -> (Vec<(&'static str, String)>, &'static Log) {
    let emu = emu::<K4>(Features::all(), Adversary::Quiet);
    emu.set_mode(Mode::Record);
    let log: &'static Log = Box::leak(Box::new(Log::new(|_| ())));
    let below = Recorder::new(emu, log);
    (suite(Bad { below, wrong }, &OnEmu).1, log)
}
