//! A valid leaf entry, and the proofs that its permissive forms need.

use core::fmt;
use core::marker::PhantomData;

use super::{TABLE_OR_PAGE, VALID, address_mask};
use crate::addr::Pfn;
use crate::granule::Granule;

const ATTR_TAGGED: u64 = 1 << 2;
const ATTR_MASK: u64 = 0b111 << 2;
const AP_USER: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const WRITABLE: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const SOFT_DIRTY: u64 = 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
const LOCKED: u64 = 1 << 57;
/// Bits 58:55, the software's.
const SOFTWARE: u64 = 0xf << 55;

/// What of a live leaf may change at any time: permissions, what the hardware notes, and the software's bits.
pub(super) const IN_PLACE: u64 = AP_USER | AP_READ_ONLY | ACCESSED | WRITABLE | PXN | UXN | SOFTWARE;

/// From dirty by the hardware (WRITABLE without AP_READ_ONLY) to SOFT_DIRTY, in shifts instead of branches.
const WRITABLE_OVER_READ_ONLY: u32 = WRITABLE.trailing_zeros() - AP_READ_ONLY.trailing_zeros();
const SOFT_DIRTY_OVER_WRITABLE: u32 = SOFT_DIRTY.trailing_zeros() - WRITABLE.trailing_zeros();
const SOFT_DIRTY_OVER_READ_ONLY: u32 = SOFT_DIRTY.trailing_zeros() - AP_READ_ONLY.trailing_zeros();

bitflags::bitflags! {
    /// What a program may do with a region, and what it asked for it. WRITE and EXEC imply READ, as on Linux for
    /// AArch64; none is PROT_NONE.
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    pub struct Protection: u32 {
        /// Loads.
        const READ = 1 << 0;
        /// Stores.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXEC = 1 << 2;
        /// Allocation tags (PROT_MTE). Once given, a region keeps it.
        const TAGGED = 1 << 3;
        /// What is there stays (mlock). Not passed on by fork.
        const LOCKED = 1 << 4;
        /// Single pages only, whatever folios are made elsewhere (MADV_NOHUGEPAGE).
        const SINGLE = 1 << 5;
    }
}

/// The proof that a page has no mapping but the entry at hand: what a writable anonymous leaf needs.
///
/// Neither `Copy` nor `Clone`. [`Cursor::update`](crate::table::Cursor::update) lends one for as long as it holds the
/// leaf table's lock, so that it cannot outlive what makes it true.
pub struct Exclusive<'cursor>(PhantomData<&'cursor ()>);

impl Exclusive<'_> {
    /// The proof, from whoever can give it: a fresh folio, a leaf or a swap entry with its exclusive bit, read under
    /// the lock.
    #[inline]
    pub(crate) fn proven() -> Self {
        Self(PhantomData)
    }
}

/// The proof that the instruction side sees a frame's contents.
pub struct CodeSynced(());

impl CodeSynced {
    /// The proof, from the frame record's flag or from a sync just made.
    #[inline]
    pub(crate) fn proven() -> Self {
        Self(())
    }
}

/// A valid leaf entry.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq)]
pub struct Leaf(u64);

impl Leaf {
    /// A leaf for a page of a region with `protection`: accessed, clean, exclusive, not writable, not executable,
    /// locked if the region is. The two permissive bits are added with their proofs ([`Leaf::with_write`],
    /// [`Leaf::with_execute`]).
    #[inline]
    pub fn page<G: Granule>(frame: Pfn, protection: Protection) -> Self {
        // Masked, so that the compiler knows the upper bits and folds what follows.
        let bits = frame.base::<G>().bytes() & address_mask::<G>()
            | VALID
            | TABLE_OR_PAGE
            | AP_READ_ONLY
            | INNER_SHAREABLE
            | ACCESSED
            | NOT_GLOBAL
            | PXN
            | UXN
            | EXCLUSIVE;
        let leaf = Self(bits).with_protection(protection);
        if protection.contains(Protection::LOCKED) { leaf.locked() } else { leaf }
    }

    /// The leaf that `raw` is; the caller has decoded it.
    #[inline]
    pub(super) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The descriptor's bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The first frame mapped.
    #[inline]
    pub const fn pfn<G: Granule>(self) -> Pfn {
        Pfn::new((self.0 & address_mask::<G>()) >> G::SHIFT)
    }

