//! A small kernel written against the machine's seam, right but for at most one mistake.
//!
//! One space, one leaf table, pages of 4 KiB, all dirty. It is what a first kernel of one's own looks like, and each
//! mistake is one that a kernel in use has made.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use ebbtide::addr::{Pfn, PfnRange, VirtAddr, Vpn, VpnRange};
use ebbtide::granule::{K4, Level};
use ebbtide::machine::emu::{Access, Emu, EmuConfig, Fault, TagCheck, TestDevice};
use ebbtide::machine::{Asid, Cached, EntryAt, Machine, Reach, Scope, Tags};
use ebbtide::space::Protection;
use ebbtide::swap::{DeviceFlags, Progress, SwapDevice};

use super::script::{BASE, Kernel, PAGE, ROOMS, SLOTS, at};

/// What [`Small`] does wrong.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Mistake {
    Nothing,
    NoFence,
    WrongOperand,
    LocalFlush,
    LiveRewrite,
    FreeFirst,
    CopyFirst,
    CopyUnflushed,
    ShowFirst,
    SaveMayFail,
    TagsStayInSlot,
    WriteTooLate,
    ZeroIsBlock,
    NoneForgets,
    NoReserve,
    NoContentsFence,
    NoSync,
    OldData,
    OldTags,
    TagsAsTheyAre,
    BackClean,
}

const LEAF: u64 = 0b11 | 0b11 << 8 | 1 << 11 | 1 << 53;
const ACCESSED: u64 = 1 << 10;
const EL0: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const TAGGED: u64 = 1 << 2;
const UXN: u64 = 1 << 54;
const ASID: Asid = Asid::new(1);
/// Frames that the small kernel has for pages.
const FRAMES: u64 = 24;

/// Where a page of the small kernel is.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Where {
    Nowhere,
    Here(Pfn),
    Out(u32),
}

pub struct Small {
    pub emu: Emu<K4>,
    device: TestDevice,
    mistake: Mistake,
    leaf_table: Pfn,
    /// The entry of the middle level that leads to the leaf table.
    above: EntryAt,
    frames: RefCell<Vec<Pfn>>,
    slots: RefCell<Vec<u32>>,
    rooms: Cell<u32>,
    tags: RefCell<HashMap<u32, [u64; 16]>>,
    pages: RefCell<HashMap<u64, (Protection, Where)>>,
}

impl Small {
    pub fn new(mistake: Mistake) -> Self {
        let emu = Emu::<K4>::new(EmuConfig { frames: 64, cpus: 2, ..EmuConfig::default() });
        emu.set_tag_check(0, TagCheck::Sync);
        let first = emu.frames().start();
        let tables = PfnRange::new(first, 4);
        emu.zero(tables, Tags::Ignore);
        emu.fence_contents();
        let mut above = EntryAt { table: first, index: 0 };
        for (depth, level) in [Level::L0, Level::L1, Level::L2].into_iter().enumerate() {
            let index = (BASE >> level.shift::<K4>()) as usize & 511;
            above = EntryAt { table: first.offset(depth as u64), index };
            emu.store_entry(above, first.offset(depth as u64 + 1).base::<K4>().bytes() | 0b11);
        }
        emu.fence_tables();
        for cpu in 0..2 {
            emu.on_cpu(cpu, || emu.install_root(first, ASID));
        }
        let frames = (0..FRAMES).map(|frame| first.offset(8 + frame)).collect();
        Self {
            emu,
            device: TestDevice::new(SLOTS, DeviceFlags::SYNCHRONOUS),
            mistake,
            leaf_table: first.offset(3),
            above,
            frames: RefCell::new(frames),
            slots: RefCell::new((0..SLOTS).collect()),
            rooms: Cell::new(ROOMS),
            tags: RefCell::default(),
            pages: RefCell::default(),
        }
    }

    /// What is missing when the program has unmapped everything.
    pub fn missing(&self) -> Option<String> {
        let (frames, slots) = (self.frames.borrow().len() as u64, self.slots.borrow().len() as u32);
        let whole = (frames, slots, self.rooms.get()) == (FRAMES, SLOTS, ROOMS);
        (!whole).then(|| format!("leaked: {frames} frames, {slots} slots, {} rooms", self.rooms.get()))
    }

    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn entry(&self, page: u64) -> EntryAt {
        EntryAt { table: self.leaf_table, index: page as usize }
    }

