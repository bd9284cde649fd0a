//! `demo [--mib N] [--seed S] [--passes P] [--spoil K]`: memory that goes out and comes back, tags and all.
//!
//! Maps N MiB (default: twice the machine's RAM) with PROT_MTE and fills every page with data and tags. Each
//! of the P passes then visits all pages twice. In order: check every byte and the tag of every granule, then
//! stamp one page in four, that is, give one of its words a new value and one of its granules a new tag. At
//! random (a full-period permutation): check again. In the end, one granule of each of some 4096 pages is
//! loaded from and stored to through a pointer with its tag, with synchronous tag checks on: the right tag
//! must pass.
//!
//! While it fills and checks in bulk, tag checks are off (mode none): the tags are read and compared one by
//! one anyway, and the data can then be read through one untagged pointer. What a page must hold is a formula
//! (see `user::model`), stamps included, so the program keeps no copy of anything.
//!
//! `--spoil K` flips a bit of K pages, and of a tag of each, behind the checks' back after the fill: they
//! must all be found, so the run must fail.
//!
//! Without MTE the same is done with data alone, after saying so. Exit status 0, or 1 if anything was wrong.

#![cfg_attr(target_os = "none", no_std, no_main)]

use user::{
    GRANULES, PAGE, WORDS,
    args::{self, BadArgs, Env},
    clock, eprintln,
    io::Progress,
    model::{Contents, TagKind, Tally, hash, tag_kind},
    own, println,
    region::Region,
    sys::{self, Prot, TagCheck},
};

user::program!(run);

/// Uses of [`hash`] here; those of the model are below 16.
mod choice {
    pub const STAMP_PLACE: u64 = 16;
    pub const CHECKED_GRANULE: u64 = 17;
    pub const SHUFFLE: u64 = 18;
    /// And one for each pass.
    pub const STAMP: u64 = 32;
}

const PAGES_PER_MIB: usize = (1 << 20) / PAGE;
/// Pages of the last phase, about.
const SAMPLES: usize = 4096;

fn run(env: &Env) -> i32 {
    let Options { mib, seed, passes, spoil } = match options(env) {
        Ok(options) => options,
        Err(BadArgs) => {
            eprintln!("usage: demo [--mib N] [--seed S] [--passes P] [--spoil K]");
            return BadArgs::STATUS;
        }
    };
    let tagged = env.has_mte();
    if !tagged {
        println!("no MTE on this machine: data only");
    }
    let tags = if tagged { Prot::MTE } else { Prot::NONE };
    let region = match Region::map(mib * PAGES_PER_MIB, Prot::READ_WRITE | tags) {
        Ok(region) => region,
        Err(error) => {
            eprintln!("mmap of {mib} MiB: {error}");
            return 1;
        }
    };
    println!("demo: {mib} MiB, seed {seed}, passes {passes}");
    let kernel_page = env.page_size();
    let (tally, contents) = (Tally::default(), Contents::new(kernel_page));
    let mut demo = Demo { region, seed, tagged, passes, kernel_page, tally, contents };
    let before = own::stats();

    let mut ticks = [0; 3];
    ticks[0] = clock::time(|| demo.fill());
    demo.spoil(spoil);
    for pass in 1..=passes {
        ticks[1] += clock::time(|| demo.visit_in_order(pass));
        ticks[2] += clock::time(|| demo.visit_at_random(pass));
    }
    if tagged && let Err(error) = demo.use_tagged_pointers() {
        eprintln!("prctl(PR_SET_TAGGED_ADDR_CTRL): {error}");
        return 1;
    }
    demo.report(ticks, before);
    demo.tally.conclude()
}

struct Options {
    mib: usize,
    seed: u64,
    passes: u64,
    spoil: usize,
}

