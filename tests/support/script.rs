//! A scripted life of a program, for any kernel that has memory to map, to protect and to page out.
//!
//! Each part is about one thing that may go wrong; together they hold a model of what the program may see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ebbtide::granule::K4;
use ebbtide::machine::emu::{Access, Emu};
use ebbtide::space::Protection;

use super::{RW, RWT, tagged};

pub const BASE: u64 = 0x4000_0000;
pub const PAGE: u64 = 4096;
/// Slots of either kernel's swap area, and rooms for tags.
pub const SLOTS: u32 = 4;
pub const ROOMS: u32 = 2;

pub const fn at(page: u64) -> u64 {
    BASE + page * PAGE
}

/// What the life asks of a kernel. Its program runs on CPU 0; CPU 1 runs it as well.
pub trait Kernel {
    fn emu(&self) -> &Emu<K4>;
    /// An access by the program; `None` when the kernel refuses it.
    fn access(&self, cpu: usize, pointer: u64, access: Access) -> Option<u64>;
    fn map(&self, page: u64, protection: Protection);
    fn unmap(&self, page: u64);
    fn page_out(&self, page: u64);
    fn protect(&self, page: u64, protection: Protection);
}

struct Life<'a, K: Kernel>(&'a K);

pub type Seen = Result<(), String>;