    /// Whether the page was used since the flag was last cleared.
    #[inline]
    pub const fn is_accessed(self) -> bool {
        self.0 & ACCESSED != 0
    }

    /// Whether the program may store to the page, be it that the first store still has to mark it dirty.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// Whether the page was stored to since it was last clean.
    #[inline]
    pub const fn is_dirty(self) -> bool {
        self.0 & SOFT_DIRTY != 0 || self.0 & (WRITABLE | AP_READ_ONLY) == WRITABLE
    }

    /// Whether the program may store to the page, and the next store has nothing to mark.
    #[inline]
    pub const fn is_stored_to(self) -> bool {
        self.0 & (WRITABLE | AP_READ_ONLY) == WRITABLE
    }

    /// Whether EL0 may fetch from the page.
    #[inline]
    pub const fn is_executable(self) -> bool {
        self.0 & UXN == 0
    }

    /// Whether EL0 may load from the page.
    #[inline]
    pub const fn is_readable(self) -> bool {
        self.0 & AP_USER != 0
    }

    /// Whether the mapping shows the page's allocation tags.
    #[inline]
    pub const fn is_tagged(self) -> bool {
        self.0 & ATTR_MASK == ATTR_TAGGED
    }

    /// Whether this entry is the page's only mapping.
    #[inline]
    pub const fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }

    /// Whether reclaim leaves the page where it is.
    #[inline]
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// The leaf that reclaim leaves alone. Rare: a branch not taken is all that it costs the others.
    #[cold]
    #[inline(never)]
    const fn locked(self) -> Self {
        Self(self.0 | LOCKED)
    }

    /// The leaf as `protection` asks reclaim to treat it.
    #[inline]
    pub const fn locked_as(self, protection: Protection) -> Self {
        if protection.contains(Protection::LOCKED) { self.locked() } else { Self(self.0 & !LOCKED) }
    }

    /// Whether the entry is one of a contiguous group.
    #[inline]
    pub const fn is_contiguous(self) -> bool {
        self.0 & CONTIGUOUS != 0
    }

    /// The leaf of the page `pages` further on in the same folio.
    #[inline]
    pub const fn nth<G: Granule>(self, pages: u64) -> Self {
        Self(self.0 + (pages << G::SHIFT))
    }

    /// The leaf that `raw` is, if it differs from this one in its address alone.
    #[inline]
    pub(crate) const fn alike<G: Granule>(self, raw: u64) -> Option<Self> {
        if (self.0 ^ raw) & !address_mask::<G>() == 0 { Some(Self(raw)) } else { None }
    }

    /// The leaf with the address of another one.
    #[inline]
    pub(crate) const fn with_address_of<G: Granule>(self, other: Self) -> Self {
        Self(self.0 & !address_mask::<G>() | other.0 & address_mask::<G>())
    }

    /// The leaf as one of a contiguous group.
    #[inline]
    pub const fn with_contiguous(self) -> Self {
        Self(self.0 | CONTIGUOUS)
    }

    /// The leaf on its own.
    #[inline]
    pub const fn without_contiguous(self) -> Self {
        Self(self.0 & !CONTIGUOUS)
    }

    /// The leaf, accessed and dirty also where `other` is.
    #[inline]
    pub const fn with_history_of(self, other: Self) -> Self {
        let leaf = Self(self.0 | other.0 & ACCESSED);
        if other.is_dirty() { leaf.with_dirty() } else { leaf }
    }

    /// Of the leaves of one group, the first with the history of all: `any` has the bits that some of them has, `all`
    /// those that all have. Dirty by the hardware is a bit that is clear.
    #[inline]
    pub(crate) const fn merged(any: u64, all: u64) -> Self {
        Self(all | any & (ACCESSED | SOFT_DIRTY))
    }

    /// Whether a leaf is dirty of those that `any` has the bits of which some of them has, and `all` those that all have:
    /// what is not writable has AP[2] set.
    #[inline]
    pub(crate) const fn one_is_dirty(any: u64, all: u64) -> bool {
        any & SOFT_DIRTY != 0 || any & WRITABLE != 0 && all & AP_READ_ONLY == 0
    }

    /// The leaf, clean and not accessed: two of one group are equal in this form.
    #[inline]
    pub const fn without_history(self) -> Self {
        self.with_clean().without_access()
    }

    /// The leaf with nothing to keep: what was stored to the page so far may be lost.
    #[inline]
    pub const fn with_clean(self) -> Self {
        Self((self.0 | AP_READ_ONLY) & !SOFT_DIRTY)
    }

    /// The leaf as one of several mappings of its page.
    #[inline]
    pub const fn without_exclusive(self) -> Self {
        Self(self.without_write().0 & !EXCLUSIVE)
    }

    /// The leaf as the only mapping of its page.
    #[inline]
    pub(crate) const fn with_exclusive(self, _proof: &Exclusive<'_>) -> Self {
        Self(self.0 | EXCLUSIVE)
    }

    /// The rights that `new`, in place of this leaf, takes away.
    #[inline]
    pub const fn loss(self, new: Self) -> Loss {
        Loss(self.0 & !new.0 & (AP_USER | WRITABLE) | new.0 & !self.0 & UXN)
    }

    /// The leaf with AF set.
    #[inline]
    pub const fn with_access(self) -> Self {
        Self(self.0 | ACCESSED)
    }

    /// The leaf with AF clear.
    #[inline]
    pub const fn without_access(self) -> Self {
        Self(self.0 & !ACCESSED)
    }

    /// The leaf made writable. A page already dirty keeps that; a clean one becomes dirty by its first store.
    #[inline]
    pub const fn with_write(self, _proof: &Exclusive<'_>) -> Self {
        let dirty = self.0 & SOFT_DIRTY;
        Self((self.0 | WRITABLE) & !(dirty | dirty >> SOFT_DIRTY_OVER_READ_ONLY))
    }

    /// The leaf without write permission; dirty stays dirty.
    #[inline]
    pub const fn without_write(self) -> Self {
        let dirty = if self.is_dirty() { SOFT_DIRTY } else { 0 };
        Self((self.0 | AP_READ_ONLY | dirty) & !WRITABLE)
    }

    /// The leaf marked dirty, as a store would.
    #[inline]
    pub const fn with_dirty(self) -> Self {
        if self.is_writable() { Self(self.0 & !AP_READ_ONLY) } else { Self(self.0 | SOFT_DIRTY) }
    }

    /// The leaf made executable.
    #[inline]
    pub const fn with_execute(self, _proof: &CodeSynced) -> Self {
        Self(self.0 & !UXN)
    }

    /// The leaf with what `protection` forbids taken away, and with the access and memory type it asks for. Write and
    /// execute permission are never added here: they need their proofs.
    #[inline]
    pub const fn with_protection(self, protection: Protection) -> Self {
        Rights::of(protection).without_write(self)
    }

    /// The leaf with its page's allocation tags shown. Another memory type: not in place of a live entry without.
    #[inline]
    pub const fn with_tags(self) -> Self {
        Self((self.0 & !ATTR_MASK) | ATTR_TAGGED)
    }
}

