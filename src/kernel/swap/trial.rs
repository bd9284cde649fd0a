//! A RAM swap device with faults, to try programs and the library on: it may take its time and end requests in an order
//! of its own, fail now and then, and damage what is read.
//!
//! What is late moves when it is finished, or when another request is: never when it was asked. So a frame that changed
//! or was freed meanwhile shows as damage in the program.
//!
//! A request that is late stays in the list until it is finished, by whomever it was carried out. Its asker waits while
//! another CPU does that.

use arrayvec::ArrayVec;
use ebbtide::addr::PfnRange;
use ebbtide::machine::Machine;
use ebbtide::swap::{DeviceError, DeviceFlags, Progress, SwapDevice, Ticket};
use spin::Mutex;

use super::ram::RamSwap;
use crate::kernel::{Hardware, mmu, page};

/// What is asked of the device's behaviour. All off is the RAM device as it is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Faults {
    /// `checked`: the library keeps a sum of each page.
    pub checked: bool,
    /// `late`: requests are pending until they are finished.
    pub late: bool,
    /// `fail=N`: each N-th request fails; 0 for none.
    pub fail: u32,
    /// `damage=N`: each N-th page read has a wrong bit; 0 for none.
    pub damage: u32,
}

impl Faults {
    /// A device without faults.
    pub const NONE: Self = Self { checked: false, late: false, fail: 0, damage: 0 };

    /// Whether the RAM device itself will do.
    pub fn is_plain(self) -> bool {
        !self.late && self.fail == 0 && self.damage == 0
    }

    /// What a device with these faults says of itself.
    pub fn flags(self) -> DeviceFlags {
        let mut flags = DeviceFlags::empty();
        flags.set(DeviceFlags::SYNCHRONOUS, !self.late);
        flags.set(DeviceFlags::CHECKED, self.checked);
        flags
    }
}

#[derive(Copy, Clone)]
enum What {
    Write,
    Read,
}

#[derive(Copy, Clone)]
struct Request {
    number: u64,
    what: What,
    frames: PfnRange,
    slot: u32,
}

/// How far a late request has come.
#[derive(Copy, Clone)]
enum Way {
    Waits,
    /// Some CPU carries it out.
    Moves,
    Ended(Result<(), DeviceError>),
}

/// Requests under way at once: more than a batch of reclaim has. Beyond that they are done at once.
const WAITING: usize = 64;

struct State {
    requests: u64,
    pages_read: u64,
    random: u64,
    late: ArrayVec<(Request, Way), WAITING>,
}

/// See the module's head.
pub struct Trial {
    below: RamSwap,
    faults: Faults,
    state: Mutex<State>,
}

impl Trial {
    /// A device over `below`.
    pub const fn new(below: RamSwap, faults: Faults) -> Self {
        let state = State { requests: 0, pages_read: 0, random: 0x9e37_79b9_7f4a_7c15, late: ArrayVec::new_const() };
        Self { below, faults, state: Mutex::new(state) }
    }

    fn begin(&self, machine: &Hardware, what: What, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        let number = {
            let mut state = self.state.lock();
            state.requests += 1;
            state.requests
        };
        let request = Request { number, what, frames, slot };
        if self.faults.late {
            let pushed = self.state.lock().late.try_push((request, Way::Waits));
            return match pushed {
                Ok(()) => Ok(Progress::Pending(Ticket(number))),
                // Full, it is done at once: the device is as good as any then.
                Err(_) => self.carry_out(machine, &request).map(|()| Progress::Done),
            };
        }
        self.carry_out(machine, &request).map(|()| Progress::Done)
    }

    fn carry_out(&self, machine: &Hardware, request: &Request) -> Result<(), DeviceError> {
        let fails = self.faults.fail != 0 && request.number.is_multiple_of(self.faults.fail.into());
        if fails {
            return Err(DeviceError);
        }
        match request.what {
            What::Write => self.below.write(machine, request.frames, request.slot).map(drop),
            What::Read => {
                self.below.read(machine, request.slot, request.frames).map(drop)?;
                self.damage(request.frames);
                Ok(())
            }
        }
    }

    /// Turns a bit of some of the pages round.
    fn damage(&self, frames: PfnRange) {
        if self.faults.damage == 0 {
            return;
        }
        for page in 0..frames.pages() {
            let mut state = self.state.lock();
            state.pages_read += 1;
            if state.pages_read.is_multiple_of(self.faults.damage.into()) {
                let bit = next(&mut state.random) % (8 * page::PAGE);
                let at = mmu::linear(frames.start().offset(page).base::<page::PageGranule>().bytes());
                let byte = at.wrapping_add(bit as usize / 8);
                // SAFETY: within a frame that the library handed to the device, to be written.
                unsafe { byte.write(byte.read() ^ 1 << (bit % 8)) };
            }
        }
    }
}

/// xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

impl SwapDevice<Hardware> for Trial {
    fn flags(&self) -> DeviceFlags {
        self.faults.flags()
    }

    fn write(&self, machine: &Hardware, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        self.begin(machine, What::Write, frames, slot)
    }

    fn read(&self, machine: &Hardware, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        self.begin(machine, What::Read, frames, slot)
    }

    fn finish(&self, machine: &Hardware, Ticket(number): Ticket) -> Result<(), DeviceError> {
        loop {
            let taken = {
                let mut state = self.state.lock();
                let place = state.late.iter().position(|(request, _)| request.number == number);
                let Some(place) = place else { return Err(DeviceError) };
                if let (_, Way::Ended(result)) = state.late[place] {
                    state.late.swap_remove(place);
                    return result;
                }
                // Any of those that wait, until it was this one's turn.
                let waiting = state.late.iter().filter(|(_, way)| matches!(way, Way::Waits)).count() as u64;
                let chosen = if waiting == 0 { 0 } else { next(&mut state.random) % waiting };
                let mut waiters = state.late.iter_mut().filter(|(_, way)| matches!(way, Way::Waits));
                waiters.nth(chosen as usize).map(|(request, way)| {
                    *way = Way::Moves;
                    *request
                })
            };
            let Some(request) = taken else {
                machine.relax();
                continue;
            };
            let ended = self.carry_out(machine, &request);
            let mut state = self.state.lock();
            if let Some((_, way)) = state.late.iter_mut().find(|(other, _)| other.number == request.number) {
                *way = Way::Ended(ended);
            }
        }
    }
}
