//! A small kernel whose two spaces share a page, right but for at most one mistake.
//!
//! One page, one slot, and a table for each space. Like [`Small`](super::small::Small) it is written against the
//! machine's seam, here with a [`Stage`] between, so that a test can let one CPU go ahead before any step of another.
//!
//! **Alone.** A bit of the entry says that no other space has the page, in memory or out; only such a leaf may be
//! writable. It is set and taken away under the lock of the entry's table. Fork takes it from both spaces. A page that
//! its device is still writing keeps the bit, and its write permission waits.
//!
//! **Pins** take no lock: a pin counts itself, and then looks whether the entry is still the one that it came by. So
//! whoever takes the bit away looks for pins after that, and puts the bit back where there is one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ebbtide::addr::{Pfn, PfnRange, Vpn, VpnRange};
use ebbtide::granule::{K4, Level};
use ebbtide::machine::emu::{Access, Adversary, Emu, EmuConfig, Fault, Mode, Violation};
use ebbtide::machine::{Asid, Cached, EntryAt, Machine, Reach, Scope, Tags};
use ebbtide::swap::DeviceFlags;

use super::entries::{ACCESSED, READ_ONLY, UXN, VALID};
use super::stage::Stage;

/// What [`Kin`] does wrong. The first four are those that seem harmless at first sight in code that handles the bit.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Mistake {
    Nothing,
    /// The test for a device that wants stable pages is the wrong way round: the page that it is writing is writable.
    StableTestInverted,
    /// Fork takes the bit from the child's entry, not from the parent's.
    ClearedInTheChild,
    /// Fork looks for pins before it takes the bit away.
    PinsFirst,
    /// A swap-in reads the bit before it has the table's lock, and then uses it.
    ReadBeforeTheLock,
}

/// The space that came first, and the one that it forks.
pub const PARENT: usize = 0;
pub const CHILD: usize = 1;
/// The page's place, and the words of it that are looked at.
const BASE: u64 = 0x4000_0000;
const DEVICES: usize = 16;

const LEAF: u64 = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 11 | 1 << 53 | UXN | ACCESSED;
/// A leaf's page is no other space's. A software bit.
const ALONE: u64 = 1 << 56;
/// An entry that is not valid and not empty: the page is out. There is one slot.
const OUT: u64 = 1 << 3;
/// [`ALONE`] of an entry that is out.
const OUT_ALONE: u64 = 1 << 2;
const FRAMES: usize = 8;
/// What the kernel's device says of itself.
const DEVICE: DeviceFlags = DeviceFlags::STABLE_WRITES;

/// A frame's users.
#[derive(Copy, Clone, Default)]
struct Frame {
    maps: u32,
    pins: u32,
}

/// What is counted, by short steps; nobody holds it across one of the machine's.
#[derive(Default)]
struct Counts {
    free: Vec<Pfn>,
    frames: [Frame; FRAMES],
    /// Entries that are out.
    users: u32,
    /// The frame of the slot's page, while any entry is out or the device is at it.
    cached: Option<Pfn>,
    /// What the device holds.
    stored: Option<Vec<u64>>,
    /// What the page held when the device was asked to write it, until it has done so.
    asked: Option<Vec<u64>>,
}

pub struct Kin {
    pub stage: Stage<K4>,
    mistake: Mistake,
    first: Pfn,
    tables: [EntryAt; 2],
    locks: [Mutex<()>; 2],
    counts: Mutex<Counts>,
}

/// A device's way to the page.
pub struct Pin(Pfn);

/// What goes wrong, in the words of whoever notices it.
pub type Seen = Result<(), String>;

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn frame_of(entry: u64) -> Pfn {
    Pfn::new((entry & 0xffff_ffff_f000) >> 12)
}

