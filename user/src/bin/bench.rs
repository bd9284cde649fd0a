//! `bench [NAME]`: what the kernel spends on a page of anonymous memory, in guest instructions.
//!
//! The machine must count instructions (`-icount shift=0`, a counter of 1 GHz): a tick of CNTVCT_EL0 is then
//! an instruction, at EL0 or EL1, and every figure repeats exactly. A measurement maps a fresh region of 64
//! MiB, prepares it, reads the counter before and after one interval of work, takes off what an empty
//! interval reads, and verifies what the region then holds: data of every page, and the tag of every granule
//! where it is tagged. Work, region, data (text) and tags (another one from granule to granule, set by STG)
//! are those with which Linux was measured; where the data plays no part (permissions, unmapping what is
//! resident) it is noise, which is made faster. Each row is the median of three repetitions.
//!
//! Standard output: a line `@row {JSON}` for each measurement whose name contains NAME, with and without tags. The
//! floor in it is the work that cannot be avoided, as the kernel measured it in this boot (`null` where it cannot tell:
//! its loops are for blocks of 64 bytes of DC ZVA and 256 of LDGM). Standard error: the single repetitions.
//!
//! Exit status 2 if the machine does not count instructions; a panic (70) if a page comes back wrong.

#![cfg_attr(target_os = "none", no_std, no_main)]

use user::{
    GRANULES, PAGE, Tags, WORDS, Words,
    args::{BadArgs, Env},
    clock, eprint, eprintln,
    own::{self, Floor},
    pattern::{self, Pattern},
    print, println,
    region::Region,
    sys::{self, Advice, Forked, Prot},
};

user::program!(run);

/// Pages of the region: 64 MiB.
const PAGES: usize = 16384;
const REPETITIONS: usize = 3;
/// MADV_PAGEOUT may leave a page behind (Linux does, now and then); so often is it asked again, off the
/// clock.
const PAGEOUT_TRIES: usize = 5;

struct Measurement {
    name: &'static str,
    run: fn(&Bench) -> Interval,
    /// What the figure is for.
    unit: Unit,
    /// The floor is the sum of these.
    floor: &'static [Floor],
    /// The same of a tagged region.
    floor_tagged: &'static [Floor],
}

#[derive(Clone, Copy)]
enum Unit {
    FourKib,
    Call,
}

/// The ticks of one interval, and how many pages (or calls) were worked on in it.
struct Interval {
    ticks: u64,
    units: usize,
}

use Floor::{
    Copy, CopyTagged, Descriptor, Fill, Invalidate, RestoreTags, RoundTrip, SaveTags, ScanWord, ScanZero, Zero,
    ZeroTagged,
};

/// A change of a live entry, and such a change by a call of its own.
const CHANGE: &[Floor] = &[Descriptor, Invalidate];
const CALL: &[Floor] = &[RoundTrip, Descriptor, Invalidate];
/// What is touched comes, and as much leaves.
const OUT_AND_IN: &[Floor] = &[Copy, Descriptor, Invalidate, Copy, RoundTrip, Descriptor];
const OUT_AND_IN_TAGGED: &[Floor] = &[Copy, SaveTags, Descriptor, Invalidate, Copy, RestoreTags, RoundTrip, Descriptor];
/// The parent's entry loses a right, the child gets one.
const FORK: &[Floor] = &[Descriptor, Invalidate, Descriptor];
/// And the child's is taken out. No address of it is in a TLB by then.
const FORK_AND_EXIT: &[Floor] = &[Descriptor, Invalidate, Descriptor, Descriptor];

