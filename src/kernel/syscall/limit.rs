//! Resource limits. One can be set: RLIMIT_RSS, the bytes that a program has in memory. Linux takes it and does nothing
//! by it; here what is above leaves. It is inherited by fork, and stays over execve.

use ebbtide::space::MemoryCap;

use super::{Errno, Outcome};
use crate::kernel::page::PAGE;
use crate::kernel::{elf, global, process, uaccess};

/// Resources (include/uapi/asm-generic/resource.h).
const STACK: u64 = 3;
const RSS: u64 = 5;
const NOFILE: u64 = 7;
/// How many there are.
const RESOURCES: u64 = 16;
/// No limit.
const INFINITY: u64 = !0;

/// Says what a limit was, and sets it: `new` and `old` point to two words each, the limit and how far it may be raised,
/// or are 0.
pub fn prlimit(pid: u64, resource: u64, new: u64, old: u64) -> Outcome {
    let wanted = if new != 0 { Some(uaccess::read_words::<2>(new)?) } else { None };
    if pid != 0 && pid != u64::from(process::id()) {
        return Err(Errno::ESRCH);
    }
    if resource >= RESOURCES {
        return Err(Errno::EINVAL);
    }
    let (mm, space) = (global::mm(), process::space());
    let before = match resource {
        RSS => match space.cap(mm) {
            MemoryCap::None => INFINITY,
            MemoryCap::Pages(pages) => pages * PAGE,
        },
        STACK => elf::STACK_LIMIT,
        NOFILE => process::MOST_FILES as u64,
        _ => INFINITY,
    };
    if let Some([limit, most]) = wanted {
        if limit > most {
            return Err(Errno::EINVAL);
        }
        match resource {
            RSS if limit == INFINITY => space.set_cap(mm, MemoryCap::None),
            RSS => space.set_cap(mm, MemoryCap::Pages(limit / PAGE)),
            // What is so already may be asked for.
            _ if limit == before => {}
            _ => return Err(Errno::EPERM),
        }
    }
    if old != 0 {
        // There is no room for more descriptors.
        let most = if resource == NOFILE { before } else { INFINITY };
        uaccess::write_words(old, &[before, most])?;
    }
    Ok(0)
}
