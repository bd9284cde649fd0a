//! futex: waiting on a word of memory.

use super::proc::read_time;
use super::{Errno, Outcome};
use crate::kernel::process::{self, Scope, Word};
use crate::kernel::{time, uaccess};

/// Operations and their flags (include/uapi/linux/futex.h).
mod op {
    pub const WAIT: u64 = 0;
    pub const WAKE: u64 = 1;
    pub const REQUEUE: u64 = 3;
    pub const CMP_REQUEUE: u64 = 4;
    pub const WAIT_BITSET: u64 = 9;
    pub const WAKE_BITSET: u64 = 10;
    pub const PRIVATE: u64 = 128;
    /// The time counts from the machine's start, as all clocks here do.
    pub const CLOCK_REALTIME: u64 = 256;
}

/// The end of user addresses: 39 bits.
const USER_END: u64 = 1 << 39;

/// A word: aligned, and in the user's half. That of a shared futex must be there.
fn word(address: u64, scope: Scope) -> Result<Word, Errno> {
    if !address.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    let untagged = address & !(0xff << 56);
    if untagged >= USER_END || untagged != address && !process::tagged_addresses() {
        return Err(Errno::EFAULT);
    }
    if scope == Scope::Shared {
        uaccess::read(address, &mut [0; 4])?;
    }
    Ok(Word::here(address, scope))
}

/// How many to wake at most. As on Linux one is woken, if there is one, where none is asked for.
fn most(count: u64) -> u32 {
    (count as i32).max(1).unsigned_abs()
}

/// The counter's value at a program's time, of whose absence the address 0 tells.
fn deadline(at: u64, from: u64) -> Result<Option<u64>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    Ok(Some(from.saturating_add(time::ticks_of(read_time(at)?))))
}

/// See futex(2).
pub fn futex(address: u64, operation: u64, value: u64, time_or_count: u64, address2: u64, value3: u64) -> Outcome {
    let operation = operation & 0xffff_ffff;
    let command = operation & !(op::PRIVATE | op::CLOCK_REALTIME);
    let scope = if operation & op::PRIVATE != 0 { Scope::Private } else { Scope::Shared };
    if operation & op::CLOCK_REALTIME != 0 && command != op::WAIT_BITSET {
        return Err(Errno::ENOSYS);
    }
    let bits = if matches!(command, op::WAIT_BITSET | op::WAKE_BITSET) { value3 as u32 } else { u32::MAX };
    match command {
        op::WAIT | op::WAIT_BITSET => {
            // The one waits for a time, the other until one.
            let from = if command == op::WAIT { time::counter() } else { 0 };
            let until = deadline(time_or_count, from)?;
            if bits == 0 {
                return Err(Errno::EINVAL);
            }
            process::futex_wait(word(address, scope)?, value as u32, bits, until)?;
            Ok(0)
        }
        op::WAKE | op::WAKE_BITSET => {
            if bits == 0 {
                return Err(Errno::EINVAL);
            }
            Ok(process::futex_wake(word(address, scope)?, most(value), bits).into())
        }
        op::REQUEUE | op::CMP_REQUEUE => {
            let (wakes, moves) = (value as i32, time_or_count as i32);
            if wakes < 0 || moves < 0 {
                return Err(Errno::EINVAL);
            }
            let (from, to) = (word(address, scope)?, word(address2, scope)?);
            let seen = (command == op::CMP_REQUEUE).then_some(value3 as u32);
            Ok(process::requeue(from, to, wakes.unsigned_abs(), moves.unsigned_abs(), seen)?.into())
        }
        _ => Err(Errno::ENOSYS),
    }
}
