//! What a swap device does for the library.

use crate::addr::PfnRange;
use crate::machine::Machine;

bitflags::bitflags! {
    /// What a device says of itself. It does not change while the area is on.
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    pub struct DeviceFlags: u32 {
        /// Requests are done when the calls return: there are no tickets.
        const SYNCHRONOUS = 1 << 0;
        /// A page must not change while it is being written: the device sums or sends it twice. The library keeps to
        /// that with any device, as a page stays unmapped until its write has ended; this is for a device that checks.
        const STABLE_WRITES = 1 << 1;
        /// The device, or the way to it, may damage pages: the library keeps a sum of each page's data and tags
        /// ([`machine::sum`](crate::machine::sum)), and shows no page that came back another.
        const CHECKED = 1 << 2;
    }
}

/// A request failed. The device keeps no part of a failed write that a later read could return as good.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct DeviceError;

/// A request that is under way, by a number of the device's choice.
#[derive(Eq, PartialEq, Debug)]
#[must_use = "the frames of a request are the device's until `SwapDevice::finish` returns"]
pub struct Ticket(pub u64);

/// How far a request has come when the call returns.
#[derive(Eq, PartialEq, Debug)]
#[must_use = "a pending request has to be finished"]
pub enum Progress {
    /// It is done.
    Done,
    /// It is under way; [`SwapDevice::finish`] says how it ended.
    Pending(Ticket),
}

impl Progress {
    /// Waits for the end of the request.
    #[inline]
    pub(super) fn finish<M: Machine>(self, machine: &M, device: &dyn SwapDevice<M>) -> Result<(), DeviceError> {
        match self {
            Self::Done => Ok(()),
            Self::Pending(ticket) => device.finish(machine, ticket),
        }
    }
}

/// A store of page data, by slot. It sees data only: tags are the library's.
///
/// The library calls from any CPU, with no spinning lock held. While it writes a slot it has no other request for it
/// under way; reads of one slot may overlap. It finishes each pending request once, in any order, from any CPU, and until
/// then leaves the frames alone. A device may sleep, and may end requests in any order. It reads and writes frames
/// through `machine`, or by its own means with the same effect on ordering.
pub trait SwapDevice<M: Machine>: Sync {
    /// What the device is.
    fn flags(&self) -> DeviceFlags;

    /// Writes the frames of a run to the slots from `slot` up.
    ///
    /// # Errors
    /// [`DeviceError`] when any of them could not be written: the library keeps the frames.
    fn write(&self, machine: &M, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError>;

    /// Reads the slots from `slot` up into the frames of a run.
    ///
    /// # Errors
    /// [`DeviceError`] when any of them could not be read: the library shows none of the frames to a program.
    fn read(&self, machine: &M, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError>;

    /// Sleeps until a pending request has ended.
    ///
    /// # Errors
    /// As the request's own.
    fn finish(&self, _machine: &M, _ticket: Ticket) -> Result<(), DeviceError> {
        // A device without tickets is asked for none.
        Err(DeviceError)
    }

    /// [`SwapDevice::write`], which sums what is written: for a device that moves pages by the CPU to do in one go.
    /// `sums` is as long as the run, at most [`SUMMED_PAGES`].
    ///
    /// # Errors
    /// As [`SwapDevice::write`].
    fn write_summed(
        &self,
        machine: &M,
        frames: PfnRange,
        slot: u32,
        sums: &mut [u64],
    ) -> Result<Progress, DeviceError> {
        machine.sum(frames, sums);
        self.write(machine, frames, slot)
    }

    /// [`SwapDevice::read`], which sums what was read, unless the request is pending: then the library does.
    ///
    /// # Errors
    /// As [`SwapDevice::read`].
    fn read_summed(&self, machine: &M, slot: u32, frames: PfnRange, sums: &mut [u64]) -> Result<Progress, DeviceError> {
        let progress = self.read(machine, slot, frames)?;
        if progress == Progress::Done {
            machine.sum(frames, sums);
        }
        Ok(progress)
    }
}

/// Pages of one request to a device that is checked: their sums are on the stack meanwhile, 256 bytes.
pub const SUMMED_PAGES: usize = 32;
