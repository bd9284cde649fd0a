//! [`Machine`] for [`Emu`]: each function is one step, preceded by the adversary's moves.

use core::cell::Cell;
use core::mem::MaybeUninit;
use std::time::Duration;

use crate::addr::{Pfn, PfnRange};
use crate::granule::Granule;
use crate::machine::recorder::Operation;
use crate::machine::{Asid, Cached, EntryAt, Features, Machine, Reach, Scope, Tags, Window};
use crate::sync::{AtomicU32, Ordering, Search, step};

use super::laws::Write;
use super::may::Code;
use super::operand::{Named, operations};
use super::report::Law;
use super::tlb::Invalidation;
use super::{Adversary, Emu, WAITING, held, this_cpu};

/// Turns of a wait that only yield; after them the thread sleeps a little.
const YIELDS: u32 = 1000;

impl<G: Granule> Emu<G> {
    fn include(&self, tags: Tags) -> bool {
        tags == Tags::Include && self.config.features.contains(Features::MTE)
    }

    #[inline]
    fn write_entry(&self, at: EntryAt, raw: u64, how: Write) -> Result<u64, u64> {
        step();
        self.run_background();
        let cpu = this_cpu();
        self.locked(|state| {
            state.disturb();
            state.store(cpu, at, raw, how)
        })
    }

