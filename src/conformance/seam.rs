//! Each function of the seam against its text.
//!
//! A check sees the machine and the scratch frames, says nothing of the frames' contents before or after, and uses no
//! valid descriptor: no walker reads these frames as tables.

use core::mem::MaybeUninit;

use super::program::words;
use super::{Failure, Outcome, demand, expect};
use crate::addr::{Pfn, PfnRange, Vpn, VpnRange};
use crate::granule::{Granule, Level};
use crate::machine::{Asid, Cached, EntryAt, Features, MAX_CPUS, Machine, Reach, Scope, TagWords, Tags, sum};
use crate::sync::{AtomicU32, Ordering};

/// Runs the checks in order.
pub(super) fn check<M: Machine>(machine: &M, frames: PfnRange, tell: &mut dyn FnMut(&'static str, Outcome)) {
    let it = Seam { machine, frames };
    tell("features", it.features());
    tell("cpu", it.cpu());
    tell("time", it.time());
    tell("wait and wake", it.wait());
    tell("frames", it.frames());
    tell("entries", it.entries());
    tell("zero", it.zero());
    tell("copy", it.copy());
    tell("sums", it.sums());
    tell("repeated word", it.repeated_word());
    if machine.features().contains(Features::MTE) {
        tell("tags of each granule", it.each_tag());
        tell("tags of a page", it.tags());
        tell("tags of neighbours", it.neighbours());
    }
    tell("fences and invalidations", it.order());
    tell("code sync", it.sync_code());
}

struct Seam<'a, M: Machine> {
    machine: &'a M,
    frames: PfnRange,
}

