//! Lives: the library on the machine, recorded.
//!
//! All lives share one [`Mm`] over the lower half of the scratch frames; the upper half are the pages of a swap device.
//! Each has a space of its own, and is lived twice: with large folios, and with single pages alone. What a page should
//! hold follows from its number, so that nothing has to be remembered. The first life that fails is the last.

use core::ptr::NonNull;

use super::{Failure, Outcome, Program, Scratch, Touch, demand, expect, slots_of};
use crate::addr::{Pfn, PfnRange, VirtAddr};
use crate::frame::{FolioOrders, FrameRecord};
use crate::granule::{Granule, TAG_GRANULE_BYTES};
use crate::machine::recorder::{Log, Recorder};
use crate::machine::{Features, Machine, Tags};
use crate::reclaim::Advice;
use crate::space::{Access, Fault, FaultError, Growth, MapRequest, Placement, Protection, Space};
use crate::swap::{self, DeviceError, DeviceFlags, Progress, SwapArea, SwapDevice};
use crate::{Memory, Mm, Totals};

const READ: Protection = Protection::READ;
const RW: Protection = READ.union(Protection::WRITE);
const RWT: Protection = RW.union(Protection::TAGGED);

/// Where the region of a life starts.
const START: u64 = 1 << 32;

/// Faults for one access: the page comes, gets its flags, and once more if its translation was stale.
const RETRIES: u32 = 8;

/// Swap slots in frames; slot `i` is frame `i`.
pub(super) struct Ram(PfnRange);

impl Ram {
    fn frame(&self, slot: u32, run: PfnRange) -> Result<Pfn, DeviceError> {
        let first = self.0.start().offset(slot.into());
        if self.0.covers(PfnRange::new(first, run.pages())) { Ok(first) } else { Err(DeviceError) }
    }
}

impl<M: Machine> SwapDevice<M> for Ram {
    fn flags(&self) -> DeviceFlags {
        DeviceFlags::SYNCHRONOUS
    }

    fn write(&self, machine: &M, frames: PfnRange, slot: u32) -> Result<Progress, DeviceError> {
        let to = self.frame(slot, frames)?;
        (0..frames.pages()).for_each(|page| {
            machine.copy_page(frames.start().offset(page), to.offset(page), Tags::Ignore);
        });
        Ok(Progress::Done)
    }

    fn read(&self, machine: &M, slot: u32, frames: PfnRange) -> Result<Progress, DeviceError> {
        let from = self.frame(slot, frames)?;
        (0..frames.pages()).for_each(|page| {
            machine.copy_page(from.offset(page), frames.start().offset(page), Tags::Ignore);
        });
        Ok(Progress::Done)
    }
}

type Life<'a, M> = fn(&World<'a, M>, &Space<Recorder<M>>) -> Outcome;

