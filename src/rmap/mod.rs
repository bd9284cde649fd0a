//! The reverse map: who may map this folio.
//!
//! A folio's home is a [node](crate::node) and a virtual page: only that space and those that came from it may map it,
//! and only at that page. So the reverse map costs one word in the frame record and allocates nothing per page.
//!
//! **Protocol.** A home is an allegation until the leaf entry under the table's lock confirms it: the reader takes the
//! family lock of the node's tree (shared), finds the node alive, walks its tables, locks the leaf table, and compares
//! the entry's frame; and so on for the nodes below, parents first, where the folio has more mappings. Exit marks the
//! node dead under the family lock (exclusive) before it takes tables away: tables die last.

mod backed;
mod shared;
mod site;
mod split;
mod unmap;

pub(crate) use backed::{unback_all, unback_dirty};
pub(crate) use site::Unmapping;
pub(crate) use split::split;
pub(crate) use unmap::{Ageing, Refusal, Unmapped, age, mapped_in, unmap, update_ours};
