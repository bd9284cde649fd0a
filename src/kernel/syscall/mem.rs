//! Memory calls: brk, mmap, munmap, mprotect, madvise.
//!
//! What Linux checks before it looks at any mapping is checked here, in Linux's order where a program can tell; the
//! rest is the address space's, whose reasons become error numbers in [`map_errno`].

use ebbtide::addr::VirtAddr;
use ebbtide::machine::{Features, Machine};
use ebbtide::reclaim::Advice;
use ebbtide::space::{Access, FaultError, Folios, Growth, MapError, MapRequest, Placement, Protection, Touch, Unready};

use super::{Errno, Outcome};
use crate::kernel::page::PAGE;
use crate::kernel::process::Future;
use crate::kernel::{elf, global, process, sched};

/// The end of user addresses: 39 bits.
const USER_END: u64 = 1 << 39;

/// Protection bits (include/uapi/asm-generic/mman-common.h, arch/arm64/include/uapi/asm/mman.h).
mod prot {
    pub const READ: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const EXEC: u64 = 4;
    /// Of no meaning, but allowed.
    pub const SEM: u64 = 8;
    pub const MTE: u64 = 0x20;
    pub const ALL: u64 = READ | WRITE | EXEC | SEM | MTE;
}

/// Flags of mmap (include/uapi/asm-generic/mman-common.h, mman.h).
mod flag {
    pub const TYPE: u64 = 0xf;
    pub const SHARED: u64 = 1;
    pub const PRIVATE: u64 = 2;
    pub const SHARED_VALIDATE: u64 = 3;
    pub const FIXED: u64 = 0x10;
    pub const ANONYMOUS: u64 = 0x20;
    pub const GROWSDOWN: u64 = 0x100;
    pub const LOCKED: u64 = 0x2000;
    pub const POPULATE: u64 = 0x8000;
    pub const HUGETLB: u64 = 0x4_0000;
    pub const FIXED_NOREPLACE: u64 = 0x10_0000;
}

/// The error number of a refusal.
pub(super) fn map_errno(error: MapError) -> Errno {
    match error {
        MapError::Misaligned(_) | MapError::Empty | MapError::Locked(_) => Errno::EINVAL,
        MapError::Occupied(_) => Errno::EEXIST,
        MapError::OutOfRange(_) | MapError::NotMapped(_) | MapError::NoRoom(_) | MapError::NoMemory => Errno::ENOMEM,
    }
}

/// As Linux reads it on a CPU without execute-only memory: whatever may be written or executed may be read.
fn protection(bits: u64) -> Protection {
    let mut protection = Protection::empty();
    if bits & (prot::READ | prot::WRITE | prot::EXEC) != 0 {
        protection |= Protection::READ;
    }
    protection.set(Protection::WRITE, bits & prot::WRITE != 0);
    protection.set(Protection::EXEC, bits & prot::EXEC != 0);
    protection.set(Protection::TAGGED, bits & prot::MTE != 0 && has_tags());
    protection
}

fn has_tags() -> bool {
    global::mm().machine().features().contains(Features::MTE)
}

/// Length rounded up to pages; 0 when there is no such number.
pub(super) fn round_up(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(PAGE).unwrap_or(0)
}

/// A pointer's address without its tag: munmap, mprotect and madvise take tagged pointers, mmap and brk do not (Linux's
/// Documentation/arch/arm64/tagged-address-abi.rst). Bit 55 says which half it is in, as for the CPU.
pub(super) fn untagged(pointer: u64) -> u64 {
    ((pointer << 8).cast_signed() >> 8).cast_unsigned()
}

/// The start of a range that lies within the user's half.
pub(super) fn in_user_half(start: u64, length: u64) -> Option<VirtAddr> {
    (start <= USER_END && length <= USER_END - start).then(|| VirtAddr::new(start))
}

/// Moves the end of the data; returns where it is, moved or not.
pub fn brk(wanted: u64) -> u64 {
    let memory = process::memory();
    let mut program_break = memory.program_break();
    let now = program_break.now;
    if wanted < program_break.start || wanted > USER_END {
        return now;
    }
    let (old, new) = (round_up(now), round_up(wanted));
    let (mm, space) = (global::mm(), memory.space());
    let mut grown = None;
    let done = if new > old {
        let request = MapRequest {
            placement: Placement::FixedNoReplace(VirtAddr::new(old)),
            bytes: new - old,
            protection: Protection::READ | Protection::WRITE | locked(memory.future()),
            growth: Growth::Fixed,
        };
        grown = space.map(mm, request).ok();
        grown.is_some()
    } else {
        new == old || space.unmap(mm, VirtAddr::new(new), old - new).is_ok()
    };
    if !done {
        return now;
    }
    program_break.now = wanted;
    // Who waits for memory waits for others' ends, and a fork keeps those waiting while it waits for the break.
    drop(program_break);
    if let (Some(start), Future::Populated) = (grown, memory.future()) {
        let _ = populate(start, new - old, Touch::As(Access::Write));
    }
    wanted
}

