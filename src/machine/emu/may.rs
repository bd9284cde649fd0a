//! What any TLB of the machine *may* hold, whether or not the seed put it there.
//!
//! Two sets. A **live** translation is one that a walker can read now: each frame counts the leaf entries that show
//! it in tables reachable from a root. A **ghost** is a translation, or a table descriptor, that was live and is no
//! longer in the tables; TLBs and walk caches may keep it until an invalidation that covers it has completed, issued
//! after the store that removed it was made visible (Arm ARM, D8.17, "TLB maintenance"). A root is known from its first
//! installation until an invalidation of its whole address space completes while no CPU has it installed.
//!
//! The contiguous bit makes a translation of the whole group out of any one entry, so such an entry is live, and
//! later a ghost, for all pages of its group.
//!
//! One simplification: an entry with AF clear counts as live although a machine without hardware AF never caches it.

use std::vec::Vec;

use crate::addr::{Pfn, Vpn, VpnRange};
use crate::granule::{Granule, Level};
use crate::machine::{Asid, Cached, EntryAt, Features, Reach, Scope};
use crate::sync::Ordering::Relaxed;

use super::adversary::State;
use super::desc::{DBM, Desc, EL0, READ_ONLY, UXN, VALID, decode, is_global, is_grouped, pages_of};
use super::tlb::Invalidation;

/// Where a reachable table hangs.
#[derive(Copy, Clone)]
pub(super) struct Place {
    pub root: Pfn,
    pub level: Level,
    /// The page that entry 0 translates.
    pub base: Vpn,
}

impl Place {
    pub(super) fn vpn<G: Granule>(&self, index: usize) -> Vpn {
        self.base.offset(index as u64 * pages_of::<G>(self.level))
    }
}

/// What is known of one frame.
#[derive(Default)]
pub(super) struct Frame {
    /// Live leaf entries that show it, and those of them that let a program write.
    pub live: u32,
    pub writable: u32,
    pub table: Option<Place>,
    /// The CPU that wrote the contents last, and its count of fences then.
    pub writer: u8,
    pub epoch: u32,
    pub data_set: bool,
    pub tags_set: bool,
    pub code: Code,
}

/// What the instruction side sees of a frame.
#[derive(Copy, Clone, Eq, PartialEq, Default)]
pub(super) enum Code {
    /// Something older, perhaps.
    #[default]
    Stale,
    /// The contents, synced for an entry that is still to be written. A program that stores meanwhile races with its
    /// own fetch, and syncs itself.
    Syncing,
    /// The contents, and an entry lets programs fetch them.
    Synced,
}

/// A root that walkers use, or that TLBs may hold translations of.
pub(super) struct Root {
    pub pfn: Pfn,
    /// Identifiers it was installed with, and the CPUs that may hold their translations.
    pub asids: Vec<(Asid, u32)>,
}

/// A leaf translation that a descriptor makes possible.
#[derive(Copy, Clone)]
pub(super) struct Shown {
    pub pages: VpnRange,
    pub pfn: Pfn,
    pub level: Level,
    pub raw: u64,
}

impl Shown {
    pub(super) fn shows(&self, frame: Pfn) -> bool {
        frame >= self.pfn && frame.number() - self.pfn.number() < self.pages.pages()
    }

    pub(super) fn frame(&self, vpn: Vpn) -> Pfn {
        self.pfn.offset(vpn.number() - self.pages.start().number())
    }
}

/// What was cached.
#[derive(Copy, Clone)]
pub(super) enum Kind {
    Leaf(Shown),
    Table { child: Pfn, pages: VpnRange, level: Level },
}

/// See the module's head.
#[derive(Copy, Clone)]
pub(super) struct Ghost {
    /// `None`: global.
    pub asid: Option<Asid>,
    pub kind: Kind,
    pub at: EntryAt,
    /// CPUs that may hold it.
    pub cpus: u32,
    /// CPUs by whose fence its removal is visible: who removed the entry, who wrote it since, as who sees the later of
    /// two stores to one word does not see the earlier one afterwards, and who has seen it gone.
    pub witnesses: u32,
    /// The removal is visible to every walker.
    pub ordered: bool,
    /// An invalidation hit it before that was so, and did nothing for good.
    pub missed: bool,
    /// CPUs with an invalidation under way that takes it from all CPUs, or from themselves alone.
    pub doomed: u32,
    pub doomed_local: u32,
}

