//! The rig of the host tests: an emulated machine, the library on it, a swap device, and programs.

// Each test file is a program of its own, and none uses all of this.
#![allow(dead_code)]

pub mod entries;
#[cfg(feature = "shuttle")]
pub mod explore;
pub mod folding;
pub mod kin;
#[cfg(feature = "shuttle")]
pub mod meeting;
pub mod op;
pub mod script;
pub mod small;
pub mod stage;
#[cfg(feature = "shuttle")]
pub mod walker;
pub mod world;

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use ebbtide::addr::{Pfn, VirtAddr};
use ebbtide::frame::{FolioOrders, FrameRecord};
use ebbtide::granule::{Granule, K4};
use ebbtide::machine::Features;
use ebbtide::machine::emu::{self, Adversary, Death, Emu, EmuConfig, TagCheck, TestDevice};
use ebbtide::reclaim::Replacement;
use ebbtide::space::{Access, Fault, FaultError, Growth, MapError, MapRequest, Placement, Protection, SpaceError};
use ebbtide::swap::{AreaId, DeviceFlags, SwapArea, SwapOnError, memory_needed};
use ebbtide::{Memory, Mm, Space, Totals};

pub use stage::{Port, Stage};

/// Loads and stores.
pub const RW: Protection = Protection::READ.union(Protection::WRITE);
/// Loads, stores and allocation tags.
pub const RWT: Protection = RW.union(Protection::TAGGED);
/// All that may be done.
pub const RWXT: Protection = RWT.union(Protection::EXEC);

/// The frames that a test machine has beside its programs': the empty root, and the nodes.
pub const OWN_FRAMES: u64 = 3;

/// At once, late, and checked or not.
pub const DEVICES: [DeviceFlags; 4] = [
    DeviceFlags::SYNCHRONOUS,
    DeviceFlags::STABLE_WRITES,
    DeviceFlags::SYNCHRONOUS.union(DeviceFlags::CHECKED),
    DeviceFlags::STABLE_WRITES.union(DeviceFlags::CHECKED),
];

/// How a program's access ends, if not well.
pub type Ended = Death<FaultError>;

/// The machine and the swap area to build.
#[derive(Copy, Clone, Debug)]
pub struct Setup {
    pub frames: u64,
    pub slots: u32,
    pub tag_rooms: u32,
    pub cpus: usize,
    pub seed: u64,
    pub features: Features,
    pub adversary: Adversary,
    pub asid_bits: u32,
    /// Bits of a program's addresses. With few there are fewer tables to make and to search.
    pub va_bits: u32,
    /// `None`: single pages and the group's order.
    pub orders: Option<FolioOrders>,
    /// What the swap device says of itself.
    pub device: DeviceFlags,
    pub replacement: Replacement,
}

impl Default for Setup {
    /// One quiet CPU with everything, little memory, much swap.
    fn default() -> Self {
        Self {
            frames: 128,
            slots: 256,
            tag_rooms: 256,
            cpus: 1,
            seed: 1,
            features: Features::all(),
            adversary: Adversary::Quiet,
            asid_bits: 8,
            va_bits: 48,
            orders: None,
            device: DeviceFlags::SYNCHRONOUS,
            replacement: Replacement::default(),
        }
    }
}

/// See the module's head.
pub struct Rig<G: Granule = K4> {
    pub mm: Mm<Stage<G>>,
    pub device: Arc<TestDevice>,
    /// The area on it, if there was to be one.
    pub area: Option<AreaId>,
    ports: Mutex<Vec<&'static Port>>,
    /// What there was before anybody used it.
    pub fresh: Totals,
    /// What `mm` was lent. Goes after it.
    lent: Mutex<Vec<Lent>>,
}

impl<G: Granule> Drop for Rig<G> {
    fn drop(&mut self) {
        self.ports.get_mut().unwrap().iter().for_each(|port| port.plug(None));
    }
}

