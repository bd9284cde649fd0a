//! A small right kernel lives at random against the whole adversary, at every granule: no law may break, no program
//! may see anything but what it wrote.

use core::cell::RefCell;
use core::mem::MaybeUninit;

use super::*;
use crate::granule::{K16, K64};
use crate::swap::{DeviceFlags, Progress, SwapDevice};

/// Where one page of the life is.
enum Page<G: Granule> {
    Absent,
    Here(Pfn),
    /// In the slot of the page's number, with these tags.
    Out(G::TagWords),
}

struct Life<G: Granule> {
    rig: Rig<G>,
    device: TestDevice,
    pages: RefCell<Vec<Page<G>>>,
    /// Frames to use again, so that what is stale shows.
    free: RefCell<Vec<Pfn>>,
    rng: RefCell<adversary::Rng>,
}

impl<G: Granule> Life<G> {
    fn new(seed: u64, features: Features) -> Self {
        let pages = 2 * G::GROUP_PAGES;
        let config = EmuConfig { cpus: 3, seed, features, adversary: Adversary::Full, ..EmuConfig::default() };
        Self {
            rig: Rig::new(config),
            device: TestDevice::new(pages as u32, DeviceFlags::SYNCHRONOUS),
            pages: RefCell::new((0..pages).map(|_| Page::Absent).collect()),
            free: RefCell::default(),
            rng: RefCell::new(adversary::Rng::new(!seed)),
        }
    }

    fn below(&self, bound: usize) -> usize {
        self.rng.borrow_mut().below(bound)
    }

    fn va(page: usize) -> u64 {
        VA + ((page as u64) << G::SHIFT)
    }

    fn frame(&self) -> Pfn {
        let reused = self.free.borrow_mut().pop();
        reused.unwrap_or_else(|| self.rig.frames(1).start())
    }

    /// The exception vector. Faults may be spurious: the adversary's walkers are late.
    fn handle(&self, fault: Fault) -> Result<(), ()> {
        let page = ((fault.address.bytes() - VA) >> G::SHIFT) as usize;
        let (emu, at) = (&self.rig.emu, self.rig.at(Self::va(page)));
        let mut pages = self.pages.borrow_mut();
        match &pages[page] {
            Page::Here(_) => loop {
                let seen = emu.load_entry(at);
                let dirty = if fault.access.writes() { seen & !READ_ONLY } else { seen };
                if emu.compare_exchange_entry(at, seen, dirty | ACCESSED).is_ok() {
                    emu.fence_tables();
                    let scope = Rig::<G>::pages(Self::va(page), 1);
                    emu.invalidate(ASID, scope, Cached::Leaf(Level::L3), Reach::Local);
                    emu.fence_invalidations();
                    return Ok(());
                }
            },
            Page::Absent => {
                let frame = self.frame();
                emu.zero(PfnRange::new(frame, 1), Tags::Include);
                emu.fence_contents();
                pages[page] = Page::Here(frame);
                self.rig.map(Self::va(page), frame, PAGE | TAGGED | READ_ONLY | DBM);
            }
            Page::Out(tags) => {
                let frame = self.frame();
                self.device.read(emu, page as u32, PfnRange::new(frame, 1)).map(drop).map_err(drop)?;
                emu.store_tags(frame, tags);
                emu.fence_contents();
                pages[page] = Page::Here(frame);
                self.rig.map(Self::va(page), frame, PAGE | TAGGED | READ_ONLY | DBM);
            }
        }
        Ok(())
    }

    fn swap_out(&self, page: usize) {
        let mut pages = self.pages.borrow_mut();
        if let Page::Here(frame) = pages[page] {
            self.rig.unmap(Self::va(page));
            let tags = *self.rig.emu.load_tags(frame, &mut MaybeUninit::uninit());
            assert_eq!(self.device.write(&self.rig.emu, PfnRange::new(frame, 1), page as u32), Ok(Progress::Done));
            self.rig.emu.note_freed(PfnRange::new(frame, 1));
            self.free.borrow_mut().push(frame);
            pages[page] = Page::Out(tags);
        }
    }

