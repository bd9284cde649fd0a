//! The walk: the area, the records, the choice of operations and the check.

use core::ops::Range;

use user::{
    PAGE, WORDS,
    args::Env,
    eprintln,
    io::Progress,
    model::{Contents, Tally, hash},
    own, pattern, println,
    region::Region,
    sys::{Advice, Errno, Prot},
};

use crate::{operations::OPERATIONS, unit::Unit};

/// The longest run of units of an operation.
const LONGEST: usize = 2048;

/// The state of a walk.
pub struct Walk {
    /// The memory under test.
    pub area: Region,
    /// Three words for each unit.
    records: Region,
    units: usize,
    /// Pages of 4 KiB in a unit.
    unit_pages: usize,
    /// Whether memory can have tags.
    pub has_mte: bool,
    /// State of the random numbers.
    random: u64,
    /// The number of the newest contents, tags or store.
    newest: u32,
    /// What was wrong.
    pub tally: Tally,
    /// How often to ask for a unit before it is given up; 0: not at all, and to die of one that cannot be read back.
    tries: usize,
    /// Units that could not be read back.
    lost: u64,
    /// How often each operation came.
    done: [u64; OPERATIONS.len()],
    /// The operation under way.
    doing: (&'static str, Range<usize>),
    /// Scratch: the page at hand as it must be.
    pub contents: Contents,
}

impl Walk {
    /// Maps the area, readable and writable, and the records.
    pub fn new(env: &Env, mib: usize, seed: u64, tries: usize) -> Result<Self, Errno> {
        let unit_pages = (env.page_size() / PAGE).max(1);
        let pages = (mib << 20) / PAGE;
        let units = pages / unit_pages;
        let has_mte = env.has_mte();
        let tagging = if has_mte { Prot::MTE } else { Prot::NONE };
        let record_pages = (units * 3).div_ceil(WORDS).next_multiple_of(unit_pages);
        let mut walk = Self {
            area: Region::map(pages, Prot::READ_WRITE | tagging)?,
            records: Region::map(record_pages, Prot::READ_WRITE)?,
            units,
            unit_pages,
            has_mte,
            random: pattern::mix(seed) | 1,
            newest: 0,
            tally: Tally::default(),
            tries,
            lost: 0,
            done: [0; OPERATIONS.len()],
            doing: ("", 0..0),
            contents: Contents::new(env.page_size()),
        };
        for unit in 0..units {
            walk.set(unit, Unit::mapped(tagging));
        }
        Ok(walk)
    }

    /// The record of a unit.
    pub fn get(&self, unit: usize) -> Unit {
        Unit::from_words([0, 1, 2].map(|i| self.records.load((unit * 3 + i) / WORDS, (unit * 3 + i) % WORDS)))
    }

    /// Sets the record of a unit.
    pub fn set(&mut self, unit: usize, record: Unit) {
        for (i, word) in record.to_words().into_iter().enumerate() {
            self.records.store((unit * 3 + i) / WORDS, (unit * 3 + i) % WORDS, word);
        }
    }

    /// The record of a unit that is about to be touched.
    pub fn ready(&mut self, unit: usize) -> Result<Unit, Errno> {
        let record = self.get(unit);
        if self.tries == 0 || !record.readable {
            return Ok(record);
        }
        for _ in 0..self.tries {
            match self.area.advise(self.pages(unit), Advice::PopulateRead) {
                Err(Errno::EFAULT) => {}
                other => return other.map(|()| record),
            }
        }
        self.lost += 1;
        self.area.advise(self.pages(unit), Advice::DontNeed)?;
        let empty = Unit { contents: 0, tags: 0, store: 0, ..record };
        self.set(unit, empty);
        Ok(empty)
    }

    /// Changes the records of some units.
    pub fn update(&mut self, units: Range<usize>, change: impl Fn(Unit) -> Unit) {
        for unit in units {
            self.set(unit, change(self.get(unit)));
        }
    }

    /// Takes from the front of `range` the next run of units with equal `key`, past those that have none.
    pub fn next_run<K: PartialEq>(
        &self,
        range: &mut Range<usize>,
        key: impl Fn(Unit) -> Option<K>,
    ) -> Option<(K, Range<usize>)> {
        let (first, value) = range.find_map(|unit| Some((unit, key(self.get(unit))?)))?;
        while range.start < range.end && key(self.get(range.start)).as_ref() == Some(&value) {
            range.start += 1;
        }
        Some((value, first..range.start))
    }

