//! What the EL0 programs share: start-up, system calls, output, memory, tags, clock.
//!
//! The programs are ordinary static AArch64 ELF files that use Linux's system-call numbers and
//! nothing else, so they run on the mini-kernel and on Linux alike; a disagreement between the two is a
//! finding. The few calls that only the mini-kernel has are in [`own`], and every program does without them
//! where they answer `ENOSYS`.
//!
//! The rooms, each using only those above it:
//!
//! - [`sys`]: system calls, with typed errors;
//! - [`own`]: the mini-kernel's own calls (counters, floors);
//! - [`io`]: `print!` and its kin;
//! - [`args`]: argv, auxv, options;
//! - [`clock`]: the counter that, under `-icount shift=0`, counts instructions;
//! - [`mte`]: tagged pointers and tag instructions;
//! - [`region`]: anonymous memory, accessed by page number;
//! - [`pattern`]: the data and tags of the side-by-side with Linux;
//! - [`model`]: what a page must hold, by formula, and the check that it does.
//!
//! A host build of the package exists only so that plain `cargo build` and `cargo test` work: there the
//! system calls answer `ENOSYS` and each program says that it belongs at EL0.

#![no_std]

#[cfg(test)]
extern crate std;

#[cfg(not(target_os = "none"))]
extern crate std as host;

pub mod args;
pub mod clock;
pub mod io;
pub mod model;
pub mod mte;
pub mod own;
pub mod pattern;
pub mod region;
#[doc(hidden)]
pub mod start;
pub mod sys;

/// Bytes of the unit in which the programs think, whatever the size of the kernel's pages.
pub const PAGE: usize = 4096;
/// 8-byte words of such a page.
pub const WORDS: usize = PAGE / 8;
/// Tag granules of such a page.
pub const GRANULES: usize = PAGE / 16;

/// The contents of one page.
pub type Words = [u64; WORDS];
/// The tags of one page, one of 0 to 15 for each granule.
pub type Tags = [u8; GRANULES];