/// What a region is asked for that is made while such is to become of it.
fn locked(future: Future) -> Protection {
    if future == Future::Pageable { Protection::empty() } else { Protection::LOCKED }
}

/// Maps anonymous private memory.
pub fn mmap(hint: u64, bytes: u64, bits: u64, flags: u64, offset: u64) -> Outcome {
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    if flags & flag::ANONYMOUS == 0 {
        // There are no files, so no descriptor of one.
        return Err(Errno::EBADF);
    }
    match flags & flag::TYPE {
        flag::PRIVATE => {}
        flag::SHARED | flag::SHARED_VALIDATE => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    }
    if flags & flag::HUGETLB != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if bytes == 0 {
        return Err(Errno::EINVAL);
    }
    let length = round_up(bytes);
    if length == 0 || length > USER_END {
        return Err(Errno::ENOMEM);
    }
    let fixed = flags & (flag::FIXED | flag::FIXED_NOREPLACE) != 0;
    let placement = if fixed {
        if hint > USER_END - length {
            return Err(Errno::ENOMEM);
        }
        if !hint.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let at = VirtAddr::new(hint);
        if flags & flag::FIXED_NOREPLACE != 0 { Placement::FixedNoReplace(at) } else { Placement::Fixed(at) }
    } else {
        // A hint that cannot be followed is no error.
        let hint = if hint <= USER_END - length { hint & !(PAGE - 1) } else { 0 };
        Placement::Anywhere { hint: VirtAddr::new(hint) }
    };
    let growth =
        if flags & flag::GROWSDOWN != 0 { Growth::Down { limit_bytes: elf::STACK_LIMIT } } else { Growth::Fixed };
    let future = if flags & flag::LOCKED != 0 { Future::Populated } else { process::memory().future() };
    let protection = protection(bits) | locked(future);
    let request = MapRequest { placement, bytes: length, protection, growth };
    let start = process::space().map(global::mm(), request).map_err(|error| match error {
        // Below the user's half's end, so it is below the lowest address: Linux's vm.mmap_min_addr.
        MapError::OutOfRange(_) if fixed => Errno::EPERM,
        other => map_errno(other),
    })?;
    if (flags & flag::POPULATE != 0 || future == Future::Populated)
        && let Some(access) = access_of(protection)
    {
        // As in Linux nothing that goes wrong here is an error of the call.
        let _ = populate(start, length, Touch::As(access));
    }
    Ok(start.bytes())
}

/// The access that a mapping is populated for.
pub(super) fn access_of(protection: Protection) -> Option<Access> {
    if protection.contains(Protection::WRITE) {
        Some(Access::Write)
    } else {
        protection.contains(Protection::READ).then_some(Access::Read)
    }
}

/// Unmaps whatever lies in a range.
pub fn munmap(pointer: u64, bytes: u64) -> Outcome {
    let (start, length) = (untagged(pointer), round_up(bytes));
    if !start.is_multiple_of(PAGE) || length == 0 {
        return Err(Errno::EINVAL);
    }
    let start = in_user_half(start, length).ok_or(Errno::EINVAL)?;
    process::space().unmap(global::mm(), start, length).map_err(map_errno)?;
    Ok(0)
}

/// Changes what may be done with a range.
pub fn mprotect(pointer: u64, bytes: u64, bits: u64) -> Outcome {
    let (start, length) = (untagged(pointer), round_up(bytes));
    if !start.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    if bytes == 0 {
        return Ok(0);
    }
    if length == 0 || start.checked_add(length).is_none() {
        return Err(Errno::ENOMEM);
    }
    let unsupported = if has_tags() { !prot::ALL } else { !prot::ALL | prot::MTE };
    if bits & unsupported != 0 {
        return Err(Errno::EINVAL);
    }
    let start = in_user_half(start, length).ok_or(Errno::ENOMEM)?;
    process::space().protect(global::mm(), start, length, protection(bits)).map_err(map_errno)?;
    Ok(0)
}