    /// The last frame is for a page that is out.
    fn take(&self, for_one_that_is_out: bool) -> Option<Pfn> {
        let mut frames = self.frames.borrow_mut();
        let reserve = usize::from(!for_one_that_is_out && !self.is(Mistake::NoReserve));
        if frames.len() > reserve { frames.pop() } else { None }
    }

    fn flush(&self, page: u64) {
        let vpn = VirtAddr::new(at(page)).vpn::<K4>();
        let vpn = if self.is(Mistake::WrongOperand) { Vpn::new(vpn.number() << 12) } else { vpn };
        let reach = if self.is(Mistake::LocalFlush) { Reach::Local } else { Reach::Broadcast };
        if !self.is(Mistake::NoFence) {
            self.emu.fence_tables();
        }
        self.emu.invalidate(ASID, Scope::Pages(VpnRange::new(vpn, 1)), Cached::Leaf(Level::L3), reach);
        self.emu.fence_invalidations();
    }

    fn show(&self, page: u64, frame: Pfn, protection: Protection) {
        let mut raw = frame.base::<K4>().bytes() | LEAF | ACCESSED | UXN;
        if !protection.contains(Protection::WRITE) {
            raw |= READ_ONLY;
        }
        if !(protection - Protection::TAGGED).is_empty() {
            raw |= EL0;
        }
        if protection.contains(Protection::TAGGED) {
            raw |= TAGGED;
        }
        if !self.is(Mistake::NoContentsFence) {
            self.emu.fence_contents();
        }
        self.emu.store_entry(self.entry(page), raw);
    }

    /// Takes the entry away, on every CPU.
    fn hide(&self, page: u64) {
        self.emu.exchange_entry(self.entry(page), 0);
        self.flush(page);
    }

    fn free(&self, frame: Pfn) {
        if !matches!(self.mistake, Mistake::OldData | Mistake::ShowFirst) {
            self.emu.note_freed(PfnRange::new(frame, 1));
        }
        self.frames.borrow_mut().push(frame);
    }

    fn free_slot(&self, slot: u32) {
        if !self.is(Mistake::TagsStayInSlot) {
            self.forget_tags(slot);
        }
        self.slots.borrow_mut().push(slot);
    }

    fn forget_tags(&self, slot: u32) {
        if self.tags.borrow_mut().remove(&slot).is_some() {
            self.rooms.set(self.rooms.get() + 1);
        }
    }

    fn fresh(&self, protection: Protection) -> Option<Pfn> {
        let frame = self.take(false)?;
        let tags = if protection.contains(Protection::TAGGED) && !self.is(Mistake::OldTags) {
            Tags::Include
        } else {
            Tags::Ignore
        };
        if !self.is(Mistake::OldData) {
            self.emu.zero(PfnRange::new(frame, 1), tags);
        }
        Some(frame)
    }

    fn read_in(&self, frame: Pfn, slot: u32, protection: Protection) -> Option<()> {
        let Progress::Done = self.device.read(&self.emu, slot, PfnRange::new(frame, 1)).ok()? else { return None };
        match self.tags.borrow().get(&slot) {
            Some(tags) => self.emu.store_tags(frame, tags),
            None if protection.contains(Protection::TAGGED) => self.emu.zero_tags(frame),
            None => {}
        }
        Some(())
    }

    fn fault(&self, fault: Fault) -> Option<()> {
        let page = (fault.address.bytes() - BASE) / PAGE;
        let (protection, place) = self.pages.borrow().get(&page).copied()?;
        let wanted = match fault.access {
            Access::Store(_) | Access::StoreTag(_) => Protection::WRITE,
            Access::Fetch => Protection::EXEC,
            _ => Protection::READ,
        };
        if !protection.contains(wanted) {
            return None;
        }
        // A descriptor of the level above without bit 1 is a block, which maps the page; unless it is zero.
        if self.is(Mistake::ZeroIsBlock) && self.emu.load_entry(self.entry(page)) & 2 == 0 {
            return Some(());
        }
        assert_ne!(self.emu.load_entry(self.above), 0);
        match place {
            Where::Nowhere => {
                let frame = self.fresh(protection)?;
                self.pages.borrow_mut().insert(page, (protection, Where::Here(frame)));
                self.show(page, frame, protection);
            }
            Where::Out(slot) => {
                let frame = self.take(true)?;
                if self.is(Mistake::ShowFirst) {
                    self.show(page, frame, protection);
                    self.read_in(frame, slot, protection)?;
                } else {
                    self.read_in(frame, slot, protection)?;
                    self.show(page, frame, protection);
                }
                self.pages.borrow_mut().insert(page, (protection, Where::Here(frame)));
                self.free_slot(slot);
            }
            Where::Here(frame) if fault.access == Access::Fetch => {
                if !self.is(Mistake::NoSync) {
                    self.emu.sync_code(PfnRange::new(frame, 1));
                }
                let at = self.entry(page);
                self.emu.exchange_entry(at, self.emu.load_entry(at) & !UXN);
                self.flush(page);
            }
            Where::Here(_) => return None,
        }
        Some(())
    }
}