/// Lives all lives.
///
/// # Safety
/// As for [`run`](super::run).
pub(super) unsafe fn check<M: Machine>(
    machine: M,
    scratch: Scratch,
    program: &dyn Program<M>,
    tell: &mut dyn FnMut(&'static str, Outcome),
) {
    let log = scratch.log;
    // SAFETY: the caller's promises.
    let mm = match unsafe { start(machine, scratch) } {
        Ok(mm) => mm,
        Err(failure) => return tell("start", Err(failure)),
    };
    let world = World { mm, log, program };
    let lives: [(&'static str, Life<'_, M>); 8] = [
        ("life: first touch", World::first_touch),
        ("life: protection", World::protection),
        ("life: code", World::code),
        ("life: swap", World::swap),
        ("life: tags", World::tags),
        ("life: advice", World::advice),
        ("life: parts of groups", World::parts),
        ("life: more than memory holds", World::pressure),
    ];
    mm.deactivate();
    let fresh = mm.totals();
    for (name, life) in lives {
        let both = [FolioOrders::group::<M::Granule>(), FolioOrders::SINGLE];
        let lived = both.into_iter().try_for_each(|orders| world.live(orders, fresh, life));
        tell(name, lived);
        if lived.is_err() {
            // Its tables and pages may be in any state: nothing more is done with them.
            return mm.deactivate();
        }
    }
    tell("life: many spaces", world.many(fresh));
    mm.deactivate();
}

/// Makes the library's memory of the scratch.
///
/// # Safety
/// As for [`run`](super::run).
unsafe fn start<M: Machine>(machine: M, scratch: Scratch) -> Result<&'static Mm<Recorder<M>>, Failure> {
    let Scratch { frames, memory, bytes: _, log } = scratch;
    let slots = slots_of(frames.pages());
    let free = PfnRange::new(frames.start(), frames.pages() - u64::from(slots));
    let records = frames.pages() as usize * size_of::<FrameRecord>();
    // SAFETY: the memory is page aligned and as long as `memory_needed` says: the library, which is large for a
    // kernel's stack, the device, the frame records, the swap records. Each is a multiple of 8 bytes long, and no more
    // aligned than that but for the first. It is nobody else's.
    let (place, device, records, area) = unsafe {
        let device: NonNull<Ram> = memory.add(size_of::<Mm<Recorder<M>>>()).cast();
        device.write(Ram(PfnRange::new(free.end(), slots.into())));
        let first: NonNull<u8> = device.add(1).cast();
        first.write_bytes(0, records);
        (memory.cast::<Mm<Recorder<M>>>(), device.as_ref(), first.cast(), first.add(records))
    };
    // SAFETY: zeroed records; the frames are scratch, and the machine answers for them. Both outlast the `Mm`.
    let mm = unsafe { Mm::new(Recorder::new(machine, log), Memory { span: free, records, free: &[free] }) };
    let Ok(mm) = mm else {
        return Err(Failure::Refused { what: "the library's start over frames", at: free.start().number() });
    };
    // SAFETY: the first part of the memory, which nobody writes from here on.
    let mm = unsafe {
        place.write(mm);
        place.as_ref()
    };
    let bytes = swap::memory_needed::<M::Granule>(slots, slots);
    // SAFETY: the rest of the memory, which outlasts the `Mm`.
    let on = unsafe { mm.swap_on(SwapArea { device, slots, tag_rooms: slots, memory: area, bytes, priority: 0 }) };
    demand(on.ok().map(drop), "a swap area with slots", slots.into())?;
    Ok(mm)
}

const _: () = assert!(align_of::<Ram>() <= 8 && align_of::<FrameRecord>() <= 8);

struct World<'a, M: Machine> {
    mm: &'a Mm<Recorder<M>>,
    log: &'static Log,
    program: &'a dyn Program<M>,
}

impl<'a, M: Machine> World<'a, M> {
    const PAGE: u64 = M::Granule::SIZE as u64;
    const GROUP: u64 = M::Granule::GROUP_PAGES as u64;
    /// Pages of a region: some groups, and a rest.
    const PAGES: u64 = 3 * Self::GROUP + 5;

    fn has_tags(&self) -> bool {
        self.mm.machine().features().contains(Features::MTE)
    }

    /// One life in a space of its own, all of which is given back.
    fn live(&self, orders: FolioOrders, fresh: Totals, life: Life<'a, M>) -> Outcome {
        self.mm.set_folio_orders(orders);
        let broken = self.log.violations();
        let space = demand_some(Space::new(self.mm).ok(), "a new space", 0)?;
        space.activate(self.mm);
        let lived = life(self, &space);
        self.ordered(broken)?;
        lived?;
        demand(space.destroy(self.mm).ok(), "the end of a space that this CPU alone runs", 0)?;
        self.mm.deactivate();
        self.ordered(broken)?;
        self.balanced(fresh)
    }

    /// No rule of order was broken, and none could not be checked.
    fn ordered(&self, broken: u64) -> Outcome {
        if self.log.violations() != broken
            && let Some((rule, operation)) = self.log.take_first()
        {
            return Err(Failure::Order { rule, operation });
        }
        expect("rules of order broken", 0, self.log.violations(), broken)?;
        expect("operations that the recorder could not follow", 0, self.log.unseen(), 0)?;
        expect("removals that were never invalidated", 0, self.log.pending() as u64, 0)
    }

    fn balanced(&self, fresh: Totals) -> Outcome {
        let now = self.mm.totals();
        expect("free frames at the end", 0, now.frames_free, fresh.frames_free)?;
        expect("free slots at the end", 0, now.slots_free, fresh.slots_free)?;
        expect("free tag rooms at the end", 0, now.tag_rooms_free, fresh.tag_rooms_free)
    }

    fn at(page: u64) -> VirtAddr {
        VirtAddr::new(START + page * Self::PAGE)
    }

    // ---- Calls. ----

