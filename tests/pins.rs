//! Pins: what goes past the tables is the very page that its owner sees, and nobody else's.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::frame::FolioOrders;
use ebbtide::granule::K4;
use ebbtide::machine::emu::Adversary;
use ebbtide::reclaim::Advice;
use ebbtide::space::{Access, FaultError, Pin, PinError, Protection};
use ebbtide::swap::DeviceFlags;

use support::{Program, RW, RWT, Rig, Setup, Stage};

const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 16;

/// What a page holds: the program's word, and the device's.
const OURS: u64 = 64;
const DEVICES: u64 = 128;

struct Scene<'a> {
    rig: &'a Rig,
    space: Space<Stage<K4>>,
}

fn at(page: u64) -> u64 {
    BASE + (page << 12)
}

impl<'a> Scene<'a> {
    fn new(rig: &'a Rig, protection: Protection) -> Self {
        let space = rig.space();
        rig.map(&space, BASE, PAGES, protection);
        Self { rig, space }
    }

    fn program(&self) -> Program<'_, K4> {
        self.of(&self.space)
    }

    fn of<'s>(&'s self, space: &'s Space<Stage<K4>>) -> Program<'s, K4> {
        self.rig.activate(0, space);
        self.rig.program(space)
    }

    fn pin(&self, page: u64, access: Access) -> Result<Pin, PinError> {
        self.space.pin(&self.rig.mm, VirtAddr::new(at(page)), access)
    }

    fn out(&self, space: &Space<Stage<K4>>) {
        space.advise(&self.rig.mm, VirtAddr::new(BASE), PAGES << 12, Advice::PageOut).unwrap();
    }

    /// A device stores a word through a pin.
    fn device_stores(&self, pin: &Pin, word: u64) {
        self.rig.emu().device_store(self.rig.mm.pinned(pin), (DEVICES / 8) as usize, word);
    }

    fn device_sees(&self, pin: &Pin, at: u64) -> u64 {
        self.rig.emu().device_load(self.rig.mm.pinned(pin), (at / 8) as usize)
    }
}

fn rig(device: DeviceFlags, orders: Option<FolioOrders>) -> Rig {
    Rig::new(Setup { frames: 300, slots: 64, adversary: Adversary::Full, device, orders, ..Setup::default() })
}

/// Fork before the pin, after it, or not at all; the page in memory, out, or never touched; single or of a large folio;
/// pinned for stores or for loads: the device and the owner see one page, and the child its own.
#[test]
fn a_pin_sees_its_owners_page() {
    for device in [DeviceFlags::SYNCHRONOUS, DeviceFlags::STABLE_WRITES] {
        for orders in [None, Some(FolioOrders::SINGLE)] {
            for (before, after) in [(false, false), (true, false), (false, true), (true, true)] {
                for life in ["untouched", "in memory", "out", "out and read"] {
                    for access in [Access::Write, Access::Read] {
                        one_life(&rig(device, orders), (before, after), life, access);
                    }
                }
            }
        }
    }
}