impl Kernel for Small {
    fn emu(&self) -> &Emu<K4> {
        &self.emu
    }

    fn access(&self, cpu: usize, pointer: u64, access: Access) -> Option<u64> {
        self.emu.user(cpu, |fault| self.fault(fault).ok_or(())).access(pointer, access).ok()
    }

    fn map(&self, page: u64, protection: Protection) {
        let old = self.pages.borrow().get(&page).copied();
        if let (true, Some((_, Where::Here(before)))) = (self.is(Mistake::LiveRewrite), old)
            && let Some(frame) = self.fresh(protection)
        {
            // In one step, as if nobody had cached the old entry.
            self.emu.fence_contents();
            let raw = frame.base::<K4>().bytes() | LEAF | ACCESSED | UXN | EL0;
            self.emu.exchange_entry(self.entry(page), raw);
            self.flush(page);
            self.free(before);
            self.pages.borrow_mut().insert(page, (protection, Where::Here(frame)));
            return;
        }
        self.unmap(page);
        self.pages.borrow_mut().insert(page, (protection, Where::Nowhere));
    }

    fn unmap(&self, page: u64) {
        match self.pages.borrow_mut().remove(&page) {
            Some((_, Where::Here(frame))) if self.is(Mistake::FreeFirst) => {
                self.emu.exchange_entry(self.entry(page), 0);
                self.free(frame);
                self.flush(page);
            }
            Some((_, Where::Here(frame))) => {
                self.hide(page);
                self.free(frame);
            }
            Some((_, Where::Out(slot))) => self.free_slot(slot),
            _ => {}
        }
    }

    fn page_out(&self, page: u64) {
        let Some((protection, Where::Here(frame))) = self.pages.borrow().get(&page).copied() else { return };
        let has_tags = protection.contains(Protection::TAGGED);
        // All that can fail comes first.
        if has_tags && self.rooms.get() == 0 && !self.is(Mistake::SaveMayFail) {
            return;
        }
        let Some(slot) = self.slots.borrow_mut().pop() else { return };
        let run = PfnRange::new(frame, 1);
        let write = || assert_eq!(self.device.write(&self.emu, run, slot), Ok(Progress::Done));
        match self.mistake {
            Mistake::CopyFirst => {
                write();
                self.hide(page);
            }
            Mistake::CopyUnflushed => {
                self.emu.exchange_entry(self.entry(page), 0);
                write();
                self.flush(page);
            }
            Mistake::WriteTooLate => self.hide(page),
            // Nothing was stored since it came back: what the device had still has it.
            Mistake::BackClean if self.device.page(slot).is_some() => self.hide(page),
            _ => {
                self.hide(page);
                write();
            }
        }
        if has_tags && self.rooms.get() > 0 {
            let mut words = std::mem::MaybeUninit::uninit();
            let words = *self.emu.load_tags(frame, &mut words);
            self.forget_tags(slot);
            self.tags.borrow_mut().insert(slot, words);
            self.rooms.set(self.rooms.get() - 1);
        }
        if self.is(Mistake::WriteTooLate) && self.device.page(slot).is_none() {
            write();
        }
        self.pages.borrow_mut().insert(page, (protection, Where::Out(slot)));
        self.free(frame);
    }

    fn protect(&self, page: u64, protection: Protection) {
        let Some((_, place)) = self.pages.borrow_mut().insert(page, (protection, Where::Nowhere)) else { return };
        match place {
            Where::Here(_) if self.is(Mistake::NoneForgets) && protection.is_empty() => return self.hide(page),
            Where::Here(frame) => {
                self.hide(page);
                if protection.contains(Protection::TAGGED) && !self.is(Mistake::TagsAsTheyAre) {
                    self.emu.zero_tags(frame);
                }
                self.show(page, frame, protection);
            }
            Where::Nowhere | Where::Out(_) => {}
        }
        self.pages.borrow_mut().insert(page, (protection, place));
    }
}
