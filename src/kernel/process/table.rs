//! The table of processes and their threads: who there is, whose child, and how those ended that nobody has asked about
//! yet.
//!
//! A thread has the number of its task. A process has that of its leader, the thread that it began with: its number is
//! the process' for as long as that is in the table, though the leader may have ended before the others. The table has
//! one spinning lock, inside which the scheduler's may be taken, and which is never held across a sleep. Who waits for
//! a change of a process waits on the word of [`EVENTS`] with that process' number, which the change counts up.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayString;
use ebbtide::sync::Spin;

use super::WaitStatus;
use super::files::Files;
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
    pub home: Home,
    pub files: Files,
    /// Threads that have not ended.
    pub threads: u32,
    /// How many came before it.
    pub birth: u64,
    /// The one that ends the process, or puts another program in its place: the others are to end before.
    pub taker: Option<TaskId>,
}

/// A thread of a process.
#[derive(Copy, Clone)]
pub struct Thread {
    pub id: u32,
    /// The number of its process.
    pub process: TaskId,
    pub beginning: Beginning,
    /// Where a 0 is stored at its end, and a waiter woken, if another thread has the same memory; 0 for nowhere:
    /// CLONE_CHILD_CLEARTID.
    pub clear_id: u64,
}

impl Process {
    /// One with a single thread and memory of its own.
    pub const fn new(pid: u32, parent: u32, program: Program, files: Files) -> Self {
        let (life, home) = (Life::Running, Home::Own);
        Self { pid, parent, life, program, home, files, threads: 1, birth: 0, taker: None }
    }

    /// What the log calls it.
    pub fn name(&self) -> Name {
        Name { text: self.program.name, pid: self.pid }
    }
}

/// See the module's head.
pub struct Table {
    processes: [Option<Process>; MOST_TASKS],
    threads: [Option<Thread>; MOST_TASKS],
    last_pid: u32,
    births: u64,
}

/// The processes and threads.
pub static TABLE: Spin<Table> =
    Spin::new(Table { processes: [None; MOST_TASKS], threads: [None; MOST_TASKS], last_pid: 0, births: 0 });

/// A word for each process: see the module's head.
static EVENTS: [AtomicU32; MOST_TASKS] = [const { AtomicU32::new(0) }; MOST_TASKS];

/// The word on which those wait who wait for a change of a process.
pub fn events(process: TaskId) -> &'static AtomicU32 {
    &EVENTS[process.number()]
}

impl Table {
    /// Every process, by its number.
    pub fn all(&self) -> impl Iterator<Item = (TaskId, &Process)> {
        let places = self.processes.iter().enumerate();
        places.filter_map(|(number, place)| Some((TaskId::new(number), place.as_ref()?)))
    }

    /// The threads of a process that have not ended.
    pub fn threads_of(&self, process: TaskId) -> impl Iterator<Item = (TaskId, &Thread)> {
        let places = self.threads.iter().enumerate();
        let threads = places.filter_map(|(number, place)| Some((TaskId::new(number), place.as_ref()?)));
        threads.filter(move |(_, thread)| thread.process == process)
    }

    /// The running thread.
    pub fn thread(&mut self) -> &mut Thread {
        match &mut self.threads[sched::current().number()] {
            Some(thread) => thread,
            None => unreachable!("a kernel task is no thread of a process"),
        }
    }

    /// The number of the running process.
    pub fn here(&mut self) -> TaskId {
        self.thread().process
    }

    /// The running process.
    pub fn current(&mut self) -> &mut Process {
        let here = self.here();
        self.process(here)
    }

    /// The process with a number.
    pub fn process(&mut self, number: TaskId) -> &mut Process {
        match &mut self.processes[number.number()] {
            Some(process) => process,
            None => unreachable!("a thread has a process"),
        }
    }

    /// Whether it is this thread that ends its process, or puts another program in its place.
    pub fn has_taken_over(&self, thread: TaskId) -> bool {
        let process = self.threads[thread.number()].and_then(|known| self.processes[known.process.number()]);
        process.is_some_and(|process| process.taker == Some(thread))
    }

    /// The process with an identifier.
    pub fn find(&self, pid: u32) -> Option<(TaskId, &Process)> {
        self.all().find(|(_, process)| process.pid == pid)
    }

    /// An identifier that nobody has.
    pub fn new_pid(&mut self) -> u32 {
        loop {
            self.last_pid = if self.last_pid < LAST { self.last_pid + 1 } else { FIRST + 1 };
            let last = self.last_pid;
            if self.find(last).is_none() && !self.threads.iter().flatten().any(|thread| thread.id == last) {
                return last;
            }
        }
    }

    /// Adds a process with its first thread.
    pub fn put(&mut self, task: TaskId, process: Process, beginning: Beginning, clear_id: u64) {
        self.processes[task.number()] = Some(Process { birth: self.births, ..process });
        self.births += 1;
        self.threads[task.number()] = Some(Thread { id: process.pid, process: task, beginning, clear_id });
    }

    /// Adds a thread to its process.
    pub fn put_thread(&mut self, task: TaskId, thread: Thread) {
        self.process(thread.process).threads += 1;
        self.threads[task.number()] = Some(thread);
    }

    /// Takes the running thread out, which ends; returns how many its process still has.
    pub fn take_thread(&mut self) -> u32 {
        let here = self.here();
        self.threads[sched::current().number()] = None;
        let process = self.process(here);
        process.threads -= 1;
        process.threads
    }

    /// Makes the running thread, the only one left of its process, its leader; returns the number of the one before, if
    /// that was another.
    pub fn lead(&mut self) -> Option<TaskId> {
        let me = sched::current();
        let before = self.here();
        if before == me {
            return None;
        }
        self.processes[me.number()] = self.processes[before.number()].take();
        let pid = self.process(me).pid;
        let thread = self.thread();
        thread.id = pid;
        thread.process = me;
        Some(before)
    }

    /// Forgets a process that has ended; its leader's number is free then.
    pub fn forget(&mut self, process: TaskId) {
        self.processes[process.number()] = None;
        sched::release(process);
    }

    /// Gives the children of a process to the first.
    pub fn orphan_children(&mut self, of: u32) {
        for child in self.processes.iter_mut().flatten().filter(|child| child.parent == of) {
            child.parent = FIRST;
        }
    }

    /// Tells those who wait for a change of a process that there is one.
    pub fn tell(&self, pid: u32) {
        if let Some((process, _)) = self.find(pid) {
            let events = events(process);
            events.fetch_add(1, Ordering::Release);
            sched::wake(events);
        }
    }
}
