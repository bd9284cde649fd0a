//! Kernel threads: cooperative, each on its own guarded stack, over wait and wake of a 32-bit word.
//!
//! Thread 0 is the boot thread; it becomes the program's kernel side. A thread runs until it waits. A woken kernel
//! thread runs when the running one waits, or at the latest before the kernel returns to EL0: the vectors look at
//! [`RUNNABLE`], which is one load, and call [`run_kernel_threads`].
//!
//! One CPU and no interrupts: the scheduler's state is touched by one thread at a time, and no lock is needed.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::stack;

/// Kernel threads that are runnable and do not run. Read by `boot/vectors.S`.
#[unsafe(no_mangle)]
static RUNNABLE: AtomicU32 = AtomicU32::new(0);

const THREADS: usize = 3;

#[derive(Copy, Clone, Eq, PartialEq)]
enum State {
    Absent,
    Running,
    Ready,
    /// Sleeps on the word at this address.
    Waiting(*const AtomicU32),
}

#[derive(Copy, Clone)]
struct Thread {
    state: State,
    stack_pointer: usize,
}

struct Scheduler {
    threads: [Thread; THREADS],
    current: usize,
}

struct Global(UnsafeCell<Scheduler>);

// SAFETY: see the module's head: one CPU, no interrupts, and no reference lives across a context switch.
unsafe impl Sync for Global {}

static SCHEDULER: Global = Global(UnsafeCell::new(Scheduler {
    threads: {
        let mut threads = [Thread { state: State::Absent, stack_pointer: 0 }; THREADS];
        threads[stack::BOOT].state = State::Running;
        threads
    },
    current: stack::BOOT,
}));

unsafe extern "C" {
    fn context_switch(keep: *mut usize, take: usize);
    fn thread_start();
}

/// Runs `f` with the scheduler's state.
fn with<R>(f: impl FnOnce(&mut Scheduler) -> R) -> R {
    // SAFETY: no other reference exists: `f` neither switches nor calls `with`.
    f(unsafe { &mut *SCHEDULER.0.get() })
}

/// Makes a kernel thread of a function; it runs at the first chance.
pub fn spawn(body: extern "C" fn() -> !) {
    with(|scheduler| {
        let Some(number) = scheduler.threads.iter().position(|thread| thread.state == State::Absent) else {
            panic!("no room for another kernel thread");
        };
        // What `context_switch` takes from a stack: x19 to x30 from the top down. x19 is the function, x30 the start.
        let top = stack::stack(number).end;
        let frame: *mut [usize; 12] = ptr::with_exposed_provenance_mut(top - size_of::<[usize; 12]>());
        let mut registers = [0; 12];
        registers[1] = thread_start as *const () as usize;
        registers[10] = body as *const () as usize;
        // SAFETY: the stack is mapped, and no thread runs on it.
        unsafe { frame.write(registers) };
        scheduler.threads[number] = Thread { state: State::Ready, stack_pointer: frame.addr() };
    });
    RUNNABLE.fetch_add(1, Ordering::Relaxed);
}

/// Gives the CPU to the next runnable thread, with the current one in `state`; returns when it runs again.
fn switch(state: State) {
    let (keep, take) = with(|scheduler| {
        let current = scheduler.current;
        scheduler.threads[current].state = state;
        let next = (1..=THREADS)
            .map(|step| (current + step) % THREADS)
            .find(|&number| scheduler.threads[number].state == State::Ready);
        let Some(next) = next else { panic!("every thread waits") };
        scheduler.threads[next].state = State::Running;
        scheduler.current = next;
        if next != stack::BOOT {
            RUNNABLE.fetch_sub(1, Ordering::Relaxed);
        }
        (&raw mut scheduler.threads[current].stack_pointer, scheduler.threads[next].stack_pointer)
    });
    // SAFETY: both stacks are the two threads' own; `take` is what an earlier switch or `spawn` left.
    unsafe { context_switch(keep, take) };
}

/// Sleeps while `word` holds `seen`.
pub fn wait(word: &AtomicU32, seen: u32) {
    // Nothing can come between the check and the sleep: no interrupts, one CPU.
    if word.load(Ordering::Acquire) == seen {
        switch(State::Waiting(word));
    }
}

/// Makes the sleepers on `word` runnable.
pub fn wake(word: &AtomicU32) {
    let woken = with(|scheduler| {
        let mut woken = 0;
        for (number, thread) in scheduler.threads.iter_mut().enumerate() {
            if thread.state == State::Waiting(word) {
                thread.state = State::Ready;
                woken += u32::from(number != stack::BOOT);
            }
        }
        woken
    });
    RUNNABLE.fetch_add(woken, Ordering::Relaxed);
}

/// Lets every runnable kernel thread run until it waits. Called on the boot thread, from the vectors and by
/// `sched_yield`.
#[unsafe(no_mangle)]
pub extern "C" fn run_kernel_threads() {
    while RUNNABLE.load(Ordering::Relaxed) != 0 {
        switch(State::Ready);
    }
}
