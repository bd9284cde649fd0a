//! What is known of tables, of removals on their way, and of what was written and not fenced.

use arrayvec::ArrayVec;

use super::report::{Lacking, Operation, Rule, SHOWN, Step};
use crate::addr::{Pfn, PfnRange, Vpn, VpnRange};
use crate::granule::{Granule, Level};
use crate::machine::{Asid, Cached, EntryAt, MAX_CPUS, Machine, Reach, Scope};
use crate::pte::{Decoded, Leaf, decode, in_place};

/// Operations kept.
const RING: usize = 64;
/// Tables known: with 4 KiB pages a leaf table maps 2 MiB.
const TABLES: usize = 256;
/// Removals in runs: a flush of the library notes 64 runs at most before it invalidates.
const REMOVALS: usize = 512;
/// Runs of frames written and not fenced: a batch of write-out, and a read-in for each CPU.
const UNFENCED: usize = 128;

const VALID: u64 = 1;

/// Rights that a translation may carry, as bits.
mod right {
    pub const LOAD: u8 = 1 << 0;
    pub const STORE: u8 = 1 << 1;
    /// To store without being noted.
    pub const STORE_UNSEEN: u8 = 1 << 2;
    pub const FETCH: u8 = 1 << 3;
}

/// A table that a walker can reach.
#[derive(Copy, Clone)]
struct Table {
    frame: Pfn,
    level: Level,
    /// The first page that it maps.
    first: Vpn,
    asid: Asid,
}

impl Table {
    /// The pages that one of its entries maps.
    fn pages<G: Granule>(&self, index: usize) -> VpnRange {
        let shift = self.level.shift::<G>() - G::SHIFT;
        VpnRange::new(self.first.offset((index as u64) << shift), 1 << shift)
    }

    fn below<G: Granule>(&self, index: usize, frame: Pfn) -> Option<Self> {
        Some(Self { frame, level: self.level.below()?, first: self.pages::<G>(index).start(), asid: self.asid })
    }
}

/// What a valid entry shows.
#[derive(Copy, Clone, Eq, PartialEq)]
struct Shown {
    frame: Pfn,
    kind: Kind,
    rights: u8,
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Kind {
    Table,
    Page { is_contiguous: bool, is_tagged: bool },
}

impl Shown {
    fn of<G: Granule>(raw: u64, level: Level) -> Option<Self> {
        match decode::<G>(raw, level) {
            Decoded::Table(frame) => Some(Self { frame, kind: Kind::Table, rights: 0 }),
            Decoded::Leaf(leaf) => Some(Self {
                frame: leaf.pfn::<G>(),
                kind: Kind::Page { is_contiguous: leaf.is_contiguous(), is_tagged: leaf.is_tagged() },
                rights: rights_of(leaf),
            }),
            Decoded::Empty | Decoded::Swapped(_) | Decoded::Unknown(_) => None,
        }
    }
}

fn rights_of(leaf: Leaf) -> u8 {
    let right = |has: bool, right: u8| if has { right } else { 0 };
    right(leaf.is_readable(), right::LOAD)
        | right(leaf.is_writable(), right::STORE)
        | right(leaf.is_writable() && leaf.is_dirty(), right::STORE_UNSEEN)
        | right(leaf.is_executable(), right::FETCH)
}

/// How far a removal has come.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Stage {
    Stored,
    Fenced,
    Invalidated,
}

/// Entries of neighbouring pages and frames that were taken away, or lost a right.
#[derive(Copy, Clone)]
struct Removal {
    asid: Asid,
    level: Level,
    pages: VpnRange,
    /// What TLBs may hold of the first page.
    shown: Shown,
    cpu: usize,
    stage: Stage,
    /// The calling CPU's translations went.
    local: bool,
    serial: u64,
}

impl Removal {
    fn frames(&self) -> PfnRange {
        PfnRange::new(self.shown.frame, if self.shown.kind == Kind::Table { 1 } else { self.pages.pages() })
    }

    fn part(&self, pages: VpnRange) -> Self {
        let offset = pages.start().number() - self.pages.start().number();
        let frame = if self.shown.kind == Kind::Table { self.shown.frame } else { self.shown.frame.offset(offset) };
        Self { pages, shown: Shown { frame, ..self.shown }, ..*self }
    }

    fn lacks(&self) -> Lacking {
        match self.stage {
            _ if self.local && self.stage != Stage::Invalidated => Lacking::Broadcast,
            Stage::Stored => Lacking::TableFence,
            Stage::Fenced => Lacking::Invalidation,
            Stage::Invalidated => Lacking::Completion,
        }
    }