impl<K: Kernel> Life<'_, K> {
    fn load(&self, page: u64, tag: u8, expected: u64) -> Seen {
        match self.0.access(0, tagged(at(page), tag), Access::Load) {
            Some(value) if value == expected => Ok(()),
            other => Err(format!("page {page} holds {other:x?}, not {expected:#x}")),
        }
    }

    fn store(&self, page: u64, tag: u8, value: u64) -> Seen {
        self.0
            .access(0, tagged(at(page), tag), Access::Store(value))
            .map(drop)
            .ok_or(format!("no store to page {page}"))
    }

    fn fill_tags(&self, page: u64) -> Seen {
        (0..256).try_for_each(|granule| {
            let stored = self.0.access(0, at(page) + granule * 16, Access::StoreTag(Self::tag(page, granule)));
            stored.map(drop).ok_or(format!("no tag in page {page}"))
        })
    }

    /// Every granule differs from the next: nothing short stands for them.
    fn tag(page: u64, granule: u64) -> u8 {
        (granule * 5 + page + 1) as u8 & 0xf
    }

    fn check_tags(&self, page: u64, expected: impl Fn(u64) -> u8) -> Seen {
        (0..256).try_for_each(|granule| {
            let seen = self.0.access(0, at(page) + granule * 16, Access::LoadTag);
            let expected = expected(granule).into();
            if seen == Some(expected) {
                Ok(())
            } else {
                Err(format!("tag {granule} of page {page}: {seen:?}, not {expected}"))
            }
        })
    }

    /// Out and in again, data and tags, while a program on CPU 1 stores.
    fn swaps_beside_a_program(&self) -> Seen {
        let kernel = self.0;
        kernel.map(0, RWT);
        self.fill_tags(0)?;
        let last = Arc::new(AtomicU64::new(0));
        let log = Arc::clone(&last);
        kernel.emu().set_background(move |emu, _| {
            let value = log.load(Relaxed) + 1;
            if emu.access(1, at(0) + 2048, Access::Store(value)).is_ok() {
                log.store(value, Relaxed);
            }
        });
        for round in 0..20 {
            self.store(0, 1, round)?;
            kernel.page_out(0);
            self.load(0, 1, round)?;
            let seen = kernel.access(0, tagged(at(0) + 2048, Self::tag(0, 128)), Access::Load);
            if seen != Some(last.load(Relaxed)) {
                return Err(format!("a store was lost: {seen:?}, not {last:?}"));
            }
        }
        self.check_tags(0, |granule| Self::tag(0, granule))?;
        kernel.emu().set_background(|_, _| {});
        kernel.unmap(0);
        Ok(())
    }

    /// A frame's next owner sees nothing of the one before, nor a slot's.
    fn nothing_is_inherited(&self) -> Seen {
        let kernel = self.0;
        for round in 0..3 {
            kernel.map(1, RWT);
            self.load(1, 0, 0)?;
            self.check_tags(1, |_| 0)?;
            self.fill_tags(1)?;
            self.store(1, Self::tag(1, 0), 77 + round)?;
            kernel.page_out(1);
            kernel.unmap(1);
            // An untagged page in the same slot, whose region becomes tagged while it is out.
            kernel.map(2, RW);
            self.store(2, 0, round)?;
            kernel.page_out(2);
            kernel.protect(2, RWT);
            self.check_tags(2, |_| 0)?;
            self.load(2, 0, round)?;
            kernel.unmap(2);
            // A page that is in becomes tagged: its frame had another owner's tags.
            kernel.map(3, RW);
            self.store(3, 0, round)?;
            kernel.protect(3, RWT);
            self.check_tags(3, |_| 0)?;
            self.load(3, 0, round)?;
            kernel.unmap(3);
        }
        Ok(())
    }

    /// Three pages with tags, and rooms for two.
    fn tags_find_no_room(&self) -> Seen {
        for page in 0..3 {
            self.0.map(page, RWT);
            self.fill_tags(page)?;
        }
        (0..3).for_each(|page| self.0.page_out(page));
        (0..3).try_for_each(|page| self.check_tags(page, |granule| Self::tag(page, granule)))?;
        (0..3).for_each(|page| self.0.unmap(page));
        Ok(())
    }

    /// What was read back and not stored to since is the only copy as well.
    fn leaves_twice(&self) -> Seen {
        self.0.map(0, RW);
        self.store(0, 0, 5)?;
        for _ in 0..3 {
            self.0.page_out(0);
            self.load(0, 0, 5)?;
        }
        self.0.unmap(0);
        Ok(())
    }

    /// A new page over an old one; CPU 1 must not see the old one.
    fn is_replaced(&self) -> Seen {
        self.0.map(4, RW);
        self.store(4, 0, 8)?;
        self.0.access(1, at(4), Access::Load);
        self.0.map(4, RW);
        if self.0.access(1, at(4), Access::Load) != Some(0) {
            return Err("CPU 1 sees the page that was replaced".into());
        }
        self.load(4, 0, 0)?;
        self.0.unmap(4);
        Ok(())
    }

    /// Without any right, and gone.
    fn is_shut(&self) -> Seen {
        self.0.map(5, RW);
        self.store(5, 0, 6)?;
        self.0.protect(5, Protection::empty());
        if self.0.access(0, at(5), Access::Load).is_some() {
            return Err("PROT_NONE lets a load through".into());
        }
        self.0.unmap(5);
        Ok(())
    }

    fn runs_code(&self) -> Seen {
        for round in 0..2 {
            self.0.map(6, RW);
            self.store(6, 0, 0xd65f_03c0 + round)?;
            self.0.protect(6, Protection::READ | Protection::EXEC);
            if self.0.access(0, at(6), Access::Fetch) != Some(0xd65f_03c0 + round) {
                return Err("stale instructions".into());
            }
            self.0.unmap(6);
        }
        Ok(())
    }

    /// All memory and all slots are in use: a page that is out comes back all the same.
    fn comes_back_to_a_full_house(&self) -> Seen {
        for page in 0..u64::from(SLOTS) {
            self.0.map(page, RW);
            self.store(page, 0, page + 1)?;
            self.0.page_out(page);
        }
        let comes = |guest: u64| {
            self.0.map(guest, RW);
            self.0.access(0, at(guest), Access::Store(1)).is_some()
        };
        let Some(last) = (16..400).find(|&guest| !comes(guest)) else { return Err("memory has no end".into()) };
        self.load(0, 0, 1)?;
        (0..u64::from(SLOTS)).chain(16..=last).for_each(|page| self.0.unmap(page));
        Ok(())
    }
}

/// The whole life. The error says what its program saw that it should not have.
pub fn life(kernel: &impl Kernel) -> Seen {
    let life = Life(kernel);
    life.swaps_beside_a_program()?;
    life.nothing_is_inherited()?;
    life.tags_find_no_room()?;
    life.leaves_twice()?;
    life.is_replaced()?;
    life.is_shut()?;
    life.runs_code()?;
    life.comes_back_to_a_full_house()
}