/// Rights that a leaf lost.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Loss(u64);

impl Loss {
    /// None at all.
    pub const NONE: Self = Self(0);

    /// Both.
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any is among them.
    #[inline]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Whether the right to execute is among them.
    #[inline]
    pub const fn of_execution(self) -> bool {
        self.0 & UXN != 0
    }
}

/// What a protection makes of any leaf, worked out once for a run of them.
#[derive(Copy, Clone)]
pub struct Rights {
    clear: u64,
    set: u64,
}

impl Rights {
    /// The rights of `protection`.
    #[inline]
    pub const fn of(protection: Protection) -> Self {
        let mut rights = Self { clear: 0, set: 0 };
        if !protection.contains(Protection::WRITE) {
            rights = Self { clear: WRITABLE, set: AP_READ_ONLY };
        }
        if !protection.contains(Protection::EXEC) {
            rights.set |= UXN;
        }
        let access = Protection::READ.union(Protection::WRITE).union(Protection::EXEC);
        if protection.intersects(access) {
            rights.set |= AP_USER;
        } else {
            rights.clear |= AP_USER;
        }
        if protection.contains(Protection::TAGGED) {
            rights.clear |= ATTR_MASK;
            rights.set |= ATTR_TAGGED;
        }
        rights
    }

    /// Whether leaves may be writable.
    #[inline]
    pub(crate) const fn include_write(self) -> bool {
        self.clear & WRITABLE == 0
    }