fn one_life(rig: &Rig, (fork_before, fork_after): (bool, bool), life: &str, access: Access) {
    let scene = Scene::new(rig, RWT);
    let touched = life != "untouched";
    if touched {
        (0..PAGES).for_each(|page| scene.program().store(at(page) + OURS, page + 1).unwrap());
    }
    if life.starts_with("out") {
        scene.out(&scene.space);
    }
    if life == "out and read" {
        (0..PAGES).for_each(|page| assert_eq!(scene.program().load(at(page) + OURS), Ok(page + 1)));
    }
    let mut children = Vec::new();
    if fork_before {
        children.push(scene.space.fork(&rig.mm).unwrap());
    }
    let page = 5;
    let pin = scene.pin(page, access).unwrap();
    let was = if touched { page + 1 } else { 0 };
    assert_eq!(scene.device_sees(&pin, OURS), was);
    if access == Access::Write {
        scene.device_stores(&pin, 77);
    }
    if fork_after {
        children.push(scene.space.fork(&rig.mm).unwrap());
    }
    let stored = if access == Access::Write { 77 } else { 0 };
    // Neither the owner's store nor a child's, nor reclaim, parts the pin from the owner's page.
    for child in &children {
        scene.of(child).store(at(page) + OURS, 1000).unwrap();
    }
    scene.program().store(at(page) + OURS, 42).unwrap();
    scene.out(&scene.space);
    children.iter().for_each(|child| scene.out(child));
    assert_eq!(scene.device_sees(&pin, OURS), 42, "{life}, {access:?}");
    if access == Access::Write {
        scene.device_stores(&pin, 78);
        assert_eq!(scene.program().load(at(page) + DEVICES), Ok(78));
    }
    for (index, child) in children.iter().enumerate() {
        let program = scene.of(child);
        assert_eq!(program.load(at(page) + OURS), Ok(1000));
        // Forked after the first store of the device, or before.
        let expected = if index + 1 == children.len() && fork_after { stored } else { 0 };
        assert_eq!(program.load(at(page) + DEVICES), Ok(expected), "{life}, {access:?}");
    }
    rig.mm.unpin(pin);
    scene.out(&scene.space);
    assert_eq!(scene.program().load(at(page) + OURS), Ok(42));
    children.into_iter().for_each(|child| rig.destroy(child));
    rig.finish(scene.space);
}

/// The frame stays when the program has given the page up, until the pin goes.
#[test]
fn a_pin_outlives_the_mapping() {
    let rig = rig(DeviceFlags::SYNCHRONOUS, Some(FolioOrders::SINGLE));
    let scene = Scene::new(&rig, RW);
    scene.program().store(at(0) + OURS, 5).unwrap();
    let pin = scene.pin(0, Access::Write).unwrap();
    scene.space.unmap(&rig.mm, VirtAddr::new(BASE), PAGES << 12).unwrap();
    assert_eq!(scene.device_sees(&pin, OURS), 5);
    rig.destroy(scene.space);
    assert_eq!(rig.mm.totals().frames_free + 1, rig.fresh.frames_free);
    rig.mm.unpin(pin);
    rig.check_nothing_leaked();
}

/// A device's store is a store: what was given up before it has ended, is not given up any more.
#[test]
fn what_a_device_stores_is_not_given_up() {
    for orders in [None, Some(FolioOrders::SINGLE)] {
        let rig = rig(DeviceFlags::SYNCHRONOUS, orders);
        let scene = Scene::new(&rig, RWT);
        (0..PAGES).for_each(|page| scene.program().store(at(page) + OURS, page + 1).unwrap());
        let pin = scene.pin(5, Access::Write).unwrap();
        scene.space.advise(&rig.mm, VirtAddr::new(BASE), PAGES << 12, Advice::Free).unwrap();
        scene.device_stores(&pin, 77);
        rig.mm.unpin(pin);
        scene.out(&scene.space);
        assert_eq!(scene.program().load(at(5) + DEVICES), Ok(77), "{orders:?}");
        assert_eq!(scene.program().load(at(5) + OURS), Ok(6), "{orders:?}");
        // Single pages that no device has may go.
        if orders.is_some() {
            assert_eq!(scene.program().load(at(4) + OURS), Ok(0));
            assert_eq!(scene.program().load(at(6) + OURS), Ok(0));
        }
        rig.finish(scene.space);
    }
}

/// A page that was never stored to needs no slot, but while a device looks at it, it is the program's.
#[test]
fn what_a_device_looks_at_stays() {
    for orders in [None, Some(FolioOrders::SINGLE)] {
        let rig = rig(DeviceFlags::SYNCHRONOUS, orders);
        let scene = Scene::new(&rig, RW);
        (0..PAGES).for_each(|page| assert_eq!(scene.program().load(at(page)), Ok(0)));
        let pin = scene.pin(5, Access::Read).unwrap();
        scene.out(&scene.space);
        scene.program().store(at(5) + OURS, 9).unwrap();
        assert_eq!(scene.device_sees(&pin, OURS), 9, "{orders:?}");
        rig.mm.unpin(pin);
        rig.finish(scene.space);
    }
}

