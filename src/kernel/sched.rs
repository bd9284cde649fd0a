//! The scheduler: kernel tasks and programs' tasks, each on a stack of its own, on several CPUs.
//!
//! **Who runs.** Code at EL1 runs until it waits or returns to EL0; it is never preempted, and stays on its CPU until
//! then. Each CPU has a queue of its own, and takes what was there first; a kernel task goes before all programs. A CPU
//! whose queue is empty takes from the longest of the others. So no CPU idles while a task is ready. What becomes ready
//! goes to the CPU on which it last ran, or to one that idles, if that does not. A program's turn ends when it waits,
//! yields, or, while another one is in its queue, after [`SLICE_NS`]; what a kernel task takes of it does not end it.
//! With one program that is ready and none that sleeps for a time, the timer is as good as off, so that nothing
//! disturbs what is being counted. A CPU that finds nothing waits for an interrupt on a stack of its own.
//!
//! **Waiting.** A task waits on a word: [`wait`] is what the library's sleeping locks come down to, and ends only by
//! [`wake`]; [`wait_breakable`] ends also at a time, or when the task is to be killed; [`sleep_until`] at a time alone,
//! for who waits for a device that has something of theirs. The word is compared under the scheduler's lock, which
//! `wake` takes after the word has changed: none is lost.
//!
//! **Killing.** Nobody ends another task. [`doom`] notes why, which the task finds on its way to EL0, with no lock
//! held and nothing half done.
//!
//! **Work.** The vectors look at [`PerCpu::work`](super::percpu::PerCpu) before they return to EL0: what it says is
//! about the task that runs there.
//!
//! **Whose state.** All of it is under one spinning lock, inside which nothing else is locked but the interrupt
//! controller and the library's address space identifiers. A change of tasks holds it throughout: it is taken by the
//! task that leaves, and given back by the one that comes, so that nobody takes up a task whose registers are not all
//! saved. A program's registers of EL0 are in its record whenever its task does not run, and its address space is
//! active only while it does.

mod end;
mod make;
mod queue;
mod running;

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::el0::UserState;
use super::percpu::{self, MOST_CPUS, NO_TASK};
use super::process::{Fatal, Memory, MemoryRef};
use super::{global, interrupt, panic, stack, time, watchdog};
pub use end::{Noted, Record, all_doomed, die, doom, doom_all, doomed, fatal, kill_pending, release, wait_for_rest};
pub use make::{add, begin, has_room, spawn, start};
use queue::Queue;
pub use running::{
    current, current_memory, defer_call, for_each_memory, memory_of, next_memory, replace_memory, take_work, with_user,
};

/// The longest turn of a program while another one is ready.
const SLICE_NS: u64 = 4_000_000;

/// Bits of [`PerCpu::work`](super::percpu::PerCpu).
pub mod work {
    /// A kernel task is ready.
    pub const KERNEL_TASK: u32 = 1 << 0;
    /// The running task is to be killed.
    pub const KILL: u32 = 1 << 1;
    /// The running task has made a system call that needs its whole frame.
    pub const CALL: u32 = 1 << 2;
}

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
    /// A value of the counter alone.
    Time(u64),
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum State {
    /// The record is free.
    Absent,
    /// Made, and not started yet.
    New,
    /// On its CPU.
    Running,
    /// In the queue of its CPU.
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
    /// The CPU on which it runs, ran last, or is to run.
    cpu: usize,
    kind: Kind,
}

impl Task {
    const ABSENT: Self = Self { state: State::Absent, stack_pointer: 0, cpu: 0, kind: Kind::Kernel };

    fn wake_time(&self) -> Option<u64> {
        match self.state {
            State::Waiting(_, Ends::KillingOrTime(at) | Ends::Time(at)) => Some(at),
            _ => None,
        }
    }

    /// Its memory, while it has any.
    fn memory(&self) -> *const Memory {
        match &self.kind {
            Kind::Program { memory: Some(memory), .. } => memory.as_ptr(),
            _ => ptr::null(),
        }
    }
}

/// What is one CPU's.
struct Local {
    /// None while it idles, and at boot.
    current: Option<TaskId>,
    /// Kernel tasks, then programs, that are ready for it.
    kernel_tasks: Queue,
    programs: Queue,
    /// Whose turn it is.
    turn: Option<TaskId>,
    /// When the turn ends, if another task is ready by then.
    turn_end: u64,
    /// When the timer interrupts.
    alarm: Option<u64>,
    /// It waits for an interrupt, and nobody has given it anything.
    idle: bool,
    idle_stack_pointer: usize,
    /// The memory whose space is active.
    active: *const Memory,
}

