//! System calls: Linux's numbers for AArch64 and Linux's meaning, for as much of them as a static program needs.
//!
//! The vectors call [`el0_system_call`] with the saved registers; the result goes to x0. A number that is not here is
//! -ENOSYS and is logged the first time.

mod file;
mod futex;
mod limit;
mod lock;
mod mem;
mod misc;
mod path;
mod proc;
mod swap;

use core::sync::atomic::{AtomicU64, Ordering};

use super::console::log;
use super::el0::{Frame, WholeFrame};
use super::uaccess::Fault;
use super::{process, sched};

/// An error number of Linux.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Errno(u16);

impl Errno {
    /// Not permitted.
    pub const EPERM: Self = Self(1);
    /// No such process.
    pub const ESRCH: Self = Self(3);
    /// Interrupted.
    pub const EINTR: Self = Self(4);
    /// No such file or directory.
    pub const ENOENT: Self = Self(2);
    /// The device failed.
    pub const EIO: Self = Self(5);
    /// An argument list that is too long.
    pub const E2BIG: Self = Self(7);
    /// Not a program.
    pub const ENOEXEC: Self = Self(8);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// No child.
    pub const ECHILD: Self = Self(10);
    /// Not now.
    pub const EAGAIN: Self = Self(11);
    /// Out of memory, or no such mapping.
    pub const ENOMEM: Self = Self(12);
    /// Not allowed.
    pub const EACCES: Self = Self(13);
    /// Bad address.
    pub const EFAULT: Self = Self(14);
    /// The device is busy.
    pub const EBUSY: Self = Self(16);
    /// File exists: MAP_FIXED_NOREPLACE met a mapping.
    pub const EEXIST: Self = Self(17);
    /// Not a folder.
    pub const ENOTDIR: Self = Self(20);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// Too many open files.
    pub const EMFILE: Self = Self(24);
    /// A write to what is in use: a swap area.
    pub const ETXTBSY: Self = Self(26);
    /// The device is full: it ends there.
    pub const ENOSPC: Self = Self(28);
    /// What has no positions.
    pub const ESPIPE: Self = Self(29);
    /// A name that is too long.
    pub const ENAMETOOLONG: Self = Self(36);
    /// No such system call.
    pub const ENOSYS: Self = Self(38);
    /// A kind that is not built yet.
    pub const EOPNOTSUPP: Self = Self(95);
    /// The time is up.
    pub const ETIMEDOUT: Self = Self(110);

    fn result(self) -> u64 {
        (-i64::from(self.0)) as u64
    }
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Self {
        Self::EFAULT
    }
}

/// What a call returns in x0.
type Outcome = Result<u64, Errno>;

/// Linux's numbers (include/uapi/asm-generic/unistd.h), and four of this kernel's own above them.
mod number {
    pub const OPENAT: u64 = 56;
    pub const CLOSE: u64 = 57;
    pub const WRITE: u64 = 64;
    pub const WRITEV: u64 = 66;
    pub const PREAD64: u64 = 67;
    pub const PWRITE64: u64 = 68;
    pub const EXIT: u64 = 93;
    pub const EXIT_GROUP: u64 = 94;
    pub const SET_TID_ADDRESS: u64 = 96;
    pub const FUTEX: u64 = 98;
    pub const SET_ROBUST_LIST: u64 = 99;
    pub const NANOSLEEP: u64 = 101;
    pub const CLOCK_GETTIME: u64 = 113;
    pub const CLOCK_GETRES: u64 = 114;
    pub const CLOCK_NANOSLEEP: u64 = 115;
    pub const SCHED_YIELD: u64 = 124;
    pub const KILL: u64 = 129;
    pub const TKILL: u64 = 130;
    pub const TGKILL: u64 = 131;
    pub const UNAME: u64 = 160;
    pub const GETRLIMIT: u64 = 163;
    pub const SETRLIMIT: u64 = 164;
    pub const PRCTL: u64 = 167;
    pub const GETPID: u64 = 172;
    pub const GETPPID: u64 = 173;
    pub const GETTID: u64 = 178;
    pub const SYSINFO: u64 = 179;
    pub const BRK: u64 = 214;
    pub const MUNMAP: u64 = 215;
    pub const CLONE: u64 = 220;
    pub const EXECVE: u64 = 221;
    pub const MMAP: u64 = 222;
    pub const SWAPON: u64 = 224;
    pub const SWAPOFF: u64 = 225;
    pub const MPROTECT: u64 = 226;
    pub const MLOCK: u64 = 228;
    pub const MUNLOCK: u64 = 229;
    pub const MLOCKALL: u64 = 230;
    pub const MUNLOCKALL: u64 = 231;
    pub const MINCORE: u64 = 232;
    pub const MADVISE: u64 = 233;
    pub const WAIT4: u64 = 260;
    pub const PRLIMIT64: u64 = 261;
    pub const GETRANDOM: u64 = 278;
    pub const MLOCK2: u64 = 284;
    /// Counters: `stats(buffer, words) -> words that there are`.
    pub const STATS: u64 = 0x6501;
    /// Whether the counter counts instructions.
    pub const ICOUNT: u64 = 0x6502;
    /// The least number of instructions of a page operation: `floor(kind)`.
    pub const FLOOR: u64 = 0x6503;
    pub const FOLIO_KIB: u64 = 0x6504;
}

