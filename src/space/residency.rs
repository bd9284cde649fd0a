//! What of a program's memory is there: for mincore, and whoever goes through its regions.

use super::{MapError, Space};
use crate::addr::VirtAddr;
use crate::granule::Granule;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::Decoded;

/// Where a page is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Residency {
    /// Nowhere: nobody has touched it since it was mapped, or last given up.
    Absent,
    /// In its slot.
    Out,
    /// In memory: a touch finds it without the device.
    Resident,
}

impl<M: Machine> Space<M> {
    /// The first region that reaches beyond `from`: its first byte and its length in bytes. `None` when there is none.
    pub fn region_from(&self, mm: &Mm<M>, from: VirtAddr) -> Option<(VirtAddr, u64)> {
        let region = self.lock(mm).regions.at_or_after(mm, from.vpn::<M::Granule>())?;
        Some((region.pages.start().base::<M::Granule>(), region.pages.pages() << M::Granule::SHIFT))
    }

    /// Tells `each` of the pages of a range, in order, where they are: at some moment of the call each.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfRange`], [`MapError::NotMapped`] with the first page that has no
    /// region: then nothing was told, unless another CPU unmaps it meanwhile.
    pub fn residency(
        &self,
        mm: &Mm<M>,
        start: VirtAddr,
        bytes: u64,
        mut each: impl FnMut(Residency),
    ) -> Result<(), MapError> {
        self.check_mapped(mm, start, bytes)?;
        self.for_each_region(mm, start, bytes, |part| {
            let mut next = part.pages.start();
            self.for_each_leaf_table(mm, part.pages, |table, run| {
                (next.number()..run.start().number()).for_each(|_| each(Residency::Absent));
                for page in 0..run.pages() {
                    each(match table.peek(mm.machine(), run.start().offset(page)).guess::<M>() {
                        Decoded::Leaf(_) => Residency::Resident,
                        Decoded::Swapped(entry) if mm.is_cached(entry) => Residency::Resident,
                        Decoded::Swapped(_) => Residency::Out,
                        Decoded::Empty | Decoded::Table(_) | Decoded::Unknown(_) => Residency::Absent,
                    });
                }
                next = run.end();
            });
            (next.number()..part.pages.end().number()).for_each(|_| each(Residency::Absent));
            Ok(())
        })
    }
}