    /// Clears AF, and lets TLBs keep what they have; or makes the page clean, which they must see.
    fn age(&self, page: usize, clean: bool) {
        let at = self.rig.at(Self::va(page));
        loop {
            let seen = self.rig.emu.load_entry(at);
            let aged = if clean { seen | READ_ONLY } else { seen & !ACCESSED };
            if seen == 0 || self.rig.emu.compare_exchange_entry(at, seen, aged).is_ok() {
                break;
            }
        }
        if clean {
            self.rig.flush(Self::va(page), 1);
        }
    }

    fn run(&self, steps: usize) {
        let words = self.pages.borrow().len();
        let mut model = std::vec![(0, 0); words];
        for step in 0..steps {
            let (page, cpu) = (self.below(words), self.below(3));
            let mut user = self.rig.emu.user(cpu, |fault| self.handle(fault));
            let (va, tag) = (Self::va(page), model[page].1);
            match self.below(8) {
                0 | 1 => assert_eq!(user.load(tagged(va, tag)), Ok(model[page].0)),
                2 => {
                    user.store(tagged(va, tag), step as u64).unwrap();
                    model[page].0 = step as u64;
                }
                3 => {
                    model[page].1 = step as u8 & 0xf;
                    user.stg(va, step as u8 & 0xf).unwrap();
                }
                4 => assert_eq!(user.ldg(va), Ok(tag)),
                5 => self.swap_out(page),
                6 => self.age(page, false),
                _ => self.age(page, true),
            }
        }
    }
}

fn live<G: Granule>(features: Features) {
    for seed in 1..=12 {
        let life = Life::<G>::new(seed, features);
        (0..3).for_each(|cpu| life.rig.emu.set_tag_check(cpu, TagCheck::Sync));
        life.run(1500);
    }
}

#[test]
fn a_right_kernel_lives_with_hardware_updates() {
    live::<K4>(Features::all());
    live::<K16>(Features::all());
    live::<K64>(Features::all());
}

#[test]
fn a_right_kernel_lives_without_hardware_updates() {
    live::<K4>(Features::MTE);
    live::<K4>(Features::MTE | Features::HW_ACCESS);
}

#[test]
fn groups_fold_and_unfold_under_stores() {
    fn fold<G: Granule>() {
        for seed in 1..=8 {
            let life = Life::<G>::new(seed, Features::all());
            let (rig, pages) = (&life.rig, G::GROUP_PAGES as u64);
            let first = rig.zeroed(pages).start();
            let at = rig.map_group(VA, first, PAGE | READ_ONLY | DBM);
            let mut model = std::vec![0; G::GROUP_PAGES];
            for round in 1..12 {
                let mut wrote = false;
                for _ in 0..8 {
                    let (page, cpu) = (life.below(G::GROUP_PAGES), life.below(3));
                    if rig.put(cpu, Life::<G>::va(page), round).is_ok() {
                        (model[page], wrote) = (round, true);
                    }
                    assert_eq!(rig.load(cpu, Life::<G>::va(page)), Ok(model[page]));
                }
                rig.emu.check_all_groups();
                let clean = (0..G::GROUP_PAGES).fold(READ_ONLY, |bits, page| {
                    let old = rig.emu.exchange_entry(at.offset(page), 0);
                    bits & old
                });
                assert_eq!(clean == 0, wrote, "the group knows whether it was written");
                rig.flush(VA, pages);
                let grouped = if round % 2 == 0 { CONTIGUOUS } else { 0 };
                rig.map_pages(VA, first, pages, PAGE | READ_ONLY | DBM | grouped);
            }
        }
    }
    fold::<K4>();
    fold::<K16>();
    fold::<K64>();
}
