//! Signals: without handlers, and without stopping. What is left of them is who dies of what.

use ebbtide::space::Size;

use super::table::{FIRST, Life, Process, TABLE};
use crate::kernel::sched::{self, TaskId};
use crate::kernel::syscall::Errno;

/// A signal that ends a process.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Signal(u8);

impl Signal {
    /// Undefined or trapped instruction.
    pub const ILL: Self = Self(4);
    /// Breakpoint.
    pub const TRAP: Self = Self(5);
    /// Misaligned access, or a page that could not be read back.
    pub const BUS: Self = Self(7);
    /// Floating-point exception.
    pub const FPE: Self = Self(8);
    /// The unconditional one; also that of the out-of-memory killer.
    pub const KILL: Self = Self(9);
    /// Access to what is not mapped, or not so, or with another tag.
    pub const SEGV: Self = Self(11);

    /// Linux's number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// Why a process is to be killed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Cause {
    /// Somebody sent the signal.
    Sent,
    /// There was no memory, and of all programs it had the most: so much.
    Memory(Size),
    /// Its memory is at its cap, and nothing of it can leave.
    AtCap,
    /// It has lost its program to one that could not be loaded, which the log has told.
    NoProgram,
    /// Another thread ends the process, or puts another program in its place.
    Taken,
}

/// A signal that kills a process, and why.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Fatal {
    /// The signal.
    pub signal: Signal,
    /// Why.
    pub cause: Cause,
}

/// How a process ended.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum WaitStatus {
    /// By itself.
    Exited(u8),
    /// By a signal.
    Killed(Signal),
}

impl WaitStatus {
    /// What wait4 stores.
    pub const fn word(self) -> u32 {
        match self {
            Self::Exited(code) => (code as u32) << 8,
            Self::Killed(signal) => signal.0 as u32,
        }
    }

    /// What a shell makes of it, and the machine's own exit status.
    pub const fn of_shell(self) -> i32 {
        match self {
            Self::Exited(code) => code as i32,
            Self::Killed(signal) => 128 + signal.0 as i32,
        }
    }
}

/// What a signal does to a process that has no handler: all of them here.
#[derive(Copy, Clone)]
enum Effect {
    /// Nothing: signal 0, which only asks, and those that are ignored unless handled.
    None,
    /// It ends.
    Ends(Signal),
}

impl Effect {
    /// The effect of a signal by its number.
    ///
    /// # Errors
    /// EINVAL when there is no such signal, or it would stop the process, which nothing here can.
    fn of(number: u32) -> Result<Self, Errno> {
        match number {
            // None; CHLD, CONT, URG, WINCH.
            0 | 17 | 18 | 23 | 28 => Ok(Self::None),
            // STOP, TSTP, TTIN, TTOU.
            19..=22 => Err(Errno::EINVAL),
            1..=64 => Ok(Self::Ends(Signal(number as u8))),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Whom a signal is for. All processes are one group, that of the first.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Target {
    /// One process.
    One(u32),
    /// The thread, second, of a process. What ends a thread ends its process.
    Thread(u32, u32),
    /// A thread, of whatever process.
    AnyThread(u32),
    /// All, the sender included.
    Group,
    /// All but the first and the sender.
    Others,
}

/// Sends a signal by its number. One that has ended can get it too, until its parent has asked for its status.
///
/// # Errors
/// ESRCH when there is nobody to get it; then those of [`Effect::of`].
pub fn send(target: Target, number: u32) -> Result<(), Errno> {
    let mut table = TABLE.lock();
    let me = table.here();
    let meant = |&(number, process): &(TaskId, &Process)| match target {
        Target::One(pid) => process.pid == pid,
        Target::Thread(pid, id) => {
            process.pid == pid && (id == pid || table.threads_of(number).any(|(_, thread)| thread.id == id))
        }
        Target::AnyThread(id) => process.pid == id || table.threads_of(number).any(|(_, thread)| thread.id == id),
        Target::Group => true,
        Target::Others => process.pid != FIRST && number != me,
    };
    if !table.all().any(|process| meant(&process)) {
        return Err(Errno::ESRCH);
    }
    if let Effect::Ends(signal) = Effect::of(number)? {
        for (process, _) in table.all().filter(meant).filter(|(_, process)| process.life == Life::Running) {
            for (task, _) in table.threads_of(process) {
                sched::doom(task, Fatal { signal, cause: Cause::Sent });
            }
        }
    }
    Ok(())
}
