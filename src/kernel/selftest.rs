//! Self-tests that end the machine: each must die in its own way, or print its one line.

use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use ebbtide::Mm;
use ebbtide::addr::{Pfn, PfnRange};
use ebbtide::conformance::{self, FEWEST_FRAMES, Scratch, Walker, memory_needed};
use ebbtide::granule::Granule;
use ebbtide::machine::recorder::Log;
use ebbtide::machine::{Features, Machine, Tags};
use ebbtide::sync::Spin;

use super::console::{self, alert, log};
use super::layout::Plan;
use super::page::{PAGE, PageGranule};
use super::{Hardware, cannot_start, floor, mmu, sched};

/// Runs the test of that name.
pub fn run(name: &str, mm: &'static Mm<Hardware>, plan: &Plan) -> ! {
    log!("self-test {name}");
    match name {
        "text-write" => text_write(),
        "data-exec" => data_exec(),
        "stack-overflow" => {
            let depth = overflow(0);
            alert!("the stack overflow went unnoticed at depth {depth}");
        }
        "panic" => panic!("forced by the self-test"),
        "lockup-spin" => lockup_spin(),
        "lockup-loop" => lockup_loop(),
        "lockup-wait" => lockup_wait(),
        "tag-digest" => tag_digest(mm.machine()),
        "contents" => contents(mm.machine()),
        "conformance" => conformance(mm.machine(), plan.swap),
        _ => cannot_start(format_args!("there is no self-test named {name}")),
    }
    // Whoever comes here was not stopped.
    console::death(format_args!("self-test {name} failed: nothing stopped it (1)"));
    console::exit(1)
}

/// A store to the kernel's text must fault.
fn text_write() {
    let at: *mut u32 = core::ptr::with_exposed_provenance_mut(mmu::text().start as usize);
    // SAFETY: none: the store must not happen, which is the test. Should it, only the image's header changes.
    unsafe { at.add(1).write_volatile(0) };
}

/// A jump to the kernel's data must fault.
fn data_exec() {
    /// RET.
    static mut CODE: [u32; 1] = [0xd65f_03c0];
    let at = &raw mut CODE;
    // SAFETY: none: the call must not happen, which is the test. Should it, the data is an instruction that returns.
    unsafe { core::mem::transmute::<*mut [u32; 1], extern "C" fn()>(at)() };
}

/// Recursion without end must meet the guard.
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 16]);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + room[depth as usize % 16] }
}

/// A lock that its holder waits for: found by the spinning CPU, or by another one.
fn lockup_spin() {
    static LOCK: Spin<u32> = Spin::new(0);
    let held = LOCK.lock();
    alert!("the lock was taken twice: {}", *LOCK.lock() + *held);
}

/// A CPU that never leaves the kernel, nor waits for anything: found by another one.
fn lockup_loop() {
    extern "C" fn body() -> ! {
        loop {
            core::hint::spin_loop();
        }
    }
    sched::spawn(body);
    sched::idle()
}

/// Tasks that all wait for each other: found where the last CPU would idle.
fn lockup_wait() {
    extern "C" fn body() -> ! {
        static WORD: AtomicU32 = AtomicU32::new(0);
        loop {
            sched::wait(&WORD, 0);
        }
    }
    sched::spawn(body);
    sched::idle()
}

/// The machine's page operations against what they promise, word by word and granule by granule.
fn contents(machine: &Hardware) -> ! {
    const WORDS: usize = PageGranule::SIZE / 8;
    const TAG: u64 = 0x5555_5555_5555_5555;
    let Some([first, second]) = floor::scratch() else { panic!("no scratch frames") };
    let mte = machine.features().contains(Features::MTE);
    let word =
        |frame: Pfn, index: usize| mmu::linear(frame.base::<PageGranule>().bytes()).cast::<u64>().wrapping_add(index);
    // SAFETY: the scratch frames are mapped and nobody else's; every index below is smaller than `WORDS`.
    let read = |frame, index| unsafe { word(frame, index).read_volatile() };
    // SAFETY: as above.
    let write = |frame, index, value: u64| unsafe { word(frame, index).write_volatile(value) };
    let all_tags = |frame, expected: u64| {
        *machine.load_tags(frame, &mut MaybeUninit::uninit())
            == [if mte { expected } else { 0 }; PageGranule::TAG_WORDS]
    };
    let fill =
        |frame, factor: u64| (0..WORDS).for_each(|index| write(frame, index, factor.wrapping_mul(index as u64 + 1)));
    let run = |frame| PfnRange::new(frame, 1);

    fill(first, 0x9e37_79b9_7f4a_7c15);
    fill(second, 3);
    machine.store_tags(first, &[TAG; PageGranule::TAG_WORDS]);
    machine.store_tags(second, &[0; PageGranule::TAG_WORDS]);
    machine.copy_page(first, second, Tags::Ignore);
    assert!((0..WORDS).all(|index| read(second, index) == read(first, index)), "copy of data");
    machine.copy_page(first, second, Tags::Include);
    assert!(all_tags(second, TAG) && (0..WORDS).all(|index| read(second, index) == read(first, index)), "copy");
    machine.zero(run(first), Tags::Ignore);
    assert!((0..WORDS).all(|index| read(first, index) == 0) && all_tags(first, TAG), "zero of data");
    machine.zero(run(second), Tags::Include);
    assert!((0..WORDS).all(|index| read(second, index) == 0) && all_tags(second, 0), "zero");
    machine.zero_tags(first);
    assert!(all_tags(first, 0), "zero of tags");
    for index in 0..WORDS {
        write(first, index, 0x1234_5678);
    }
    assert_eq!(machine.repeated_word(first), Some(0x1234_5678));
    machine.fill(second, 0x8765_4321);
    assert_eq!(machine.repeated_word(second), Some(0x8765_4321));
    for index in 0..WORDS {
        write(first, index, 0x1234_5679);
        assert_eq!(machine.repeated_word(first), None, "word {index}");
        write(first, index, 0x1234_5678);
    }
    console::exit(0)
}

