//! Waiting for children that end, and for time.

use core::sync::atomic::Ordering;

use super::WaitStatus;
use super::table::{Life, TABLE, events};
use crate::kernel::syscall::Errno;
use crate::kernel::{sched, time};

/// Which children.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Whom {
    /// Any.
    Any,
    /// The one with this identifier.
    One(u32),
    /// Those of a group that nobody is in.
    Nobody,
}

/// What to do when there are such children, and none has ended.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Patience {
    /// Sleep.
    Endless,
    /// Return.
    None,
}

/// Takes the status of a child that has ended, with its identifier; none if there is no such child yet.
///
/// # Errors
/// ECHILD when there will be none.
pub fn wait(whom: Whom, patience: Patience) -> Result<Option<(u32, WaitStatus)>, Errno> {
    let events = events(TABLE.lock().here());
    loop {
        let seen = events.load(Ordering::Acquire);
        if let Some(ended) = take_ended(whom)? {
            return Ok(Some(ended));
        }
        // What a process that is to be killed gets from a call, it never sees.
        if patience == Patience::None || sched::doomed() {
            return Ok(None);
        }
        sched::wait_breakable(events, seen, None);
    }
}

fn take_ended(whom: Whom) -> Result<Option<(u32, WaitStatus)>, Errno> {
    let mut table = TABLE.lock();
    let parent = table.current().pid;
    let meant = |child: &super::Process| match whom {
        Whom::Any => child.parent == parent,
        Whom::One(pid) => child.parent == parent && child.pid == pid,
        Whom::Nobody => false,
    };
    let mut any = false;
    let mut ended = None;
    for (task, child) in table.all().filter(|(_, child)| meant(child)) {
        any = true;
        if let Life::Ended(status) = child.life {
            ended = Some((task, child.pid, status));
            break;
        }
    }
    match ended {
        Some((task, pid, status)) => {
            table.forget(task);
            Ok(Some((pid, status)))
        }
        None if any => Ok(None),
        None => Err(Errno::ECHILD),
    }
}

/// Sleeps until the counter has a value, or until the process is to be killed.
pub fn sleep_until(at: u64) {
    let events = events(sched::current());
    while time::counter() < at && !sched::doomed() {
        // That a child has ended meanwhile changes nothing.
        let seen = events.load(Ordering::Acquire);
        sched::wait_breakable(events, seen, Some(at));
    }
}
