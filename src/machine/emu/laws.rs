//! The laws, checked at the step that breaks them. See [`Law`] for what each says.

use std::string::String;

use crate::addr::{Pfn, PfnRange};
use crate::granule::{Granule, Level};
use crate::machine::recorder::Operation;
use crate::machine::{Asid, EntryAt, Features};
use crate::sync::Ordering::Relaxed;

use super::adversary::State;
use super::desc::{Desc, VALID, attr, decode, hardware_bits, is_global, is_grouped, is_tagged};
use super::may::{Code, Ghost, Kind, Place, Shown};
use super::report::Law;

/// How a descriptor is written.
#[derive(Copy, Clone)]
pub(super) enum Write {
    Plain,
    Exchange,
    /// Only over this value.
    If(u64),
}

/// Whether one memory type may replace the other in place: Normal and Normal-Tagged, which differ in the tags alone.
fn same_memory(one: u64, other: u64) -> bool {
    attr(one) == attr(other) || attr(one) <= 1 && attr(other) <= 1
}

/// Whether two translations may stand in TLBs side by side: where they meet, the same output, size, memory type and
/// scope (Arm ARM, D8.17.1, "Using break-before-make").
fn agree(one: &Shown, other: &Shown) -> bool {
    let common = one.pages.intersection(other.pages);
    common.is_empty()
        || one.level == other.level
            && is_grouped(one.raw, one.level) == is_grouped(other.raw, other.level)
            && one.frame(common.start()) == other.frame(common.start())
            && same_memory(one.raw, other.raw)
            && is_global(one.raw) == is_global(other.raw)
}

fn why(ghost: &Ghost) -> String {
    let what = match ghost.kind {
        Kind::Leaf(shown) => std::format!("{:?} -> {:?} ({:#x})", shown.pages, shown.pfn, shown.raw),
        Kind::Table { child, pages, .. } => std::format!("{pages:?} -> table {child:?}"),
    };
    let state = match () {
        () if ghost.doomed | ghost.doomed_local != 0 => "its invalidation has not been completed by a fence",
        () if ghost.missed => "its removal was not fenced before the invalidation",
        () if !ghost.ordered => "its removal was not even fenced",
        () => "no invalidation reached them",
    };
    std::format!("TLBs of CPUs {:#b} may hold {what}, removed from {:x?}: {state}", ghost.cpus, ghost.at)
}

impl<G: Granule> State<G> {
    /// Checks and does a store of a descriptor; the old one is returned, as an error if it is not the one demanded.
    pub(super) fn store(&mut self, cpu: usize, at: EntryAt, raw: u64, how: Write) -> Result<u64, u64> {
        let slot = self.ram.slot(at.table);
        if let Some(place) = self.frames[slot].table {
            self.look_at(place, at);
        }
        let old = self.ram.entry(at).load(Relaxed);
        match how {
            Write::Plain => {
                self.log.push(cpu, Operation::Store { at, old, new: raw });
                if old & VALID != 0 {
                    let what = std::format!("{raw:#x} was stored over {old:#x} at {at:x?} without an exchange");
                    self.log.violate(Law::LiveEntryStored, what);
                }
            }
            Write::If(seen) if seen != old => return Err(old),
            Write::Exchange | Write::If(_) => self.log.push(cpu, Operation::Exchange { at, old, new: raw }),
        }
        match self.frames[slot].table {
            None => {
                if raw & VALID != 0 {
                    self.check_table_frame(at.table, "a descriptor was stored");
                }
                self.ram.entry(at).store(raw, Relaxed);
            }
            Some(place) => {
                match decode::<G>(raw, place.level) {
                    Desc::Invalid => {}
                    Desc::Table(child) => self.check_table(cpu, place, at, old, child),
                    Desc::Leaf(_) => self.check_leaf(cpu, place, at, old, raw),
                }
                self.replace(cpu, place, at, raw);
                self.look_at(place, at);
            }
        }
        Ok(old)
    }

