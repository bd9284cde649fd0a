//! Memory that stays: mlock and its kin, and mincore, which tells what is there.
//!
//! There is no limit (RLIMIT_MEMLOCK): every program is root's.

use ebbtide::addr::VirtAddr;
use ebbtide::space::{FaultError, Residency, Touch};

use super::mem::{in_user_half, map_errno, populate, round_up, untagged};
use super::{Errno, Outcome};
use crate::kernel::page::PAGE;
use crate::kernel::process::Future;
use crate::kernel::{global, process, sched, uaccess};

/// Flags of mlock2 and mlockall (include/uapi/asm-generic/mman-common.h, mman.h).
mod flag {
    pub const ONFAULT: u64 = 1;
    pub const CURRENT: u64 = 1;
    pub const FUTURE: u64 = 2;
    pub const ALL_ONFAULT: u64 = 4;
}

/// The whole pages of a range, none if it is empty.
fn pages(pointer: u64, bytes: u64) -> Result<Option<(VirtAddr, u64)>, Errno> {
    let start = untagged(pointer) & !(PAGE - 1);
    let length = round_up(bytes.wrapping_add(untagged(pointer) - start));
    if start.checked_add(length).is_none() {
        return Err(Errno::EINVAL);
    }
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((in_user_half(start, length).ok_or(Errno::ENOMEM)?, length)))
}

/// Brings in what is locked now.
fn bring(start: VirtAddr, length: u64) -> Result<(), Errno> {
    // As a store where that is allowed: what is shared becomes the program's own at once. As POSIX has it, a page that
    // cannot be had is ENOMEM, want of memory EAGAIN.
    populate(start, length, Touch::AsAllowed).map_err(|error| match error {
        FaultError::NoMemory | FaultError::Capped => Errno::EAGAIN,
        _ => Errno::ENOMEM,
    })
}

/// Locks a range in memory; with ONFAULT what is there, and each page of it that comes.
pub fn mlock2(pointer: u64, bytes: u64, flags: u64) -> Outcome {
    if flags & !flag::ONFAULT != 0 {
        return Err(Errno::EINVAL);
    }
    let Some((start, length)) = pages(pointer, bytes)? else { return Ok(0) };
    process::space().mlock(global::mm(), start, length).map_err(map_errno)?;
    if flags & flag::ONFAULT == 0 {
        bring(start, length)?;
    }
    Ok(0)
}

/// Lets a range go.
pub fn munlock(pointer: u64, bytes: u64) -> Outcome {
    if let Some((start, length)) = pages(pointer, bytes)? {
        process::space().munlock(global::mm(), start, length).map_err(map_errno)?;
    }
    Ok(0)
}

/// Locks all that there is, all that comes to be, or both.
pub fn mlockall(flags: u64) -> Outcome {
    let known = flag::CURRENT | flag::FUTURE | flag::ALL_ONFAULT;
    if flags & !known != 0 || flags & (flag::CURRENT | flag::FUTURE) == 0 {
        return Err(Errno::EINVAL);
    }
    let waits = flags & flag::ALL_ONFAULT != 0;
    process::memory().set_future(match (flags & flag::FUTURE != 0, waits) {
        (false, _) => Future::Pageable,
        (true, true) => Future::Locked,
        (true, false) => Future::Populated,
    });
    if flags & flag::CURRENT != 0 {
        for_each_region(|start, length| {
            // As in Linux what cannot be had, or another thread unmaps meanwhile, is no error of this call.
            let _ = process::space().mlock(global::mm(), start, length);
            if !waits {
                let _ = bring(start, length);
            }
        });
    }
    Ok(0)
}

/// Lets all go.
pub fn munlockall() -> Outcome {
    process::memory().set_future(Future::Pageable);
    for_each_region(|start, length| {
        let _ = process::space().munlock(global::mm(), start, length);
    });
    Ok(0)
}

fn for_each_region(mut visit: impl FnMut(VirtAddr, u64)) {
    let mut from = VirtAddr::new(0);
    while let Some((start, length)) = process::space().region_from(global::mm(), from) {
        visit(start, length);
        from = VirtAddr::new(start.bytes() + length);
    }
}

/// Says of each page of a range, in a byte, whether it is in memory.
pub fn mincore(pointer: u64, bytes: u64, into: u64) -> Outcome {
    const PIECE: usize = 512;
    let start = untagged(pointer);
    if !start.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let length = round_up(bytes);
    if bytes != 0 && length == 0 {
        return Err(Errno::ENOMEM);
    }
    let start = in_user_half(start, length).ok_or(Errno::ENOMEM)?;
    let mut told = 0;
    while told * PAGE < length {
        if sched::kill_pending() {
            return Err(Errno::EINTR);
        }
        let mut piece = [0; PIECE];
        let part = (length - told * PAGE).min(PIECE as u64 * PAGE);
        let mut places = piece.iter_mut();
        let each = |residency| {
            if let Some(place) = places.next() {
                *place = (residency == Residency::Resident).into();
            }
        };
        let first = VirtAddr::new(start.bytes() + told * PAGE);
        process::space().residency(global::mm(), first, part, each).map_err(map_errno)?;
        let pages = part / PAGE;
        uaccess::write(into.wrapping_add(told), &piece[..pages as usize])?;
        told += pages;
    }
    Ok(0)
}
