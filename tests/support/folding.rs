//! A small kernel with one contiguous group, written against the machine's seam, right but for at most one mistake.
//!
//! It maps the group, breaks it up, folds it, gives pages up and lets the clean ones go: what [`Small`](super::small)
//! does with single pages and the library with any.

use std::cell::Cell;

use ebbtide::addr::{Pfn, PfnRange, VirtAddr, VpnRange};
use ebbtide::granule::{K4, Level};
use ebbtide::machine::emu::{Access, Adversary, Emu, EmuConfig, Fault};
use ebbtide::machine::{Asid, Cached, EntryAt, Machine, Reach, Scope, Tags};

use super::entries::{ACCESSED, CONTIGUOUS, READ_ONLY, VALID, WRITABLE, is_dirty};
use super::script::{BASE, PAGE, Seen, at};

/// What [`Folding`] does wrong.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Slip {
    Nothing,
    /// The contiguous bit is set in live entries.
    FoldInPlace,
    /// The contiguous bit is cleared in live entries.
    UnfoldInPlace,
    /// The entries are taken away and come back without an invalidation between.
    UnfoldUnflushed,
    /// The invalidation between is of one page.
    UnfoldOnePage,
    /// One entry of a group is changed, and stays in it.
    ChangeOne,
    /// Broken up, all entries have the history of the first.
    FirstHistory,
    /// Broken up, each entry has its own history.
    OwnHistory,
    /// To give one page up makes its group clean.
    FreeAll,
    /// The first entry shows all pages of the group; the tags of most are written after that.
    TagsLate,
    /// The frames of the second half are another folio's, from its start.
    Incongruent,
    /// The frames of the second half are those of another folio's second half.
    TwoFolios,
    /// The access flags are cleared, and TLBs keep what they have.
    AgeUnflushed,
}

const GROUP: u64 = 16;
const ASID: Asid = Asid::new(1);
/// A page for EL0, Normal-Tagged, clean; a store makes it dirty.
const CLEAN: u64 = 0b11 | 1 << 2 | 1 << 6 | READ_ONLY | 0b11 << 8 | ACCESSED | 1 << 11 | WRITABLE | 0b11 << 53;

pub struct Folding {
    pub emu: Emu<K4>,
    slip: Slip,
    leaf_table: Pfn,
    next: Cell<Pfn>,
}

impl Folding {
    pub fn new(slip: Slip, adversary: Adversary, seed: u64) -> Self {
        let emu = Emu::<K4>::new(EmuConfig { frames: 256, cpus: 2, adversary, seed, ..EmuConfig::default() });
        let first = emu.frames().start();
        emu.zero(PfnRange::new(first, 4), Tags::Ignore);
        emu.fence_contents();
        for (depth, level) in (0..).zip([Level::L0, Level::L1, Level::L2]) {
            let index = (BASE >> level.shift::<K4>()) as usize & 511;
            let below = first.offset(depth + 1).base::<K4>().bytes();
            emu.store_entry(EntryAt { table: first.offset(depth), index }, below | 0b11);
        }
        emu.fence_tables();
        (0..2).for_each(|cpu| emu.on_cpu(cpu, || emu.install_root(first, ASID)));
        Self { emu, slip, leaf_table: first.offset(3), next: Cell::new(first.offset(GROUP)) }
    }

    fn is(&self, slip: Slip) -> bool {
        self.slip == slip
    }

    fn entry(&self, page: u64) -> EntryAt {
        EntryAt { table: self.leaf_table, index: page as usize }
    }

    /// A folio of a group's size that nobody used.
    fn folio(&self) -> Pfn {
        let first = self.next.get();
        self.next.set(first.offset(GROUP));
        first
    }

    fn flush(&self, first: u64, pages: u64, reach: Reach) {
        let start = VirtAddr::new(at(first)).vpn::<K4>();
        self.emu.fence_tables();
        self.emu.invalidate(ASID, Scope::Pages(VpnRange::new(start, pages)), Cached::Leaf(Level::L3), reach);
        self.emu.fence_invalidations();
    }