impl Local {
    const NEW: Self = Self {
        current: None,
        kernel_tasks: Queue::new(),
        programs: Queue::new(),
        turn: None,
        turn_end: 0,
        alarm: None,
        idle: false,
        idle_stack_pointer: 0,
        active: ptr::null(),
    };

    fn take(&mut self) -> Option<TaskId> {
        self.kernel_tasks.take().or_else(|| self.programs.take()).map(TaskId)
    }

    fn waiting(&self) -> usize {
        self.kernel_tasks.len() + self.programs.len()
    }
}

struct Scheduler {
    /// Up to the highest number that was ever in use.
    tasks: Vec<Task>,
    cpus: [Local; MOST_CPUS],
    slice: u64,
}

struct Global {
    held: AtomicBool,
    state: UnsafeCell<Scheduler>,
}

// SAFETY: the state is touched only by the CPU that has set `held`, with interrupts masked.
unsafe impl Sync for Global {}

static SCHEDULER: Global = Global {
    held: AtomicBool::new(false),
    state: UnsafeCell::new(Scheduler { tasks: Vec::new(), cpus: [const { Local::NEW }; MOST_CPUS], slice: 0 }),
};

unsafe extern "C" {
    fn context_switch(keep: *mut usize, take: usize);
    fn kernel_task_start();
    fn user_task_start();
}

fn lock() {
    while SCHEDULER.held.swap(true, Ordering::Acquire) {
        while SCHEDULER.held.load(Ordering::Relaxed) {
            watchdog::relax();
        }
    }
}

fn unlock() {
    SCHEDULER.held.store(false, Ordering::Release);
}

/// The scheduler's state.
///
/// # Safety
/// The lock is held, and no other reference to the state is in use.
unsafe fn state<'a>() -> &'a mut Scheduler {
    // SAFETY: the caller's promise.
    unsafe { &mut *SCHEDULER.state.get() }
}

