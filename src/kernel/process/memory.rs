//! The memory of a program: its address space, and what system calls keep of that.
//!
//! A process has one, and two have it together from vfork to the child's execve or end. The last one to let it go takes
//! the space apart. swapoff holds it too, for as long as it looks at the space.

use alloc::alloc::{Layout, alloc};
use alloc::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use ebbtide::Space;
use ebbtide::sync::{Sleep, SleepGuard};

use crate::kernel::{Hardware, global, sched, stack};

/// See the module's head.
pub struct Memory {
    space: Space<Hardware>,
    /// Where the break starts, and where it is.
    break_start: AtomicU64,
    break_now: AtomicU64,
    users: AtomicU32,
}

impl Memory {
    /// The address space.
    pub fn space(&self) -> &Space<Hardware> {
        &self.space
    }

    /// The break's start and the break.
    pub fn program_break(&self) -> (u64, u64) {
        (self.break_start.load(Ordering::Relaxed), self.break_now.load(Ordering::Relaxed))
    }

    /// Moves the break.
    pub fn set_program_break(&self, to: u64) {
        self.break_now.store(to, Ordering::Relaxed);
    }

    /// A copy; none when there is no room for it. Under [`lock_spaces`], until it is some task's.
    pub fn fork(&self) -> Option<MemoryRef> {
        MemoryRef::of(self.space.fork(global::mm()).ok()?, self.program_break())
    }

    /// Whether more than one share is held.
    pub fn is_shared(&self) -> bool {
        self.users.load(Ordering::Relaxed) > 1
    }

    /// Says where the data ends that a program has at its start.
    pub fn start_break(&self, at: u64) {
        self.break_start.store(at, Ordering::Relaxed);
        self.break_now.store(at, Ordering::Relaxed);
    }
}

/// A share in a program's memory.
pub struct MemoryRef(NonNull<Memory>);

// SAFETY: the memory is shared, and gone only after the last share.
unsafe impl Send for MemoryRef {}
// SAFETY: as above.
unsafe impl Sync for MemoryRef {}

impl MemoryRef {
    /// Memory with nothing in it; none when there is no room for it.
    pub fn new() -> Option<Self> {
        Self::of(Space::new(global::mm()).ok()?, (0, 0))
    }

    fn of(space: Space<Hardware>, (break_start, break_now): (u64, u64)) -> Option<Self> {
        let memory = Memory {
            space,
            break_start: AtomicU64::new(break_start),
            break_now: AtomicU64::new(break_now),
            users: AtomicU32::new(1),
        };
        // SAFETY: the type is not of size zero.
        let Some(place) = NonNull::new(unsafe { alloc(Layout::new::<Memory>()) }.cast::<Memory>()) else {
            end(memory);
            return None;
        };
        // SAFETY: just allocated, with the type's layout.
        unsafe { place.write(memory) };
        Some(Self(place))
    }

    /// Its address.
    pub fn as_ptr(&self) -> *const Memory {
        self.0.as_ptr()
    }
}

impl Clone for MemoryRef {
    fn clone(&self) -> Self {
        self.users.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl Deref for MemoryRef {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        // SAFETY: it stays for as long as there is a share.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for MemoryRef {
    fn drop(&mut self) {
        if self.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: made by `of`, as a box is, and this was the last share.
            end(*unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }
}

fn end(memory: Memory) {
    if memory.space.destroy(global::mm()).is_err() {
        unreachable!("a CPU runs a space that no task has");
    }
}

static SPACES: Sleep<()> = Sleep::new(());

/// Keeps others from making spaces that have pages in swap from the start, and from taking one out of its task to end
/// it, until the guard is dropped.
pub fn lock_spaces() -> SleepGuard<'static, (), Hardware> {
    SPACES.lock(global::mm().machine())
}

/// Runs `f` with every space that there is. None is made or taken apart meanwhile, but such as have nothing in swap.
pub fn with_every_space<R>(f: impl FnOnce(&[&Space<Hardware>]) -> R) -> R {
    let _locked = lock_spaces();
    let mut shares: ArrayVec<MemoryRef, { stack::MOST_TASKS }> = ArrayVec::new();
    sched::for_each_memory(|memory| {
        if !shares.iter().any(|known| known.as_ptr() == memory.as_ptr()) {
            shares.push(memory.clone());
        }
    });
    let spaces: ArrayVec<&Space<Hardware>, { stack::MOST_TASKS }> = shares.iter().map(|memory| &memory.space).collect();
    f(&spaces)
}
