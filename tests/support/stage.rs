//! The emulated machine on a stage: a test may stop a thread at its n-th step and let another play meanwhile.
//!
//! [`Stage`] is [`Emu`] behind the same trait, with one addition: before each operation of the seam the calling
//! thread's [`Cue`], if it has one, is asked. [`meanwhile`] builds on it: one call of the library is interrupted at
//! each of its steps in turn, and another CPU does something of its own in between. What two CPUs can do to each
//! other with one change of turns is so tried in full, not by luck.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::sync::{Arc, PoisonError, RwLock};
#[cfg(not(feature = "shuttle"))]
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use ebbtide::addr::{Pfn, PfnRange};
use ebbtide::granule::Granule;
use ebbtide::machine::emu::{Emu, TestDevice};
use ebbtide::machine::{Asid, Cached, EntryAt, Features, Machine, Reach, Scope, Tags, Window};
use ebbtide::swap::{DeviceError, DeviceFlags, Progress, SwapDevice, Ticket};
#[cfg(feature = "shuttle")]
use ebbtide::sync::turn;
use ebbtide::sync::{AtomicU32, Ordering};
// Whom nobody wakes is then a deadlock that the scheduler sees.
#[cfg(feature = "shuttle")]
use shuttle::sync::{Condvar, Mutex};

/// What a thread does before a certain one of its steps.
struct Cue {
    steps: u64,
    /// Reads of entries since the last other step.
    reads: u64,
    at: u64,
    act: Option<Box<dyn FnOnce()>>,
}

thread_local! {
    static CUE: RefCell<Option<Cue>> = const { RefCell::new(None) };
    /// How often this thread may wait for something new, if that is limited.
    static TURNS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The step, in place of a number, at which a device's request that is under way is waited for.
pub const AT_FINISH: u64 = u64::MAX;

/// The emulated machine as the library sees it in these tests.
pub struct Stage<G: Granule> {
    /// The machine behind it.
    pub emu: Emu<G>,
    /// A valid entry was taken away, and no flush has been completed since.
    pub unflushed: AtomicBool,
    /// How often who sleeps on a word was woken, by the word's place.
    woken: Mutex<HashMap<usize, u64>>,
    waking: Condvar,
}

#[cfg(not(feature = "shuttle"))]
fn turn<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// Longer than anybody sleeps who is woken.
const NIGHT: Duration = Duration::from_secs(10);

impl<G: Granule> Stage<G> {
    pub fn new(emu: Emu<G>) -> Self {
        Self { emu, unflushed: AtomicBool::new(false), woken: Mutex::default(), waking: Condvar::new() }
    }

    fn step(&self) {
        CUE.with_borrow_mut(|cue| cue.iter_mut().for_each(|cue| cue.reads = 0));
        self.count();
    }

    /// A read of an entry. Of a search through a whole table the first steps stand for all.
    fn read_step(&self) {
        let few = CUE.with_borrow_mut(|cue| {
            cue.as_mut().is_some_and(|cue| {
                cue.reads += 1;
                cue.reads <= 6
            })
        });
        if few {
            self.count();
        }
    }

    fn count(&self) {
        self.cue(|cue| {
            cue.steps += 1;
            cue.steps > cue.at
        });
    }

    fn cue(&self, is_due: impl FnOnce(&mut Cue) -> bool) {
        let act = CUE.with_borrow_mut(|cue| {
            let cue = cue.as_mut()?;
            if is_due(cue) { cue.act.take() } else { None }
        });
        if let Some(act) = act {
            act();
        }
    }
}

/// Runs `body` and, before its step number `at`, `act`; says whether there was such a step.
pub fn at_step<R>(at: u64, act: impl FnOnce() + 'static, body: impl FnOnce() -> R) -> (R, bool) {
    CUE.set(Some(Cue { steps: 0, reads: 0, at, act: Some(Box::new(act)) }));
    let result = body();
    let cue = CUE.take();
    (result, cue.is_some_and(|cue| cue.act.is_none()))
}

/// Runs `body`, which comes to its end without waiting more often than so many times: who goes round for ever is found
/// at once.
pub fn in_turns<R>(turns: u64, body: impl FnOnce() -> R) -> R {
    TURNS.set(Some(turns));
    let result = body();
    TURNS.set(None);
    result
}

/// More of a CPU's time than another one needs for what it does in a test: who takes more spins.
const TURN_NS: u64 = 4_000_000;
/// How often it is looked at.
const TICK: Duration = Duration::from_micros(250);

/// What is known of a thread from outside, where the host tells: how much of a CPU's time it had so far, in ns, and
/// whether it sleeps.
struct Watch(Option<PathBuf>);

impl Watch {
    fn of_this_thread() -> Self {
        Self(fs::read_link("/proc/thread-self").ok().map(|task| Path::new("/proc").join(task)))
    }

    fn look(&self) -> Option<(u64, bool)> {
        let read = |name| fs::read_to_string(self.0.as_ref()?.join(name)).ok();
        let ran = read("schedstat")?.split(' ').next()?.parse().ok()?;
        let sleeps = read("stat")?.rsplit_once(") ")?.1.starts_with(['S', 'D']);
        Some((ran, sleeps))
    }

    /// Waits until the thread is done, or waits itself: asleep, or spinning. Not for a time, which may be over before a
    /// busy host lets the thread begin.
    fn wait(&self, done: &mpsc::Receiver<()>) {
        let start = self.look().map_or(0, |(ran, _)| ran);
        let mut before = None;
        while done.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
            let now = self.look();
            match now {
                Some((ran, sleeps)) if ran - start < TURN_NS && !(sleeps && before == now) => before = now,
                _ => return,
            }
        }
    }
}