impl<G: Granule> Rig<G> {
    pub fn new(setup: Setup) -> Self {
        let emu = Emu::<G>::new(EmuConfig {
            frames: setup.frames,
            first_frame: Pfn::new(0x4_0000),
            cpus: setup.cpus,
            seed: setup.seed,
            features: setup.features,
            adversary: setup.adversary,
            asid_bits: setup.asid_bits,
            va_bits: setup.va_bits,
            ..EmuConfig::default()
        });
        (0..setup.cpus).for_each(|cpu| emu.set_tag_check(cpu, TagCheck::Sync));
        let span = emu.frames();
        let records = Lent::new(setup.frames as usize * size_of::<FrameRecord>());
        let memory = Memory { span, records: records.first().cast(), free: &[span] };
        // SAFETY: the records are zeroed and stay longer than `mm`; all of the emulator's frames are the library's.
        let mm =
            unsafe { Mm::with_policy(Stage::new(emu), memory, setup.replacement) }.expect("the memory is large enough");
        for cpu in 0..setup.cpus {
            mm.machine().emu.on_cpu(cpu, || mm.deactivate());
        }
        mm.set_folio_orders(setup.orders.unwrap_or(FolioOrders::group::<G>()));
        let device = Arc::new(TestDevice::new(setup.slots, setup.device));
        let (ports, lent) = (Mutex::default(), Mutex::new(vec![records]));
        let mut rig = Self { fresh: mm.totals(), mm, device: Arc::clone(&device), area: None, ports, lent };
        if setup.slots > 0 {
            rig.area = Some(rig.swap_on(device, setup.tag_rooms, 0).expect("the area is in order"));
        }
        rig.fresh = rig.mm.totals();
        rig
    }

    /// Adds a swap area on a device.
    pub fn swap_on(&self, device: Arc<TestDevice>, tag_rooms: u32, priority: i16) -> Result<AreaId, SwapOnError> {
        let slots = device.slots();
        let port: &'static Port = Box::leak(Box::default());
        port.plug(Some(device));
        let bytes = memory_needed::<G>(slots, tag_rooms);
        let lent = Lent::new(bytes);
        let memory = lent.first();
        // Dirty, as the library asks for no more than memory.
        // SAFETY: `bytes` bytes were just allocated.
        unsafe { memory.write_bytes(0xa5, bytes) };
        self.ports.lock().unwrap().push(port);
        self.lent.lock().unwrap().push(lent);
        // SAFETY: the memory stays longer than `mm`.
        unsafe { self.mm.swap_on(SwapArea { device: port, slots, tag_rooms, memory, bytes, priority }) }
    }

    pub fn emu(&self) -> &Emu<G> {
        &self.mm.machine().emu
    }

    /// A space, installed on every CPU.
    pub fn space(&self) -> Space<Stage<G>> {
        let space = self.try_space().expect("there is memory for a space");
        (0..self.emu().config().cpus).for_each(|cpu| self.activate(cpu, &space));
        space
    }

    pub fn try_space(&self) -> Result<Space<Stage<G>>, SpaceError> {
        Space::new(&self.mm)
    }

    pub fn activate(&self, cpu: usize, space: &Space<Stage<G>>) {
        self.emu().on_cpu(cpu, || space.activate(&self.mm));
    }

    /// Leaves a CPU with no space.
    pub fn idle(&self, cpu: usize) {
        let mm = &self.mm;
        self.emu().on_cpu(cpu, || mm.deactivate());
    }

    /// Ends a space, once no CPU runs in it.
    pub fn destroy(&self, space: Space<Stage<G>>) {
        (0..self.emu().config().cpus).for_each(|cpu| self.idle(cpu));
        assert!(space.destroy(&self.mm).is_ok(), "no CPU runs it");
    }

    /// Everything is back.
    pub fn check_nothing_leaked(&self) {
        assert_eq!(self.mm.totals(), self.fresh, "frames, slots or tag rooms leaked");
    }

    /// Ends the only space, and checks that everything is back.
    pub fn finish(&self, space: Space<Stage<G>>) {
        self.destroy(space);
        self.check_nothing_leaked();
    }

