//! The end of a folio's stay in its slots, see [`crate::swap`].

use core::ops::ControlFlow;

use super::shared::{Place, for_each_table};
use super::site::Unmapping;
use super::unmap::{survey, update_ours};
use crate::addr::{Vpn, VpnRange};
use crate::frame::{FolioLock, Frame, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::pte::{Decoded, Leaf};
use crate::table::{Cursor, LeafTable};

/// Leaves a backed folio, all of whose leaves `cursor` has, to memory alone: every leaf is dirty from now on, and the
/// slots are free. `None` when a swap entry names one of them: then it is as it was.
pub(crate) fn unback<M: Machine>(mm: &Mm<M>, cursor: &mut Cursor<'_, M>, folio: &FolioLock<'_, M>) -> Option<()> {
    if mm.is_wanted(folio) {
        return None;
    }
    make_dirty(mm, cursor, folio);
    mm.leave_slots(folio);
    Some(())
}

/// [`unback`] of a folio that is mapped wherever it may be.
fn unback_everywhere<M: Machine>(mm: &Mm<M>, folio: &FolioLock<'_, M>) -> Option<()> {
    if mm.is_wanted(folio) {
        return None;
    }
    make_dirty_everywhere(mm, folio);
    mm.leave_slots(folio);
    Some(())
}

/// Parts a backed folio, all of whose leaves `cursor` has, from its slots, for reclaim: every leaf is dirty from now
/// on, the slots that a swap entry names are out, and the others free.
///
/// Where its area takes no entries any more, as it is being turned off, that is the only way for it to leave before
/// all who share it have brought it in; and the memory for that may be what is missing. Those who have it and those
/// who do not then have a page each of the same contents.
pub(super) fn part<M: Machine>(mm: &Mm<M>, cursor: &mut Cursor<'_, M>, folio: &FolioLock<'_, M>) {
    make_dirty(mm, cursor, folio);
    mm.part_from_slots(folio);
}

/// [`part`] of a folio that is mapped wherever it may be.
pub(super) fn part_everywhere<M: Machine>(mm: &Mm<M>, folio: &FolioLock<'_, M>) {
    make_dirty_everywhere(mm, folio);
    mm.part_from_slots(folio);
}

fn make_dirty<M: Machine>(mm: &Mm<M>, cursor: &mut Cursor<'_, M>, folio: &FolioLock<'_, M>) {
    let Place { run, ours, .. } = Place::of(mm, folio);
    update_ours(cursor, run, ours, Leaf::with_dirty, |_, _| {});
}

fn make_dirty_everywhere<M: Machine>(mm: &Mm<M>, folio: &FolioLock<'_, M>) {
    // A leaf that is copied meanwhile is copied as it is then, to a table that comes later.
    for_each_table(mm, &Place::of(mm, folio), |_, cursor| {
        make_dirty(mm, cursor, folio);
        ControlFlow::Continue(())
    });
}

/// Leaves the backed folios that a part of a table maps, of the areas that `of` says, to memory alone. Under the
/// space's lock, so that none joins them meanwhile; sleeps for those that reclaim has in hand.
pub(crate) fn unback_all<M: Machine>(mm: &Mm<M>, table: LeafTable, part: VpnRange, of: impl Fn(u8) -> bool) {
    let mut left = part;
    while let Some((page, head)) = next_backed(mm, table, left, &of) {
        {
            let folio = mm.frames().lock(mm.machine(), head);
            if mm.frames().record(head).has(flag::BACKED) {
                let _ = unback_everywhere(mm, &folio);
            }
        }
        mm.release_folio(head);
        left = VpnRange::between(page.offset(1), part.end());
    }
}

/// The first page of `part` whose folio is backed, and a reference to that.
fn next_backed<M: Machine>(
    mm: &Mm<M>,
    table: LeafTable,
    part: VpnRange,
    of: impl Fn(u8) -> bool,
) -> Option<(Vpn, Frame)> {
    let frames = mm.frames();
    let cursor = table.lock(mm)?;
    (0..part.pages()).map(|page| part.start().offset(page)).find_map(|page| {
        let Decoded::Leaf(leaf) = cursor.read(page) else { return None };
        let head = frames.head(frames.frame(leaf.pfn::<M::Granule>())?);
        let record = frames.record(head);
        (record.has(flag::BACKED) && of(record.area()) && frames.get(head)).then_some((page, head))
    })
}

/// [`unback`] of a folio that has been stored to: it is to leave for new slots.
#[cold]
pub(crate) fn unback_dirty<M: Machine>(mm: &Mm<M>, folio: &FolioLock<'_, M>, unmapping: &mut Unmapping<'_, M>) {
    let Place { home, run, .. } = Place::of(mm, folio);
    let Some((site, _)) = unmapping.enter(home) else { return };
    if site.has_all(mm, folio) && survey(mm, &site.cursor, run, folio).is_dirty {
        let _ = unback(mm, &mut site.cursor, folio);
    }
}

impl<M: Machine> Mm<M> {
    /// Frees slots of some backed folios, for others that have none. Called with no spinning lock held; does not sleep.
    #[cold]
    pub(crate) fn unback_some(&self) {
        let frames = self.frames();
        for area in self.swap().areas() {
            for head in area.next_backed(frames) {
                if let Some(folio) = frames.try_lock(self.machine(), head)
                    && frames.record(head).has(flag::BACKED)
                {
                    let _ = unback_everywhere(self, &folio);
                }
                self.release_folio(head);
            }
        }
    }
}
