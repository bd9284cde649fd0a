//! Which folio leaves next: the part of reclaim that is a matter of taste, and of the workload.
//!
//! A policy sees a folio's use only when reclaim looks at its access flag, never the access itself: between two looks
//! one use and a thousand are the same. As the access that makes a page sets the flag as well, the first look at a page
//! says nothing, and every policy here gives it away.
//!
//! **What a policy decides.** From which queue the next batch comes ([`Policy::choose`]); which of its folios stay this
//! time whatever the look finds ([`Policy::spares`]); where those go that stay ([`Policy::place`]), and those that come
//! back soon after they left ([`Policy::welcome`]). It keeps three bits in a folio's record ([`Standing`]) and a few
//! words of its own; all of it runs under the list's lock, in constant time a folio.
//!
//! **What it does not.** What is new, or comes back late, stands in [`Queue::Entry`], and what a program calls cold, or
//! was split, in [`Queue::First`], which comes before all: no policy is asked. No policy keeps a folio for good: that
//! every search ends, and finds whatever there is, is [`Mm::shrink`](crate::Mm)'s, which in the end asks none (law 18).
//!
//! One is chosen when the [`Mm`](crate::Mm) is made ([`Replacement`]). To add one: a type with [`Policy`], a name in
//! `Replacement`, and a line of the table in `super::workloads`, which `docs/POLICIES.md` shows.

mod adaptive;
mod clock;
mod generations;

use adaptive::Adaptive;
use clock::Clock;
use generations::Generations;

use super::queues::{Queue, Queues};
use crate::frame::{Class, Frames, Standing};

/// The policies that there are: which pages reclaim takes first.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum Replacement {
    /// One queue in the order of coming, with a second chance for what was used. The least work a page.
    Clock,
    /// Three generations: what is used again, or comes back soon, ages a generation later.
    Generations,
    /// Two queues, the shares of which follow the refaults: what was not used twice, or did not come back soon, cannot
    /// drive out what was.
    #[default]
    Adaptive,
}

impl Replacement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Clock, Self::Generations, Self::Adaptive];

    /// Its name in a table or on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Generations => "generations",
            Self::Adaptive => "adaptive",
        }
    }

    /// The policy of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// What a look at a folio found that stays.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Seen {
    /// Used since the last look.
    Used,
    /// Not used; it was spared.
    Unused,
    /// Nothing: somebody else had it, or it could not leave.
    Nothing,
}

/// How a batch of protected folios was found.
#[derive(Copy, Clone, Default, Debug)]
pub(super) struct Looked {
    /// Folios.
    pub(super) folios: u32,
    /// Of these, used ones.
    pub(super) used: u32,
}

/// See the module's head.
pub(super) trait Policy {
    /// The queue from whose old end the next batch comes. Called once a batch, with some folio in some queue. Where the
    /// queue is empty reclaim takes another.
    fn choose(&mut self, queues: &mut Queues, frames: &Frames) -> Queue;

    /// Whether a folio that stands so stays at the look to come, used or not.
    fn spares(&self, standing: Standing) -> bool;

    /// Where a folio goes that stays.
    fn place(&mut self, standing: Standing, seen: Seen) -> (Queue, Standing);

    /// Where a folio of `pages` pages goes that came back soon after it left as one of `was`.
    fn welcome(&mut self, was: Class, pages: u64) -> (Queue, Standing);

    /// Hears how the protected folios of a batch were found, all at once.
    fn hear(&mut self, looked: Looked);
}

/// The one that was chosen. An enum, as [`Mm`](crate::Mm) has no parameter for it; nothing that asks it runs when a
/// page is first touched, and what runs once a batch does not count.
pub(super) enum Chosen {
    Clock(Clock),
    Generations(Generations),
    Adaptive(Adaptive),
}

impl Chosen {
    /// For a memory of `frames` frames.
    pub(super) fn new(replacement: Replacement, frames: u64) -> Self {
        match replacement {
            Replacement::Clock => Self::Clock(Clock),
            Replacement::Generations => Self::Generations(Generations),
            Replacement::Adaptive => Self::Adaptive(Adaptive::new(frames)),
        }
    }
}

/// Calls the chosen policy's method.
macro_rules! chosen {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            Chosen::Clock($policy) => $call,
            Chosen::Generations($policy) => $call,
            Chosen::Adaptive($policy) => $call,
        }
    };
}

impl Policy for Chosen {
    #[inline]
    fn choose(&mut self, queues: &mut Queues, frames: &Frames) -> Queue {
        chosen!(self, policy => policy.choose(queues, frames))
    }

    #[inline]
    fn spares(&self, standing: Standing) -> bool {
        chosen!(self, policy => policy.spares(standing))
    }

    #[inline]
    fn place(&mut self, standing: Standing, seen: Seen) -> (Queue, Standing) {
        chosen!(self, policy => policy.place(standing, seen))
    }

    #[inline]
    fn welcome(&mut self, was: Class, pages: u64) -> (Queue, Standing) {
        chosen!(self, policy => policy.welcome(was, pages))
    }

    #[inline]
    fn hear(&mut self, looked: Looked) {
        chosen!(self, policy => policy.hear(looked))
    }
}
