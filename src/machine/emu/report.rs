//! What the emulator says when a law is broken: which law, which addresses, what led to it, and the seed to replay.

use core::fmt;
use std::string::String;
use std::vec::Vec;

use crate::addr::{Pfn, PfnRange};
use crate::machine::EntryAt;
use crate::machine::recorder::Operation;

use super::user::{Access, FaultKind};

/// What a kernel must never do. Each is checked against what a machine *may* do, not against what the seed made it do.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Law {
    /// An entry became valid while TLBs may still hold another output address, size or memory type for its page.
    BreakBeforeMake,
    /// A plain store over a valid entry: a hardware update of AF or AP\[2\] between is lost.
    LiveEntryStored,
    /// The entries of a contiguous group differ in more than AF and hardware-managed AP\[2\].
    GroupEqual,
    /// A page was read for write-out or copy while a program may write to it.
    ReadWhileWritable,
    /// A page's contents or tags were written by the kernel while a program may reach it.
    WrittenWhileMapped,
    /// A frame was used for records or tables, or freed, while a program may reach it.
    FreedWhileMapped,
    /// A table was written, reused or freed while a walker may still read it.
    TableAfterDetach,
    /// An entry became valid before the contents it shows were ordered.
    ContentsBeforeEntry,
    /// An entry shows a frame whose data nobody wrote.
    DataUnset,
    /// A page's tags were shown or read before anybody wrote them.
    TagsUnset,
    /// Instructions were fetched from a frame written since its last code synchronisation.
    FetchUnsynced,
    /// A descriptor names memory that the machine does not have.
    WildEntry,
    /// An address space identifier was given to a second root while TLBs may hold the first one's entries.
    AsidReused,
    /// A program faults at one address again and again although the handler says it is resolved.
    Livelock,
}

/// One broken law.
pub struct Violation {
    /// Which.
    pub law: Law,
    /// Addresses and values.
    pub what: String,
    /// The operations that came before, oldest first.
    pub before: Vec<String>,
    /// The seed of the machine that found it.
    pub seed: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "law {:?} broken: {}", self.law, self.what)?;
        writeln!(f, "the last {} operations, oldest first:", self.before.len())?;
        for op in &self.before {
            writeln!(f, "    {op}")?;
        }
        write!(f, "replay with EmuConfig {{ seed: {:#x}, .. }}", self.seed)
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the log keeps: what the machine was asked for, and what happens without.
#[derive(Copy, Clone, Debug)]
pub(super) enum Op {
    Asked(Operation),
    Hardware { at: EntryAt, old: u64, new: u64 },
    Export { frame: Pfn },
    Import { frame: Pfn },
    Freed { run: PfnRange },
    User { pointer: u64, access: Access, fault: Option<FaultKind> },
}

impl From<Operation> for Op {
    fn from(operation: Operation) -> Self {
        Self::Asked(operation)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Asked(operation) => fmt::Display::fmt(&operation, f),
            Self::Hardware { at, old, new } => {
                write!(f, "hardware update {:?}[{:#x}]: {old:#x} -> {new:#x}", at.table, at.index)
            }
            Self::Export { frame } => write!(f, "device reads {frame:?}"),
            Self::Import { frame } => write!(f, "device writes {frame:?}"),
            Self::Freed { run } => write!(f, "free {run:?}"),
            Self::User { pointer, access, fault: None } => write!(f, "program: {access:x?} at {pointer:#x}"),
            Self::User { pointer, access, fault: Some(kind) } => {
                write!(f, "program: {access:x?} at {pointer:#x} faults: {kind:?}")
            }
        }
    }
}

/// Operations that a report shows.
const SHOWN: usize = 20;

/// What to do when a law is broken.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum Mode {
    /// Panic with the report: the test fails at once.
    #[default]
    Panic,
    /// Keep the report for [`take_violations`](super::Emu::take_violations): for tests of naive code.
    Record,
}

/// The last operations and the reports not yet taken.
pub(super) struct Log {
    ring: [Option<(u8, Op)>; SHOWN],
    next: usize,
    seed: u64,
    pub(super) mode: Mode,
    pub(super) violations: Vec<Violation>,
}

impl Log {
    pub(super) fn new(seed: u64) -> Self {
        Self { ring: [None; SHOWN], next: 0, seed, mode: Mode::Panic, violations: Vec::new() }
    }

    #[inline]
    pub(super) fn push(&mut self, cpu: usize, op: impl Into<Op>) {
        self.ring[self.next] = Some((cpu as u8, op.into()));
        self.next = (self.next + 1) % SHOWN;
    }

    pub(super) fn last(&self) -> Vec<String> {
        let (newer, older) = self.ring.split_at(self.next);
        older.iter().chain(newer).flatten().map(|(cpu, op)| std::format!("cpu {cpu}: {op}")).collect()
    }

    #[cold]
    pub(super) fn violate(&mut self, law: Law, what: String) {
        let before = self.last();
        self.violations.push(Violation { law, what, before, seed: self.seed });
    }
}
