//! The end of tasks: what is to kill one, and what is left of it.

use core::sync::atomic::Ordering;

use super::{Ends, Kind, Rank, Scheduler, State, Task, TaskId, lock, switch, with, work, yield_now};
use crate::kernel::process::{Fatal, Memory};
use crate::kernel::{interrupt, percpu, watchdog};

/// Whether a cause is what kills.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Noted {
    /// There was none before.
    First,
    /// There was one, or nobody to kill.
    Before,
}

/// Notes what is to kill a task. The first cause counts.
pub fn doom(id: TaskId, cause: Fatal) -> Noted {
    with(|scheduler| {
        let task = &mut scheduler.tasks[id.0];
        let Kind::Program { fatal, .. } = &mut task.kind else { return Noted::Before };
        let noted = if fatal.is_none() { Noted::First } else { Noted::Before };
        fatal.get_or_insert(cause);
        match task.state {
            State::Waiting(_, Ends::Killing | Ends::KillingOrTime(_)) => scheduler.make_ready(id),
            State::Running => {
                let cpu = task.cpu;
                percpu::of(cpu).work.fetch_or(work::KILL, Ordering::Relaxed);
                if cpu != percpu::number() {
                    interrupt::wake(cpu);
                }
            }
            _ => {}
        }
        noted
    })
}

impl Scheduler {
    pub(super) fn fatal(&mut self) -> Option<Fatal> {
        match self.current_program() {
            Some((_, Kind::Program { fatal, .. })) => *fatal,
            _ => None,
        }
    }
}

/// What is to kill the running task.
pub fn fatal() -> Option<Fatal> {
    with(Scheduler::fatal)
}

/// Whether the running task is to be killed.
pub fn doomed() -> bool {
    fatal().is_some()
}

/// The same, at the price of a load or two, for loops over a program's memory: they end when it is true. A sign of life
/// as well: such a call may take longer than the watchdog waits.
#[inline]
pub fn kill_pending() -> bool {
    watchdog::beat();
    percpu::here().work.load(Ordering::Relaxed) & work::KILL != 0
}

/// Notes what is to kill every task that has this memory. Whether it is the first cause for any of them.
pub fn doom_all(memory: *const Memory, cause: Fatal) -> Noted {
    let tasks = with(|scheduler| scheduler.tasks.len());
    let mut noted = Noted::Before;
    for number in 0..tasks {
        let has_it = with(|scheduler| scheduler.tasks[number].memory() == memory);
        if has_it && doom(TaskId(number), cause) == Noted::First {
            noted = Noted::First;
        }
    }
    noted
}

/// Whether every task that has this memory is to be killed, or ends anyway, as `ends` says, which calls nothing of the
/// scheduler.
pub fn all_doomed(memory: *const Memory, ends: impl Fn(TaskId) -> bool) -> bool {
    with(|scheduler| {
        let mut having = scheduler.tasks.iter().enumerate().filter(|(_, task)| task.memory() == memory);
        having.all(|(number, task)| matches!(task.kind, Kind::Program { fatal: Some(_), .. }) || ends(TaskId(number)))
    })
}

/// What becomes of the record of a task that ends.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Record {
    /// It stays until [`release`].
    Kept,
    /// It is free at once.
    Freed,
}

/// Ends the running task, whose memory is gone already.
pub fn die(record: Record) -> ! {
    lock();
    switch(if record == Record::Kept { State::Dead } else { State::Absent }, Rank::Last);
    unreachable!("a dead task runs")
}

/// Frees the record and the stack of a task that is dead, or about to be: it has nothing more to do than [`die`].
pub fn release(id: TaskId) {
    loop {
        let released = with(|scheduler| {
            let task = &mut scheduler.tasks[id.0];
            let dead = task.state == State::Dead;
            if dead {
                *task = Task::ABSENT;
            }
            dead
        });
        if released {
            return;
        }
        watchdog::relax();
    }
}

/// Waits until every other task waits for another one or has ended: at the machine's end, when what still runs, or
/// has a device run, comes to rest.
pub fn wait_for_rest() {
    loop {
        let rest = with(|scheduler| {
            let current = scheduler.here().current;
            let stirs = |task: &Task| {
                matches!(task.state, State::New | State::Running | State::Ready | State::Waiting(_, Ends::Time(_)))
            };
            let mut others = scheduler.tasks.iter().enumerate().filter(|&(number, _)| current != Some(TaskId(number)));
            !others.any(|(_, task)| stirs(task))
        });
        if rest {
            return;
        }
        yield_now();
        watchdog::relax();
    }
}
