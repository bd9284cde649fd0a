//! The heap, for the kernel's cold things: strings and tables of a program's start, the statistics file.
//!
//! Nothing on the way of a fault allocates here; the library never does.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use ebbtide::sync::Spin;
use linked_list_allocator::Heap;

/// Room for a command line of 128 KiB, twice, and small change.
const BYTES: usize = 512 << 10;

struct KernelHeap(Spin<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Spin::new(Heap::empty()));

#[repr(align(16))]
struct Room(UnsafeCell<[MaybeUninit<u8>; BYTES]>);

// SAFETY: only `start` takes the room, once.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([MaybeUninit::uninit(); BYTES]));

/// Makes the heap usable. Called once.
pub fn start() {
    let mut heap = HEAP.0.lock();
    assert_eq!(heap.size(), 0, "the heap is started once");
    // SAFETY: the room is a static that nothing else names, and this runs once.
    heap.init_from_slice(unsafe { &mut *ROOM.0.get() });
}

// SAFETY: `Heap` hands out disjoint blocks of the layout asked for, under the lock.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller's promise: a block of this heap with the layout it was allocated with.
            unsafe { self.0.lock().deallocate(block, layout) }
        }
    }
}