    /// Whether an invalidation of these descriptors removes what TLBs may hold.
    fn is_reached(&self, cached: Cached) -> bool {
        match cached {
            Cached::Walk => true,
            Cached::Leaf(level) => self.shown.kind != Kind::Table && level == self.level,
        }
    }
}

fn meet(one: PfnRange, other: PfnRange) -> bool {
    !one.intersection(other).is_empty()
}

pub(super) struct Account {
    ring: [Option<Step>; RING],
    next: usize,
    tables: ArrayVec<Table, TABLES>,
    /// The place of the table asked for last.
    near: usize,
    removals: ArrayVec<Removal, REMOVALS>,
    serial: u64,
    unfenced: ArrayVec<(usize, PfnRange), UNFENCED>,
    installed: [Option<(Pfn, Asid)>; MAX_CPUS],
    /// Whole spaces that a CPU has invalidated, tables as well, since its last fence; `None` is all of them.
    emptied: ArrayVec<(usize, Option<Asid>), MAX_CPUS>,
    unseen: u64,
}

impl Account {
    pub(super) const fn new() -> Self {
        Self {
            ring: [None; RING],
            next: 0,
            tables: ArrayVec::new_const(),
            near: 0,
            removals: ArrayVec::new_const(),
            serial: 0,
            unfenced: ArrayVec::new_const(),
            installed: [None; MAX_CPUS],
            emptied: ArrayVec::new_const(),
            unseen: 0,
        }
    }

    pub(super) fn unseen(&self) -> u64 {
        self.unseen
    }

    pub(super) fn pending(&self) -> usize {
        self.removals.len()
    }

    /// Keeps an operation; not a window, of which the library takes one at each look into its records.
    pub(super) fn push(&mut self, cpu: usize, operation: Operation) {
        if matches!(operation, Operation::Window { .. }) {
            return;
        }
        self.ring[self.next] = Some(Step { cpu, operation });
        self.next = (self.next + 1) % RING;
    }

    /// The last operations, oldest first.
    pub(super) fn last(&self) -> ArrayVec<Step, SHOWN> {
        (0..SHOWN).filter_map(|place| self.ring[(self.next + RING - SHOWN + place) % RING]).collect()
    }

    // ---- Contents. ----

    /// Nothing of `run` may be in the reach of a translation that was taken away.
    pub(super) fn use_contents(&self, run: PfnRange) -> Result<(), Rule> {
        let reaching = self.removals.iter().find(|removal| meet(removal.frames(), run));
        reaching.map_or(Ok(()), |removal| {
            let frame = removal.frames().intersection(run).start();
            Err(Rule::FlushBeforeContents(frame, removal.lacks()))
        })
    }

    pub(super) fn wrote(&mut self, cpu: usize, run: PfnRange) {
        let own = |&&mut (by, _): &&mut (usize, PfnRange)| by == cpu;
        for (_, known) in self.unfenced.iter_mut().filter(own) {
            if known.covers(run) {
                return;
            }
            if known.end() == run.start() {
                *known = PfnRange::new(known.start(), known.pages() + run.pages());
                return;
            }
        }
        if self.unfenced.try_push((cpu, run)).is_err() {
            self.unseen += 1;
        }
    }

    pub(super) fn fence_contents(&mut self, cpu: usize) {
        self.unfenced.retain(|(by, _)| *by != cpu);
    }

    fn is_fenced(&self, cpu: usize, run: PfnRange) -> bool {
        !self.unfenced.iter().any(|&(by, written)| by == cpu && meet(written, run))
    }

    // ---- Tables. ----

    fn table(&mut self, frame: Pfn) -> Option<Table> {
        if self.tables.get(self.near).is_none_or(|table| table.frame != frame) {
            self.near = self.tables.iter().position(|table| table.frame == frame)?;
        }
        self.tables.get(self.near).copied()
    }

    fn know(&mut self, table: Table) {
        self.tables.retain(|known| known.frame != table.frame);
        if self.tables.try_push(table).is_err() {
            self.unseen += 1;
        }
    }

    /// Notes a table and all that it links.
    fn adopt<M: Machine>(&mut self, machine: &M, table: Table) {
        self.know(table);
        if table.level == Level::LEAF {
            return;
        }
        for index in 0..M::Granule::ENTRIES {
            let raw = machine.load_entry(EntryAt { table: table.frame, index });
            if let Decoded::Table(frame) = decode::<M::Granule>(raw, table.level)
                && let Some(below) = table.below::<M::Granule>(index, frame)
            {
                self.adopt(machine, below);
            }
        }
    }

