//! The translation granule: every size that follows from the page size, as associated constants.
//!
//! A [`Granule`] is chosen at compile time by the [`Machine`](crate::machine::Machine). The relations between
//! the numbers are asserted at the bottom of this file (Arm ARM, D8.2, "Translation granules").

/// Bytes that one MTE allocation tag covers (Arm ARM, D10.1).
pub const TAG_GRANULE_BYTES: usize = 16;

/// The largest page of any granule, in bytes: 64 KiB.
pub const MAX_PAGE_BYTES: usize = 64 << 10;

/// Sizes and counts of one translation granule.
pub trait Granule: 'static + Send + Sync + Sized {
    /// log2 of the page size in bytes.
    const SHIFT: u32;
    /// Level-3 entries of one contiguous group (Arm ARM, D8.7.1, "The Contiguous bit").
    const GROUP_PAGES: usize;
    /// TCR_EL1.TG0 for this granule.
    const TCR_TG0: u64;
    /// The TG field of a range TLBI operand.
    const TLBI_TG: u64;

    /// The page size in bytes.
    const SIZE: usize = 1 << Self::SHIFT;
    /// log2 of the entries in one table: a table is one page of 8-byte descriptors.
    const INDEX_BITS: u32 = Self::SHIFT - 3;
    /// Entries of one table.
    const ENTRIES: usize = 1 << Self::INDEX_BITS;
    /// Bytes of virtual address that one contiguous group spans.
    const GROUP_BYTES: usize = Self::GROUP_PAGES << Self::SHIFT;
    /// log2 of [`Granule::GROUP_PAGES`].
    const GROUP_ORDER: u32 = Self::GROUP_PAGES.trailing_zeros();
    /// Bytes of packed tags of one page: 4 bits for each 16 bytes, 1/32 of the page.
    const TAG_BYTES: usize = Self::SIZE / TAG_GRANULE_BYTES / 2;
    /// 64-bit words of packed tags of one page.
    const TAG_WORDS: usize = Self::TAG_BYTES / 8;

    /// A page's packed tags: [`Granule::TAG_WORDS`] words.
    type TagWords: Copy + AsRef<[u64]> + AsMut<[u64]>;
    /// All tags zero.
    const ZERO_TAGS: Self::TagWords;
}

/// The 4 KiB granule.
pub struct K4;
/// The 16 KiB granule.
pub struct K16;
/// The 64 KiB granule.
pub struct K64;

impl Granule for K4 {
    const SHIFT: u32 = 12;
    const GROUP_PAGES: usize = 16;
    const TCR_TG0: u64 = 0b00;
    const TLBI_TG: u64 = 0b01;
    type TagWords = [u64; 16];
    const ZERO_TAGS: Self::TagWords = [0; 16];
}

impl Granule for K16 {
    const SHIFT: u32 = 14;
    const GROUP_PAGES: usize = 128;
    const TCR_TG0: u64 = 0b10;
    const TLBI_TG: u64 = 0b10;
    type TagWords = [u64; 64];
    const ZERO_TAGS: Self::TagWords = [0; 64];
}

impl Granule for K64 {
    const SHIFT: u32 = 16;
    const GROUP_PAGES: usize = 32;
    const TCR_TG0: u64 = 0b01;
    const TLBI_TG: u64 = 0b11;
    type TagWords = [u64; 256];
    const ZERO_TAGS: Self::TagWords = [0; 256];
}

/// A level of the stage-1 walk. Level 3 holds pages; the root level depends on the size of the address space.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
#[repr(u8)]
pub enum Level {
    /// Level 0, the largest span.
    L0 = 0,
    /// Level 1.
    L1 = 1,
    /// Level 2.
    L2 = 2,
    /// Level 3: the leaf tables.
    L3 = 3,
}

impl Level {
    /// The leaf level.
    pub const LEAF: Self = Self::L3;

    /// log2 of the bytes that one entry of this level spans.
    #[inline]
    pub const fn shift<G: Granule>(self) -> u32 {
        G::SHIFT + (3 - self as u32) * G::INDEX_BITS
    }

    /// The next level down; `None` below a leaf table.
    #[inline]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// The level at which the walk of a `va_bits`-bit address space starts (Arm ARM, D8.2.5 to D8.2.8).
    #[inline]
    pub const fn root<G: Granule>(va_bits: u32) -> Self {
        let tables = (va_bits - G::SHIFT).div_ceil(G::INDEX_BITS);
        match tables {
            0 | 1 => Self::L3,
            2 => Self::L2,
            3 => Self::L1,
            _ => Self::L0,
        }
    }
}

const _: () = {
    assert!(K4::SIZE == 4 << 10 && K4::ENTRIES == 512 && K4::GROUP_BYTES == 64 << 10);
    assert!(K16::SIZE == 16 << 10 && K16::ENTRIES == 2048 && K16::GROUP_BYTES == 2 << 20);
    assert!(K64::SIZE == 64 << 10 && K64::ENTRIES == 8192 && K64::GROUP_BYTES == 2 << 20);
    assert!(size_of::<<K4 as Granule>::TagWords>() == K4::TAG_BYTES);
    assert!(size_of::<<K16 as Granule>::TagWords>() == K16::TAG_BYTES);
    assert!(size_of::<<K64 as Granule>::TagWords>() == K64::TAG_BYTES);
    // 4096 B / 16 B x 4 bit = 128 B.
    assert!(K4::TAG_BYTES == 128 && K16::TAG_BYTES == 512 && K64::TAG_BYTES == 2 << 10);
    assert!(Level::L2.shift::<K4>() == 21 && Level::L1.shift::<K4>() == 30 && Level::L0.shift::<K4>() == 39);
    assert!(Level::L2.shift::<K16>() == 25 && Level::L2.shift::<K64>() == 29);
    assert!(Level::root::<K4>(39) as u8 == 1 && Level::root::<K4>(48) as u8 == 0);
    assert!(Level::root::<K16>(39) as u8 == 1 && Level::root::<K64>(39) as u8 == 2);
};
