//! The scheduler: one CPU, kernel tasks and programs' tasks, each on a stack of its own.
//!
//! **Who runs.** Code at EL1 runs until it waits or returns to EL0; it is never preempted. A kernel task that was
//! woken runs before anything else does at EL0. Programs' tasks take turns, in the order of their numbers: a turn ends
//! when the task waits, yields, or, while another one is ready, after [`SLICE_NS`]. What a kernel task takes of it does
//! not end it. With one program that is ready and none that sleeps for a time, the timer is off, so that nothing
//! disturbs what is being counted. When nobody is ready, the CPU idles on the stack of the last one that ran.
//!
//! **Waiting.** A task waits on a word: [`wait`] is what the library's sleeping locks come down to, and ends only by
//! [`wake`]; [`wait_breakable`] ends also at a time, or when the task is to be killed.
//!
//! **Killing.** Nobody ends another task. [`doom`] notes why, which the task finds on its way to EL0, with no lock
//! held and nothing half done.
//!
//! **Work.** The vectors look at [`WORK`] before they return to EL0: what it says is about the task that runs.
//!
//! **Whose state.** All of it is touched at EL1 with interrupts masked, on one CPU, and no reference to it lives across
//! a context switch: see [`with`]. `owner` is the task whose [`UserState`] is in the CPU rather than in its record; its
//! address space is the active one.

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::el0::{UserState, WholeFrame};
use super::process::{Fatal, Memory, MemoryRef};
use super::{global, interrupt, stack, time};

/// The longest turn of a program while another one is ready.
const SLICE_NS: u64 = 4_000_000;

/// Bits of [`WORK`].
pub mod work {
    /// A kernel task is ready.
    pub const KERNEL_TASK: u32 = 1 << 0;
    /// The running task is to be killed.
    pub const KILL: u32 = 1 << 1;
    /// The running task has made a system call that needs its whole frame.
    pub const CALL: u32 = 1 << 2;
}

/// What is to be done before the return to EL0. Read by `boot/vectors.S`.
#[unsafe(no_mangle)]
static WORK: AtomicU32 = AtomicU32::new(0);

/// The memory of the running program: for the way of a fault, on which each instruction counts.
static CURRENT_MEMORY: AtomicPtr<Memory> = AtomicPtr::new(ptr::null_mut());

/// A task, by the number of its stack.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct TaskId(usize);

impl TaskId {
    /// The task of a number.
    pub const fn new(number: usize) -> Self {
        Self(number)
    }

    /// The number: below [`stack::tasks`].
    pub const fn number(self) -> usize {
        self.0
    }
}

/// What ends a wait beside [`wake`].
#[derive(Copy, Clone, Eq, PartialEq)]
enum Ends {
    /// Nothing.
    Waking,
    /// That the task is to be killed.
    Killing,
    /// That, or a value of the counter.
    KillingOrTime(u64),
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum State {
    /// The record is free.
    Absent,
    Running,
    Ready,
    /// On the word at this address.
    Waiting(*const AtomicU32, Ends),
    /// It never runs again; its record is in use until [`release`].
    Dead,
}

#[expect(clippy::large_enum_variant, reason = "nearly all tasks are programs', and the table is made at boot")]
enum Kind {
    Kernel,
    Program {
        /// None once it has ended.
        memory: Option<MemoryRef>,
        user: UserState,
        /// What is to kill it.
        fatal: Option<Fatal>,
    },
}

struct Task {
    state: State,
    stack_pointer: usize,
    kind: Kind,
}

impl Task {
    const ABSENT: Self = Self { state: State::Absent, stack_pointer: 0, kind: Kind::Kernel };

    fn is_ready_program(&self) -> bool {
        self.state == State::Ready && matches!(self.kind, Kind::Program { .. })
    }

    fn is_ready_kernel_task(&self) -> bool {
        self.state == State::Ready && matches!(self.kind, Kind::Kernel)
    }