const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "first_touch",
        run: first_touch,
        unit: Unit::FourKib,
        floor: &[Zero, RoundTrip, Descriptor],
        floor_tagged: &[ZeroTagged, RoundTrip, Descriptor],
    },
    Measurement {
        name: "swap_out",
        run: |bench| swap_out_of(bench, Pattern::Text),
        unit: Unit::FourKib,
        floor: &[Copy, Descriptor, Invalidate],
        floor_tagged: &[Copy, SaveTags, Descriptor, Invalidate],
    },
    Measurement {
        name: "swap_in",
        run: |bench| swap_in_of(bench, Pattern::Text),
        unit: Unit::FourKib,
        floor: &[Copy, RoundTrip, Descriptor],
        floor_tagged: &[Copy, RestoreTags, RoundTrip, Descriptor],
    },
    Measurement {
        name: "swap_out_same",
        run: |bench| swap_out_of(bench, Pattern::Zero),
        unit: Unit::FourKib,
        floor: &[ScanZero, Descriptor, Invalidate],
        floor_tagged: &[ScanZero, SaveTags, Descriptor, Invalidate],
    },
    Measurement {
        name: "swap_in_same",
        run: |bench| swap_in_of(bench, Pattern::Zero),
        unit: Unit::FourKib,
        floor: &[Zero, RoundTrip, Descriptor],
        floor_tagged: &[Zero, RestoreTags, RoundTrip, Descriptor],
    },
    Measurement {
        name: "swap_out_word",
        run: |bench| swap_out_of(bench, Pattern::Same),
        unit: Unit::FourKib,
        floor: &[ScanWord, Descriptor, Invalidate],
        floor_tagged: &[ScanWord, SaveTags, Descriptor, Invalidate],
    },
    Measurement {
        name: "swap_in_word",
        run: |bench| swap_in_of(bench, Pattern::Same),
        unit: Unit::FourKib,
        floor: &[Fill, RoundTrip, Descriptor],
        floor_tagged: &[Fill, RestoreTags, RoundTrip, Descriptor],
    },
    Measurement { name: "fork", run: fork, unit: Unit::FourKib, floor: FORK, floor_tagged: FORK },
    Measurement {
        name: "fork_exit_wait",
        run: fork_exit_wait,
        unit: Unit::FourKib,
        floor: FORK_AND_EXIT,
        floor_tagged: FORK_AND_EXIT,
    },
    Measurement {
        name: "cow_store",
        run: cow_store,
        unit: Unit::FourKib,
        // Another address in a live entry: by way of an empty one.
        floor: &[Copy, RoundTrip, Descriptor, Invalidate, Descriptor],
        floor_tagged: &[CopyTagged, RoundTrip, Descriptor, Invalidate, Descriptor],
    },
    Measurement {
        name: "store_after_child",
        run: store_after_child,
        unit: Unit::FourKib,
        floor: &[RoundTrip, Descriptor, Invalidate],
        floor_tagged: &[RoundTrip, Descriptor, Invalidate],
    },
    Measurement { name: "munmap", run: munmap, unit: Unit::FourKib, floor: CHANGE, floor_tagged: CHANGE },
    Measurement {
        name: "munmap_swapped",
        run: munmap_swapped,
        unit: Unit::FourKib,
        floor: &[Descriptor],
        floor_tagged: &[Descriptor],
    },
    Measurement { name: "madv_free", run: madv_free, unit: Unit::FourKib, floor: CHANGE, floor_tagged: CHANGE },
    Measurement { name: "madv_cold", run: madv_cold, unit: Unit::FourKib, floor: CHANGE, floor_tagged: CHANGE },
    Measurement { name: "mprotect_ro", run: mprotect_ro, unit: Unit::FourKib, floor: CHANGE, floor_tagged: CHANGE },
    Measurement { name: "mprotect_rw", run: mprotect_rw, unit: Unit::FourKib, floor: CHANGE, floor_tagged: CHANGE },
    Measurement { name: "mprotect_1_in_16", run: mprotect_1_in_16, unit: Unit::Call, floor: CALL, floor_tagged: CALL },
    Measurement {
        name: "pressure_store_seq",
        run: |bench| under_pressure(bench, Region::touch_store, |page| words_stored(Pattern::Text, page)),
        unit: Unit::FourKib,
        floor: OUT_AND_IN,
        floor_tagged: OUT_AND_IN_TAGGED,
    },
    Measurement {
        name: "pressure_load_random",
        run: pressure_load_random,
        unit: Unit::FourKib,
        floor: OUT_AND_IN,
        floor_tagged: OUT_AND_IN_TAGGED,
    },
    Measurement {
        name: "reclaim_lazyfree",
        run: reclaim_lazyfree,
        unit: Unit::FourKib,
        floor: CHANGE,
        floor_tagged: CHANGE,
    },
];

