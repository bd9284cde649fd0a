//! Random lives against a plain model: what a program may see, page by page.
//!
//! A [`World`] has a few spaces on a few CPUs. Each [`Op`] is done by the library and by the model, and what the
//! program saw, or the error, must be what the model says. The model knows nothing of frames, slots or TLBs: a page
//! has a protection, words and tags. It allows one thing more: [`World::is_exhausted`] says when "no memory" is true.
//!
//! With a *bystander*, the last CPU runs a program of space 0 that stores between any two steps of the library, as
//! another CPU does. The last word of each page is its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use ebbtide::Space;
use ebbtide::addr::{VirtAddr, Vpn};
use ebbtide::granule::{Granule, TAG_GRANULE_BYTES};
use ebbtide::machine::Features;
use ebbtide::machine::emu::{Access, Death, TagCheck};
use ebbtide::reclaim::Advice;
use ebbtide::space::{FaultError, Growth, MapError, MapRequest, Placement, Protection, SpaceError};

use super::op::{Op, What};
use super::{Dice, Program, Rig, Setup, Stage, tagged};

struct Content {
    words: Vec<u64>,
    tags: Vec<u8>,
}

/// One mapped page, as the program knows it.
struct Page {
    protection: Protection,
    /// `None`: all zero.
    content: Option<Content>,
    /// The program gave the contents up: until it stores to the page again, they may become all zero at any time.
    may_go: bool,
}

impl Page {
    fn new(protection: Protection) -> Self {
        Self { protection, content: None, may_go: false }
    }

    fn word(&self, index: usize) -> u64 {
        self.content.as_ref().map_or(0, |content| content.words[index])
    }

    fn tag(&self, granule: usize) -> u8 {
        self.content.as_ref().map_or(0, |content| content.tags[granule])
    }

    fn content<G: Granule>(&mut self) -> &mut Content {
        self.content
            .get_or_insert_with(|| Content { words: vec![0; G::ENTRIES], tags: vec![0; G::SIZE / TAG_GRANULE_BYTES] })
    }

    fn is_tagged(&self) -> bool {
        self.protection.contains(Protection::TAGGED)
    }
}

/// One space, and what its program knows. No space when there was no memory for one.
struct Actor<G: Granule> {
    space: Option<Space<Stage<G>>>,
    pages: BTreeMap<u64, Page>,
}

/// How an access that the model refuses ends.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Refused {
    NotMapped,
    Protection,
}

/// What a store changes.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Stored {
    /// A word of data.
    Word(usize),
    /// The tag of a granule, and not its data.
    Tag(usize),
}

/// See the module's head.
pub struct World<G: Granule> {
    pub rig: Rig<G>,
    actors: Vec<Actor<G>>,
    /// The actor that each CPU runs.
    on: Vec<usize>,
    /// The bystander's stores that went through, by address.
    stored: Option<Arc<Mutex<HashMap<u64, u64>>>>,
    serial: u64,
}

impl<G: Granule> World<G> {
    /// Tag granules of a page.
    const GRANULES: usize = G::SIZE / TAG_GRANULE_BYTES;

    /// Pages of the arena in which most of a life happens: three contiguous groups, and four at 4 KiB.
    const ARENA: u64 = if G::GROUP_PAGES == 16 { 64 } else { 3 * G::GROUP_PAGES as u64 };

    /// The first address of the arena: it straddles two leaf tables, and begins inside a group.
    fn arena() -> u64 {
        (3 * G::ENTRIES as u64 - Self::ARENA / 2 - 5) << G::SHIFT
    }

    pub fn new(setup: Setup, spaces: usize, bystander: bool) -> Self {
        let rig = Rig::new(setup);
        let actors = (0..spaces).map(|_| Actor { space: None, pages: BTreeMap::new() }).collect();
        let stored = bystander.then(|| Self::let_stand_by(&rig, setup.cpus - 1));
        let on = (0..setup.cpus).map(|cpu| cpu % spaces).collect();
        let mut world = Self { rig, actors, on, stored, serial: 1 };
        if bystander {
            world.on[setup.cpus - 1] = 0;
        }
        (0..spaces).for_each(|actor| world.make_space(actor));
        world
    }

