//! Slabs: the library's own cold records, in whole frames, named by small numbers.
//!
//! A slab's objects live in frames that its directory (one frame of frame numbers) lists; an object's id is its place,
//! so that 28 bits in a folio's home name it. Frames are never given back: an id read from a stale record still names
//! an object of the same type, which is what lets reclaim look before it locks. Free objects form a list through
//! their ids.

use core::marker::PhantomData;

use super::database::OwnedFrame;
use crate::addr::Pfn;
use crate::granule::Granule;
use crate::machine::{Machine, Window};
use crate::sync::{AtomicU32, AtomicU64, Ordering, Spin};

/// A record that may live in a slab or another typed frame.
///
/// # Safety
/// All bits zero is a valid value without an owner of anything, and the value has no destructor to run.
pub unsafe trait Plain: Sync {}

/// The records of type `T` that one frame holds.
///
/// # Safety
/// The frame was zeroed when it became a frame of `T` records and has held nothing else since.
#[inline]
pub(crate) unsafe fn records<'a, T: Plain>(window: Window<'a>) -> &'a [T] {
    debug_assert!(align_of::<T>() <= window.bytes());
    // SAFETY: the window spans its frame for 'a, is page aligned, and holds valid `T`s by this function's contract.
    unsafe { core::slice::from_raw_parts(window.first().cast().as_ptr(), window.bytes() / size_of::<T>()) }
}

/// A number in the free list: "no object".
const NONE: u32 = u32::MAX;

/// An object that knows the next free one.
///
/// # Safety
/// As for [`Plain`]; `link` always returns the same word, which the object's user leaves alone.
pub unsafe trait Linked: Plain {
    /// The word that links free objects.
    fn link(&self) -> &AtomicU32;
}

struct FreeList {
    first: u32,
    chunks: usize,
}

/// Objects of one type, named by number.
pub struct Slab<T> {
    directory: Pfn,
    free: Spin<FreeList>,
    /// Chunks whose frame number stands in the directory; ids below `chunks * per chunk` exist.
    published: AtomicU32,
    kind: PhantomData<fn() -> T>,
}

impl<T: Linked> Slab<T> {
    /// Objects in one frame: a power of two, so that an id splits by shifts.
    const fn per_chunk<G: Granule>() -> u32 {
        const { assert!(size_of::<T>().is_power_of_two()) };
        (G::SIZE / size_of::<T>()) as u32
    }

    /// An empty slab whose directory is `directory`: a zeroed frame that the slab owns from now on.
    pub(crate) const fn new(directory: Pfn) -> Self {
        Self {
            directory,
            free: Spin::new(FreeList { first: NONE, chunks: 0 }),
            published: AtomicU32::new(0),
            kind: PhantomData,
        }
    }

    fn directory<'a, M: Machine>(&self, machine: &'a M) -> &'a [ChunkFrame] {
        // SAFETY: `new` asks for a zeroed frame that nobody else uses, and this slab keeps only chunk frames in it.
        unsafe { records(machine.window(self.directory)) }
    }

    /// The object with number `id`, if there is one: in use or free, but of this type.
    #[inline]
    pub(crate) fn get<'a, M: Machine>(&self, machine: &'a M, id: u32) -> Option<&'a T> {
        let per_chunk = Self::per_chunk::<M::Granule>();
        let chunk = id / per_chunk;
        if chunk >= self.published.load(Ordering::Acquire) {
            return None;
        }
        let frame = Pfn::new(self.directory(machine).get(chunk as usize)?.0.load(Ordering::Relaxed));
        // SAFETY: `grow` zeroed the frame before it published the chunk; it holds `T`s ever since.
        unsafe { records::<T>(machine.window(frame)) }.get((id % per_chunk) as usize)
    }

    /// Takes a free object out of the list; `None` when the list is empty and the slab must [`Slab::grow`] first.
    ///
    /// The object's contents are those it was freed with: the caller writes every field.
    pub(crate) fn take<M: Machine>(&self, machine: &M) -> Option<u32> {
        let mut free = self.free.lock();
        let id = free.first;
        free.first = self.get(machine, id)?.link().load(Ordering::Relaxed);
        Some(id)
    }

    /// Adds a zeroed frame of objects; gives it back (dropped) when the directory is full, and says so by `None`.
    pub(crate) fn grow<M: Machine>(&self, machine: &M, frame: OwnedFrame<'_>) -> Option<()> {
        let per_chunk = Self::per_chunk::<M::Granule>();
        let mut free = self.free.lock();
        let chunk = free.chunks;
        let entry = self.directory(machine).get(chunk)?;
        entry.0.store(frame.pfn().number(), Ordering::Relaxed);
        frame.publish();
        free.chunks += 1;
        self.published.store(free.chunks as u32, Ordering::Release);
        for id in (chunk as u32 * per_chunk..(chunk as u32 + 1) * per_chunk).rev() {
            self.get(machine, id)?.link().store(free.first, Ordering::Relaxed);
            free.first = id;
        }
        Some(())
    }

    /// Frames of objects, in use or free, beyond the first.
    pub(crate) fn grown(&self) -> u64 {
        self.published.load(Ordering::Relaxed).saturating_sub(1).into()
    }

    /// Puts an object back in the list.
    pub(crate) fn give<M: Machine>(&self, machine: &M, id: u32) {
        let mut free = self.free.lock();
        if let Some(object) = self.get(machine, id) {
            object.link().store(free.first, Ordering::Relaxed);
            free.first = id;
        }
    }
}

/// One entry of a directory.
struct ChunkFrame(AtomicU64);

// SAFETY: an atomic number; zero is valid; nothing is owned.
unsafe impl Plain for ChunkFrame {}
