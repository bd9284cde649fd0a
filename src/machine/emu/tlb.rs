//! One CPU's TLB: leaf translations and table descriptors, both as stale as the architecture allows.

use std::vec::Vec;

use crate::addr::{Pfn, Vpn, VpnRange};
use crate::granule::Level;
use crate::machine::{Asid, Cached, EntryAt, Scope};

use super::adversary::Rng;

/// Leaf translations that one CPU holds at most.
const LEAVES: usize = 48;
/// Table descriptors that one CPU holds at most.
const TABLES: usize = 16;

/// A cached translation: a page, a block, or a contiguous group read from one of its entries.
#[derive(Copy, Clone, Debug)]
pub(super) struct Translation {
    /// `None`: global.
    pub asid: Option<Asid>,
    pub pages: VpnRange,
    /// The frame of the first page.
    pub pfn: Pfn,
    pub level: Level,
    /// The descriptor as read, with AF set.
    pub raw: u64,
    /// Where it was read.
    pub at: EntryAt,
}

impl Translation {
    pub(super) fn frame(&self, vpn: Vpn) -> Pfn {
        self.pfn.offset(vpn.number() - self.pages.start().number())
    }
}

/// A cached table descriptor.
#[derive(Copy, Clone, Debug)]
pub(super) struct CachedTable {
    pub asid: Asid,
    /// The pages below the descriptor.
    pub pages: VpnRange,
    /// The table it names, and that table's level.
    pub table: Pfn,
    pub level: Level,
    /// The descriptor as read.
    pub raw: u64,
    pub at: EntryAt,
}

/// An invalidation as it travels to the CPUs.
#[derive(Copy, Clone, Debug)]
pub(super) struct Invalidation {
    pub asid: Asid,
    pub scope: Scope,
    pub cached: Cached,
    /// The CPUs it reaches, one bit each.
    pub cpus: u32,
    /// The TLBs have been cleaned already.
    pub applied: bool,
}

impl Invalidation {
    /// Whether it removes a leaf of this identifier and level that translates any of `pages`. By address it removes
    /// global entries too; by identifier it does not (Arm ARM, C5.5, TLBI VAE1IS and TLBI ASIDE1IS).
    pub(super) fn hits_leaf(&self, asid: Option<Asid>, pages: VpnRange, level: Level) -> bool {
        let level_hit = match self.cached {
            Cached::Leaf(named) => named == level,
            Cached::Walk => true,
        };
        level_hit
            && match self.scope {
                Scope::All => true,
                Scope::Space => asid == Some(self.asid),
                Scope::Pages(run) => asid.is_none_or(|asid| asid == self.asid) && !run.intersection(pages).is_empty(),
            }
    }

    /// Whether it removes a table descriptor above any of `pages`.
    pub(super) fn hits_table(&self, asid: Asid, pages: VpnRange) -> bool {
        self.cached == Cached::Walk
            && match self.scope {
                Scope::All => true,
                Scope::Space => asid == self.asid,
                Scope::Pages(run) => asid == self.asid && !run.intersection(pages).is_empty(),
            }
    }
}

#[derive(Default)]
pub(super) struct Tlb {
    leaves: Vec<Translation>,
    tables: Vec<CachedTable>,
}

impl Tlb {
    /// A translation of the page. When several match the first one found from a random place is used.
    #[inline]
    pub(super) fn find(&self, asid: Asid, vpn: Vpn, rng: &mut Rng) -> Option<Translation> {
        if self.leaves.is_empty() {
            return None;
        }
        let (low, high) = self.leaves.split_at(rng.below(self.leaves.len()));
        let hit = |entry: &&Translation| entry.pages.contains(vpn) && entry.asid.is_none_or(|of| of == asid);
        high.iter().chain(low).find(hit).copied()
    }

    pub(super) fn insert(&mut self, entry: Translation, rng: &mut Rng) {
        let same = |old: &Translation| old.pages == entry.pages && old.asid == entry.asid;
        if let Some(old) = self.leaves.iter_mut().find(|old| same(old)) {
            *old = entry;
            return;
        }
        if self.leaves.len() == LEAVES {
            self.leaves.swap_remove(rng.below(LEAVES));
        }
        self.leaves.push(entry);
    }

    /// Forgets what translates the page.
    pub(super) fn drop_page(&mut self, asid: Asid, vpn: Vpn) {
        self.leaves.retain(|entry| !(entry.pages.contains(vpn) && entry.asid.is_none_or(|of| of == asid)));
    }

    /// The deepest cached table on the way to the page.
    pub(super) fn find_table(&self, asid: Asid, vpn: Vpn) -> Option<CachedTable> {
        let hits = self.tables.iter().filter(|entry| entry.asid == asid && entry.pages.contains(vpn));
        hits.max_by_key(|entry| entry.level).copied()
    }

    pub(super) fn insert_table(&mut self, entry: CachedTable, rng: &mut Rng) {
        let same = |old: &CachedTable| old.pages == entry.pages && old.asid == entry.asid;
        if let Some(old) = self.tables.iter_mut().find(|old| same(old)) {
            *old = entry;
            return;
        }
        if self.tables.len() == TABLES {
            self.tables.swap_remove(rng.below(TABLES));
        }
        self.tables.push(entry);
    }

    /// Forgets one entry of each kind.
    pub(super) fn evict(&mut self, rng: &mut Rng) {
        if !self.leaves.is_empty() {
            self.leaves.swap_remove(rng.below(self.leaves.len()));
        }
        if !self.tables.is_empty() {
            self.tables.swap_remove(rng.below(self.tables.len()));
        }
    }

    /// Removes what the invalidation names, except what `reloads`: descriptors of the installed root that the walker
    /// may read back at once, because the store that replaced them is still on its way.
    pub(super) fn invalidate(&mut self, what: &Invalidation, reloads: impl Fn(Option<Asid>, EntryAt, u64) -> bool) {
        let leaf = |entry: &Translation| what.hits_leaf(entry.asid, entry.pages, entry.level);
        self.leaves.retain(|entry| !leaf(entry) || reloads(entry.asid, entry.at, entry.raw));
        let table = |entry: &CachedTable| what.hits_table(entry.asid, entry.pages);
        self.tables.retain(|entry| !table(entry) || reloads(Some(entry.asid), entry.at, entry.raw));
    }
}
