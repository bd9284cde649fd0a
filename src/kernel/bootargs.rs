//! The words of `/chosen/bootargs`.

use core::str::SplitAsciiWhitespace;

use arrayvec::ArrayVec;
use ebbtide::frame::FolioOrders;
use ebbtide::reclaim::Replacement;

use super::collapse;
use super::cpu::TagChecks;
use super::swap::Faults;
use super::watchdog;

/// Swap areas at most.
pub const SWAP_AREAS: usize = 8;

/// The size of a swap area.
#[derive(Copy, Clone)]
pub struct SwapSize {
    /// Page data, in MiB.
    pub mib: u64,
    /// Areas of a higher one are filled first.
    pub priority: i16,
}

impl SwapSize {
    /// The same in bytes.
    pub const fn bytes(self) -> u64 {
        self.mib.saturating_mul(1 << 20)
    }
}

/// What the command line asks for. The protocol stands at the head of `qemu-run.sh`.
pub struct BootArgs<'a> {
    /// `memory=MIB`: how much RAM the library manages, kernel included.
    pub memory_mib: Option<u64>,
    /// `swap=MIB[:PRIORITY],...`: RAM swap devices.
    pub swap: ArrayVec<SwapSize, SWAP_AREAS>,
    /// `swap-device=WORD,...`: what they do beside storing pages.
    pub faults: Faults,
    /// `no-mte`: leave memory tags alone.
    pub no_mte: bool,
    /// `tag-checks=sync|async|asymm`: what a program gets that allows several.
    pub tag_checks: TagChecks,
    /// `no-hafdbs`: access and dirty flags in software.
    pub no_hafdbs: bool,
    /// `folio-orders=ORDER,...`: the sizes of folio that first touch makes.
    pub folio_orders: Option<FolioOrders>,
    /// `policy=clock|generations|adaptive`: which page leaves.
    pub policy: Replacement,
    /// `collapse-ms=MS`: the time between two searches for groups to collapse; 0 is never.
    pub collapse_ms: u64,
    /// `cap=MIB`: what the first program may have in memory, and each that comes from it.
    pub cap_mib: Option<u64>,
    /// `quiet`: log warnings and deaths only.
    pub quiet: bool,
    /// `icount`: the counter counts instructions.
    pub icount: bool,
    text: &'a str,
}

impl<'a> BootArgs<'a> {
    /// Reads the words; those that make no sense are left to [`BootArgs::unknown`].
    pub fn parse(text: &'a str) -> Self {
        let mut args = Self {
            memory_mib: None,
            swap: ArrayVec::new(),
            faults: Faults::NONE,
            no_mte: false,
            tag_checks: TagChecks::Async,
            no_hafdbs: false,
            folio_orders: None,
            policy: Replacement::default(),
            collapse_ms: collapse::EVERY_MS,
            cap_mib: None,
            quiet: false,
            icount: false,
            text,
        };
        for word in text.split_ascii_whitespace() {
            match Word::of(word) {
                Word::Memory(mib) => args.memory_mib = Some(mib),
                Word::Swap(sizes) => args.swap = sizes,
                Word::SwapDevice(faults) => args.faults = faults,
                Word::NoMte => args.no_mte = true,
                Word::TagChecks(checks) => args.tag_checks = checks,
                Word::NoHafdbs => args.no_hafdbs = true,
                Word::FolioOrders(orders) => args.folio_orders = Some(orders),
                Word::Policy(policy) => args.policy = policy,
                Word::CollapseMs(gap) => args.collapse_ms = gap,
                Word::Cap(mib) => args.cap_mib = Some(mib),
                Word::Quiet => args.quiet = true,
                Word::Icount => args.icount = true,
                Word::Selftest | Word::Unknown => {}
            }
        }
        args
    }

    fn words(&self) -> SplitAsciiWhitespace<'a> {
        self.text.split_ascii_whitespace()
    }

    /// `selftest=NAME`.
    pub fn selftest(&self) -> Option<&'a str> {
        self.words().find_map(|word| word.strip_prefix("selftest="))
    }

    /// How long a CPU may be stuck. A self-test does not wait as long as one must who cannot know what a program does.
    pub fn watchdog_seconds(&self) -> u64 {
        if self.selftest().is_some() { watchdog::SELFTEST_LIMIT_SECONDS } else { watchdog::LIMIT_SECONDS }
    }

    /// The words that mean nothing here.
    pub fn unknown(&self) -> impl Iterator<Item = &'a str> {
        self.words().filter(|word| matches!(Word::of(word), Word::Unknown))
    }
}

fn folio_orders(list: &str) -> Option<FolioOrders> {
    list.split(',').try_fold(FolioOrders::SINGLE, |all, order| all.with(order.parse().ok()?))
}

fn swap_sizes(list: &str) -> Option<ArrayVec<SwapSize, SWAP_AREAS>> {
    let mut sizes = ArrayVec::new();
    for size in list.split(',') {
        let (mib, priority) = size.split_once(':').unwrap_or((size, "0"));
        sizes.try_push(SwapSize { mib: mib.parse().ok()?, priority: priority.parse().ok()? }).ok()?;
    }
    Some(sizes)
}

fn faults(list: &str) -> Option<Faults> {
    let mut faults = Faults::NONE;
    for word in list.split(',') {
        match word.split_once('=') {
            None if word == "checked" => faults.checked = true,
            None if word == "late" => faults.late = Some(0),
            Some(("late", milliseconds)) => faults.late = Some(milliseconds.parse().ok()?),
            Some(("fail", every)) => faults.fail = every.parse().ok()?,
            Some(("damage", every)) => faults.damage = every.parse().ok()?,
            _ => return None,
        }
    }
    Some(faults)
}

enum Word {
    Memory(u64),
    Swap(ArrayVec<SwapSize, SWAP_AREAS>),
    SwapDevice(Faults),
    NoMte,
    TagChecks(TagChecks),
    NoHafdbs,
    FolioOrders(FolioOrders),
    Policy(Replacement),
    CollapseMs(u64),
    Cap(u64),
    Quiet,
    Icount,
    Selftest,
    Unknown,
}

impl Word {
    fn of(word: &str) -> Self {
        match word.split_once('=') {
            None => match word {
                "no-mte" => Self::NoMte,
                "no-hafdbs" => Self::NoHafdbs,
                "quiet" => Self::Quiet,
                "icount" => Self::Icount,
                _ => Self::Unknown,
            },
            Some(("memory", value)) => value.parse().map_or(Self::Unknown, Self::Memory),
            Some(("swap", value)) => swap_sizes(value).map_or(Self::Unknown, Self::Swap),
            Some(("swap-device", value)) => faults(value).map_or(Self::Unknown, Self::SwapDevice),
            Some(("folio-orders", value)) => folio_orders(value).map_or(Self::Unknown, Self::FolioOrders),
            Some(("policy", name)) => Replacement::named(name).map_or(Self::Unknown, Self::Policy),
            Some(("collapse-ms", value)) => value.parse().map_or(Self::Unknown, Self::CollapseMs),
            Some(("cap", value)) => value.parse().map_or(Self::Unknown, Self::Cap),
            Some(("tag-checks", "sync")) => Self::TagChecks(TagChecks::Sync),
            Some(("tag-checks", "async")) => Self::TagChecks(TagChecks::Async),
            Some(("tag-checks", "asymm")) => Self::TagChecks(TagChecks::Asymm),
            Some(("selftest", _)) => Self::Selftest,
            Some(_) => Self::Unknown,
        }
    }
}
