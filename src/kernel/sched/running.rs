//! The task that runs here: who it is, and what it has.

use core::ptr;
use core::sync::atomic::Ordering;

use super::{Kind, TaskId, with, work};
use crate::kernel::el0::UserState;
use crate::kernel::percpu::{self, NO_TASK};
use crate::kernel::process::{Memory, MemoryRef};

/// Takes the work of the running task, which is done then.
pub fn take_work() -> u32 {
    percpu::here().work.swap(0, Ordering::Relaxed)
}

/// Has the running task's system call made where its whole frame is at hand.
pub fn defer_call() {
    percpu::here().work.fetch_or(work::CALL, Ordering::Relaxed);
}

/// The running task.
pub fn current() -> TaskId {
    let number = percpu::here().task.load(Ordering::Relaxed);
    debug_assert!(number != NO_TASK, "no task runs here");
    TaskId(number as usize)
}

/// The memory of the running program, if one runs.
#[inline]
pub fn current_memory() -> *const Memory {
    percpu::here().memory.load(Ordering::Relaxed)
}

/// Runs `f` with the running program's registers: those in its record, and in the CPU unless `f` saves or loads them.
pub fn with_user<R>(f: impl FnOnce(&mut UserState) -> R) -> R {
    with(|scheduler| match scheduler.current_program() {
        Some((_, Kind::Program { user, .. })) => f(user),
        _ => unreachable!("no program runs"),
    })
}

/// Gives the running task other memory, or none, and returns what it had. The new one is active; what it had is
/// not if there is none.
pub fn replace_memory(new: Option<MemoryRef>) -> Option<MemoryRef> {
    let pointer = new.as_ref().map_or(ptr::null(), MemoryRef::as_ptr);
    with(|scheduler| {
        let old = match scheduler.current_program() {
            Some((_, Kind::Program { memory, .. })) => core::mem::replace(memory, new),
            _ => unreachable!("no program runs"),
        };
        percpu::here().memory.store(pointer.cast_mut(), Ordering::Relaxed);
        scheduler.activate(pointer);
        old
    })
}

/// A share in a task's memory, while it has any.
pub fn memory_of(id: TaskId) -> Option<MemoryRef> {
    with(|scheduler| match &scheduler.tasks[id.0].kind {
        Kind::Program { memory, .. } => memory.clone(),
        Kind::Kernel => None,
    })
}

/// The first task from this one on that has memory which no task before it has, and a share in that.
pub fn next_memory(from: TaskId) -> Option<(TaskId, MemoryRef)> {
    with(|scheduler| {
        let tasks = &scheduler.tasks;
        (from.0..tasks.len()).find_map(|number| {
            let Kind::Program { memory: Some(memory), .. } = &tasks[number].kind else { return None };
            let is_first = tasks[..number].iter().all(|task| task.memory() != memory.as_ptr());
            is_first.then(|| (TaskId(number), memory.clone()))
        })
    })
}

/// The memory of every program, that of two which share it twice.
pub fn for_each_memory(mut visit: impl FnMut(&MemoryRef)) {
    with(|scheduler| {
        for task in &scheduler.tasks {
            if let Kind::Program { memory: Some(memory), .. } = &task.kind {
                visit(memory);
            }
        }
    });
}