/// Called by `boot/vectors.S` for SVC from EL0.
#[unsafe(no_mangle)]
extern "C" fn el0_system_call(frame: &Frame) -> u64 {
    let [a, b, c, d, e, f, ..] = frame.x;
    // As Linux: the low half of x8 is the number.
    let outcome = match frame.x[8] & 0xffff_ffff {
        number::WRITE => misc::write(a, b, c),
        number::WRITEV => misc::writev(a, b, c),
        number::OPENAT => file::openat(a, b, c),
        number::CLOSE => file::close(a),
        number::PREAD64 => file::pread64(a, b, c, d),
        number::PWRITE64 => file::pwrite64(a, b, c, d),
        number::EXIT => process::end_thread(a as u8),
        number::EXIT_GROUP => process::exit(a as u8),
        number::SET_TID_ADDRESS => proc::set_tid_address(a),
        number::FUTEX => futex::futex(a, b, c, d, e, f),
        number::SET_ROBUST_LIST => proc::set_robust_list(b),
        number::GETPID => Ok(process::id().into()),
        number::GETTID => Ok(process::thread_id().into()),
        number::GETPPID => Ok(process::parent_id().into()),
        number::KILL => proc::kill(a, b),
        number::TKILL => proc::tkill(a, b),
        number::TGKILL => proc::tgkill(a, b, c),
        number::WAIT4 => proc::wait4(a, b, c, d),
        number::CLONE | number::EXECVE => {
            sched::defer_call();
            Ok(a)
        }
        number::NANOSLEEP => proc::nanosleep(a),
        number::CLOCK_NANOSLEEP => proc::clock_nanosleep(a, b, c),
        number::CLOCK_GETTIME => misc::clock_gettime(a, b),
        number::CLOCK_GETRES => misc::clock_getres(a, b),
        number::SCHED_YIELD => proc::sched_yield(),
        number::UNAME => misc::uname(a),
        number::PRCTL => misc::prctl(a, [b, c, d, e]),
        number::SYSINFO => misc::sysinfo(a),
        number::BRK => Ok(mem::brk(a)),
        number::MUNMAP => mem::munmap(a, b),
        number::MMAP => mem::mmap(a, b, c, d, f),
        number::SWAPON => swap::swapon(a, b),
        number::SWAPOFF => swap::swapoff(a),
        number::MPROTECT => mem::mprotect(a, b, c),
        number::MADVISE => mem::madvise(a, b, c),
        number::GETRLIMIT => limit::prlimit(0, a, 0, b),
        number::SETRLIMIT => limit::prlimit(0, a, b, 0),
        number::PRLIMIT64 => limit::prlimit(a, b, c, d),
        number::MLOCK => lock::mlock2(a, b, 0),
        number::MLOCK2 => lock::mlock2(a, b, c),
        number::MUNLOCK => lock::munlock(a, b),
        number::MLOCKALL => lock::mlockall(a),
        number::MUNLOCKALL => lock::munlockall(),
        number::MINCORE => lock::mincore(a, b, c),
        number::GETRANDOM => misc::getrandom(a, b, c),
        number::STATS => misc::stats(a, b),
        number::ICOUNT => Ok(misc::icount()),
        number::FLOOR => misc::floor(a),
        number::FOLIO_KIB => Ok(misc::folio_kib()),
        other => unknown(other),
    };
    outcome.unwrap_or_else(Errno::result)
}

/// A call that needs every register of the program, as another one is made of it, or put in its place: [`el0_work`].
///
/// [`el0_work`]: super::trap
pub fn deferred(frame: &mut WholeFrame) {
    let [a, b, c, d, e, ..] = frame.frame.x;
    let outcome = match frame.frame.x[8] & 0xffff_ffff {
        number::CLONE => proc::clone(a, b, c, d, e, frame),
        _ => proc::execve(a, b, c, frame),
    };
    frame.frame.x[0] = outcome.unwrap_or_else(Errno::result);
}

#[cold]
fn unknown(number: u64) -> Outcome {
    // One bit for each of Linux's numbers; those above share the last.
    static LOGGED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let slot = number.min(511) as usize;
    let bit = 1 << (slot % 64);
    if LOGGED[slot / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        log!("system call {number} is not there: -ENOSYS (logged once)");
    }
    Err(Errno::ENOSYS)
}
