//! The memory of a program: its address space, and what system calls keep of that.
//!
//! Each thread has a share: those of a process in the same, and from vfork to the child's execve or end those of two
//! processes. The last one to let it go takes the space apart. swapoff holds it too, for as long as it looks at the
//! space.

use alloc::alloc::{Layout, alloc};
use alloc::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::space::Search;
use ebbtide::sync::{Sleep, SleepGuard};

use super::oom;
use crate::kernel::sched::{self, TaskId};
use crate::kernel::{Hardware, global, stack, time};

/// See the module's head.
pub struct Memory {
    space: Space<Hardware>,
    program_break: Sleep<Break>,
    /// What becomes of regions that are made from now on.
    future: AtomicU32,
    /// Where the search for groups to collapse goes on.
    searched: AtomicU64,
    users: AtomicU32,
    /// Its end was waited for in vain (see `oom`).
    given_up: AtomicBool,
}

/// The end of a program's data.
#[derive(Copy, Clone)]
pub struct Break {
    /// Where it was when the program started.
    pub start: u64,
    /// Where it is.
    pub now: u64,
}

/// Whether new regions stay in memory (mlockall).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum Future {
    /// As reclaim likes.
    Pageable,
    /// What is there stays.
    Locked,
    /// All of it is there from the start, and stays.
    Populated,
}

impl Memory {
    /// The address space.
    pub fn space(&self) -> &Space<Hardware> {
        &self.space
    }

    /// The break, which nobody else moves until the guard is dropped.
    pub fn program_break(&self) -> SleepGuard<'_, Break, Hardware> {
        self.program_break.lock(global::mm().machine())
    }

    /// What becomes of regions that are made from now on.
    pub fn future(&self) -> Future {
        match self.future.load(Ordering::Relaxed) {
            0 => Future::Pageable,
            1 => Future::Locked,
            _ => Future::Populated,
        }
    }

    /// Says what becomes of regions that are made from now on. A copy, or another program, begins anew.
    pub fn set_future(&self, future: Future) {
        self.future.store(future as u32, Ordering::Relaxed);
    }

    /// A copy; none when there is no room for it. Under [`lock_spaces`], until it is some task's.
    pub fn fork(&self) -> Option<MemoryRef> {
        let program_break = *self.program_break();
        MemoryRef::of(self.space.fork(global::mm()).ok()?, program_break)
    }

    /// Looks at one group of pages, the next after that of the last call, and makes a folio of it if that is worth it.
    fn collapse_group(&self) -> Search {
        let from = VirtAddr::new(self.searched.load(Ordering::Relaxed));
        let search = self.space.collapse(global::mm(), from, 1);
        let next = if let Search::At(next) = search { next } else { VirtAddr::new(0) };
        self.searched.store(next.bytes(), Ordering::Relaxed);
        search
    }

    /// Nobody waits any more for its end.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Whether more than one share is held.
    pub fn is_shared(&self) -> bool {
        self.users.load(Ordering::Relaxed) > 1
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
        Self::of(Space::new(global::mm()).ok()?, Break { start: 0, now: 0 })
    }

    fn of(space: Space<Hardware>, program_break: Break) -> Option<Self> {
        let memory = Memory {
            space,
            program_break: Sleep::new(program_break),
            future: AtomicU32::new(Future::Pageable as u32),
            searched: AtomicU64::new(0),
            users: AtomicU32::new(1),
            given_up: AtomicBool::new(false),
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
            oom::memory_ended(self.0.as_ptr());
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

/// Looks at one group of pages of the program that comes next in the order of tasks, from this one on, and makes a
/// folio of it if that is worth it. Returns which task is next; `None` when there is no program from `from` on.
pub fn collapse_group(from: TaskId) -> Option<TaskId> {
    // The share is given back under the lock, so that it is never the last.
    let _locked = lock_spaces();
    let (task, memory) = sched::next_memory(from)?;
    match memory.collapse_group() {
        Search::At(_) => Some(task),
        Search::Done => Some(TaskId::new(task.number() + 1)),
    }
}

/// Runs `f` with the spaces of all programs. None is made or taken apart meanwhile, but such as has nothing in swap.
pub fn with_every_space<R>(f: impl FnOnce(&[&Space<Hardware>]) -> R) -> R {
    let _locked = lock_spaces();
    let began = time::counter();
    let mut shares: ArrayVec<MemoryRef, { stack::MOST_TASKS }> = ArrayVec::new();
    sched::for_each_memory(|memory| {
        if !shares.iter().any(|known| known.as_ptr() == memory.as_ptr()) {
            shares.push(memory.clone());
        }
    });
    let spaces: ArrayVec<_, { stack::MOST_TASKS }> = shares.iter().map(|memory| memory.space()).collect();
    let result = f(&spaces);
    oom::excuse(time::counter() - began);
    result
}
