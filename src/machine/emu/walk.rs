//! The walker of every CPU, the hardware's updates of AF and AP\[2\], and an access by a program.

use crate::addr::{Pfn, VirtAddr, Vpn, VpnRange};
use crate::granule::{Granule, Level};
use crate::machine::{Asid, EntryAt, Features};
use crate::sync::Ordering::Relaxed;

use super::TagCheck;
use super::adversary::State;
use super::desc::{
    ACCESSED, DBM, Desc, EL0, READ_ONLY, UXN, decode, index_of, is_global, is_grouped, is_tagged, pages_of,
};
use super::may::Code;
use super::report::{Law, Op};
use super::tlb::{CachedTable, Translation};
use super::user::{Access, Fault, FaultKind};

/// Turns after which a walk that keeps losing against other observers reads memory as it is.
const TURNS: usize = 4;

impl<G: Granule> State<G> {
    /// Walks to a page, updates AF if that is the hardware's duty, and caches what it found.
    pub(super) fn fill(&mut self, cpu: usize, vpn: Vpn) -> Result<Translation, FaultKind> {
        for turn in 0.. {
            let found = self.walk(cpu, vpn, turn < TURNS)?;
            if let Some(entry) = self.make_accessed(cpu, found)? {
                self.cpus[cpu].tlb.insert(entry, &mut self.rng);
                return Ok(entry);
            }
        }
        unreachable!("a walk that reads memory as it is sees no other value in the same step")
    }

    /// Reads descriptors from the installed root, or from a cached table, down to a leaf.
    fn walk(&mut self, cpu: usize, vpn: Vpn, stale: bool) -> Result<Translation, FaultKind> {
        let root_level = Level::root::<G>(self.config.va_bits);
        let Some((root, asid)) = self.cpus[cpu].root else { return Err(FaultKind::Translation(root_level)) };
        let (mut table, mut level) = (root, root_level);
        if stale
            && self.is_full()
            && self.rng.one_in(2)
            && let Some(cached) = self.cpus[cpu].tlb.find_table(asid, vpn)
        {
            (table, level) = (cached.table, cached.level);
        }
        loop {
            let at = EntryAt { table, index: index_of::<G>(vpn.number(), level) };
            let raw = if stale { self.walker_reads(at) } else { self.ram.entry(at).load(Relaxed) };
            let span = pages_of::<G>(level);
            let pages = VpnRange::new(Vpn::new(vpn.number() & !(span - 1)), span);
            match decode::<G>(raw, level) {
                Desc::Invalid => return Err(FaultKind::Translation(level)),
                Desc::Table(next) => {
                    if !self.ram.contains(next) {
                        self.log.violate(Law::WildEntry, std::format!("a walker read table {raw:#x} at {at:x?}"));
                        return Err(FaultKind::Translation(level));
                    }
                    level = level.below().unwrap_or(Level::L3);
                    table = next;
                    let entry = CachedTable { asid, pages, table, level, raw, at };
                    self.cpus[cpu].tlb.insert_table(entry, &mut self.rng);
                }
                Desc::Leaf(pfn) => {
                    if !self.ram.contains(pfn) {
                        self.log.violate(Law::WildEntry, std::format!("a walker read leaf {raw:#x} at {at:x?}"));
                        return Err(FaultKind::Translation(level));
                    }
                    let single = Translation { asid: tag_of(raw, asid), pages, pfn, level, raw, at };
                    return Ok(self.widen(single, stale));
                }
            }
        }
    }

    /// An entry of a contiguous group may be cached as one translation of the whole group, read from any one of the
    /// group's entries (Arm ARM, D8.7.1, "The Contiguous bit").
    fn widen(&mut self, own: Translation, stale: bool) -> Translation {
        if !is_grouped(own.raw, own.level) || !stale || !self.is_full() || self.rng.one_in(4) {
            return own;
        }
        let group = G::GROUP_PAGES as u64;
        let pages = VpnRange::new(Vpn::new(own.pages.start().number() & !(group - 1)), group);
        let first = own.at.index & !(G::GROUP_PAGES - 1);
        let at = EntryAt { index: first + self.rng.below(G::GROUP_PAGES), ..own.at };
        let raw = self.walker_reads(at);
        let (source, at, raw) = match decode::<G>(raw, own.level) {
            Desc::Leaf(pfn) if is_grouped(raw, own.level) => (pfn, at, raw),
            _ => (own.pfn, own.at, own.raw),
        };
        let pfn = Pfn::new(source.number() & !(group - 1));
        if !self.ram.contains(pfn) || !self.ram.contains(pfn.offset(group - 1)) {
            return own;
        }
        Translation { pages, pfn, raw, at, ..own }
    }

    /// Sets AF where the hardware does that. `None`: memory no longer holds what was read; walk again.
    fn make_accessed(&mut self, cpu: usize, found: Translation) -> Result<Option<Translation>, FaultKind> {
        if found.raw & ACCESSED != 0 {
            return Ok(Some(found));
        }
        if !self.has(Features::HW_ACCESS) {
            // An entry without AF is never cached (Arm ARM, D8.5.1).
            return Err(FaultKind::AccessFlag);
        }
        let raw = found.raw | ACCESSED;
        Ok(self.update(cpu, found, raw).then_some(Translation { raw, ..found }))
    }

