//! A RAM swap device with faults, to try programs and the library on: it may take its time and end requests in an order
//! of its own, fail now and then, and damage what is read.
//!
//! What is late moves when it is finished, or when another request is: never when it was asked, nor before its time has
//! come. So a frame that changed or was freed meanwhile shows as damage in the program. Where as many are late as there
//! is room for, the next one's asker sleeps until its time has come, and it moves then.
//!
//! A request that is late stays in the list until it is finished, by whomever it was carried out. Its asker waits while
//! another CPU does that.

use arrayvec::ArrayVec;
use ebbtide::addr::{PfnRange, PhysAddr};
use ebbtide::machine::Machine;
use ebbtide::swap::{DeviceError, DeviceFlags, Progress, SwapDevice, Ticket};
use spin::Mutex;

use super::block::{BlockDevice, Direction, Transfer};
use super::ram::RamSwap;
use crate::kernel::page::PAGE;
use crate::kernel::{Hardware, mmu, sched, time};

/// What is asked of the device's behaviour. All off is the RAM device as it is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Faults {
    /// `checked`: the library keeps a sum of each page.
    pub checked: bool,
    /// `late`, `late=MS`: requests are pending until they are finished, and end no earlier than so many milliseconds
    /// after they were asked for.
    pub late: Option<u32>,
    /// `fail=N`: each N-th request fails; 0 for none.
    pub fail: u32,
    /// `damage=N`: each N-th page read has a wrong bit; 0 for none.
    pub damage: u32,
}

impl Faults {
    /// A device without faults.
    pub const NONE: Self = Self { checked: false, late: None, fail: 0, damage: 0 };

    /// Whether the RAM device itself will do.
    pub fn is_plain(self) -> bool {
        self.late.is_none() && self.fail == 0 && self.damage == 0
    }

    /// What a device with these faults says of itself.
    pub fn flags(self) -> DeviceFlags {
        let mut flags = DeviceFlags::empty();
        flags.set(DeviceFlags::SYNCHRONOUS, self.late.is_none());
        flags.set(DeviceFlags::CHECKED, self.checked);
        flags
    }
}

#[derive(Copy, Clone)]
struct Request {
    number: u64,
    transfer: Transfer,
    /// The counter's value before which it does not move.
    due: u64,
}

/// How far a late request has come.
#[derive(Copy, Clone)]
enum Way {
    Waits,
    /// Some CPU carries it out.
    Moves,
    Ended(Result<(), DeviceError>),
}

/// Requests under way at once: more than a batch of reclaim has. Who asks beyond that waits until it is done.
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

    fn ask(&self, machine: &Hardware, transfer: Transfer) -> Result<Progress, DeviceError> {
        let number = {
            let mut state = self.state.lock();
            state.requests += 1;
            state.requests
        };
        let delay = time::ticks_of(1_000_000 * u64::from(self.faults.late.unwrap_or(0)));
        let request = Request { number, transfer, due: time::counter() + delay };
        if self.faults.late.is_some() {
            let pushed = self.state.lock().late.try_push((request, Way::Waits));
            return match pushed {
                Ok(()) => Ok(Progress::Pending(Ticket(number))),
                // The list is full.
                Err(_) => {
                    sched::sleep_until(request.due);
                    self.carry_out(machine, &request).map(|()| Progress::Done)
                }
            };
        }
        self.carry_out(machine, &request).map(|()| Progress::Done)
    }

    fn carry_out(&self, machine: &Hardware, request: &Request) -> Result<(), DeviceError> {
        let fails = self.faults.fail != 0 && request.number.is_multiple_of(self.faults.fail.into());
        if fails {
            return Err(DeviceError);
        }
        let _done = self.below.begin(machine, request.transfer)?;
        if request.transfer.direction == Direction::Read {
            self.damage(request.transfer);
        }
        Ok(())
    }

    /// Turns a bit of some of the pages round.
    fn damage(&self, Transfer { memory, bytes, .. }: Transfer) {
        if self.faults.damage == 0 {
            return;
        }
        for start in (0..bytes).step_by(PAGE as usize) {
            let mut state = self.state.lock();
            state.pages_read += 1;
            if state.pages_read.is_multiple_of(self.faults.damage.into()) {
                let bit = next(&mut state.random) % (8 * PAGE.min(bytes - start));
                let at = PhysAddr::new(memory.bytes() + start + bit / 8);
                let byte = mmu::linear(at.bytes());
                // SAFETY: within the memory that the device was handed, to be written.
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

impl BlockDevice for Trial {
    fn bytes(&self) -> u64 {
        self.below.bytes()
    }

    fn begin(&self, machine: &Hardware, transfer: Transfer) -> Result<Progress, DeviceError> {
        self.ask(machine, transfer)
    }
}

impl SwapDevice<Hardware> for Trial {
    fn flags(&self) -> DeviceFlags {
        self.faults.flags()
    }

    fn write(&self, machine: &Hardware, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        self.ask(machine, Transfer::of_slots(Direction::Write, frames, slot))
    }

    fn read(&self, machine: &Hardware, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        self.ask(machine, Transfer::of_slots(Direction::Read, frames, slot))
    }

    fn finish(&self, machine: &Hardware, Ticket(number): Ticket) -> Result<(), DeviceError> {
        loop {
            let taken = {
                let mut state = self.state.lock();
                let place = state.late.iter().position(|(request, _)| request.number == number);
                let Some(place) = place else { return Err(DeviceError) };
                let (Request { due, .. }, way) = state.late[place];
                if let Way::Ended(result) = way {
                    state.late.swap_remove(place);
                    return result;
                }
                // Any of those that wait and whose time has come, until it was this one's turn.
                let now = time::counter();
                let may_move = |(request, way): &(Request, Way)| matches!(way, Way::Waits) && request.due <= now;
                let waiting = state.late.iter().filter(|&entry| may_move(entry)).count() as u64;
                let chosen = if waiting == 0 { 0 } else { next(&mut state.random) % waiting };
                match state.late.iter_mut().filter(|entry| may_move(entry)).nth(chosen as usize) {
                    Some((request, way)) => {
                        *way = Way::Moves;
                        Ok(*request)
                    }
                    None => Err(due),
                }
            };
            let request = match taken {
                Ok(request) => request,
                Err(due) if due > time::counter() => {
                    sched::sleep_until(due);
                    continue;
                }
                // Another CPU carries it out.
                Err(_) => {
                    machine.relax();
                    continue;
                }
            };
            let ended = self.carry_out(machine, &request);
            let mut state = self.state.lock();
            if let Some((_, way)) = state.late.iter_mut().find(|(other, _)| other.number == request.number) {
                *way = Way::Ended(ended);
            }
        }
    }
}