    fn wake_time(&self) -> Option<u64> {
        match self.state {
            State::Waiting(_, Ends::KillingOrTime(at)) => Some(at),
            _ => None,
        }
    }
}

struct Scheduler {
    /// Up to the highest number that was ever in use.
    tasks: Vec<Task>,
    /// None on the boot stack.
    current: Option<TaskId>,
    owner: Option<TaskId>,
    /// The number of the task whose turn it is.
    turn: usize,
    /// When the turn ends, if another task is ready by then.
    turn_end: u64,
    /// When the timer interrupts.
    alarm: Option<u64>,
    slice: u64,
}

struct Global(UnsafeCell<Scheduler>);

// SAFETY: see the module's head: one CPU, interrupts masked, and no reference lives across a context switch.
unsafe impl Sync for Global {}

static SCHEDULER: Global = Global(UnsafeCell::new(Scheduler {
    tasks: Vec::new(),
    current: None,
    owner: None,
    turn: 0,
    turn_end: 0,
    alarm: None,
    slice: 0,
}));

unsafe extern "C" {
    fn context_switch(keep: *mut usize, take: usize);
    fn kernel_task_start();
    fn user_task_start();
}

/// Runs `f` with the scheduler's state. `f` neither switches, nor calls anything else of this module, nor drops a
/// [`MemoryRef`].
fn with<R>(f: impl FnOnce(&mut Scheduler) -> R) -> R {
    // SAFETY: no other reference exists: what `f` does not do.
    f(unsafe { &mut *SCHEDULER.0.get() })
}

/// What is next for the CPU.
enum Next {
    /// Nobody is ready.
    Idle,
    /// The running task goes on.
    Same,
    Other(TaskId),
}

impl Scheduler {
    /// A place for a task, if there is one: its number, and the top of its stack.
    fn place(&self) -> Option<(TaskId, usize)> {
        let free = self.tasks.iter().position(|task| task.state == State::Absent);
        let number = free.unwrap_or(self.tasks.len());
        (number < stack::tasks()).then(|| (TaskId(number), stack::of_task(number).end))
    }

    /// Puts a task in its place.
    fn put(&mut self, id: TaskId, task: Task) {
        match self.tasks.get_mut(id.0) {
            Some(place) => *place = task,
            // There is capacity for all of them: `start`.
            None => self.tasks.push(task),
        }
    }

    /// Makes the sleepers ready whose time has come.
    fn rouse(&mut self) {
        if self.tasks.iter().all(|task| task.wake_time().is_none()) {
            return;
        }
        let now = time::counter();
        for task in &mut self.tasks {
            if task.wake_time().is_some_and(|at| at <= now) {
                task.state = State::Ready;
            }
        }
    }

    fn next(&mut self) -> Next {
        self.rouse();
        let tasks = &self.tasks;
        let in_turn = || (0..tasks.len()).map(|step| (self.turn + step) % tasks.len());
        let kernel_task = tasks.iter().position(Task::is_ready_kernel_task);
        match kernel_task.or_else(|| in_turn().find(|&number| tasks[number].is_ready_program())) {
            None => Next::Idle,
            Some(number) if self.current == Some(TaskId(number)) => Next::Same,
            Some(number) => Next::Other(TaskId(number)),
        }
    }

    /// Notes who runs from now on, and what it finds on its way to EL0.
    fn run(&mut self, next: TaskId) {
        let task = &mut self.tasks[next.0];
        task.state = State::Running;
        self.current = Some(next);
        if let Kind::Program { memory, fatal, .. } = &task.kind {
            let memory = memory.as_ref().map_or(ptr::null(), MemoryRef::as_ptr);
            CURRENT_MEMORY.store(memory.cast_mut(), Ordering::Relaxed);
            WORK.store(if fatal.is_some() { work::KILL } else { 0 }, Ordering::Relaxed);
            if self.turn != next.0 {
                self.begin_turn(next.0);
            }
            self.set_alarm();
        }
    }

    fn begin_turn(&mut self, of: usize) {
        self.turn = of;
        self.turn_end = time::counter() + self.slice;
    }

    /// Sets the timer for what comes first: the turn's end, if there is somebody to be next, or a sleeper's time.
    fn set_alarm(&mut self) {
        let turn_end = self.tasks.iter().any(Task::is_ready_program).then_some(self.turn_end);
        let alarm = self.tasks.iter().filter_map(Task::wake_time).chain(turn_end).min();
        if alarm != self.alarm {
            self.alarm = alarm;
            interrupt::set_timer(alarm);
        }
    }

