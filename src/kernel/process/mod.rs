//! Processes: a program, its memory and its task, from clone to the parent's wait4.
//!
//! **Parts.** The scheduler has a thread's task: registers, kernel stack, share in a [`Memory`], the signal that kills
//! it. The [`table`] has who it is, of which process, and whose child that is. Nobody but a process' own threads
//! changes its program, its memory, or its life, and nobody but a thread itself ends it.
//!
//! **End.** A thread ends in its own context, on its way out of the kernel or in a fault that cannot be resolved: it
//! lets its share of the memory go and never runs again. What ends the process, or puts another program in its place,
//! is one thread's doing, which takes it over ([`take_over`]): the others are doomed, and it goes on when they are
//! gone. The last thread hands the children to the first process and leaves the status to the parent. The leader's task
//! and the process' number are free when the parent has asked for the status.
//!
//! **Want of memory.** Whose fault finds none waits for the end of the program that has the most: [`oom`].
//!
//! **First and last.** The first program is process 1. The machine ends with it: it kills the others, waits until they
//! have ended, and balances the books.

mod clone;
mod files;
mod futex;
mod memory;
mod oom;
mod program;
mod signal;
mod table;
mod wait;

pub use clone::{Kind as CloneKind, Request as CloneRequest, begin, clone};
pub use files::{File, MOST_FILES, Mode, Node, close, file, open};
pub use futex::{Scope, Word, requeue, wait as futex_wait, wake as futex_wake};
pub use memory::{Future, Memory, MemoryRef, collapse_group, with_every_space};
pub use oom::outlast;
pub use program::{Program, exec};
pub use signal::{Cause, Fatal, Signal, Target, WaitStatus, send};
pub use wait::{Patience, Whom, sleep_until, wait};

use alloc::string::String;
use core::fmt;
use core::sync::atomic::Ordering;

use ebbtide::addr::VirtAddr;
use ebbtide::space::{Fault, FaultError, MemoryCap};
use ebbtide::{Mm, Space, Totals};

use super::bootargs::BootArgs;
use super::console::{self, alert, log};
use super::el0::{self, TagControl, UserState, WholeFrame};
use super::elf::Image;
use super::global::{self, Late};
use super::initrd;
use super::stats::{self, Leaks};
use super::{Hardware, cannot_start, floor, page, sched, time, uaccess};
use files::Files;
use memory::lock_spaces;
use table::{Beginning, FIRST, Life, Process, TABLE, events};

/// What is said once, at boot.
struct Machine {
    files: initrd::Files,
    stats_path: Option<&'static [u8]>,
    end_path: Option<&'static [u8]>,
    /// `memory=`, in bytes.
    memory: u64,
    before: Totals,
}

static MACHINE: Late<Machine> = Late::new();

fn machine() -> &'static Machine {
    match MACHINE.get() {
        Some(machine) => machine,
        None => unreachable!("no process before the first"),
    }
}

/// The running program's memory.
///
/// It stays for as long as the caller does not give it up: nobody else does.
#[inline]
pub fn memory() -> &'static Memory {
    debug_assert!(!sched::current_memory().is_null());
    // SAFETY: system calls, faults and user copies come from a program, which has memory until its end.
    unsafe { &*sched::current_memory() }
}

/// Another share in the running program's memory.
fn share() -> MemoryRef {
    let mut share = None;
    sched::for_each_memory(|memory| {
        if core::ptr::eq(memory.as_ptr(), sched::current_memory()) {
            share.get_or_insert_with(|| memory.clone());
        }
    });
    share.unwrap_or_else(|| unreachable!("the running program has memory"))
}

/// The running program's address space.
#[inline]
pub fn space() -> &'static Space<Hardware> {
    memory().space()
}

/// Resolves a fault of the running program; without memory it waits for some.
///
/// # Errors
/// As [`Space::handle_fault`]. When it is [`FaultError::NoMemory`] or [`FaultError::Capped`], the process is to be
/// killed.
pub fn resolve(fault: Fault) -> Result<(), FaultError> {
    let result = match space().handle_fault(global::mm(), fault) {
        Err(FaultError::NoMemory) => outlast(fault),
        result => result,
    };
    if result == Err(FaultError::Capped) {
        doom_at_cap();
    }
    result
}