/// What an advice asks for.
enum Wanted {
    Nothing,
    Advice(Advice),
    Populated(Access),
    Folios(Folios),
}

/// Takes advice about a range.
pub fn madvise(pointer: u64, bytes: u64, advice: u64) -> Outcome {
    // Numbers of include/uapi/asm-generic/mman-common.h. NORMAL, RANDOM and SEQUENTIAL are hints that change nothing
    // here: how a program goes is seen by its faults.
    let advice = match advice {
        0..=2 => Wanted::Nothing,
        3 => Wanted::Advice(Advice::WillNeed),
        14 => Wanted::Folios(Folios::Any),
        15 => Wanted::Folios(Folios::Single),
        4 => Wanted::Advice(Advice::DontNeed),
        8 => Wanted::Advice(Advice::Free),
        20 => Wanted::Advice(Advice::Cold),
        21 => Wanted::Advice(Advice::PageOut),
        22 => Wanted::Populated(Access::Read),
        23 => Wanted::Populated(Access::Write),
        _ => return Err(Errno::EINVAL),
    };
    let (start, length) = (untagged(pointer), round_up(bytes));
    if !start.is_multiple_of(PAGE) || (bytes != 0 && length == 0) || start.checked_add(length).is_none() {
        return Err(Errno::EINVAL);
    }
    if length == 0 {
        return Ok(0);
    }
    let start = in_user_half(start, length).ok_or(Errno::ENOMEM)?;
    match advice {
        Wanted::Advice(advice) => advise(start, length, advice)?,
        Wanted::Nothing => process::space().check_mapped(global::mm(), start, length).map_err(map_errno)?,
        Wanted::Populated(access) => populate_for(start, length, access)?,
        Wanted::Folios(folios) => {
            process::space().prefer_folios(global::mm(), start, length, folios).map_err(map_errno)?;
        }
    }
    Ok(0)
}

/// Hands an advice on in pieces, between which the space's lock is free and the caller looks whether it is to be killed.
/// As on Linux what is not mapped is passed over, and told in the end; what is locked ends it.
fn advise(start: VirtAddr, bytes: u64, advice: Advice) -> Result<(), Errno> {
    /// No folio lies on both sides of a multiple.
    const PIECE: u64 = 4096 * PAGE;
    let end = start.bytes() + bytes;
    let (mut from, mut result) = (start.bytes(), Ok(()));
    while from < end {
        if sched::kill_pending() {
            return Err(Errno::EINTR);
        }
        let to = (from + 1).next_multiple_of(PIECE).min(end);
        match process::space().advise(global::mm(), VirtAddr::new(from), to - from, advice) {
            Ok(()) => {}
            Err(error @ MapError::NotMapped(_)) => result = Err(map_errno(error)),
            Err(error) => return Err(map_errno(error)),
        }
        from = to;
    }
    result
}

/// Makes every page of a range ready, as if the program had touched it: without memory somebody's end is waited for.
/// [`FaultError::NoMemory`] when that is to be the caller's.
pub(super) fn populate(start: VirtAddr, bytes: u64, touch: Touch) -> Result<(), FaultError> {
    /// Whether the caller is to be killed is asked so often.
    const PIECE: u64 = 256 * PAGE;
    let end = start.bytes() + bytes;
    let mut from = start.bytes();
    while from < end {
        if sched::kill_pending() {
            return Err(FaultError::NoMemory);
        }
        let piece = PIECE.min(end - from);
        match process::space().populate(global::mm(), VirtAddr::new(from), piece, touch) {
            Ok(()) => from += piece,
            Err(Unready { fault, error: FaultError::NoMemory }) => {
                process::outlast(fault)?;
                from = fault.address.bytes();
            }
            Err(Unready { error, .. }) => return Err(error),
        }
    }
    Ok(())
}

/// [`populate`] by advice.
fn populate_for(start: VirtAddr, bytes: u64, access: Access) -> Result<(), Errno> {
    populate(start, bytes, Touch::As(access)).map_err(|error| match error {
        // It is to be killed.
        FaultError::NoMemory => Errno::EINTR,
        FaultError::NotMapped | FaultError::Capped => Errno::ENOMEM,
        FaultError::Protection => Errno::EINVAL,
        FaultError::Unreadable { .. } | FaultError::Damaged { .. } | FaultError::Lost => Errno::EFAULT,
    })
}