    fn map(&self, space: &Space<Recorder<M>>, pages: u64, protection: Protection) -> Outcome {
        let request = MapRequest {
            placement: Placement::Fixed(Self::at(0)),
            bytes: pages * Self::PAGE,
            protection,
            growth: Growth::Fixed,
        };
        demand(space.map(self.mm, request).ok().map(drop), "a mapping", START)
    }

    fn protect(&self, space: &Space<Recorder<M>>, from: u64, pages: u64, protection: Protection) -> Outcome {
        let done = space.protect(self.mm, Self::at(from), pages * Self::PAGE, protection);
        demand(done.ok(), "a protection", Self::at(from).bytes())
    }

    fn advise(&self, space: &Space<Recorder<M>>, from: u64, pages: u64, advice: Advice) -> Outcome {
        let done = space.advise(self.mm, Self::at(from), pages * Self::PAGE, advice);
        demand(done.ok(), "an advice", Self::at(from).bytes())
    }

    fn unmap(&self, space: &Space<Recorder<M>>, from: u64, pages: u64) -> Outcome {
        let done = space.unmap(self.mm, Self::at(from), pages * Self::PAGE);
        demand(done.ok(), "an unmapping", Self::at(from).bytes())
    }

    // ---- Accesses. ----

    /// One access, with the faults on its way. The inner result is how the library refused.
    fn touch(
        &self,
        space: &Space<Recorder<M>>,
        address: u64,
        touch: Touch,
    ) -> Result<Result<u64, FaultError>, Failure> {
        for _ in 0..RETRIES {
            let fault = match self.program.touch(self.mm.machine().inner(), space.root(), address, touch) {
                Ok(value) => return Ok(Ok(value)),
                Err(fault) => fault,
            };
            if let Err(error) = space.handle_fault(self.mm, fault) {
                return Ok(Err(error));
            }
        }
        Err(Failure::Refused { what: "an access that faults again and again", at: address })
    }

    fn allowed(&self, space: &Space<Recorder<M>>, address: u64, touch: Touch) -> Result<u64, Failure> {
        let done = self.touch(space, address, touch)?;
        demand_some(done.ok(), "an access that the region allows", address)
    }

    fn refused(&self, space: &Space<Recorder<M>>, page: u64, touch: Touch) -> Outcome {
        let address = Self::at(page).bytes();
        let done = self.touch(space, address, touch)?;
        demand(done.err().map(drop), "an access that the region forbids went through", address)
    }

    /// Three words of each page, the last among them.
    fn places(page: u64) -> [u64; 3] {
        let start = Self::at(page).bytes();
        [start, start + 8 * (page % 512), start + Self::PAGE - 8]
    }

    fn value(address: u64, seed: u64) -> u64 {
        address.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed << 1 | 1
    }

    fn write(&self, space: &Space<Recorder<M>>, pages: core::ops::Range<u64>, seed: u64) -> Outcome {
        pages
            .flat_map(Self::places)
            .try_for_each(|address| self.allowed(space, address, Touch::Store(Self::value(address, seed))).map(drop))
    }

    fn reads(&self, space: &Space<Recorder<M>>, pages: core::ops::Range<u64>, seed: u64) -> Outcome {
        pages.flat_map(Self::places).try_for_each(|address| {
            let found = self.allowed(space, address, Touch::Load)?;
            expect("a word that a program stored", address, found, Self::value(address, seed))
        })
    }

    fn reads_zero(&self, space: &Space<Recorder<M>>, pages: core::ops::Range<u64>) -> Outcome {
        pages.flat_map(Self::places).try_for_each(|address| {
            let found = self.allowed(space, address, Touch::Load)?;
            expect("a word that no program stored", address, found, 0)
        })
    }

    // ---- Lives. ----

    fn first_touch(&self, space: &Space<Recorder<M>>) -> Outcome {
        self.map(space, Self::PAGES, RW)?;
        self.refused(space, Self::PAGES, Touch::Load)?;
        self.reads_zero(space, 0..Self::PAGES)?;
        self.write(space, 0..Self::PAGES, 1)?;
        self.reads(space, 0..Self::PAGES, 1)?;
        // What goes and comes again is zero: no frame keeps what its last owner left.
        self.unmap(space, 0, Self::PAGES)?;
        self.refused(space, 0, Touch::Load)?;
        self.map(space, Self::PAGES, RW)?;
        self.reads_zero(space, 0..Self::PAGES)
    }

