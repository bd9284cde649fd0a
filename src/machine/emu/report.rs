//! What the emulator says when a law is broken: which law, which addresses, what led to it, and the seed to replay.

use core::fmt;
use std::string::String;
use std::vec::Vec;

use crate::addr::{Pfn, PfnRange};
use crate::machine::{Asid, Cached, EntryAt, Reach, Scope, Tags};

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

/// One operation, as the log keeps it.
#[derive(Copy, Clone, Debug)]
pub(super) enum Op {
    Store { at: EntryAt, old: u64, new: u64 },
    Exchange { at: EntryAt, old: u64, new: u64 },
    Hardware { at: EntryAt, old: u64, new: u64 },
    FenceTables,
    FenceContents,
    FenceInvalidations,
    Invalidate { asid: Asid, scope: Scope, cached: Cached, reach: Reach },
    InstallRoot { root: Pfn, asid: Asid },
    Zero { run: PfnRange, tags: Tags },
    ZeroTags { frame: Pfn },
    Copy { from: Pfn, to: Pfn, tags: Tags },
    RepeatedWord { frame: Pfn },
    Fill { frame: Pfn, word: u64 },
    LoadTags { frame: Pfn },
    StoreTags { frame: Pfn },
    SyncCode { run: PfnRange },
    Export { frame: Pfn },
    Import { frame: Pfn },
    Freed { run: PfnRange },
    User { pointer: u64, access: Access, fault: Option<FaultKind> },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |f: &mut fmt::Formatter<'_>, what, at: EntryAt, old, new| {
            write!(f, "{what} {:?}[{:#x}]: {old:#x} -> {new:#x}", at.table, at.index)
        };
        match *self {
            Self::Store { at, old, new } => entry(f, "store", at, old, new),
            Self::Exchange { at, old, new } => entry(f, "exchange", at, old, new),
            Self::Hardware { at, old, new } => entry(f, "hardware update", at, old, new),
            Self::Invalidate { asid, scope, cached, reach } => {
                write!(f, "invalidate asid {} {scope:?} {cached:?} {reach:?}", asid.number())
            }
            Self::InstallRoot { root, asid } => write!(f, "install root {root:?} asid {}", asid.number()),
            Self::User { pointer, access, fault: None } => write!(f, "program: {access:x?} at {pointer:#x}"),
            Self::User { pointer, access, fault: Some(kind) } => {
                write!(f, "program: {access:x?} at {pointer:#x} faults: {kind:?}")
            }
            Self::FenceTables => write!(f, "fence tables"),
            Self::FenceContents => write!(f, "fence contents"),
            Self::FenceInvalidations => write!(f, "fence invalidations"),
            Self::Zero { run, tags } => write!(f, "zero {run:?}, tags {tags:?}"),
            Self::ZeroTags { frame } => write!(f, "zero tags of {frame:?}"),
            Self::Copy { from, to, tags } => write!(f, "copy {from:?} to {to:?}, tags {tags:?}"),
            Self::RepeatedWord { frame } => write!(f, "repeated word of {frame:?}"),
            Self::Fill { frame, word } => write!(f, "fill {frame:?} with {word:#x}"),
            Self::LoadTags { frame } => write!(f, "load tags of {frame:?}"),
            Self::StoreTags { frame } => write!(f, "store tags of {frame:?}"),
            Self::SyncCode { run } => write!(f, "sync code {run:?}"),
            Self::Export { frame } => write!(f, "device reads {frame:?}"),
            Self::Import { frame } => write!(f, "device writes {frame:?}"),
            Self::Freed { run } => write!(f, "free {run:?}"),
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
    pub(super) fn push(&mut self, cpu: usize, op: Op) {
        self.ring[self.next] = Some((cpu as u8, op));
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
