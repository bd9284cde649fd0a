//! The RAM swap device: a run of pages above the managed machine.

use ebbtide::addr::{Pfn, PfnRange};
use ebbtide::machine::Machine;
use ebbtide::swap::{DeviceError, DeviceFlags, Progress, SwapDevice};

use super::block::{BlockDevice, Direction, Transfer};
use crate::kernel::page::{PAGE, PageGranule};
use crate::kernel::{Hardware, mmu};

/// The pages; slot `i` is page `i`.
pub struct RamSwap {
    pages: PfnRange,
    flags: DeviceFlags,
}

impl RamSwap {
    /// A device of these pages, of which each is checked if `flags` says so.
    pub const fn new(pages: PfnRange, flags: DeviceFlags) -> Self {
        Self { pages, flags }
    }

    /// The page of a slot, if `run` slots from there exist.
    fn page(&self, slot: u32, run: PfnRange) -> Result<Pfn, DeviceError> {
        let first = self.pages.start().offset(slot.into());
        if self.pages.covers(PfnRange::new(first, run.pages())) { Ok(first) } else { Err(DeviceError) }
    }
}

impl BlockDevice for RamSwap {
    fn bytes(&self) -> u64 {
        self.pages.pages() * PAGE
    }

    fn begin(&self, _: &Hardware, transfer: Transfer) -> Result<Progress, DeviceError> {
        let Transfer { direction, memory, at, bytes } = transfer;
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes()) {
            return Err(DeviceError);
        }
        let ours = mmu::linear(self.pages.start().base::<PageGranule>().bytes() + at);
        let theirs = mmu::linear(memory.bytes());
        // SAFETY: ours is within the device, theirs is what the caller has for the transfer, and no memory of the
        // device's. A program that stores there meanwhile gets what it deserves: any mixture of bytes.
        unsafe {
            match direction {
                Direction::Write => ours.copy_from_nonoverlapping(theirs, bytes as usize),
                Direction::Read => theirs.copy_from_nonoverlapping(ours, bytes as usize),
            }
        }
        Ok(Progress::Done)
    }
}

impl SwapDevice<Hardware> for RamSwap {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn write(&self, machine: &Hardware, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        let to = self.page(slot, frames)?;
        machine.copy_run(frames, to);
        Ok(Progress::Done)
    }

    fn read(&self, machine: &Hardware, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        let from = self.page(slot, frames)?;
        machine.copy_run(PfnRange::new(from, frames.pages()), frames.start());
        Ok(Progress::Done)
    }

    fn write_summed(
        &self,
        machine: &Hardware,
        frames: PfnRange,
        slot: u32,
        sums: &mut [u64],
    ) -> Result<Progress, DeviceError> {
        let to = self.page(slot, frames)?;
        machine.copy_run_summed(frames, to, sums);
        Ok(Progress::Done)
    }

    fn read_summed(
        &self,
        machine: &Hardware,
        slot: u32,
        frames: PfnRange,
        sums: &mut [u64],
    ) -> Result<Progress, DeviceError> {
        let from = self.page(slot, frames)?;
        machine.copy_run_summed(PfnRange::new(from, frames.pages()), frames.start(), sums);
        Ok(Progress::Done)
    }
}
