//! The mini-kernel for QEMU's `virt` machine: the library's first port, and a porter's example.
//!
//! It uses only the library's public API. Built for a host, this binary is a launcher instead: it hands its
//! arguments to `qemu-run.sh`, so that `cargo run` boots the kernel.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
#[path = "kmain.rs"]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    use std::os::unix::process::CommandExt;

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-run.sh");
    // Returns only when the script could not be started.
    let error = std::process::Command::new(script).args(std::env::args_os().skip(1)).exec();
    eprintln!("ebbtide: {script}: {error}");
    std::process::ExitCode::from(125)
}
