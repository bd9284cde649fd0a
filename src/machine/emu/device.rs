//! A swap device for tests: pages in the host's memory, failures and damage on demand.
//!
//! It reads and writes frames as a device does, through [`Emu::export_page`] and [`Emu::import_page`], so that the
//! laws about contents hold for it. One that is not [`DeviceFlags::SYNCHRONOUS`] moves nothing when it is asked: it
//! does so some time before the request is finished, in an order of its own. One with [`DeviceFlags::STABLE_WRITES`]
//! looks at the page when it is asked and when it moves it, and panics if it has changed.

use std::sync::Mutex;
use std::vec::Vec;

use crate::addr::PfnRange;
use crate::granule::Granule;
use crate::machine::Machine;
use crate::swap::{DeviceError, DeviceFlags, Progress, SwapDevice, Ticket};

use super::adversary::Rng;
use super::{Emu, held};

/// A store of pages. One operation moves one run; operations are counted over both directions.
pub struct TestDevice {
    flags: DeviceFlags,
    store: Mutex<Store>,
}

struct Store {
    slots: Vec<Option<Vec<u64>>>,
    reads: u64,
    writes: u64,
    /// The operation, counted from the first, that fails, and the one that returns a wrong bit.
    fail_at: Option<u64>,
    corrupt_at: Option<u64>,
    random: Rng,
    waiting: Vec<(u64, Request)>,
    ended: Vec<(u64, Result<(), DeviceError>)>,
}

/// What is to be moved.
struct Request {
    frames: PfnRange,
    slot: u32,
    what: What,
    /// A bit to turn round in each page.
    wrong: u64,
}

enum What {
    /// With what the pages held when the device was asked, if it cares.
    Write(Option<Vec<Vec<u64>>>),
    Read,
}

impl TestDevice {
    /// An empty device of so many slots.
    pub fn new(slots: u32, flags: DeviceFlags) -> Self {
        let store = Store {
            slots: (0..slots).map(|_| None).collect(),
            reads: 0,
            writes: 0,
            fail_at: None,
            corrupt_at: None,
            random: Rng::new(slots.into()),
            waiting: Vec::new(),
            ended: Vec::new(),
        };
        Self { flags, store: Mutex::new(store) }
    }

    /// What it says of itself.
    pub fn flags(&self) -> DeviceFlags {
        self.flags
    }

    /// Slots of the device.
    pub fn slots(&self) -> u32 {
        held(&self.store).slots.len() as u32
    }

    /// Lets `operations` more pass and makes the one after them fail.
    pub fn fail_after(&self, operations: u64) {
        let mut store = held(&self.store);
        store.fail_at = Some(store.reads + store.writes + operations);
    }

    /// Lets `operations` more pass and makes the one after them, a read, return a wrong bit.
    pub fn corrupt_after(&self, operations: u64) {
        let mut store = held(&self.store);
        store.corrupt_at = Some(store.reads + store.writes + operations);
    }

    /// Turns a bit of a slot round.
    pub fn damage(&self, slot: u32, bit: usize) {
        if let Some(Some(page)) = held(&self.store).slots.get_mut(slot as usize) {
            page[bit / 64] ^= 1 << (bit % 64);
        }
    }

    /// Operations begun: reads and writes.
    pub fn operations(&self) -> (u64, u64) {
        let store = held(&self.store);
        (store.reads, store.writes)
    }

    /// What a slot holds, if it was ever written.
    pub fn page(&self, slot: u32) -> Option<Vec<u64>> {
        held(&self.store).slots.get(slot as usize)?.clone()
    }

    /// Forgets a slot, so that a read of it fails.
    pub fn discard(&self, slot: u32) {
        if let Some(page) = held(&self.store).slots.get_mut(slot as usize) {
            *page = None;
        }
    }

    /// Takes a request, at once or for later.
    fn begin<G: Granule>(
        &self,
        emu: &Emu<G>,
        frames: PfnRange,
        slot: u32,
        what: What,
    ) -> Result<Progress, DeviceError> {
        let (number, request) = {
            let mut store = held(&self.store);
            let number = store.reads + store.writes;
            match what {
                What::Write(_) => store.writes += 1,
                What::Read => store.reads += 1,
            }
            let wrong = u64::from(store.corrupt_at == Some(number));
            let fails = store.fail_at == Some(number);
            store.run(frames.pages(), slot)?;
            if fails && self.flags.contains(DeviceFlags::SYNCHRONOUS) {
                return Err(DeviceError);
            }
            // A device that is late finds out late.
            if fails {
                store.ended.push((number, Err(DeviceError)));
                return Ok(Progress::Pending(Ticket(number)));
            }
            (number, Request { frames, slot, what, wrong })
        };
        if self.flags.contains(DeviceFlags::SYNCHRONOUS) {
            return self.move_pages(emu, request).map(|()| Progress::Done);
        }
        held(&self.store).waiting.push((number, request));
        // Some are done at once, those of others among them.
        while held(&self.store).random.one_in(3) {
            self.move_any(emu);
        }
        Ok(Progress::Pending(Ticket(number)))
    }

    /// Carries out one request of those that wait.
    fn move_any<G: Granule>(&self, emu: &Emu<G>) {
        let (number, request) = {
            let store = &mut *held(&self.store);
            if store.waiting.is_empty() {
                return;
            }
            let place = store.random.below(store.waiting.len());
            store.waiting.swap_remove(place)
        };
        let ended = self.move_pages(emu, request);
        held(&self.store).ended.push((number, ended));
    }

    /// The machine is asked with the store's lock free: its steps let others go on, who may come here.
    fn move_pages<G: Granule>(&self, emu: &Emu<G>, request: Request) -> Result<(), DeviceError> {
        let Request { frames, slot, what, wrong } = request;
        let each = (0..frames.pages()).map(|page| (page as usize, frames.start().offset(page), slot + page as u32));
        for (page, frame, slot) in each {
            match &what {
                What::Write(before) => {
                    let words = emu.export_page(frame);
                    if let Some(before) = before {
                        assert!(before[page] == words, "{frame:?} changed while it was written");
                    }
                    held(&self.store).run(1, slot)?[0] = Some(words);
                }
                What::Read => {
                    let mut words = held(&self.store).run(1, slot)?[0].clone().ok_or(DeviceError)?;
                    words[0] ^= wrong;
                    emu.import_page(frame, &words);
                }
            }
        }
        Ok(())
    }
}

impl Store {
    fn run(&mut self, pages: u64, slot: u32) -> Result<&mut [Option<Vec<u64>>], DeviceError> {
        let first = slot as usize;
        self.slots.get_mut(first..first + pages as usize).ok_or(DeviceError)
    }
}

impl<G: Granule> SwapDevice<Emu<G>> for TestDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn write(&self, emu: &Emu<G>, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        let pages = || (0..frames.pages()).map(|page| emu.export_page(frames.start().offset(page))).collect();
        let before = self.flags.contains(DeviceFlags::STABLE_WRITES).then(pages);
        self.begin(emu, frames, slot, What::Write(before))
    }

    fn read(&self, emu: &Emu<G>, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        self.begin(emu, frames, slot, What::Read)
    }

    fn finish(&self, emu: &Emu<G>, Ticket(number): Ticket) -> Result<(), DeviceError> {
        loop {
            {
                let mut store = held(&self.store);
                if let Some(place) = store.ended.iter().position(|&(ended, _)| ended == number) {
                    return store.ended.swap_remove(place).1;
                }
            }
            // Another thread may be at it.
            self.move_any(emu);
            emu.relax();
        }
    }
}