    /// One turn of a wait. A test with one thread that waits for itself would hang; it fails instead.
    fn wait_turn(&self, word: &AtomicU32, seen: u32) {
        let place = core::ptr::from_ref(word).addr();
        let (last, value, turns) = WAITING.with(Cell::get);
        let turns = if (last, value) == (place, seen) { turns + 1 } else { 0 };
        WAITING.with(|waiting| waiting.set((place, seen, turns)));
        assert!(turns < self.config.patience, "deadlock: the word waited for is {seen:#x} after {turns} turns");
        let idle = held(&self.idle).clone();
        match idle {
            Some(idle) => idle(self),
            None if turns < YIELDS => self.relax(),
            None => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

// SAFETY: RAM's words are atomics at fixed addresses, entries are accessed atomically, and every function below does
// what the trait says, some of it as late as the trait allows.
unsafe impl<G: Granule> Machine for Emu<G> {
    type Granule = G;

    fn load_entry(&self, at: EntryAt) -> u64 {
        let search = Search::step();
        self.run_background();
        let cpu = this_cpu();
        let raw = self.locked(|state| {
            if !search.is_long() && self.config.adversary == Adversary::Full {
                state.disturb();
            }
            state.observe(cpu, at);
            self.ram.entry(at).load(Ordering::Relaxed)
        });
        search.found(raw);
        raw
    }

    fn store_entry(&self, at: EntryAt, raw: u64) {
        let _ = self.write_entry(at, raw, Write::Plain);
    }

    fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64 {
        match self.write_entry(at, raw, Write::Exchange) {
            Ok(old) | Err(old) => old,
        }
    }

    fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64> {
        self.write_entry(at, raw, Write::If(seen)).map(drop)
    }

    fn fence_tables(&self) {
        self.logged(Operation::FenceTables, |state, cpu| state.order_tables(cpu));
    }

    fn fence_contents(&self) {
        self.logged(Operation::FenceContents, |state, cpu| state.cpus[cpu].epoch += 1);
    }

    fn fence_invalidations(&self) {
        self.logged(Operation::FenceInvalidations, |state, cpu| {
            state.finish_invalidations(cpu);
            // DSB ISH waits for stores as well; too late for the invalidations before it.
            state.order_tables(cpu);
        });
    }

    fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach) {
        self.logged(Operation::Invalidate { asid, scope, cached, reach }, |state, cpu| {
            let cpus = state.reached(cpu, reach);
            for Named { asid, scope, cached } in operations::<G>(asid, scope, cached, self.config.features) {
                state.invalidate(cpu, Invalidation { asid, scope, cached, cpus, applied: false });
            }
        });
    }

    fn install_root(&self, root: Pfn, asid: Asid) {
        self.logged(Operation::InstallRoot { root, asid }, |state, cpu| state.install(cpu, root, asid));
    }

    fn zero(&self, run: PfnRange, tags: Tags) {
        self.logged(Operation::Zero { run, tags }, |state, cpu| {
            for page in 0..run.pages() {
                let frame = run.start().offset(page);
                state.write_contents(cpu, frame, "zero");
                self.ram.zero(frame);
                if self.include(tags) {
                    self.ram.zero_tags(frame);
                } else if state.is_full() {
                    self.ram.scribble_tags(frame);
                }
                let slot = self.ram.slot(frame);
                let known = &mut state.frames[slot];
                (known.data_set, known.tags_set) = (true, self.include(tags));
            }
        });
    }

    fn zero_tags(&self, frame: Pfn) {
        self.logged(Operation::ZeroTags { frame }, |state, cpu| {
            state.write_tags(cpu, frame, "zero_tags");
            self.ram.zero_tags(frame);
            let slot = self.ram.slot(frame);
            state.frames[slot].tags_set = true;
        });
    }

    fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags) {
        self.logged(Operation::Copy { from, to, tags }, |state, cpu| {
            state.read_contents(from, "copy_page");
            state.write_contents(cpu, to, "copy_page");
            self.ram.copy(from, to);
            if self.include(tags) {
                self.ram.copy_tags(from, to);
            } else if state.is_full() {
                self.ram.scribble_tags(to);
            }
            let source = &state.frames[self.ram.slot(from)];
            let (data_set, tags_set) = (source.data_set, source.tags_set && self.include(tags));
            let slot = self.ram.slot(to);
            let known = &mut state.frames[slot];
            (known.data_set, known.tags_set) = (data_set, tags_set);
        });
    }

    fn sum(&self, run: PfnRange, sums: &mut [u64]) {
        self.logged(Operation::Sum { run }, |state, _| {
            for (page, sum) in (0..run.pages()).zip(sums) {
                let frame = run.start().offset(page);
                state.read_contents(frame, "sum");
                *sum = self.ram.sum(frame);
            }
        });
    }

    fn repeated_word(&self, frame: Pfn) -> Option<u64> {
        self.logged(Operation::RepeatedWord { frame }, |state, _| {
            state.read_contents(frame, "repeated_word");
            self.ram.repeated_word(frame)
        })
    }

    fn fill(&self, frame: Pfn, word: u64) {
        self.logged(Operation::Fill { frame, word }, |state, cpu| {
            state.write_contents(cpu, frame, "fill");
            self.ram.fill(frame, word);
            if state.is_full() {
                self.ram.scribble_tags(frame);
            }
            let slot = self.ram.slot(frame);
            let known = &mut state.frames[slot];
            (known.data_set, known.tags_set) = (true, false);
        });
    }

    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<G::TagWords>) -> &'a G::TagWords {
        let tags = into.write(G::ZERO_TAGS);
        self.logged(Operation::LoadTags { frame }, |state, _| {
            state.read_contents(frame, "load_tags");
            state.need_tags(frame, "load_tags");
            self.ram.read_tags(frame, tags.as_mut());
        });
        tags
    }

    fn store_tags(&self, frame: Pfn, tags: &G::TagWords) {
        self.logged(Operation::StoreTags { frame }, |state, cpu| {
            state.write_tags(cpu, frame, "store_tags");
            self.ram.write_tags(frame, tags.as_ref());
            let slot = self.ram.slot(frame);
            state.frames[slot].tags_set = true;
        });
    }

    fn window(&self, frame: Pfn) -> Window<'_> {
        self.locked(|state| {
            state.check_unreachable(frame, Law::FreedWhileMapped, "records");
            let slot = self.ram.slot(frame);
            state.frames[slot].data_set = true;
        });
        self.ram.window(frame)
    }

    fn sync_code(&self, run: PfnRange) {
        self.logged(Operation::SyncCode { run }, |state, _| {
            let first = self.ram.slot(run.start());
            for known in &mut state.frames[first..first + run.pages() as usize] {
                known.code = Code::Syncing;
            }
        });
    }

    fn features(&self) -> Features {
        self.config.features
    }

    fn asid_bits(&self) -> u32 {
        self.config.asid_bits
    }

    fn va_bits(&self) -> u32 {
        self.config.va_bits
    }

    fn cpu(&self) -> usize {
        this_cpu()
    }

    fn now_ns(&self) -> u64 {
        self.clock.fetch_add(100, Ordering::Relaxed)
    }

    fn relax(&self) {
        #[cfg(feature = "shuttle")]
        <crate::sync::Relax as spin::RelaxStrategy>::relax();
        #[cfg(not(feature = "shuttle"))]
        std::thread::yield_now();
    }

    fn wait(&self, word: &AtomicU32, seen: u32) {
        if word.load(Ordering::Acquire) == seen {
            self.wait_turn(word, seen);
        }
    }

    fn wake(&self, _word: &AtomicU32) {
        // Waiters look at their word at each turn.
        WAITING.with(|waiting| waiting.set((0, 0, 0)));
    }
}
