//! What a recorder says: which rule was broken, by what, and what came before.

use core::fmt;

use arrayvec::ArrayVec;

use crate::addr::{Pfn, PfnRange};
use crate::machine::{Asid, Cached, EntryAt, Reach, Scope, Tags};

/// What a removal still waits for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Lacking {
    /// A fence of the tables, by the CPU that removed.
    TableFence,
    /// An invalidation that includes it, after that fence.
    Invalidation,
    /// The same, on every CPU: there was one on the calling CPU.
    Broadcast,
    /// The fence after the invalidation.
    Completion,
}

/// A rule of order. [`Recorder`](super::Recorder) has them in prose.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Rule {
    /// An entry became valid before what this CPU wrote to its frame was fenced.
    ContentsBeforeEntry(Pfn),
    /// A frame's contents or tags were used while TLBs may hold a translation to it that was taken away.
    FlushBeforeContents(Pfn, Lacking),
    /// An entry shows a frame while TLBs may hold another translation to it that was taken away.
    FlushBeforeReuse(Pfn, Lacking),
    /// An entry shows another frame, or is in another group, while TLBs may hold what it showed before.
    BreakBeforeMake(Lacking),
    /// A plain store over a valid entry.
    LiveEntryStored,
}

/// An operation of the machine. Reads of entries, and what says nothing of order, are not kept.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[allow(missing_docs)] // the names are those of the machine's functions and their arguments
pub enum Operation {
    Store { at: EntryAt, old: u64, new: u64 },
    Exchange { at: EntryAt, old: u64, new: u64 },
    FenceTables,
    FenceContents,
    FenceInvalidations,
    Invalidate { asid: Asid, scope: Scope, cached: Cached, reach: Reach },
    InstallRoot { root: Pfn, asid: Asid },
    Zero { run: PfnRange, tags: Tags },
    ZeroTags { frame: Pfn },
    Copy { from: Pfn, to: Pfn, tags: Tags },
    Sum { run: PfnRange },
    RepeatedWord { frame: Pfn },
    Fill { frame: Pfn, word: u64 },
    LoadTags { frame: Pfn },
    StoreTags { frame: Pfn },
    Window { frame: Pfn },
    SyncCode { run: PfnRange },
}

/// An operation, and who did it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Step {
    /// The CPU.
    pub cpu: usize,
    /// What it did.
    pub operation: Operation,
}

/// Operations that a violation carries.
pub(super) const SHOWN: usize = 16;

/// A broken rule.
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// Who broke it.
    pub cpu: usize,
    /// By what.
    pub operation: Operation,
    /// The last operations, oldest first, ending with this one unless it is a window.
    pub last: ArrayVec<Step, SHOWN>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |f: &mut fmt::Formatter<'_>, what, at: EntryAt, old, new| {
            write!(f, "{what} {:?}[{:#x}]: {old:#x} -> {new:#x}", at.table, at.index)
        };
        match *self {
            Self::Store { at, old, new } => entry(f, "store", at, old, new),
            Self::Exchange { at, old, new } => entry(f, "exchange", at, old, new),
            Self::FenceTables => f.write_str("fence tables"),
            Self::FenceContents => f.write_str("fence contents"),
            Self::FenceInvalidations => f.write_str("fence invalidations"),
            Self::Invalidate { asid, scope, cached, reach } => {
                write!(f, "invalidate asid {} {scope:?} {cached:?} {reach:?}", asid.number())
            }
            Self::InstallRoot { root, asid } => write!(f, "install root {root:?} asid {}", asid.number()),
            Self::Zero { run, tags } => write!(f, "zero {run:?}, tags {tags:?}"),
            Self::ZeroTags { frame } => write!(f, "zero tags of {frame:?}"),
            Self::Copy { from, to, tags } => write!(f, "copy {from:?} to {to:?}, tags {tags:?}"),
            Self::Sum { run } => write!(f, "sum of {run:?}"),
            Self::RepeatedWord { frame } => write!(f, "repeated word of {frame:?}"),
            Self::Fill { frame, word } => write!(f, "fill {frame:?} with {word:#x}"),
            Self::LoadTags { frame } => write!(f, "load tags of {frame:?}"),
            Self::StoreTags { frame } => write!(f, "store tags of {frame:?}"),
            Self::Window { frame } => write!(f, "window of {frame:?}"),
            Self::SyncCode { run } => write!(f, "sync code {run:?}"),
        }
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TableFence => "its removal was not fenced before an invalidation",
            Self::Invalidation => "no invalidation after its fence included it",
            Self::Broadcast => "only one CPU was invalidated",
            Self::Completion => "its invalidation has not been completed by a fence",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ContentsBeforeEntry(frame) => {
                write!(f, "{frame:?} is shown before what was written to it was fenced")
            }
            Self::FlushBeforeContents(frame, lacking) => {
                write!(f, "{frame:?} is used while TLBs may hold a translation to it: {lacking}")
            }
            Self::FlushBeforeReuse(frame, lacking) => {
                write!(f, "{frame:?} is shown while TLBs may hold another translation to it: {lacking}")
            }
            Self::BreakBeforeMake(lacking) => {
                write!(f, "an entry is made while TLBs may hold what it was: {lacking}")
            }
            Self::LiveEntryStored => f.write_str("a plain store over a valid entry"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order broken on CPU {}: {}", self.cpu, self.rule)?;
        for Step { cpu, operation } in &self.last {
            write!(f, "\n  CPU {cpu}: {operation}")?;
        }
        Ok(())
    }
}
