//! Making pages ready before the program touches them.
//!
//! What a touch needs is done as if the program had made it, fault by fault, each under the space's lock for itself; so
//! other threads' faults wait for one page at most. Pages that would not fault, not even where the hardware sets no
//! flags, are passed over: nothing is counted for them, and no translation goes.

use super::Space;
use super::fault::{Access, Fault, FaultError, refused};
use crate::addr::{VirtAddr, Vpn, VpnRange};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::{Decoded, Leaf, Protection};
use crate::table::{self, CHUNK};

/// What pages are made ready for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Touch {
    /// An access of this kind.
    As(Access),
    /// A store where the program may store, else a load.
    AsAllowed,
}

/// A page that could not be made ready.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Unready {
    /// The fault that a touch of it is.
    pub fault: Fault,
    /// Why it was not resolved.
    pub error: FaultError,
}

impl Touch {
    fn access(self, protection: Protection) -> Access {
        match self {
            Self::As(access) => access,
            Self::AsAllowed if protection.contains(Protection::WRITE) => Access::Write,
            Self::AsAllowed => Access::Read,
        }
    }
}

/// Whether an access through this leaf does not fault, not even where the hardware sets no flags.
fn is_ready(leaf: Leaf, access: Access) -> bool {
    leaf.is_accessed()
        && match access {
            Access::Read => leaf.is_readable(),
            Access::Write => leaf.is_stored_to(),
            Access::Execute => leaf.is_executable(),
        }
}

impl<M: Machine> Space<M> {
    /// Makes every page of `bytes` bytes from `start` on ready for a touch, in ascending order; the first and the last
    /// page need not be whole. A page that reclaim takes before the program comes to it faults like any other:
    /// [`Space::mlock`] first keeps it.
    ///
    /// # Errors
    /// [`Unready`], of the first page that cannot be had. Those before it are ready, those after it as they were.
    pub fn populate(&self, mm: &Mm<M>, start: VirtAddr, bytes: u64, touch: Touch) -> Result<(), Unready> {
        if bytes == 0 {
            return Ok(());
        }
        let last = VirtAddr::new(start.bytes().saturating_add(bytes - 1));
        let mut left = VpnRange::between(start.vpn::<M::Granule>(), last.vpn::<M::Granule>().offset(1));
        while !left.is_empty() {
            left = VpnRange::between(self.populate_some(mm, left, touch)?, left.end());
        }
        Ok(())
    }

    /// Passes over the pages at the start of `left` that are ready, a few dozen at most, and makes the one after them
    /// ready. Returns the page to go on with.
    #[inline(never)]
    fn populate_some(&self, mm: &Mm<M>, left: VpnRange, touch: Touch) -> Result<Vpn, Unready> {
        let mut guarded = self.lock(mm);
        let mut page = left.start();
        let access = match guarded.regions.find(mm, page) {
            Some(region) => {
                let access = touch.access(region.protection);
                let here = VpnRange::new(page, CHUNK as u64).intersection(left).intersection(region.pages);
                page = self.first_unready(mm, here, access);
                if page == here.end() {
                    return Ok(page);
                }
                access
            }
            // A stack may grow to it.
            None => touch.access(Protection::WRITE),
        };
        mm.stats().faults.bump();
        match self.resolve_locked(mm, &mut guarded, page, access) {
            Ok(()) => Ok(page.offset(1)),
            Err(error) => {
                refused(mm, error);
                Err(Unready { fault: Fault { address: page.base::<M::Granule>(), access }, error })
            }
        }
    }

    /// The first page of `run` that is not ready; its end if all are.
    fn first_unready(&self, mm: &Mm<M>, run: VpnRange, access: Access) -> Vpn {
        let mut page = run.start();
        while page < run.end() {
            let Some(table) = table::find(mm.machine(), self.root, page) else { break };
            while page < run.end() && table.holds::<M::Granule>(page) {
                match table.peek(mm.machine(), page).guess::<M>() {
                    Decoded::Leaf(leaf) if is_ready(leaf, access) => page = page.offset(1),
                    _ => return page,
                }
            }
        }
        page
    }
}
