//! The root object: the machine, the frames, the swap areas, reclaim's state, and the counters.

use core::fmt;
use core::ptr::NonNull;

use crate::addr::{Pfn, PfnRange};
use crate::frame::slab::Slab;
use crate::frame::{
    FolioOrders, Frame, FrameRecord, Frames, Kind, MAP, MOST_FRAMES, Maps, OwnedFrame, Pressure, REFERENCE, Urgency,
};
use crate::machine::{Asid, MAX_CPUS, Machine, Tags};
use crate::node::{Asids, Node, NodeId};
use crate::reclaim::{Reclaim, Replacement};
use crate::stats::Stats;
use crate::swap::{AreaId, Swap, SwapArea, SwapOnError};
use crate::sync::{AtomicU32, Ordering};

/// The memory that a porter hands over.
pub struct Memory<'a> {
    /// The frames that the database describes: from the lowest free frame to the highest, holes included.
    pub span: PfnRange,
    /// One zeroed record for each frame of `span`.
    pub records: NonNull<FrameRecord>,
    /// The runs that the library may use; the rest of `span` stays reserved.
    pub free: &'a [PfnRange],
}

/// Why an [`Mm`] could not be made.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SetupError {
    /// The span has more than 2^32 - 4 frames.
    SpanTooLarge,
    /// The free runs hold too few frames to work with.
    TooFewFrames,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SpanTooLarge => "the span of frames is too large for 32-bit frame indices",
            Self::TooFewFrames => "there are too few free frames",
        })
    }
}

/// What there is, and what of it is free. Exact while nothing else runs.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Totals {
    /// Frames that the library manages.
    pub frames: u64,
    /// Of these, free ones. Those that more nodes of spaces took than there was room for at the start count as
    /// free: they stay, for the next spaces.
    pub frames_free: u64,
    /// Swap slots of all areas.
    pub slots: u64,
    /// Of these, free ones.
    pub slots_free: u64,
    /// Rooms for raw tag images.
    pub tag_rooms: u64,
    /// Of these, free ones.
    pub tag_rooms_free: u64,
}

/// The memory of one machine.
pub struct Mm<M: Machine> {
    machine: M,
    frames: Frames,
    nodes: Slab<Node>,
    pub(crate) asids: Asids,
    swap: Swap<M>,
    reclaim: Reclaim,
    stats: Stats,
    empty_root: Pfn,
    /// The node of the space that each CPU runs, plus one; 0 for none.
    running: [AtomicU32; MAX_CPUS],
    /// [`FolioOrders`].
    folio_orders: AtomicU32,
    /// Pins, of all folios: fork looks for them where there are any.
    pub(crate) pins: AtomicU32,
}

/// Fewest frames that make sense: watermarks, tables, and a program's first pages.
const FEWEST_FRAMES: u64 = 64;

impl<M: Machine> Mm<M> {
    /// Takes over `memory`, with the usual policy of replacement.
    ///
    /// # Errors
    /// [`SetupError`] when the memory cannot be managed; nothing was changed then.
    ///
    /// # Safety
    /// 1. `memory.records` points to as many zeroed records as the span has frames; they stay, and are the library's
    ///    alone.
    /// 2. The frames of `memory.free` are the library's alone, lie within the span, and do not overlap.
    /// 3. The machine answers for all of them.
    pub unsafe fn new(machine: M, memory: Memory<'_>) -> Result<Self, SetupError> {
        // SAFETY: the same promises.
        unsafe { Self::with_policy(machine, memory, Replacement::default()) }
    }

