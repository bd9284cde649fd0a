//! Fork trees: which space came from which.
//!
//! A space that was made from nothing is at the top of a tree of its own; one that was forked stands below its parent.
//! **The family lock** of a tree is that of its top node. Shared, it keeps the tree and the table trees of its spaces
//! as they are: reclaim walks under it. Exclusive, it is held for moments, to link a child, to mark a node dead, and to
//! detach a table.
//!
//! **Parents before children.** [`Mm::next_of_kin`] goes through a subtree in this order, as fork copies entries from
//! parent to child: who has looked at the parent's entry finds at the child what it has got from there by then.
//!
//! **Death.** A space that ends marks its node dead, so that no walk enters its tables any more. The node stays,
//! buried, while any space that came from it lives: folios that have their home there may be mapped by these.

use super::{ALIVE, BURIED, Context, Node, NodeId};
use crate::addr::Pfn;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::sync::{AtomicU32, Ordering, SharedGuard};

/// A node's links: numbers of nodes, plus one; 0 for none. They change under the family lock, held exclusively.
#[derive(Default)]
pub(super) struct Kin {
    /// The top of the tree.
    top: AtomicU32,
    parent: AtomicU32,
    /// The youngest child.
    child: AtomicU32,
    /// The parent's next older child.
    sibling: AtomicU32,
}

fn load(link: &AtomicU32) -> Option<NodeId> {
    link.load(Ordering::Relaxed).checked_sub(1).map(NodeId)
}

fn store(link: &AtomicU32, node: Option<NodeId>) {
    link.store(node.map_or(0, |node| node.0 + 1), Ordering::Relaxed);
}

impl Node {
    /// The root table, if the space lives. Stable while the family lock is held.
    #[inline]
    pub(crate) fn root(&self) -> Option<Pfn> {
        let root = self.root.load(Ordering::Relaxed);
        (root & ALIVE != 0).then_some(Pfn::new(root & !ALIVE))
    }

    /// Whether a space came from this one whose node is still there. Stable while the family lock is held.
    #[inline]
    pub(crate) fn has_children(&self) -> bool {
        load(&self.kin.child).is_some()
    }

    fn is_buried(&self) -> bool {
        self.root.load(Ordering::Relaxed) & BURIED != 0
    }
}

