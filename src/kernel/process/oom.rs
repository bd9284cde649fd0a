//! Out of memory: who dies for whom, and who waits.
//!
//! A fault comes here when the library has searched all that could leave and freed nothing. It is tried once more while
//! no space comes or goes; if that finds nothing either, one program is chosen, told in the log and killed, and the
//! fault waits for its end and is tried again. It fails only if its own program is to be killed, or about to end.
//!
//! **Who.** The program with the most pages, in memory and in swap together, as its end gives back the most; of equals
//! the youngest, which has the least to lose. The first program only when there is nobody else: the machine ends with
//! it, so that its death spares nobody who would have died instead. Programs that have the same memory (vfork) are
//! one. A program that can be told that there is no memory, as its fork or mmap fails, is told, and nobody dies.
//!
//! **One at a time.** While somebody is about to end, chosen or not, or to give its memory up for another program's,
//! nobody is chosen; all wait. Who is chosen goes on from wherever it sleeps, as by any signal, and what it does in the
//! kernel ends: a search for memory is bounded, and what may take memory or wait for a device at each of a program's
//! pages looks from piece to piece whether it is to be killed ([`sched::kill_pending`]). Its end takes no memory.
//!
//! **For no longer than** [`PATIENCE_NS`]: whose end takes more is left aside, and another one is chosen. The time for
//! which swapoff keeps all memory from ending does not count ([`excuse`]). As each choice leaves one program fewer, and
//! the running one can always be chosen, every fault comes to an end.
//!
//! All choosing is under the lock of [`lock_spaces`], under which the memory of programs ends as well: who holds it
//! sees no half-ended one. It is not held while waiting.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ebbtide::space::{Fault, FaultError, Size};

use super::memory::lock_spaces;
use super::table::{FIRST, Home, Life, Name, Process, TABLE};
use super::{Cause, Fatal, Memory, MemoryRef, Signal};
use crate::kernel::console::alert;
use crate::kernel::page::PAGE;
use crate::kernel::sched::{self, Noted, TaskId};
use crate::kernel::{global, stack, time};

/// How long an end is waited for. The watchdog's limit is four times as much; the end of a program of 1 GiB takes a
/// tenth of a second under an emulator.
const PATIENCE_NS: u64 = 10_000_000_000;

/// The address of the memory whose end is waited for; 0 for none. Set under the lock, and reset by that end.
static AWAITED: AtomicUsize = AtomicUsize::new(0);

/// The value of the counter until when.
static UNTIL: AtomicU64 = AtomicU64::new(0);

/// Counts the ends of memory that somebody may have waited for.
static ENDS: AtomicU32 = AtomicU32::new(0);

/// What a fault finds that found no memory.
enum Outlook {
    /// It is resolved, or refused for another reason.
    Resolved(Result<(), FaultError>),
    /// Its own program is to be killed.
    OwnEnd,
    /// Memory will come free. The count of ends so far, and until when to wait for the next.
    SomeEnd(u32, u64),
}

/// Resolves a fault of the running program that found no memory. Called with nothing held that the end of another
/// program needs.
///
/// # Errors
/// As [`ebbtide::Space::handle_fault`]; [`FaultError::NoMemory`] when the process is to be killed, as it is on its way
/// to EL0, or lets its memory go already.
#[cold]
pub fn outlast(fault: Fault) -> Result<(), FaultError> {
    loop {
        match look(fault) {
            Outlook::Resolved(result) => return result,
            Outlook::OwnEnd => break,
            Outlook::SomeEnd(seen, until) => sched::wait_breakable(&ENDS, seen, Some(until)),
        }
        if sched::doomed() {
            break;
        }
        match super::space().handle_fault(global::mm(), fault) {
            Err(FaultError::NoMemory) => {}
            result => return result,
        }
    }
    global::mm().stats().oom_ends.bump();
    Err(FaultError::NoMemory)
}

fn look(fault: Fault) -> Outlook {
    let mm = global::mm();
    let _locked = lock_spaces();
    // Nobody waits for an end of their own.
    if sched::doomed() || is_ending(sched::current_memory()) {
        return Outlook::OwnEnd;
    }
    let seen = ENDS.load(Ordering::Acquire);
    if AWAITED.load(Ordering::Relaxed) == 0 || time::counter() >= UNTIL.load(Ordering::Relaxed) {
        // What others gave back since is seen here: who ends holds the lock.
        let result = super::space().handle_fault(mm, fault);
        if result != Err(FaultError::NoMemory) {
            mm.stats().oom_averted.bump();
            return Outlook::Resolved(result);
        }
        choose();
        if sched::doomed() {
            return Outlook::OwnEnd;
        }
    }
    mm.stats().oom_waits.bump();
    Outlook::SomeEnd(seen, UNTIL.load(Ordering::Relaxed))
}