/// Runs `f` with the scheduler's state. `f` neither switches, nor calls anything else of this module, nor drops a
/// [`MemoryRef`].
fn with<R>(f: impl FnOnce(&mut Scheduler) -> R) -> R {
    lock();
    // SAFETY: just locked; no other reference exists: what `f` does not do.
    let result = f(unsafe { state() });
    unlock();
    result
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

    fn here(&mut self) -> &mut Local {
        &mut self.cpus[percpu::number()]
    }

    /// Makes a task ready: see the module's head for where.
    fn make_ready(&mut self, id: TaskId) {
        let here = percpu::number();
        let task = &mut self.tasks[id.0];
        task.state = State::Ready;
        let is_kernel_task = matches!(task.kind, Kind::Kernel);
        let mut to = task.cpu;
        let is_free = |cpu: usize| {
            let local = &self.cpus[cpu];
            // This CPU, when it looks for work, has room for one.
            local.idle || cpu == here && local.current.is_none() && local.waiting() == 0
        };
        if !is_free(to) {
            let idle = self.cpus[..percpu::count()].iter().position(|cpu| cpu.idle);
            // A kernel task runs before the waker does.
            to = idle.unwrap_or(if is_kernel_task { here } else { to });
        }
        self.tasks[id.0].cpu = to;
        let local = &mut self.cpus[to];
        local.idle = false;
        if is_kernel_task { &mut local.kernel_tasks } else { &mut local.programs }.put(id.0);
        if to != here {
            interrupt::wake(to);
        } else if is_kernel_task {
            percpu::here().work.fetch_or(work::KERNEL_TASK, Ordering::Relaxed);
        } else {
            self.set_alarm();
        }
    }

    /// Makes the sleepers ready whose time has come.
    fn rouse(&mut self) {
        if self.tasks.iter().all(|task| task.wake_time().is_none()) {
            return;
        }
        let now = time::counter();
        for number in 0..self.tasks.len() {
            if self.tasks[number].wake_time().is_some_and(|at| at <= now) {
                self.make_ready(TaskId(number));
            }
        }
    }

    /// Takes what is next for the calling CPU out of its queue, or out of the longest of the others.
    fn next(&mut self) -> Option<TaskId> {
        self.rouse();
        if let Some(next) = self.here().take() {
            return Some(next);
        }
        let others = self.cpus[..percpu::count()].iter_mut();
        others.max_by_key(|cpu| cpu.waiting())?.take()
    }

    /// Notes who runs on this CPU from now on, and what it finds on its way to EL0.
    fn run(&mut self, next: TaskId) {
        let here = percpu::here();
        let cpu = here.number();
        let task = &mut self.tasks[next.0];
        task.state = State::Running;
        task.cpu = cpu;
        here.task.store(next.0 as u32, Ordering::Relaxed);
        here.memory.store(task.memory().cast_mut(), Ordering::Relaxed);
        self.cpus[cpu].current = Some(next);
        if let Kind::Program { fatal, .. } = &task.kind {
            here.work.store(if fatal.is_some() { work::KILL } else { 0 }, Ordering::Relaxed);
            if self.cpus[cpu].turn != Some(next) {
                self.begin_turn(Some(next));
            }
            self.set_alarm();
        }
    }

    fn begin_turn(&mut self, of: Option<TaskId>) {
        let end = time::counter() + self.slice;
        let local = self.here();
        local.turn = of;
        local.turn_end = end;
    }

    /// Sets the timer for what comes first: the turn's end, if there is somebody to be next, the time of a sleeper
    /// that is to go on here, or that of the next sign of life. One that is set for earlier stays: it finds nothing to
    /// do and is set again then. So tasks that yield in turn do not set it each time.
    fn set_alarm(&mut self) {
        let here = percpu::number();
        let local = &self.cpus[here];
        let turn_end = (!local.programs.is_empty()).then_some(local.turn_end);
        let sleepers = self.tasks.iter().filter(|task| task.cpu == here).filter_map(Task::wake_time);
        let alarm = sleepers.chain(turn_end).min();
        let alarm = watchdog::alarm(alarm);
        let local = &mut self.cpus[here];
        if alarm.is_some_and(|alarm| local.alarm.is_none_or(|set| alarm < set)) {
            local.alarm = alarm;
            interrupt::set_timer(alarm);
        }
    }

    /// Takes the registers of a program that leaves the CPU.
    fn leave(&mut self, current: TaskId) {
        let task = &mut self.tasks[current.0];
        if let (Kind::Program { user, .. }, false) = (&mut task.kind, matches!(task.state, State::Dead | State::Absent))
        {
            user.save();
        }
    }

    /// Brings what is next to the CPU, the idle loop if there is none; returns its stack pointer.
    fn enter(&mut self, next: Option<TaskId>) -> usize {
        watchdog::beat();
        let Some(next) = next else {
            let here = percpu::here();
            here.task.store(NO_TASK, Ordering::Relaxed);
            here.memory.store(ptr::null_mut(), Ordering::Relaxed);
            self.activate(ptr::null());
            let local = self.here();
            local.current = None;
            return local.idle_stack_pointer;
        };
        let memory = self.tasks[next.0].memory();
        self.activate(memory);
        if let Kind::Program { user, .. } = &self.tasks[next.0].kind {
            user.load();
        }
        self.run(next);
        self.tasks[next.0].stack_pointer
    }

    /// Makes the space of this memory active, or none.
    fn activate(&mut self, memory: *const Memory) {
        let local = self.here();
        if local.active == memory {
            return;
        }
        local.active = memory;
        // SAFETY: it is that of a task, which does not give it up while the lock is held, or while it is active.
        match unsafe { memory.as_ref() } {
            Some(memory) => memory.space().activate(global::mm()),
            None => global::mm().deactivate(),
        }
    }

    fn current_program(&mut self) -> Option<(TaskId, &mut Kind)> {
        let current = self.here().current?;
        Some((current, &mut self.tasks[current.0].kind))
    }

    /// Whether nothing will ever happen again, but that a kernel task looks round at its times.
    fn is_stuck(&self) -> bool {
        let cpus = &self.cpus[..percpu::count()];
        let looks_round =
            |task: &Task| matches!((&task.kind, task.state), (Kind::Kernel, State::Waiting(_, Ends::KillingOrTime(_))));
        cpus.iter().all(|cpu| cpu.idle && cpu.waiting() == 0)
            && self.tasks.iter().all(|task| task.wake_time().is_none() || looks_round(task))
    }
}

/// What a CPU does when it has no task, on the stack on which it started: for ever.
pub fn idle() -> ! {
    let here = percpu::here();
    loop {
        lock();
        // SAFETY: just locked.
        let scheduler = unsafe { state() };
        scheduler.here().idle = false;
        if let Some(next) = scheduler.next() {
            let keep = &raw mut scheduler.here().idle_stack_pointer;
            let take = scheduler.enter(Some(next));
            // SAFETY: this stack is the CPU's own, and `take` is what an earlier switch, `spawn` or `add` left.
            unsafe { context_switch(keep, take) };
        } else {
            scheduler.here().idle = true;
            scheduler.set_alarm();
            let stuck = scheduler.is_stuck();
            unlock();
            assert!(!stuck, "lockup: every task waits");
            here.begin_idling(time::counter());
            interrupt::wait_for_any();
            here.end_idling(time::counter());
            interrupt::acknowledge();
            watchdog::beat();
            panic::stop_if_asked();
            // The timer was stopped.
            lock();
            // SAFETY: just locked; the other reference is not used any more.
            unsafe { state() }.here().alarm = None;
        }
        unlock();
    }
}

