//! `print!`, `println!`, `eprint!`, `eprintln!`: formatted into a small buffer on the stack, one write(2) for
//! a line of usual length. No global state, so a panic in the middle of a line can still print.

use core::fmt::{self, Write};

use crate::sys;

/// File descriptor of the program's output.
pub const STDOUT: i32 = 1;
/// File descriptor of its remarks.
pub const STDERR: i32 = 2;

/// A buffered writer to a file descriptor; what is left goes out when it is dropped.
pub struct Writer {
    fd: i32,
    len: usize,
    buffer: [u8; 256],
}

impl Writer {
    /// An empty writer.
    pub const fn new(fd: i32) -> Self {
        Self { fd, len: 0, buffer: [0; 256] }
    }

    /// Writes out what is buffered. Output that nobody takes is lost: there is no one to tell.
    pub fn flush(&mut self) {
        let mut rest = &self.buffer[..self.len];
        while !rest.is_empty() {
            match sys::write(self.fd, rest) {
                Ok(taken) if taken > 0 => rest = &rest[taken.min(rest.len())..],
                _ => break,
            }
        }
        self.len = 0;
    }
}

impl Write for Writer {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut rest = s.as_bytes();
        while !rest.is_empty() {
            if self.len == self.buffer.len() {
                self.flush();
            }
            let room = self.buffer.len() - self.len;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.buffer[self.len..self.len + now.len()].copy_from_slice(now);
            self.len += now.len();
            rest = later;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush();
    }
}

#[doc(hidden)]
pub fn print(fd: i32, text: fmt::Arguments<'_>) {
    // The writer itself never fails; a `Display` that does has nothing more to say.
    let _ = Writer::new(fd).write_fmt(text);
}

/// Formats to standard output.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::io::print($crate::io::STDOUT, ::core::format_args!($($arg)*)) };
}

/// Formats to standard output, with a line feed.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::print!("{}\n", ::core::format_args!($($arg)*)) };
}

/// Formats to standard error.
#[macro_export]
macro_rules! eprint {
    ($($arg:tt)*) => { $crate::io::print($crate::io::STDERR, ::core::format_args!($($arg)*)) };
}

/// Formats to standard error, with a line feed.
#[macro_export]
macro_rules! eprintln {
    ($($arg:tt)*) => { $crate::eprint!("{}\n", ::core::format_args!($($arg)*)) };
}

/// A live progress line on standard output: rewritten in place at every twentieth of the work, ended when
/// dropped.
pub struct Progress {
    label: &'static str,
    total: usize,
    next: usize,
}

impl Progress {
    /// Begins a line for `total` steps.
    pub fn new(label: &'static str, total: usize) -> Self {
        let line = Self { label, total, next: total / 20 + 1 };
        line.show(0);
        line
    }

    fn show(&self, done: usize) {
        crate::print!("\r{:<24}{:>4} %", self.label, done * 100 / self.total.max(1));
    }

    /// Tells that `done` steps are done.
    #[inline]
    pub fn at(&mut self, done: usize) {
        if done >= self.next {
            self.show(done);
            self.next = done + self.total / 20 + 1;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show(self.total);
        crate::print!("\n");
    }
}
