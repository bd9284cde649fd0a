//! A program's transfers between a device and its own pages, with nothing in between: O_DIRECT.
//!
//! The device reaches the pages by their frames, past the tables, while the program and others go on: they fork, store,
//! unmap, end, and reclaim looks for memory. So each page is pinned from before the device hears of it until the
//! request has ended. It is what the program sees at that address for as long as it keeps that mapped, and nobody
//! else's whatever happens. Tags are not looked at, and stay as they are.
//!
//! The task sleeps until all that it began has ended, also when it is to be killed meanwhile, and one request's failure
//! does not end the wait for the others.

use arrayvec::ArrayVec;
use ebbtide::addr::{PhysAddr, VirtAddr};
use ebbtide::space::{Access, FaultError, Pin, PinError};
use ebbtide::swap::{DeviceError, Progress};

use super::page::{PAGE, PageGranule};
use super::swap::{BlockDevice, Direction, Transfer};
use super::{global, process, sched};

/// Bytes that a task has pinned at once: they cannot leave, and there may be many tasks.
const BATCH_BYTES: u64 = 128 << 10;
/// The same in pages: 32 of 4 KiB, 2 of 64.
const BATCH: usize = (BATCH_BYTES / PAGE) as usize;

/// Why nothing was transferred, or not all is known to be.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Error {
    /// The first page is not the program's, or not for this.
    BadAddress,
    /// There is no memory for a page, or none that the program may have, or it is pinned too often.
    NoMemory,
    /// The device failed. What of the bytes it had transferred is unknown.
    Device,
}

impl From<PinError> for Error {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Fault(FaultError::NoMemory | FaultError::Capped) | PinError::TooManyPins => Self::NoMemory,
            PinError::Fault(_) => Self::BadAddress,
        }
    }
}

/// Moves `bytes` bytes between the device, from its byte `at` on, and the running program's memory at `address`. All
/// three are multiples of a sector, and the range lies in the user's half. Returns how many were moved: all, or those
/// before a page that could not be had.
///
/// # Errors
/// See [`Error`].
pub fn transfer(
    device: &dyn BlockDevice,
    direction: Direction,
    at: u64,
    address: VirtAddr,
    bytes: u64,
) -> Result<u64, Error> {
    let mut done = 0;
    // A program that is to be killed sees no result.
    while done < bytes && !sched::doomed() {
        let rest = bytes - done;
        let batch = Batch::pin(direction, at + done, VirtAddr::new(address.bytes() + done), rest);
        done += batch.bytes;
        let refused = batch.refused;
        batch.transfer(device)?;
        match refused {
            None => {}
            Some(error) if done == 0 => return Err(error),
            Some(_) => break,
        }
    }
    Ok(done)
}

/// Pages that are pinned together, and what is to be moved.
struct Batch {
    pins: ArrayVec<Pin, BATCH>,
    transfers: ArrayVec<Transfer, BATCH>,
    bytes: u64,
    /// Why it has no more pages.
    refused: Option<Error>,
}

impl Batch {
    /// Pins the first pages of a range, and finds out where they are.
    fn pin(direction: Direction, at: u64, address: VirtAddr, bytes: u64) -> Self {
        let mut batch = Self { pins: ArrayVec::new(), transfers: ArrayVec::new(), bytes: 0, refused: None };
        let (mm, space) = (global::mm(), process::space());
        let access = match direction {
            Direction::Read => Access::Write,
            Direction::Write => Access::Read,
        };
        while batch.bytes < bytes && !batch.pins.is_full() {
            let address = VirtAddr::new(address.bytes() + batch.bytes);
            let offset = address.bytes() % PAGE;
            let pin = match space.pin(mm, address, access) {
                Ok(pin) => pin,
                Err(error) => {
                    batch.refused = Some(error.into());
                    break;
                }
            };
            let memory = PhysAddr::new(mm.pinned(&pin).base::<PageGranule>().bytes() + offset);
            let bytes = (PAGE - offset).min(bytes - batch.bytes);
            batch.add(Transfer { direction, memory, at: at + batch.bytes, bytes });
            batch.pins.push(pin);
            batch.bytes += bytes;
        }
        batch
    }

    fn add(&mut self, next: Transfer) {
        match self.transfers.last_mut().and_then(|last| Some((last.joined(next)?, last))) {
            Some((joined, last)) => *last = joined,
            None => self.transfers.push(next),
        }
    }

    /// Has the device move it all, sleeps until that has ended, and gives the pins back.
    fn transfer(self, device: &dyn BlockDevice) -> Result<(), Error> {
        let mm = global::mm();
        let begin = |transfer| device.begin(mm.machine(), transfer);
        let begun: ArrayVec<_, BATCH> = self.transfers.into_iter().map(begin).collect();
        let end = |progress: Result<Progress, DeviceError>| match progress? {
            Progress::Done => Ok(()),
            Progress::Pending(ticket) => device.finish(mm.machine(), ticket),
        };
        let ended = begun.into_iter().map(end).fold(Ok(()), Result::and);
        self.pins.into_iter().for_each(|pin| mm.unpin(pin));
        ended.map_err(|DeviceError| Error::Device)
    }
}