impl Kin {
    /// CPUs 0 and 1 run the parent, CPU 2 the child.
    pub fn new(mistake: Mistake, adversary: Adversary, seed: u64) -> Self {
        let emu = Emu::<K4>::new(EmuConfig { frames: 32, cpus: 3, adversary, seed, ..EmuConfig::default() });
        emu.set_mode(Mode::Record);
        let first = emu.frames().start();
        emu.zero(PfnRange::new(first, 8), Tags::Ignore);
        emu.fence_contents();
        let tables = [0, 4].map(|root| {
            for (depth, level) in (0..).zip([Level::L0, Level::L1, Level::L2]) {
                let index = (BASE >> level.shift::<K4>()) as usize & 511;
                let below = first.offset(root + depth + 1).base::<K4>().bytes();
                emu.store_entry(EntryAt { table: first.offset(root + depth), index }, below | 0b11);
            }
            EntryAt { table: first.offset(root + 3), index: 0 }
        });
        emu.fence_tables();
        for (cpu, who) in [(0, PARENT), (1, PARENT), (2, CHILD)] {
            emu.on_cpu(cpu, || emu.install_root(first.offset(4 * who as u64), Asid::new(who as u16 + 1)));
        }
        let free = (0..FRAMES as u64).map(|frame| first.offset(8 + frame)).collect();
        let counts = Mutex::new(Counts { free, ..Counts::default() });
        Self { stage: Stage::new(emu), mistake, first: first.offset(8), tables, locks: Default::default(), counts }
    }

    fn count<R>(&self, change: impl FnOnce(&mut Counts) -> R) -> R {
        change(&mut held(&self.counts))
    }

    fn frame(&self, frame: Pfn, change: impl FnOnce(&mut Frame)) {
        let index = (frame.number() - self.first.number()) as usize;
        self.count(|counts| change(&mut counts.frames[index]));
    }

    fn users_of(&self, frame: Pfn) -> Frame {
        self.count(|counts| counts.frames[(frame.number() - self.first.number()) as usize])
    }

    fn take(&self) -> Pfn {
        self.count(|counts| counts.free.pop()).expect("there are frames enough")
    }

    /// Frees a frame that has nobody any more.
    fn release(&self, frame: Pfn) {
        let Frame { maps, pins } = self.users_of(frame);
        self.count(|counts| {
            // A pin that came too late may find it free already.
            if maps + pins == 0 && counts.cached != Some(frame) && !counts.free.contains(&frame) {
                self.stage.emu.note_freed(PfnRange::new(frame, 1));
                counts.free.push(frame);
            }
        });
    }

    /// Lets go of the slot's frame, when no entry leads there and the device is done.
    fn tidy(&self) {
        let done =
            self.count(|counts| if counts.users > 0 || counts.asked.is_some() { None } else { counts.cached.take() });
        done.into_iter().for_each(|frame| self.release(frame));
    }

    fn flush(&self, who: usize) {
        self.stage.fence_tables();
        let scope = Scope::Pages(VpnRange::new(Vpn::new(BASE >> 12), 1));
        self.stage.invalidate(Asid::new(who as u16 + 1), scope, Cached::Leaf(Level::L3), Reach::Broadcast);
        self.stage.fence_invalidations();
    }

    /// A leaf in a place that is empty, or holds a swap entry.
    fn show(&self, who: usize, frame: Pfn, rights: u64) {
        self.frame(frame, |frame| frame.maps += 1);
        self.stage.fence_contents();
        self.stage.store_entry(self.tables[who], frame.base::<K4>().bytes() | LEAF | rights);
    }

    /// Another entry in the place of a leaf.
    fn change(&self, who: usize, entry: u64) {
        self.stage.exchange_entry(self.tables[who], entry);
        self.flush(who);
    }

    // ---- Faults. ----

    fn fault(&self, who: usize, fault: Fault) -> Result<(), ()> {
        let is_store = matches!(fault.access, Access::Store(_));
        let entry = self.stage.load_entry(self.tables[who]);
        match entry {
            0 => {
                let _locked = held(&self.locks[who]);
                // It may be on its way from one entry to another.
                if self.stage.load_entry(self.tables[who]) != 0 {
                    return Ok(());
                }
                let frame = self.take();
                self.stage.zero(PfnRange::new(frame, 1), Tags::Ignore);
                self.show(who, frame, ALONE);
            }
            _ if entry & VALID == 0 => self.swap_in(who, entry),
            _ if is_store => self.allow_stores(who),
            _ => {}
        }
        Ok(())
    }

