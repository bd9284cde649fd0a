//! The one program: its start, what system calls keep of it, and its end.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use ebbtide::addr::VirtAddr;
use ebbtide::{Mm, Space, Totals};

use super::bootargs::BootArgs;
use super::console::{self, alert, log};
use super::cpu::TagChecks;
use super::global::{self, Late};
use super::initrd::Files;
use super::stats::{self, Leaks};
use super::{Hardware, cannot_start, elf, floor, stack, time};

/// PR_TAGGED_ADDR_ENABLE.
const TAGGED_ADDR_ENABLE: u64 = 1;

/// The program.
struct Process {
    space: Space<Hardware>,
    name: String,
    /// Where the break starts, and where it is.
    break_start: AtomicU64,
    break_now: AtomicU64,
    /// What PR_SET_TAGGED_ADDR_CTRL set.
    tag_control: AtomicU64,
    preferred_tag_checks: TagChecks,
    stats_path: Option<&'static [u8]>,
    end_path: Option<&'static [u8]>,
    /// `memory=`, in bytes.
    memory: u64,
    before: Totals,
}

static PROCESS: Late<Process> = Late::new();

unsafe extern "C" {
    fn enter_user(entry: u64, stack: u64, kernel_stack: usize) -> !;
}

#[inline]
fn process() -> &'static Process {
    debug_assert!(PROCESS.get().is_some());
    // SAFETY: system calls, faults and user copies come after `run` has set it.
    unsafe { PROCESS.get_set() }
}

/// The program's address space.
#[inline]
pub fn space() -> &'static Space<Hardware> {
    &process().space
}

/// Whether the program may pass tagged pointers to system calls.
pub fn tagged_addresses() -> bool {
    tag_control() & TAGGED_ADDR_ENABLE != 0
}

/// What PR_SET_TAGGED_ADDR_CTRL set last.
pub fn tag_control() -> u64 {
    process().tag_control.load(Ordering::Relaxed)
}

/// Keeps what PR_SET_TAGGED_ADDR_CTRL set.
pub fn set_tag_control(control: u64) {
    process().tag_control.store(control, Ordering::Relaxed);
}

/// The checks of a program that leaves the choice.
pub fn preferred_tag_checks() -> TagChecks {
    process().preferred_tag_checks
}

/// The break's start and the break.
pub fn program_break() -> (u64, u64) {
    (process().break_start.load(Ordering::Relaxed), process().break_now.load(Ordering::Relaxed))
}

/// Moves the break.
pub fn set_program_break(to: u64) {
    process().break_now.store(to, Ordering::Relaxed);
}

/// Bytes of the managed machine.
pub fn memory() -> u64 {
    process().memory
}

/// What the log calls the program: the last part of its path, so short and plain that a line has room for what
/// happened.
fn name_of(path: &[u8]) -> String {
    const LONGEST: usize = 64;
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let plain = |&byte: &u8| if byte == b' ' || byte.is_ascii_graphic() { byte.into() } else { '?' };
    name.iter().take(LONGEST).map(plain).collect()
}