/// A number that follows from a seed (splitmix64).
const fn mix(seed: u64) -> u64 {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

const fn one(frame: Pfn) -> PfnRange {
    PfnRange::new(frame, 1)
}

impl<M: Machine> Seam<'_, M> {
    fn frame(&self, number: u64) -> Pfn {
        self.frames.start().offset(number)
    }

    fn fill(&self, frame: Pfn, seed: u64) {
        for (index, word) in (0..).zip(words(self.machine, frame)) {
            word.store(mix(seed << 20 | index), Ordering::Relaxed);
        }
    }

    fn expect_filled(&self, what: &'static str, frame: Pfn, seed: u64) -> Outcome {
        (0..)
            .zip(words(self.machine, frame))
            .try_for_each(|(index, word)| expect(what, index, word.load(Ordering::Relaxed), mix(seed << 20 | index)))
    }

    fn expect_zero(&self, what: &'static str, frame: Pfn) -> Outcome {
        (0..)
            .zip(words(self.machine, frame))
            .try_for_each(|(index, word)| expect(what, index, word.load(Ordering::Relaxed), 0))
    }

    fn pattern(seed: u64) -> TagWords<M> {
        let mut tags = M::Granule::ZERO_TAGS;
        (0..).zip(tags.as_mut()).for_each(|(index, word)| *word = mix(seed << 20 | index));
        tags
    }

    fn expect_tags(&self, what: &'static str, frame: Pfn, tags: &TagWords<M>) -> Outcome {
        let mut room = MaybeUninit::uninit();
        let found = self.machine.load_tags(frame, &mut room);
        (0..)
            .zip(found.as_ref().iter().zip(tags.as_ref()))
            .try_for_each(|(index, (&found, &expected))| expect(what, index, found, expected))
    }

    // ---- The rest. ----

    fn features(&self) -> Outcome {
        let m = self.machine;
        let features = m.features();
        let dirty = features.contains(Features::HW_DIRTY) && !features.contains(Features::HW_ACCESS);
        expect("HW_DIRTY without HW_ACCESS", 0, dirty.into(), 0)?;
        let unknown = features.difference(Features::all());
        expect("unknown features", 0, unknown.bits().into(), 0)?;
        let (asid_bits, va_bits) = (m.asid_bits(), m.va_bits());
        expect("asid_bits, neither 8 nor 16", 0, u64::from(matches!(asid_bits, 8 | 16)), 1)?;
        let lowest = M::Granule::SHIFT + M::Granule::INDEX_BITS;
        demand((lowest < va_bits && va_bits <= 48).then_some(()), "va_bits makes no table tree", va_bits.into())?;
        expect("features, asked again,", 0, m.features().bits().into(), features.bits().into())?;
        expect("asid_bits, asked again,", 0, m.asid_bits().into(), asid_bits.into())?;
        expect("va_bits, asked again,", 0, m.va_bits().into(), va_bits.into())
    }

    fn cpu(&self) -> Outcome {
        let cpu = self.machine.cpu();
        demand((cpu < MAX_CPUS).then_some(()), "a CPU number of MAX_CPUS or more", cpu as u64)?;
        (0..1000)
            .try_for_each(|turn| expect("the CPU number, asked again,", turn, self.machine.cpu() as u64, cpu as u64))
    }

    fn time(&self) -> Outcome {
        let mut last = self.machine.now_ns();
        (0..1000).try_for_each(|turn| {
            let now = self.machine.now_ns();
            demand((now >= last).then_some(()), "time goes back", turn)?;
            last = now;
            Ok(())
        })
    }

    /// A wait for a word that has changed already returns; nobody else would wake this CPU.
    fn wait(&self) -> Outcome {
        let word = AtomicU32::new(7);
        self.machine.wake(&word);
        for seen in [0, 6, 8, u32::MAX] {
            self.machine.wait(&word, seen);
        }
        self.machine.wake(&word);
        self.machine.relax();
        expect("the word waited for", 0, word.load(Ordering::Relaxed).into(), 7)
    }

    // ---- Frames and entries. ----

    /// Each frame has its own bytes, a page of them, always at the same place.
    fn frames(&self) -> Outcome {
        let all = || (0..self.frames.pages()).map(|number| self.frame(number));
        let last = M::Granule::ENTRIES - 1;
        for frame in all() {
            let (window, again) = (self.machine.window(frame), self.machine.window(frame));
            let address = window.first().addr().get();
            expect("the length of a frame's window", frame.number(), window.bytes() as u64, M::Granule::SIZE as u64)?;
            expect("a frame's address, within the page,", frame.number(), (address % M::Granule::SIZE) as u64, 0)?;
            let address = address as u64;
            expect("a frame's address, asked again,", frame.number(), again.first().addr().get() as u64, address)?;
            for index in [0, last] {
                words(self.machine, frame)[index]
                    .store(mix(frame.number() << 1 | (index & 1) as u64), Ordering::Relaxed);
            }
        }
        for frame in all() {
            for index in [0, last] {
                let expected = mix(frame.number() << 1 | (index & 1) as u64);
                let found = words(self.machine, frame)[index].load(Ordering::Relaxed);
                expect("a frame's own word", frame.number(), found, expected)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Outcome {
        let (m, table) = (self.machine, self.frame(0));
        // Bit 0 clear: not valid.
        let value = |seed| mix(seed) & !1;
        m.zero(one(table), Tags::Ignore);
        for index in [0, 1, M::Granule::ENTRIES / 2, M::Granule::ENTRIES - 1] {
            let at = EntryAt { table, index };
            let place = index as u64;
            expect("an entry of a zeroed table", place, m.load_entry(at), 0)?;
            m.store_entry(at, value(1));
            expect("an entry that was stored", place, m.load_entry(at), value(1))?;
            let word = words(m, table)[index].load(Ordering::Relaxed);
            expect("the word of an entry", place, word, value(1))?;
            expect("what exchange_entry returns", place, m.exchange_entry(at, value(2)), value(1))?;
            expect("an entry that was exchanged", place, m.load_entry(at), value(2))?;
            match m.compare_exchange_entry(at, value(1), value(3)) {
                Ok(()) => {
                    return Err(Failure::Refused { what: "compare_exchange_entry with another value", at: place });
                }
                Err(found) => expect("what a failed compare_exchange_entry returns", place, found, value(2))?,
            }
            expect("an entry after a failed compare_exchange_entry", place, m.load_entry(at), value(2))?;
            let done = m.compare_exchange_entry(at, value(2), value(4));
            demand(done.ok(), "compare_exchange_entry with the value found", place)?;
            expect("an entry that was compared and exchanged", place, m.load_entry(at), value(4))?;
            m.store_entry(at, 0);
        }
        self.expect_zero("an entry next to those changed", table)
    }

    // ---- Contents. ----

    fn zero(&self) -> Outcome {
        let m = self.machine;
        for tags in [Tags::Ignore, Tags::Include] {
            (0..6).for_each(|number| self.fill(self.frame(number), number));
            m.zero(PfnRange::new(self.frame(1), 4), tags);
            (1..5).try_for_each(|number| self.expect_zero("a zeroed word", self.frame(number)))?;
            self.expect_filled("a word before a zeroed run", self.frame(0), 0)?;
            self.expect_filled("a word after a zeroed run", self.frame(5), 5)?;
        }
        m.zero(PfnRange::new(self.frame(0), 0), Tags::Include);
        self.expect_filled("a word after zeroing no frame", self.frame(0), 0)
    }

    fn copy(&self) -> Outcome {
        (0..4).for_each(|number| self.fill(self.frame(number), number));
        self.machine.zero_tags(self.frame(1));
        for tags in [Tags::Ignore, Tags::Include] {
            self.fill(self.frame(2), 9);
            self.machine.copy_page(self.frame(1), self.frame(2), tags);
            self.expect_filled("a word of a copy", self.frame(2), 1)?;
            self.expect_filled("a word of a copy's source", self.frame(1), 1)?;
            self.expect_filled("a word before a copy", self.frame(0), 0)?;
            self.expect_filled("a word after a copy", self.frame(3), 3)?;
        }
        Ok(())
    }

    /// The sums are those of the definition, whether the pages are copied or not.
    fn sums(&self) -> Outcome {
        let m = self.machine;
        let (run, to) = (PfnRange::new(self.frame(1), 2), self.frame(3));
        let expected = |frame| sum::of_page(words(m, frame).iter().map(|word| word.load(Ordering::Relaxed)));
        let agrees = |what| {
            let mut sums = [0; 2];
            m.sum(run, &mut sums);
            expect(what, 0, sums[0], expected(self.frame(1)))?;
            expect(what, 1, sums[1], expected(self.frame(2)))
        };
        for seed in 0..8 {
            (0..6).for_each(|number| self.fill(self.frame(number), seed + number));
            agrees("the sum of page")?;
            let mut sums = [0; 2];
            m.copy_run_summed(run, to, &mut sums);
            expect("the sum of copied page", 0, sums[0], expected(self.frame(1)))?;
            expect("the sum of copied page", 1, sums[1], expected(self.frame(2)))?;
            self.expect_filled("a word of a summed copy", self.frame(3), seed + 1)?;
            self.expect_filled("a word of a summed copy", self.frame(4), seed + 2)?;
            self.expect_filled("a word before a summed copy", self.frame(2), seed + 2)?;
            self.expect_filled("a word after a summed copy", self.frame(5), seed + 5)?;
        }
        let step = M::Granule::ENTRIES / 512;
        for index in (0..512).map(|place| place * step + place % step) {
            words(m, self.frame(2))[index].fetch_xor(1 << (index * 7 % 64), Ordering::Relaxed);
            agrees("the sum, a word having changed, of page")?;
        }
        Ok(())
    }

    fn repeated_word(&self) -> Outcome {
        const WORD: u64 = 0x0123_4567_89ab_cdef;
        let (m, frame) = (self.machine, self.frame(1));
        let all = words(m, frame);
        let found = |what, at, expected: Option<u64>| {
            let found = m.repeated_word(frame);
            expect(what, at, found.is_some().into(), expected.is_some().into())?;
            expect(what, at, found.unwrap_or(0), expected.unwrap_or(0))
        };
        for word in [WORD, 0] {
            m.fill(frame, word);
            for (index, found) in all.iter().enumerate() {
                expect("a word of a filled page", index as u64, found.load(Ordering::Relaxed), word)?;
            }
            found("the repeated word of a filled page", 0, Some(word))?;
        }
        all.iter().for_each(|word| word.store(WORD, Ordering::Relaxed));
        found("a repeated word", 0, Some(WORD))?;
        // At most 512 places, and each place within a block of the larger pages.
        let step = M::Granule::ENTRIES / 512;
        for index in (0..512).map(|place| place * step + place % step) {
            all[index].store(WORD ^ 1 << (index % 64), Ordering::Relaxed);
            found("the repeated word of a page with another at", index as u64, None)?;
            all[index].store(WORD, Ordering::Relaxed);
        }
        Ok(())
    }

    // ---- Tags. ----

    /// Each granule has a tag of its own.
    fn each_tag(&self) -> Outcome {
        let frame = self.frame(1);
        for granule in 0..16 * M::Granule::TAG_WORDS {
            let mut tags = M::Granule::ZERO_TAGS;
            tags.as_mut()[granule / 16] = (1 + granule as u64 % 15) << (4 * (granule % 16));
            self.machine.store_tags(frame, &tags);
            self.expect_tags("a word of tags, one granule tagged,", frame, &tags)?;
        }
        Ok(())
    }

    fn tags(&self) -> Outcome {
        let m = self.machine;
        let [from, to] = [self.frame(1), self.frame(2)];
        for seed in 0..8 {
            let (tags, others) = (Self::pattern(seed), Self::pattern(seed + 100));
            self.fill(from, seed);
            m.store_tags(from, &tags);
            self.expect_filled("a data word after store_tags", from, seed)?;
            self.expect_tags("a word of tags", from, &tags)?;
            self.expect_tags("a word of tags, loaded again,", from, &tags)?;
            m.store_tags(to, &others);
            m.copy_page(from, to, Tags::Include);
            self.expect_tags("a copy's word of tags", to, &tags)?;
            self.expect_tags("a copied page's word of tags", from, &tags)?;
            self.expect_filled("a data word of a copy with tags", to, seed)?;
            m.zero_tags(to);
            self.expect_tags("a word of zeroed tags", to, &M::Granule::ZERO_TAGS)?;
            self.expect_filled("a data word after zero_tags", to, seed)?;
            m.zero(one(from), Tags::Include);
            self.expect_tags("a zeroed page's word of tags", from, &M::Granule::ZERO_TAGS)?;
            self.expect_zero("a word zeroed with tags", from)?;
        }
        Ok(())
    }

    /// What is done to the tags of a page leaves those of the pages beside it.
    fn neighbours(&self) -> Outcome {
        let m = self.machine;
        let (low, high) = (Self::pattern(1), Self::pattern(2));
        m.store_tags(self.frame(0), &low);
        m.store_tags(self.frame(3), &high);
        let beside = || {
            self.expect_tags("a word of tags in the page before", self.frame(0), &low)?;
            self.expect_tags("a word of tags in the page after", self.frame(3), &high)
        };
        let run = PfnRange::new(self.frame(1), 2);
        m.zero(run, Tags::Include);
        beside()?;
        (1..3).for_each(|number| m.store_tags(self.frame(number), &Self::pattern(number + 7)));
        beside()?;
        (1..3).for_each(|number| m.zero_tags(self.frame(number)));
        beside()?;
        m.copy_page(self.frame(1), self.frame(2), Tags::Include);
        m.copy_page(self.frame(2), self.frame(1), Tags::Include);
        beside()?;
        (1..3).try_for_each(|number| {
            self.expect_tags("a word of tags of a zeroed run", self.frame(number), &M::Granule::ZERO_TAGS)
        })
    }

    // ---- Order. ----

    /// Every form is carried out: what an identifier that nobody uses has in the TLBs is nothing.
    fn order(&self) -> Outcome {
        let m = self.machine;
        let asid = Asid::new((1 << m.asid_bits().min(15)) - 1);
        let top = 1 << (m.va_bits() - M::Granule::SHIFT);
        for reach in [Reach::Local, Reach::Broadcast] {
            for cached in [Cached::Leaf(Level::L3), Cached::Walk] {
                for pages in [1, 2, 33, M::Granule::ENTRIES as u64 + 1, 1 << 16] {
                    for start in [0, 5, top - pages] {
                        m.fence_tables();
                        m.invalidate(asid, Scope::Pages(VpnRange::new(Vpn::new(start), pages)), cached, reach);
                        m.fence_invalidations();
                    }
                }
                for scope in [Scope::Space, Scope::All] {
                    m.invalidate(asid, scope, cached, reach);
                    m.fence_invalidations();
                }
            }
        }
        m.fence_contents();
        Ok(())
    }

    fn sync_code(&self) -> Outcome {
        (0..3).for_each(|number| self.fill(self.frame(number), number));
        self.machine.sync_code(PfnRange::new(self.frame(0), 3));
        (0..3).try_for_each(|number| self.expect_filled("a word after sync_code", self.frame(number), number))
    }
}
