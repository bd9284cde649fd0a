//! The recorder: a machine that wraps any other, keeps the last operations, and checks the order of all of them.
//!
//! [`Recorder`] does what the machine within does and nothing else; beside that it tells its [`Log`]. So the library's
//! order of stores, fences and invalidations is checked where it runs: on a host, and on a board.
//!
//! **The rules** ([`Rule`]), for each CPU by its own operations:
//!
//! - What a CPU wrote to a frame, data or tags, it fences before it makes an entry valid that shows the frame.
//! - An entry that was valid and is taken away, or loses a right, is *pending*: it waits for
//!   [`fence_tables`](Machine::fence_tables), then for a broadcast [`invalidate`](Machine::invalidate) whose pages
//!   include the entry's and whose [`Cached`] includes its level, then for
//!   [`fence_invalidations`](Machine::fence_invalidations), all by the CPU that took it. Until then nobody reads or
//!   writes the frame's contents or tags through the machine, no other entry shows the frame, and the entry itself
//!   shows nothing else. The same frame may come back to it: a TLB that kept the old translation holds nothing wrong.
//! - An invalidation of the calling CPU alone does not count.
//! - A live entry changes by exchanges, and keeps its frame and its place in or out of a contiguous group.
//!
//! **How it knows what an entry maps.** A root becomes known when it is installed, with all that it links by then, and
//! the tables below it as they are linked. In a table that no root leads to, no walker reads, so that only the first
//! rule holds there. A root whose whole space was invalidated, [`Cached::Walk`], while no CPU had it installed, is
//! unknown again: what is taken out of it afterwards waits for nothing.
//!
//! **What it cannot see.** Whether the machine does what it was told. The hardware's own updates. What is done through
//! a pointer: taking a [`Window`] counts as a use of the frame, a later access through it does not. What a device moves
//! by its own means. The order between CPUs: operations are noted one after the other under a lock, each next to the
//! moment in which it is done, so that a race that only the right moment shows may pass. Whether tags were ever set,
//! and whether code was synced. The tables, removals and unfenced frames that it remembers are bounded; what does not
//! fit is counted ([`Log::unseen`]) and not checked.
//!
//! **Protocol.** All that the log holds stands behind one spinning lock, taken once or twice for each operation and
//! never while the machine waits. The hook runs with the lock free.

mod account;
mod report;

use core::mem::MaybeUninit;

use super::{Asid, Cached, EntryAt, Features, Machine, Reach, Scope, TagWords, Tags, Window};
use crate::addr::{Pfn, PfnRange};
use crate::sync::{AtomicU32, AtomicU64, Ordering, Spin};

use account::Account;
pub use report::{Lacking, Operation, Rule, Step, Violation};

/// What a recorder remembers: some tens of KiB, for a static.
pub struct Log {
    account: Spin<Account>,
    hook: fn(&Violation),
    violations: AtomicU64,
    first: Spin<Option<(Rule, Operation)>>,
}

impl Log {
    /// An empty log. `hook` is called with each broken rule, before the operation is done where that is possible: a
    /// test panics there, a kernel prints.
    pub const fn new(hook: fn(&Violation)) -> Self {
        Self { account: Spin::new(Account::new()), hook, violations: AtomicU64::new(0), first: Spin::new(None) }
    }

    /// Broken rules so far.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// Tables, removals and unfenced frames that there was no room to remember: what concerns them was not checked.
    pub fn unseen(&self) -> u64 {
        self.account.lock().unseen()
    }

    /// Removals that still wait for their invalidation, in runs.
    pub fn pending(&self) -> usize {
        self.account.lock().pending()
    }

    /// The first rule that was broken since this was last asked, and by what.
    pub fn take_first(&self) -> Option<(Rule, Operation)> {
        self.first.lock().take()
    }

    #[cold]
    fn report(&self, violation: &Violation) {
        self.violations.fetch_add(1, Ordering::Relaxed);
        self.first.lock().get_or_insert((violation.rule, violation.operation));
        (self.hook)(violation);
    }
}

/// The machine `M`, recorded. See the module's head.
pub struct Recorder<M: Machine> {
    machine: M,
    log: &'static Log,
}

impl<M: Machine> Recorder<M> {
    /// Records `machine` in `log`, which serves one recorder.
    pub const fn new(machine: M, log: &'static Log) -> Self {
        Self { machine, log }
    }

    /// The machine within.
    pub fn inner(&self) -> &M {
        &self.machine
    }

    /// The log.
    pub fn log(&self) -> &'static Log {
        self.log
    }

    /// Notes an operation and what follows from it; reports what rule it breaks.
    fn note(&self, operation: Operation, effect: impl FnOnce(&mut Account, usize) -> Result<(), Rule>) {
        let cpu = self.machine.cpu();
        let broken = {
            let mut account = self.log.account.lock();
            account.push(cpu, operation);
            effect(&mut account, cpu).err().map(|rule| Violation { rule, cpu, operation, last: account.last() })
        };
        if let Some(violation) = broken {
            self.log.report(&violation);
        }
    }

    /// Notes that an entry changed, or is about to.
    fn changed(&self, operation: Operation, at: EntryAt, old: u64, new: u64) {
        self.note(operation, |account, cpu| account.change::<M::Granule>(cpu, at, old, new));
    }

    /// Notes a use of contents before it is done: everything of `run` must be out of reach.
    fn uses(&self, operation: Operation, run: PfnRange) {
        self.note(operation, |account, _| account.use_contents(run));
    }

    /// Notes that the calling CPU wrote to `run`.
    fn wrote(&self, run: PfnRange) {
        self.log.account.lock().wrote(self.machine.cpu(), run);
    }
}

