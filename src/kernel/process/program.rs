//! Programs by their paths: the files of the initrd, and how one takes a process over.

use arrayvec::ArrayString;

use super::memory::Break;
use super::table::{Home, TABLE};
use super::{Cause, Fatal, MemoryRef, Signal, machine};
use crate::kernel::console::{alert, log};
use crate::kernel::el0::{UserState, WholeFrame};
use crate::kernel::elf::{self, Arguments, Image};
use crate::kernel::syscall::Errno;
use crate::kernel::{global, sched};

/// A program.
#[derive(Copy, Clone)]
pub struct Program {
    /// What the log calls it: the last part of its path, so short and plain that a line has room for what happened.
    pub name: ArrayString<64>,
    /// Its file.
    pub file: &'static [u8],
}

impl Program {
    /// The program in a file.
    pub fn new(path: &[u8], file: &'static [u8]) -> Self {
        let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let mut name = ArrayString::new();
        for &byte in last.iter().take(name.capacity()) {
            name.push(if byte == b' ' || byte.is_ascii_graphic() { byte.into() } else { '?' });
        }
        Self { name, file }
    }

    /// The program that execve finds under a path: a built-in as `/bin/NAME`; the machine's first program as
    /// `/init` or under the path that it was started by; the caller's own as `/proc/self/exe`.
    ///
    /// # Errors
    /// ENOENT when there is none, EACCES for a file that is no program.
    pub fn find(path: &[u8]) -> Result<Self, Errno> {
        let files = machine().files;
        if path == b"/proc/self/exe" {
            return Ok(Self::new(path, TABLE.lock().current().program.file));
        }
        let name = core::str::from_utf8(path).map_err(|_| Errno::ENOENT)?;
        let name = name.strip_prefix("./").unwrap_or(name).trim_start_matches('/');
        let is_first = name == "init" || files.strings("argv").next() == Some(path);
        let file = files.get(if is_first { "init" } else { name }).ok_or(Errno::ENOENT)?;
        if is_first || name.starts_with("bin/") { Ok(Self::new(path, file)) } else { Err(Errno::EACCES) }
    }
}

/// Puts a program in the place of the one that runs, of whose threads the caller's alone is left. Once its header is
/// found to be good there is no way back: what fails then kills.
///
/// # Errors
/// ENOEXEC for a file that is no program for this machine, ENOMEM without room for an address space.
pub fn exec(program: Program, arguments: &Arguments, frame: &mut WholeFrame) -> Result<(), Errno> {
    let image = Image::parse(program.file).map_err(|error| {
        log!("{} cannot be run: {error}", program.name);
        Errno::ENOEXEC
    })?;
    let memory = MemoryRef::new().ok_or(Errno::ENOMEM)?;
    let mm = global::mm();
    memory.space().set_cap(mm, super::space().cap(mm));
    if !super::take_over() {
        // It ends on its way to EL0.
        return Err(Errno::EINTR);
    }
    super::leave_id();
    {
        // To the end, as who looks for a program to kill takes a process with a taker for one whose memory will go.
        let _locked = super::lock_spaces();
        drop(sched::replace_memory(Some(memory)));
        let mut table = TABLE.lock();
        let before = table.lead();
        let process = table.current();
        process.taker = None;
        process.program = program;
        process.files.close_on_exec();
        if core::mem::replace(&mut process.home, Home::Own) == Home::Borrowed {
            let parent = process.parent;
            table.tell(parent);
        }
        if let Some(before) = before {
            sched::release(before);
        }
    }
    match load(&image, arguments) {
        Ok(state) => start(state, frame),
        Err(error) => {
            // What is on the way of this call ends first; and it may be doomed already, for want of memory.
            alert!("{} cannot be loaded: {error}", program.name);
            sched::doom(sched::current(), Fatal { signal: Signal::KILL, cause: Cause::NoProgram });
        }
    }
    Ok(())
}

/// Loads a program into the running task's memory, which is empty.
pub fn load(image: &Image<'_>, arguments: &Arguments) -> Result<UserState, elf::LoadError> {
    let (mm, memory) = (global::mm(), super::memory());
    let loaded = image.load(mm, memory.space())?;
    *memory.program_break() = Break { start: loaded.end, now: loaded.end };
    let stack = elf::build_stack(mm, memory.space(), &loaded, arguments)?;
    Ok(UserState::new(loaded.entry, stack))
}

/// Gives the running task the registers of a program's start.
pub fn start(state: UserState, frame: &mut WholeFrame) {
    sched::with_user(|user| {
        *user = state;
        user.load();
    });
    *frame = WholeFrame::default();
}

/// The first program's arguments, from the initrd.
pub fn first_arguments() -> Result<Arguments, elf::ArgumentsError> {
    let files = machine().files;
    let path = files.strings("argv").next().unwrap_or(b"init");
    let mut arguments = Arguments::new(path)?;
    for (strings, kind) in [("argv", elf::Strings::Arguments), ("envp", elf::Strings::Environment)] {
        for string in files.strings(strings) {
            arguments.extend(string)?;
            arguments.end_string(kind)?;
        }
    }
    Ok(arguments)
}
