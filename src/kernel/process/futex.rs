//! Futexes: threads that wait on a word of their program's memory.
//!
//! A word is known by the memory and its address there: whoever has the same memory means the same word, as no two
//! spaces share pages that both may store to. As on Linux those who say that a futex is private do not meet those who
//! do not.
//!
//! The waiters of all words are one list, in order of arrival, under a spinning lock. Who wants to wait compares the
//! word under that lock and is in the list before anybody else has it; who changes the word and wakes takes the lock
//! after the change: so no wake-up is lost, and nobody is woken in vain. A page of the word that is not there cannot be
//! brought in under the lock: it is brought in without, and all is tried again. Inside the lock the scheduler's is
//! taken.

use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use ebbtide::sync::Spin;

use crate::kernel::sched::{self, TaskId};
use crate::kernel::stack::MOST_TASKS;
use crate::kernel::syscall::Errno;
use crate::kernel::{time, uaccess};

/// What a program says of those who share a word.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Scope {
    /// They are threads of one process.
    Private,
    /// They may be of several.
    Shared,
}

/// What waiters and wakers know a word by: its memory, and its address there.
#[derive(Copy, Clone, Eq, PartialEq)]
struct Key {
    memory: usize,
    address: u64,
    scope: Scope,
}

/// A word of the running program.
#[derive(Copy, Clone)]
pub struct Word {
    key: Key,
    pointer: u64,
}

impl Word {
    /// The word that a pointer of the running program leads to. It is read through the pointer as it is, whose tag may
    /// be checked; which word it is does not depend on that.
    pub fn here(pointer: u64, scope: Scope) -> Self {
        let key = Key { memory: sched::current_memory().addr(), address: pointer & !(0xff << 56), scope };
        Self { key, pointer }
    }

    /// Reads it under the list's lock, if its page is there.
    fn look(self) -> Option<u32> {
        let mut bytes = [0; 4];
        uaccess::without_faults(|| uaccess::read(self.pointer, &mut bytes)).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// Brings its page in, with the list not locked.
    fn bring(self) -> Result<(), Errno> {
        Ok(uaccess::read(self.pointer, &mut [0; 4])?)
    }
}

/// A thread that waits.
#[derive(Copy, Clone)]
struct Waiter {
    key: Key,
    task: TaskId,
    /// It is woken only by one with a bit of these.
    bits: u32,
}

static WAITERS: Spin<ArrayVec<Waiter, MOST_TASKS>> = Spin::new(ArrayVec::new_const());

/// A word for each task, on which it sleeps: whether it waits, or has been woken.
static SLEEPERS: [AtomicU32; MOST_TASKS] = [const { AtomicU32::new(0) }; MOST_TASKS];
const WAITS: u32 = 0;
const WOKEN: u32 = 1;

fn rouse(task: TaskId) {
    let word = &SLEEPERS[task.number()];
    word.store(WOKEN, Ordering::Release);
    sched::wake(word);
}

/// Waits while the word holds `seen`, until somebody wakes it with one of `bits`, the counter has the value `until`, or
/// the process is to be killed.
///
/// # Errors
/// EAGAIN when the word holds something else, EFAULT, ETIMEDOUT, EINTR.
pub fn wait(word: Word, seen: u32, bits: u32, until: Option<u64>) -> Result<(), Errno> {
    let me = sched::current();
    let sleeper = &SLEEPERS[me.number()];
    loop {
        let mut waiters = WAITERS.lock();
        match word.look() {
            Some(found) if found != seen => return Err(Errno::EAGAIN),
            Some(_) => {
                sleeper.store(WAITS, Ordering::Relaxed);
                // A task waits once.
                waiters.push(Waiter { key: word.key, task: me, bits });
                break;
            }
            None => {
                drop(waiters);
                word.bring()?;
            }
        }
    }
    let time_is_left = || until.is_none_or(|until| time::counter() < until);
    while sleeper.load(Ordering::Acquire) == WAITS && !sched::doomed() && time_is_left() {
        sched::wait_breakable(sleeper, WAITS, until);
    }
    let mut waiters = WAITERS.lock();
    match waiters.iter().position(|waiter| waiter.task == me) {
        None => Ok(()),
        Some(place) => {
            waiters.remove(place);
            Err(if sched::doomed() { Errno::EINTR } else { Errno::ETIMEDOUT })
        }
    }
}

/// Wakes up to `most` of those who wait on a word, with one of `bits`, the first first; returns how many.
pub fn wake(word: Word, most: u32, bits: u32) -> u32 {
    wake_some(&mut WAITERS.lock(), word.key, most, bits)
}

fn wake_some(waiters: &mut ArrayVec<Waiter, MOST_TASKS>, key: Key, most: u32, bits: u32) -> u32 {
    let mut woken = 0;
    waiters.retain(|waiter| {
        let is_meant = woken < most && waiter.key == key && waiter.bits & bits != 0;
        if is_meant {
            woken += 1;
            rouse(waiter.task);
        }
        !is_meant
    });
    woken
}

/// Wakes up to `most` of those who wait on a word, and has up to `most_moved` of the others wait on another one;
/// returns how many in all. With `seen` only while the word holds that.
///
/// # Errors
/// EAGAIN when it holds something else, EFAULT.
pub fn requeue(from: Word, to: Word, most: u32, most_moved: u32, seen: Option<u32>) -> Result<u32, Errno> {
    loop {
        let mut waiters = WAITERS.lock();
        if let Some(seen) = seen {
            match from.look() {
                Some(found) if found != seen => return Err(Errno::EAGAIN),
                Some(_) => {}
                None => {
                    drop(waiters);
                    from.bring()?;
                    continue;
                }
            }
        }
        let woken = wake_some(&mut waiters, from.key, most, u32::MAX);
        let mut moved = ArrayVec::<Waiter, MOST_TASKS>::new();
        waiters.retain(|waiter| {
            let is_meant = (moved.len() as u32) < most_moved && waiter.key == from.key;
            if is_meant {
                moved.push(Waiter { key: to.key, ..*waiter });
            }
            !is_meant
        });
        let count = woken + moved.len() as u32;
        waiters.extend(moved);
        return Ok(count);
    }
}
