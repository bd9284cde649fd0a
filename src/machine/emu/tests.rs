//! The emulated machine's own tests: what a program sees, that each law catches naive code, that right code passes
//! under every seed, and that a seed replays.

mod laws;
mod life;
mod machine;
mod threads;

use core::cell::Cell;
use std::vec::Vec;

use super::*;
use crate::addr::{Vpn, VpnRange};
use crate::granule::Level;
use crate::machine::{Asid, Cached, Machine, Reach, Scope, Tags};

const ACCESSED: u64 = desc::ACCESSED;
const READ_ONLY: u64 = desc::READ_ONLY;
const DBM: u64 = desc::DBM;
const CONTIGUOUS: u64 = desc::CONTIGUOUS;
const TAGGED: u64 = 1 << 2;
const UXN: u64 = desc::UXN;
/// A page for EL0: valid, inner shareable, nG, PXN, UXN, AF, writable and dirty.
const PAGE: u64 = 0b11 | 1 << 6 | 0b11 << 8 | ACCESSED | 1 << 11 | 1 << 53 | UXN;

/// The page that most tests map: the first of a group.
const VA: u64 = 0x40_0000;
const ASID: Asid = Asid::new(3);

/// A small kernel, as a test writes it: a machine, a bump allocator, a table walk, right ways to map and unmap.
struct Rig<G: Granule> {
    emu: Emu<G>,
    next: Cell<u64>,
    root: Pfn,
}

impl<G: Granule> Rig<G> {
    fn new(config: EmuConfig) -> Self {
        let emu = Emu::new(config);
        let rig = Self { root: config.first_frame, next: Cell::new(0), emu };
        let root = rig.table();
        for cpu in 0..config.cpus {
            rig.emu.on_cpu(cpu, || rig.emu.install_root(root, ASID));
        }
        rig
    }

    fn quiet() -> Self {
        Self::new(EmuConfig { cpus: 2, ..EmuConfig::default() })
    }

    fn full(seed: u64) -> Self {
        Self::new(EmuConfig { cpus: 4, seed, adversary: Adversary::Full, ..EmuConfig::default() })
    }

    /// Frames that nobody used, aligned to their number.
    fn frames(&self, count: u64) -> PfnRange {
        let first = self.next.get().next_multiple_of(count);
        self.next.set(first + count);
        PfnRange::new(self.emu.frames().start().offset(first), count)
    }

    /// A run of zeroed frames with known tags.
    fn zeroed(&self, count: u64) -> PfnRange {
        let run = self.frames(count);
        self.emu.zero(run, Tags::Include);
        self.emu.fence_contents();
        run
    }

    fn page(&self) -> Pfn {
        self.zeroed(1).start()
    }

    fn table(&self) -> Pfn {
        self.page()
    }

    /// The leaf entry of an address; tables above it are made.
    fn at(&self, va: u64) -> EntryAt {
        let (mut table, mut level) = (self.root, Level::root::<G>(self.emu.va_bits()));
        loop {
            let at = EntryAt { table, index: desc::index_of::<G>(va >> G::SHIFT, level) };
            let Some(below) = level.below() else { return at };
            if self.emu.peek(at) == 0 {
                let child = self.table();
                self.emu.store_entry(at, child.base::<G>().bytes() | 0b11);
                self.emu.fence_tables();
            }
            table = Pfn::new((self.emu.peek(at) & 0xffff_ffff_f000) >> G::SHIFT);
            level = below;
        }
    }

    fn map(&self, va: u64, frame: Pfn, attributes: u64) -> EntryAt {
        let at = self.at(va);
        self.emu.store_entry(at, frame.base::<G>().bytes() | attributes);
        self.emu.fence_tables();
        at
    }

    fn map_pages(&self, va: u64, first: Pfn, pages: u64, attributes: u64) {
        for page in 0..pages {
            self.map(va + (page << G::SHIFT), first.offset(page), attributes);
        }
    }

    fn map_group(&self, va: u64, first: Pfn, attributes: u64) -> EntryAt {
        self.map_pages(va, first, G::GROUP_PAGES as u64, attributes | CONTIGUOUS);
        self.at(va)
    }

    fn clear(&self, at: EntryAt, entries: usize) {
        for index in 0..entries {
            self.emu.exchange_entry(at.offset(index), 0);
        }
    }

    fn pages(va: u64, pages: u64) -> Scope {
        Scope::Pages(VpnRange::new(Vpn::new(va >> G::SHIFT), pages))
    }

    /// The right order: the stores before are visible, then the invalidation, then its end.
    fn flush(&self, va: u64, pages: u64) {
        self.emu.fence_tables();
        self.emu.invalidate(ASID, Self::pages(va, pages), Cached::Leaf(Level::L3), Reach::Broadcast);
        self.emu.fence_invalidations();
    }

    fn unmap(&self, va: u64) -> u64 {
        let old = self.emu.exchange_entry(self.at(va), 0);
        self.flush(va, 1);
        old
    }

    fn unmap_group(&self, va: u64) {
        self.clear(self.at(va), G::GROUP_PAGES);
        self.flush(va, G::GROUP_PAGES as u64);
    }

    fn load(&self, cpu: usize, va: u64) -> Result<u64, FaultKind> {
        self.emu.access(cpu, va, Access::Load).map_err(|fault| fault.kind)
    }

    fn put(&self, cpu: usize, va: u64, value: u64) -> Result<u64, FaultKind> {
        self.emu.access(cpu, va, Access::Store(value)).map_err(|fault| fault.kind)
    }
}

/// A pointer with a logical tag.
const fn tagged(va: u64, tag: u8) -> u64 {
    va | (tag as u64) << 56
}

fn seeds() -> impl Iterator<Item = u64> {
    1..=40
}