/// Loads `init` and goes to EL0. The machine ends with the program. Not inlined: what it needs of the
/// stack shall not be part of `kmain`'s frame, nor that of the loader.
#[inline(never)]
pub fn run(mm: &'static Mm<Hardware>, files: &Files, args: &BootArgs<'_>, memory: u64) -> ! {
    let Some(image) = files.get("init") else {
        cannot_start(format_args!("the initrd has no file named init"));
    };
    let path = files.strings("argv").next().unwrap_or(b"init");
    let before = mm.totals();
    let space = match Space::new(mm) {
        Ok(space) => space,
        Err(error) => cannot_start(format_args!("no address space for the program: {error}")),
    };
    let process = PROCESS.set(Process {
        space,
        name: name_of(path),
        break_start: AtomicU64::new(0),
        break_now: AtomicU64::new(0),
        tag_control: AtomicU64::new(0),
        preferred_tag_checks: args.tag_checks,
        stats_path: files.get("stats-path"),
        end_path: files.get("end-path"),
        memory,
        before,
    });
    process.space.activate(mm);
    let loaded = match elf::load(mm, &process.space, image) {
        Ok(loaded) => loaded,
        Err(error) => cannot_start(format_args!("{} cannot be loaded: {error}", process.name)),
    };
    process.break_start.store(loaded.end, Ordering::Relaxed);
    process.break_now.store(loaded.end, Ordering::Relaxed);
    let stack_pointer = match elf::build_stack(mm, &process.space, &loaded, files) {
        Ok(stack_pointer) => stack_pointer,
        Err(error) => cannot_start(format_args!("{} cannot be started: {error}", process.name)),
    };
    log!("{} starts{}", process.name, if args.icount { ", instructions are counted" } else { "" });
    // SAFETY: entry and stack are the program's, whose space is active; the boot thread's kernel stack holds nothing
    // that is needed again.
    unsafe { enter_user(loaded.entry, stack_pointer, stack::stack(stack::BOOT).end) }
}

/// Ends the program for what it did at an address; the log tells first what there is.
#[cold]
pub fn kill_at(address: u64, status: i32, why: fmt::Arguments<'_>) -> ! {
    if !console::is_quiet() {
        explain(address);
    }
    kill(status, why)
}

/// Prints what there is at a program's address. In gdb, with the kernel stopped: `call ebbtide_explain(ADDRESS)`.
#[unsafe(export_name = "ebbtide_explain")]
pub extern "C" fn explain(address: u64) {
    if let (Some(process), Some(mm)) = (PROCESS.get(), global::get_mm()) {
        console::block(format_args!("{}", process.space.explain(mm, VirtAddr::untagged(address))));
    }
}

/// Prints what a range of the program maps. In gdb: `call ebbtide_dump(START, END)`.
#[unsafe(export_name = "ebbtide_dump")]
pub extern "C" fn dump(start: u64, end: u64) {
    if let (Some(process), Some(mm)) = (PROCESS.get(), global::get_mm()) {
        let (start, end) = (VirtAddr::untagged(start), VirtAddr::untagged(end));
        console::block(format_args!("{}", process.space.dump(mm, start, end)));
    }
}

/// Keeps what only gdb calls.
#[used]
static FOR_GDB: extern "C" fn(u64, u64) = dump;

/// Ends the program with a signal's status.
#[cold]
pub fn kill(status: i32, why: fmt::Arguments<'_>) -> ! {
    let name = process().name.to_owned();
    finish();
    console::death(format_args!("{name} killed: {why} ({status})"));
    end(status)
}

/// Ends the program with its own status.
pub fn exit(status: i32) -> ! {
    let name = process().name.to_owned();
    finish();
    if status != 0 {
        console::death(format_args!("{name} ended with status {status}"));
    }
    end(status)
}

/// Ends the machine, with a file to say that it was for the program's end: without it the script would have to take
/// the status of a QEMU that was itself killed for the program's.
fn end(status: i32) -> ! {
    if let Some(path) = process().end_path
        && !stats::write_host_file(path, b"")
    {
        alert!("the program's end could not be told to {}", String::from_utf8_lossy(path));
    }
    console::exit(status)
}

/// Takes the space apart, balances the books and writes the statistics.
fn finish() {
    let process = process();
    let mm = global::mm();
    let instructions = floor::is_exact().then(time::ticks);
    // SAFETY: the program never runs again, and nothing after this reads the static's space.
    let space = unsafe { core::ptr::read(&process.space) };
    // One CPU is in use.
    let _ = space.destroy(mm);
    let leaks = Leaks::between(&process.before, &mm.totals());
    if leaks.any() {
        alert!("leaked: {} frames, {} slots, {} tag rooms", leaks.frames, leaks.slots, leaks.tag_rooms);
    }
    if let Some(path) = process.stats_path {
        stats::write_file(path, mm, &leaks, instructions);
    }
}