    /// Takes over `memory`, with a policy of replacement that the caller chooses.
    ///
    /// # Errors
    /// As [`Mm::new`].
    ///
    /// # Safety
    /// As [`Mm::new`].
    pub unsafe fn with_policy(machine: M, memory: Memory<'_>, replacement: Replacement) -> Result<Self, SetupError> {
        if memory.span.pages() > MOST_FRAMES {
            return Err(SetupError::SpanTooLarge);
        }
        let usable = memory.free.iter().map(|run| run.intersection(memory.span).pages()).sum::<u64>();
        if usable < FEWEST_FRAMES {
            return Err(SetupError::TooFewFrames);
        }
        // SAFETY: promise 1.
        let frames = unsafe { Frames::new(memory.span, memory.records) };
        for &run in memory.free {
            // SAFETY: promise 2.
            unsafe { frames.release(run) };
        }
        let zeroed = |kind| {
            let (frame, _) = frames.take(machine.cpu(), 0, kind, Urgency::Normal).ok_or(SetupError::TooFewFrames)?;
            machine.zero(PfnRange::new(frame.pfn(), 1), Tags::Ignore);
            Ok(frame)
        };
        let table = zeroed(Kind::Table)?;
        machine.fence_contents();
        let empty_root = table.pfn();
        table.publish();
        let directory = zeroed(Kind::Records)?;
        let nodes = Slab::new(directory.pfn());
        directory.publish();
        // The first frame of nodes lasts for the first 64 spaces (4 KiB / 64 B).
        nodes.grow(&machine, zeroed(Kind::Records)?).ok_or(SetupError::TooFewFrames)?;
        let reclaim = Reclaim::new(frames.managed_frames(), replacement);
        frames.set_watermarks(reclaim.watermarks().reserve, reclaim.watermarks().low);
        Ok(Self {
            machine,
            frames,
            nodes,
            asids: Asids::new(),
            swap: Swap::new(),
            reclaim,
            stats: Stats::default(),
            empty_root,
            running: [const { AtomicU32::new(0) }; MAX_CPUS],
            folio_orders: AtomicU32::new(FolioOrders::group::<M::Granule>().bits()),
            pins: AtomicU32::new(0),
        })
    }

    /// Adds a swap area.
    ///
    /// # Errors
    /// [`SwapOnError`]; nothing was changed then.
    ///
    /// # Safety
    /// `area.memory` is `area.bytes` bytes of mapped memory that stay, and are the library's alone, as long as the area
    /// is on: until [`Mm::swap_off`] returns them, or for the life of `self`.
    pub unsafe fn swap_on(&self, area: SwapArea<M>) -> Result<AreaId, SwapOnError> {
        // SAFETY: the same promise.
        unsafe { self.swap.add(&self.machine, area) }
    }

    /// Sets the sizes of folio that first touch makes from now on.
    pub fn set_folio_orders(&self, orders: FolioOrders) {
        self.folio_orders.store(orders.bits(), Ordering::Relaxed);
    }

    /// The sizes of folio that first touch makes.
    #[inline]
    pub fn folio_orders(&self) -> FolioOrders {
        FolioOrders::from_bits(self.folio_orders.load(Ordering::Relaxed))
    }

