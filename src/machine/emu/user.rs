//! Programs at EL0, as scripts: each access goes through a CPU's TLB, faults, is resolved by the handler, and is
//! tried again.

use std::vec::Vec;

use crate::addr::VirtAddr;
use crate::granule::{Granule, Level, TAG_GRANULE_BYTES};

use super::Emu;
use super::report::Law;

/// What a program does at an address.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Access {
    /// Reads 8 bytes.
    Load,
    /// Writes 8 bytes.
    Store(u64),
    /// LDG: reads the granule's allocation tag.
    LoadTag,
    /// STG: writes the granule's allocation tag.
    StoreTag(u8),
    /// Fetches an instruction.
    Fetch,
}

impl Access {
    /// Whether write permission is needed.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Store(_) | Self::StoreTag(_))
    }
}

/// Why an access failed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum FaultKind {
    /// No valid descriptor at this level.
    Translation(Level),
    /// AF is clear and the hardware does not set it.
    AccessFlag,
    /// The descriptor forbids the access.
    Permission,
    /// The tags differ.
    TagCheck {
        /// In the pointer.
        pointer: u8,
        /// In memory.
        memory: u8,
    },
}

/// A synchronous abort taken from EL0.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Fault {
    /// The address, without its top byte.
    pub address: VirtAddr,
    /// What was tried.
    pub access: Access,
    /// What was wrong.
    pub kind: FaultKind,
}

/// How a program's access ended for good.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Death<E> {
    /// A tag check failed; the handler is not asked.
    TagCheck(Fault),
    /// The handler refused.
    Refused(Fault, E),
    /// The handler agreed to [`RETRIES`] faults of one access and the access still faults.
    Livelock(Fault),
}

/// Faults of one access that a program bears. The adversary makes spurious ones, but not for ever.
pub const RETRIES: usize = 64;

/// A program on one CPU. `handler` plays the kernel's exception vector.
pub struct User<'a, G: Granule, H> {
    emu: &'a Emu<G>,
    cpu: usize,
    handler: H,
}

impl<G: Granule> Emu<G> {
    /// A program that runs on `cpu` with whatever root is installed there.
    pub fn user<H, E>(&self, cpu: usize, handler: H) -> User<'_, G, H>
    where
        H: FnMut(Fault) -> Result<(), E>,
    {
        User { emu: self, cpu, handler }
    }
}

impl<G: Granule, E, H: FnMut(Fault) -> Result<(), E>> User<'_, G, H> {
    /// Does an access, with as many faults as it takes.
    ///
    /// # Errors
    /// The access cannot be done; see [`Death`].
    pub fn access(&mut self, pointer: u64, access: Access) -> Result<u64, Death<E>> {
        let mut last = None;
        for tries in 0..RETRIES {
            if tries == RETRIES / 2 {
                // No store is under way for ever: so many faults take longer than any.
                self.emu.locked(|state| (0..state.cpus.len()).for_each(|cpu| state.arrive(cpu)));
            }
            let fault = match self.emu.access(self.cpu, pointer, access) {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            if matches!(fault.kind, FaultKind::TagCheck { .. }) {
                return Err(Death::TagCheck(fault));
            }
            // The vector runs on the CPU that faulted.
            let handler = &mut self.handler;
            self.emu.on_cpu(self.cpu, || handler(fault)).map_err(|error| Death::Refused(fault, error))?;
            last = Some(fault);
        }
        let fault = last.expect("there was at least one try");
        self.emu.violation(Law::Livelock, std::format!("{fault:x?} after {RETRIES} resolutions"));
        Err(Death::Livelock(fault))
    }

    /// Reads 8 bytes.
    ///
    /// # Errors
    /// See [`User::access`]; the same holds for all that follow.
    pub fn load(&mut self, pointer: u64) -> Result<u64, Death<E>> {
        self.access(pointer, Access::Load)
    }

    /// Writes 8 bytes.
    pub fn store(&mut self, pointer: u64, value: u64) -> Result<(), Death<E>> {
        self.access(pointer, Access::Store(value)).map(drop)
    }

    /// Reads the tag of the granule.
    pub fn ldg(&mut self, pointer: u64) -> Result<u8, Death<E>> {
        self.access(pointer, Access::LoadTag).map(|tag| tag as u8)
    }

    /// Writes the tag of the granule.
    pub fn stg(&mut self, pointer: u64, tag: u8) -> Result<(), Death<E>> {
        self.access(pointer, Access::StoreTag(tag)).map(drop)
    }

    /// Fetches the 8 bytes of two instructions.
    pub fn fetch(&mut self, pointer: u64) -> Result<u64, Death<E>> {
        self.access(pointer, Access::Fetch)
    }

    /// Writes `word(i)` to each 8 bytes of the page at `page`.
    pub fn fill_page(&mut self, page: u64, word: impl Fn(usize) -> u64) -> Result<(), Death<E>> {
        (0..G::ENTRIES).try_for_each(|index| self.store(page + index as u64 * 8, word(index)))
    }

    /// Reads the page at `page`.
    pub fn read_page(&mut self, page: u64) -> Result<Vec<u64>, Death<E>> {
        (0..G::ENTRIES).map(|index| self.load(page + index as u64 * 8)).collect()
    }

    /// Writes `tag(i)` to each granule of the page at `page`.
    pub fn tag_page(&mut self, page: u64, tag: impl Fn(usize) -> u8) -> Result<(), Death<E>> {
        let granules = G::SIZE / TAG_GRANULE_BYTES;
        (0..granules).try_for_each(|index| self.stg(page + (index * TAG_GRANULE_BYTES) as u64, tag(index)))
    }

    /// Reads the tags of the page at `page`.
    pub fn read_tags(&mut self, page: u64) -> Result<Vec<u8>, Death<E>> {
        let granules = G::SIZE / TAG_GRANULE_BYTES;
        (0..granules).map(|index| self.ldg(page + (index * TAG_GRANULE_BYTES) as u64)).collect()
    }
}
