//! `scale [--percent N] [--rounds N]`, `scale --spaces N`: what a page costs where the machine is larger, or more busy.
//!
//! The machine must count instructions, as for `bench`; each figure is of all CPUs, at EL0 and EL1, with the loop's own
//! ten (of `zipf` forty) in it. Memory has tags where the machine has them.
//!
//! **Memory.** A region of N % of the memory that is free at the start (125; at least 60) goes through these, one after
//! the other:
//!
//! | row | what it does | what the kernel does for each page |
//! |---|---|---|
//! | `first_touch` | stores to each page of the first half of free memory | a new page |
//! | `full_touch` | the same for the rest of the region | a new page, and another one leaves |
//! | `loop` | stores to all pages in order | a page comes back, and another one leaves |
//! | `random` | loads from each page as likely as from any | the same for what is out |
//! | `zipf` | the same, of rank r in proportion to 1/r by powers of two | the same |
//!
//! The last three as often as the region has pages, times the rounds (1). Every page of memory is then looked at and
//! left by someone, in each row but the first: no row leaves work to a later one that it does not get from an earlier.
//! Each load is checked. A row says besides how many pages came back, in all and soon, and what one access cost in the
//! dearest run of 512.
//!
//! **Spaces.** N processes touch 32 MiB each at the same time, put them out, and load from them at the same time. Under
//! exact counts QEMU's CPUs take turns, and the counter counts the instructions of all. So nobody can time his own work
//! while others run; but a CPU that idles counts none, and the time from the first one's begin to the last one's end is
//! what all of them executed. The turn ends with each access (YIELD), and at a timer. What it cannot show is a wait:
//! for a lock, which another CPU holds only where a timer took its turn away, or for a cache line. Each process tells
//! its own two readings, a line `@part {JSON}` when all have ended; who started it makes rows of them.
//!
//! Exit status 2 if the machine does not count instructions; a panic (70) if a page comes back wrong.

#![cfg_attr(target_os = "none", no_std, no_main)]

use user::{
    PAGE,
    args::{self, BadArgs, Env},
    clock, eprintln, own, pattern, print, println,
    region::Region,
    sys::{self, Advice, Forked, Prot},
};

user::program!(run);

/// Accesses between two readings of the counter.
const RUN: usize = 512;
/// Pages of each of several spaces: 32 MiB.
const SPACE_PAGES: usize = 8192;
/// Spaces at most.
const SPACES: usize = 8;
/// What each step of several spaces may take, and their start: far more than it does.
const STEP_NS: u64 = 2_000_000_000;

fn run(env: &Env) -> i32 {
    if clock::frequency() != clock::INSTRUCTION_HZ || own::icount() == Some(false) {
        eprintln!("scale counts instructions: QEMU must run with -icount shift=0 and a counter of 1 GHz");
        return 2;
    }
    let prot = if env.has_mte() { Prot::READ_WRITE | Prot::MTE } else { Prot::READ_WRITE };
    match options(env) {
        Ok(Options { spaces: Some(spaces), .. }) => in_spaces(spaces, prot),
        Ok(Options { percent, rounds, .. }) => in_memory(percent, rounds, prot),
        Err(BadArgs) => return BadArgs::STATUS,
    }
    0
}

struct Options {
    percent: usize,
    rounds: usize,
    spaces: Option<usize>,
}

fn options(env: &Env) -> Result<Options, BadArgs> {
    let [percent, rounds, spaces] = env.options(["--percent", "--rounds", "--spaces"])?;
    let options = Options {
        percent: args::number(percent, 125)?,
        rounds: args::number(rounds, 1)?,
        spaces: spaces.map(|spaces| args::number(Some(spaces), 0)).transpose()?,
    };
    // The first row has half of free memory, the second one what is left; and nobody has a hundred times his memory.
    let sane = (60..=10_000).contains(&options.percent)
        && (1..=10_000).contains(&options.rounds)
        && options.spaces.is_none_or(|spaces| (1..=SPACES).contains(&spaces));
    if !sane {
        eprintln!("usage: scale [--percent 60..10000] [--rounds 1..10000] | scale --spaces 1..{SPACES}");
        return Err(BadArgs);
    }
    Ok(options)
}

