//! The end of tasks: what is to kill one, and what is left of it.

use core::sync::atomic::Ordering;

use super::{Ends, Kind, Rank, Scheduler, State, Task, TaskId, lock, switch, with, work, yield_now};
use crate::kernel::process::Fatal;
use crate::kernel::{interrupt, percpu, watchdog};

/// Notes what is to kill a task. The first cause counts.
pub fn doom(id: TaskId, cause: Fatal) {
    with(|scheduler| {
        let task = &mut scheduler.tasks[id.0];
        let Kind::Program { fatal, .. } = &mut task.kind else { return };
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
    });
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

/// Waits until every other task waits or has ended: at the machine's end, when what still runs comes to rest.
pub fn wait_for_rest() {
    loop {
        let rest = with(|scheduler| {
            let current = scheduler.here().current;
            let stirs = |task: &Task| matches!(task.state, State::New | State::Running | State::Ready);
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
