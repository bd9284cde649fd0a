//! The record of the model: what one unit of the area must be.

use user::sys::Prot;

/// What a unit must be: the record of the model. Contents number 0 is zeros, tags number 0 is no tags.
#[derive(Clone, Copy)]
pub struct Unit {
    pub contents: u32,
    pub tags: u32,
    /// Number of a later store of one word, 0 if there was none.
    pub store: u32,
    pub mapped: bool,
    pub readable: bool,
    pub writable: bool,
    pub mte: bool,
}

impl Unit {
    /// As mmap makes it, with [`Prot::MTE`] or [`Prot::NONE`] beside the right to read and write.
    pub const fn mapped(tagging: Prot) -> Self {
        let mte = matches!(tagging, Prot::MTE);
        Self { contents: 0, tags: 0, store: 0, mapped: true, readable: true, writable: true, mte }
    }

    /// Nothing is mapped here.
    pub const HOLE: Self = Self { mapped: false, readable: false, writable: false, ..Self::mapped(Prot::NONE) };

    /// The record's stored form.
    pub fn to_words(self) -> [u64; 3] {
        let flags = [self.mapped, self.readable, self.writable, self.mte];
        [
            u64::from(self.contents) | u64::from(self.tags) << 32,
            u64::from(self.store),
            flags.into_iter().rev().fold(0, |bits, flag| bits << 1 | u64::from(flag)),
        ]
    }

    /// The record from its stored form.
    pub fn from_words([numbers, store, flags]: [u64; 3]) -> Self {
        Self {
            contents: numbers as u32,
            tags: (numbers >> 32) as u32,
            store: store as u32,
            mapped: flags & 1 != 0,
            readable: flags & 2 != 0,
            writable: flags & 4 != 0,
            mte: flags & 8 != 0,
        }
    }

    /// Its permission.
    pub fn prot(self) -> Prot {
        let access = match (self.readable, self.writable) {
            (_, true) => Prot::READ_WRITE,
            (true, false) => Prot::READ,
            (false, false) => Prot::NONE,
        };
        access | self.tagging()
    }

    /// The part of its permission that tells whether it has tags.
    pub fn tagging(self) -> Prot {
        if self.mte { Prot::MTE } else { Prot::NONE }
    }
}