    pub(super) fn install<M: Machine>(&mut self, machine: &M, cpu: usize, root: Pfn, asid: Asid) {
        if let Some(installed) = self.installed.get_mut(cpu) {
            *installed = Some((root, asid));
        }
        if self.table(root).is_none_or(|table| table.asid != asid) {
            self.tables.retain(|table| table.asid != asid);
            let level = Level::root::<M::Granule>(machine.va_bits());
            self.adopt(machine, Table { frame: root, level, first: Vpn::new(0), asid });
        }
    }

    // ---- Entries. ----

    /// A plain store: right over what is not valid.
    pub(super) fn store<G: Granule>(&mut self, cpu: usize, at: EntryAt, old: u64, new: u64) -> Result<(), Rule> {
        let changed = self.change::<G>(cpu, at, old, new);
        if old & VALID == 0 { changed } else { Err(Rule::LiveEntryStored) }
    }

    /// An entry changes, or has just changed, from `old` to `new`.
    pub(super) fn change<G: Granule>(&mut self, cpu: usize, at: EntryAt, old: u64, new: u64) -> Result<(), Rule> {
        let table = self.table(at.table);
        // Of a table that nobody knows: a page's entry and a table's show their frame in the same bits.
        let level = table.map_or(Level::LEAF, |table| table.level);
        let (was, is) = (Shown::of::<G>(old, level), Shown::of::<G>(new, level));
        let pages = table.map(|table| table.pages::<G>(at.index));
        let mut done = Ok(());
        if was.is_none()
            && let Some(is) = is
        {
            let frames = match (is.kind, pages) {
                (Kind::Page { .. }, Some(pages)) => PfnRange::new(is.frame, pages.pages()),
                _ => PfnRange::new(is.frame, 1),
            };
            if !self.is_fenced(cpu, frames) {
                done = Err(Rule::ContentsBeforeEntry(is.frame));
            }
            let place = table.zip(pages).map(|(table, pages)| (table.asid, pages));
            done = done.and(self.fill(frames, place, is));
        }
        let (Some(table), Some(pages)) = (table, pages) else { return done };
        if let Some(was) = was {
            match is {
                Some(_) if in_place::<G>(old, new, level).is_err() => {
                    self.remove(cpu, table, pages, was);
                    done = Err(Rule::BreakBeforeMake(Lacking::Invalidation));
                }
                Some(is) if was.rights & !is.rights == 0 => {}
                _ => self.remove(cpu, table, pages, was),
            }
            if was.kind == Kind::Table {
                self.tables.retain(|other| {
                    other.asid != table.asid || other.level <= table.level || !pages.contains(other.first)
                });
            }
        }
        if let Some(is) = is
            && is.kind == Kind::Table
            && let Some(below) = table.below::<G>(at.index, is.frame)
        {
            self.know(below);
        }
        done
    }

    /// An entry becomes valid: at a known place or not.
    fn fill(&mut self, frames: PfnRange, place: Option<(Asid, VpnRange)>, is: Shown) -> Result<(), Rule> {
        let mut done = Ok(());
        let mut index = 0;
        while let Some(&removal) = self.removals.get(index) {
            let here = place
                .filter(|(asid, _)| *asid == removal.asid)
                .map(|(_, pages)| pages.intersection(removal.pages))
                .filter(|common| !common.is_empty());
            match here {
                None if meet(removal.frames(), frames) => {
                    done = Err(Rule::FlushBeforeReuse(is.frame, removal.lacks()));
                }
                Some(common) if removal.part(common).shown.frame != is.frame || removal.shown.kind != is.kind => {
                    done = Err(Rule::BreakBeforeMake(removal.lacks()));
                }
                // It is back as it was: what TLBs hold is right.
                Some(common) if removal.shown.rights & !is.rights == 0 => {
                    self.cut(index, common);
                    self.removals.remove(index);
                    continue;
                }
                _ => {}
            }
            index += 1;
        }
        done
    }

