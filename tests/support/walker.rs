//! Walkers of one group's entries, on the bare machine: one that takes the table's lock before it reads, and two that
//! read first.

use ebbtide::addr::{Pfn, PfnRange, Vpn, VpnRange};
use ebbtide::granule::{K4, Level};
use ebbtide::machine::emu::{Emu, EmuConfig};
use ebbtide::machine::{Asid, Cached, EntryAt, Machine, Reach, Scope, Tags};
use ebbtide::sync::Spin;
use shuttle::rand::{Rng, thread_rng};

use super::entries::{ACCESSED, READ_ONLY, VALID, WRITABLE};

const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 16;

/// Where a walker of a group's entries takes the table's lock.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Walker {
    /// Before it reads.
    LocksFirst,
    /// At the first valid entry that it finds: it takes the holes of break-before-make for empty entries.
    LocksLate,
    /// Once the first entry was read, which speaks for all: if it is empty, there is nothing to take.
    FirstDecides,
}

const ASID: Asid = Asid::new(1);
/// A page for EL0, clean; a store makes it dirty.
const CLEAN: u64 = VALID | 1 << 1 | 1 << 6 | READ_ONLY | 0b11 << 8 | ACCESSED | 1 << 11 | WRITABLE | 0b11 << 53;

/// A leaf table with one group's pages, on the bare machine.
pub struct Group {
    pub emu: Emu<K4>,
    table: Pfn,
    lock: Spin<()>,
}

impl Group {
    pub fn new() -> Self {
        let seed = thread_rng().gen_range(1..1 << 20);
        let emu = Emu::<K4>::new(EmuConfig { frames: 32, cpus: 2, seed, ..EmuConfig::default() });
        let first = emu.frames().start();
        emu.zero(PfnRange::new(first, 4), Tags::Ignore);
        emu.zero(PfnRange::new(first.offset(PAGES), PAGES), Tags::Include);
        emu.fence_contents();
        for (depth, level) in (0..).zip([Level::L0, Level::L1, Level::L2]) {
            let index = (BASE >> level.shift::<K4>()) as usize & 511;
            let below = first.offset(depth + 1).base::<K4>().bytes();
            emu.store_entry(EntryAt { table: first.offset(depth), index }, below | 0b11);
        }
        let group = Self { emu, table: first.offset(3), lock: Spin::new(()) };
        for page in 0..PAGES {
            group.emu.store_entry(group.entry(page), first.offset(PAGES + page).base::<K4>().bytes() | CLEAN);
        }
        group.emu.fence_tables();
        (0..2).for_each(|cpu| group.emu.on_cpu(cpu, || group.emu.install_root(first, ASID)));
        group
    }

    fn entry(&self, page: u64) -> EntryAt {
        EntryAt { table: self.table, index: page as usize }
    }

    fn flush(&self) {
        let pages = VpnRange::new(Vpn::new(BASE >> 12), PAGES);
        self.emu.fence_tables();
        self.emu.invalidate(ASID, Scope::Pages(pages), Cached::Leaf(Level::L3), Reach::Broadcast);
        self.emu.fence_invalidations();
    }

    /// Break-before-make of all entries, under the lock.
    pub fn remake(&self) {
        let _locked = self.lock.lock();
        let old = (0..PAGES).map(|page| self.emu.exchange_entry(self.entry(page), 0)).collect::<Vec<_>>();
        self.flush();
        for (page, raw) in (0..PAGES).zip(old) {
            self.emu.store_entry(self.entry(page), raw);
        }
    }

    /// Takes all pages out for reclaim, and frees their frames.
    pub fn take(&self, walker: Walker) {
        let mut lock = (walker == Walker::LocksFirst).then(|| self.lock.lock());
        let is_skipped = walker == Walker::FirstDecides && self.emu.load_entry(self.entry(0)) & VALID == 0;
        for page in (0..PAGES).filter(|_| !is_skipped) {
            if lock.is_none() && self.emu.load_entry(self.entry(page)) & VALID != 0 {
                lock = Some(self.lock.lock());
            }
            if lock.is_some() {
                self.emu.exchange_entry(self.entry(page), 0);
            }
        }
        self.flush();
        drop(lock);
        self.emu.note_freed(PfnRange::new(self.emu.frames().start().offset(PAGES), PAGES));
    }
}