    /// Maps a fresh group.
    pub fn map(&self) {
        let (folio, other) = (self.folio(), self.folio());
        let tags = if self.is(Slip::TagsLate) { Tags::Ignore } else { Tags::Include };
        [folio, other].into_iter().for_each(|folio| self.emu.zero(PfnRange::new(folio, GROUP), tags));
        self.emu.fence_contents();
        for page in 0..GROUP {
            let frame = match self.slip {
                Slip::Incongruent if page >= GROUP / 2 => other.offset(page - GROUP / 2),
                Slip::TwoFolios if page >= GROUP / 2 => other.offset(page),
                _ => folio.offset(page),
            };
            if self.is(Slip::TagsLate) {
                self.emu.zero_tags(frame);
                self.emu.fence_contents();
            }
            self.emu.store_entry(self.entry(page), frame.base::<K4>().bytes() | CLEAN | CONTIGUOUS);
        }
        self.emu.fence_tables();
    }

    /// Takes all entries away, on every CPU.
    fn take(&self) -> [u64; GROUP as usize] {
        let old = std::array::from_fn(|page| self.emu.exchange_entry(self.entry(page as u64), 0));
        match self.slip {
            Slip::UnfoldUnflushed => {}
            Slip::UnfoldOnePage => self.flush(0, 1, Reach::Broadcast),
            _ => self.flush(0, GROUP, Reach::Broadcast),
        }
        old
    }

    fn is_folded(&self) -> bool {
        self.emu.load_entry(self.entry(0)) & CONTIGUOUS != 0
    }

    /// Breaks the group up: each entry has the history of all.
    fn unfold(&self) {
        if !self.is_folded() {
            return;
        }
        if self.is(Slip::UnfoldInPlace) {
            (0..GROUP).for_each(|page| self.change(page, |raw| raw & !CONTIGUOUS));
            return self.flush(0, GROUP, Reach::Broadcast);
        }
        let old = self.take();
        let any_dirty = old.iter().any(|&raw| is_dirty(raw));
        for (page, raw) in (0..).zip(old) {
            let dirty = match self.slip {
                Slip::FirstHistory => is_dirty(old[0]),
                Slip::OwnHistory => is_dirty(raw),
                _ => any_dirty,
            };
            let raw = raw & !CONTIGUOUS | ACCESSED | READ_ONLY;
            self.emu.store_entry(self.entry(page), if dirty { raw & !READ_ONLY } else { raw });
        }
        self.emu.fence_tables();
    }

    /// Makes a group of the pages, which are single and of one folio.
    pub fn fold(&self) {
        if self.is(Slip::FoldInPlace) {
            (0..GROUP).for_each(|page| self.change(page, |raw| raw | CONTIGUOUS));
            return self.flush(0, GROUP, Reach::Broadcast);
        }
        for (page, raw) in (0..).zip(self.take()) {
            self.emu.store_entry(self.entry(page), raw & !READ_ONLY | CONTIGUOUS | ACCESSED);
        }
        self.emu.fence_tables();
    }

    /// Changes a live entry without losing what the hardware writes meanwhile.
    fn change(&self, page: u64, change: impl Fn(u64) -> u64) {
        let mut raw = self.emu.load_entry(self.entry(page));
        while let Err(now) = self.emu.compare_exchange_entry(self.entry(page), raw, change(raw)) {
            raw = now;
        }
    }

    /// Makes a page read-only for good.
    pub fn shut(&self, page: u64) {
        if !self.is(Slip::ChangeOne) {
            self.unfold();
        }
        self.change(page, |raw| (raw | READ_ONLY) & !WRITABLE);
        self.flush(page, 1, Reach::Broadcast);
    }

    /// The page's contents may go until it is stored to again.
    pub fn free(&self, page: u64) {
        if self.is(Slip::FreeAll) {
            (0..GROUP).for_each(|page| self.change(page, |raw| raw | READ_ONLY));
            return self.flush(0, GROUP, Reach::Broadcast);
        }
        self.unfold();
        self.change(page, |raw| raw | READ_ONLY);
        self.flush(page, 1, Reach::Broadcast);
    }

