//! Nodes: what a space is known by, outside of itself.
//!
//! A [`Node`] is a space's place in its fork tree ([`tree`]). It has the space's root table and its
//! [address space identifier](asid). A [`Home`] names a node and a page in one word. Nodes are never freed to another
//! type, so a stale home leads to a dead node or to an entry that names another frame, not astray.

mod asid;
mod tree;

pub(crate) use asid::Asids;
use tree::Kin;

use core::fmt;

use crate::addr::Vpn;
use crate::frame::slab::{Linked, Plain};
use crate::machine::Asid;
use crate::sync::{AtomicU32, AtomicU64, Ordering, SpinShared};
use asid::Context;

/// Bits of a home's node number.
const NODE_BITS: u32 = 28;
/// Bits of a home's page number: 48-bit addresses in 4 KiB pages need 36.
const PAGE_BITS: u32 = 64 - NODE_BITS;

/// Where a folio, or the first page of a leaf table, belongs.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq)]
pub struct Home(u64);

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "home:{}:{:?}", self.node().0, self.page())
    }
}

impl Home {
    /// The home at `page` of the space of node `node`.
    #[inline]
    pub(crate) const fn new(node: NodeId, page: Vpn) -> Self {
        Self((node.0 as u64) << PAGE_BITS | page.number() & ((1 << PAGE_BITS) - 1))
    }

    #[inline]
    pub(crate) fn load(word: &AtomicU64) -> Self {
        Self(word.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn store(self, word: &AtomicU64) {
        word.store(self.0, Ordering::Relaxed);
    }

    /// The space's node.
    #[inline]
    pub const fn node(self) -> NodeId {
        NodeId((self.0 >> PAGE_BITS) as u32)
    }

    /// The page at which alone the folio's first page may be mapped.
    #[inline]
    pub const fn page(self) -> Vpn {
        Vpn::new(self.0 & ((1 << PAGE_BITS) - 1))
    }
}

/// The number of a node.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct NodeId(pub(crate) u32);

/// Set in [`Node::root`] while the space lives.
const ALIVE: u64 = 1 << 63;
/// Set in [`Node::root`] when all of the space is gone: the node stays for those that came from it.
const BURIED: u64 = 1 << 62;

/// A space's place in its fork tree.
///
/// 64 bytes. All zero is a dead node.
#[repr(C, align(64))]
pub struct Node {
    /// The frame number of the space's root table, with bit 63 while the space lives. Changes under the family lock.
    root: AtomicU64,
    /// What its translations are known by; see [`asid`].
    context: AtomicU64,
    /// Links free nodes.
    link: AtomicU32,
    /// At the top of a fork tree: guards the links of the tree, and the table trees of its spaces against walks by
    /// reclaim.
    family: SpinShared,
    kin: Kin,
}

// SAFETY: atomics; all zero is a dead node with a free lock; nothing is owned.
unsafe impl Plain for Node {}
// SAFETY: `link` is touched by the slab alone.
unsafe impl Linked for Node {
    fn link(&self) -> &AtomicU32 {
        &self.link
    }
}

impl Node {
    /// The identifier that the space's translations carry now. An invalidation reads it after the table stores were
    /// fenced: see [`asid`].
    #[inline]
    pub(crate) fn asid(&self) -> Asid {
        Context::load(&self.context).asid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_keeps_node_and_page() {
        let home = Home::new(NodeId((1 << NODE_BITS) - 1), Vpn::new((1 << 36) - 1));
        assert_eq!(home.node(), NodeId((1 << NODE_BITS) - 1));
        assert_eq!(home.page(), Vpn::new((1 << 36) - 1));
    }
}