/// What a program may not do, a pin on its behalf may not either.
#[test]
fn a_pin_asks_as_the_program_would() {
    let rig = rig(DeviceFlags::SYNCHRONOUS, None);
    let scene = Scene::new(&rig, Protection::READ);
    assert_eq!(scene.pin(0, Access::Write).err(), Some(FaultError::Protection.into()));
    assert_eq!(scene.pin(PAGES, Access::Read).err(), Some(FaultError::NotMapped.into()));
    assert_eq!(["faults_forbidden", "faults_unmapped"].map(|name| scene.rig.count(name)), [1, 1]);
    let pin = scene.pin(0, Access::Read).unwrap();
    rig.mm.unpin(pin);
    rig.finish(scene.space);
}

/// A page that only may be read is unshared as well: its owner may become a writer.
#[test]
fn a_shared_page_is_unshared_before_it_is_pinned() {
    let rig = rig(DeviceFlags::SYNCHRONOUS, None);
    let scene = Scene::new(&rig, RW);
    scene.program().store(at(3) + OURS, 9).unwrap();
    let child = scene.space.fork(&rig.mm).unwrap();
    let start = VirtAddr::new(BASE);
    scene.space.protect(&rig.mm, start, PAGES << 12, Protection::READ).unwrap();
    let pin = scene.pin(3, Access::Read).unwrap();
    scene.space.protect(&rig.mm, start, PAGES << 12, RW).unwrap();
    scene.program().store(at(3) + OURS, 10).unwrap();
    assert_eq!(scene.device_sees(&pin, OURS), 10);
    assert_eq!(scene.of(&child).load(at(3) + OURS), Ok(9));
    rig.mm.unpin(pin);
    rig.destroy(child);
    rig.finish(scene.space);
}

/// As many as can be counted, and then a clear error.
#[test]
fn pins_are_counted() {
    let rig = rig(DeviceFlags::SYNCHRONOUS, None);
    let scene = Scene::new(&rig, RW);
    let mut pins = Vec::new();
    let refused = loop {
        match scene.pin(0, Access::Write) {
            Ok(pin) => pins.push(pin),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, pins.len()), (PinError::TooManyPins, 0xff00));
    pins.into_iter().for_each(|pin| rig.mm.unpin(pin));
    rig.finish(scene.space);
}

/// Fork without memory for the copy of a pinned page.
#[test]
fn no_memory_for_a_pinned_page() {
    let rig = Rig::new(Setup { frames: 100, slots: 0, orders: Some(FolioOrders::SINGLE), ..Setup::default() });
    let scene = Scene::new(&rig, RW);
    (0..PAGES).for_each(|page| scene.program().store(at(page) + OURS, page + 1).unwrap());
    let pins: Vec<_> = (0..PAGES).map(|page| scene.pin(page, Access::Write).unwrap()).collect();
    let mut children = Vec::new();
    while let Ok(child) = scene.space.fork(&rig.mm) {
        children.push(child);
    }
    assert!(!children.is_empty());
    for child in &children {
        (0..PAGES).for_each(|page| assert_eq!(scene.of(child).load(at(page) + OURS), Ok(page + 1)));
    }
    for (page, pin) in (0..).zip(&pins) {
        scene.program().store(at(page) + OURS, 99).unwrap();
        assert_eq!(scene.device_sees(pin, OURS), 99);
    }
    pins.into_iter().for_each(|pin| rig.mm.unpin(pin));
    children.into_iter().for_each(|child| rig.destroy(child));
    rig.finish(scene.space);
}