/// What PR_SET_TAGGED_ADDR_CTRL set last.
pub fn tag_control() -> TagControl {
    sched::with_user(|user| user.tag_control)
}

/// Keeps what PR_SET_TAGGED_ADDR_CTRL sets, and lets the CPU obey it.
pub fn set_tag_control(control: TagControl) {
    sched::with_user(|user| user.tag_control = control);
    control.apply();
}

/// Whether the program may pass tagged pointers to system calls.
pub fn tagged_addresses() -> bool {
    tag_control().0 & TagControl::ENABLE != 0
}

/// Bytes of the managed machine.
pub fn machine_memory() -> u64 {
    machine().memory
}

/// The running process.
pub fn id() -> u32 {
    TABLE.lock().current().pid
}

/// The running thread.
pub fn thread_id() -> u32 {
    TABLE.lock().thread().id
}

/// Its parent; 0 for the first.
pub fn parent_id() -> u32 {
    TABLE.lock().current().parent
}

/// How many processes there are.
pub fn count() -> usize {
    TABLE.lock().all().count()
}

/// Sets [`Thread::clear_id`](table::Thread) of the running thread.
pub fn set_clear_id(at: u64) {
    TABLE.lock().thread().clear_id = at;
}

/// Makes the first process. Not inlined: what it needs of the stack shall not be part of `kmain`'s frame.
#[inline(never)]
pub fn run(mm: &'static Mm<Hardware>, files: initrd::Files, args: &BootArgs<'_>, memory: u64) -> ! {
    let Some(image) = files.get("init") else {
        cannot_start(format_args!("the initrd has no file named init"));
    };
    MACHINE.set(Machine {
        stats_path: files.get("stats-path"),
        end_path: files.get("end-path"),
        files,
        memory,
        before: mm.totals(),
    });
    el0::prefer(args.tag_checks);
    let path = files.strings("argv").next().unwrap_or(b"init");
    let memory = MemoryRef::new();
    if let (Some(memory), Some(mib)) = (&memory, args.cap_mib) {
        let (pages, least) = (mib.saturating_mul((1 << 20) / page::PAGE), mm.least_cap_pages());
        if pages < least {
            let kib = least * (page::PAGE >> 10);
            cannot_start(format_args!("--cap {mib}: with this size of pages and folios the least is {kib} KiB"));
        }
        memory.space().set_cap(mm, MemoryCap::Pages(pages));
    }
    let state = UserState::new(0, 0);
    let Some(Ok(task)) = memory.map(|memory| sched::add(memory, state, WholeFrame::default())) else {
        cannot_start(format_args!("no memory for a process"));
    };
    {
        let mut table = TABLE.lock();
        let pid = table.new_pid();
        table.put(task, Process::new(pid, 0, Program::new(path, image), Files::STANDARD), Beginning::Load, 0);
    }
    sched::begin(task);
    sched::idle()
}

/// Loads the first program, in its own task.
fn begin_first(frame: &mut WholeFrame) {
    let program = TABLE.lock().current().program;
    let name = program.name;
    let image = match Image::parse(program.file) {
        Ok(image) => image,
        Err(error) => cannot_start(format_args!("{name} cannot be loaded: {error}")),
    };
    let arguments = match program::first_arguments() {
        Ok(arguments) => arguments,
        Err(error) => cannot_start(format_args!("{name} cannot be started: {error}")),
    };
    match program::load(&image, &arguments) {
        Ok(state) => {
            log!("{name} starts{}", if floor::is_exact() { ", instructions are counted" } else { "" });
            program::start(state, frame);
        }
        // It ends on its way to EL0, with a status of its own.
        Err(_) if sched::doomed() => {}
        Err(error) => cannot_start(format_args!("{name} cannot be loaded: {error}")),
    }
}

/// Ends the program for what it did at an address; the log tells first what there is.
#[cold]
pub fn kill_at(address: u64, signal: Signal, why: fmt::Arguments<'_>) -> ! {
    if !console::is_quiet() {
        explain(address);
    }
    kill(signal, why)
}