/// The library's own checks of this machine, over the pages of the swap device: no program runs, so nothing is there.
fn conformance(machine: &'static Hardware, pages: PfnRange) -> ! {
    static LOG: Log = Log::new(|violation| alert!("{violation}"));
    let bytes = memory_needed::<&Hardware>(FEWEST_FRAMES);
    if pages.pages() < FEWEST_FRAMES + (bytes as u64).div_ceil(PAGE) {
        cannot_start(format_args!("conformance needs more swap="));
    }
    let frames = PfnRange::new(pages.start(), FEWEST_FRAMES);
    let Some(memory) = NonNull::new(mmu::linear(frames.end().base::<PageGranule>().bytes())) else {
        unreachable!("the linear map starts above 0")
    };
    let mut first = None;
    // SAFETY: the swap device's pages are mapped for ever, and no slot of it is in use: there is no space.
    let summary = unsafe {
        conformance::run(machine, Scratch { frames, memory, bytes, log: &LOG }, &Walker, &mut |name, outcome| {
            if let Err(failure) = outcome {
                alert!("{name}: {failure}");
                first.get_or_insert(name);
            }
        })
    };
    if let Some(name) = first {
        console::death(format_args!("self-test conformance failed: {name} (1)"));
        console::exit(1);
    }
    alert!("conformance: {} checks passed", summary.passed);
    console::exit(0)
}

/// Saves a page of many different tags, restores it elsewhere, compares, and prints a digest of the saved words,
/// which must be the same on every CPU.
fn tag_digest(machine: &Hardware) -> ! {
    const WORDS: usize = PageGranule::TAG_WORDS;
    if !machine.features().contains(Features::MTE) {
        cannot_start(format_args!("tag-digest needs memory tags"));
    }
    let Some([first, second]) = floor::scratch() else { panic!("no scratch frames") };
    let mut pattern = [0_u64; WORDS];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for word in &mut pattern {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state;
    }
    for frame in [first, second] {
        machine.zero(PfnRange::new(frame, 1), Tags::Include);
    }
    write_tags(first, &pattern);
    let saved = *machine.load_tags(first, &mut MaybeUninit::uninit());
    machine.store_tags(second, &saved);
    let again = *machine.load_tags(second, &mut MaybeUninit::uninit());
    machine.zero_tags(second);
    machine.copy_page(first, second, Tags::Include);
    let copied = *machine.load_tags(second, &mut MaybeUninit::uninit());
    if saved != pattern || again != pattern || copied != pattern {
        console::death(format_args!("self-test tag-digest failed: tags were lost (1)"));
        console::exit(1);
    }
    // FNV-1a, 64 bits.
    let digest = saved
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    alert!("tag image digest {digest:#018x}");
    console::exit(0)
}

/// Writes tags one granule at a time, which is the same on every CPU: the other side of the comparison.
fn write_tags(frame: Pfn, pattern: &[u64; PageGranule::TAG_WORDS]) {
    let page = mmu::linear(frame.base::<PageGranule>().bytes());
    for granule in 0..16 * pattern.len() {
        let tag = (pattern[granule / 16] >> (4 * (granule % 16)) & 0xf) as usize;
        let at = page.wrapping_add(16 * granule).map_addr(|address| address & !(0xf << 56) | tag << 56);
        // SAFETY: a scratch page of the linear map, which is Normal Tagged.
        unsafe {
            core::arch::asm!(".arch_extension memtag", "stg {0}, [{0}]", in(reg) at, options(nostack, preserves_flags))
        };
    }
}