/// Runs `call` once for each of its steps, and in each run lets `other`, on a thread of its own, go ahead before that
/// step. When `other` waits for something that `call` holds, `call` goes on after a while. `play` makes the scene for
/// one run and checks it afterwards; it calls what it is given to raise the curtain.
pub fn meanwhile(mut play: impl FnMut(&dyn Fn(&mut dyn FnMut(), &(dyn Fn() + Sync)))) {
    for at in 0.. {
        let again = Cell::new(false);
        play(&|call, other| again.set(beside(at, call, other)));
        if !again.get() {
            return;
        }
    }
}

/// Runs `call`, and before its step number `at` lets `other` go ahead as [`meanwhile`] does; says whether there was
/// such a step.
pub fn beside(at: u64, call: &mut dyn FnMut(), other: &(dyn Fn() + Sync)) -> bool {
    let (go, started) = mpsc::channel::<()>();
    let (done, finished) = mpsc::channel::<()>();
    let (here, known) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = here.send(Watch::of_this_thread());
            // An error means that the call is over, or broke down.
            let _ = started.recv();
            other();
            let _ = done.send(());
        });
        let act = move || {
            let _ = go.send(());
            known.recv().unwrap_or(Watch(None)).wait(&finished);
        };
        at_step(at, act, call).1
    })
}

// SAFETY: each function is that of `Emu`.
unsafe impl<G: Granule> Machine for Stage<G> {
    type Granule = G;

    fn load_entry(&self, at: EntryAt) -> u64 {
        self.read_step();
        self.emu.load_entry(at)
    }

    fn store_entry(&self, at: EntryAt, raw: u64) {
        self.step();
        self.emu.store_entry(at, raw);
    }

    fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64 {
        self.step();
        let old = self.emu.exchange_entry(at, raw);
        if old & !raw & 1 != 0 {
            self.unflushed.store(true, Ordering::Relaxed);
        }
        old
    }

    fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64> {
        self.step();
        self.emu.compare_exchange_entry(at, seen, raw)
    }

    fn fence_tables(&self) {
        self.step();
        self.emu.fence_tables();
    }

    fn fence_contents(&self) {
        self.step();
        self.emu.fence_contents();
    }

    fn fence_invalidations(&self) {
        self.step();
        self.emu.fence_invalidations();
        self.unflushed.store(false, Ordering::Relaxed);
    }

    fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach) {
        self.step();
        self.emu.invalidate(asid, scope, cached, reach);
    }

    fn install_root(&self, root: Pfn, asid: Asid) {
        self.step();
        self.emu.install_root(root, asid);
    }

    fn zero(&self, run: PfnRange, tags: Tags) {
        self.step();
        self.emu.zero(run, tags);
    }

    fn zero_tags(&self, frame: Pfn) {
        self.step();
        self.emu.zero_tags(frame);
    }

    fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags) {
        self.step();
        self.emu.copy_page(from, to, tags);
    }

    fn sum(&self, run: PfnRange, sums: &mut [u64]) {
        self.step();
        self.emu.sum(run, sums);
    }

    fn repeated_word(&self, frame: Pfn) -> Option<u64> {
        self.step();
        self.emu.repeated_word(frame)
    }

    fn fill(&self, frame: Pfn, word: u64) {
        self.step();
        self.emu.fill(frame, word);
    }

    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<G::TagWords>) -> &'a G::TagWords {
        self.step();
        self.emu.load_tags(frame, into)
    }

    fn store_tags(&self, frame: Pfn, tags: &G::TagWords) {
        self.step();
        self.emu.store_tags(frame, tags);
    }

    fn window(&self, frame: Pfn) -> Window<'_> {
        self.emu.window(frame)
    }

    fn sync_code(&self, run: PfnRange) {
        self.step();
        self.emu.sync_code(run);
    }

    fn features(&self) -> Features {
        self.emu.features()
    }

    fn asid_bits(&self) -> u32 {
        self.emu.asid_bits()
    }

    fn va_bits(&self) -> u32 {
        self.emu.va_bits()
    }

    fn cpu(&self) -> usize {
        self.emu.cpu()
    }

    fn now_ns(&self) -> u64 {
        self.emu.now_ns()
    }

    fn relax(&self) {
        if let Some(left) = TURNS.get() {
            TURNS.set(Some(left.checked_sub(1).expect("it waits for what never comes")));
        }
        self.emu.relax();
    }

    fn wait(&self, word: &AtomicU32, seen: u32) {
        // Unlike the emulated machine's, this sleep ends by `wake` alone: a kernel's may.
        let place = std::ptr::from_ref(word).addr();
        let mut woken = turn(|| self.woken.lock()).unwrap_or_else(PoisonError::into_inner);
        let before = *woken.entry(place).or_default();
        if word.load(Ordering::Acquire) != seen {
            return turn(|| drop(woken));
        }
        let is_asleep = |woken: &mut HashMap<usize, u64>| woken.get(&place) == Some(&before);
        let (woken, late) =
            turn(|| self.waking.wait_timeout_while(woken, NIGHT, is_asleep)).unwrap_or_else(PoisonError::into_inner);
        turn(|| drop(woken));
        assert!(!late.timed_out(), "nobody woke who slept until a word was no more {seen:#x}");
    }

    fn wake(&self, word: &AtomicU32) {
        let place = std::ptr::from_ref(word).addr();
        turn(|| {
            *self.woken.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default() += 1;
            self.waking.notify_all();
        });
    }
}

/// The library wants its devices for ever; a test's device goes with the test, behind a small port that stays.
#[derive(Default)]
pub struct Port(RwLock<Option<Arc<TestDevice>>>);

impl Port {
    pub fn plug(&self, device: Option<Arc<TestDevice>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = device;
    }

    fn device(&self) -> Result<Arc<TestDevice>, DeviceError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(DeviceError)
    }
}

impl<G: Granule> SwapDevice<Stage<G>> for Port {
    fn flags(&self) -> DeviceFlags {
        self.device().map_or(DeviceFlags::empty(), |device| device.flags())
    }

    fn write(&self, stage: &Stage<G>, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        stage.step();
        self.device()?.write(&stage.emu, frames, slot)
    }

    fn read(&self, stage: &Stage<G>, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        stage.step();
        self.device()?.read(&stage.emu, slot, frames)
    }

    fn finish(&self, stage: &Stage<G>, ticket: Ticket) -> Result<(), DeviceError> {
        stage.step();
        stage.cue(|cue| cue.at == AT_FINISH);
        self.device()?.finish(&stage.emu, ticket)
    }
}
