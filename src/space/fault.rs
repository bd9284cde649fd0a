//! Faults: from a program's access to an entry that allows it.

use super::read_ahead::Streams;
use super::{Guarded, Protection, Space};
use crate::addr::{PfnRange, VirtAddr, Vpn, VpnRange};
use crate::frame::flag;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::{CodeSynced, Decoded};
use crate::table::{self, Change, Cursor, Fitted, LeafTable};
use crate::tlb;

/// What a program tried to do.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Access {
    /// A load, or a cache operation.
    Read,
    /// A store, of data or of a tag.
    Write,
    /// An instruction fetch.
    Execute,
}

impl Access {
    /// Whether `protection` allows it. The right to store or to fetch includes the right to load.
    #[inline]
    pub(super) fn is_allowed(self, protection: Protection) -> bool {
        protection.intersects(match self {
            Self::Read => Protection::READ.union(Protection::WRITE).union(Protection::EXEC),
            Self::Write => Protection::WRITE,
            Self::Execute => Protection::EXEC,
        })
    }
}

/// A translation, access flag or permission fault at EL0, or of the kernel on a program's behalf.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Fault {
    /// Any byte of the page.
    pub address: VirtAddr,
    /// What was tried.
    pub access: Access,
}

/// Why a fault was not resolved. The entry is as it was.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum FaultError {
    /// No region is there.
    NotMapped,
    /// The region forbids the access.
    Protection,
    /// No memory, and nothing left to reclaim.
    NoMemory,
    /// The space is at its cap, and nothing of it can leave. There may be memory: another space's end is no help.
    Capped,
    /// The page is out and its slot cannot be read: the device failed, or the entry names no slot in use. A later try
    /// may succeed.
    Unreadable {
        /// The swap area's number.
        area: u8,
        /// The slot within the area.
        slot: u64,
    },
    /// The page is out, and what the device has is not what was given to it. That is final: the page is lost.
    Damaged {
        /// The swap area's number.
        area: u8,
        /// The slot within the area.
        slot: u64,
    },
    /// The page could not be read back when its swap area was turned off. That is final.
    Lost,
}

/// A page that faulted, and what the space has for it.
pub(super) struct Found<'a> {
    pub(super) page: Vpn,
    pub(super) table: LeafTable,
    pub(super) region: VpnRange,
    pub(super) protection: Protection,
    pub(super) streams: &'a Streams,
}

/// How far one look at the entry came.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Step {
    /// The access will succeed.
    Done,
    /// The entry is another now: look again.
    Again,
}

impl<M: Machine> Space<M> {
    /// Resolves a fault: on return the access can be repeated.
    ///
    /// # Errors
    /// [`FaultError`], each variant as it says there.
    #[inline]
    pub fn handle_fault(&self, mm: &Mm<M>, fault: Fault) -> Result<(), FaultError> {
        mm.stats().faults.bump();
        let resolved = self.resolve(mm, fault.address.vpn::<M::Granule>(), fault.access);
        if let Err(error) = resolved {
            refused(mm, error);
        }
        resolved
    }

    #[inline]
    fn resolve(&self, mm: &Mm<M>, page: Vpn, access: Access) -> Result<(), FaultError> {
        self.resolve_locked(mm, &mut self.lock(mm), page, access)
    }

    /// [`Space::handle_fault`] under the space's lock.
    #[inline(always)]
    pub(super) fn resolve_locked(
        &self,
        mm: &Mm<M>,
        guarded: &mut Guarded,
        page: Vpn,
        access: Access,
    ) -> Result<(), FaultError> {
        let Guarded { regions, near, streams, cap } = guarded;
        if !regions.is_near(page) && regions.find(mm, page).is_none() && !self.grow(mm, regions, page, access) {
            return Err(FaultError::NotMapped);
        }
        let region = regions.near();
        let protection = region.protection;
        if !access.is_allowed(protection) {
            return Err(FaultError::Protection);
        }
        let table = match *near {
            Some(table) if table.holds::<M::Granule>(page) => table,
            _ => {
                let found = table::find_or_make(mm, self.root, self.node, page).ok_or(FaultError::NoMemory)?;
                if let Some(cap) = cap {
                    // Each of its faults comes this way.
                    let at = Found { page, table: found, region: region.pages, protection, streams };
                    return self.resolve_below(mm, (cap, regions), &at, access);
                }
                *near = Some(found);
                found
            }
        };
        let seen = Found { page, table, region: region.pages, protection, streams };
        match self.look(mm, &seen, access)? {
            Step::Done => Ok(()),
            Step::Again => self.look_again(mm, &seen, access),
        }
    }