    /// Before and after a store, walkers like to look at the place.
    pub(super) fn look_at(&mut self, place: Place, at: EntryAt) {
        if self.is_full() {
            let vpn = place.vpn::<G>(at.index);
            self.note_recent(vpn);
            if self.rng.one_in(2) {
                self.speculate(vpn);
            }
        }
    }

    /// A table descriptor is about to become readable for walkers.
    pub(super) fn check_table(&mut self, cpu: usize, place: Place, at: EntryAt, old: u64, child: Pfn) {
        if !self.ram.contains(child) {
            self.log.violate(Law::WildEntry, std::format!("{at:x?} names table {child:?}"));
            return;
        }
        match decode::<G>(old, place.level) {
            Desc::Invalid => {}
            Desc::Table(before) if before == child => return,
            _ => {
                let what = std::format!("{at:x?}: table {child:?} replaces the live {old:#x}");
                self.log.violate(Law::BreakBeforeMake, what);
            }
        }
        let vpn = place.vpn::<G>(at.index);
        let clash = self.ghosts_of(place).find(|ghost| match ghost.kind {
            Kind::Table { child: before, pages, level } => {
                level == place.level && pages.contains(vpn) && before != child
            }
            Kind::Leaf(shown) => shown.level == place.level && shown.pages.contains(vpn),
        });
        if let Some(ghost) = clash {
            let what = std::format!("{at:x?} becomes table {child:?}; {}", why(ghost));
            self.log.violate(Law::BreakBeforeMake, what);
        }
        self.check_contents(cpu, child, "table");
        if self.frames[self.ram.slot(child)].table.is_some() {
            self.log.violate(Law::TableAfterDetach, std::format!("{child:?} is linked a second time at {at:x?}"));
        }
        self.check_table_frame(child, "a table was linked");
    }

    /// A leaf descriptor is about to become readable for walkers.
    pub(super) fn check_leaf(&mut self, cpu: usize, place: Place, at: EntryAt, old: u64, raw: u64) {
        let vpn = place.vpn::<G>(at.index);
        let Some(shown) = self.shown(raw, place.level, vpn) else {
            self.log.violate(Law::WildEntry, std::format!("{raw:#x} at {at:x?} names no RAM of this machine"));
            return;
        };
        if decode::<G>(raw, place.level) != Desc::Leaf(shown.frame(vpn)) {
            let what = std::format!("{at:x?}: {raw:#x} is not congruent to {vpn:?} in its group or block");
            self.log.violate(Law::GroupEqual, what);
        }
        let before = self.shown(old, place.level, vpn);
        if old & VALID != 0 && !before.is_some_and(|before| agree(&before, &shown)) {
            self.log.violate(Law::BreakBeforeMake, std::format!("{at:x?}: {raw:#x} replaces the live {old:#x}"));
        }
        self.check_neighbours(place, at, &shown);
        let clash = self.ghosts_of(place).find(|ghost| match ghost.kind {
            Kind::Leaf(ghost) => !agree(&ghost, &shown),
            Kind::Table { pages, level, .. } => level == place.level && pages.contains(vpn),
        });
        if let Some(ghost) = clash {
            self.log.violate(Law::BreakBeforeMake, std::format!("{at:x?} becomes {raw:#x}; {}", why(ghost)));
        }
        for page in 0..shown.pages.pages() {
            let frame = shown.pfn.offset(page);
            if old & VALID == 0 {
                self.check_contents(cpu, frame, "page");
            }
            let known = &self.frames[self.ram.slot(frame)];
            let (is_table, tags_set) = (known.table.is_some(), known.tags_set);
            if is_tagged(raw) && !tags_set && self.has(Features::MTE) {
                let what = std::format!("{at:x?} shows {frame:?} as Tagged, whose tags nobody wrote");
                self.log.violate(Law::TagsUnset, what);
            }
            if is_table {
                self.log.violate(Law::TableAfterDetach, std::format!("{at:x?} maps {frame:?}, which is a table"));
            }
        }
    }

