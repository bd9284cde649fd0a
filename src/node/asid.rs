//! Address space identifiers, lent to spaces in generations.
//!
//! There may be more spaces than identifiers: a CPU has 255 of them, or 65535. A space gets one when a CPU is to run it
//! and it has none of this generation. When all are lent, a new generation begins: what the CPUs run stays theirs,
//! every TLB loses everything, and the other identifiers are free again, those of spaces that have ended too. So a
//! space that waits or ends costs nothing, and only one activation in hundreds pays for an invalidation.
//!
//! **Protocol.** A CPU on its way from one space to another runs neither: it installs the empty root, calls
//! [`Asids::enter`], fences, and installs the new root. So at any moment what a CPU may walk is what stands in
//! [`Asids::last`], or nothing.
//!
//! A new generation takes every CPU's word of `last` away (zero is left there) and keeps the identifiers in them.
//! A CPU that enters a space exchanges its word without the lock only if it is not zero, so that it sees the new
//! generation and takes the lock.
//!
//! **Invalidations.** A space's identifier may change between the removal of an entry and the flush. The flush fences
//! its table stores first and reads the identifier after that ([`Node::asid`]); a CPU that enters stores the identifier
//! first, fences, and walks after that. So if the flush reads the old one, whoever has the new one finds the entry
//! gone.

use super::Node;
use crate::machine::{Asid, Cached, MAX_CPUS, Machine, Reach, Scope};
use crate::sync::{AtomicU64, Ordering, Spin};

/// Bits of a context's number: the largest identifier that a CPU may have.
const NUMBER_BITS: u32 = 16;

/// An identifier, and the generation in which it was lent.
#[repr(transparent)]
#[derive(Copy, Clone, Eq, PartialEq)]
pub(super) struct Context(u64);

impl Context {
    /// None was ever lent. Its number is that of the empty root, of which no TLB holds anything.
    pub(super) const NONE: Self = Self(0);

    const fn new(generation: u64, number: u16) -> Self {
        Self(generation << NUMBER_BITS | number as u64)
    }

    #[inline]
    pub(super) fn load(word: &AtomicU64) -> Self {
        Self(word.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn store(self, word: &AtomicU64) {
        word.store(self.0, Ordering::Relaxed);
    }

    #[inline]
    const fn generation(self) -> u64 {
        self.0 >> NUMBER_BITS
    }

    #[inline]
    pub(super) const fn asid(self) -> Asid {
        Asid::new(self.0 as u16)
    }
}

/// The identifiers of one generation.
struct Numbers {
    /// A set bit is a number that is lent.
    lent: [u64; (1 << NUMBER_BITS) / 64],
    /// No word of `lent` below this one has a free bit.
    first: usize,
    /// What each CPU ran when the generation began, and what it kept from earlier ones.
    kept: [Context; MAX_CPUS],
}

/// Who has which identifier.
pub(crate) struct Asids {
    numbers: Spin<Numbers>,
    /// Changes under the lock of `numbers`.
    generation: AtomicU64,
    /// The context that each CPU entered last; zero once a new generation has begun since.
    last: [AtomicU64; MAX_CPUS],
}

impl Asids {
    /// All free but that of the empty root.
    pub(crate) const fn new() -> Self {
        let mut lent = [0; (1 << NUMBER_BITS) / 64];
        lent[0] = 1;
        Self {
            numbers: Spin::new(Numbers { lent, first: 0, kept: [Context::NONE; MAX_CPUS] }),
            generation: AtomicU64::new(1),
            last: [const { AtomicU64::new(0) }; MAX_CPUS],
        }
    }

    /// The identifier with which the calling CPU, which runs no space now, is to run that of `node`. To be fenced by
    /// [`Machine::fence_tables`] before the root is installed.
    #[inline]
    pub(crate) fn enter<M: Machine>(&self, machine: &M, node: &Node) -> Asid {
        let last = &self.last[machine.cpu() % MAX_CPUS];
        let context = Context::load(&node.context);
        let before = last.load(Ordering::Relaxed);
        if before != 0
            && context.generation() == self.generation.load(Ordering::Acquire)
            && last.compare_exchange(before, context.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return context.asid();
        }
        self.enter_slowly(machine, node, last)
    }

    #[cold]
    fn enter_slowly<M: Machine>(&self, machine: &M, node: &Node, last: &AtomicU64) -> Asid {
        let mut numbers = self.numbers.lock();
        let mut context = Context::load(&node.context);
        if context.generation() != self.generation.load(Ordering::Relaxed) {
            context = self.lend(machine, &mut numbers, context);
            context.store(&node.context);
        }
        last.store(context.0, Ordering::Relaxed);
        context.asid()
    }

    /// An identifier of this generation for a space that had `old`.
    fn lend<M: Machine>(&self, machine: &M, numbers: &mut Numbers, old: Context) -> Context {
        let generation = self.generation.load(Ordering::Relaxed);
        let kept = Context::new(generation, old.asid().number());
        let mut is_kept = false;
        for of_cpu in numbers.kept.iter_mut().filter(|of_cpu| **of_cpu == old && old != Context::NONE) {
            *of_cpu = kept;
            is_kept = true;
        }
        if is_kept {
            return kept;
        }
        let bits = machine.asid_bits();
        if let Some(number) = numbers.take(bits) {
            return Context::new(generation, number);
        }
        self.begin_generation(machine, numbers);
        // At least 255 numbers, of which the CPUs have kept one each.
        const { assert!(MAX_CPUS < 255) };
        Context::new(generation + 1, numbers.take(bits).unwrap_or(Asid::EMPTY.number()))
    }

    fn begin_generation<M: Machine>(&self, machine: &M, numbers: &mut Numbers) {
        self.generation.store(self.generation.load(Ordering::Relaxed) + 1, Ordering::Release);
        numbers.lent = [0; (1 << NUMBER_BITS) / 64];
        numbers.lent[0] = 1;
        numbers.first = 0;
        for (last, kept) in self.last.iter().zip(&mut numbers.kept) {
            match Context(last.swap(0, Ordering::AcqRel)) {
                Context::NONE => {}
                context => *kept = context,
            }
        }
        for kept in numbers.kept {
            numbers.mark(kept.asid());
        }
        machine.fence_tables();
        machine.invalidate(Asid::EMPTY, Scope::All, Cached::Walk, Reach::Broadcast);
        machine.fence_invalidations();
    }
}

impl Numbers {
    /// Takes the lowest free number of `bits` bits.
    fn take(&mut self, bits: u32) -> Option<u16> {
        let words = (1 << bits) / 64;
        while self.first < words && self.lent[self.first] == u64::MAX {
            self.first += 1;
        }
        let word = self.lent[..words].get_mut(self.first)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        Some((self.first * 64) as u16 + bit as u16)
    }

    fn mark(&mut self, asid: Asid) {
        self.lent[asid.number() as usize / 64] |= 1 << (asid.number() % 64);
    }
}
