//! Calls about processes: clone, execve, wait4, kill, and what goes with them.

use super::misc::{NANOS, check_clock};
use super::path::Path;
use super::{Errno, Outcome};
use crate::kernel::el0::WholeFrame;
use crate::kernel::elf::{Arguments, ArgumentsError, Strings};
use crate::kernel::process::{self, CloneKind, CloneRequest, Patience, Program, Target, Whom};
use crate::kernel::{sched, time, uaccess};

/// Flags of clone (include/uapi/linux/sched.h).
mod flag {
    pub const EXIT_SIGNAL: u64 = 0xff;
    pub const VM: u64 = 0x100;
    pub const SIGHAND: u64 = 0x800;
    pub const VFORK: u64 = 0x4000;
    pub const THREAD: u64 = 0x1_0000;
    pub const SETTLS: u64 = 0x8_0000;
    pub const PARENT_SETTID: u64 = 0x10_0000;
    pub const CHILD_CLEARTID: u64 = 0x20_0000;
    pub const CHILD_SETTID: u64 = 0x100_0000;
    pub const FILES: u64 = 0x400;
    /// FS, SYSVSEM, DETACHED, UNTRACED, IO: there is nothing to share or to leave alone.
    pub const OF_NO_MEANING: u64 = 0x200 | 0x4_0000 | 0x40_0000 | 0x80_0000 | 0x8000_0000;
    pub const KNOWN: u64 = EXIT_SIGNAL
        | VM
        | VFORK
        | SETTLS
        | PARENT_SETTID
        | CHILD_CLEARTID
        | CHILD_SETTID
        | OF_NO_MEANING
        | SIGHAND
        | FILES
        | THREAD;
    /// What a thread shares with the others.
    pub const OF_THREAD: u64 = VM | SIGHAND | THREAD;
}

/// The signal of a child's end. It is ignored here, but says that the child is one that wait4 waits for.
const SIGCHLD: u64 = 17;

/// Makes a process, as fork and vfork do, or a thread.
pub fn clone(flags: u64, stack: u64, parent_id: u64, tls: u64, child_id: u64, frame: &WholeFrame) -> Outcome {
    let is_thread = flags & flag::OF_THREAD == flag::OF_THREAD;
    // A thread's end has no signal.
    if flags & !flag::KNOWN != 0 || !is_thread && flags & flag::EXIT_SIGNAL != SIGCHLD {
        return Err(Errno::EINVAL);
    }
    if flags & flag::THREAD != 0 && !is_thread || flags & flag::SIGHAND != 0 && flags & flag::VM == 0 {
        return Err(Errno::EINVAL);
    }
    // Descriptors are a process' own, and its threads'.
    if flags & flag::FILES != 0 && !is_thread {
        return Err(Errno::EINVAL);
    }
    let kind = match (flags & flag::VM, flags & flag::VFORK) {
        (_, 0) if is_thread => CloneKind::Thread,
        _ if is_thread => return Err(Errno::EINVAL),
        (0, 0) => CloneKind::Fork,
        (0, _) => CloneKind::ForkAndWait,
        (_, 0) => return Err(Errno::EINVAL),
        _ => CloneKind::Vfork,
    };
    let if_set = |flag: u64, value: u64| (flags & flag != 0).then_some(value);
    let request = CloneRequest {
        kind,
        stack: (stack != 0).then_some(stack),
        thread_pointer: if_set(flag::SETTLS, tls),
        id_in_parent: if_set(flag::PARENT_SETTID, parent_id),
        id_in_child: if_set(flag::CHILD_SETTID, child_id),
        clear_id: if_set(flag::CHILD_CLEARTID, child_id),
    };
    Ok(process::clone(&request, frame)?.into())
}

impl From<ArgumentsError> for Errno {
    fn from(error: ArgumentsError) -> Self {
        match error {
            ArgumentsError::TooLong => Self::E2BIG,
            ArgumentsError::NoMemory => Self::ENOMEM,
        }
    }
}

/// Puts another program in the place of this one.
pub fn execve(path: u64, argv: u64, envp: u64, frame: &mut WholeFrame) -> Outcome {
    /// As long as the path of any program on the host.
    const LONGEST: usize = 1024;
    let path = Path::<LONGEST>::read(path)?;
    let path = path.get()?;
    let program = Program::find(path)?;
    let mut arguments = Arguments::new(path)?;
    if !read_strings(argv, Strings::Arguments, &mut arguments)? {
        // As on Linux no program starts without a name.
        arguments.end_string(Strings::Arguments)?;
    }
    read_strings(envp, Strings::Environment, &mut arguments)?;
    process::exec(program, &arguments, frame)?;
    Ok(0)
}

/// Reads an array of strings, which a null pointer ends; as on Linux one that is not there has none. Whether it has
/// any.
fn read_strings(array: u64, kind: Strings, into: &mut Arguments) -> Result<bool, Errno> {
    if array == 0 {
        return Ok(false);
    }
    let mut at = array;
    loop {
        let [string] = uaccess::read_words::<1>(at)?;
        if string == 0 {
            return Ok(at != array);
        }
        read_string(string, into)?;
        into.end_string(kind)?;
        at = at.wrapping_add(8);
    }
}