/// A program that may be chosen.
struct Candidate {
    name: Name,
    pid: u32,
    memory: MemoryRef,
    size: Size,
    /// The greatest is chosen: who is not the first, the largest, who does not only borrow the memory, the youngest.
    rank: (bool, u64, bool, u64),
}

/// Chooses whose end is waited for, and kills it unless it is about to end. Under the lock.
fn choose() {
    let late = AWAITED.load(Ordering::Relaxed);
    let first = TABLE.lock().find(FIRST).map(|(first, _)| first);
    let first = first.and_then(running).map_or(core::ptr::null(), |(_, memory)| memory.as_ptr());
    let mut chosen: Option<Candidate> = None;
    for number in 0..stack::tasks() {
        let Some((process, memory)) = running(TaskId::new(number)) else { continue };
        if memory.as_ptr().addr() == late {
            memory.give_up();
        }
        if memory.is_given_up() {
            continue;
        }
        if is_ending(memory.as_ptr()) {
            return wait_for(&memory);
        }
        let size = memory.space().size(global::mm());
        let rank = (memory.as_ptr() != first, size.pages(), process.home == Home::Own, process.birth);
        if chosen.as_ref().is_none_or(|chosen| chosen.rank < rank) {
            chosen = Some(Candidate { name: process.name(), pid: process.pid, memory, size, rank });
        }
    }
    let fatal = |size| Fatal { signal: Signal::KILL, cause: Cause::Memory(size) };
    let Some(Candidate { name, pid, memory, size, .. }) = chosen else {
        if sched::doom(sched::current(), fatal(super::space().size(global::mm()))) == Noted::First {
            global::mm().stats().oom_kills.bump();
        }
        return;
    };
    wait_for(&memory);
    if sched::doom_all(memory.as_ptr(), fatal(size)) == Noted::Before {
        return;
    }
    global::mm().stats().oom_kills.bump();
    // The end of the first is the machine's, which says why itself.
    if pid != FIRST {
        alert!("{name} killed: {} ({})", Reason(size), 128 + Signal::KILL.number());
    }
}

/// A process that has not ended, and its memory. It is seen at one moment: its number may be another's at the next.
fn running(number: TaskId) -> Option<(Process, MemoryRef)> {
    let table = TABLE.lock();
    let (_, process) = table.all().find(|&(known, process)| known == number && process.life == Life::Running)?;
    let memory = table.threads_of(number).find_map(|(task, _)| sched::memory_of(task))?;
    Some((*process, memory))
}

/// Whether each task that has this memory is to be killed, or lets it go by itself: at exit or execve. Under the lock.
fn is_ending(memory: *const Memory) -> bool {
    let table = TABLE.lock();
    sched::all_doomed(memory, |task| table.has_taken_over(task))
}

fn wait_for(memory: &MemoryRef) {
    UNTIL.store(time::counter() + time::ticks_of(PATIENCE_NS), Ordering::Relaxed);
    AWAITED.store(memory.as_ptr().addr(), Ordering::Relaxed);
}

/// So many ticks of the counter nobody's memory could end. Under the lock.
pub fn excuse(ticks: u64) {
    UNTIL.fetch_add(ticks, Ordering::Relaxed);
}

/// A program's memory has ended.
pub fn memory_ended(memory: *const Memory) {
    if AWAITED.load(Ordering::Relaxed) == 0 {
        return;
    }
    // Whoever's end it was: there is memory now.
    let _ = AWAITED.compare_exchange(memory.addr(), 0, Ordering::Relaxed, Ordering::Relaxed);
    ENDS.fetch_add(1, Ordering::Release);
    sched::wake(&ENDS);
}

/// Why a program was chosen, as the log tells it.
pub struct Reason(pub Size);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |pages: u64| pages * (PAGE >> 10);
        let Size { resident, swapped } = self.0;
        write!(f, "no memory and no swap left; it had {} KiB in memory, {} KiB in swap", kib(resident), kib(swapped))
    }
}
