//! Linux's system calls on AArch64: number in x8, arguments in x0 to x5, answer in x0, where the last 4095
//! values are negated error numbers. Only the calls that the programs make.

use core::{fmt, ops::BitOr};

const WRITE: usize = 64;
const EXIT_GROUP: usize = 94;
const NANOSLEEP: usize = 101;
const SCHED_YIELD: usize = 124;
const KILL: usize = 129;
const PRCTL: usize = 167;
const SETRLIMIT: usize = 164;
const SYSINFO: usize = 179;
const MUNMAP: usize = 215;
const CLONE: usize = 220;
const MMAP: usize = 222;
const MPROTECT: usize = 226;
const MADVISE: usize = 233;
const WAIT4: usize = 260;

const PR_SET_TAGGED_ADDR_CTRL: usize = 55;

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Bad address, or memory that cannot be read back.
    pub const EFAULT: Self = Self(14);
    /// Not a call of this kernel.
    pub const ENOSYS: Self = Self(38);

    fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "EPERM",
            3 => "ESRCH",
            4 => "EINTR",
            9 => "EBADF",
            10 => "ECHILD",
            11 => "EAGAIN",
            12 => "ENOMEM",
            13 => "EACCES",
            14 => "EFAULT",
            16 => "EBUSY",
            17 => "EEXIST",
            22 => "EINVAL",
            38 => "ENOSYS",
            95 => "EOPNOTSUPP",
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes a system call.
///
/// # Safety
/// The caller answers for what the kernel does with the arguments: memory named by them must be valid for it,
/// and memory that the call unmaps or changes must not be borrowed.
#[inline]
pub unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    #[cfg(target_arch = "aarch64")]
    let answer = {
        let answer: isize;
        // SAFETY: the kernel keeps every register but x0; memory is the caller's promise.
        unsafe {
            core::arch::asm!(
                "svc #0",
                in("x8") number,
                inlateout("x0") args[0] => answer,
                in("x1") args[1],
                in("x2") args[2],
                in("x3") args[3],
                in("x4") args[4],
                in("x5") args[5],
                options(nostack),
            );
        }
        answer
    };
    #[cfg(not(target_arch = "aarch64"))]
    let answer = {
        let _ = (number, args);
        -(Errno::ENOSYS.0 as isize)
    };
    match answer {
        -4095..=-1 => Err(Errno(-answer as i32)),
        _ => Ok(answer as usize),
    }
}

/// Permissions of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prot(usize);

impl Prot {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READ: Self = Self(1);
    /// Loads and stores.
    pub const READ_WRITE: Self = Self(3);
    /// Memory with allocation tags. Once given it stays: `mprotect` cannot take it away.
    pub const MTE: Self = Self(0x20);
}

impl BitOr for Prot {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Advice for `madvise`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Advice {
    /// Forget the contents: the next access finds zeros, in data and tags.
    DontNeed = 4,
    /// The contents may go until they are stored to again.
    Free = 8,
    /// Not used soon.
    Cold = 20,
    /// Write the pages out now.
    PageOut = 21,
    /// Bring the pages in, as loads would; EFAULT when one cannot be read.
    PopulateRead = 22,
}

/// Where `mmap` puts the mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The kernel chooses.
    Anywhere,
    /// At this address, in place of whatever is there.
    Fixed(usize),
    /// At this address if nothing is there.
    FixedIfFree(usize),
}

/// What EL0's accesses to tagged memory do on a tag mismatch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagCheck {
    /// Nothing.
    None,
    /// A fault at the instruction.
    Sync,
}

/// Writes to a file descriptor; how many bytes were taken.
pub fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel only reads the borrowed bytes.
    unsafe { call(WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// Ends the program.
pub fn exit(status: i32) -> ! {
    // SAFETY: the call does not return.
    let _ = unsafe { call(EXIT_GROUP, [status as usize, 0, 0, 0, 0, 0]) };
    loop {
        core::hint::spin_loop();
    }
}

/// Maps anonymous private memory, zero in data and tags, without reserving anything for it; its address.
///
/// # Safety
/// Nothing borrowed may lie in the range of [`Place::Fixed`].
pub unsafe fn mmap(place: Place, len: usize, prot: Prot) -> Result<usize, Errno> {
    const PRIVATE_ANONYMOUS: usize = 0x2 | 0x20;
    const NORESERVE: usize = 0x4000;
    const FIXED: usize = 0x10;
    const FIXED_NOREPLACE: usize = 0x10_0000;
    let (address, how) = match place {
        Place::Anywhere => (0, 0),
        Place::Fixed(a) => (a, FIXED),
        Place::FixedIfFree(a) => (a, FIXED_NOREPLACE),
    };
    let flags = PRIVATE_ANONYMOUS | NORESERVE | how;
    // SAFETY: new memory, or the caller's promise; -1 is "no file".
    unsafe { call(MMAP, [address, len, prot.0, flags, usize::MAX, 0]) }
}

/// Unmaps a range.
///
/// # Safety
/// Nothing borrowed may lie in the range.
pub unsafe fn munmap(address: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(MUNMAP, [address, len, 0, 0, 0, 0]) }.map(drop)
}

/// Changes the permissions of a range.
///
/// # Safety
/// Nothing borrowed may lie in the range.
pub unsafe fn mprotect(address: usize, len: usize, prot: Prot) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(MPROTECT, [address, len, prot.0, 0, 0, 0]) }.map(drop)
}