    /// Lets each clean page go.
    pub fn reclaim(&self) {
        self.unfold();
        for page in 0..GROUP {
            let old = self.emu.exchange_entry(self.entry(page), 0);
            self.flush(page, 1, Reach::Broadcast);
            if old & VALID != 0 && (is_dirty(old) || old & WRITABLE == 0) {
                self.emu.store_entry(self.entry(page), old);
            } else if old & VALID != 0 {
                self.emu.note_freed(PfnRange::new(Pfn::new(old >> 12 & 0xf_ffff_ffff), 1));
            }
        }
        self.emu.fence_tables();
    }

    /// Forgets that the group was used.
    pub fn age(&self) {
        (0..GROUP).for_each(|page| self.change(page, |raw| raw & !ACCESSED));
        if !self.is(Slip::AgeUnflushed) {
            self.flush(0, GROUP, Reach::Broadcast);
        }
    }

    /// Whether any page was used since [`Folding::age`].
    pub fn is_young(&self) -> bool {
        (0..GROUP).any(|page| self.emu.load_entry(self.entry(page)) & ACCESSED != 0)
    }

    fn fault(&self, fault: Fault) -> Option<()> {
        let page = (fault.address.bytes() - BASE) / PAGE;
        let raw = self.emu.load_entry(self.entry(page));
        if raw & VALID == 0 {
            let frame = self.folio();
            self.emu.zero(PfnRange::new(frame, 1), Tags::Include);
            self.emu.fence_contents();
            self.emu.store_entry(self.entry(page), frame.base::<K4>().bytes() | CLEAN);
        } else if matches!(fault.access, Access::Store(_)) && raw & WRITABLE == 0 {
            return None;
        }
        // What this CPU has may be older.
        self.flush(page, 1, Reach::Local);
        Some(())
    }

    fn access(&self, page: u64, access: Access) -> Option<u64> {
        let seen = self.emu.user(1, |fault| self.fault(fault).ok_or(())).access(at(page), access).ok();
        self.emu.check_groups(self.leaf_table);
        seen
    }

    fn store(&self, page: u64, value: u64) -> Seen {
        self.access(page, Access::Store(value)).map(drop).ok_or(format!("no store to page {page}"))
    }

    fn check(&self, page: u64, value: u64) -> Seen {
        match self.access(page, Access::Load) {
            Some(seen) if seen == value => Ok(()),
            seen => Err(format!("page {page} holds {seen:x?}, not {value:#x}")),
        }
    }

    /// A life of the group's program. The error says what it saw that it should not have.
    pub fn life(&self) -> Seen {
        self.map();
        (0..GROUP).try_for_each(|page| self.check(page, 0))?;
        // A page in use is known to be in use.
        self.age();
        self.check(6, 0)?;
        if !self.is_young() {
            return Err("page 6 is in use and looks cold".into());
        }
        // Broken up and folded, with what was stored.
        self.store(9, 90)?;
        self.unfold();
        (0..GROUP).try_for_each(|page| self.check(page, if page == 9 { 90 } else { 0 }))?;
        self.fold();
        self.store(4, 40)?;
        // One page is given up; what was stored to others stays.
        self.free(3);
        self.reclaim();
        self.check(9, 90)?;
        self.check(4, 40)?;
        // Again in a fresh group, of which one page is dirty.
        (0..GROUP).for_each(|page| _ = self.emu.exchange_entry(self.entry(page), 0));
        self.flush(0, GROUP, Reach::Broadcast);
        self.map();
        self.store(7, 70)?;
        self.free(2);
        self.store(12, 120)?;
        self.reclaim();
        self.check(7, 70)?;
        self.check(12, 120)?;
        // One page of a fresh group becomes read-only.
        (0..GROUP).for_each(|page| _ = self.emu.exchange_entry(self.entry(page), 0));
        self.flush(0, GROUP, Reach::Broadcast);
        self.map();
        self.check(5, 0)?;
        self.shut(5);
        if self.store(5, 1).is_ok() {
            return Err("page 5 is read-only and was stored to".into());
        }
        self.store(6, 60)?;
        self.check(6, 60)
    }
}