    /// Does what the entry, as it is now, needs. Inlined at both of its places, the common one above all.
    #[inline(always)]
    fn look(&self, mm: &Mm<M>, at: &Found<'_>, access: Access) -> Result<Step, FaultError> {
        match at.table.peek(mm.machine(), at.page).guess::<M>() {
            Decoded::Empty => self.first_touch(mm, at, access),
            Decoded::Leaf(_) => self.upgrade(mm, at, access),
            Decoded::Swapped(entry) => self.swap_in(mm, at, entry, access),
            Decoded::Table(_) | Decoded::Unknown(_) => Err(FaultError::NotMapped),
        }
    }

    /// The rare further looks: after a race, or for a fetch from a page that has just come.
    #[cold]
    pub(super) fn look_again(&self, mm: &Mm<M>, at: &Found<'_>, access: Access) -> Result<(), FaultError> {
        while self.look(mm, at, access)? == Step::Again {
            // Others may have to go on first: a folio that nobody has any more is on its way out of its slots.
            mm.machine().relax();
        }
        Ok(())
    }

    /// Adds to a live entry, and to all of its group, what it lacks for the access. When it lacks nothing, this CPU's
    /// TLB was stale.
    #[inline(never)]
    fn upgrade(&self, mm: &Mm<M>, at: &Found<'_>, access: Access) -> Result<Step, FaultError> {
        let Found { page, table, .. } = *at;
        let stats = mm.stats();
        let Some(mut cursor) = table.lock(mm) else { return Err(FaultError::NotMapped) };
        let Decoded::Leaf(seen) = cursor.read(page) else { return Ok(Step::Again) };
        if access == Access::Write && !seen.is_exclusive() && self.take_back(mm, &mut cursor, page, seen).is_none() {
            drop(cursor);
            return self.copy(mm, at);
        }
        let run = cursor.widen(page);
        let mut before = None;
        let changed = |_, Change { was, is }: Change| {
            if was == is {
                return;
            }
            before = Some(was);
            let execute = is.is_executable() != was.is_executable();
            if execute { &stats.faults_execute } else { &stats.faults_flag }.bump();
        };
        match access {
            Access::Read => cursor.update(run, |leaf, _| leaf.with_access(), changed),
            Access::Write => cursor.update(
                run,
                |leaf, proof| {
                    let leaf = leaf.with_access();
                    proof.map_or(leaf, |proof| leaf.with_write(proof).with_dirty())
                },
                changed,
            ),
            Access::Execute => {
                let synced = self.sync_code(mm, &cursor, run);
                cursor.update(run, |leaf, _| leaf.with_access().with_execute(&synced), changed);
            }
        }
        drop(cursor);
        if before.is_none() {
            stats.faults_spurious.bump();
        }
        // An entry without the access flag is in no TLB (Arm ARM, D8.5.1), or only until reclaim's flush is done: at
        // worst the access faults once more. Another may be in this CPU's TLB, with fewer rights than it has now;
        // other CPUs find out by a fault of their own.
        if before.unwrap_or(seen).is_accessed() {
            tlb::invalidate_here(mm, self.node, run.pages());
        }
        Ok(Step::Done)
    }

    /// Makes the instruction side see the frames of a run. Once for each life of a frame: what a program stores to a
    /// page that it may execute already, it syncs itself, as the architecture asks.
    fn sync_code(&self, mm: &Mm<M>, cursor: &Cursor<'_, M>, run: Fitted) -> CodeSynced {
        for page in 0..run.pages().pages() {
            let Decoded::Leaf(leaf) = cursor.read(run.pages().start().offset(page)) else { continue };
            let pfn = leaf.pfn::<M::Granule>();
            let record = mm.frames().frame(pfn).map(|frame| mm.frames().record(frame));
            if !record.is_some_and(|record| record.has(flag::CODE_SYNCED)) {
                mm.machine().sync_code(PfnRange::new(pfn, 1));
                if let Some(record) = record {
                    record.set(flag::CODE_SYNCED);
                }
            }
        }
        CodeSynced::proven()
    }
}

/// Counts a fault that was not resolved.
#[cold]
pub(super) fn refused<M: Machine>(mm: &Mm<M>, error: FaultError) {
    let stats = mm.stats();
    match error {
        FaultError::NotMapped => stats.faults_unmapped.bump(),
        FaultError::Protection => stats.faults_forbidden.bump(),
        FaultError::NoMemory => stats.faults_no_memory.bump(),
        FaultError::Capped => stats.faults_capped.bump(),
        FaultError::Unreadable { .. } | FaultError::Damaged { .. } | FaultError::Lost => stats.faults_unreadable.bump(),
    }
}