    fn remove(&mut self, cpu: usize, table: Table, pages: VpnRange, shown: Shown) {
        self.serial += 1;
        let removal = Removal {
            asid: table.asid,
            level: table.level,
            pages,
            shown,
            cpu,
            stage: Stage::Stored,
            local: false,
            serial: self.serial,
        };
        if let Some(last) = self.removals.last_mut()
            && last.pages.end() == pages.start()
            && (last.asid, last.level, last.cpu, last.stage, last.local)
                == (table.asid, table.level, cpu, Stage::Stored, false)
            && shown.kind != Kind::Table
            && last.shown == (Shown { frame: last.shown.frame, ..shown })
            && last.frames().end() == shown.frame
        {
            last.pages = VpnRange::new(last.pages.start(), last.pages.pages() + pages.pages());
            last.serial = self.serial;
            return;
        }
        self.push_removal(removal);
    }

    fn push_removal(&mut self, removal: Removal) {
        if self.removals.try_push(removal).is_err() {
            self.unseen += 1;
        }
    }

    /// Cuts a removal so that it has the pages of `part` alone; the rest stays, as removals of their own at the end.
    fn cut(&mut self, index: usize, part: VpnRange) {
        let Some(&whole) = self.removals.get(index) else { return };
        let low = VpnRange::between(whole.pages.start(), part.start());
        let high = VpnRange::between(part.end(), whole.pages.end());
        for rest in [low, high] {
            if !rest.is_empty() {
                self.push_removal(whole.part(rest));
            }
        }
        self.removals[index] = whole.part(part);
    }

    // ---- Order. ----

    pub(super) fn fence_tables(&mut self, cpu: usize) {
        self.fence_contents(cpu);
        for removal in self.removals.iter_mut().filter(|removal| removal.cpu == cpu) {
            if removal.stage == Stage::Stored {
                removal.stage = Stage::Fenced;
            }
        }
    }

    pub(super) fn invalidate(&mut self, cpu: usize, asid: Asid, scope: Scope, cached: Cached, reach: Reach) {
        let emptied = match (scope, cached, reach) {
            (Scope::Space, Cached::Walk, Reach::Broadcast) => Some(Some(asid)),
            (Scope::All, Cached::Walk, Reach::Broadcast) => Some(None),
            _ => None,
        };
        if emptied.is_some_and(|emptied| self.emptied.try_push((cpu, emptied)).is_err()) {
            self.unseen += 1;
        }
        let mut index = 0;
        while let Some(&removal) = self.removals.get(index) {
            let common = match scope {
                Scope::Space | Scope::All => removal.pages,
                Scope::Pages(pages) => pages.intersection(removal.pages),
            };
            let here = removal.asid == asid || scope == Scope::All;
            let mine = removal.cpu == cpu && here && removal.is_reached(cached);
            // A table's translations go together.
            let whole = removal.shown.kind != Kind::Table || common == removal.pages;
            if mine && whole && !common.is_empty() {
                self.cut(index, common);
                let removal = &mut self.removals[index];
                match reach {
                    Reach::Local => removal.local = true,
                    Reach::Broadcast if removal.stage == Stage::Fenced => removal.stage = Stage::Invalidated,
                    Reach::Broadcast => {}
                }
            }
            index += 1;
        }
    }

    pub(super) fn fence_invalidations(&mut self, cpu: usize) {
        let mut index = 0;
        while let Some(&removal) = self.removals.get(index) {
            if removal.cpu == cpu && removal.stage == Stage::Invalidated {
                self.removals.swap_remove(index);
                self.complete(&removal);
                index = 0;
            } else {
                index += 1;
            }
        }
        // A space that no CPU runs and of which no TLB holds anything: its tables are nobody's.
        for index in (0..self.emptied.len()).rev() {
            let (by, emptied) = self.emptied[index];
            if by != cpu {
                continue;
            }
            self.emptied.swap_remove(index);
            let installed = &self.installed;
            let is_gone = |of: Asid| {
                emptied.is_none_or(|asid| of == asid) && !installed.iter().flatten().any(|(_, running)| *running == of)
            };
            self.tables.retain(|table| !is_gone(table.asid));
            self.removals.retain(|removal| !is_gone(removal.asid) || removal.cpu == cpu);
        }
        // The stronger fence; too late for the invalidations before it.
        self.fence_tables(cpu);
    }

    /// What other CPUs took away of the same pages before is gone from every TLB as well.
    fn complete(&mut self, done: &Removal) {
        let mut index = 0;
        while let Some(&older) = self.removals.get(index) {
            let common = older.pages.intersection(done.pages);
            let same = older.asid == done.asid && older.level == done.level && older.serial < done.serial;
            if same && !common.is_empty() {
                self.cut(index, common);
                self.removals.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }
}