fn in_memory(percent: usize, rounds: usize, prot: Prot) {
    let free = (sys::ram().expect("sysinfo").free / PAGE as u64) as usize;
    let pages = free * percent / 100;
    let region = Region::map(pages, prot).expect("mmap of the region");
    let store = |page| region.store(page, 0, page as u64);
    let load = |page| assert!(region.load(page, 0) == page as u64, "page {page}: not what was stored");
    row("first_touch", free / 2, store);
    row("full_touch", pages - free / 2, |access| store(free / 2 + access));
    let accesses = rounds * pages;
    let mut next = 0;
    row("loop", accesses, |_| {
        store(next);
        next = if next + 1 == pages { 0 } else { next + 1 };
    });
    let mut state = 1;
    row("random", accesses, |_| load(below(pages, pattern::next(&mut state))));
    row("zipf", accesses, |_| load(ranked(pages, &mut state)));
}

/// A number below `limit`, each as likely as any.
fn below(limit: usize, random: u64) -> usize {
    (((random >> 32) * limit as u64) >> 32) as usize
}

/// A page of rank r, in proportion to 1/r: a power of two, each as likely as any, and a number between that and the
/// next. Ranks lie anywhere among the pages.
fn ranked(pages: usize, state: &mut u64) -> usize {
    let powers = pages.ilog2() + 1;
    let mask = (1 << powers) - 1;
    loop {
        let power = below(powers as usize, pattern::next(state));
        let rank = (1 << power) - 1 + below(1 << power, pattern::next(state));
        // An odd factor puts the ranks below a power of two in another order; some of them are pages.
        let page = (rank * 0x9e37_79b1) & mask;
        if page < pages {
            return page;
        }
    }
}

/// Measures so many accesses, and writes a row.
fn row(name: &str, accesses: usize, mut access: impl FnMut(usize)) {
    let before = own::stats();
    let (mut ticks, mut dearest) = (0, 0);
    for first in (0..accesses).step_by(RUN) {
        let end = (first + RUN).min(accesses);
        let run = clock::time(|| (first..end).for_each(&mut access));
        ticks += run;
        // The last one may be of few.
        if end - first == RUN {
            dearest = dearest.max(run / RUN as u64);
        }
    }
    let count = |counter: usize| match (&before, own::stats()) {
        (Some(before), Some(now)) => now[counter] - before[counter],
        _ => 0,
    };
    print!(
        r#"@row {{"name":"{name}","folio_kib":{},"accesses":{accesses},"insns":{},"dearest":{dearest},"#,
        own::folio_kib().unwrap_or(PAGE >> 10),
        (ticks + accesses as u64 / 2) / accesses as u64,
    );
    println!(r#""in":{},"soon":{},"out":{}}}"#, count(own::SWAP_IN), count(own::REFAULTS), count(own::SWAP_OUT),);
}

fn in_spaces(spaces: usize, prot: Prot) {
    let start = clock::ticks() + STEP_NS;
    let mut children = [0; SPACES];
    for child in &mut children[..spaces] {
        match sys::fork().expect("fork") {
            Forked::Child => {
                one_of_many(start, prot);
                sys::exit(0);
            }
            Forked::Parent(number) => *child = number,
        }
    }
    for &child in &children[..spaces] {
        assert!(sys::wait(child) == Ok(0), "a child does not end well");
    }
}

/// Lets another CPU have its turn. Under exact counts QEMU lets one run until some timer is due, which is thousands of
/// faults; so the spaces' faults come one by one and by turns.
#[inline]
fn another_turn() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("yield", options(nomem, nostack, preserves_flags));
    }
}

/// Each step begins at its time, for all spaces at once.
fn one_of_many(start: u64, prot: Prot) {
    let region = Region::map(SPACE_PAGES, prot).expect("mmap of the region");
    let step = |number: u64, work: &dyn Fn()| {
        sys::sleep_ns((start + number * STEP_NS).saturating_sub(clock::ticks()));
        let begin = clock::ticks();
        work();
        (begin, clock::ticks())
    };
    let in_turns = |access: &dyn Fn(usize)| {
        (0..SPACE_PAGES).for_each(|page| {
            access(page);
            another_turn();
        })
    };
    let touched = step(0, &|| in_turns(&|page| region.store(page, 0, page as u64)));
    let _ = step(1, &|| region.advise(0..SPACE_PAGES, Advice::PageOut).expect("madvise"));
    let loaded = step(2, &|| {
        in_turns(&|page| {
            region.load(page, 0);
        })
    });
    let _ = step(3, &|| ());
    for (name, (begin, end)) in [("first_touch", touched), ("swap_in", loaded)] {
        println!(
            r#"@part {{"name":"{name}","folio_kib":{},"pages":{SPACE_PAGES},"begin":{begin},"end":{end}}}"#,
            own::folio_kib().unwrap_or(PAGE >> 10)
        );
    }
    let wrong = (0..SPACE_PAGES).find(|&page| region.load(page, 0) != page as u64);
    assert!(wrong.is_none(), "page {wrong:?}: not what was stored");
}
