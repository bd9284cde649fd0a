//! A swap device for tests: pages in the host's memory, failures and corruption on demand.
//!
//! It reads and writes frames as a device does, through [`Emu::export_page`] and [`Emu::import_page`], so that the
//! laws about contents hold for it.

use std::sync::Mutex;
use std::vec::Vec;

use crate::addr::PfnRange;
use crate::granule::Granule;
use crate::swap::{DeviceError, DeviceFlags, SwapDevice};

use super::{Emu, held};

/// A store of pages. One operation moves one run; operations are counted over both directions.
pub struct TestDevice {
    flags: DeviceFlags,
    store: Mutex<Store>,
}

#[derive(Default)]
struct Store {
    slots: Vec<Option<Vec<u64>>>,
    reads: u64,
    writes: u64,
    /// The operation, counted from the first, that fails, and the one that returns a wrong bit.
    fail_at: Option<u64>,
    corrupt_at: Option<u64>,
}

impl TestDevice {
    /// An empty device of so many slots.
    pub fn new(slots: u32, flags: DeviceFlags) -> Self {
        let slots = (0..slots).map(|_| None).collect();
        Self { flags, store: Mutex::new(Store { slots, ..Store::default() }) }
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
}

impl Store {
    /// Starts operation `number` on a run of slots.
    fn begin(&mut self, number: u64, pages: u64, slot: u32) -> Result<&mut [Option<Vec<u64>>], DeviceError> {
        if self.fail_at == Some(number) {
            return Err(DeviceError);
        }
        self.run(pages, slot)
    }

    fn run(&mut self, pages: u64, slot: u32) -> Result<&mut [Option<Vec<u64>>], DeviceError> {
        let first = slot as usize;
        self.slots.get_mut(first..first + pages as usize).ok_or(DeviceError)
    }
}

impl<G: Granule> SwapDevice<Emu<G>> for TestDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn write(&self, emu: &Emu<G>, frames: PfnRange, slot: u32) -> Result<(), DeviceError> {
        {
            let mut store = held(&self.store);
            let number = store.reads + store.writes;
            store.writes += 1;
            store.begin(number, frames.pages(), slot)?;
        }
        // The machine is asked with the store's lock free: its steps let others go on, who may come here.
        for page in 0..frames.pages() {
            let words = emu.export_page(frames.start().offset(page));
            held(&self.store).run(1, slot + page as u32)?[0] = Some(words);
        }
        Ok(())
    }

    fn read(&self, emu: &Emu<G>, slot: u32, frames: PfnRange) -> Result<(), DeviceError> {
        let wrong = {
            let mut store = held(&self.store);
            let number = store.reads + store.writes;
            store.reads += 1;
            store.begin(number, frames.pages(), slot)?;
            u64::from(store.corrupt_at == Some(number))
        };
        for page in 0..frames.pages() {
            let words = held(&self.store).run(1, slot + page as u32)?[0].clone();
            let mut words = words.ok_or(DeviceError)?;
            words[0] ^= wrong;
            emu.import_page(frames.start().offset(page), &words);
        }
        Ok(())
    }
}