fn run(env: &Env) -> i32 {
    if clock::frequency() != clock::INSTRUCTION_HZ || own::icount() == Some(false) {
        eprintln!("bench counts instructions: QEMU must run with -icount shift=0 and a counter of 1 GHz");
        return 2;
    }
    let mut words = env.argv().skip(1);
    let only = words.next().unwrap_or("");
    if words.next().is_some() {
        eprintln!("usage: bench [NAME]");
        return BadArgs::STATUS;
    }
    if own::floor(Zero).is_none() || (env.has_mte() && own::floor(SaveTags).is_none()) {
        eprintln!("no floor for some rows: it is for CPUs whose DC ZVA takes 64 bytes and LDGM 256");
    }
    if !env.has_mte() {
        eprintln!("no MTE on this machine: untagged rows only");
    }
    for tagged in [false, true] {
        if tagged && !env.has_mte() {
            break;
        }
        let bench = Bench { tagged, kernel_page: env.page_size(), overhead: clock::overhead() };
        for measurement in MEASUREMENTS.iter().filter(|m| m.name.contains(only)) {
            bench.measure(measurement);
        }
    }
    0
}

struct Bench {
    tagged: bool,
    /// Bytes.
    kernel_page: usize,
    overhead: u64,
}

impl Bench {
    fn measure(&self, measurement: &Measurement) {
        let name = measurement.name;
        eprint!("{name:<20}{:<10}", if self.tagged { "tagged" } else { "untagged" });
        let mut results = [0; REPETITIONS];
        for result in &mut results {
            let Interval { ticks, units } = (measurement.run)(self);
            *result = (ticks + units as u64 / 2) / units as u64;
            eprint!("{result:>8}");
        }
        eprintln!("");
        results.sort_unstable();
        let pieces = if self.tagged { measurement.floor_tagged } else { measurement.floor };
        print!(
            r#"@row {{"name":"{name}","folio_kib":{},"tagged":{},"insns_per_page":{},"floor":"#,
            own::folio_kib().unwrap_or(self.kernel_page >> 10),
            self.tagged,
            results[REPETITIONS / 2],
        );
        match self.floor(pieces, measurement.unit) {
            Some(floor) => println!("{floor}}}"),
            None => println!("null}}"),
        }
    }

    /// The floor of a measurement's unit, if the kernel can tell: what is done once for a page of the kernel's counts
    /// in parts for 4 KiB of it.
    fn floor(&self, pieces: &[Floor], unit: Unit) -> Option<u64> {
        let (mut all, mut shared) = (0, 0);
        for &piece in pieces {
            let work = own::floor(piece)?;
            match (unit, piece) {
                (Unit::FourKib, RoundTrip | Descriptor | Invalidate) => shared += work,
                _ => all += work,
            }
        }
        let sharers = (self.kernel_page / PAGE) as u64;
        Some(all + (shared + sharers / 2) / sharers)
    }

    /// Pages of the kernel's in the region, which its counters count.
    fn kernel_pages(&self) -> u64 {
        (PAGES * PAGE / self.kernel_page) as u64
    }

    fn time(&self, units: usize, work: impl FnOnce()) -> Interval {
        let ticks = clock::time(work).saturating_sub(self.overhead);
        Interval { ticks, units }
    }

    /// A region that nobody has touched.
    fn fresh(&self) -> Region {
        Region::map(PAGES, self.read_write()).expect("mmap of the region")
    }

    /// A resident region with known data and tags.
    fn filled(&self, pattern: Pattern) -> Region {
        let region = self.fresh();
        for page in 0..PAGES {
            region.write(page, &words(pattern, page));
            if self.tagged {
                region.set_tags(page, &tags(page));
            }
        }
        region
    }

    /// A region that has been filled and then written out.
    fn swapped(&self, pattern: Pattern) -> Region {
        let region = self.filled(pattern);
        let before = own::stats();
        for _ in 0..PAGEOUT_TRIES {
            region.advise(0..PAGES, Advice::PageOut).expect("madvise");
            if let (Some(before), Some(now)) = (&before, own::stats())
                && now[own::SWAP_OUT] - before[own::SWAP_OUT] >= self.kernel_pages()
            {
                break;
            }
        }
        self.expect_counted(before, own::SWAP_OUT);
        region
    }