impl<G: Granule> State<G> {
    /// What a leaf descriptor at page `vpn` lets a TLB hold; `None` if it is none, or names no RAM.
    pub(super) fn shown(&self, raw: u64, level: Level, vpn: Vpn) -> Option<Shown> {
        let Desc::Leaf(pfn) = decode::<G>(raw, level) else { return None };
        let span = if is_grouped(raw, level) { G::GROUP_PAGES as u64 } else { pages_of::<G>(level) };
        let (vpn, pfn) = (Vpn::new(vpn.number() & !(span - 1)), Pfn::new(pfn.number() & !(span - 1)));
        let whole = self.ram.contains(pfn) && self.ram.contains(pfn.offset(span - 1));
        whole.then_some(Shown { pages: VpnRange::new(vpn, span), pfn, level, raw })
    }

    /// Whether a program may write through the descriptor, now or after the hardware marked it dirty.
    pub(super) fn is_writable(&self, raw: u64) -> bool {
        raw & EL0 != 0 && (raw & READ_ONLY == 0 || raw & DBM != 0 && self.has(Features::HW_DIRTY))
    }

    /// Writes a descriptor and moves both sets. The laws were checked before.
    pub(super) fn replace(&mut self, cpu: usize, place: Place, at: EntryAt, raw: u64) {
        let old = self.ram.entry(at).swap(raw, Relaxed);
        for ghost in self.ghosts.iter_mut().chain(&mut self.unseen).filter(|ghost| ghost.at == at) {
            ghost.witnesses |= 1 << cpu;
        }
        if old == raw {
            self.repeat(cpu, at, raw);
            return;
        }
        let vpn = place.vpn::<G>(at.index);
        let (before, after) = (decode::<G>(old, place.level), decode::<G>(raw, place.level));
        match before {
            Desc::Table(child) if before != after => {
                self.unlink(cpu, child, true);
                let kind =
                    Kind::Table { child, pages: VpnRange::new(vpn, pages_of::<G>(place.level)), level: place.level };
                self.haunt(cpu, place.root, at, kind);
            }
            Desc::Leaf(_) => {
                if let Some(shown) = self.shown(old, place.level, vpn) {
                    self.count(&shown, vpn, -1);
                    // An entry that still shows the same frames as permissively keeps the old one's translations live.
                    let covered = before == after
                        && is_grouped(old, place.level) == is_grouped(raw, place.level)
                        && (self.is_writable(raw) || !self.is_writable(old));
                    if !covered {
                        self.haunt(cpu, place.root, at, Kind::Leaf(shown));
                    }
                }
            }
            _ => {}
        }
        match after {
            Desc::Table(child) if before != after && self.ram.contains(child) => {
                if let Some(level) = place.level.below() {
                    self.link(cpu, child, Place { root: place.root, level, base: vpn });
                }
            }
            Desc::Leaf(_) => {
                if let Some(shown) = self.shown(raw, place.level, vpn) {
                    self.count(&shown, vpn, 1);
                }
            }
            _ => {}
        }
        if (old | raw) & VALID != 0 {
            self.delay(cpu, at, old);
        }
    }

    /// Counts what the entry of page `vpn` shows.
    fn count(&mut self, shown: &Shown, vpn: Vpn, by: i32) {
        // Of a group each entry says for its own page that programs may fetch.
        let grouped = is_grouped(shown.raw, shown.level);
        let own = self.ram.slot(if grouped { shown.frame(vpn) } else { shown.pfn });
        let fetched = own..own + if grouped { 1 } else { shown.pages.pages() as usize };
        if by > 0 && shown.raw & UXN == 0 {
            for frame in self.frames[fetched].iter_mut().filter(|frame| frame.code == Code::Syncing) {
                frame.code = Code::Synced;
            }
        }
        let (first, pages) = (self.ram.slot(shown.pfn), shown.pages.pages() as usize);
        let writable = self.is_writable(shown.raw);
        for frame in &mut self.frames[first..first + pages] {
            frame.live = frame.live.wrapping_add_signed(by);
            if writable {
                frame.writable = frame.writable.wrapping_add_signed(by);
            }
        }
    }

    /// Makes a ghost for each identifier of the root.
    fn haunt(&mut self, writer: usize, root: Pfn, at: EntryAt, kind: Kind) {
        let Some(root) = self.roots.iter().find(|known| known.pfn == root) else { return };
        let global = matches!(kind, Kind::Leaf(shown) if is_global(shown.raw));
        for &(asid, cpus) in &root.asids {
            let asid = if global { None } else { Some(asid) };
            let fresh = Ghost {
                asid,
                kind,
                at,
                cpus,
                witnesses: 1 << writer,
                ordered: false,
                missed: false,
                doomed: 0,
                doomed_local: 0,
            };
            self.ghosts.push(fresh);
        }
    }