impl<M: Machine> Mm<M> {
    /// The tree of a node, which stays as it is while this is held.
    #[inline]
    pub(crate) fn family(&self, id: NodeId) -> Option<SharedGuard<'_>> {
        let node = self.node(id)?;
        loop {
            let top = load(&node.kin.top)?;
            let family = self.node(top)?.family.read();
            // A node that was nobody's in between may be in another tree now.
            if load(&node.kin.top) == Some(top) {
                return Some(family);
            }
        }
    }

    /// [`Mm::family`], alone.
    pub(crate) fn family_alone(&self, id: NodeId) -> Option<SharedGuard<'_>> {
        // Who asks has a space of the tree, so that the top stays.
        Some(self.node(load(&self.node(id)?.kin.top)?)?.family.write())
    }

    /// The top of the tree of a space's node.
    pub(crate) fn top(&self, id: NodeId) -> NodeId {
        self.node(id).and_then(|node| load(&node.kin.top)).unwrap_or(id)
    }

    /// The node after `at` in the subtree below `top`, parents before children. Under the family lock.
    pub(crate) fn next_of_kin(&self, top: NodeId, at: NodeId) -> Option<NodeId> {
        let child = load(&self.node(at)?.kin.child);
        if child.is_some() {
            return child;
        }
        let mut at = at;
        while at != top {
            let kin = &self.node(at)?.kin;
            let sibling = load(&kin.sibling);
            if sibling.is_some() {
                return sibling;
            }
            at = load(&kin.parent)?;
        }
        None
    }

    /// Makes a node that of a living space, which has not run yet: at the top of a tree, or as a child of `parent`,
    /// whose space's lock the caller holds.
    pub(crate) fn plant(&self, id: NodeId, parent: Option<NodeId>, root: Pfn) {
        let Some(node) = self.node(id) else { return };
        let top = parent.map_or(id, |parent| self.top(parent));
        let _family = self.node(top).map(|top| top.family.write());
        Context::NONE.store(&node.context);
        let above = parent.and_then(|parent| self.node(parent));
        store(&node.kin.parent, parent);
        store(&node.kin.child, None);
        store(&node.kin.sibling, above.and_then(|above| load(&above.kin.child)));
        node.root.store(root.number() | ALIVE, Ordering::Relaxed);
        store(&node.kin.top, Some(top));
        if let Some(above) = above {
            store(&above.kin.child, Some(id));
        }
    }

    /// Marks a node dead: from here on no reclaim enters its tables.
    pub(crate) fn kill(&self, id: NodeId) {
        let _family = self.family_alone(id);
        if let Some(node) = self.node(id) {
            node.root.store(0, Ordering::Relaxed);
        }
    }

    /// Gives a dead node back whose space is gone, with those above it that were waiting for that, unless others came
    /// from it. None is in a tree from then on: who still knows one, and waited for this tree's lock, must not take it
    /// for that of the tree where the node is planted next.
    pub(crate) fn bury(&self, id: NodeId) {
        let mut last = None;
        {
            let _family = self.family_alone(id);
            let mut dead = Some(id);
            while let Some((id, node)) = dead.and_then(|id| Some((id, self.node(id)?))) {
                node.root.store(BURIED, Ordering::Relaxed);
                if node.has_children() {
                    break;
                }
                // The lock that is held is the top's: that one goes last.
                store(&node.kin.top, None);
                let Some(parent) = load(&node.kin.parent) else {
                    last = Some(id);
                    break;
                };
                self.unlink(parent, id);
                self.give_node(id);
                dead = Some(parent).filter(|&parent| self.node(parent).is_some_and(Node::is_buried));
            }
        }
        if let Some(top) = last {
            self.give_node(top);
        }
    }

    /// Takes a node out of its parent's children.
    fn unlink(&self, parent: NodeId, id: NodeId) {
        let kin = |id| self.node(id).map(|node| &node.kin);
        let mut link = kin(parent).map(|kin| &kin.child);
        while let Some((at, here)) = link.and_then(|link| Some((link, load(link)?))) {
            let next = kin(here).map(|kin| &kin.sibling);
            if here == id {
                return store(at, next.and_then(load));
            }
            link = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::frame::FrameRecord;
    use crate::granule::K4;
    use crate::machine::emu::{Emu, EmuConfig};
    use crate::{Memory, Space};

    #[test]
    fn links_name_every_node_and_none() {
        let link = AtomicU32::new(0);
        assert_eq!(load(&link), None);
        for id in [0, 1, 1 << 27] {
            store(&link, Some(NodeId(id)));
            assert_eq!(load(&link), Some(NodeId(id)));
        }
        store(&link, None);
        assert_eq!(load(&link), None);
    }

    /// Who waited for a tree's lock finds out that the node is in that tree no more. A parent's stays as long as a child's.
    #[test]
    fn a_node_that_is_given_back_is_in_no_tree() {
        let emu = Emu::<K4>::new(EmuConfig { frames: 128, ..EmuConfig::default() });
        let span = emu.frames();
        let records = vec![0u64; 128 * size_of::<FrameRecord>() / 8].leak();
        let memory = Memory { span, records: core::ptr::NonNull::from(records).cast(), free: &[span] };
        // SAFETY: the records are zeroed and stay; all of the emulator's frames are the library's.
        let mm = unsafe { Mm::new(emu, memory) }.unwrap();
        let parent = Space::new(&mm).unwrap();
        let child = parent.fork(&mm).unwrap();
        let nodes = [parent.node(), child.node()];
        assert!(parent.destroy(&mm).is_ok());
        assert!(nodes.iter().all(|&node| mm.family(node).is_some()));
        assert!(child.destroy(&mm).is_ok());
        assert!(nodes.iter().all(|&node| mm.family(node).is_none()));
    }
}
