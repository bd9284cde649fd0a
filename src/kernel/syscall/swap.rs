//! swapon and swapoff. The devices are `/dev/ram0` and so on, and need no header on them.

use ebbtide::swap::{SwapOffError, SwapOnError};

use super::{Errno, Outcome};
use crate::kernel::swap::{self, Refusal};
use crate::kernel::{global, process, uaccess};

/// Flags of swapon (include/linux/swap.h). Discarding means nothing to a RAM device.
mod flag {
    pub const PRIORITY: u64 = 0x7fff;
    pub const PREFER: u64 = 0x8000;
    pub const DISCARD: u64 = 0x1_0000 | 0x2_0000 | 0x4_0000;
}

/// Longest path, with its end.
const PATH_MAX: usize = 4096;

/// The start of a program's path, as long as the name of any device, and its end.
struct Name {
    bytes: [u8; 16],
    length: usize,
}

impl Name {
    fn read(pointer: u64) -> Result<Self, Errno> {
        let mut bytes = [0; 16];
        for length in 0..PATH_MAX {
            let mut byte = [0];
            uaccess::read(pointer.wrapping_add(length as u64), &mut byte)?;
            match byte {
                [0] if length == 0 => return Err(Errno::ENOENT),
                [0] => return Ok(Self { bytes, length }),
                [byte] => bytes.get_mut(length).into_iter().for_each(|place| *place = byte),
            }
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// The name, if it may be that of a device.
    fn get(&self) -> Result<&[u8], Errno> {
        self.bytes.get(..self.length).ok_or(Errno::ENOENT)
    }
}

/// Turns an area on.
pub fn swapon(path: u64, flags: u64) -> Outcome {
    if flags & !(flag::PRIORITY | flag::PREFER | flag::DISCARD) != 0 {
        return Err(Errno::EINVAL);
    }
    // Those without a priority of their own come last.
    let priority = if flags & flag::PREFER != 0 { (flags & flag::PRIORITY) as i16 } else { -1 };
    swap::turn_on(global::mm(), Name::read(path)?.get()?, priority).map_err(|refusal| match refusal {
        Refusal::NoDevice => Errno::ENOENT,
        Refusal::Already => Errno::EBUSY,
        Refusal::On(SwapOnError::TooManyAreas) => Errno::EPERM,
        Refusal::On(_) | Refusal::Off(_) => Errno::EINVAL,
    })?;
    Ok(0)
}

/// Turns an area off, once the program's pages in it are back.
pub fn swapoff(path: u64) -> Outcome {
    swap::turn_off(global::mm(), Name::read(path)?.get()?, &[process::space()]).map_err(|refusal| match refusal {
        Refusal::NoDevice => Errno::ENOENT,
        Refusal::Off(SwapOffError::NoMemory) => Errno::ENOMEM,
        Refusal::Off(SwapOffError::InUse(_)) => Errno::EBUSY,
        Refusal::Already | Refusal::On(_) | Refusal::Off(SwapOffError::NoSuchArea) => Errno::EINVAL,
    })?;
    Ok(0)
}
