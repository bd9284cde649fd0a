//! The emulated machine: RAM plus an adversary that obeys the Arm ARM and nothing more.
//!
//! [`Emu`] is a whole [`Machine`](super::Machine) for tests on a host. It is nastier than any real CPU, and than
//! QEMU, whose TLB ignores the contiguous hint and which forgives a missing barrier. Two things work together:
//!
//! - **The adversary** moves what programs see. Each CPU has a TLB that caches any valid walk at any moment, keeps
//!   table descriptors, reads a contiguous group from any one of its entries, and evicts at any moment. Stores to
//!   tables reach walkers late until [`fence_tables`](super::Machine::fence_tables); an invalidation is certain only at
//!   [`fence_invalidations`](super::Machine::fence_invalidations), and what it removed comes back if the store before
//!   it was still under way. Hardware AF and dirty updates land between any two steps.
//! - **The laws** ([`Law`]) are checked against what a machine *may* hold, not against what the seed made it hold, so
//!   that a missing barrier is found by the first test that passes there. `may.rs` keeps that account.
//!
//! Programs are scripts: [`Emu::user`] gives one whose accesses go through a CPU's TLB with permission and tag
//! checks, and which calls a handler on a fault. [`Emu::set_background`] lets such accesses land between the core's
//! steps.
//!
//! **Protocol.** All that changes, but for RAM's words, stands behind one lock (a `std` lock: this room is never part
//! of a kernel, and one step here is one step to a scheduler that explores interleavings). Hooks run with the lock
//! free. With one thread, all that happens follows from the seed. The calling CPU is a property of the thread:
//! [`Emu::on_cpu`].
//!
//! ```
//! use ebbtide::addr::Pfn;
//! use ebbtide::granule::K4;
//! use ebbtide::machine::emu::{Adversary, Emu, EmuConfig};
//!
//! let emu = Emu::<K4>::new(EmuConfig { frames: 256, seed: 7, adversary: Adversary::Full, ..EmuConfig::default() });
//! assert!(emu.frames().contains(Pfn::new(0x4_0000)));
//! ```

mod adversary;
mod desc;
mod device;
mod laws;
mod may;
mod operand;
mod ram;
mod report;
mod seam;
#[cfg(test)]
mod tests;
mod tlb;
mod user;
mod walk;

use core::cell::Cell;
use std::string::String;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use crate::addr::{Pfn, PfnRange};
use crate::granule::{Granule, K4};
use crate::sync::stepless::{AtomicU32, AtomicU64};
use crate::sync::{Ordering, step, thread_local};

use super::{EntryAt, Features, MAX_CPUS};
use adversary::State;
use ram::Ram;
use report::Op;

pub use device::TestDevice;
pub use ram::GARBAGE;
pub use report::{Law, Mode, Violation};
pub use user::{Access, Death, Fault, FaultKind, RETRIES, User};

/// How much the machine does on its own.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Adversary {
    /// Caches what programs touch, orders everything at once. The laws hold as ever.
    Quiet,
    /// All that the architecture permits.
    Full,
}

/// A machine to build.
#[derive(Copy, Clone, Debug)]
pub struct EmuConfig {
    /// Frames of RAM.
    pub frames: u64,
    /// The first of them.
    pub first_frame: Pfn,
    /// CPUs, at most [`MAX_CPUS`].
    pub cpus: usize,
    /// What the adversary's choices follow from.
    pub seed: u64,
    /// What the CPUs can do.
    pub features: Features,
    /// See [`Machine::asid_bits`](super::Machine::asid_bits).
    pub asid_bits: u32,
    /// See [`Machine::va_bits`](super::Machine::va_bits).
    pub va_bits: u32,
    /// See [`Adversary`].
    pub adversary: Adversary,
    /// Turns of a wait for one unchanged word before the machine calls it a deadlock.
    pub patience: u32,
}

impl Default for EmuConfig {
    /// One quiet CPU with all features, 4 MiB in 4 KiB frames, 48 bits of virtual address.
    fn default() -> Self {
        Self {
            frames: 1024,
            first_frame: Pfn::new(0x4_0000),
            cpus: 1,
            seed: 1,
            features: Features::all(),
            asid_bits: 16,
            va_bits: 48,
            adversary: Adversary::Quiet,
            patience: 20_000,
        }
    }
}

/// The EL0 tag check mode of a CPU (SCTLR_EL1.TCF0).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum TagCheck {
    /// Tags are not compared.
    None,
    /// A mismatch faults.
    Sync,
}

type Idle<G> = Arc<dyn Fn(&Emu<G>) + Send + Sync>;
type Background<G> = Arc<dyn Fn(&Emu<G>, u64) + Send + Sync>;

