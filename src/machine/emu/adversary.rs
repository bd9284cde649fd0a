//! What the emulated machine does on its own: late stores, speculative walks, evictions, invalidations that take
//! their time. Every choice comes from one seeded generator.

use std::sync::Arc;
use std::vec::Vec;

use crate::addr::{Pfn, Vpn};
use crate::granule::Granule;
use crate::machine::{Asid, EntryAt, Features};
use crate::sync::Ordering::Relaxed;

use super::desc::{ACCESSED, VALID};
use super::may::{Frame, Ghost, Root};
use super::ram::Ram;
use super::report::Log;
use super::tlb::{Invalidation, Tlb};
use super::{Adversary, EmuConfig, TagCheck};

/// xorshift64*: small, fast, and the same everywhere.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        // splitmix64's last step, so that neighbouring seeds have nothing in common. The generator cannot leave zero.
        let mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ mixed >> 31).max(1))
    }

    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is small and not zero.
    #[inline]
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    #[inline]
    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// A table store that walkers may not have seen yet.
#[derive(Copy, Clone)]
pub(super) struct Late {
    pub at: EntryAt,
    pub old: u64,
    /// Ascends over all CPUs.
    pub serial: u64,
}

/// Table stores of one CPU under way at most; further ones push the oldest out.
const LATE: usize = 64;

/// Pages that were stored to, unmapped or accessed of late: where speculation looks.
const RECENT: usize = 16;

/// What belongs to one CPU.
pub(super) struct Cpu {
    /// The installed root, and its identifier.
    pub root: Option<(Pfn, Asid)>,
    pub tlb: Tlb,
    pub late: Vec<Late>,
    pub queued: Vec<Invalidation>,
    /// Counts the fences that order this CPU's stores to contents.
    pub epoch: u32,
    pub tag_check: TagCheck,
}

/// All of the machine that changes, but for RAM's words. Behind one lock: an operation of the seam, a program's
/// access and the adversary's moves are each one step.
pub(super) struct State<G: Granule> {
    pub config: EmuConfig,
    pub ram: Arc<Ram<G>>,
    pub rng: Rng,
    pub cpus: Vec<Cpu>,
    /// Late stores of all CPUs together.
    pub late: usize,
    /// The serial number of the last store that was late.
    serial: u64,
    pub frames: Vec<Frame>,
    pub roots: Vec<Root>,
    pub ghosts: Vec<Ghost>,
    /// Of those that no TLB holds any longer: removals that walkers do not see yet.
    pub unseen: Vec<Ghost>,
    recent: [Vpn; RECENT],
    /// Every other seed makes a machine whose TLBs forget nothing on their own: what relies on luck fails there.
    evicts: bool,
    pub log: Log,
}

impl<G: Granule> State<G> {
    pub(super) fn new(config: EmuConfig, ram: Arc<Ram<G>>) -> Self {
        let cpu = || Cpu {
            root: None,
            tlb: Tlb::default(),
            late: Vec::new(),
            queued: Vec::new(),
            epoch: 1,
            tag_check: TagCheck::None,
        };
        Self {
            config,
            rng: Rng::new(config.seed),
            cpus: (0..config.cpus).map(|_| cpu()).collect(),
            late: 0,
            serial: 0,
            frames: (0..config.frames).map(|_| Frame::default()).collect(),
            roots: Vec::new(),
            ghosts: Vec::new(),
            unseen: Vec::new(),
            recent: [Vpn::new(0); RECENT],
            evicts: config.seed.is_multiple_of(2),
            log: Log::new(config.seed),
            ram,
        }
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.config.adversary == Adversary::Full
    }

    #[inline]
    pub(super) fn has(&self, feature: Features) -> bool {
        self.config.features.contains(feature)
    }

    /// The moves between two steps of the core.
    #[inline]
    pub(super) fn disturb(&mut self) {
        if !self.is_full() {
            return;
        }
        let dice = self.rng.next();
        if dice & 0x3 == 0 {
            let vpn = self.recent[(dice >> 32) as usize % RECENT];
            self.speculate(vpn);
        }
        if dice & 0xf0 == 0 && self.evicts {
            let cpu = self.rng.below(self.cpus.len());
            self.cpus[cpu].tlb.evict(&mut self.rng);
        }
        if dice & 0xf00 == 0 && self.late > 0 {
            let cpu = self.rng.below(self.cpus.len());
            self.arrive_one(cpu);
        }
        if dice & 0x7000 == 0 {
            let cpu = self.rng.below(self.cpus.len());
            self.apply_one(cpu);
        }
    }

    /// Some CPU walks to a page without an access: permitted for any page at any time (Arm ARM, D8.2, "Translation
    /// table walks", speculative accesses). It never sets the dirty state.
    pub(super) fn speculate(&mut self, vpn: Vpn) {
        let cpu = self.rng.below(self.cpus.len());
        let Some((_, asid)) = self.cpus[cpu].root else { return };
        // What is cached is not walked for: a stale entry stays.
        if self.cpus[cpu].tlb.find(asid, vpn, &mut self.rng).is_none() {
            // A fault of a speculative walk is not reported to anybody.
            let _ = self.fill(cpu, vpn);
        }
    }

    /// Remembers a page for speculation.
    #[inline]
    pub(super) fn note_recent(&mut self, vpn: Vpn) {
        if self.is_full() {
            let place = self.rng.below(RECENT);
            self.recent[place] = vpn;
        }
    }