    /// The pages of one unit.
    pub fn pages(&self, unit: usize) -> Range<usize> {
        self.pages_of(&(unit..unit + 1))
    }

    /// The pages of some units.
    pub fn pages_of(&self, units: &Range<usize>) -> Range<usize> {
        units.start * self.unit_pages..units.end * self.unit_pages
    }

    /// A number for new contents, tags or a store.
    pub fn new_number(&mut self) -> u32 {
        self.newest += 1;
        self.newest
    }

    /// Store number `store` into a unit: page, word and value.
    pub fn store_of(&self, unit: usize, store: u32) -> (usize, usize, u64) {
        let value = hash(u64::from(store), unit as u64, 65);
        let word = (value >> 32) as usize % (self.unit_pages * WORDS);
        (self.pages(unit).start + word / WORDS, word % WORDS, value)
    }

    /// Sets `contents` to what a page must hold under the record of its unit.
    pub fn expect(&mut self, record: &Unit, page: usize) {
        match record.contents {
            0 => self.contents.words.fill(0),
            number => self.contents.set_words(u64::from(number), page as u64),
        }
        match record.tags {
            0 => self.contents.tags.fill(0),
            number => self.contents.set_tags(u64::from(number), page as u64),
        }
        if record.store != 0 {
            let (stored_page, word, value) = self.store_of(page / self.unit_pages, record.store);
            if stored_page == page {
                self.contents.words[word] = value;
            }
        }
    }

    /// Checks a unit, if it can be read.
    pub fn check(&mut self, unit: usize) -> Result<(), Errno> {
        let record = self.ready(unit)?;
        if !record.readable {
            return Ok(());
        }
        for page in self.pages(unit) {
            self.expect(&record, page);
            self.tally.words(&self.area, page, &self.contents.words);
            if record.mte {
                self.tally.tags(&self.area, page, &self.contents.tags);
            }
        }
        Ok(())
    }

    /// A random number below `below`.
    pub fn random(&mut self, below: usize) -> usize {
        // The high half: the low bits of a xorshift are its weakest.
        (pattern::next(&mut self.random) >> 32) as usize % below
    }

    /// A run of units: mostly short, now and then a good part of the area.
    fn range(&mut self) -> Range<usize> {
        let longest = match self.random(32) {
            0 => LONGEST,
            1..=7 => 64,
            _ => 16,
        };
        let len = 1 + self.random(longest.min(self.units));
        let start = self.random(self.units - len + 1);
        start..start + len
    }

    /// One operation on one run.
    pub fn step(&mut self) -> Result<(), Errno> {
        let total = OPERATIONS.iter().map(|(_, weight, _)| weight).sum::<u32>();
        let mut ticket = self.random(total as usize) as u32;
        let mut chosen = 0;
        while ticket >= OPERATIONS[chosen].1 {
            ticket -= OPERATIONS[chosen].1;
            chosen += 1;
        }
        let (name, _, operation) = OPERATIONS[chosen];
        let range = self.range();
        self.done[chosen] += 1;
        self.doing = (name, range.clone());
        operation(self, range)
    }

    /// The operation under way, and its units.
    pub fn doing(&self) -> (&'static str, Range<usize>) {
        self.doing.clone()
    }

    /// Makes all that is mapped readable, and checks it.
    pub fn check_everything(&mut self) -> Result<(), Errno> {
        let mut rest = 0..self.units;
        while let Some((tagging, units)) = self.next_run(&mut rest, |unit| unit.mapped.then_some(unit.tagging())) {
            self.area.protect(self.pages_of(&units), Prot::READ | tagging)?;
            self.update(units, |record| Unit { readable: true, writable: false, ..record });
        }
        let mut progress = Progress::new("check everything", self.units);
        for unit in 0..self.units {
            self.check(unit)?;
            progress.at(unit);
        }
        Ok(())
    }

    /// Prints how often each operation came, and the verdict; the exit status.
    pub fn conclude(&self) -> i32 {
        for ((name, ..), times) in OPERATIONS.into_iter().zip(self.done) {
            println!("{name:<24}{times:>12}");
        }
        if self.tries > 0 {
            let damaged = own::stats().map(|stats| stats[own::DAMAGED]);
            println!("{} units could not be read back", self.lost);
            // On a kernel that says so, each of them is one that the device damaged.
            if damaged.is_some_and(|damaged| self.lost > damaged) {
                eprintln!("only {} came back damaged", damaged.unwrap_or(0));
                return 1;
            }
        }
        self.tally.conclude()
    }
}