    /// One atomic update of a descriptor by the hardware: only if memory still holds what the TLB read.
    fn update(&mut self, cpu: usize, entry: Translation, raw: u64) -> bool {
        let word = self.ram.entry(entry.at);
        // AF may have been cleared or set since the entry was cached; that does not make it another translation.
        let now = word.load(Relaxed);
        if (now ^ entry.raw) & !ACCESSED != 0 {
            return false;
        }
        let new = raw | now & ACCESSED;
        let done = word.compare_exchange(now, new, Relaxed, Relaxed).is_ok();
        if done && now != new {
            self.log.push(cpu, Op::Hardware { at: entry.at, old: now, new });
        }
        done
    }

    /// One access of 8 bytes, or to one tag, by the program on `cpu`.
    pub(super) fn access(&mut self, cpu: usize, pointer: u64, access: Access) -> Result<u64, Fault> {
        let address = VirtAddr::untagged(pointer);
        let vpn = address.vpn::<G>();
        self.note_recent(vpn);
        let done = if address.bytes() >> self.config.va_bits != 0 {
            Err(FaultKind::Translation(Level::root::<G>(self.config.va_bits)))
        } else {
            self.translate(cpu, pointer, vpn, access).map(|entry| self.perform(&entry, pointer, access))
        };
        self.log.push(cpu, Op::User { pointer, access, fault: done.err() });
        done.map_err(|kind| Fault { address, access, kind })
    }

    /// Finds a translation that permits the access and, for a store, makes it dirty.
    fn translate(&mut self, cpu: usize, pointer: u64, vpn: Vpn, access: Access) -> Result<Translation, FaultKind> {
        loop {
            let asid = self.cpus[cpu].root.map_or(Asid::EMPTY, |(_, asid)| asid);
            let entry = match self.cpus[cpu].tlb.find(asid, vpn, &mut self.rng) {
                Some(entry) => entry,
                None => self.fill(cpu, vpn)?,
            };
            if entry.raw & EL0 == 0 || access == Access::Fetch && entry.raw & UXN != 0 {
                return Err(FaultKind::Permission);
            }
            let must_dirty = access.writes() && entry.raw & READ_ONLY != 0;
            if must_dirty && !(entry.raw & DBM != 0 && self.has(Features::HW_DIRTY)) {
                return Err(FaultKind::Permission);
            }
            self.check_tag(cpu, &entry, pointer, access)?;
            if !must_dirty {
                return Ok(entry);
            }
            let raw = entry.raw & !READ_ONLY;
            // Of a contiguous group any one entry may become dirty (Arm ARM, D8.5.3): here, the one it was read from.
            if self.update(cpu, entry, raw) {
                let entry = Translation { raw, ..entry };
                self.cpus[cpu].tlb.insert(entry, &mut self.rng);
                return Ok(entry);
            }
            // The descriptor is another one by now: this translation may not be used for the store.
            self.cpus[cpu].tlb.drop_page(asid, vpn);
        }
    }

    fn check_tag(&mut self, cpu: usize, entry: &Translation, pointer: u64, access: Access) -> Result<(), FaultKind> {
        let checked = matches!(access, Access::Load | Access::Store(_)) && self.cpus[cpu].tag_check == TagCheck::Sync;
        if !checked || !is_tagged(entry.raw) || !self.has(Features::MTE) {
            return Ok(());
        }
        let (frame, offset) = place::<G>(entry, pointer);
        self.need_tags(frame, "a checked access of a program");
        let (pointer, memory) = (tag_in(pointer), self.ram.tag(frame, offset));
        if pointer == memory { Ok(()) } else { Err(FaultKind::TagCheck { pointer, memory }) }
    }

    fn perform(&mut self, entry: &Translation, pointer: u64, access: Access) -> u64 {
        let (frame, offset) = place::<G>(entry, pointer);
        // Tag storage exists behind Normal-Tagged memory only; elsewhere LDG reads 0 and STG is ignored.
        let tagged = is_tagged(entry.raw) && self.has(Features::MTE);
        match access {
            Access::Load => self.ram.word(frame, offset).load(Relaxed),
            Access::Fetch => {
                self.need_synced(frame, pointer);
                self.ram.word(frame, offset).load(Relaxed)
            }
            Access::Store(value) => {
                self.ram.word(frame, offset).store(value, Relaxed);
                // What a program stores where it may execute, it syncs itself; elsewhere it may rely on the kernel. The
                // page's own entry says which, not one of its group that is still to be changed.
                let vpn = VirtAddr::untagged(pointer).vpn::<G>();
                let at = EntryAt { index: index_of::<G>(vpn.number(), entry.level), ..entry.at };
                if self.ram.entry(at).load(Relaxed) & UXN != 0 {
                    let known = &mut self.frames[self.ram.slot(frame)];
                    if known.code == Code::Synced {
                        known.code = Code::Stale;
                    }
                }
                0
            }
            Access::LoadTag if tagged => {
                self.need_tags(frame, "LDG of a program");
                u64::from(self.ram.tag(frame, offset))
            }
            Access::StoreTag(tag) if tagged => {
                self.ram.set_tag(frame, offset, tag);
                0
            }
            Access::LoadTag | Access::StoreTag(_) => 0,
        }
    }
}

/// The identifier that a leaf is cached under.
fn tag_of(raw: u64, asid: Asid) -> Option<Asid> {
    if is_global(raw) { None } else { Some(asid) }
}

/// The logical tag of a pointer.
const fn tag_in(pointer: u64) -> u8 {
    (pointer >> 56 & 0xf) as u8
}

fn place<G: Granule>(entry: &Translation, pointer: u64) -> (Pfn, usize) {
    let address = VirtAddr::untagged(pointer);
    (entry.frame(address.vpn::<G>()), address.bytes() as usize & (G::SIZE - 1))
}