/// Prints what there is at a program's address. In gdb, with the kernel stopped: `call ebbtide_explain(ADDRESS)`.
#[unsafe(export_name = "ebbtide_explain")]
pub extern "C" fn explain(address: u64) {
    // SAFETY: as for `memory`, if there is one.
    if let (Some(memory), Some(mm)) = (unsafe { sched::current_memory().as_ref() }, global::get_mm()) {
        console::block(format_args!("{}", memory.space().explain(mm, VirtAddr::untagged(address))));
    }
}

/// Prints what a range of the program maps. In gdb: `call ebbtide_dump(START, END)`.
#[unsafe(export_name = "ebbtide_dump")]
pub extern "C" fn dump(start: u64, end: u64) {
    // SAFETY: as for `memory`, if there is one.
    if let (Some(memory), Some(mm)) = (unsafe { sched::current_memory().as_ref() }, global::get_mm()) {
        let (start, end) = (VirtAddr::untagged(start), VirtAddr::untagged(end));
        console::block(format_args!("{}", memory.space().dump(mm, start, end)));
    }
}

/// Keeps what only gdb calls.
#[used]
static FOR_GDB: extern "C" fn(u64, u64) = dump;

/// Ends the process with a signal, and tells the log why.
#[cold]
pub fn kill(signal: Signal, why: fmt::Arguments<'_>) -> ! {
    if !take_over() {
        end_thread(0);
    }
    let status = WaitStatus::Killed(signal);
    let process = *TABLE.lock().current();
    let name = process.name();
    if process.pid == FIRST {
        end_machine(status, Some(format_args!("{name} killed: {why} ({})", status.of_shell())));
    }
    console::death(format_args!("{name} killed: {why} ({})", status.of_shell()));
    end(status)
}

/// Ends the thread, and perhaps its process, for what was noted.
#[cold]
pub fn end_doomed(Fatal { signal, cause }: Fatal) -> ! {
    match cause {
        Cause::AtCap => {
            let mm = global::mm();
            let cap = match memory().space().cap(mm) {
                MemoryCap::Pages(pages) => pages.max(mm.least_cap_pages()) * (page::PAGE >> 10),
                MemoryCap::None => 0,
            };
            // Once, of however many threads.
            if take_over() {
                mm.stats().oom_kills.bump();
            }
            kill(signal, format_args!("it is at its cap of {cap} KiB, and nothing of it can leave"))
        }
        Cause::NoProgram => kill(signal, format_args!("its program could not be loaded")),
        Cause::Taken => end_thread(0),
        Cause::Memory(size) if id() == FIRST => kill(signal, format_args!("{}", oom::Reason(size))),
        // That of another process is its parent's business, or has been told.
        Cause::Memory(_) => end_by(signal),
        Cause::Sent if id() != FIRST => end_by(signal),
        Cause::Sent => kill(signal, format_args!("signal {}", signal.number())),
    }
}

/// Ends the process, which is not the first, by a signal, and logs nothing.
fn end_by(signal: Signal) -> ! {
    if take_over() {
        end(WaitStatus::Killed(signal));
    }
    end_thread(0)
}

/// Has the process end as its memory is at its cap and nothing of it can leave, on its way out of the kernel.
#[cold]
pub fn doom_at_cap() {
    sched::doom(sched::current(), Fatal { signal: Signal::KILL, cause: Cause::AtCap });
}

/// Makes the running thread the only one of its process: dooms the others, and waits until they have ended. Whether it
/// was the first to ask for that; if not, it is doomed itself.
pub fn take_over() -> bool {
    let events = {
        let mut table = TABLE.lock();
        let (me, here) = (sched::current(), table.here());
        let process = table.current();
        if process.taker.is_some_and(|taker| taker != me) {
            return false;
        }
        process.taker = Some(me);
        if process.threads == 1 {
            return true;
        }
        for (other, _) in table.threads_of(here).filter(|&(other, _)| other != me) {
            sched::doom(other, Fatal { signal: Signal::KILL, cause: Cause::Taken });
        }
        events(here)
    };
    loop {
        let seen = events.load(Ordering::Acquire);
        if TABLE.lock().current().threads == 1 {
            return true;
        }
        sched::wait(events, seen);
    }
}

