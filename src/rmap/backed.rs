//! The end of a folio's stay in its slots, see [`crate::swap`].

use super::unmap::{Site, survey, update_ours};
use crate::addr::{PfnRange, Vpn, VpnRange};
use crate::frame::{FolioLock, Frame, flag};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Decoded, Leaf};
use crate::table::{Cursor, LeafTable};

/// Leaves a backed folio, all of whose entries `cursor` has, to memory alone: every leaf is dirty from now on, and the
/// slots are free.
pub(crate) fn unback<M: Machine>(mm: &Mm<M>, cursor: &mut Cursor<'_, M>, folio: &FolioLock<'_, M>) {
    let record = mm.frames().record(folio.frame());
    let pages = 1 << record.order();
    let run = VpnRange::new(Home::load(&record.home).page(), pages);
    update_ours(cursor, run, PfnRange::new(mm.frames().pfn(folio.frame()), pages), Leaf::with_dirty, |_, _| {});
    mm.leave_slots(folio);
}

/// Leaves the backed folios that a part of a table maps, of the areas that `of` says, to memory alone. Under the space's
/// lock, so that none joins them meanwhile; sleeps for those that reclaim has in hand.
pub(crate) fn unback_all<M: Machine>(mm: &Mm<M>, table: LeafTable, part: VpnRange, of: impl Fn(u8) -> bool) {
    let mut left = part;
    while let Some((page, head)) = next_backed(mm, table, left, &of) {
        {
            let folio = mm.frames().lock(mm.machine(), head);
            mm.unback_at_home(&folio);
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

/// [`unback`] of a folio that has been stored to: it is to leave for new slots. `site` as for
/// [`unmap`](super::unmap).
#[cold]
pub(crate) fn unback_dirty<'a, M: Machine>(mm: &'a Mm<M>, folio: &FolioLock<'_, M>, site: &mut Option<Site<'a, M>>) {
    let record = mm.frames().record(folio.frame());
    let home = Home::load(&record.home);
    let Some(cursor) = Site::at(site, mm, home) else { return };
    if survey(mm, cursor, VpnRange::new(home.page(), 1 << record.order()), folio).is_dirty {
        unback(mm, cursor, folio);
    }
}

impl<M: Machine> Mm<M> {
    /// Frees slots of some backed folios, for others that have none. Called with no spinning lock held; does not sleep.
    #[cold]
    pub(crate) fn unback_some(&self) {
        let frames = self.frames();
        for area in self.swap().areas() {
            for head in area.next_backed(frames) {
                if let Some(folio) = frames.try_lock(self.machine(), head) {
                    self.unback_at_home(&folio);
                }
                self.release_folio(head);
            }
        }
    }

    /// [`unback`] of a folio, if it is backed and mapped where its home says.
    pub(crate) fn unback_at_home(&self, folio: &FolioLock<'_, M>) {
        let record = self.frames().record(folio.frame());
        if !record.has(flag::BACKED) {
            return;
        }
        let mut site = None;
        // Its tables are gone: then it is, as soon as the last reference is.
        let Some(cursor) = Site::at(&mut site, self, Home::load(&record.home)) else { return };
        unback(self, cursor, folio);
    }
}
