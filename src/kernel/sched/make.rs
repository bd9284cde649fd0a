//! The making of tasks.

use core::ptr;

use super::{Kind, SLICE_NS, State, Task, TaskId, kernel_task_start, user_task_start, with};
use crate::kernel::el0::{UserState, WholeFrame};
use crate::kernel::process::MemoryRef;
use crate::kernel::{percpu, stack, time};

/// Makes room for all tasks that there can be. Called once, at boot.
pub fn start() {
    with(|scheduler| {
        scheduler.tasks.reserve_exact(stack::tasks());
        scheduler.slice = time::ticks_of(SLICE_NS);
    });
}

/// Makes a task of a function of the kernel, at boot; it runs at the first chance.
pub fn spawn(body: extern "C" fn() -> !) {
    with(|scheduler| {
        let Some((task, top)) = scheduler.place() else { panic!("no room for a kernel task") };
        let stack_pointer = new_stack(top, kernel_task_start, body as *const () as usize);
        scheduler.put(task, Task { stack_pointer, ..Task::ABSENT });
        scheduler.make_ready(task);
    });
}

/// Whether another task has room.
pub fn has_room() -> bool {
    with(|scheduler| scheduler.place().is_some())
}

/// Makes a program's task with these registers and this memory, which [`begin`] starts; none if there is no room, in
/// which case the memory comes back.
pub fn add(memory: MemoryRef, user: UserState, frame: WholeFrame) -> Result<TaskId, MemoryRef> {
    with(|scheduler| {
        let Some((task, top)) = scheduler.place() else { return Err(memory) };
        let place: *mut WholeFrame = ptr::with_exposed_provenance_mut(top - size_of::<WholeFrame>());
        // SAFETY: the stack is mapped, and no task runs on it.
        unsafe { place.write(frame) };
        let stack_pointer = new_stack(place.addr(), user_task_start, 0);
        let kind = Kind::Program { memory: Some(memory), user, fatal: None };
        scheduler.put(task, Task { state: State::New, stack_pointer, cpu: percpu::number(), kind });
        Ok(task)
    })
}

/// Starts a new task.
pub fn begin(id: TaskId) {
    with(|scheduler| {
        debug_assert!(scheduler.tasks[id.0].state == State::New);
        scheduler.make_ready(id);
    });
}

/// Writes what the first `context_switch` takes from a stack, below `top`: x19 to x30 from the top down, of which x30
/// is where it returns to.
fn new_stack(top: usize, start: unsafe extern "C" fn(), x19: usize) -> usize {
    let place: *mut [usize; 12] = ptr::with_exposed_provenance_mut(top - size_of::<[usize; 12]>());
    let mut registers = [0; 12];
    registers[1] = start as *const () as usize;
    registers[10] = x19;
    // SAFETY: the stack is mapped, and no task runs on it.
    unsafe { place.write(registers) };
    place.addr()
}