    fn verify(&self, region: &Region, pattern: Pattern) {
        self.verify_pages(region, |page| words(pattern, page));
    }

    /// The same after [`Region::touch_store`].
    fn verify_stored(&self, region: &Region, pattern: Pattern) {
        self.verify_pages(region, |page| words_stored(pattern, page));
    }

    fn verify_pages(&self, region: &Region, words: impl Fn(usize) -> Words) {
        for page in 0..PAGES {
            let (wrong, first) = region.wrong_bytes(page, &words(page));
            assert!(wrong == 0, "page {page}: {wrong} wrong bytes, first in word {first:?}");
            if self.tagged {
                let (wrong, first) = region.wrong_tags(page, &tags(page));
                assert!(wrong == 0, "page {page}: {wrong} wrong tags, first in granule {first:?}");
            }
        }
    }

    /// Says so if the kernel's counter did not grow by all the pages: the figure is then of less work than it
    /// claims.
    fn expect_counted(&self, before: Option<[u64; own::COUNTERS.len()]>, counter: usize) {
        if let (Some(before), Some(now)) = (before, own::stats()) {
            let counted = now[counter] - before[counter];
            if counted < self.kernel_pages() {
                eprintln!("\n{}: {counted} of {} pages", own::COUNTERS[counter], self.kernel_pages());
            }
        }
    }

    fn read_only(&self) -> Prot {
        Prot::READ | self.tags()
    }

    fn read_write(&self) -> Prot {
        Prot::READ_WRITE | self.tags()
    }

    fn tags(&self) -> Prot {
        if self.tagged { Prot::MTE } else { Prot::NONE }
    }
}

/// The numbers of all pages, in no order.
fn shuffled() -> [u16; PAGES] {
    let mut order = core::array::from_fn(|page| page as u16);
    let mut state = 1;
    for last in (1..PAGES).rev() {
        order.swap(last, (pattern::next(&mut state) >> 32) as usize % (last + 1));
    }
    order
}

/// What a page holds after [`Region::touch_store`].
fn words_stored(pattern: Pattern, page: usize) -> Words {
    let mut words = words(pattern, page);
    words[0] = page as u64;
    words
}

fn words(pattern: Pattern, page: usize) -> Words {
    let mut words = [0; WORDS];
    pattern::page(&mut words, pattern, page as u64);
    words
}

fn tags(page: usize) -> Tags {
    core::array::from_fn(|granule| pattern::tag(page as u64, granule))
}

/// One 8-byte store to each untouched page.
fn first_touch(bench: &Bench) -> Interval {
    let region = bench.fresh();
    let interval = bench.time(PAGES, || region.touch_store());
    for page in 0..PAGES {
        let mut words = [0; WORDS];
        words[0] = page as u64;
        assert!(region.wrong_bytes(page, &words).0 == 0, "page {page}: not zero when first touched");
        assert!(
            !bench.tagged || region.wrong_tags(page, &[0; GRANULES]).0 == 0,
            "page {page}: tagged when first touched"
        );
    }
    interval
}

/// One call of madvise(MADV_PAGEOUT) over the region.
fn swap_out_of(bench: &Bench, pattern: Pattern) -> Interval {
    let region = bench.filled(pattern);
    let before = own::stats();
    let interval = bench.time(PAGES, || region.advise(0..PAGES, Advice::PageOut).expect("madvise"));
    bench.expect_counted(before, own::SWAP_OUT);
    bench.verify(&region, pattern);
    interval
}

/// One 8-byte load from each page that is out, in order.
fn swap_in_of(bench: &Bench, pattern: Pattern) -> Interval {
    let region = bench.swapped(pattern);
    let before = own::stats();
    let interval = bench.time(PAGES, || region.touch_load());
    bench.expect_counted(before, own::SWAP_IN);
    bench.verify(&region, pattern);
    interval
}

/// A copy of this program that does nothing until it is killed, at the end of its value.
struct Sleeper(i32);

