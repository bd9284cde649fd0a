//! The machine's swap areas: `/dev/ram0` and so on, one for each size that `swap=` names, all on from the start.

mod ram;
mod trial;

use alloc::boxed::Box;
use core::ptr::NonNull;

use arrayvec::ArrayVec;
use ebbtide::addr::PfnRange;
use ebbtide::swap::{self, AreaId, SwapArea, SwapDevice, SwapOffError, SwapOnError};
use ebbtide::sync::Sleep;
use ebbtide::{Mm, Space};

use super::bootargs::{BootArgs, SWAP_AREAS};
use super::global::Late;
use super::layout::Plan;
use super::page::{self, PageGranule};
use super::{Hardware, mmu};
use ram::RamSwap;
pub use trial::Faults;
use trial::Trial;

/// A device, and what its area needs.
struct Device {
    device: &'static dyn SwapDevice<Hardware>,
    slots: u32,
    records: NonNull<u8>,
    bytes: usize,
    /// Its area, while that is on. Who turns it on or off may sleep.
    area: Sleep<Option<AreaId>>,
}

// SAFETY: the records are memory that goes to the library with the area, and to nobody else.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

static DEVICES: Late<ArrayVec<Device, SWAP_AREAS>> = Late::new();

/// Why an area was not turned on or off.
pub enum Refusal {
    /// There is no device of that name.
    NoDevice,
    /// It is on, or off, already.
    Already,
    /// The library's reason.
    On(SwapOnError),
    /// The library's reason.
    Off(SwapOffError),
}

impl Device {
    fn turn_on(&self, mm: &Mm<Hardware>, priority: i16) -> Result<(), Refusal> {
        let mut area = self.area.lock(mm.machine());
        if area.is_some() {
            return Err(Refusal::Already);
        }
        // A room for each slot: no program, whatever its tags, runs out of rooms before it runs out of slots.
        let Self { device, slots, records: memory, bytes, .. } = *self;
        let wanted = SwapArea { device, slots, tag_rooms: slots, memory, bytes, priority };
        // SAFETY: the records are mapped for ever and, while the area is off, nobody's.
        *area = Some(unsafe { mm.swap_on(wanted) }.map_err(Refusal::On)?);
        Ok(())
    }

    fn turn_off(&self, mm: &Mm<Hardware>, spaces: &[&Space<Hardware>]) -> Result<(), Refusal> {
        let mut area = self.area.lock(mm.machine());
        let id = area.ok_or(Refusal::Already)?;
        mm.swap_off(id, spaces).map_err(Refusal::Off)?;
        *area = None;
        Ok(())
    }
}

/// The device of a name.
fn find(name: &[u8]) -> Result<&'static Device, Refusal> {
    let number = name.strip_prefix(b"/dev/ram").and_then(|digits| core::str::from_utf8(digits).ok()?.parse().ok());
    let devices = DEVICES.get().ok_or(Refusal::NoDevice)?;
    number.and_then(|number: usize| devices.get(number)).ok_or(Refusal::NoDevice)
}

/// Turns the area on that is on the device of this name.
pub fn turn_on(mm: &Mm<Hardware>, name: &[u8], priority: i16) -> Result<(), Refusal> {
    find(name)?.turn_on(mm, priority)
}

/// Turns it off: the pages of `spaces`, which are all that there are, come back to memory.
pub fn turn_off(mm: &Mm<Hardware>, name: &[u8], spaces: &[&Space<Hardware>]) -> Result<(), Refusal> {
    find(name)?.turn_off(mm, spaces)
}

/// Makes devices of the swap part of the plan, and turns their areas on.
pub fn start(mm: &'static Mm<Hardware>, plan: &Plan, args: &BootArgs<'_>) -> Result<(), &'static str> {
    let mut devices = ArrayVec::new();
    let mut next = plan.swap.start();
    let mut records = plan.spare.start().base::<PageGranule>().bytes();
    let end = plan.spare.end().base::<PageGranule>().bytes();
    for size in args.swap.iter().filter(|size| size.mib > 0) {
        let pages = PfnRange::new(next, size.bytes() >> page::SHIFT);
        next = pages.end();
        let Ok(slots) = u32::try_from(pages.pages()) else { return Err("swap= is more than 2^32 pages") };
        let bytes = swap::memory_needed::<PageGranule>(slots, slots);
        let Some(memory) = NonNull::new(mmu::linear(records)) else { unreachable!("the linear map starts above 0") };
        records += (bytes as u64).next_multiple_of(page::PAGE);
        if records > end {
            return Err("the machine has no room for the records of swap=");
        }
        devices.push(Device {
            device: device(pages, args.faults),
            slots,
            records: memory,
            bytes,
            area: Sleep::new(None),
        });
    }
    let devices: &'static ArrayVec<Device, SWAP_AREAS> = DEVICES.set(devices);
    for (device, size) in devices.iter().zip(args.swap.iter().filter(|size| size.mib > 0)) {
        device.turn_on(mm, size.priority).map_err(|_| "a swap area was refused")?;
    }
    Ok(())
}

/// The device over these pages. It stays for ever.
fn device(pages: PfnRange, faults: Faults) -> &'static dyn SwapDevice<Hardware> {
    let ram = RamSwap::new(pages, faults.flags());
    if faults.is_plain() {
        return Box::leak(Box::new(ram));
    }
    Box::leak(Box::new(Trial::new(ram, faults)))
}
