//! New processes: copies of the running one.

use core::sync::atomic::Ordering;

use super::table::{Beginning, FIRST, Home, Life, Process, TABLE, events};
use super::{MemoryRef, lock_spaces, share};
use crate::kernel::el0::{UserState, WholeFrame};
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
    /// See [`Process::clear_id`].
    pub clear_id: Option<u64>,
}

/// Makes a child of the running process; returns its identifier.
///
/// # Errors
/// EAGAIN when there are too many processes, ENOMEM.
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
    let (pid, task) = {
        let _locked = lock_spaces();
        let memory: MemoryRef = match request.kind {
            Kind::Fork | Kind::ForkAndWait => super::memory().fork().ok_or(Errno::ENOMEM)?,
            Kind::Vfork => share(),
        };
        // The copy may have slept, and the room have gone meanwhile.
        let task = sched::add(memory, user, frame).map_err(|_| Errno::EAGAIN)?;
        let mut table = TABLE.lock();
        let parent = *table.current();
        let pid = table.new_pid();
        let home = if request.kind == Kind::Fork { Home::Own } else { Home::Borrowed };
        let beginning = request.id_in_child.map_or(Beginning::Plain, Beginning::StoreId);
        let clear_id = request.clear_id.unwrap_or(0);
        let life = Life::Running;
        table.put(task, Process { pid, parent: parent.pid, life, program: parent.program, beginning, home, clear_id });
        drop(table);
        (pid, task)
    };
    if let Some(at) = request.id_in_parent {
        // As on Linux a bad address is no error.
        let _ = uaccess::write(at, &pid.to_le_bytes());
    }
    sched::begin(task);
    if request.kind != Kind::Fork {
        wait_for_home(pid);
    }
    Ok(pid)
}

/// Sleeps until a child has other memory, or none, or until the running process is to be killed.
fn wait_for_home(child: u32) {
    let events = events(sched::current());
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

/// What a new process does before its first instruction at EL0.
pub fn begin(frame: &mut WholeFrame) {
    let (pid, beginning) = {
        let mut table = TABLE.lock();
        let process = table.current();
        (process.pid, core::mem::replace(&mut process.beginning, Beginning::Plain))
    };
    match beginning {
        Beginning::Plain => {}
        Beginning::StoreId(at) => {
            // As on Linux a bad address is no error.
            let _ = uaccess::write(at, &pid.to_le_bytes());
        }
        Beginning::Load => {
            debug_assert_eq!(pid, FIRST);
            super::begin_first(frame);
        }
    }
}