    fn let_stand_by(rig: &Rig<G>, cpu: usize) -> Arc<Mutex<HashMap<u64, u64>>> {
        let stored = Arc::new(Mutex::new(HashMap::new()));
        let log = Arc::clone(&stored);
        rig.emu().set_tag_check(cpu, TagCheck::None);
        rig.emu().set_background(move |emu, dice| {
            let place = Self::arena() + ((dice % Self::ARENA) << G::SHIFT) + (G::SIZE as u64 - 8);
            let value = dice | 1;
            if emu.access(cpu, place, Access::Store(value)).is_ok() {
                log.lock().unwrap().insert(place, value);
            }
        });
        stored
    }

    fn has_mte(&self) -> bool {
        self.rig.emu().config().features.contains(Features::MTE)
    }

    /// Whether "no memory" is true: no ordinary frame is free, and no slot, or no room for tags.
    fn is_exhausted(&self) -> bool {
        let totals = self.rig.mm.totals();
        let reserve = totals.frames / 16;
        totals.frames_free <= reserve && (totals.slots_free == 0 || self.has_mte() && totals.tag_rooms_free == 0)
    }

    fn check_exhausted(&self) {
        assert!(self.is_exhausted(), "no memory, it says, with {:?}", self.rig.mm.totals());
    }

    fn make_space(&mut self, actor: usize) {
        match self.rig.try_space() {
            Ok(space) => {
                for cpu in (0..self.on.len()).filter(|&cpu| self.on[cpu] == actor) {
                    self.rig.activate(cpu, &space);
                }
                self.actors[actor].space = Some(space);
            }
            Err(SpaceError::NoMemory) => self.check_exhausted(),
        }
    }

    fn end_space(&mut self, actor: usize) {
        for cpu in (0..self.on.len()).filter(|&cpu| self.on[cpu] == actor) {
            self.rig.idle(cpu);
        }
        if let Some(space) = self.actors[actor].space.take() {
            assert!(space.destroy(&self.rig.mm).is_ok(), "no CPU runs it");
            // The CPU that ended it is left with no space, whatever it ran.
            if let Some(space) = &self.actors[self.on[0]].space {
                self.rig.activate(0, space);
            }
        }
        let pages: Vec<u64> = self.actors[actor].pages.keys().copied().collect();
        for page in pages {
            self.forget(actor, page);
        }
        self.actors[actor].pages.clear();
    }

    /// The page's contents are gone; the bystander's too.
    fn forget(&mut self, actor: usize, page: u64) {
        if let Some(page) = self.actors[actor].pages.get_mut(&page) {
            page.content = None;
            page.may_go = false;
        }
        if let Some(stored) = &self.stored
            && actor == 0
        {
            stored.lock().unwrap().remove(&((page << G::SHIFT) + (G::SIZE as u64 - 8)));
        }
    }

