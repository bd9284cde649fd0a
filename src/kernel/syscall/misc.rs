//! The other calls: output, time, randomness, identity, tag control, and this kernel's own.

use ebbtide::machine::{Features, Machine};

use super::{Errno, Outcome};
use crate::kernel::el0::TagControl;
use crate::kernel::process::{Mode, Node};
use crate::kernel::{console, floor, global, page, process, random, sched, time, uaccess};

/// More is not read or written at once: Linux's MAX_RW_COUNT.
pub const MOST_BYTES: u64 = 0x7fff_f000;

fn output(descriptor: u64) -> Result<fn(&[u8]), Errno> {
    let file = process::file(descriptor as u32).filter(|file| file.mode.contains(Mode::WRITE));
    match file.ok_or(Errno::EBADF)?.node {
        Node::Console => Ok(console::write_program),
        Node::Host => Ok(console::write_host),
        // It is written at a position that the caller says, and has none of its own.
        Node::Device(_) => Err(Errno::EINVAL),
    }
}

/// Writes until a part of the buffer is bad; what was written before it counts.
pub fn write(descriptor: u64, buffer: u64, bytes: u64) -> Outcome {
    let sink = output(descriptor)?;
    let total = bytes.min(MOST_BYTES);
    let mut done = 0;
    let mut piece = [0; 512];
    while done < total {
        let wanted = (total - done).min(piece.len() as u64) as usize;
        let (copied, bad) = match uaccess::read(buffer.wrapping_add(done), &mut piece[..wanted]) {
            Ok(()) => (wanted, false),
            Err(fault) => (fault.copied, true),
        };
        sink(&piece[..copied]);
        done += copied as u64;
        if bad || sched::kill_pending() {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
    }
    Ok(done)
}

/// Writes several buffers in turn.
pub fn writev(descriptor: u64, vector: u64, count: u64) -> Outcome {
    const MAX_VECTOR: u64 = 1024;
    output(descriptor)?;
    if count > MAX_VECTOR {
        return Err(Errno::EINVAL);
    }
    // The whole vector is checked before anything is written.
    let mut sum: u64 = 0;
    for index in 0..count {
        let [_, bytes] = uaccess::read_words::<2>(vector.wrapping_add(16 * index))?;
        sum = sum.checked_add(bytes).filter(|&sum| sum <= i64::MAX as u64).ok_or(Errno::EINVAL)?;
    }
    let mut done = 0;
    for index in 0..count {
        let [buffer, bytes] = uaccess::read_words::<2>(vector.wrapping_add(16 * index))?;
        match write(descriptor, buffer, bytes.min(MOST_BYTES - done)) {
            Ok(written) => {
                done += written;
                if written < bytes {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

pub const NANOS: u64 = 1_000_000_000;

/// Every clock of Linux up to CLOCK_BOOTTIME counts from the machine's start: it has no calendar.
pub fn check_clock(clock: u64) -> Result<(), Errno> {
    const BOOTTIME: u64 = 7;
    if clock & 0xffff_ffff <= BOOTTIME { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The time.
pub fn clock_gettime(clock: u64, into: u64) -> Outcome {
    check_clock(clock)?;
    let now = time::now_ns();
    uaccess::write_words(into, &[now / NANOS, now % NANOS])?;
    Ok(0)
}

/// A clock's step.
pub fn clock_getres(clock: u64, into: u64) -> Outcome {
    check_clock(clock)?;
    if into != 0 {
        uaccess::write_words(into, &[0, time::resolution_ns()])?;
    }
    Ok(0)
}

/// Who this is. The system's name is the one whose calls these are.
pub fn uname(into: u64) -> Outcome {
    const FIELD: usize = 65;
    let fields =
        ["Linux", "ebbtide", "6.12.0-ebbtide", concat!("ebbtide ", env!("CARGO_PKG_VERSION")), "aarch64", "(none)"];
    let mut bytes = [0; 6 * FIELD];
    for (place, text) in bytes.chunks_mut(FIELD).zip(fields) {
        place[..text.len()].copy_from_slice(text.as_bytes());
    }
    uaccess::write(into, &bytes)?;
    Ok(0)
}

/// Memory and swap, in bytes.
pub fn sysinfo(into: u64) -> Outcome {
    let totals = global::mm().totals();
    let [free, swap, swap_free] =
        [totals.frames_free, totals.slots, totals.slots_free].map(|pages| pages << page::SHIFT);
    let ram = process::machine_memory();
    // struct sysinfo: uptime, three loads, totalram, freeram, sharedram, bufferram, totalswap, freeswap, procs,
    // totalhigh, freehigh, mem_unit.
    let words = [time::now_ns() / NANOS, 0, 0, 0, ram, free, 0, 0, swap, swap_free, process::count() as u64, 0, 0, 1];
    uaccess::write_words(into, &words)?;
    Ok(0)
}

/// Random bytes.
pub fn getrandom(into: u64, bytes: u64, flags: u64) -> Outcome {
    /// GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE.
    const FLAGS: u64 = 0b111;
    const RANDOM_AND_INSECURE: u64 = 0b110;
    let flags = flags & 0xffff_ffff;
    if flags & !FLAGS != 0 || flags & RANDOM_AND_INSECURE == RANDOM_AND_INSECURE {
        return Err(Errno::EINVAL);
    }
    let total = bytes.min(MOST_BYTES);
    let mut done = 0;
    let mut piece = [0; 256];
    while done < total {
        let part = &mut piece[..(total - done).min(256) as usize];
        random::fill(part);
        let (copied, bad) = match uaccess::write(into.wrapping_add(done), part) {
            Ok(()) => (part.len(), false),
            Err(fault) => (fault.copied, true),
        };
        done += copied as u64;
        if bad || sched::kill_pending() {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
    }
    Ok(done)
}

/// Tag control (Linux's Documentation/arch/arm64/memory-tagging-extension.rst).
mod tag {
    pub const SET_TAGGED_ADDR_CTRL: u64 = 55;
    pub const GET_TAGGED_ADDR_CTRL: u64 = 56;
}

/// Tagged addresses, tag checks, and the tags that IRG may choose.
pub fn prctl(option: u64, args: [u64; 4]) -> Outcome {
    match option & 0xffff_ffff {
        tag::SET_TAGGED_ADDR_CTRL if args[1..] == [0; 3] => set_tag_control(args[0]),
        tag::GET_TAGGED_ADDR_CTRL if args == [0; 4] => Ok(process::tag_control().0),
        _ => Err(Errno::EINVAL),
    }
}

fn set_tag_control(control: u64) -> Outcome {
    let mte = global::mm().machine().features().contains(Features::MTE);
    let checks = TagControl::SYNC | TagControl::ASYNC | TagControl::INCLUDE;
    let known = if mte { TagControl::ENABLE | checks } else { TagControl::ENABLE };
    if control & !known != 0 {
        return Err(Errno::EINVAL);
    }
    process::set_tag_control(TagControl(control));
    Ok(0)
}

/// The counters that programs show, in a fixed order; returns how many there are.
pub fn stats(into: u64, words: u64) -> Outcome {
    let stats = global::mm().stats();
    let counters = [
        &stats.faults,
        &stats.swap_out,
        &stats.swap_in,
        &stats.refaults,
        &stats.tags_untagged,
        &stats.tags_uniform,
        &stats.tags_packed,
        &stats.tags_raw,
        &stats.clean_discards,
        &stats.direct_reclaims,
        &stats.background_wakes,
        &stats.oom_kills,
        &stats.damaged,
    ]
    .map(|counter| counter.get());
    let wanted = counters.len().min(words as usize);
    uaccess::write_words(into, &counters[..wanted])?;
    Ok(counters.len() as u64)
}

/// KiB of the largest folio that first touch makes.
pub fn folio_kib() -> u64 {
    let order = global::mm().folio_orders().largest();
    page::PAGE >> 10 << order
}

/// Whether the counter counts instructions.
pub fn icount() -> u64 {
    floor::is_exact().into()
}

/// The least number of instructions of a page operation.
pub fn floor(kind: u64) -> Outcome {
    floor::measure(kind).ok_or(Errno::ENOSYS)
}