/// The first thing that a new task does: what whoever changed to it would have done.
#[unsafe(no_mangle)]
extern "C" fn task_switched() {
    unlock();
}

/// Where in its queue a task goes that could go on.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Rank {
    First,
    Last,
}

/// Gives the CPU to whoever is next, with the current task in `to`; returns, perhaps on another CPU, when that runs
/// again. Called with the lock held, which it gives back.
fn switch(to: State, rank: Rank) {
    // SAFETY: the caller holds the lock, and uses no reference of its own any more.
    let scheduler = unsafe { state() };
    let Some(current) = scheduler.here().current else {
        // Boot has nobody to wait for.
        return unlock();
    };
    scheduler.tasks[current.0].state = to;
    if to == State::Ready {
        let is_kernel_task = matches!(scheduler.tasks[current.0].kind, Kind::Kernel);
        let local = scheduler.here();
        let queue = if is_kernel_task { &mut local.kernel_tasks } else { &mut local.programs };
        match rank {
            Rank::First => queue.put_first(current.0),
            Rank::Last => queue.put(current.0),
        }
    }
    let next = scheduler.next();
    if next == Some(current) {
        scheduler.run(current);
        return unlock();
    }
    scheduler.leave(current);
    let keep = &raw mut scheduler.tasks[current.0].stack_pointer;
    let take = scheduler.enter(next);
    // SAFETY: both stacks are the two tasks' own; `take` is what an earlier switch, `spawn` or `add` left. Nobody takes
    // up the current task before its registers are saved, as the lock is held.
    unsafe { context_switch(keep, take) };
    unlock();
}

/// Sleeps while `word` holds `seen`.
pub fn wait(word: &AtomicU32, seen: u32) {
    lock();
    if word.load(Ordering::Acquire) == seen { switch(State::Waiting(word, Ends::Waking), Rank::Last) } else { unlock() }
}

/// Sleeps while `word` holds `seen`, and no longer than until the counter has the value `until`, or until somebody
/// wants the task dead.
pub fn wait_breakable(word: &AtomicU32, seen: u32, until: Option<u64>) {
    lock();
    // SAFETY: just locked.
    let doomed = unsafe { state() }.fatal().is_some();
    if word.load(Ordering::Acquire) == seen && !doomed {
        switch(State::Waiting(word, until.map_or(Ends::Killing, Ends::KillingOrTime)), Rank::Last);
    } else {
        unlock();
    }
}

/// Sleeps until the counter has the value `at`, whatever is to become of the task.
pub fn sleep_until(at: u64) {
    /// Of all who sleep so.
    static NOBODY_WAKES: AtomicU32 = AtomicU32::new(0);
    while time::counter() < at {
        lock();
        switch(State::Waiting(&NOBODY_WAKES, Ends::Time(at)), Rank::Last);
    }
}

/// Makes the sleepers on `word` ready.
pub fn wake(word: &AtomicU32) {
    with(|scheduler| {
        for number in 0..scheduler.tasks.len() {
            if matches!(scheduler.tasks[number].state, State::Waiting(on, _) if ptr::eq(on, word)) {
                scheduler.make_ready(TaskId(number));
            }
        }
    });
}

/// Lets kernel tasks that are ready run, and goes on.
pub fn run_kernel_tasks() {
    lock();
    switch(State::Ready, Rank::First);
}

/// Ends the turn: everybody who is ready runs first.
pub fn yield_now() {
    lock();
    // SAFETY: just locked.
    unsafe { state() }.begin_turn(None);
    switch(State::Ready, Rank::Last);
}

/// The timer was stopped, by an interrupt after which the program does not go on: the next that runs sets it again.
pub fn timer_stopped() {
    with(|scheduler| scheduler.here().alarm = None);
}

/// An interrupt, taken at EL0: the timer's, or another CPU's. The timer is off.
pub fn tick() {
    watchdog::beat();
    let over = with(|scheduler| {
        scheduler.here().alarm = None;
        scheduler.rouse();
        let local = scheduler.here();
        let over = !local.programs.is_empty() && time::counter() >= local.turn_end;
        if !over {
            scheduler.set_alarm();
        }
        over
    });
    if over {
        yield_now();
    }
}
