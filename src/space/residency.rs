//! What of a program's memory is there, and how much: for mincore, for whoever goes through its regions, and for who
//! looks for the largest of several.

use super::{MapError, Regions, Space};
use crate::addr::{VirtAddr, Vpn};
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

/// What a space has, in pages. A page that several share counts in each.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Size {
    /// In memory: those that its tables map.
    pub resident: u64,
    /// Not in memory: those whose entries name a slot, or that were lost.
    pub swapped: u64,
}

impl Size {
    /// Both together.
    pub const fn pages(self) -> u64 {
        self.resident + self.swapped
    }
}

impl<M: Machine> Space<M> {
    /// What the space has, at some moment of the call. It looks at each of its leaf tables, and sleeps while another
    /// thread has the space's lock.
    pub fn size(&self, mm: &Mm<M>) -> Size {
        self.size_of(mm, &self.lock(mm).regions)
    }

    pub(super) fn size_of(&self, mm: &Mm<M>, regions: &Regions) -> Size {
        let (mut size, mut next, mut last) = (Size::default(), Vpn::new(0), None);
        while let Some(region) = regions.at_or_after(mm, next) {
            self.for_each_leaf_table(mm, region.pages, |table, _| {
                // Neighbours among the regions may have one table.
                let first = Some(table.pages::<M::Granule>().start());
                if last != first {
                    size.resident += table.leaves(mm);
                    size.swapped += table.swap_entries(mm);
                }
                last = first;
            });
            next = region.pages.end();
        }
        size
    }

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
