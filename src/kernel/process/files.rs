//! What the descriptors of a process stand for.
//!
//! Nothing of an open file ever changes, as there are no positions: so a copy of a table is as good as a share in its
//! files, and a fork copies it. Threads have their process' own.

use super::table::TABLE;
use crate::kernel::swap::DeviceId;

/// Descriptors of a process at most.
pub const MOST_FILES: usize = 16;

/// What there is to open.
#[derive(Copy, Clone)]
pub enum Node {
    /// The console; there is nothing to read.
    Console,
    /// The host's console, of errors.
    Host,
    /// A device, by sectors.
    Device(DeviceId),
}

bitflags::bitflags! {
    /// What may be done with a file, and what becomes of it.
    #[derive(Copy, Clone)]
    pub struct Mode: u8 {
        /// It may be read.
        const READ = 1 << 0;
        /// It may be written.
        const WRITE = 1 << 1;
        /// It is closed when its process runs another program.
        const CLOSE_ON_EXEC = 1 << 2;
    }
}

/// An open file.
#[derive(Copy, Clone)]
pub struct File {
    pub node: Node,
    pub mode: Mode,
}

/// The files of a process, by their descriptors.
#[derive(Copy, Clone)]
pub struct Files([Option<File>; MOST_FILES]);

impl Files {
    /// Those of the first process: 0 to 2.
    pub const STANDARD: Self = {
        let mut files = [None; MOST_FILES];
        files[0] = Some(File { node: Node::Console, mode: Mode::READ });
        files[1] = Some(File { node: Node::Console, mode: Mode::WRITE });
        files[2] = Some(File { node: Node::Host, mode: Mode::WRITE });
        Self(files)
    };

    fn place(&mut self, descriptor: u32) -> Option<&mut Option<File>> {
        self.0.get_mut(descriptor as usize)
    }

    /// Closes what is not for another program.
    pub fn close_on_exec(&mut self) {
        for place in &mut self.0 {
            place.take_if(|file| file.mode.contains(Mode::CLOSE_ON_EXEC));
        }
    }
}

/// The running process' file of this descriptor, if that is open.
pub fn file(descriptor: u32) -> Option<File> {
    *TABLE.lock().current().files.place(descriptor)?
}

/// Gives a file the lowest free descriptor; none if all are taken.
pub fn open(file: File) -> Option<u32> {
    let mut table = TABLE.lock();
    let places = &mut table.current().files.0;
    let free = places.iter().position(Option::is_none)?;
    places[free] = Some(file);
    Some(free as u32)
}

/// Closes a descriptor; none if it was not open. A transfer that another thread has under way goes on.
pub fn close(descriptor: u32) -> Option<File> {
    TABLE.lock().current().files.place(descriptor)?.take()
}
