//! Anonymous memory for AArch64 kernels: demand paging, swap with MTE tags, reclaim.
//!
//! A kernel makes one [`Mm`] over its free frames, a [`Space`] for each address space, adds swap areas, and calls
//! [`Space::handle_fault`] from its exception vector and [`Mm::reclaimer`] from a thread. It writes one small trait,
//! [`machine::Board`]; `docs/PORTING.md` leads through that.
//!
//! The library never prints, never panics for what a program does or for want of memory, does not use `alloc`, has no
//! global state, and knows no device. What it counts stands in [`stats::Stats`].
//!
//! # Principles
//!
//! 1. **Life, not only maps.** Pages come, leave, come back, are protected, forgotten. Mapping them is the easy tenth.
//! 2. **Runs, not pages.** What takes frames takes a run of them; a page is a run of one.
//! 3. **The bug has no spelling.** A writable leaf needs the proof that its page is exclusive, an executable one that
//!    its code is synced; an entry is touched only through the cursor that holds its table's lock; what was unmapped
//!    lies in the flush that frees it only once no CPU can reach it.
//! 4. **Prepare may fail, commit may not.** What can fail is gathered first, in a value that undoes itself when it is
//!    dropped.
//! 5. **One core, many machines.** The same code runs on real page tables and on the emulated machine
//!    [`machine::emu`], which is nastier than any CPU at hand. What only QEMU shows is not shown.
//!
//! The laws that follow from them are numbered in `docs/INVARIANTS.md`, each with the test that goes red when it is
//! broken.
//!
//! # The rooms
//!
//! In the order in which a page lives. A room uses only those above it; [`stats`] serves all, and the root object
//! [`Mm`] holds them together.
//!
//! | room | what is there |
//! |---|---|
//! | [`addr`], [`granule`] | addresses, page numbers and ranges as types; every size that follows from the page size |
//! | [`machine`] | the seam: what a porter writes, what the library calls; the real machine, the emulated one, and the recorder |
//! | [`sync`] | the only file that names atomics and locks |
//! | [`pte`] | one descriptor: what its bits mean, and the only makers of leaves and swap entries. Pure |
//! | [`frame`] | the frame records, the buddy allocator, folio counts and locks, slabs |
//! | [`node`] | what a space is known by: its root, its place in the fork tree, its identifier; a folio's home |
//! | [`tlb`] | the flush that owns what was removed |
//! | [`table`] | tables of descriptors: the walk, and the cursor through which alone entries change |
//! | [`mte`] | tag images: what is kept of a page's tags while it is out. Pure |
//! | [`swap`] | devices, slots, clusters, rooms for tags, write-out |
//! | [`rmap`] | who may map a folio: unmapping for reclaim, from one space or all that share it |
//! | [`space`] | address spaces: regions, faults, copies, swap-in, fork, pins, protect, unmap |
//! | [`reclaim`] | which pages leave: the list, the watermarks, eviction, advice. Policy: no `unsafe` |
//! | [`conformance`] | checks that a porter runs on a machine of theirs |

#![no_std]
// A module's head names the private types that keep its protocol: it is for readers of the source as well.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(any(test, feature = "emu"))]
extern crate std;

pub mod stats;

pub mod addr;
pub mod granule;
pub mod machine;
pub mod sync;

pub mod pte;

pub mod frame;
pub mod node;
pub mod table;
pub mod tlb;

pub mod mte;
pub mod swap;

pub mod rmap;

pub mod space;

pub mod reclaim;

pub mod conformance;

mod mm;

pub use mm::{Memory, Mm, SetupError, Totals};
pub use space::Space;

#[cfg(doctest)]
#[doc = include_str!("../docs/PORTING.md")]
mod porting {}