    /// A table becomes reachable, with all that hangs below it.
    pub(super) fn link(&mut self, cpu: usize, table: Pfn, place: Place) {
        let slot = self.ram.slot(table);
        self.frames[slot].table = Some(place);
        for index in 0..G::ENTRIES {
            let at = EntryAt { table, index };
            let raw = self.ram.entry(at).load(Relaxed);
            let vpn = place.vpn::<G>(index);
            match (decode::<G>(raw, place.level), place.level.below()) {
                (Desc::Invalid, _) => {}
                (Desc::Table(child), Some(level)) => {
                    self.check_table(cpu, place, at, 0, child);
                    if self.ram.contains(child) {
                        self.link(cpu, child, Place { root: place.root, level, base: vpn });
                    }
                }
                _ => {
                    self.check_leaf(cpu, place, at, 0, raw);
                    if let Some(shown) = self.shown(raw, place.level, vpn) {
                        self.count(&shown, vpn, 1);
                    }
                }
            }
        }
    }

    /// A table is reachable no longer, nor is what hangs below it. With `ghosts`, TLBs may keep all of it.
    fn unlink(&mut self, cpu: usize, table: Pfn, ghosts: bool) {
        if !self.ram.contains(table) {
            return;
        }
        let slot = self.ram.slot(table);
        let Some(place) = self.frames[slot].table.take() else { return };
        for index in 0..G::ENTRIES {
            let at = EntryAt { table, index };
            let raw = self.ram.entry(at).load(Relaxed);
            let vpn = place.vpn::<G>(index);
            let kind = match decode::<G>(raw, place.level) {
                Desc::Invalid => continue,
                Desc::Table(child) => {
                    self.unlink(cpu, child, ghosts);
                    Kind::Table { child, pages: VpnRange::new(vpn, pages_of::<G>(place.level)), level: place.level }
                }
                Desc::Leaf(_) => {
                    let Some(shown) = self.shown(raw, place.level, vpn) else { continue };
                    self.count(&shown, vpn, -1);
                    Kind::Leaf(shown)
                }
            };
            if ghosts {
                self.haunt(cpu, place.root, at, kind);
            }
        }
    }

    /// A CPU takes a root.
    pub(super) fn install(&mut self, cpu: usize, root: Pfn, asid: Asid) {
        self.check_install(cpu, root, asid);
        self.cpus[cpu].root = Some((root, asid));
        let known = match self.roots.iter().position(|known| known.pfn == root) {
            Some(known) => known,
            None => {
                self.roots.push(Root { pfn: root, asids: Vec::new() });
                let level = Level::root::<G>(self.config.va_bits);
                self.link(cpu, root, Place { root, level, base: Vpn::new(0) });
                self.roots.len() - 1
            }
        };
        let asids = &mut self.roots[known].asids;
        match asids.iter_mut().find(|(of, _)| *of == asid) {
            Some((_, cpus)) => {
                *cpus |= 1 << cpu;
                for ghost in self.ghosts.iter_mut().filter(|ghost| !ghost.ordered && ghost.asid == Some(asid)) {
                    ghost.cpus |= 1 << cpu;
                }
            }
            None => {
                asids.push((asid, 1 << cpu));
                self.haunt_anew(cpu, root, asid);
            }
        }
    }

    /// A root has one identifier more: a removal that its walkers do not see yet, they do not see under that either.
    fn haunt_anew(&mut self, cpu: usize, root: Pfn, asid: Asid) {
        let mut fresh: Vec<Ghost> = Vec::new();
        for ghost in self.ghosts.iter().filter(|ghost| !ghost.ordered).chain(&self.unseen) {
            let place = self.frames[self.ram.slot(ghost.at.table)].table;
            let same = |other: &Ghost| (other.at, other.witnesses) == (ghost.at, ghost.witnesses);
            if place.is_some_and(|place| place.root == root) && !fresh.iter().any(same) {
                let asid = ghost.asid.map(|_| asid);
                fresh.push(Ghost { asid, cpus: 1 << cpu, missed: false, doomed: 0, doomed_local: 0, ..*ghost });
            }
        }
        self.ghosts.append(&mut fresh);
    }

