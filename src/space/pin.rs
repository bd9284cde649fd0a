//! Pins: pages that a device, or the kernel, reaches past the tables.
//!
//! A pin says where a page is, and that it stays there: reclaim leaves it alone, a fork gives the child a copy, and
//! what the program maps is the very page until it gives that up itself. So what is stored through the pin the program
//! sees, and the other way round.
//!
//! **Exclusive first.** A page that is shared would be replaced by a copy at the owner's next store, and the pin would
//! hold the wrong one. So the page is made the space's own before it is pinned, for a pin that only reads as well. An
//! exclusive page loses that by fork alone, which looks for pins under the same lock of the space.
//!
//! **Lifetime.** A pin is a count of the folio: when the program unmaps the page, or ends, the frame stays until the
//! last pin goes. A pin that is for stores makes the page dirty at once, and dirty it stays until the pin goes:
//! MADV_FREE passes over what is pinned.

use super::Space;
use super::fault::{Access, FaultError, Found, refused};
use super::regions::Region;
use crate::addr::{Pfn, VirtAddr, Vpn};
use crate::frame::{Frame, PIN};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;
use crate::sync::Ordering;
use crate::table::{self, Cursor};

/// A pinned page. Given back by [`Mm::unpin`]; one that is merely dropped stays pinned.
#[must_use = "a pin is given back by `Mm::unpin`"]
pub struct Pin {
    frame: Frame,
    head: Frame,
}

/// Why a page was not pinned. Everything is as it was, but that the page may be in memory now.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum PinError {
    /// The program could not have made the access.
    Fault(FaultError),
    /// The page is pinned as often as can be counted.
    TooManyPins,
}

impl From<FaultError> for PinError {
    fn from(error: FaultError) -> Self {
        Self::Fault(error)
    }
}

impl<M: Machine> Space<M> {
    /// Pins the page of `address`, as for an access of the program's own.
    ///
    /// With [`Access::Write`] the caller may store to the page, with the other kinds it may only load.
    ///
    /// # Errors
    /// [`PinError`], each variant as it says there. A fault that is refused is counted as one of the program's own.
    pub fn pin(&self, mm: &Mm<M>, address: VirtAddr, access: Access) -> Result<Pin, PinError> {
        let pinned = self.pin_page(mm, address.vpn::<M::Granule>(), access);
        if let Err(PinError::Fault(error)) = pinned {
            refused(mm, error);
        }
        pinned
    }

    fn pin_page(&self, mm: &Mm<M>, page: Vpn, access: Access) -> Result<Pin, PinError> {
        let mut guarded = self.lock(mm);
        loop {
            self.resolve_locked(mm, &mut guarded, page, access)?;
            // A space with a cap forgets its table.
            let table = guarded.near.or_else(|| table::find(mm.machine(), self.root, page));
            let (Some(table), region) = (table, *guarded.regions.near()) else { continue };
            let Some(mut cursor) = table.lock(mm) else { return Err(FaultError::NotMapped.into()) };
            // Reclaim may have been there since.
            let Decoded::Leaf(leaf) = cursor.read(page) else { continue };
            if !leaf.is_exclusive() && self.take_back(mm, &mut cursor, page, leaf).is_none() {
                drop(cursor);
                let Region { pages, protection, .. } = region;
                self.copy(mm, &Found { page, table, region: pages, protection, streams: &guarded.streams })?;
                continue;
            }
            let Some(frame) = mm.frames().frame(leaf.pfn::<M::Granule>()) else {
                return Err(FaultError::NotMapped.into());
            };
            let head = mm.frames().head(frame);
            // Of a page that is not at its home, or mapped elsewhere as well until a flush is done, reclaim asks for pins
            // before it locks the table in which it takes the page, but under the folio's lock.
            let Some(_folio) = mm.frames().try_lock(mm.machine(), head) else {
                drop(cursor);
                mm.machine().relax();
                continue;
            };
            mm.frames().record(head).count.pin().ok_or(PinError::TooManyPins)?;
            if access == Access::Write {
                let run = cursor.widen(page);
                cursor.update(run, |leaf, _| leaf.with_dirty(), |_, _| {});
            }
            mm.pins.fetch_add(1, Ordering::Relaxed);
            return Ok(Pin { frame, head });
        }
    }
}

/// Whether a page is mapped and its folio pinned.
pub(crate) fn is_pinned<M: Machine>(mm: &Mm<M>, cursor: &Cursor<'_, M>, page: Vpn) -> bool {
    let Decoded::Leaf(leaf) = cursor.read(page) else { return false };
    let frames = mm.frames();
    frames.frame(leaf.pfn::<M::Granule>()).is_some_and(|frame| frames.is_pinned(frames.head(frame)))
}

impl<M: Machine> Mm<M> {
    /// The frame that a pin holds.
    pub fn pinned(&self, pin: &Pin) -> Pfn {
        self.frames().pfn(pin.frame)
    }

    /// Gives a pin back: the caller looks at the page no more.
    pub fn unpin(&self, pin: Pin) {
        self.pins.fetch_sub(1, Ordering::Relaxed);
        self.release([(pin.head, PIN)].into_iter());
    }
}