    /// Moves the EL0 registers of `next` to the CPU, if they are not there; returns its memory to activate.
    fn change_owner(&mut self, next: TaskId) -> Option<*const Memory> {
        if self.owner == Some(next) || matches!(self.tasks[next.0].kind, Kind::Kernel) {
            return None;
        }
        if let Some(owner) = self.owner.replace(next)
            && let Kind::Program { user, .. } = &mut self.tasks[owner.0].kind
        {
            user.save();
        }
        let Kind::Program { user, memory, .. } = &self.tasks[next.0].kind else { return None };
        user.load();
        Some(memory.as_ref().map_or(ptr::null(), MemoryRef::as_ptr))
    }

    fn current_program(&mut self) -> Option<(TaskId, &mut Kind)> {
        let current = self.current?;
        Some((current, &mut self.tasks[current.0].kind))
    }
}

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
        scheduler.put(task, Task { state: State::Ready, stack_pointer, kind: Kind::Kernel });
    });
}

/// Whether another task has room.
pub fn has_room() -> bool {
    with(|scheduler| scheduler.place().is_some())
}

/// Makes a program's task, which starts with these registers and this memory; none if there is no room, in
/// which case the memory comes back.
pub fn add(memory: MemoryRef, user: UserState, frame: WholeFrame) -> Result<TaskId, MemoryRef> {
    with(|scheduler| {
        let Some((task, top)) = scheduler.place() else { return Err(memory) };
        let place: *mut WholeFrame = ptr::with_exposed_provenance_mut(top - size_of::<WholeFrame>());
        // SAFETY: the stack is mapped, and no task runs on it.
        unsafe { place.write(frame) };
        let stack_pointer = new_stack(place.addr(), user_task_start, 0);
        let kind = Kind::Program { memory: Some(memory), user, fatal: None };
        scheduler.put(task, Task { state: State::Ready, stack_pointer, kind });
        if scheduler.current.is_some() {
            scheduler.set_alarm();
        }
        Ok(task)
    })
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

/// Leaves the boot stack for ever.
pub fn run() -> ! {
    let mut left = 0;
    match with(|scheduler| scheduler.next()) {
        Next::Other(next) => resume(next, &raw mut left),
        Next::Idle | Next::Same => {}
    }
    unreachable!("nobody comes back to the boot stack")
}

/// Changes to a task, from the one whose stack pointer goes to `keep`.
fn resume(next: TaskId, keep: *mut usize) {
    let (take, memory) = with(|scheduler| {
        let memory = scheduler.change_owner(next);
        scheduler.run(next);
        (scheduler.tasks[next.0].stack_pointer, memory)
    });
    if let Some(memory) = memory {
        // SAFETY: a task's memory stays while it has it, and it alone gives it up.
        match unsafe { memory.as_ref() } {
            Some(memory) => memory.space().activate(global::mm()),
            None => global::mm().deactivate(),
        }
    }
    // SAFETY: both stacks are the two tasks' own; `take` is what an earlier switch, `spawn` or `add` left.
    unsafe { context_switch(keep, take) };
}

/// Gives the CPU to whoever is next, with the current task in `state`; returns when that runs again.
fn switch(state: State) {
    let Some(current) = with(|scheduler| {
        let current = scheduler.current?;
        scheduler.tasks[current.0].state = state;
        Some(current)
    }) else {
        // Boot has nobody to wait for.
        return;
    };
    loop {
        match with(|scheduler| scheduler.next()) {
            Next::Other(next) => {
                let keep = with(|scheduler| &raw mut scheduler.tasks[current.0].stack_pointer);
                return resume(next, keep);
            }
            Next::Same => return with(|scheduler| scheduler.run(current)),
            Next::Idle => {
                let alarm = with(|scheduler| {
                    scheduler.set_alarm();
                    scheduler.alarm
                });
                assert!(alarm.is_some(), "every task waits");
                interrupt::wait_for_any();
            }
        }
    }
}

/// Sleeps while `word` holds `seen`.
pub fn wait(word: &AtomicU32, seen: u32) {
    // Nothing can come between the check and the sleep: interrupts are masked, and there is one CPU.
    if word.load(Ordering::Acquire) == seen {
        switch(State::Waiting(word, Ends::Waking));
    }
}

/// Sleeps while `word` holds `seen`, and no longer than until the counter has the value `until`, or until somebody
/// wants the task dead.
pub fn wait_breakable(word: &AtomicU32, seen: u32, until: Option<u64>) {
    if word.load(Ordering::Acquire) == seen && !doomed() {
        switch(State::Waiting(word, until.map_or(Ends::Killing, Ends::KillingOrTime)));
    }
}

/// Makes the sleepers on `word` ready.
pub fn wake(word: &AtomicU32) {
    with(|scheduler| {
        let mut programs = false;
        for task in &mut scheduler.tasks {
            if matches!(task.state, State::Waiting(on, _) if ptr::eq(on, word)) {
                task.state = State::Ready;
                match task.kind {
                    Kind::Kernel => drop(WORK.fetch_or(work::KERNEL_TASK, Ordering::Relaxed)),
                    Kind::Program { .. } => programs = true,
                }
            }
        }
        if programs {
            scheduler.set_alarm();
        }
    });
}

/// Lets kernel tasks that are ready run, and goes on.
pub fn run_kernel_tasks() {
    switch(State::Ready);
}

/// Ends the turn: everybody who is ready runs first.
pub fn yield_now() {
    // Whoever is ready next has it then.
    with(|scheduler| scheduler.begin_turn(scheduler.turn + 1));
    switch(State::Ready);
}

/// The timer's interrupt, taken at EL0. The timer is off.
pub fn tick() {
    let over = with(|scheduler| {
        scheduler.alarm = None;
        scheduler.rouse();
        let over = scheduler.tasks.iter().any(Task::is_ready_program) && time::counter() >= scheduler.turn_end;
        if !over {
            scheduler.set_alarm();
        }
        over
    });
    if over {
        yield_now();
    }
}

/// Takes the work of the running task, which is done then.
pub fn take_work() -> u32 {
    WORK.swap(0, Ordering::Relaxed)
}

/// Has the running task's system call made where its whole frame is at hand.
pub fn defer_call() {
    WORK.fetch_or(work::CALL, Ordering::Relaxed);
}

/// The running task.
pub fn current() -> TaskId {
    with(|scheduler| scheduler.current).unwrap_or_else(|| unreachable!("boot is no task"))
}

/// The memory of the running program, if one runs.
#[inline]
pub fn current_memory() -> *const Memory {
    CURRENT_MEMORY.load(Ordering::Relaxed)
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
    let old = with(|scheduler| match scheduler.current_program() {
        Some((_, Kind::Program { memory, .. })) => core::mem::replace(memory, new),
        _ => unreachable!("no program runs"),
    });
    CURRENT_MEMORY.store(pointer.cast_mut(), Ordering::Relaxed);
    // SAFETY: the task's own memory.
    match unsafe { pointer.as_ref() } {
        Some(memory) => memory.space().activate(global::mm()),
        None => global::mm().deactivate(),
    }
    old
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

/// Notes what is to kill a task. The first cause counts.
pub fn doom(id: TaskId, cause: Fatal) {
    with(|scheduler| {
        let task = &mut scheduler.tasks[id.0];
        let Kind::Program { fatal, .. } = &mut task.kind else { return };
        fatal.get_or_insert(cause);
        if let State::Waiting(_, Ends::Killing | Ends::KillingOrTime(_)) = task.state {
            task.state = State::Ready;
            scheduler.set_alarm();
        }
        if scheduler.current == Some(id) {
            WORK.fetch_or(work::KILL, Ordering::Relaxed);
        }
    });
}

/// What is to kill the running task.
pub fn fatal() -> Option<Fatal> {
    with(|scheduler| match scheduler.current_program() {
        Some((_, Kind::Program { fatal, .. })) => *fatal,
        _ => None,
    })
}

/// Whether the running task is to be killed.
pub fn doomed() -> bool {
    fatal().is_some()
}

/// Ends the running task, whose memory is gone already.
pub fn die() -> ! {
    with(|scheduler| {
        if scheduler.owner == scheduler.current {
            scheduler.owner = None;
        }
    });
    switch(State::Dead);
    unreachable!("a dead task runs")
}

/// Frees the record and the stack of a dead task.
pub fn release(id: TaskId) {
    with(|scheduler| {
        let task = &mut scheduler.tasks[id.0];
        assert!(task.state == State::Dead, "the task may run again");
        *task = Task::ABSENT;
    });
}