    /// Makes a region at `start`, of `pages` pages.
    pub fn try_map(
        &self,
        space: &Space<Stage<G>>,
        start: u64,
        pages: u64,
        protection: Protection,
    ) -> Result<u64, MapError> {
        let request = MapRequest {
            placement: Placement::Fixed(VirtAddr::new(start)),
            bytes: pages << G::SHIFT,
            protection,
            growth: Growth::Fixed,
        };
        space.map(&self.mm, request).map(VirtAddr::bytes)
    }

    pub fn map(&self, space: &Space<Stage<G>>, start: u64, pages: u64, protection: Protection) {
        assert_eq!(self.try_map(space, start, pages, protection), Ok(start));
    }

    /// The program of `space` on CPU 0.
    pub fn program<'a>(&'a self, space: &'a Space<Stage<G>>) -> Program<'a, G> {
        self.program_on(0, space)
    }

    /// The program of `space` on a CPU where it is installed.
    pub fn program_on<'a>(&'a self, cpu: usize, space: &'a Space<Stage<G>>) -> Program<'a, G> {
        Program { rig: self, cpu, space }
    }

    /// The value of a counter.
    pub fn count(&self, name: &str) -> u64 {
        let mut found = None;
        self.mm.stats().for_each(|counter, value| {
            if counter == name {
                found = Some(value);
            }
        });
        found.unwrap_or_else(|| panic!("no counter {name}"))
    }
}

/// Zeroed memory, aligned for any record.
struct Lent(NonNull<[u64]>);

// SAFETY: the memory is this value's own; whom it is lent to is another matter.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    fn new(bytes: usize) -> Self {
        Self(NonNull::from(Box::leak(vec![0; bytes.div_ceil(8)].into_boxed_slice())))
    }

    fn first(&self) -> NonNull<u8> {
        self.0.cast()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: `new` leaked the box, and who borrowed it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// What the exception vector makes of an emulated fault.
pub fn fault_of(fault: emu::Fault) -> Fault {
    let access = match fault.access {
        emu::Access::Load | emu::Access::LoadTag => Access::Read,
        emu::Access::Store(_) | emu::Access::StoreTag(_) => Access::Write,
        emu::Access::Fetch => Access::Execute,
    };
    Fault { address: fault.address, access }
}

/// A program on one CPU, whose faults go to the library.
#[derive(Copy, Clone)]
pub struct Program<'a, G: Granule> {
    rig: &'a Rig<G>,
    cpu: usize,
    space: &'a Space<Stage<G>>,
}

impl<G: Granule> Program<'_, G> {
    pub fn access(&self, pointer: u64, access: emu::Access) -> Result<u64, Ended> {
        let (mm, space) = (&self.rig.mm, self.space);
        self.rig.emu().user(self.cpu, |fault| space.handle_fault(mm, fault_of(fault))).access(pointer, access)
    }

    pub fn load(&self, pointer: u64) -> Result<u64, Ended> {
        self.access(pointer, emu::Access::Load)
    }

    pub fn store(&self, pointer: u64, value: u64) -> Result<(), Ended> {
        self.access(pointer, emu::Access::Store(value)).map(drop)
    }

    pub fn ldg(&self, pointer: u64) -> Result<u8, Ended> {
        self.access(pointer, emu::Access::LoadTag).map(|tag| tag as u8)
    }

    pub fn stg(&self, pointer: u64, tag: u8) -> Result<(), Ended> {
        self.access(pointer, emu::Access::StoreTag(tag)).map(drop)
    }

    pub fn fetch(&self, pointer: u64) -> Result<u64, Ended> {
        self.access(pointer, emu::Access::Fetch)
    }
}

/// Why an access was refused.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, Ended>) -> FaultError {
    match result {
        Err(Death::Refused(_, error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

/// A pointer that carries `tag`.
pub const fn tagged(address: u64, tag: u8) -> u64 {
    address | (tag as u64) << 56
}

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}
