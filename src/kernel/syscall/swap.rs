//! swapon and swapoff. The devices are `/dev/ram0` and so on, and need no header on them.

use ebbtide::swap::{SwapOffError, SwapOnError};

use super::path::Path;
use super::{Errno, Outcome};
use crate::kernel::swap::{self, Refusal};
use crate::kernel::{global, process};

/// Flags of swapon (include/linux/swap.h). Discarding means nothing to a RAM device.
mod flag {
    pub const PRIORITY: u64 = 0x7fff;
    pub const PREFER: u64 = 0x8000;
    pub const DISCARD: u64 = 0x1_0000 | 0x2_0000 | 0x4_0000;
}

/// As long as the name of any device.
pub type Name = Path<16>;

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

/// Turns an area off, once all programs' pages in it are back.
pub fn swapoff(path: u64) -> Outcome {
    let name = Name::read(path)?;
    let name = name.get()?;
    process::with_every_space(|spaces| swap::turn_off(global::mm(), name, spaces)).map_err(
        |refusal| match refusal {
            Refusal::NoDevice => Errno::ENOENT,
            Refusal::Off(SwapOffError::NoMemory) => Errno::ENOMEM,
            Refusal::Off(SwapOffError::InUse(_)) => Errno::EBUSY,
            Refusal::Already | Refusal::On(_) | Refusal::Off(SwapOffError::NoSuchArea) => Errno::EINVAL,
        },
    )?;
    Ok(0)
}