    /// The slot's page in memory: as it is still, or read.
    fn cached(&self) -> Pfn {
        if let Some(frame) = self.count(|counts| counts.cached) {
            return frame;
        }
        let frame = self.take();
        let words = self.count(|counts| counts.stored.clone()).expect("the device has it");
        self.stage.emu.import_page(frame, &words);
        self.count(|counts| counts.cached = Some(frame));
        frame
    }

    fn swap_in(&self, who: usize, seen: u64) {
        // A device takes its time: nobody holds a table's lock for that.
        let frame = self.cached();
        self.stage.fence_contents();
        let locked = held(&self.locks[who]);
        let now = self.stage.load_entry(self.tables[who]);
        if now & VALID != 0 {
            drop(locked);
            return self.tidy();
        }
        let is_written = self.count(|counts| counts.asked.is_some());
        let is_alone = if self.mistake == Mistake::ReadBeforeTheLock { seen } else { now } & OUT_ALONE != 0;
        let wants_stable = DEVICE.contains(DeviceFlags::STABLE_WRITES);
        let waits = is_written && wants_stable != (self.mistake == Mistake::StableTestInverted);
        let rights = match (is_alone, waits) {
            (true, false) => ALONE,
            (true, true) => ALONE | READ_ONLY,
            (false, _) => READ_ONLY,
        };
        self.show(who, frame, rights);
        self.count(|counts| counts.users -= 1);
        drop(locked);
        self.tidy();
    }

    /// A store to a page that is read-only: now, by a copy, or when the device is done.
    fn allow_stores(&self, who: usize) {
        let locked = held(&self.locks[who]);
        let entry = self.stage.load_entry(self.tables[who]);
        if entry & (VALID | READ_ONLY) != VALID | READ_ONLY {
            return;
        }
        let frame = frame_of(entry);
        if entry & ALONE != 0 {
            let _ = self.end_write();
            return self.change(who, entry & !READ_ONLY);
        }
        if self.users_of(frame).maps == 1 && self.count(|counts| counts.cached) != Some(frame) {
            return self.change(who, entry & !READ_ONLY | ALONE);
        }
        let copy = self.take();
        self.stage.copy_page(frame, copy, Tags::Ignore);
        self.change(who, 0);
        self.show(who, copy, ALONE);
        self.frame(frame, |frame| frame.maps -= 1);
        drop(locked);
        self.release(frame);
    }

    // ---- What the kernel does. ----

    /// Takes the parent's page out of its table, and asks the device to write it.
    pub fn begin_page_out(&self) {
        let _locked = held(&self.locks[PARENT]);
        let entry = self.stage.load_entry(self.tables[PARENT]);
        let frame = frame_of(entry);
        self.change(PARENT, 0);
        if entry & ALONE == 0 || self.users_of(frame).pins > 0 {
            return self.stage.store_entry(self.tables[PARENT], entry);
        }
        let words = self.stage.emu.export_page(frame);
        self.count(|counts| {
            assert!(counts.users == 0 && counts.cached.is_none(), "there is one slot");
            (counts.users, counts.cached, counts.asked) = (1, Some(frame), Some(words));
        });
        self.frame(frame, |frame| frame.maps -= 1);
        self.stage.store_entry(self.tables[PARENT], OUT | OUT_ALONE);
    }

    /// The device writes what it was asked to, and looks whether that has changed since.
    pub fn end_write(&self) -> Seen {
        let Some((asked, frame)) = self.count(|counts| Some((counts.asked.take()?, counts.cached?))) else {
            return Ok(());
        };
        let words = self.stage.emu.export_page(frame);
        let changed = words != asked;
        self.count(|counts| counts.stored = Some(words));
        self.tidy();
        if changed { Err("the page changed while it was written".into()) } else { Ok(()) }
    }

    pub fn page_out(&self) {
        self.begin_page_out();
        assert_eq!(self.end_write(), Ok(()));
    }

