//! What happens in a random life.

use super::Dice;

/// What happens.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum What {
    Load,
    LoadRun,
    Store,
    StoreRun,
    LoadTag,
    StoreTag,
    FillTags,
    WrongTag,
    Fetch,
    CheckPage,
    Map,
    /// A region of whole groups: others seldom have one. Not in [`What::ALL`].
    MapGroups,
    Unmap,
    Protect,
    DontNeed,
    Free,
    Cold,
    PageOut,
    WillNeed,
    Balance,
    Switch,
    Remake,
}

impl What {
    /// Each as often as it shall happen.
    pub const ALL: [Self; 35] = [
        Self::Load,
        Self::Load,
        Self::LoadRun,
        Self::LoadRun,
        Self::Store,
        Self::Store,
        Self::StoreRun,
        Self::StoreRun,
        Self::StoreRun,
        Self::LoadTag,
        Self::StoreTag,
        Self::StoreTag,
        Self::FillTags,
        Self::FillTags,
        Self::FillTags,
        Self::WrongTag,
        Self::Fetch,
        Self::Fetch,
        Self::CheckPage,
        Self::CheckPage,
        Self::Map,
        Self::Map,
        Self::Map,
        Self::Map,
        Self::Unmap,
        Self::Protect,
        Self::Protect,
        Self::DontNeed,
        Self::Free,
        Self::Cold,
        Self::PageOut,
        Self::PageOut,
        Self::WillNeed,
        Self::Balance,
        Self::Switch,
    ];
}

/// One thing that happens, with numbers to choose the details by.
#[derive(Copy, Clone, Debug)]
pub struct Op {
    pub what: What,
    pub cpu: u8,
    pub page: u8,
    pub pages: u8,
    pub choice: u16,
}

impl Op {
    pub fn random(dice: &mut Dice) -> Self {
        let word = dice.roll();
        // A space ends seldom, so that lives grow long.
        let what = if word >> 56 == 0 { What::Remake } else { What::ALL[(word >> 40) as usize % What::ALL.len()] };
        Self { what, cpu: word as u8, page: (word >> 8) as u8, pages: (word >> 16) as u8, choice: (word >> 24) as u16 }
    }
}
