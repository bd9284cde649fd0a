//! Turning a swap area off: every space brings its pages back.
//!
//! The pages come in as by faults, one after the other, so that folios which left in one piece come back in one piece.
//! A page that cannot be read back, so often as it is tried, is lost: its entry names no area from then on, its slot is
//! given back, and who touches it is told. What others have under way is waited for, and looked for again: as the area
//! is shut, there is less of it each time.

use core::ptr::NonNull;

use super::fault::{Access, FaultError, Found, Step};
use super::{Cap, Guarded, Space};
use crate::addr::Vpn;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::{Decoded, SwapEntry};
use crate::rmap::unback_all;
use crate::swap::{Area, AreaId, SwapOffError};
use crate::table::{self, LeafTable};

/// How often a page is asked for that the device fails to read, before it is given up.
const TRIES: u32 = 4;

impl<M: Machine> Mm<M> {
    /// Turns an area off: brings the pages that `spaces` have in it back to memory, and returns the memory of its
    /// records, which is the caller's again. A page that cannot be read back is lost: [`FaultError::Lost`].
    ///
    /// # Errors
    /// [`SwapOffError`]; the area is on then.
    pub fn swap_off(&self, id: AreaId, spaces: &[&Space<M>]) -> Result<NonNull<u8>, SwapOffError> {
        self.swap().remove(self.machine(), id, |area| self.empty(area, spaces))
    }

    /// Brings all pages of an area back, which is shut.
    fn empty(&self, area: &Area<M>, spaces: &[&Space<M>]) -> Result<(), SwapOffError> {
        loop {
            // First: what was on its way before the look is found by it, or has ended, or is waited for.
            let busy = self.reclaim().isolated();
            for space in spaces {
                space.bring_back(self, area.number())?;
            }
            // Only now: what several spaces have keeps its slots until the last has it in memory.
            for space in spaces.iter().filter(|_| self.swap().some_are_backed()) {
                space.unback(self, area.number());
            }
            // Who began to reclaim since may look at a folio that nobody maps by now, whose slots go when that is done.
            match busy.or_else(|| self.reclaim().isolated()) {
                Some(seen) if area.in_use().is_some() => self.reclaim().wait_for_others(self.machine(), seen),
                _ => return Ok(()),
            }
        }
    }
}

impl<M: Machine> Space<M> {
    /// Brings back every page that is out in the area of this number.
    fn bring_back(&self, mm: &Mm<M>, area: u8) -> Result<(), SwapOffError> {
        let mut guarded = self.lock(mm);
        let Guarded { regions, streams, cap, .. } = &mut *guarded;
        cap.iter_mut().for_each(Cap::recount);
        table::for_each_leaf_table(mm.machine(), self.root, self.pages(mm), |table, part| {
            if !table.lock(mm).is_some_and(|cursor| cursor.holds_swapped()) {
                return Ok(());
            }
            for number in part.start().number()..part.end().number() {
                let page = Vpn::new(number);
                let mut tries = TRIES;
                while let Some(entry) = out_in(mm, table, page, area) {
                    // What is mapped lies in a region.
                    let Some(region) = regions.find(mm, page) else { break };
                    let (region, protection) = (region.pages, region.protection);
                    let at = Found { page, table, region, protection, streams };
                    match self.swap_in(mm, &at, entry, Access::Read) {
                        Ok(Step::Done) => {}
                        Ok(Step::Again) => mm.machine().relax(),
                        Err(FaultError::NoMemory | FaultError::Capped) => return Err(SwapOffError::NoMemory),
                        // The device may have it all the same.
                        Err(FaultError::Unreadable { .. }) if tries > 1 => tries -= 1,
                        Err(_) => lose(mm, table, page, entry),
                    }
                }
            }
            Ok(())
        })
    }
}

impl<M: Machine> Space<M> {
    /// Leaves every page that has kept its slot in the area of this number to memory alone.
    fn unback(&self, mm: &Mm<M>, area: u8) {
        let _guarded = self.lock(mm);
        self.for_each_leaf_table(mm, self.pages(mm), |table, part| {
            unback_all(mm, table, part, |backs| backs == area);
        });
    }
}

/// The entry of a page that is out in an area. Under the space's lock, so that only its coming in can change it.
fn out_in<M: Machine>(mm: &Mm<M>, table: LeafTable, page: Vpn, area: u8) -> Option<SwapEntry> {
    match table.peek(mm.machine(), page).guess::<M>() {
        Decoded::Swapped(entry) if entry.area() == area => Some(entry),
        _ => None,
    }
}

/// Gives a page up that cannot be read back.
#[cold]
fn lose<M: Machine>(mm: &Mm<M>, table: LeafTable, page: Vpn, entry: SwapEntry) {
    let mut unused = None;
    {
        let Some(mut cursor) = table.lock(mm) else { return };
        if cursor.read(page) != Decoded::Swapped(entry) {
            return;
        }
        cursor.exchange_swapped(page, SwapEntry::LOST);
        mm.put_slots(entry, 1, |entry| unused = Some(entry));
    }
    mm.stats().pages_lost.bump();
    if let Some(entry) = unused {
        mm.drop_unused(entry);
    }
}