/// Reads a string without its NUL.
fn read_string(mut at: u64, into: &mut Arguments) -> Result<(), Errno> {
    let mut piece = [0; 128];
    loop {
        // The string may end with the last byte that a program can have.
        let wanted = uaccess::room(at).clamp(1, piece.len() as u64) as usize;
        let (copied, bad) = match uaccess::read(at, &mut piece[..wanted]) {
            Ok(()) => (wanted, false),
            Err(fault) => (fault.copied, true),
        };
        let read = &piece[..copied];
        if let Some(end) = read.iter().position(|&byte| byte == 0) {
            into.extend(&read[..end])?;
            return Ok(());
        }
        if bad {
            return Err(Errno::EFAULT);
        }
        into.extend(read)?;
        at = at.wrapping_add(copied as u64);
    }
}

/// Waits for a child's end.
pub fn wait4(pid: u64, status: u64, options: u64, usage: u64) -> Outcome {
    const NOHANG: u64 = 1;
    /// WUNTRACED, WCONTINUED: nobody stops. __WNOTHREAD, __WALL: all children are alike.
    const OF_NO_MEANING: u64 = 2 | 8 | 0x2000_0000 | 0x4000_0000;
    /// Children whose end has another signal than SIGCHLD.
    const CLONE: u64 = 0x8000_0000;
    const WALL: u64 = 0x4000_0000;
    const USAGE_BYTES: usize = 144;
    let options = options & 0xffff_ffff;
    if options & !(NOHANG | OF_NO_MEANING | CLONE) != 0 {
        return Err(Errno::EINVAL);
    }
    let whom = match pid as i32 {
        i32::MIN => return Err(Errno::ESRCH),
        _ if options & (CLONE | WALL) == CLONE => Whom::Nobody,
        // All are of the first process' group.
        0 | -1 => Whom::Any,
        pid if pid > 0 => Whom::One(pid.unsigned_abs()),
        _ => Whom::Nobody,
    };
    let patience = if options & NOHANG != 0 { Patience::None } else { Patience::Endless };
    let Some((pid, ended)) = process::wait(whom, patience)? else { return Ok(0) };
    if status != 0 {
        uaccess::write(status, &ended.word().to_le_bytes())?;
    }
    if usage != 0 {
        // Nothing is counted.
        uaccess::write(usage, &[0; USAGE_BYTES])?;
    }
    Ok(pid.into())
}

/// Sends a signal to a process, or to several.
pub fn kill(pid: u64, signal: u64) -> Outcome {
    let target = match pid as i32 {
        0 => Target::Group,
        -1 => Target::Others,
        i32::MIN..=-2 => return Err(Errno::ESRCH),
        pid => Target::One(pid.unsigned_abs()),
    };
    process::send(target, signal as u32)?;
    Ok(0)
}

/// Sends a signal to a thread of a process.
pub fn tgkill(pid: u64, thread: u64, signal: u64) -> Outcome {
    let (pid, thread) = (pid as i32, thread as i32);
    if pid <= 0 || thread <= 0 {
        return Err(Errno::EINVAL);
    }
    process::send(Target::Thread(pid.unsigned_abs(), thread.unsigned_abs()), signal as u32)?;
    Ok(0)
}

/// Sends a signal to a thread of whatever process.
pub fn tkill(thread: u64, signal: u64) -> Outcome {
    let thread = thread as i32;
    if thread <= 0 {
        return Err(Errno::EINVAL);
    }
    process::send(Target::AnyThread(thread.unsigned_abs()), signal as u32)?;
    Ok(0)
}

/// Takes a list of locks that is not looked at: a thread that dies by anything but its own exit takes its process with
/// it.
pub fn set_robust_list(bytes: u64) -> Outcome {
    /// Of struct robust_list_head.
    const HEAD_BYTES: u64 = 24;
    if bytes == HEAD_BYTES { Ok(0) } else { Err(Errno::EINVAL) }
}

/// Says where a 0 goes at the end: see CLONE_CHILD_CLEARTID.
pub fn set_tid_address(at: u64) -> Outcome {
    process::set_clear_id(at);
    Ok(process::thread_id().into())
}

/// Lets the others run.
pub fn sched_yield() -> Outcome {
    sched::yield_now();
    Ok(0)
}

/// A time of a program, in nanoseconds.
pub fn read_time(at: u64) -> Result<u64, Errno> {
    let [seconds, nanos] = uaccess::read_words::<2>(at)?;
    if seconds > i64::MAX as u64 || nanos >= NANOS {
        return Err(Errno::EINVAL);
    }
    Ok(seconds.saturating_mul(NANOS).saturating_add(nanos))
}

fn sleep(ns: u64) {
    process::sleep_until(time::counter().saturating_add(time::ticks_of(ns)));
}

/// Sleeps for a time. Nothing interrupts it but the end, so that there is never a rest of it to tell.
pub fn nanosleep(time: u64) -> Outcome {
    sleep(read_time(time)?);
    Ok(0)
}

/// Sleeps for a time, or until one.
pub fn clock_nanosleep(clock: u64, flags: u64, time: u64) -> Outcome {
    const ABSOLUTE: u64 = 1;
    check_clock(clock)?;
    let ns = read_time(time)?;
    if flags & ABSOLUTE == 0 {
        sleep(ns);
    } else {
        process::sleep_until(time::ticks_of(ns));
    }
    Ok(0)
}
