//! Calls about files: openat, close, pread64, pwrite64. The devices `/dev/ram0` and so on are all that there is to
//! open.
//!
//! They are read and written with O_DIRECT alone, as there is nothing where the kernel would keep what is in them: in
//! whole sectors, from and to the program's own pages ([`direct`]).

use ebbtide::addr::VirtAddr;

use super::misc::MOST_BYTES;
use super::path::Path;
use super::swap::Name;
use super::{Errno, Outcome};
use crate::kernel::process::{self, File, Mode, Node};
use crate::kernel::swap::{self, Direction, SECTOR};
use crate::kernel::{direct, uaccess};

/// Flags of openat (include/uapi/asm-generic/fcntl.h, arch/arm64/include/uapi/asm/fcntl.h).
mod flag {
    pub const ACCESS: u64 = 0o3;
    pub const WRITE_ONLY: u64 = 0o1;
    pub const READ_WRITE: u64 = 0o2;
    pub const CREATE: u64 = 0o100;
    pub const EXCLUSIVE: u64 = 0o200;
    pub const DIRECTORY: u64 = 0o40_000;
    pub const DIRECT: u64 = 0o200_000;
    pub const CLOSE_ON_EXEC: u64 = 0o2_000_000;
    /// NOCTTY, NONBLOCK, DSYNC, NOFOLLOW, LARGEFILE, NOATIME, SYNC: what they ask for is so anyway.
    pub const OF_NO_MEANING: u64 = 0o400 | 0o4_000 | 0o10_000 | 0o100_000 | 0o400_000 | 0o1_000_000 | 0o4_010_000;
    pub const KNOWN: u64 = ACCESS | CREATE | EXCLUSIVE | DIRECTORY | DIRECT | CLOSE_ON_EXEC | OF_NO_MEANING;
}

/// Stands for the current folder, which is always `/`.
const AT_FDCWD: u32 = -100_i32 as u32;

/// Opens a device.
pub fn openat(folder: u64, path: u64, flags: u64) -> Outcome {
    let flags = flags & 0xffff_ffff;
    let name: Name = Path::read(path)?;
    let name = name.get()?;
    let device = match name {
        [b'/', ..] => swap::open(name),
        _ if folder as u32 == AT_FDCWD => swap::open_in_root(name),
        _ => return Err(if process::file(folder as u32).is_some() { Errno::ENOTDIR } else { Errno::EBADF }),
    };
    let device = device.ok_or(Errno::ENOENT)?;
    if flags & (flag::CREATE | flag::EXCLUSIVE) == flag::CREATE | flag::EXCLUSIVE {
        return Err(Errno::EEXIST);
    }
    if flags & flag::DIRECTORY != 0 {
        return Err(Errno::ENOTDIR);
    }
    let rights = match flags & flag::ACCESS {
        0 => Mode::READ,
        flag::WRITE_ONLY => Mode::WRITE,
        flag::READ_WRITE => Mode::READ | Mode::WRITE,
        _ => return Err(Errno::EINVAL),
    };
    if flags & flag::DIRECT == 0 || flags & !flag::KNOWN != 0 || flags & flag::EXCLUSIVE != 0 {
        return Err(Errno::EINVAL);
    }
    let mut mode = rights;
    mode.set(Mode::CLOSE_ON_EXEC, flags & flag::CLOSE_ON_EXEC != 0);
    process::open(File { node: Node::Device(device), mode }).map(u64::from).ok_or(Errno::EMFILE)
}

/// Closes a descriptor.
pub fn close(descriptor: u64) -> Outcome {
    process::close(descriptor as u32).map(|_| 0).ok_or(Errno::EBADF)
}

/// Reads a device.
pub fn pread64(descriptor: u64, buffer: u64, bytes: u64, at: u64) -> Outcome {
    transfer(Direction::Read, descriptor, (buffer, bytes), at)
}

/// Writes a device.
pub fn pwrite64(descriptor: u64, buffer: u64, bytes: u64, at: u64) -> Outcome {
    transfer(Direction::Write, descriptor, (buffer, bytes), at)
}

/// What is wrong is found in Linux's order.
fn transfer(direction: Direction, descriptor: u64, (buffer, bytes): (u64, u64), at: u64) -> Outcome {
    if at.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    let file = process::file(descriptor as u32).ok_or(Errno::EBADF)?;
    let Node::Device(id) = file.node else { return Err(Errno::ESPIPE) };
    let right = if direction == Direction::Read { Mode::READ } else { Mode::WRITE };
    if !file.mode.contains(right) {
        return Err(Errno::EBADF);
    }
    let address = uaccess::range(buffer, bytes)?;
    if at.cast_signed().checked_add_unsigned(bytes).is_none() {
        return Err(Errno::EINVAL);
    }
    let device = id.device();
    let left = device.bytes().saturating_sub(at);
    let _writing = match direction {
        Direction::Read => None,
        Direction::Write => Some(id.write().ok_or(Errno::ETXTBSY)?),
    };
    if bytes == 0 {
        return Ok(0);
    }
    if left == 0 {
        return if direction == Direction::Read { Ok(0) } else { Err(Errno::ENOSPC) };
    }
    let bytes = bytes.min(MOST_BYTES).min(left);
    if !(at | address | bytes).is_multiple_of(SECTOR) {
        return Err(Errno::EINVAL);
    }
    direct::transfer(device, direction, at, VirtAddr::new(address), bytes).map_err(|error| match error {
        direct::Error::BadAddress => Errno::EFAULT,
        direct::Error::NoMemory => Errno::ENOMEM,
        direct::Error::Device => Errno::EIO,
    })
}
