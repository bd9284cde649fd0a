//! The table of processes: who there is, whose child, and how those ended that nobody has asked about yet.
//!
//! A process has the number of its task. The table has one spinning lock, which is never held across a sleep. Who
//! waits for a change of it waits on the word of [`EVENTS`] with its own number, which the change counts up.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayString;
use ebbtide::sync::Spin;

use super::WaitStatus;
use super::program::Program;
use crate::kernel::sched::{self, TaskId};
use crate::kernel::stack::MOST_TASKS;

/// The first program's process identifier: the foster parent of all orphans.
pub const FIRST: u32 = 1;

/// After this one identifiers start again: Linux's PID_MAX_DEFAULT.
const LAST: u32 = 0x7fff;

/// Whether a process still runs.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Life {
    Running,
    /// Only its status is left.
    Ended(WaitStatus),
}

/// What a process does before its first instruction at EL0.
#[derive(Copy, Clone)]
pub enum Beginning {
    /// Loads its program: the first process.
    Load,
    /// Stores its identifier: CLONE_CHILD_SETTID.
    StoreId(u64),
    /// Nothing.
    Plain,
}

/// Whose memory a process runs in.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Home {
    /// Its own.
    Own,
    /// Its parent's, who waits to have it back: vfork.
    Borrowed,
}

/// What the log calls a process.
#[derive(Copy, Clone)]
pub struct Name {
    pub text: ArrayString<64>,
    pid: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.pid == FIRST { Ok(()) } else { write!(f, " (pid {})", self.pid) }
    }
}

/// A process.
#[derive(Copy, Clone)]
pub struct Process {
    pub pid: u32,
    /// 0: the first has none.
    pub parent: u32,
    pub life: Life,
    pub program: Program,
    pub beginning: Beginning,
    pub home: Home,
    /// Where a 0 is stored at its end, if another process has the same memory; 0 for nowhere: CLONE_CHILD_CLEARTID.
    pub clear_id: u64,
}

impl Process {
    /// What the log calls it.
    pub fn name(&self) -> Name {
        Name { text: self.program.name, pid: self.pid }
    }
}

/// See the module's head.
pub struct Table {
    places: [Option<Process>; MOST_TASKS],
    last_pid: u32,
}

/// The processes.
pub static TABLE: Spin<Table> = Spin::new(Table { places: [None; MOST_TASKS], last_pid: 0 });

/// A word for each process: see the module's head.
static EVENTS: [AtomicU32; MOST_TASKS] = [const { AtomicU32::new(0) }; MOST_TASKS];

/// The word on which a process waits.
pub fn events(task: TaskId) -> &'static AtomicU32 {
    &EVENTS[task.number()]
}

impl Table {
    /// Every process, by the number of its task.
    pub fn all(&self) -> impl Iterator<Item = (TaskId, &Process)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(number, place)| Some((TaskId::new(number), place.as_ref()?)))
    }

    /// The running process.
    pub fn current(&mut self) -> &mut Process {
        match &mut self.places[sched::current().number()] {
            Some(process) => process,
            None => unreachable!("a kernel task is no process"),
        }
    }

    /// The process with an identifier.
    pub fn find(&self, pid: u32) -> Option<(TaskId, &Process)> {
        self.all().find(|(_, process)| process.pid == pid)
    }

    /// An identifier that nobody has.
    pub fn new_pid(&mut self) -> u32 {
        loop {
            self.last_pid = if self.last_pid < LAST { self.last_pid + 1 } else { FIRST + 1 };
            if self.find(self.last_pid).is_none() {
                return self.last_pid;
            }
        }
    }

    /// Adds a process to its task.
    pub fn put(&mut self, task: TaskId, process: Process) {
        self.places[task.number()] = Some(process);
    }

    /// Forgets a process that has ended; its task's number is free then.
    pub fn forget(&mut self, task: TaskId) {
        self.places[task.number()] = None;
        sched::release(task);
    }

    /// Gives the children of a process to the first.
    pub fn orphan_children(&mut self, of: u32) {
        for child in self.places.iter_mut().flatten().filter(|child| child.parent == of) {
            child.parent = FIRST;
        }
    }

    /// Tells a process that something has changed.
    pub fn tell(&self, pid: u32) {
        if let Some((task, _)) = self.find(pid) {
            let events = events(task);
            events.fetch_add(1, Ordering::Release);
            sched::wake(events);
        }
    }
}