const fn one(frame: Pfn) -> PfnRange {
    PfnRange::new(frame, 1)
}

// SAFETY: each function is that of the machine within.
unsafe impl<M: Machine> Machine for Recorder<M> {
    type Granule = M::Granule;

    #[inline]
    fn load_entry(&self, at: EntryAt) -> u64 {
        self.machine.load_entry(at)
    }

    fn store_entry(&self, at: EntryAt, raw: u64) {
        let old = self.machine.load_entry(at);
        let operation = Operation::Store { at, old, new: raw };
        self.note(operation, |account, cpu| account.store::<M::Granule>(cpu, at, old, raw));
        self.machine.store_entry(at, raw);
    }

    fn exchange_entry(&self, at: EntryAt, raw: u64) -> u64 {
        let old = self.machine.exchange_entry(at, raw);
        self.changed(Operation::Exchange { at, old, new: raw }, at, old, raw);
        old
    }

    fn compare_exchange_entry(&self, at: EntryAt, seen: u64, raw: u64) -> Result<(), u64> {
        self.machine.compare_exchange_entry(at, seen, raw)?;
        self.changed(Operation::Exchange { at, old: seen, new: raw }, at, seen, raw);
        Ok(())
    }

    fn fence_tables(&self) {
        self.machine.fence_tables();
        self.note(Operation::FenceTables, |account, cpu| {
            account.fence_tables(cpu);
            Ok(())
        });
    }

    fn fence_contents(&self) {
        self.machine.fence_contents();
        self.note(Operation::FenceContents, |account, cpu| {
            account.fence_contents(cpu);
            Ok(())
        });
    }

    fn fence_invalidations(&self) {
        self.machine.fence_invalidations();
        self.note(Operation::FenceInvalidations, |account, cpu| {
            account.fence_invalidations(cpu);
            Ok(())
        });
    }

    fn invalidate(&self, asid: Asid, scope: Scope, cached: Cached, reach: Reach) {
        self.machine.invalidate(asid, scope, cached, reach);
        self.note(Operation::Invalidate { asid, scope, cached, reach }, |account, cpu| {
            account.invalidate(cpu, asid, scope, cached, reach);
            Ok(())
        });
    }

    fn install_root(&self, root: Pfn, asid: Asid) {
        self.note(Operation::InstallRoot { root, asid }, |account, cpu| {
            account.install(&self.machine, cpu, root, asid);
            Ok(())
        });
        self.machine.install_root(root, asid);
    }

    fn zero(&self, run: PfnRange, tags: Tags) {
        self.uses(Operation::Zero { run, tags }, run);
        self.machine.zero(run, tags);
        self.wrote(run);
    }

    fn zero_tags(&self, frame: Pfn) {
        self.uses(Operation::ZeroTags { frame }, one(frame));
        self.machine.zero_tags(frame);
        self.wrote(one(frame));
    }

    fn copy_page(&self, from: Pfn, to: Pfn, tags: Tags) {
        self.note(Operation::Copy { from, to, tags }, |account, _| {
            account.use_contents(one(from))?;
            account.use_contents(one(to))
        });
        self.machine.copy_page(from, to, tags);
        self.wrote(one(to));
    }

    fn sum(&self, run: PfnRange, sums: &mut [u64]) {
        self.uses(Operation::Sum { run }, run);
        self.machine.sum(run, sums);
    }

    fn repeated_word(&self, frame: Pfn) -> Option<u64> {
        self.uses(Operation::RepeatedWord { frame }, one(frame));
        self.machine.repeated_word(frame)
    }

    fn fill(&self, frame: Pfn, word: u64) {
        self.uses(Operation::Fill { frame, word }, one(frame));
        self.machine.fill(frame, word);
        self.wrote(one(frame));
    }

    fn load_tags<'a>(&self, frame: Pfn, into: &'a mut MaybeUninit<TagWords<Self>>) -> &'a TagWords<Self> {
        self.uses(Operation::LoadTags { frame }, one(frame));
        self.machine.load_tags(frame, into)
    }

    fn store_tags(&self, frame: Pfn, tags: &TagWords<Self>) {
        self.uses(Operation::StoreTags { frame }, one(frame));
        self.machine.store_tags(frame, tags);
        self.wrote(one(frame));
    }

    fn window(&self, frame: Pfn) -> Window<'_> {
        self.uses(Operation::Window { frame }, one(frame));
        self.wrote(one(frame));
        self.machine.window(frame)
    }

    fn sync_code(&self, run: PfnRange) {
        self.note(Operation::SyncCode { run }, |_, _| Ok(()));
        self.machine.sync_code(run);
    }

    #[inline]
    fn features(&self) -> Features {
        self.machine.features()
    }

    #[inline]
    fn asid_bits(&self) -> u32 {
        self.machine.asid_bits()
    }

    #[inline]
    fn va_bits(&self) -> u32 {
        self.machine.va_bits()
    }

    #[inline]
    fn cpu(&self) -> usize {
        self.machine.cpu()
    }

    #[inline]
    fn now_ns(&self) -> u64 {
        self.machine.now_ns()
    }

    #[inline]
    fn relax(&self) {
        self.machine.relax();
    }

    #[inline]
    fn wait(&self, word: &AtomicU32, seen: u32) {
        self.machine.wait(word, seen);
    }

    #[inline]
    fn wake(&self, word: &AtomicU32) {
        self.machine.wake(word);
    }
}