/// The emulated machine. See the module's head.
pub struct Emu<G: Granule = K4> {
    config: EmuConfig,
    ram: Arc<Ram<G>>,
    state: Mutex<State<G>>,
    idle: Mutex<Option<Idle<G>>>,
    background: Mutex<Option<Background<G>>>,
    has_background: AtomicU32,
    clock: AtomicU64,
}

thread_local! {
    /// The CPU that this thread plays.
    static CPU: Cell<usize> = const { Cell::new(0) };
    /// This thread is inside the background hook.
    static IN_BACKGROUND: Cell<bool> = const { Cell::new(false) };
    /// The word this thread waits for, the value it waits out, and the turns so far.
    static WAITING: Cell<(usize, u32, u32)> = const { Cell::new((0, 0, 0)) };
}

/// The CPU that the calling thread plays.
#[inline]
fn this_cpu() -> usize {
    CPU.with(Cell::get)
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked has its report already; others go on.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<G: Granule> Emu<G> {
    /// Builds the machine: RAM full of garbage, TLBs empty, no root installed.
    ///
    /// # Panics
    /// When the configuration describes no machine.
    pub fn new(config: EmuConfig) -> Self {
        assert!((1..=MAX_CPUS).contains(&config.cpus), "1 to {MAX_CPUS} CPUs");
        assert!(matches!(config.asid_bits, 8 | 16) && (32..=48).contains(&config.va_bits));
        let ram = Arc::new(Ram::new(PfnRange::new(config.first_frame, config.frames)));
        Self {
            config,
            state: Mutex::new(State::new(config, Arc::clone(&ram))),
            ram,
            idle: Mutex::new(None),
            background: Mutex::new(None),
            has_background: AtomicU32::new(0),
            clock: AtomicU64::new(0),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &EmuConfig {
        &self.config
    }

    /// All of RAM.
    pub fn frames(&self) -> PfnRange {
        self.ram.frames()
    }

    /// Runs `body` with the calling thread on another CPU.
    pub fn on_cpu<R>(&self, cpu: usize, body: impl FnOnce() -> R) -> R {
        struct Back(usize);
        impl Drop for Back {
            fn drop(&mut self) {
                CPU.with(|cpu| cpu.set(self.0));
            }
        }
        let _back = Back(this_cpu());
        self.set_cpu(cpu);
        body()
    }

    /// Puts the calling thread on a CPU.
    ///
    /// # Panics
    /// When there is no such CPU.
    pub fn set_cpu(&self, cpu: usize) {
        assert!(cpu < self.config.cpus, "CPU {cpu} of {}", self.config.cpus);
        CPU.with(|own| own.set(cpu));
    }

    /// What runs at each turn of a wait, in place of other threads.
    pub fn set_idle(&self, hook: impl Fn(&Self) + Send + Sync + 'static) {
        *held(&self.idle) = Some(Arc::new(hook));
    }

    /// What programs on other CPUs do meanwhile: called at random between the core's steps, with a random number to
    /// choose by. The hook uses [`Emu::access`]; faults are for it to ignore.
    pub fn set_background(&self, hook: impl Fn(&Self, u64) + Send + Sync + 'static) {
        *held(&self.background) = Some(Arc::new(hook));
        self.has_background.store(1, Ordering::Relaxed);
    }

    /// One access by the program on `cpu`, without a retry. `pointer` may carry a tag; the access is 8 bytes, aligned.
    ///
    /// # Errors
    /// The abort that the program takes.
    pub fn access(&self, cpu: usize, pointer: u64, access: Access) -> Result<u64, Fault> {
        step();
        self.locked(|state| {
            state.disturb();
            state.access(cpu, pointer, access)
        })
    }

    /// Sets how loads and stores of the program on `cpu` check tags.
    pub fn set_tag_check(&self, cpu: usize, mode: TagCheck) {
        held(&self.state).cpus[cpu].tag_check = mode;
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        self.clock.fetch_add(ns, Ordering::Relaxed);
    }

    /// Fills a frame and its tags with garbage that nobody may see: as a frame is that nobody has used yet.
    pub fn poison_frame(&self, frame: Pfn) {
        held(&self.state).poison(frame);
    }

    /// Says that the frames were freed: fails if any TLB may still reach them, and fills them with garbage.
    pub fn note_freed(&self, run: PfnRange) {
        self.logged(Op::Freed { run }, |state, _| state.free(run));
    }

    /// Checks the contiguous groups of one leaf table.
    pub fn check_groups(&self, table: Pfn) {
        self.locked(|state| state.check_groups(table));
    }

    /// Checks the contiguous groups of every leaf table that a walker can reach.
    pub fn check_all_groups(&self) {
        self.locked(|state| {
            let is_leaf = |frame: &may::Frame| frame.table.is_some_and(|place| place.level.below().is_none());
            let tables: Vec<usize> = (0..state.frames.len()).filter(|&slot| is_leaf(&state.frames[slot])).collect();
            for slot in tables {
                state.check_groups(self.frames().start().offset(slot as u64));
            }
        });
    }

    /// A page's words, read as a device reads them.
    pub fn export_page(&self, frame: Pfn) -> Vec<u64> {
        self.logged(Op::Export { frame }, |state, _| {
            state.read_contents(frame, "a device's read");
            let mut words = std::vec![0; G::ENTRIES];
            state.ram.read(frame, &mut words);
            words
        })
    }

    /// Writes a page's words, as a device writes them.
    pub fn import_page(&self, frame: Pfn, words: &[u64]) {
        self.logged(Op::Import { frame }, |state, cpu| {
            state.write_contents(cpu, frame, "a device's write");
            state.ram.write(frame, words);
            let slot = state.ram.slot(frame);
            state.frames[slot].data_set = true;
        });
    }

    /// Loads a word of a page that is pinned, as a device does: at any time, whoever may store to the page.
    pub fn device_load(&self, frame: Pfn, word: usize) -> u64 {
        self.logged(Op::Export { frame }, |state, _| {
            let mut words = std::vec![0; G::ENTRIES];
            state.ram.read(frame, &mut words);
            words[word]
        })
    }

    /// Stores a word to a page that is pinned, as a device does: at any time, whoever sees the page.
    pub fn device_store(&self, frame: Pfn, word: usize, value: u64) {
        self.logged(Op::Import { frame }, |state, _| {
            let mut words = std::vec![0; G::ENTRIES];
            state.ram.read(frame, &mut words);
            words[word] = value;
            state.ram.write(frame, &words);
        })
    }

    /// Whether a broken law panics (the default) or is kept.
    pub fn set_mode(&self, mode: Mode) {
        held(&self.state).log.mode = mode;
    }

    /// The reports kept since the last call.
    pub fn take_violations(&self) -> Vec<Violation> {
        core::mem::take(&mut held(&self.state).log.violations)
    }

    /// Runs naive code and demands that it breaks `law` and, before that, no other.
    ///
    /// # Panics
    /// When it does not.
    pub fn expect_violation<R>(&self, law: Law, naive: impl FnOnce() -> R) -> R {
        self.set_mode(Mode::Record);
        let result = naive();
        self.set_mode(Mode::Panic);
        match self.take_violations().first() {
            Some(first) => assert!(first.law == law, "expected {law:?}, but {first}"),
            None => panic!("law {law:?} was not broken"),
        }
        result
    }

    /// The last operations, oldest first.
    pub fn last_operations(&self) -> Vec<String> {
        held(&self.state).log.last()
    }

    /// Reports a broken law that a layer above found.
    pub fn violation(&self, law: Law, what: String) {
        self.locked(|state| state.log.violate(law, what));
    }

    /// A descriptor as memory holds it, without a trace.
    pub fn peek(&self, at: EntryAt) -> u64 {
        self.ram.entry(at).load(Ordering::Relaxed)
    }

    /// A data word of a frame as memory holds it, without a trace.
    pub fn peek_word(&self, frame: Pfn, offset: usize) -> u64 {
        self.ram.word(frame, offset).load(Ordering::Relaxed)
    }

    /// One step under the lock. Laws broken in it are raised once the lock is free.
    #[inline]
    fn locked<R>(&self, body: impl FnOnce(&mut State<G>) -> R) -> R {
        let mut state = held(&self.state);
        let result = body(&mut state);
        if !state.log.violations.is_empty() && state.log.mode == Mode::Panic && !std::thread::panicking() {
            let violation = state.log.violations.remove(0);
            state.log.violations.clear();
            drop(state);
            panic!("{violation}");
        }
        result
    }

    /// One operation of the seam: the world moves first, then the step is done and logged.
    #[inline]
    fn logged<R>(&self, op: impl Into<Op>, body: impl FnOnce(&mut State<G>, usize) -> R) -> R {
        step();
        self.run_background();
        let cpu = this_cpu();
        self.locked(|state| {
            state.disturb();
            state.log.push(cpu, op);
            body(state, cpu)
        })
    }

    #[inline]
    fn run_background(&self) {
        if self.has_background.load(Ordering::Relaxed) != 0 && !IN_BACKGROUND.with(Cell::get) {
            let dice = held(&self.state).rng.next();
            if dice & 0x3 == 0 {
                let hook = held(&self.background).clone();
                IN_BACKGROUND.with(|inside| inside.set(true));
                if let Some(hook) = hook {
                    hook(self, dice >> 8);
                }
                IN_BACKGROUND.with(|inside| inside.set(false));
            }
        }
    }
}