/// Ends the process with its own status.
pub fn exit(code: u8) -> ! {
    if !take_over() {
        end_thread(code);
    }
    finish(WaitStatus::Exited(code))
}

/// Ends the running process, of which nothing but this thread is left.
fn finish(status: WaitStatus) -> ! {
    let process = *TABLE.lock().current();
    if process.pid == FIRST {
        let name = process.name();
        let words = format_args!("{name} ended with status {}", status.of_shell());
        end_machine(status, (status != WaitStatus::Exited(0)).then_some(words));
    }
    end(status)
}

/// Ends the running thread; the last one ends its process, with the status that it has itself, as on Linux.
pub fn end_thread(code: u8) -> ! {
    leave_memory();
    let leads = {
        let mut table = TABLE.lock();
        let process = *table.current();
        if process.threads == 1 {
            table.current().taker = Some(sched::current());
            drop(table);
            finish(WaitStatus::Exited(code));
        }
        let leads = table.here() == sched::current();
        let _ = table.take_thread();
        table.tell(process.pid);
        leads
    };
    sched::die(if leads { sched::Record::Kept } else { sched::Record::Freed })
}

/// Stores the 0 that [`Thread::clear_id`](table::Thread) asks for, before the running thread leaves its memory.
fn leave_id() {
    let at = core::mem::take(&mut TABLE.lock().thread().clear_id);
    if at != 0 && memory().is_shared() {
        // As on Linux a bad address is no error.
        let _ = uaccess::write(at, &0_u32.to_le_bytes());
        futex::wake(Word::here(at, Scope::Shared), 1, u32::MAX);
    }
}

/// Lets the running thread's share of its memory go.
fn leave_memory() {
    leave_id();
    // swapoff has it before, or finds it gone.
    let _locked = lock_spaces();
    drop(sched::replace_memory(None));
}

/// Ends a process that is not the first, and of which nothing but this thread is left.
fn end(status: WaitStatus) -> ! {
    if !sched::current_memory().is_null() {
        leave_memory();
    }
    let leads = {
        let mut table = TABLE.lock();
        let here = table.here();
        let _ = table.take_thread();
        let process = table.process(here);
        process.life = Life::Ended(status);
        let (pid, parent) = (process.pid, process.parent);
        table.orphan_children(pid);
        table.tell(parent);
        // It may have got children that have ended already; and it may be ending itself.
        table.tell(FIRST);
        here == sched::current()
    };
    sched::die(if leads { sched::Record::Kept } else { sched::Record::Freed })
}

/// Ends the first process, and the machine: takes all spaces apart, balances the books, writes the statistics.
fn end_machine(status: WaitStatus, last_words: Option<fmt::Arguments<'_>>) -> ! {
    let (machine, mm) = (machine(), global::mm());
    let instructions = floor::is_exact().then(time::ticks);
    if !sched::current_memory().is_null() {
        let _locked = lock_spaces();
        drop(sched::replace_memory(None));
    }
    end_others();
    // The reclaimer may still have pages in hand.
    sched::wait_for_rest();
    let leaks = Leaks::between(&machine.before, &mm.totals());
    if leaks.any() {
        alert!("leaked: {} frames, {} slots, {} tag rooms", leaks.frames, leaks.slots, leaks.tag_rooms);
    }
    if let Some(path) = machine.stats_path {
        stats::write_file(path, mm, &leaks, instructions);
    }
    if let Some(words) = last_words {
        console::death(words);
    }
    // A file says that it was for the program's end: without it the script would have to take the status of a QEMU
    // that was itself killed for the program's.
    if let Some(path) = machine.end_path
        && !stats::write_host_file(path, b"")
    {
        alert!("the program's end could not be told to {}", String::from_utf8_lossy(path));
    }
    console::exit(status.of_shell())
}

/// Kills every other process, and waits until all have ended.
fn end_others() {
    let events = events(TABLE.lock().here());
    loop {
        let seen = events.load(Ordering::Acquire);
        // ESRCH: there is nobody else.
        let _ = send(Target::Others, Signal::KILL.number().into());
        let left = TABLE.lock().all().any(|(_, process)| process.pid != FIRST && process.life == Life::Running);
        if !left {
            return;
        }
        sched::wait(events, seen);
    }
}