    fn protection(&self, space: &Space<Recorder<M>>) -> Outcome {
        self.map(space, Self::PAGES, RW)?;
        self.write(space, 0..Self::PAGES, 1)?;
        for (from, pages) in [(0, Self::PAGES), (1, 2), (Self::GROUP, Self::GROUP), (Self::GROUP + 3, 7)] {
            self.protect(space, from, pages, READ)?;
            (from..from + pages).try_for_each(|page| self.refused(space, page, Touch::Store(0)))?;
            self.reads(space, from..from + pages, 1)?;
            self.protect(space, from, pages, Protection::empty())?;
            (from..from + pages).try_for_each(|page| self.refused(space, page, Touch::Load))?;
            self.protect(space, from, pages, RW)?;
            self.reads(space, 0..Self::PAGES, 1)?;
            self.write(space, from..from + pages, 1)?;
        }
        Ok(())
    }

    fn code(&self, space: &Space<Recorder<M>>) -> Outcome {
        self.map(space, Self::PAGES, RW)?;
        self.write(space, 0..Self::PAGES, 1)?;
        let fetch = |page| space.handle_fault(self.mm, Fault { address: Self::at(page), access: Access::Execute });
        demand(fetch(0).err().map(drop), "a fetch that the region forbids went through", START)?;
        self.protect(space, 0, Self::PAGES, READ.union(Protection::EXEC))?;
        for page in 0..Self::PAGES {
            demand(fetch(page).ok(), "a fetch that the region allows", Self::at(page).bytes())?;
        }
        self.protect(space, 1, 2, RW)?;
        self.reads(space, 0..Self::PAGES, 1)
    }

    fn swap(&self, space: &Space<Recorder<M>>) -> Outcome {
        self.map(space, Self::PAGES, RW)?;
        for seed in 0..3 {
            self.write(space, 0..Self::PAGES, seed)?;
            let out = self.mm.stats().swap_out.get();
            self.advise(space, 0, Self::PAGES, Advice::PageOut)?;
            expect("pages written out", seed, self.mm.stats().swap_out.get() - out, Self::PAGES)?;
            self.reads(space, 0..Self::PAGES, seed)?;
        }
        // Some stay out until the end.
        self.advise(space, 0, Self::GROUP + 2, Advice::PageOut)
    }

    fn tags(&self, space: &Space<Recorder<M>>) -> Outcome {
        if !self.has_tags() {
            return Ok(());
        }
        let granule = |page, index: u64| Self::at(page).bytes() + index * TAG_GRANULE_BYTES as u64;
        let granules = Self::PAGE / TAG_GRANULE_BYTES as u64;
        // Of each kind that the library keeps in its own way: one tag for all, runs, and everywhere another.
        let tag = |page: u64, index: u64| match page % 4 {
            0 => 0,
            1 => 5,
            2 => index * 4 / granules + 1,
            _ => (index * 7 + page) & 0xf,
        };
        // Some granules of each page: every one of a page that a program touches one by one is slow.
        let some = |page: u64| (0..granules).filter(move |index| page % 4 == 3 || index % (granules / 32) == page % 8);
        let pages = Self::GROUP + 4;
        self.map(space, pages, RW)?;
        self.write(space, 0..Self::GROUP, 1)?;
        self.protect(space, 0, pages, RWT)?;
        let tagged = [1, 2, 3, Self::GROUP + 1, Self::GROUP + 2];
        for page in (0..pages).step_by(7).chain(tagged) {
            let found = self.allowed(space, granule(page, 3), Touch::LoadTag)?;
            expect("a tag that no program stored", granule(page, 3), found, 0)?;
        }
        for (page, index) in tagged.into_iter().flat_map(|page| some(page).map(move |index| (page, index))) {
            self.allowed(space, granule(page, index), Touch::StoreTag(tag(page, index) as u8))?;
        }
        for _ in 0..2 {
            for (page, index) in tagged.into_iter().flat_map(|page| some(page).map(move |index| (page, index))) {
                let found = self.allowed(space, granule(page, index), Touch::LoadTag)?;
                expect("a tag that a program stored", granule(page, index), found, tag(page, index))?;
            }
            self.advise(space, 0, pages, Advice::PageOut)?;
        }
        let word = granule(4, 0);
        let found = self.allowed(space, word, Touch::Load)?;
        expect("a word of a page that became tagged", word, found, Self::value(word, 1))
    }

