//! What a swap device does for the library.

use crate::addr::PfnRange;
use crate::machine::Machine;

bitflags::bitflags! {
    /// What a device says of itself.
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    pub struct DeviceFlags: u32 {
        /// A request is done when the call returns.
        const SYNCHRONOUS = 1 << 0;
        /// A page must not change while it is being written.
        const STABLE_WRITES = 1 << 1;
    }
}

/// A request failed. The device keeps no part of a failed write that a later read could return as good.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct DeviceError;

/// A store of page data, by slot. It sees data only: tags are the library's.
///
/// The library calls from any CPU, with no spinning lock held, and never two requests for one slot at a time. A device
/// may sleep. It reads and writes frames through `machine`, or by its own means with the same effect on ordering.
pub trait SwapDevice<M: Machine>: Sync {
    /// What the device is.
    fn flags(&self) -> DeviceFlags;

    /// Writes the frames of a run to the slots from `slot` up.
    ///
    /// # Errors
    /// [`DeviceError`] when any of them could not be written: the library keeps the frames.
    fn write(&self, machine: &M, frames: PfnRange, slot: u32) -> Result<(), DeviceError>;

    /// Reads the slots from `slot` up into the frames of a run.
    ///
    /// # Errors
    /// [`DeviceError`] when any of them could not be read: the library shows none of the frames to a program.
    fn read(&self, machine: &M, slot: u32, frames: PfnRange) -> Result<(), DeviceError>;
}
