//! The RAM swap device: a run of pages above the managed machine.

use ebbtide::addr::{Pfn, PfnRange};
use ebbtide::machine::Machine;
use ebbtide::swap::{DeviceError, DeviceFlags, Progress, SwapDevice};

use crate::kernel::Hardware;

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
