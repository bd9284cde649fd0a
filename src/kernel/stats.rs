//! The statistics file: every counter of the library, what must be nothing at the end, and how the CPUs idled.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use core::sync::atomic::Ordering;

use ebbtide::{Mm, Totals};

use super::console::alert;
use super::{Hardware, percpu, time};

/// What is still in use that was free before the program started.
pub struct Leaks {
    /// Frames.
    pub frames: u64,
    /// Swap slots.
    pub slots: u64,
    /// Rooms for raw tag images.
    pub tag_rooms: u64,
}

impl Leaks {
    /// Compares the totals before the program and after it.
    pub fn between(before: &Totals, after: &Totals) -> Self {
        Self {
            frames: before.frames_free.saturating_sub(after.frames_free),
            slots: before.slots_free.saturating_sub(after.slots_free),
            tag_rooms: before.tag_rooms_free.saturating_sub(after.tag_rooms_free),
        }
    }

    /// Whether there is one.
    pub fn any(&self) -> bool {
        self.frames != 0 || self.slots != 0 || self.tag_rooms != 0
    }
}

/// Writes one JSON object to a file of the host.
pub fn write_file(path: &[u8], mm: &Mm<Hardware>, leaks: &Leaks, instructions: Option<u64>) {
    let mut text = String::from("{\n");
    let mut row = |name: &str, value: u64| {
        let separator = if text.len() > 2 { ",\n" } else { "" };
        // Writing to a `String` does not fail.
        let _ = write!(text, "{separator}  \"{name}\": {value}");
    };
    mm.stats().for_each(&mut row);
    row("frames_leaked", leaks.frames);
    row("slots_leaked", leaks.slots);
    row("tag_rooms_leaked", leaks.tag_rooms);
    row("cpus", percpu::count() as u64);
    row("idle_wfi", percpu::all().map(|cpu| cpu.idle_wfi.load(Ordering::Relaxed)).sum());
    let now = time::counter();
    for cpu in percpu::all() {
        let number = cpu.number();
        row(&format!("cpu{number}_idle_wfi"), cpu.idle_wfi.load(Ordering::Relaxed));
        row(&format!("cpu{number}_idle_us"), time::ns_of(cpu.idle_ticks(now)) / 1000);
    }
    if let Some(instructions) = instructions {
        row("instructions", instructions);
    }
    text.push_str("\n}\n");
    if !write_host_file(path, text.as_bytes()) {
        alert!("the statistics could not be written to {}", String::from_utf8_lossy(path));
    }
}

/// Writes a file of the host; whether that worked.
pub fn write_host_file(path: &[u8], contents: &[u8]) -> bool {
    CString::new(path).is_ok_and(|path| semihosting::fs::write(&*path, contents).is_ok())
}