    /// Live entries of one contiguous group are all in the group, or all out of it.
    fn check_neighbours(&mut self, place: Place, at: EntryAt, shown: &Shown) {
        if place.level != Level::LEAF {
            return;
        }
        let first = at.index & !(G::GROUP_PAGES - 1);
        for index in first..first + G::GROUP_PAGES {
            let raw = self.ram.entry(EntryAt { index, ..at }).load(Relaxed);
            // `agree` compares whole groups; two plain pages never meet.
            let other = self.shown(raw, place.level, place.vpn::<G>(index));
            if index != at.index && other.is_some_and(|other| !agree(&other, shown)) {
                let what = std::format!("{at:x?} becomes {:#x} beside the live {raw:#x} at [{index:#x}]", shown.raw);
                self.log.violate(Law::BreakBeforeMake, what);
                return;
            }
        }
    }

    fn check_contents(&mut self, cpu: usize, frame: Pfn, what: &str) {
        let known = &self.frames[self.ram.slot(frame)];
        if !known.data_set {
            self.log.violate(Law::DataUnset, std::format!("{frame:?} is shown as a {what} and nobody wrote it"));
        } else if usize::from(known.writer) == cpu && known.epoch == self.cpus[cpu].epoch {
            let what = std::format!("{frame:?} is shown as a {what} before its contents were fenced");
            self.log.violate(Law::ContentsBeforeEntry, what);
        }
    }

    /// A frame begins to serve, or serves, as a table: nothing may reach it as a page, or as an old table.
    fn check_table_frame(&mut self, frame: Pfn, doing: &str) {
        self.check_unreachable(frame, Law::FreedWhileMapped, doing);
        self.check_not_cached_table(frame, doing);
    }

    fn check_not_cached_table(&mut self, frame: Pfn, doing: &str) {
        let ghost = self.ghosts.iter().find(|ghost| matches!(ghost.kind, Kind::Table { child, .. } if child == frame));
        if let Some(ghost) = ghost {
            let what = std::format!("{doing} in {frame:?}; {}", why(ghost));
            self.log.violate(Law::TableAfterDetach, what);
        }
    }

    /// No program may reach the frame.
    pub(super) fn check_unreachable(&mut self, frame: Pfn, law: Law, doing: &str) {
        let live = self.frames[self.ram.slot(frame)].live;
        if live == 0 && self.ghosts.is_empty() {
            return;
        }
        let ghost = self.ghosts.iter().find(|ghost| matches!(ghost.kind, Kind::Leaf(shown) if shown.shows(frame)));
        let by = match ghost {
            _ if live > 0 => std::format!("{live} live entries show it"),
            Some(ghost) => why(ghost),
            None => return,
        };
        self.log.violate(law, std::format!("{doing} at {frame:?}; {by}"));
    }

    /// The kernel reads a page's contents or tags: no program may write to it meanwhile.
    pub(super) fn read_contents(&mut self, frame: Pfn, doing: &str) {
        let live = self.frames[self.ram.slot(frame)].writable;
        let ghost = self
            .ghosts
            .iter()
            .find(|ghost| matches!(ghost.kind, Kind::Leaf(shown) if shown.shows(frame) && self.is_writable(shown.raw)));
        let by = match ghost {
            _ if live > 0 => std::format!("{live} live writable entries show it"),
            Some(ghost) => why(ghost),
            None => return,
        };
        self.log.violate(Law::ReadWhileWritable, std::format!("{doing} of {frame:?}; {by}"));
    }

    /// The kernel writes a page's contents: no program may reach it, and the instruction side has something older.
    pub(super) fn write_contents(&mut self, cpu: usize, frame: Pfn, doing: &str) {
        self.write_tags(cpu, frame, doing);
        let slot = self.ram.slot(frame);
        self.frames[slot].code = Code::Stale;
    }

    /// The kernel writes a page's tags alone, which instruction fetches know nothing of: no program may reach it.
    pub(super) fn write_tags(&mut self, cpu: usize, frame: Pfn, doing: &str) {
        self.check_unreachable(frame, Law::WrittenWhileMapped, doing);
        if self.frames[self.ram.slot(frame)].table.is_some() {
            self.log.violate(Law::TableAfterDetach, std::format!("{doing} at {frame:?}, which is a linked table"));
        }
        self.check_not_cached_table(frame, doing);
        let epoch = self.cpus[cpu].epoch;
        let slot = self.ram.slot(frame);
        let known = &mut self.frames[slot];
        (known.writer, known.epoch) = (cpu as u8, epoch);
    }