/// Advises the kernel about a range.
///
/// # Safety
/// Nothing borrowed may lie in the range: some advice destroys contents.
pub unsafe fn madvise(address: usize, len: usize, advice: Advice) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(MADVISE, [address, len, advice as usize, 0, 0, 0]) }.map(drop)
}

/// Allows tagged pointers in system calls and sets the check mode of this thread.
pub fn set_tag_check(mode: TagCheck) -> Result<(), Errno> {
    const TAGGED_ADDR_ENABLE: usize = 1;
    const TCF_SYNC: usize = 1 << 1;
    // IRG may give any tag but 0.
    const TAGS: usize = 0xfffe << 3;
    let value = match mode {
        TagCheck::None => TAGGED_ADDR_ENABLE | TAGS,
        TagCheck::Sync => TAGGED_ADDR_ENABLE | TCF_SYNC | TAGS,
    };
    // SAFETY: changes how this thread's accesses are checked, not what they reach.
    unsafe { call(PRCTL, [PR_SET_TAGGED_ADDR_CTRL, value, 0, 0, 0, 0]) }.map(drop)
}

/// What [`fork`] returns in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forked {
    /// In the child.
    Child,
    /// In the parent, with the child's identifier.
    Parent(i32),
}

/// Makes a child with a copy of this program's memory.
pub fn fork() -> Result<Forked, Errno> {
    const SIGCHLD: usize = 17;
    // SAFETY: each of the two has memory of its own from here on, and no other thread.
    let answer = unsafe { call(CLONE, [SIGCHLD, 0, 0, 0, 0, 0]) }?;
    Ok(if answer == 0 { Forked::Child } else { Forked::Parent(answer as i32) })
}

/// Waits for the end of a child, and returns its status as wait4 puts it: its exit status in bits 15:8, the signal that
/// killed it in bits 6:0.
pub fn wait(child: i32) -> Result<u32, Errno> {
    let mut status = 0_u32;
    // SAFETY: the kernel writes 4 bytes to `status`.
    unsafe { call(WAIT4, [child as usize, &raw mut status as usize, 0, 0, 0, 0]) }?;
    Ok(status)
}

/// Kills a process.
pub fn kill(process: i32) -> Result<(), Errno> {
    const SIGKILL: usize = 9;
    // SAFETY: takes numbers and changes nothing of this program's.
    unsafe { call(KILL, [process as usize, SIGKILL, 0, 0, 0, 0]) }.map(drop)
}

/// Lets the others run.
pub fn yield_now() {
    // SAFETY: takes nothing and changes nothing of this program's.
    let _ = unsafe { call(SCHED_YIELD, [0; 6]) };
}

/// Sleeps until somebody kills this process.
pub fn sleep() -> ! {
    /// A day.
    const TIME: [u64; 2] = [86400, 0];
    loop {
        // SAFETY: the kernel reads the two words.
        let _ = unsafe { call(NANOSLEEP, [TIME.as_ptr() as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Says how many bytes this program may have in memory (RLIMIT_RSS, by which Linux does nothing); `None` for no limit.
pub fn limit_memory(bytes: Option<u64>) -> Result<(), Errno> {
    const RSS: usize = 5;
    let limit = [bytes.unwrap_or(u64::MAX), u64::MAX];
    // SAFETY: the kernel reads the two words.
    unsafe { call(SETRLIMIT, [RSS, limit.as_ptr() as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Sleeps for so many nanoseconds.
pub fn sleep_ns(ns: u64) {
    const SECOND: u64 = 1_000_000_000;
    let time = [ns / SECOND, ns % SECOND];
    // SAFETY: the kernel reads the two words.
    let _ = unsafe { call(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}

/// RAM that the kernel tells of, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ram {
    /// All of it.
    pub total: u64,
    /// Free RAM.
    pub free: u64,
}

/// RAM that the kernel tells of.
pub fn ram() -> Result<Ram, Errno> {
    /// `struct sysinfo` of 64-bit Linux: 112 bytes.
    #[repr(C)]
    #[derive(Default)]
    struct Sysinfo {
        uptime_and_loads: [u64; 4],
        total_ram: u64,
        free_ram: u64,
        shared_to_free_swap: [u64; 4],
        procs: u64,
        high: [u64; 2],
        mem_unit: u32,
        pad: u32,
    }
    const { assert!(size_of::<Sysinfo>() == 112) };
    let mut info = Sysinfo::default();
    // SAFETY: the kernel writes one `struct sysinfo` into a place of that size.
    unsafe { call(SYSINFO, [&raw mut info as usize, 0, 0, 0, 0, 0]) }?;
    let unit = u64::from(info.mem_unit.max(1));
    Ok(Ram { total: info.total_ram.saturating_mul(unit), free: info.free_ram.saturating_mul(unit) })
}