    /// The machine.
    #[inline]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The counters.
    #[inline]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What is free.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            frames: self.frames.managed_frames(),
            frames_free: self.frames.free_frames() + self.nodes.grown(),
            ..Totals::default()
        };
        for area in self.swap.areas() {
            let ((slots, slots_free), (rooms, rooms_free)) = (area.slots(), area.tag_rooms());
            totals.slots += slots as u64;
            totals.slots_free += slots_free as u64;
            totals.tag_rooms += rooms as u64;
            totals.tag_rooms_free += rooms_free as u64;
        }
        totals
    }

    #[inline]
    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    #[inline]
    pub(crate) fn swap(&self) -> &Swap<M> {
        &self.swap
    }

    #[inline]
    pub(crate) fn reclaim(&self) -> &Reclaim {
        &self.reclaim
    }

    /// Leaves the calling CPU without a space: what a kernel does before the CPU idles, or runs a thread of its own
    /// for long.
    pub fn deactivate(&self) {
        self.machine.install_root(self.empty_root, Asid::EMPTY);
        self.runs(None);
    }

    /// Makes the space of `node`, whose root table is `root`, that of the calling CPU.
    pub(crate) fn activate(&self, id: NodeId, root: Pfn) {
        let Some(node) = self.node(id) else { return };
        self.deactivate();
        let asid = self.asids.enter(&self.machine, node);
        self.runs(Some(id));
        // The identifier is visible before this CPU walks under it (see `node::asid`).
        self.machine.fence_tables();
        self.machine.install_root(root, asid);
    }

    /// Notes which space the calling CPU runs from now on.
    pub(crate) fn runs(&self, node: Option<NodeId>) {
        if let Some(running) = self.running.get(self.machine.cpu()) {
            running.store(node.map_or(0, |node| node.0 + 1), Ordering::Release);
        }
    }

    /// The CPUs that run the space of `node`.
    pub(crate) fn running(&self, node: NodeId) -> impl Iterator<Item = usize> {
        let runs = move |running: &AtomicU32| running.load(Ordering::Acquire) == node.0 + 1;
        self.running.iter().enumerate().filter(move |(_, running)| runs(running)).map(|(cpu, _)| cpu)
    }

    /// The node with number `id`.
    #[inline]
    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&self.machine, id.0)
    }

    /// The identifier that the space's translations carry now: see [`Node::asid`].
    #[inline]
    pub(crate) fn asid(&self, id: NodeId) -> Asid {
        self.node(id).map_or(Asid::EMPTY, Node::asid)
    }

    /// Takes a free node, dead.
    pub(crate) fn take_node(&self) -> Option<NodeId> {
        loop {
            if let Some(id) = self.nodes.take(&self.machine) {
                return Some(NodeId(id));
            }
            let frame = self.take_frame(Kind::Records)?;
            self.machine.zero(PfnRange::new(frame.pfn(), 1), Tags::Ignore);
            self.nodes.grow(&self.machine, frame)?;
        }
    }

    /// Gives a dead node back.
    pub(crate) fn give_node(&self, id: NodeId) {
        self.nodes.give(&self.machine, id.0);
    }

    /// Takes one frame, reclaiming when there is none. Called with no spinning lock held.
    ///
    /// `None` when nothing is left to reclaim. The caller has a clear error to report and everything as it was.
    #[inline]
    pub(crate) fn take_frame(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        self.take_frame_near(kind).or_else(|| self.take_frame_afar(kind))
    }

    /// Takes one frame that this CPU has at hand.
    #[inline]
    fn take_frame_near(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        crate::sync::assert_may_sleep();
        self.frames.take_near(self.machine.cpu(), kind)
    }

    /// Takes one frame out of the buddy lists, or by reclaim.
    #[cold]
    fn take_frame_afar(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        self.take_frame_there(kind).or_else(|| self.take_frame_when_short(kind))
    }

    /// Takes one frame out of the buddy lists, if that leaves the reserve.
    fn take_frame_there(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        let (frame, pressure) = self.frames.take(self.machine.cpu(), 0, kind, Urgency::Normal)?;
        if pressure == Pressure::Low {
            self.reclaim.hear_of_free_frames(&self.frames);
            let _ = self.wake_reclaimer();
        }
        Some(frame)
    }

    /// Takes one frame even from the reserve: for a page whose coming in frees a slot.
    #[inline]
    pub(crate) fn take_frame_urgently(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        self.take_frame_near(kind).or_else(|| self.take_frame_afar_urgently(kind))
    }

    #[cold]
    fn take_frame_afar_urgently(&self, kind: Kind) -> Option<OwnedFrame<'_>> {
        let reserve = || Some(self.frames.take(self.machine.cpu(), 0, kind, Urgency::Reserve)?.0);
        let there = self.take_frame_there(kind);
        // Where the last search was in vain, that is what the reserve is for.
        let there = there.or_else(|| if self.reclaim.is_vain() { reserve() } else { None });
        there.or_else(|| self.take_frame_when_short(kind)).or_else(reserve)
    }

    /// Takes the memory for a large folio, if there is plenty.
    #[inline]
    pub(crate) fn take_large(&self, order: u32) -> Option<OwnedFrame<'_>> {
        self.frames.take_large(order)
    }

    /// Gives back one reference to a folio, and frees it if that was the last.
    pub(crate) fn release_folio(&self, folio: Frame) {
        self.release([(folio, REFERENCE)].into_iter());
    }

    /// Gives back the count of one entry that is gone, and frees the folio if nobody holds it any more. Only that is
    /// for the reclaim list's lock: who leaves others behind has nothing to take out of the list.
    #[inline]
    pub(crate) fn release_map(&self, folio: Frame) {
        if !self.frames.record(folio).count.put_unless_last(MAP) {
            self.release_maps(&[Maps { folio, maps: 1 }]);
        }
    }

    /// Gives back the counts of entries that are gone, and frees the folios that nobody holds any more.
    pub(crate) fn release_maps(&self, folios: &[Maps]) {
        let weights = folios.iter().map(|&Maps { folio, maps }| (folio, u64::from(maps) * MAP));
        self.release(weights);
    }
}