    /// The leaf with these rights, but for those to store and to execute, which it may only lose here.
    #[inline]
    pub(crate) const fn without_write(self, leaf: Leaf) -> Leaf {
        // Dirty by the hardware becomes dirty by the software when the leaf stops being writable.
        let dirty = leaf.0 & !(leaf.0 << WRITABLE_OVER_READ_ONLY) & self.clear & WRITABLE;
        Leaf(leaf.0 & !self.clear | self.set | dirty << SOFT_DIRTY_OVER_WRITABLE)
    }

    /// The leaf with these rights, which include that to store, but for that to execute, which it may only lose here.
    #[inline]
    pub(crate) const fn with_write(self, leaf: Leaf, proof: Option<&Exclusive<'_>>) -> Leaf {
        let leaf = Leaf(leaf.0 & !self.clear | self.set);
        match proof {
            Some(proof) => leaf.with_write(proof),
            None => leaf,
        }
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: bool, name: char| if set { name } else { '-' };
        write!(
            f,
            "leaf:{:#x}[{}{}{}{}{}{}{}{}{}]",
            self.0,
            flag(self.is_readable(), 'r'),
            flag(self.is_writable(), 'w'),
            flag(self.is_executable(), 'x'),
            flag(self.is_tagged(), 't'),
            flag(self.is_accessed(), 'a'),
            flag(self.is_dirty(), 'd'),
            flag(self.is_exclusive(), 'e'),
            flag(self.is_contiguous(), 'c'),
            flag(self.is_locked(), 'l'),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granule::K4;

    fn page(protection: Protection) -> Leaf {
        Leaf::page::<K4>(Pfn::new(0x43215), protection)
    }

    #[test]
    fn a_clean_writable_page_is_not_read_only() {
        let leaf = page(Protection::WRITE).with_write(&Exclusive::proven());
        assert!(leaf.is_writable() && !leaf.is_dirty());
        assert_eq!(leaf.raw() & AP_READ_ONLY, AP_READ_ONLY);
        assert!(leaf.with_dirty().is_dirty());
    }

    #[test]
    fn dirty_survives_losing_and_regaining_write() {
        let dirty = page(Protection::WRITE).with_write(&Exclusive::proven()).with_dirty();
        let protected = dirty.without_write();
        assert!(protected.is_dirty() && !protected.is_writable());
        assert_eq!(protected.with_write(&Exclusive::proven()), dirty);
        let clean = page(Protection::WRITE).with_write(&Exclusive::proven()).without_write();
        assert!(!clean.is_dirty());
    }

    #[test]
    fn history_is_the_union_and_can_be_taken_away() {
        let fresh = page(Protection::WRITE).with_write(&Exclusive::proven()).without_access();
        for old in [fresh, fresh.without_write()] {
            let used = old.with_dirty().with_access();
            assert!(old.with_history_of(used).is_dirty() && old.with_history_of(used).is_accessed());
            assert_eq!(used.with_history_of(old), used);
            assert_eq!(used.without_history(), old);
            assert_eq!(used.with_clean(), old.with_access());
        }
    }

    #[test]
    fn unknown_bits_survive_every_change() {
        let odd = 1 << 57 | 1 << 58 | 1 << 5 | CONTIGUOUS;
        for prot in 0..16 {
            let leaf = Leaf(page(Protection::READ).raw() | odd);
            let changed = leaf
                .with_protection(Protection::from_bits_retain(prot))
                .with_write(&Exclusive::proven())
                .with_dirty()
                .without_write()
                .without_access();
            assert_eq!(changed.raw() & odd, odd);
            assert_eq!(changed.pfn::<K4>(), leaf.pfn::<K4>());
        }
    }

    #[test]
    fn alike_leaves_differ_in_the_address_alone() {
        let leaf = page(Protection::WRITE).with_write(&Exclusive::proven());
        let other = leaf.nth::<K4>(0x1_2345);
        assert_eq!(leaf.alike::<K4>(other.raw()), Some(other));
        assert_eq!(leaf.with_dirty().with_address_of::<K4>(other), other.with_dirty());
        for bit in (0..12).chain(48..64) {
            assert_eq!(leaf.alike::<K4>(other.raw() ^ 1 << bit), None, "bit {bit}");
        }
    }

    #[test]
    fn protection_none_shuts_el0_out() {
        assert!(!page(Protection::empty()).is_readable());
        assert!(!page(Protection::TAGGED).is_readable());
        assert!(page(Protection::EXEC).is_readable() && !page(Protection::EXEC).is_executable());
        assert!(page(Protection::TAGGED | Protection::READ).is_tagged());
    }
}