impl Sleeper {
    fn fork() -> Self {
        match sys::fork().expect("fork") {
            Forked::Child => sys::sleep(),
            Forked::Parent(child) => Self(child),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        sys::kill(self.0).expect("kill");
        sys::wait(self.0).expect("wait4");
    }
}

/// One fork of a program with the resident region, until it returns.
fn fork(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    let mut child = None;
    let interval = bench.time(PAGES, || child = Some(Sleeper::fork()));
    drop(child);
    bench.verify(&region, Pattern::Random);
    interval
}

/// The same with a child that exits at once, until the parent has waited for it.
fn fork_exit_wait(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    let interval = bench.time(PAGES, fork_and_wait);
    bench.verify(&region, Pattern::Random);
    interval
}

fn fork_and_wait() {
    match sys::fork().expect("fork") {
        Forked::Child => sys::exit(0),
        Forked::Parent(child) => assert!(sys::wait(child) == Ok(0), "the child does not exit"),
    }
}

/// One 8-byte store to each page of the region that a sleeping child has as well.
fn cow_store(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Text);
    let child = Sleeper::fork();
    // It falls asleep.
    sys::yield_now();
    let interval = bench.time(PAGES, || region.touch_store());
    drop(child);
    bench.verify_stored(&region, Pattern::Text);
    interval
}

/// One 8-byte store to each page of the region that a child had as well, which is gone.
fn store_after_child(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    fork_and_wait();
    let interval = bench.time(PAGES, || region.touch_store());
    bench.verify_stored(&region, Pattern::Random);
    interval
}

/// One call of munmap over the resident region.
fn munmap(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    bench.time(PAGES, || region.unmap(0..PAGES).expect("munmap"))
}

/// One call of munmap over the region that is all out.
fn munmap_swapped(bench: &Bench) -> Interval {
    let region = bench.swapped(Pattern::Text);
    bench.time(PAGES, || region.unmap(0..PAGES).expect("munmap"))
}

/// One call of madvise(MADV_FREE) over the resident region.
fn madv_free(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    bench.time(PAGES, || region.advise(0..PAGES, Advice::Free).expect("madvise"))
}

/// One pass over twice the memory that the program may have.
fn under_pressure(bench: &Bench, pass: impl FnOnce(&Region), words: impl Fn(usize) -> Words) -> Interval {
    sys::limit_memory(Some((PAGES * PAGE / 2) as u64)).expect("setrlimit");
    let region = bench.filled(Pattern::Text);
    let interval = bench.time(PAGES, || pass(&region));
    sys::limit_memory(None).expect("setrlimit");
    bench.verify_pages(&region, words);
    interval
}

fn pressure_load_random(bench: &Bench) -> Interval {
    let order = shuffled();
    under_pressure(bench, |region| region.touch_load_in(&order), |page| words(Pattern::Text, page))
}

/// One call of madvise(MADV_PAGEOUT) over the resident region, which was given up before.
fn reclaim_lazyfree(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    region.advise(0..PAGES, Advice::Free).expect("madvise");
    bench.time(PAGES, || region.advise(0..PAGES, Advice::PageOut).expect("madvise"))
}

/// One call of madvise(MADV_COLD) over the resident region.
fn madv_cold(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    let interval = bench.time(PAGES, || region.advise(0..PAGES, Advice::Cold).expect("madvise"));
    bench.verify(&region, Pattern::Random);
    interval
}

/// One call of mprotect(PROT_READ) over the resident region.
fn mprotect_ro(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    let interval = bench.time(PAGES, || region.protect(0..PAGES, bench.read_only()).expect("mprotect"));
    bench.verify(&region, Pattern::Random);
    interval
}

/// One call of mprotect(PROT_READ | PROT_WRITE) over the region after that.
fn mprotect_rw(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    region.protect(0..PAGES, bench.read_only()).expect("mprotect");
    let interval = bench.time(PAGES, || region.protect(0..PAGES, bench.read_write()).expect("mprotect"));
    bench.verify(&region, Pattern::Random);
    region.touch_store();
    interval
}

/// One call of mprotect(PROT_READ) for one page of each sixteen. The unit is a call.
fn mprotect_1_in_16(bench: &Bench) -> Interval {
    let region = bench.filled(Pattern::Random);
    let page = bench.kernel_page / PAGE;
    let calls = PAGES / page / 16;
    let interval = bench.time(calls, || {
        for call in 0..calls {
            let first = (call * 16 + 5) * page;
            region.protect(first..first + page, bench.read_only()).expect("mprotect");
        }
    });
    bench.verify(&region, Pattern::Random);
    interval
}
