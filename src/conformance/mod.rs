//! The conformance suite: does a machine do what the library needs, and does the library live on it?
//!
//! [`run`] takes a porter's [`Machine`] and memory that nobody uses, runs named checks, and tells a callback the
//! outcome of each. There are two kinds:
//!
//! - **The seam** ([`seam`]): each function of [`Machine`] against its text, word by word and tag by tag.
//! - **Lives** ([`life`]): an [`Mm`] over the scratch frames, on a [`Recorder`] around the machine. Spaces come and go,
//!   pages are touched, protected, tagged, written to a swap device of RAM and read back, forgotten. Each life ends
//!   with all frames, slots and rooms given back and no rule of order broken. Lives are left out when the seam failed:
//!   the library takes it at its word.
//!
//! **Who touches the pages.** A program's access goes through page tables, which only the porter can do. A [`Program`]
//! does; [`Walker`] is one for a machine without programs yet. It reads the tables itself and uses the kernel's own
//! mapping of the frame, so that it sees no TLB.
//!
//! **What it cannot see.** Whether a barrier or an invalidation does anything, unless the [`Program`] goes through a
//! TLB. Which granule of the page a tag belongs to: only that each has its own. Anything that takes a second CPU.
//!
//! One CPU runs all of it. Nothing is allocated; nothing here panics because a check fails.

mod life;
mod program;
mod seam;

use core::fmt;
use core::ptr::NonNull;

use crate::Mm;
use crate::addr::PfnRange;
use crate::frame::FrameRecord;
use crate::machine::Machine;
use crate::machine::recorder::{Log, Operation, Recorder, Rule};
use crate::swap;

pub use program::{Program, Touch, Walker};

/// Fewest scratch frames. Of 4 KiB: 4 MiB.
pub const FEWEST_FRAMES: u64 = 1024;

/// What the checks may use.
pub struct Scratch {
    /// Frames, at least [`FEWEST_FRAMES`].
    pub frames: PfnRange,
    /// Memory for records, aligned to a page. Like the log it stays for as long as the machine does.
    pub memory: NonNull<u8>,
    /// Its length, at least [`memory_needed`].
    pub bytes: usize,
    /// What the recorder of the lives remembers; a static, mostly. Its hook may print: the check fails as well.
    pub log: &'static Log,
}

/// Frames that the swap device of the lives has: half of the scratch frames.
const fn slots_of(frames: u64) -> u32 {
    (frames / 2) as u32
}

/// Bytes of records for so many scratch frames.
pub const fn memory_needed<M: Machine>(frames: u64) -> usize {
    let slots = slots_of(frames);
    size_of::<Mm<Recorder<M>>>()
        + size_of::<life::Ram>()
        + frames as usize * size_of::<FrameRecord>()
        + swap::memory_needed::<M::Granule>(slots, slots)
}

/// Why a check failed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Failure {
    /// A value is wrong.
    Wrong {
        /// Which.
        what: &'static str,
        /// Where: a frame, an index, an address.
        at: u64,
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// The library refused what it should do, or did what it should refuse.
    Refused {
        /// What was asked.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// A rule of order was broken.
    Order {
        /// Which.
        rule: Rule,
        /// By what.
        operation: Operation,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong { what, at, expected, found } => {
                write!(f, "{what} at {at:#x} is {found:#x}, expected {expected:#x}")
            }
            Self::Refused { what, at } => write!(f, "{what} at {at:#x}"),
            Self::Order { rule, operation } => write!(f, "{rule}, by {operation}"),
        }
    }
}

/// What comes of a check.
pub type Outcome = Result<(), Failure>;

/// How many checks ended how.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Summary {
    /// Well.
    pub passed: u32,
    /// Not so.
    pub failed: u32,
}

impl Summary {
    fn count(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(_) => self.failed += 1,
        }
        outcome
    }
}

/// Runs every check, and calls `report` with the name and the outcome of each.
///
/// On return the calling CPU has a root installed that lies in the scratch frames and maps nothing: they may serve for
/// something else once another is installed.
///
/// # Safety
/// 1. The promises of [`Machine`], and of [`Board`](crate::machine::Board) below it, as far as they are known to hold:
///    a wrong machine fails a check only if it stays within the scratch memory.
/// 2. The frames and the memory of `scratch` are mapped and nobody else's, and the machine answers for the frames. The
///    memory lies outside of them.
/// 3. While the checks run, the calling CPU runs nothing else that uses user translations, and no space of another
///    [`Mm`] is alive.
pub unsafe fn run<M: Machine>(
    machine: M,
    scratch: Scratch,
    program: &dyn Program<M>,
    report: &mut dyn FnMut(&'static str, Outcome),
) -> Summary {
    let mut summary = Summary::default();
    let mut tell = |name, outcome| report(name, summary.count(outcome));
    let enough = scratch.frames.pages() >= FEWEST_FRAMES;
    let needed = memory_needed::<M>(scratch.frames.pages());
    if !enough || scratch.bytes < needed {
        let (expected, found) =
            if enough { (needed as u64, scratch.bytes as u64) } else { (FEWEST_FRAMES, scratch.frames.pages()) };
        tell("scratch memory", Err(Failure::Wrong { what: "its size", at: 0, expected, found }));
        return summary;
    }
    seam::check(&machine, scratch.frames, &mut tell);
    if summary.failed == 0 {
        let mut tell = |name, outcome| report(name, summary.count(outcome));
        // SAFETY: the caller's promises.
        unsafe { life::check(machine, scratch, program, &mut tell) };
    }
    summary
}

/// Demands that a value is what it should be.
fn expect(what: &'static str, at: u64, found: u64, expected: u64) -> Outcome {
    if found == expected { Ok(()) } else { Err(Failure::Wrong { what, at, expected, found }) }
}

/// Demands that something holds.
fn demand(holds: Option<()>, what: &'static str, at: u64) -> Outcome {
    holds.ok_or(Failure::Refused { what, at })
}
