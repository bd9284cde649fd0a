//! Who touches the pages of a life.

use core::mem::MaybeUninit;

use crate::addr::{Pfn, VirtAddr};
use crate::granule::{Granule, Level, TAG_GRANULE_BYTES};
use crate::machine::{EntryAt, Features, Machine};
use crate::pte::{Decoded, Leaf, decode};
use crate::space::{Access, Fault};
use crate::sync::{AtomicU64, Ordering};

/// One access of a program.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Touch {
    /// A load of 8 bytes.
    Load,
    /// A store of 8 bytes.
    Store(u64),
    /// A load of the granule's tag.
    LoadTag,
    /// A store of the granule's tag.
    StoreTag(u8),
}

impl Touch {
    /// What the library is told when it faults.
    pub fn access(self) -> Access {
        match self {
            Self::Load | Self::LoadTag => Access::Read,
            Self::Store(_) | Self::StoreTag(_) => Access::Write,
        }
    }
}

/// A program in the space that is installed on the calling CPU.
pub trait Program<M: Machine> {
    /// One access, without a retry. `address` is a multiple of 8 (of 16 for tags) and carries the tag of the granule
    /// when `touch` is of data. `root` is the space's root table. Returns what was loaded, or 0.
    ///
    /// # Errors
    /// The fault that the access takes.
    fn touch(&self, machine: &M, root: Pfn, address: u64, touch: Touch) -> Result<u64, Fault>;
}

/// A program that walks the tables in software, sets AF and dirty where the machine has hardware that would, and uses
/// the kernel's mapping of the frame. It checks no tags.
pub struct Walker;

impl Walker {
    /// The leaf for `address`, and its place.
    fn find<M: Machine>(machine: &M, root: Pfn, address: VirtAddr) -> Option<(EntryAt, Leaf)> {
        let mut table = root;
        let mut level = Level::root::<M::Granule>(machine.va_bits());
        loop {
            let index = (address.bytes() >> level.shift::<M::Granule>()) as usize & (M::Granule::ENTRIES - 1);
            let at = EntryAt { table, index };
            match (decode::<M::Granule>(machine.load_entry(at), level), level.below()) {
                (Decoded::Table(next), Some(below)) => (table, level) = (next, below),
                (Decoded::Leaf(leaf), None) => return Some((at, leaf)),
                _ => return None,
            }
        }
    }

    /// The frame behind `address`, once the entry allows the access and shows that it was used.
    fn reach<M: Machine>(machine: &M, root: Pfn, address: VirtAddr, access: Access) -> Option<Pfn> {
        loop {
            let (at, leaf) = Self::find(machine, root, address)?;
            let mut used = leaf.with_access();
            if access == Access::Write {
                if !leaf.is_writable() {
                    return None;
                }
                used = used.with_dirty();
            } else if !leaf.is_readable() {
                return None;
            }
            if used == leaf {
                return Some(leaf.pfn::<M::Granule>());
            }
            let needed = if leaf.with_access() == used { Features::HW_ACCESS } else { Features::HW_DIRTY };
            if !machine.features().contains(needed) {
                return None;
            }
            // When it changed meanwhile: once more.
            let _ = machine.compare_exchange_entry(at, leaf.raw(), used.raw());
        }
    }
}

impl<M: Machine> Program<M> for Walker {
    fn touch(&self, machine: &M, root: Pfn, address: u64, touch: Touch) -> Result<u64, Fault> {
        let address = VirtAddr::untagged(address);
        let fault = Fault { address, access: touch.access() };
        let frame = Self::reach(machine, root, address, touch.access()).ok_or(fault)?;
        let offset = address.bytes() as usize & (M::Granule::SIZE - 1);
        let granule = offset / TAG_GRANULE_BYTES;
        let (word, shift) = (granule / 16, 4 * (granule % 16));
        match touch {
            Touch::Load => Ok(words(machine, frame)[offset / 8].load(Ordering::Relaxed)),
            Touch::Store(value) => {
                words(machine, frame)[offset / 8].store(value, Ordering::Relaxed);
                Ok(0)
            }
            Touch::LoadTag => {
                let mut room = MaybeUninit::uninit();
                Ok(machine.load_tags(frame, &mut room).as_ref()[word] >> shift & 0xf)
            }
            Touch::StoreTag(tag) => {
                let mut room = MaybeUninit::uninit();
                let mut tags = *machine.load_tags(frame, &mut room);
                let nibbles = &mut tags.as_mut()[word];
                *nibbles = *nibbles & !(0xf << shift) | u64::from(tag & 0xf) << shift;
                machine.store_tags(frame, &tags);
                Ok(0)
            }
        }
    }
}

/// The words of a frame, through the kernel's mapping.
pub(super) fn words<M: Machine>(machine: &M, frame: Pfn) -> &[AtomicU64] {
    let window = machine.window(frame);
    // SAFETY: the window spans its frame for the borrow of the machine and is page aligned; the frame is scratch
    // memory, which nobody uses in another form while this borrow lives; every pattern is a good `u64`.
    unsafe { core::slice::from_raw_parts(window.first().cast().as_ptr(), M::Granule::ENTRIES) }
}
