//! The RAM swap device: a run of pages above the managed machine.

use core::ptr::NonNull;

use ebbtide::Mm;
use ebbtide::addr::{Pfn, PfnRange};
use ebbtide::machine::Machine;
use ebbtide::swap::{self, DeviceError, DeviceFlags, Progress, SwapArea, SwapDevice};

use super::global::Late;
use super::layout::Plan;
use super::page::{self, PageGranule};
use super::{Hardware, mmu};

/// The pages; slot `i` is page `i`.
struct RamSwap {
    pages: PfnRange,
}

impl RamSwap {
    /// The page of a slot, if `run` slots from there exist.
    fn page(&self, slot: u32, run: PfnRange) -> Result<Pfn, DeviceError> {
        let first = self.pages.start().offset(slot.into());
        if self.pages.covers(PfnRange::new(first, run.pages())) { Ok(first) } else { Err(DeviceError) }
    }
}

impl SwapDevice<Hardware> for RamSwap {
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

    fn flags(&self) -> DeviceFlags {
        DeviceFlags::SYNCHRONOUS
    }
}

/// Turns the swap part of the plan into a swap area.
pub fn start(mm: &'static Mm<Hardware>, plan: &Plan) -> Result<(), &'static str> {
    static DEVICE: Late<RamSwap> = Late::new();

    if plan.swap.is_empty() {
        return Ok(());
    }
    let Ok(slots) = u32::try_from(plan.swap.pages()) else { return Err("swap= is more than 2^32 pages") };
    // A room for each slot: no program, whatever its tags, runs out of rooms before it runs out of slots.
    let tag_rooms = slots;
    let room = swap::memory_needed::<PageGranule>(slots, tag_rooms) as u64;
    if room > plan.spare.pages() << page::SHIFT {
        return Err("the machine has no room for the records of swap=");
    }
    let device = DEVICE.set(RamSwap { pages: plan.swap });
    let Some(memory) = NonNull::new(mmu::linear(plan.spare.start().base::<PageGranule>().bytes())) else {
        unreachable!("the linear map starts above 0")
    };
    let area = SwapArea { device, slots, tag_rooms, memory, bytes: room as usize, priority: 0 };
    // SAFETY: the spare part of RAM is mapped for ever and nobody else's; so are the device's pages.
    unsafe { mm.swap_on(area) }.map_err(|_| "the swap area was refused")?;
    Ok(())
}