    /// The CPU's table stores are visible to every walker.
    pub(super) fn order_tables(&mut self, cpu: usize) {
        self.arrive(cpu);
        self.cpus[cpu].epoch += 1;
        for ghost in self.ghosts.iter_mut().filter(|ghost| ghost.witnesses >> cpu & 1 != 0) {
            ghost.ordered = true;
        }
        self.unseen.retain(|ghost| ghost.witnesses >> cpu & 1 == 0);
    }

    /// An invalidation was issued: marks what it will remove.
    pub(super) fn doom_ghosts(&mut self, cpu: usize, what: &Invalidation) {
        let everywhere = what.cpus == self.all_cpus();
        // Of a root that no CPU walks, nothing can be read back: there the order of the stores does not matter.
        let walked: Vec<Asid> = self.cpus.iter().filter_map(|cpu| cpu.root.map(|(_, asid)| asid)).collect();
        let mut pieces = Vec::new();
        for ghost in &mut self.ghosts {
            let hit = match ghost.kind {
                Kind::Leaf(shown) => what.hits_leaf(ghost.asid, shown.pages, shown.level),
                Kind::Table { pages, .. } => ghost.asid.is_some_and(|asid| what.hits_table(asid, pages)),
            };
            if !hit {
                continue;
            }
            if !ghost.ordered && ghost.asid.is_none_or(|asid| walked.contains(&asid)) {
                ghost.missed = true;
                continue;
            }
            // A CPU may hold a contiguous group as smaller pieces: what is left of and right of the run stays.
            if let (Kind::Leaf(shown), Scope::Pages(run)) = (&mut ghost.kind, what.scope) {
                let whole = shown.pages;
                let left = VpnRange::between(whole.start(), run.start());
                let right = VpnRange::between(run.end(), whole.end());
                for pages in [left, right].into_iter().filter(|pages| !pages.is_empty()) {
                    let rest = Shown { pages, pfn: shown.frame(pages.start()), ..*shown };
                    pieces.push(Ghost { kind: Kind::Leaf(rest), ..*ghost });
                }
                if let Kind::Leaf(shown) = &mut ghost.kind {
                    let hit = whole.intersection(run);
                    *shown = Shown { pages: hit, pfn: shown.frame(hit.start()), ..*shown };
                }
            }
            *(if everywhere { &mut ghost.doomed } else { &mut ghost.doomed_local }) |= 1 << cpu;
        }
        self.ghosts.append(&mut pieces);
    }

    /// The CPU's invalidations have completed.
    pub(super) fn lay_ghosts(&mut self, cpu: usize, queued: &[Invalidation]) {
        self.ghosts.retain_mut(|ghost| {
            if ghost.doomed_local >> cpu & 1 != 0 {
                ghost.cpus &= !(1 << cpu);
                ghost.doomed_local &= !(1 << cpu);
            }
            let stays = ghost.doomed >> cpu & 1 == 0 && ghost.cpus != 0;
            if !stays && !ghost.ordered {
                self.unseen.push(*ghost);
            }
            stays
        });
        for what in queued {
            if what.cached == Cached::Walk && !matches!(what.scope, Scope::Pages(_)) {
                self.retire(cpu, what);
            }
        }
    }

    /// Nothing of an address space, or of any, is cached any longer, except where it is installed.
    fn retire(&mut self, cpu: usize, what: &Invalidation) {
        for place in (0..self.roots.len()).rev() {
            let pfn = self.roots[place].pfn;
            let asids = &mut self.roots[place].asids;
            for (asid, cpus) in asids.iter_mut().filter(|(of, _)| what.scope == Scope::All || *of == what.asid) {
                let installed = (0..self.cpus.len())
                    .filter(|&number| self.cpus[number].root == Some((pfn, *asid)))
                    .fold(0, |mask, number| mask | 1 << number);
                *cpus = *cpus & !what.cpus | installed;
            }
            asids.retain(|(_, cpus)| *cpus != 0);
            if asids.is_empty() {
                self.unlink(cpu, pfn, false);
                self.roots.swap_remove(place);
            }
        }
    }

    pub(super) fn all_cpus(&self) -> u32 {
        (1 << self.cpus.len()) - 1
    }

    pub(super) fn reached(&self, cpu: usize, reach: Reach) -> u32 {
        match reach {
            Reach::Local => 1 << cpu,
            Reach::Broadcast => self.all_cpus(),
        }
    }
}