    /// A frame's owner gives it back.
    pub(super) fn free(&mut self, run: PfnRange) {
        for page in 0..run.pages() {
            let frame = run.start().offset(page);
            self.check_unreachable(frame, Law::FreedWhileMapped, "a free");
            if self.frames[self.ram.slot(frame)].table.is_some() {
                self.log.violate(Law::TableAfterDetach, std::format!("{frame:?} is freed and still linked"));
            }
            self.check_not_cached_table(frame, "a free");
            self.poison(frame);
        }
    }

    /// Fills a frame with garbage that nobody may see.
    pub(super) fn poison(&mut self, frame: Pfn) {
        self.ram.scribble(frame);
        let slot = self.ram.slot(frame);
        let known = &mut self.frames[slot];
        (known.data_set, known.tags_set, known.code) = (false, false, Code::Stale);
    }

    pub(super) fn need_tags(&mut self, frame: Pfn, who: &str) {
        if !self.frames[self.ram.slot(frame)].tags_set {
            self.log.violate(Law::TagsUnset, std::format!("{who} reads tags of {frame:?} that nobody wrote"));
        }
    }

    pub(super) fn need_synced(&mut self, frame: Pfn, pointer: u64) {
        if self.frames[self.ram.slot(frame)].code == Code::Stale {
            let what = std::format!("a program fetches at {pointer:#x} from {frame:?}");
            self.log.violate(Law::FetchUnsynced, what);
        }
    }

    pub(super) fn check_install(&mut self, cpu: usize, root: Pfn, asid: Asid) {
        self.check_contents(cpu, root, "root table");
        let known = self.roots.iter().any(|known| known.pfn == root);
        let other = self.roots.iter().find(|other| other.pfn != root && other.asids.iter().any(|(of, _)| *of == asid));
        let ghost = self.ghosts.iter().find(|ghost| !known && ghost.asid == Some(asid));
        let by = match (other, ghost) {
            _ if asid == Asid::EMPTY => return,
            (Some(other), _) => std::format!("root {:?} has it", other.pfn),
            (None, Some(ghost)) => why(ghost),
            (None, None) => return,
        };
        self.log.violate(Law::AsidReused, std::format!("asid {} for root {root:?}; {by}", asid.number()));
    }

    /// The entries of each contiguous group of a leaf table are equal but for what the hardware writes.
    pub(super) fn check_groups(&mut self, table: Pfn) {
        for first in (0..G::ENTRIES).step_by(G::GROUP_PAGES) {
            let entry = |index| self.ram.entry(EntryAt { table, index }).load(Relaxed);
            let group = (first..first + G::GROUP_PAGES).map(entry);
            let Some(lead) = group.clone().find(|raw| raw & VALID != 0 && is_grouped(*raw, Level::LEAF)) else {
                continue;
            };
            let ignored = hardware_bits(lead);
            let start = entry(first);
            let odd = group.enumerate().find(|(place, raw)| {
                let expected = start + ((*place as u64) << G::SHIFT);
                (raw ^ expected) & !ignored != 0
            });
            if let Some((place, raw)) = odd {
                let what = std::format!("{table:?}[{:#x}] is {raw:#x}, entry {first:#x} is {start:#x}", first + place);
                self.log.violate(Law::GroupEqual, what);
            }
        }
    }

    /// Ghosts that a walk below this root may meet.
    fn ghosts_of(&self, place: Place) -> impl Iterator<Item = &Ghost> {
        let asids = self.roots.iter().find(|root| root.pfn == place.root).map_or(&[][..], |root| &root.asids[..]);
        self.ghosts.iter().filter(move |ghost| ghost.asid.is_none_or(|of| asids.iter().any(|(asid, _)| *asid == of)))
    }
}