    fn advice(&self, space: &Space<Recorder<M>>) -> Outcome {
        self.map(space, Self::PAGES, RW)?;
        self.write(space, 0..Self::PAGES, 1)?;
        let (whole, part) = (Self::GROUP, Self::GROUP / 2 + 1);
        self.advise(space, 0, Self::PAGES, Advice::Cold)?;
        self.advise(space, 3, part, Advice::Cold)?;
        self.reads(space, 0..Self::PAGES, 1)?;
        // Given up, and stored to again: it stays.
        self.advise(space, 0, whole, Advice::Free)?;
        self.write(space, 0..whole, 2)?;
        self.advise(space, 0, whole, Advice::PageOut)?;
        self.reads(space, 0..whole, 2)?;
        // Given up, and taken.
        self.advise(space, whole, part, Advice::Free)?;
        self.advise(space, whole, whole, Advice::PageOut)?;
        self.reads_zero(space, whole..whole + part)?;
        self.reads(space, whole + part..2 * whole, 1)?;
        self.advise(space, 2 * whole, part, Advice::DontNeed)?;
        self.reads_zero(space, 2 * whole..2 * whole + part)?;
        self.reads(space, 2 * whole + part..Self::PAGES, 1)?;
        self.advise(space, 0, Self::PAGES, Advice::DontNeed)?;
        self.reads_zero(space, 0..Self::PAGES)
    }

    /// Every way of a run to lie across a group.
    fn parts(&self, space: &Space<Recorder<M>>) -> Outcome {
        let edges = [0, 1, Self::GROUP - 1, Self::GROUP, Self::GROUP + 1, 2 * Self::GROUP];
        for (from, to) in edges.into_iter().flat_map(|from| edges.into_iter().map(move |to| (from, to))) {
            if from >= to {
                continue;
            }
            self.map(space, 2 * Self::GROUP, RW)?;
            self.write(space, 0..2 * Self::GROUP, 1)?;
            self.protect(space, from, to - from, READ)?;
            self.refused(space, from, Touch::Store(0))?;
            self.protect(space, from, to - from, RW)?;
            self.write(space, from..to, 2)?;
            self.unmap(space, from, to - from)?;
            self.refused(space, to - 1, Touch::Load)?;
            self.reads(space, 0..from, 1)?;
            self.reads(space, to..2 * Self::GROUP, 1)?;
        }
        Ok(())
    }

    /// A program larger than the frames: reclaim writes out what it must.
    fn pressure(&self, space: &Space<Recorder<M>>) -> Outcome {
        let totals = self.mm.totals();
        let pages = totals.frames + totals.slots / 3;
        self.map(space, pages, RW)?;
        let out = self.mm.stats().swap_out.get();
        self.write(space, 0..pages, 1)?;
        self.reads(space, 0..pages, 1)?;
        let out = self.mm.stats().swap_out.get() - out;
        demand((out > 0).then_some(()), "a program larger than memory, with no page out of", pages)
    }

    /// Spaces side by side keep apart, and identifiers come back.
    fn many(&self, fresh: Totals) -> Outcome {
        let broken = self.log.violations();
        for round in 0..40 {
            let spaces = [(); 3].map(|()| Space::new(self.mm).ok());
            let mut lived = Ok(());
            for (seed, space) in (round..).zip(&spaces) {
                lived = lived.and_then(|()| {
                    let space = demand_some(space.as_ref(), "a new space", round)?;
                    space.activate(self.mm);
                    self.map(space, 3, RW)?;
                    self.write(space, 0..3, seed)
                });
            }
            for (seed, space) in (round..).zip(&spaces) {
                lived = lived.and_then(|()| {
                    let space = demand_some(space.as_ref(), "a new space", round)?;
                    space.activate(self.mm);
                    self.reads(space, 0..3, seed)
                });
            }
            lived?;
            for space in spaces.into_iter().flatten() {
                demand(space.destroy(self.mm).ok(), "the end of a space that no other CPU runs", round)?;
            }
        }
        self.ordered(broken)?;
        self.balanced(fresh)
    }
}

fn demand_some<T>(value: Option<T>, what: &'static str, at: u64) -> Result<T, Failure> {
    value.ok_or(Failure::Refused { what, at })
}