    fn program(&self, cpu: usize) -> Program<'_, G> {
        let space = self.actors[self.on[cpu]].space.as_ref().expect("the caller looked");
        self.rig.program_on(cpu, space)
    }

    /// What the model says of an access.
    fn allows(&self, actor: usize, page: u64, access: Access) -> Result<(), Refused> {
        let page = self.actors[actor].pages.get(&page).ok_or(Refused::NotMapped)?;
        let wanted = match access {
            Access::Load | Access::LoadTag => Protection::READ | Protection::WRITE | Protection::EXEC,
            Access::Store(_) | Access::StoreTag(_) => Protection::WRITE,
            Access::Fetch => Protection::EXEC,
        };
        if page.protection.intersects(wanted) { Ok(()) } else { Err(Refused::Protection) }
    }

    /// Does an access, and sees to it that it is refused when the model refuses it. `None`: it was refused, or there
    /// was no memory.
    fn access(&mut self, cpu: usize, pointer: u64, access: Access) -> Option<u64> {
        let page = VirtAddr::untagged(pointer).vpn::<G>().number();
        let actor = self.on[cpu];
        let allowed = self.allows(actor, page, access);
        let mut result = self.program(cpu).access(pointer, access);
        if self.may_go(actor, page) && matches!(result, Err(Death::TagCheck(_))) {
            // Its tags have gone, and the data with them.
            self.forget(actor, page);
            result = self.program(cpu).access(VirtAddr::untagged(pointer).bytes(), access);
        }
        match (allowed, result) {
            (Ok(()), Ok(value)) => Some(value),
            (Ok(()), Err(Death::Refused(_, FaultError::NoMemory))) => {
                self.check_exhausted();
                None
            }
            (Err(Refused::NotMapped), Err(Death::Refused(_, FaultError::NotMapped))) => None,
            (Err(Refused::Protection), Err(Death::Refused(_, FaultError::Protection))) => None,
            (allowed, result) => panic!("{access:x?} at {pointer:#x}: {result:x?}, the model says {allowed:?}"),
        }
    }

    fn may_go(&self, actor: usize, page: u64) -> bool {
        self.page(actor, page).is_some_and(|page| page.may_go)
    }

    /// The page was just stored to, and stays as it is: were its contents there still? What is known of it, other than
    /// `but`, tells.
    fn settle(&mut self, cpu: usize, page: u64, but: Stored) {
        let actor = self.on[cpu];
        if !self.may_go(actor, page) {
            return;
        }
        let known = |index: &usize| {
            but != Stored::Word(*index) && self.page(actor, page).is_some_and(|page| page.word(*index) != 0)
        };
        let word = (0..G::ENTRIES).find(known);
        let has_tag = |granule: &usize| {
            but != Stored::Tag(*granule) && self.page(actor, page).is_some_and(|page| page.tag(*granule) != 0)
        };
        let granule = (0..Self::GRANULES).find(has_tag);
        let base = page << G::SHIFT;
        self.rig.emu().set_tag_check(cpu, TagCheck::None);
        let has_gone = match (word, granule) {
            (Some(word), _) => self.program(cpu).load(base + word as u64 * 8).map(|value| value == 0),
            (_, Some(granule)) => {
                self.program(cpu).ldg(base + (granule * TAG_GRANULE_BYTES) as u64).map(|tag| tag == 0)
            }
            // Nothing but what was stored to.
            (None, None) => Ok(false),
        };
        self.rig.emu().set_tag_check(cpu, TagCheck::Sync);
        if has_gone.expect("it was just stored to") {
            self.forget(actor, page);
        }
        if let Some(page) = self.actors[actor].pages.get_mut(&page) {
            page.may_go = false;
        }
    }

    fn page(&self, actor: usize, page: u64) -> Option<&Page> {
        self.actors[actor].pages.get(&page)
    }

    /// A pointer to word `index` with the tag that the granule has.
    fn pointer(&self, actor: usize, page: u64, index: usize) -> u64 {
        let address = (page << G::SHIFT) + index as u64 * 8;
        tagged(address, self.page(actor, page).map_or(0, |page| page.tag(index * 8 / TAG_GRANULE_BYTES)))
    }

    fn expected(&self, actor: usize, page: u64, index: usize) -> u64 {
        if let Some(stored) = &self.stored
            && actor == 0
            && index == G::ENTRIES - 1
        {
            let place = (page << G::SHIFT) + index as u64 * 8;
            return stored.lock().unwrap().get(&place).copied().unwrap_or(0);
        }
        self.page(actor, page).map_or(0, |page| page.word(index))
    }

    /// Says whether the access was possible.
    fn load(&mut self, cpu: usize, page: u64, index: usize, access: Access) -> bool {
        let pointer = self.pointer(self.on[cpu], page, index);
        let Some(value) = self.access(cpu, pointer, access) else { return false };
        let expected = self.expected(self.on[cpu], page, index);
        if value == 0 && expected != 0 && self.may_go(self.on[cpu], page) {
            self.forget(self.on[cpu], page);
            return true;
        }
        assert_eq!(value, expected, "{access:?} of word {index} of page {page:#x}");
        true
    }

    fn store(&mut self, cpu: usize, page: u64, index: usize) {
        let actor = self.on[cpu];
        let pointer = self.pointer(actor, page, index);
        self.serial += 1;
        let value = self.serial << 16 | page & 0xffff;
        if self.access(cpu, pointer, Access::Store(value)).is_some() {
            self.settle(cpu, page, Stored::Word(index));
            if let Some(page) = self.actors[actor].pages.get_mut(&page) {
                page.content::<G>().words[index] = value;
            }
        }
    }

    fn store_tag(&mut self, cpu: usize, page: u64, granule: usize, tag: u8) {
        let address = (page << G::SHIFT) + (granule * TAG_GRANULE_BYTES) as u64;
        if self.access(cpu, address, Access::StoreTag(tag)).is_none() {
            return;
        }
        self.settle(cpu, page, Stored::Tag(granule));
        if let Some(page) = self.actors[self.on[cpu]].pages.get_mut(&page).filter(|page| page.is_tagged()) {
            page.content::<G>().tags[granule] = tag;
        }
    }

    /// Says whether the access was possible.
    fn load_tag(&mut self, cpu: usize, page: u64, granule: usize) -> bool {
        let address = (page << G::SHIFT) + (granule * TAG_GRANULE_BYTES) as u64;
        let Some(tag) = self.access(cpu, address, Access::LoadTag) else { return false };
        let expected = self.page(self.on[cpu], page).map_or(0, |page| page.tag(granule));
        if tag == 0 && expected != 0 && self.may_go(self.on[cpu], page) {
            self.forget(self.on[cpu], page);
            return true;
        }
        assert_eq!(tag as u8, expected, "the tag of granule {granule} of page {page:#x}");
        true
    }

    /// One tag, a few runs, or a tag each: what is kept of them is different.
    fn fill_tags(&mut self, cpu: usize, page: u64, choice: u16) {
        // What is refused is refused throughout.
        let granules = if self.allows(self.on[cpu], page, Access::StoreTag(0)).is_ok() { Self::GRANULES } else { 1 };
        let mut dice = Dice::new(choice.into());
        let run = match choice % 3 {
            0 => granules,
            1 => granules / 4 + 1,
            _ => 1,
        };
        let mut tag = 0;
        for granule in 0..granules {
            if granule % run == 0 {
                tag = dice.below(16) as u8;
            }
            self.store_tag(cpu, page, granule, tag);
        }
    }

    fn wrong_tag(&mut self, cpu: usize, page: u64, index: usize, choice: u16) {
        let actor = self.on[cpu];
        let known = self.page(actor, page).map_or(0, |page| page.tag(index * 8 / TAG_GRANULE_BYTES));
        let wrong = known ^ (choice % 15 + 1) as u8;
        let pointer = tagged((page << G::SHIFT) + index as u64 * 8, wrong);
        let access = if choice & 16 == 0 { Access::Load } else { Access::Store(!0) };
        // Which tag is the wrong one, nobody knows.
        if self.may_go(actor, page) {
            return;
        }
        let checked = self.page(actor, page).is_some_and(Page::is_tagged);
        if !checked || self.allows(actor, page, access).is_err() {
            // Without tags to compare, the top byte means nothing.
            if access == Access::Load {
                self.access(cpu, pointer, access);
            }
            return;
        }
        match self.program(cpu).access(pointer, access) {
            Err(Death::TagCheck(_)) => {}
            Err(Death::Refused(_, FaultError::NoMemory)) => self.check_exhausted(),
            other => panic!("{access:x?} at {pointer:#x} with a wrong tag: {other:x?}"),
        }
    }

    /// Every word and every tag of a page.
    fn check_page(&mut self, cpu: usize, page: u64) {
        // What is refused once is refused again.
        let _ = (0..G::ENTRIES).all(|index| self.load(cpu, page, index, Access::Load))
            && (0..Self::GRANULES).all(|granule| self.load_tag(cpu, page, granule));
    }

    fn first_gap(&self, actor: usize, start: u64, pages: u64) -> Option<u64> {
        (start..start + pages).find(|page| !self.actors[actor].pages.contains_key(page))
    }

    /// The arguments of a call on the range, and its result against the model's.
    fn called(&self, actor: usize, start: u64, pages: u64, result: Result<(), MapError>) -> bool {
        let expected = match self.first_gap(actor, start, pages) {
            Some(gap) => Err(MapError::NotMapped(Vpn::new(gap).base::<G>())),
            None => Ok(()),
        };
        if result == Err(MapError::NoMemory) {
            self.check_exhausted();
            return false;
        }
        assert_eq!(result, expected, "a call on {pages} pages from {start:#x}");
        true
    }

    /// Mostly what leaves pages usable, else any.
    fn protection(op: Op) -> Protection {
        let protection = match op.choice >> 4 & 3 {
            0 => Protection::READ | Protection::WRITE,
            1 => Protection::all(),
            2 => Protection::READ | Protection::WRITE | Protection::TAGGED,
            _ => Protection::from_bits_truncate(u32::from(op.choice >> 6)),
        };
        // What is locked refuses advice, and memory runs out by it: the model knows nothing of that.
        protection - Protection::LOCKED
    }

    fn map(&mut self, cpu: usize, op: Op, start: u64, pages: u64) {
        let actor = self.on[cpu];
        let protection = Self::protection(op);
        let address = VirtAddr::new(start << G::SHIFT);
        let placement = match op.choice % 4 {
            0 => Placement::Anywhere { hint: VirtAddr::new(0) },
            1 => Placement::Anywhere { hint: address },
            2 => Placement::FixedNoReplace(address),
            _ => Placement::Fixed(address),
        };
        if self.actors[actor].pages.len() as u64 > 3 * Self::ARENA && op.choice.is_multiple_of(4) {
            return;
        }
        let request = MapRequest { placement, bytes: pages << G::SHIFT, protection, growth: Growth::Fixed };
        let free = (start..start + pages).all(|page| !self.actors[actor].pages.contains_key(&page));
        let space = self.actors[actor].space.as_ref().expect("the caller looked");
        let first = match (placement, space.map(&self.rig.mm, request)) {
            (_, Err(MapError::NoMemory)) => return self.check_exhausted(),
            (Placement::FixedNoReplace(_), Err(MapError::Occupied(_))) if !free => return,
            (Placement::FixedNoReplace(_), Ok(first)) => {
                assert!(free && first == address);
                first
            }
            (Placement::Fixed(_), Ok(first)) => {
                assert_eq!(first, address);
                first
            }
            (Placement::Anywhere { hint }, Ok(first)) => {
                assert!(first == hint || !free || hint.bytes() == 0, "a free hint is taken");
                first
            }
            (placement, result) => panic!("{placement:?}: {result:?}"),
        };
        let protection = if self.has_mte() { protection } else { protection - Protection::TAGGED };
        let first = first.vpn::<G>().number();
        for page in first..first + pages {
            let taken = self.actors[actor].pages.contains_key(&page);
            assert!(!taken || matches!(placement, Placement::Fixed(_)), "page {page:#x} was mapped already");
            self.forget(actor, page);
            self.actors[actor].pages.insert(page, Page::new(protection));
        }
    }

    fn protect(&mut self, actor: usize, op: Op, start: u64, pages: u64) {
        let protection = Self::protection(op);
        let space = self.actors[actor].space.as_ref().expect("the caller looked");
        let result = space.protect(&self.rig.mm, Vpn::new(start).base::<G>(), pages << G::SHIFT, protection);
        if !self.called(actor, start, pages, result) {
            return;
        }
        let usable = if self.has_mte() { protection } else { protection - Protection::TAGGED };
        let end = self.first_gap(actor, start, pages).unwrap_or(start + pages);
        for (_, page) in self.actors[actor].pages.range_mut(start..end) {
            page.protection = usable | page.protection & Protection::TAGGED;
        }
    }

    fn unmap(&mut self, actor: usize, start: u64, pages: u64) {
        let space = self.actors[actor].space.as_ref().expect("the caller looked");
        match space.unmap(&self.rig.mm, Vpn::new(start).base::<G>(), pages << G::SHIFT) {
            Ok(()) => {
                for page in start..start + pages {
                    self.forget(actor, page);
                    self.actors[actor].pages.remove(&page);
                }
            }
            Err(MapError::NoMemory) => self.check_exhausted(),
            Err(error) => panic!("{error}"),
        }
    }

    fn advise(&mut self, actor: usize, start: u64, pages: u64, advice: Advice) {
        // The bystander looks at nothing, so that nobody would know whether its words went.
        let advice = if advice == Advice::Free && self.stored.is_some() && actor == 0 { Advice::Cold } else { advice };
        let space = self.actors[actor].space.as_ref().expect("the caller looked");
        let result = space.advise(&self.rig.mm, Vpn::new(start).base::<G>(), pages << G::SHIFT, advice);
        self.called(actor, start, pages, result);
        match advice {
            Advice::DontNeed => (start..start + pages).for_each(|page| self.forget(actor, page)),
            Advice::Free => {
                for (_, page) in self.actors[actor].pages.range_mut(start..start + pages) {
                    page.may_go = page.content.is_some();
                }
            }
            Advice::Cold | Advice::PageOut | Advice::WillNeed => {}
        }
    }

    /// The page that an operation means: one of the arena, or any that is mapped.
    fn target(&self, actor: usize, op: Op) -> u64 {
        let mapped = &self.actors[actor].pages;
        if op.what != What::Map && op.choice & 0xc000 != 0 && !mapped.is_empty() {
            let nth = usize::from(op.page) % mapped.len();
            if let Some((&page, _)) = mapped.iter().nth(nth) {
                return page;
            }
        }
        (Self::arena() >> G::SHIFT) + (u64::from(op.page) | u64::from(op.choice & 1) << 8) % Self::ARENA
    }

    /// One step of the life.
    pub fn step(&mut self, op: Op) {
        let cpus = self.on.len() - usize::from(self.stored.is_some());
        let cpu = usize::from(op.cpu) % cpus;
        let actor = self.on[cpu];
        if self.actors[actor].space.is_none() {
            return self.make_space(actor);
        }
        let page = self.target(actor, op);
        let limit = 1 << (self.rig.emu().config().va_bits - G::SHIFT);
        // Up to one and a half groups.
        let step = G::GROUP_PAGES as u64 / 16;
        let pages = ((1 + u64::from(op.pages) % 24) * step - u64::from(op.choice) % step).min(limit - page);
        // The bystander's word is left alone.
        let index = usize::from(op.choice) % (G::ENTRIES - 1);
        let granule = index * 8 / TAG_GRANULE_BYTES;
        match op.what {
            What::Load => _ = self.load(cpu, page, index, Access::Load),
            What::LoadRun => (page..page + pages).for_each(|page| _ = self.load(cpu, page, index, Access::Load)),
            What::Fetch => _ = self.load(cpu, page, index, Access::Fetch),
            What::Store => self.store(cpu, page, index),
            What::StoreRun => (page..page + pages).for_each(|page| self.store(cpu, page, index)),
            What::LoadTag => _ = self.load_tag(cpu, page, granule),
            What::StoreTag => self.store_tag(cpu, page, granule, op.pages & 0xf),
            What::FillTags => self.fill_tags(cpu, page, op.choice),
            What::WrongTag => self.wrong_tag(cpu, page, index, op.choice),
            What::CheckPage => self.check_page(cpu, page),
            What::Map => self.map(cpu, op, page, pages),
            What::MapGroups => {
                let group = G::GROUP_PAGES as u64;
                // In place of what is there.
                let op = Op { choice: op.choice | 3, ..op };
                let (first, groups) = (page & !(group - 1), 1 + u64::from(op.pages) % 3);
                self.map(cpu, op, first, (groups * group).min(limit - first));
            }
            What::Unmap => self.unmap(actor, page, pages),
            What::Protect => self.protect(actor, op, page, pages),
            What::DontNeed => self.advise(actor, page, pages, Advice::DontNeed),
            What::Free => self.advise(actor, page, pages, Advice::Free),
            What::Cold => self.advise(actor, page, pages, Advice::Cold),
            What::PageOut => self.advise(actor, page, pages, Advice::PageOut),
            What::WillNeed => self.advise(actor, page, pages, Advice::WillNeed),
            What::Balance => self.rig.mm.balance(),
            What::Switch => {
                let next = usize::from(op.page) % self.actors.len();
                if let Some(space) = &self.actors[next].space {
                    self.rig.activate(cpu, space);
                    self.on[cpu] = next;
                }
            }
            What::Remake => {
                let victim = usize::from(op.page) % self.actors.len();
                self.end_space(victim);
                self.make_space(victim);
            }
        }
        self.rig.emu().check_all_groups();
    }

    /// Looks at every page, ends every space, and checks that everything is back.
    pub fn finish(mut self) {
        for actor in 0..self.actors.len() {
            if let Some(space) = &self.actors[actor].space {
                self.rig.activate(0, space);
                self.on[0] = actor;
                let pages: Vec<u64> = self.actors[actor].pages.keys().copied().collect();
                pages.into_iter().for_each(|page| self.check_page(0, page));
            }
        }
        (0..self.actors.len()).for_each(|actor| self.end_space(actor));
        self.rig.check_nothing_leaked();
    }
}
