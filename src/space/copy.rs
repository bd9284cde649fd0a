//! Stores to shared pages: the space gets a copy, or its page back.
//!
//! A leaf that is not exclusive is not writable, whatever the region allows. The first store faults, and:
//!
//! - **The page is the space's alone by now**: the others have gone, or have copies of their own. All mappings of the
//!   folio are in this table, and no swap entry leads to it. Then its entries become exclusive again, and the space its
//!   home. This is looked at under the folio's lock, taken by try-lock, so that neither reclaim nor a swap-in of
//!   another space is half way through with it.
//! - **Others have it as well**: a new page with the same data and tags takes its place, by break-before-make. The old
//!   one cannot change meanwhile, as nobody's entry is writable. If it has gone out by then, maybe for the very frame
//!   that the copy needs, it is read into that frame ([`Space::swap_in_copy`]).

use super::fault::{FaultError, Found, Step};
use super::{Protection, Space};
use crate::addr::{Pfn, PfnRange, Vpn, VpnRange};
use crate::frame::{Frame, Kind, MAP, OwnedFrame, flag};
use crate::machine::{Machine, Tags};
use crate::mm::Mm;
use crate::node::Home;
use crate::pte::{Decoded, Exclusive, Leaf};
use crate::rmap::{mapped_in, update_ours};
use crate::table::{Cursor, Edge};
use crate::tlb::Flush;

impl<M: Machine> Space<M> {
    /// Makes the folio that a shared leaf shows the space's own, if nobody else has any of it.
    pub(super) fn take_back(&self, mm: &Mm<M>, cursor: &mut Cursor<'_, M>, page: Vpn, leaf: Leaf) -> Option<()> {
        let frames = mm.frames();
        let frame = frames.frame(leaf.pfn::<M::Granule>())?;
        let head = frames.head(frame);
        let record = frames.record(head);
        let run = VpnRange::new(page.before(u64::from(frame.index() - head.index()))?, 1 << record.order());
        let ours = PfnRange::new(frames.pfn(head), run.pages());
        let maps = u64::from(record.count.maps());
        // While others have it there are mostly more than this table has room for.
        if maps > run.pages() || maps != mapped_in(cursor, run, ours) {
            return None;
        }
        let folio = frames.try_lock(mm.machine(), head)?;
        // One that the device refused keeps its slots until whoever gave up their last use lets go of them: what those
        // have of its tags, and of pages of one word, is for good.
        let is_kept = record.has(flag::KEPT);
        if u64::from(record.count.maps()) != maps || frames.is_pinned(head) || is_kept || mm.is_wanted(&folio) {
            return None;
        }
        Home::new(self.node, run.start()).store(&record.home);
        // As just shown.
        let proof = Exclusive::proven();
        update_ours(cursor, run, ours, |leaf| leaf.with_exclusive(&proof), |_, _| {});
        mm.stats().reuses.bump();
        Some(())
    }

    /// Gives the space a copy of a page that it shares.
    #[inline(never)]
    pub(super) fn copy(&self, mm: &Mm<M>, at: &Found<'_>) -> Result<Step, FaultError> {
        let Found { page, table, protection, .. } = *at;
        let frames = mm.frames();
        let Some(folio) = mm.take_frame(Kind::Folio) else { return Err(FaultError::NoMemory) };
        let old = {
            let Some(mut cursor) = table.lock(mm) else { return Ok(Step::Again) };
            let shared = match cursor.read(page) {
                Decoded::Leaf(shared) => shared,
                // It has gone out, maybe for this very frame: to bring it in to another would be for ever.
                Decoded::Swapped(entry) => {
                    drop(cursor);
                    return self.swap_in_copy(mm, at, entry, folio);
                }
                _ => return Ok(Step::Again),
            };
            let Some(frame) = frames.frame(shared.pfn::<M::Granule>()).filter(|_| !shared.is_exclusive()) else {
                return Ok(Step::Again);
            };
            copy_contents(mm, frame, (&folio, folio.frame()), protection);
            let record = frames.record(folio.frame());
            Home::new(self.node, page).store(&record.home);
            record.count.begin(MAP);
            if shared.is_contiguous() {
                self.unfold(mm, &mut cursor, page);
            }
            cursor.replace(page, self.node, leaf_of_copy::<M>(folio.pfn(), protection));
            frames.head(frame)
        };
        mm.release_map(old);
        mm.reclaim().insert(frames, folio.publish());
        mm.stats().copies.bump();
        Ok(Step::Done)
    }

    /// Breaks the group of a page up.
    #[cold]
    #[inline(never)]
    fn unfold(&self, mm: &Mm<M>, cursor: &mut Cursor<'_, M>, page: Vpn) {
        cursor.fit(VpnRange::new(page, 1), Edge::Unfold, self.node, &mut Flush::new(mm));
    }
}

/// The leaf of a page that nobody else knows of yet, and that is to be kept.
pub(super) fn leaf_of_copy<M: Machine>(frame: Pfn, protection: Protection) -> Leaf {
    let leaf = Leaf::page::<M::Granule>(frame, protection).with_dirty();
    if protection.contains(Protection::WRITE) { leaf.with_write(&Exclusive::proven()) } else { leaf }
}

/// Fills page `to` of a new folio with the data and the tags of `from`.
#[inline(always)]
pub(super) fn copy_contents<M: Machine>(
    mm: &Mm<M>,
    from: Frame,
    (folio, to): (&OwnedFrame<'_>, Frame),
    protection: Protection,
) {
    let (frames, machine) = (mm.frames(), mm.machine());
    let is_tagged = frames.record(from).has(flag::TAGS_VALID);
    machine.copy_page(frames.pfn(from), frames.pfn(to), if is_tagged { Tags::Include } else { Tags::Ignore });
    if !is_tagged {
        if !protection.contains(Protection::TAGGED) {
            return;
        }
        machine.zero_tags(frames.pfn(to));
    }
    folio.mark_page(to, flag::TAGS_VALID);
}