    /// Lets a table store travel.
    pub(super) fn delay(&mut self, cpu: usize, at: EntryAt, old: u64) {
        if !self.is_full() {
            return;
        }
        self.serial += 1;
        self.keep_late(cpu, Late { at, old, serial: self.serial });
    }

    fn keep_late(&mut self, cpu: usize, store: Late) {
        if self.cpus[cpu].late.len() == LATE {
            self.arrive_one(cpu);
        }
        self.cpus[cpu].late.push(store);
        self.late += 1;
    }

    /// Lets a table store travel that changes nothing, but overtakes those that are on their way to the same word.
    pub(super) fn repeat(&mut self, cpu: usize, at: EntryAt, raw: u64) {
        if self.late > 0 && self.cpus.iter().any(|cpu| cpu.late.iter().any(|late| late.at == at)) {
            self.delay(cpu, at, raw);
        }
    }

    /// A CPU reads a descriptor: what it has seen of another's stores, its own fences complete as well (Arm ARM,
    /// B2.3.12: a barrier's group A has the accesses of others that its CPU has observed).
    pub(super) fn observe(&mut self, cpu: usize, at: EntryAt) {
        for ghost in self.ghosts.iter_mut().chain(&mut self.unseen).filter(|ghost| ghost.at == at && !ghost.ordered) {
            ghost.witnesses |= 1 << cpu;
        }
        if self.late > 0 {
            let stores = self.cpus.iter().flat_map(|cpu| &cpu.late).filter(|late| late.at == at);
            if let Some(&last) = stores.max_by_key(|late| late.serial)
                && !self.cpus[cpu].late.iter().any(|own| own.at == at && own.serial == last.serial)
            {
                self.keep_late(cpu, last);
            }
        }
    }

    /// The oldest late store of a CPU reaches everybody.
    fn arrive_one(&mut self, cpu: usize) {
        if !self.cpus[cpu].late.is_empty() {
            let store = self.cpus[cpu].late.remove(0);
            self.late -= 1;
            self.overtake(store);
        }
    }

    /// All late stores of a CPU reach everybody.
    pub(super) fn arrive(&mut self, cpu: usize) {
        let stores = core::mem::take(&mut self.cpus[cpu].late);
        self.late -= stores.len();
        stores.iter().for_each(|&store| self.overtake(store));
        // Keeps the allocation.
        self.cpus[cpu].late = stores;
        self.cpus[cpu].late.clear();
    }

    /// A store reached everybody: nobody sees an earlier one to the same word any more, whoever made it.
    fn overtake(&mut self, store: Late) {
        if self.late == 0 {
            return;
        }
        for cpu in &mut self.cpus {
            let before = cpu.late.len();
            cpu.late.retain(|other| other.at != store.at || other.serial > store.serial);
            self.late -= before - cpu.late.len();
        }
    }

    /// What a walker reads: the value in memory, or one that a store still on its way replaced.
    pub(super) fn walker_reads(&mut self, at: EntryAt) -> u64 {
        let mut value = self.ram.entry(at).load(Relaxed);
        if self.late > 0 {
            let mut choices = 1;
            for late in self.cpus.iter().flat_map(|cpu| &cpu.late).filter(|late| late.at == at) {
                choices += 1;
                if self.rng.one_in(choices) {
                    value = late.old;
                }
            }
        }
        value
    }

    /// Cleans the TLBs that an invalidation reaches.
    pub(super) fn apply(&mut self, what: &Invalidation) {
        let late: Vec<Late> = match self.late {
            0 => Vec::new(),
            _ => self.cpus.iter().flat_map(|cpu| &cpu.late).filter(|late| late.old & VALID != 0).copied().collect(),
        };
        for (_, cpu) in self.cpus.iter_mut().enumerate().filter(|(number, _)| what.cpus >> number & 1 != 0) {
            let installed = cpu.root.map(|(_, asid)| asid);
            cpu.tlb.invalidate(what, |asid, at, raw| {
                // An earlier one than the late store replaced is nowhere any more. What is cached has AF.
                let is_same = |late: &Late| late.at == at && (late.old ^ raw) & !ACCESSED == 0;
                (asid.is_none() || asid == installed) && late.iter().any(is_same)
            });
        }
    }

    fn apply_one(&mut self, cpu: usize) {
        if let Some(place) = self.cpus[cpu].queued.iter().position(|what| !what.applied) {
            let what = self.cpus[cpu].queued[place];
            self.apply(&what);
            self.cpus[cpu].queued[place].applied = true;
        }
    }

    /// An invalidation is issued: done at once or, if the adversary likes, at the fence.
    pub(super) fn invalidate(&mut self, cpu: usize, mut what: Invalidation) {
        self.doom_ghosts(cpu, &what);
        if !self.is_full() || self.rng.one_in(2) {
            self.apply(&what);
            what.applied = true;
        }
        self.cpus[cpu].queued.push(what);
    }

    /// The fence: all that the CPU asked for is done. Its stores reached everybody after that, not before.
    pub(super) fn finish_invalidations(&mut self, cpu: usize) {
        let queued = core::mem::take(&mut self.cpus[cpu].queued);
        for what in queued.iter().filter(|what| !what.applied) {
            self.apply(what);
        }
        self.lay_ghosts(cpu, &queued);
        // Keeps the allocation.
        self.cpus[cpu].queued = queued;
        self.cpus[cpu].queued.clear();
    }
}