fn options(env: &Env) -> Result<Options, BadArgs> {
    let [mib, seed, passes, spoil] = env.options(["--mib", "--seed", "--passes", "--spoil"])?;
    let twice_ram = match (mib, sys::ram()) {
        (None, Ok(ram)) => ram.total.div_ceil(1 << 20) as usize * 2,
        (None, Err(error)) => {
            eprintln!("sysinfo: {error}; how much memory there is must be said with --mib");
            return Err(BadArgs);
        }
        (Some(_), _) => 0,
    };
    let mib: usize = args::number(mib, twice_ram)?;
    if !(1..=1 << 24).contains(&mib) {
        eprintln!("--mib {mib}: from 1 to {}", 1 << 24);
        return Err(BadArgs);
    }
    Ok(Options { mib, seed: args::number(seed, 1)?, passes: args::number(passes, 1)?, spoil: args::number(spoil, 0)? })
}

struct Demo {
    region: Region,
    seed: u64,
    tagged: bool,
    passes: u64,
    /// Bytes.
    kernel_page: usize,
    tally: Tally,
    /// Scratch: the page at hand as it must be.
    contents: Contents,
}

/// A small change to a page: the word, its value, the granule, its tag.
struct Stamp {
    word: usize,
    value: u64,
    granule: usize,
    tag: u8,
}

impl Demo {
    /// The stamp that `pass` puts on a page, if it does. Always at the same place of the page.
    fn stamp(&self, page: usize, pass: u64) -> Option<Stamp> {
        let value = hash(self.seed, page as u64, choice::STAMP + pass);
        let place = hash(self.seed, page as u64, choice::STAMP_PLACE) as usize;
        value.is_multiple_of(4).then_some(Stamp {
            word: place % WORDS,
            value,
            granule: (place >> 16) % GRANULES,
            tag: (value >> 60) as u8,
        })
    }

    /// Sets `contents` to what the page holds after `pass` (0: the fill).
    fn expect(&mut self, page: usize, pass: u64) {
        self.contents.set_words(self.seed, page as u64);
        self.contents.set_tags(self.seed, page as u64);
        // Same place each time, so the last stamp hides the earlier ones.
        if let Some(stamp) = (1..=pass).rev().find_map(|pass| self.stamp(page, pass)) {
            self.contents.words[stamp.word] = stamp.value;
            self.contents.tags[stamp.granule] = stamp.tag;
        }
    }

    fn check(&mut self, page: usize, pass: u64) {
        self.expect(page, pass);
        self.tally.words(&self.region, page, &self.contents.words);
        if self.tagged {
            self.tally.tags(&self.region, page, &self.contents.tags);
        }
    }

    fn fill(&mut self) {
        let mut progress = Progress::new("fill", self.region.pages());
        for page in 0..self.region.pages() {
            self.expect(page, 0);
            self.region.write(page, &self.contents.words);
            if self.tagged {
                self.region.set_tags(page, &self.contents.tags);
            }
            progress.at(page);
        }
    }

    /// Spoils a byte and a tag of each of the first `count` pages. The word and the granule are not the ones
    /// that are stamped, so no stamp covers it up.
    fn spoil(&mut self, count: usize) {
        for page in 0..count.min(self.region.pages()) {
            let place = hash(self.seed, page as u64, choice::STAMP_PLACE) as usize;
            let (word, granule) = ((place + 1) % WORDS, ((place >> 16) + 1) % GRANULES);
            self.region.store(page, word, self.region.load(page, word) ^ 1 << 63);
            if self.tagged {
                self.region.set_tag(page, granule, self.region.tag(page, granule) ^ 8);
            }
        }
    }

    fn visit_in_order(&mut self, pass: u64) {
        let mut progress = Progress::new("visit in order", self.region.pages());
        for page in 0..self.region.pages() {
            self.check(page, pass - 1);
            if let Some(stamp) = self.stamp(page, pass) {
                self.region.store(page, stamp.word, stamp.value);
                if self.tagged {
                    self.region.set_tag(page, stamp.granule, stamp.tag);
                }
            }
            progress.at(page);
        }
    }

