//! The devices as programs read and write them: not by slots but by bytes, in whole sectors.
//!
//! A device knows memory by physical addresses, as one that has no CPU would: whoever asks it for a transfer sees to it
//! that the memory stays, and stays whose it is, until the transfer has ended.

use ebbtide::addr::{PfnRange, PhysAddr};
use ebbtide::swap::{DeviceError, Progress, SwapDevice};

use crate::kernel::Hardware;
use crate::kernel::page::{PAGE, PageGranule};

/// What positions, lengths and addresses of a program's transfers are multiples of, in bytes: as of most of Linux's
/// devices.
pub const SECTOR: u64 = 512;

/// Which way the bytes go.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Direction {
    /// From memory to the device.
    Write,
    /// From the device to memory.
    Read,
}

/// A transfer: so many bytes of memory in a row, and where on the device they begin.
#[derive(Copy, Clone, Debug)]
pub struct Transfer {
    pub direction: Direction,
    pub memory: PhysAddr,
    pub at: u64,
    pub bytes: u64,
}

impl Transfer {
    /// That of whole slots.
    pub const fn of_slots(direction: Direction, frames: PfnRange, slot: u32) -> Self {
        let memory = frames.start().base::<PageGranule>();
        Self { direction, memory, at: slot as u64 * PAGE, bytes: frames.pages() * PAGE }
    }

    /// This one and `next`, if they are one in memory and on the device.
    pub fn joined(self, next: Self) -> Option<Self> {
        let follows = self.memory.bytes() + self.bytes == next.memory.bytes() && self.at + self.bytes == next.at;
        (follows && self.direction == next.direction).then_some(Self { bytes: self.bytes + next.bytes, ..self })
    }
}

/// What there is to a device beside its slots.
pub trait BlockDevice: SwapDevice<Hardware> {
    /// Its size.
    fn bytes(&self) -> u64;

    /// Begins a transfer; [`SwapDevice::finish`] says how one ended that is pending.
    ///
    /// # Errors
    /// [`DeviceError`]: what of it was done is unknown.
    fn begin(&self, machine: &Hardware, transfer: Transfer) -> Result<Progress, DeviceError>;
}
