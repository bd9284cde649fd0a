//! New processes, copies of the running one, and new threads of it.

use core::sync::atomic::Ordering;

use super::table::{Beginning, FIRST, Home, Life, Process, TABLE, Thread, events};
use super::{MemoryRef, lock_spaces, share};
use crate::kernel::el0::{UserState, WholeFrame};
use crate::kernel::sched::TaskId;
use crate::kernel::syscall::Errno;
use crate::kernel::{sched, uaccess};

/// What becomes of the memory, and who waits.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Kind {
    /// The child has a copy.
    Fork,
    /// The child has a copy, and the parent waits until it runs another program or ends.
    ForkAndWait,
    /// The child has the parent's memory, and the parent waits likewise.
    Vfork,
    /// The child is a thread of the same process.
    Thread,
}

/// A child that is wanted.
pub struct Request {
    /// See there.
    pub kind: Kind,
    /// Its stack pointer, if it is not to be the parent's.
    pub stack: Option<u64>,
    /// Its thread pointer, if it is not to be the parent's.
    pub thread_pointer: Option<u64>,
    /// Where its identifier is stored in the parent's memory.
    pub id_in_parent: Option<u64>,
    /// Where its identifier is stored in its own memory.
    pub id_in_child: Option<u64>,
    /// See [`Thread::clear_id`].
    pub clear_id: Option<u64>,
}

/// Makes a child of the running process, or a thread; returns its identifier.
///
/// # Errors
/// EAGAIN when there are too many tasks, ENOMEM.
pub fn clone(request: &Request, frame: &WholeFrame) -> Result<u32, Errno> {
    if !sched::has_room() {
        return Err(Errno::EAGAIN);
    }
    let mut user: UserState = sched::with_user(|user| {
        user.save();
        *user
    });
    if let Some(stack) = request.stack {
        user.set_stack(stack);
    }
    if let Some(pointer) = request.thread_pointer {
        user.set_thread_pointer(pointer);
    }
    let mut frame = *frame;
    frame.frame.x[0] = 0;
    let (id, task) = {
        let _locked = lock_spaces();
        let memory: MemoryRef = match request.kind {
            Kind::Fork | Kind::ForkAndWait => super::memory().fork().ok_or(Errno::ENOMEM)?,
            Kind::Vfork | Kind::Thread => share(),
        };
        add(request, memory, user, frame)?
    };
    if let Some(at) = request.id_in_parent {
        // As on Linux a bad address is no error.
        let _ = uaccess::write(at, &id.to_le_bytes());
    }
    sched::begin(task);
    if matches!(request.kind, Kind::ForkAndWait | Kind::Vfork) {
        wait_for_home(id);
    }
    Ok(id)
}

/// Enters a child in the tables: its identifier and its task.
fn add(request: &Request, memory: MemoryRef, user: UserState, frame: WholeFrame) -> Result<(u32, TaskId), Errno> {
    // What is not used is let go after the table is unlocked.
    let refused;
    let mut table = TABLE.lock();
    let here = table.here();
    let parent = *table.current();
    if request.kind == Kind::Thread && parent.taker.is_some() {
        // The process ends, and this thread with it.
        refused = memory;
    } else {
        // The copy may have slept, and the room have gone meanwhile.
        match sched::add(memory, user, frame) {
            Ok(task) => {
                let id = table.new_pid();
                let beginning = request.id_in_child.map_or(Beginning::Plain, Beginning::StoreId);
                let clear_id = request.clear_id.unwrap_or(0);
                if request.kind == Kind::Thread {
                    table.put_thread(task, Thread { id, process: here, beginning, clear_id });
                } else {
                    let home = if request.kind == Kind::Fork { Home::Own } else { Home::Borrowed };
                    let process = Process { home, ..Process::new(id, parent.pid, parent.program, parent.files) };
                    table.put(task, process, beginning, clear_id);
                }
                return Ok((id, task));
            }
            Err(memory) => refused = memory,
        }
    }
    drop(table);
    drop(refused);
    Err(Errno::EAGAIN)
}

/// Sleeps until a child has other memory, or none, or until the running process is to be killed.
fn wait_for_home(child: u32) {
    let events = events(TABLE.lock().here());
    loop {
        let seen = events.load(Ordering::Acquire);
        let uses_it = |child: &Process| child.home == Home::Borrowed && child.life == Life::Running;
        let away = !TABLE.lock().find(child).is_some_and(|(_, child)| uses_it(child));
        if away || sched::doomed() {
            return;
        }
        sched::wait_breakable(events, seen, None);
    }
}

/// What a new thread does before its first instruction at EL0.
pub fn begin(frame: &mut WholeFrame) {
    let (id, beginning) = {
        let mut table = TABLE.lock();
        let thread = table.thread();
        (thread.id, core::mem::replace(&mut thread.beginning, Beginning::Plain))
    };
    match beginning {
        Beginning::Plain => {}
        Beginning::StoreId(at) => {
            // As on Linux a bad address is no error.
            let _ = uaccess::write(at, &id.to_le_bytes());
        }
        Beginning::Load => {
            debug_assert_eq!(id, FIRST);
            super::begin_first(frame);
        }
    }
}
