//! ebbtide
#![no_std]

#[cfg(any(test, feature = "emu"))]
extern crate std;

pub mod stats;

pub mod addr;
pub mod granule;
pub mod machine;
pub mod sync;

pub mod pte;

pub mod frame;
pub mod table;
pub mod tlb;

pub mod mte;
pub mod swap;

pub mod rmap;

pub mod space;

pub mod reclaim;

mod mm;

pub use mm::{Memory, Mm, SetupError, Totals};
pub use space::Space;