    fn visit_at_random(&mut self, pass: u64) {
        let shuffle = Shuffle::new(self.region.pages(), hash(self.seed, pass, choice::SHUFFLE));
        let mut progress = Progress::new("visit at random", self.region.pages());
        for i in 0..self.region.pages() {
            self.check(shuffle.at(i), pass);
            progress.at(i);
        }
    }

    /// Accesses with the right tag, under synchronous checks. A wrong tag anywhere ends the program.
    fn use_tagged_pointers(&mut self) -> Result<(), sys::Errno> {
        let step = (self.region.pages() / SAMPLES).max(1);
        let mut progress = Progress::new("tagged pointers", self.region.pages());
        sys::set_tag_check(TagCheck::Sync)?;
        for page in (0..self.region.pages()).step_by(step) {
            self.expect(page, self.passes);
            let granule = hash(self.seed, page as u64, choice::CHECKED_GRANULE) as usize % GRANULES;
            let tag = self.contents.tags[granule];
            for word in [granule * 2, granule * 2 + 1] {
                let value = self.region.load_tagged(page, word, tag);
                self.region.store_tagged(page, word, tag, value);
                self.tally.value(page, word, value, self.contents.words[word]);
            }
            progress.at(page);
        }
        sys::set_tag_check(TagCheck::None)
    }

    fn report(&self, ticks: [u64; 3], before: Option<[u64; own::COUNTERS.len()]>) {
        let pages = self.region.pages() as u64;
        let kernel_pages = pages * PAGE as u64 / self.kernel_page as u64;
        line("pages", kernel_pages);
        line("KiB a page", self.kernel_page as u64 >> 10);
        line("MiB", pages / PAGES_PER_MIB as u64);
        line("passes", self.passes);
        if self.tagged {
            let mut kinds = [0; 4];
            for page in 0..kernel_pages {
                kinds[tag_kind(self.seed, page) as usize] += 1;
            }
            for (name, kind) in [
                ("filled untagged", TagKind::Untagged),
                ("filled with one tag", TagKind::Uniform),
                ("filled with tag runs", TagKind::Runs),
                ("filled tag by tag", TagKind::Granules),
            ] {
                line(name, kinds[kind as usize]);
            }
        }
        if let (Some(before), Some(after)) = (before, own::stats()) {
            for (i, name) in own::COUNTERS.into_iter().enumerate() {
                line(name, after[i].saturating_sub(before[i]));
            }
        }
        let exact = clock::frequency() == clock::INSTRUCTION_HZ && own::icount() == Some(true);
        let visited = pages * self.passes;
        for ((name, ticks), pages) in
            ["fill", "visit in order", "visit at random"].into_iter().zip(ticks).zip([pages, visited, visited])
        {
            if exact {
                // Of the program and the kernel together.
                println!("{name:<24}{:>12} instructions for 4 KiB", ticks / pages.max(1));
            } else {
                let ms = ticks * 1000 / clock::frequency().max(1);
                println!("{name:<24}{:>8}.{:03} s", ms / 1000, ms % 1000);
            }
        }
    }
}

fn line(name: &str, value: u64) {
    println!("{name:<24}{value:>12}");
}

/// A permutation of 0 to `len` - 1: a bijection of the next power of two, walked until it lands inside.
struct Shuffle {
    len: usize,
    mask: usize,
    fold: u32,
    offset: usize,
}

impl Shuffle {
    fn new(len: usize, seed: u64) -> Self {
        let mask = len.next_power_of_two() - 1;
        Self { len, mask, fold: mask.count_ones().div_ceil(2).max(1), offset: seed as usize & mask }
    }

    fn at(&self, i: usize) -> usize {
        let mut x = i;
        loop {
            // Each step can be undone: a multiplication by an odd number, an addition, a right shift folded
            // in.
            x = x.wrapping_mul(0x9e37_79b1).wrapping_add(self.offset) & self.mask;
            x ^= x >> self.fold;
            x = x.wrapping_mul(0x85eb_ca6b) & self.mask;
            if x < self.len {
                return x;
            }
        }
    }
}