    /// Gives the child what the parent has.
    pub fn fork(&self) {
        let _locked = (held(&self.locks[PARENT]), held(&self.locks[CHILD]));
        let entry = self.stage.load_entry(self.tables[PARENT]);
        if entry & VALID == 0 {
            self.count(|counts| counts.users += 1);
            if self.mistake != Mistake::ClearedInTheChild {
                self.stage.exchange_entry(self.tables[PARENT], entry & !OUT_ALONE);
            }
            return self.stage.store_entry(self.tables[CHILD], entry & !OUT_ALONE);
        }
        let frame = frame_of(entry);
        let is_pinned = || self.users_of(frame).pins > 0;
        let was_pinned = is_pinned();
        let shared = entry & !ALONE | READ_ONLY;
        if self.mistake != Mistake::ClearedInTheChild {
            self.change(PARENT, shared);
        }
        if if self.mistake == Mistake::PinsFirst { was_pinned } else { is_pinned() } {
            let copy = self.take();
            self.stage.copy_page(frame, copy, Tags::Ignore);
            self.change(PARENT, entry);
            return self.show(CHILD, copy, ALONE);
        }
        self.show(CHILD, frame, READ_ONLY);
    }

    /// Pins the parent's page, which is its alone from then on.
    pub fn pin(&self) -> Pin {
        loop {
            let entry = self.stage.load_entry(self.tables[PARENT]);
            match entry {
                _ if entry & VALID == 0 => self.swap_in(PARENT, entry),
                _ if entry & ALONE == 0 => self.allow_stores(PARENT),
                _ => {
                    let frame = frame_of(entry);
                    self.frame(frame, |frame| frame.pins += 1);
                    if self.stage.load_entry(self.tables[PARENT]) == entry {
                        return Pin(frame);
                    }
                    self.unpin(Pin(frame));
                }
            }
        }
    }

    pub fn unpin(&self, Pin(frame): Pin) {
        self.frame(frame, |frame| frame.pins -= 1);
        self.release(frame);
    }

    // ---- What is seen of it. ----

    fn access(&self, who: usize, access: Access) -> u64 {
        let cpu = [0, 2][who];
        let emu = &self.stage.emu;
        emu.on_cpu(cpu, || emu.user(cpu, |fault| self.fault(who, fault)).access(BASE, access)).expect("it is mapped")
    }

    pub fn store(&self, who: usize, value: u64) {
        self.access(who, Access::Store(value));
    }

    pub fn load(&self, who: usize) -> u64 {
        self.access(who, Access::Load)
    }

    /// Looks whether a program reads what it should.
    pub fn reads(&self, who: usize, expected: u64) -> Seen {
        let seen = self.load(who);
        let name = ["parent", "child"][who];
        if seen == expected { Ok(()) } else { Err(format!("the {name} reads {seen}, not {expected}")) }
    }

    /// Looks whether the pin is a way to what the parent sees: both ways.
    pub fn pin_is_the_parents(&self, Pin(frame): &Pin, expected: u64) -> Seen {
        let emu = &self.stage.emu;
        let seen = emu.device_load(*frame, 0);
        if seen != expected {
            return Err(format!("the pin sees {seen}, not {expected} as its owner stored"));
        }
        emu.device_store(*frame, DEVICES, expected + 1);
        let place = BASE + 8 * DEVICES as u64;
        let told = |who: usize| emu.user([0, 2][who], |fault| self.fault(who, fault)).access(place, Access::Load);
        match (told(PARENT), told(CHILD)) {
            (Ok(parents), _) if parents != expected + 1 => Err("the owner does not see what the device stored".into()),
            (_, Ok(0)) => Ok(()),
            _ => Err("the child sees what the device stored to its parent's page".into()),
        }
    }

    /// Looks at the entries as memory holds them: no page that may be stored to is another space's as well.
    pub fn sharing(&self) -> Seen {
        let [parents, childs] = self.tables.map(|at| self.stage.emu.peek(at));
        let may_store = |entry: u64| entry & (VALID | READ_ONLY) == VALID;
        let is_one = parents & childs & VALID != 0 && frame_of(parents) == frame_of(childs);
        if is_one && (may_store(parents) || may_store(childs)) {
            return Err("two spaces map one frame, and one may store to it".into());
        }
        Ok(())
    }

    /// The laws of the machine that were broken.
    pub fn broken(&self) -> Vec<Violation> {
        self.stage.emu.take_violations()
    }
}
