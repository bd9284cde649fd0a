//! The machine's swap areas: `/dev/ram0` and so on, one for each size that `swap=` names, all on from the start.
//!
//! Programs may read and write the devices too (`direct`), but write none that is an area at that time; nor becomes one
//! an area while a write is under way.

mod block;
mod ram;
mod trial;

use alloc::boxed::Box;
use core::ptr::NonNull;

use arrayvec::ArrayVec;
use ebbtide::addr::PfnRange;
use ebbtide::swap::{self, AreaId, SwapArea, SwapOffError, SwapOnError};
use ebbtide::sync::Spin;
use ebbtide::{Mm, Space};

use super::bootargs::{BootArgs, SWAP_AREAS};
use super::global::Late;
use super::layout::Plan;
use super::page::{self, PageGranule};
use super::{Hardware, mmu};
pub use block::{BlockDevice, Direction, SECTOR, Transfer};
use ram::RamSwap;
pub use trial::Faults;
use trial::Trial;

/// A device, and what its area needs.
struct Device {
    device: &'static dyn BlockDevice,
    slots: u32,
    records: NonNull<u8>,
    bytes: usize,
    user: Spin<User>,
}

/// Who has a device.
#[derive(Copy, Clone)]
enum User {
    /// Programs, with so many writes under way.
    Programs(u32),
    /// It becomes an area, or ceases to be one, which may take long: whoever else wants it does not wait.
    Turning,
    /// Its area.
    Area(AreaId),
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
    /// It is on, or off, already, or about to be; or it cannot be on, as a program writes to its device.
    Already,
    /// The library's reason.
    On(SwapOnError),
    /// The library's reason.
    Off(SwapOffError),
}

impl Device {
    fn turn_on(&self, mm: &Mm<Hardware>, priority: i16) -> Result<(), Refusal> {
        {
            let mut user = self.user.lock();
            let User::Programs(0) = *user else { return Err(Refusal::Already) };
            *user = User::Turning;
        }
        // A room for each slot: no program, whatever its tags, runs out of rooms before it runs out of slots.
        let Self { device, slots, records: memory, bytes, .. } = *self;
        let wanted = SwapArea { device, slots, tag_rooms: slots, memory, bytes, priority };
        // SAFETY: the records are mapped for ever and, while the area is off, nobody's.
        let turned = unsafe { mm.swap_on(wanted) };
        *self.user.lock() = turned.map_or(User::Programs(0), User::Area);
        turned.map(drop).map_err(Refusal::On)
    }

    fn turn_off(&self, mm: &Mm<Hardware>, spaces: &[&Space<Hardware>]) -> Result<(), Refusal> {
        let id = {
            let mut user = self.user.lock();
            let User::Area(id) = *user else { return Err(Refusal::Already) };
            *user = User::Turning;
            id
        };
        let turned = mm.swap_off(id, spaces);
        *self.user.lock() = turned.map_or(User::Area(id), |_| User::Programs(0));
        turned.map(drop).map_err(Refusal::Off)
    }
}

/// The device of a name.
fn find(name: &[u8]) -> Result<&'static Device, Refusal> {
    open(name).map(DeviceId::get).ok_or(Refusal::NoDevice)
}

/// A device that there is.
#[derive(Copy, Clone)]
pub struct DeviceId(u8);

/// The device of a name.
pub fn open(name: &[u8]) -> Option<DeviceId> {
    open_in_root(name.strip_prefix(b"/")?)
}

/// The device of a name without its first `/`.
pub fn open_in_root(name: &[u8]) -> Option<DeviceId> {
    let digits = core::str::from_utf8(name.strip_prefix(b"dev/ram")?).ok()?;
    // As it is printed: no sign, no zeros before it.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let number: u8 = digits.parse().ok().filter(|_| is_plain)?;
    (usize::from(number) < DEVICES.get()?.len()).then_some(DeviceId(number))
}

impl DeviceId {
    fn get(self) -> &'static Device {
        match DEVICES.get() {
            Some(devices) => &devices[usize::from(self.0)],
            None => unreachable!("a device's number is made by `open`"),
        }
    }

    /// The device.
    pub fn device(self) -> &'static dyn BlockDevice {
        self.get().device
    }

    /// Keeps the device from becoming a swap area, until the value is dropped; none while it is one, or becomes one.
    pub fn write(self) -> Option<Writing> {
        let device = self.get();
        let User::Programs(writes) = &mut *device.user.lock() else { return None };
        *writes += 1;
        Some(Writing { device })
    }
}

/// A program's write to a device.
pub struct Writing {
    device: &'static Device,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let User::Programs(writes) = &mut *self.device.user.lock() else {
            unreachable!("a device that is written to became an area")
        };
        *writes -= 1;
    }
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
            user: Spin::new(User::Programs(0)),
        });
    }
    let devices: &'static ArrayVec<Device, SWAP_AREAS> = DEVICES.set(devices);
    for (device, size) in devices.iter().zip(args.swap.iter().filter(|size| size.mib > 0)) {
        device.turn_on(mm, size.priority).map_err(|_| "a swap area was refused")?;
    }
    Ok(())
}

/// The device over these pages. It stays for ever.
fn device(pages: PfnRange, faults: Faults) -> &'static dyn BlockDevice {
    let ram = RamSwap::new(pages, faults.flags());
    if faults.is_plain() {
        return Box::leak(Box::new(ram));
    }
    Box::leak(Box::new(Trial::new(ram, faults)))
}
