//! The words of `/chosen/bootargs`.

use core::str::SplitAsciiWhitespace;

use ebbtide::frame::FolioOrders;

use super::cpu::TagChecks;

/// What the command line asks for. The protocol stands at the head of `qemu-run.sh`.
pub struct BootArgs<'a> {
    /// `memory=MIB`: how much RAM the library manages, kernel included.
    pub memory_mib: Option<u64>,
    /// `swap=MIB`: pages of the RAM swap device.
    pub swap_mib: u64,
    /// `no-mte`: leave memory tags alone.
    pub no_mte: bool,
    /// `tag-checks=sync|async|asymm`: what a program gets that allows several.
    pub tag_checks: TagChecks,
    /// `no-hafdbs`: access and dirty flags in software.
    pub no_hafdbs: bool,
    /// `folio-orders=ORDER,...`: the sizes of folio that first touch makes.
    pub folio_orders: Option<FolioOrders>,
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
            swap_mib: 0,
            no_mte: false,
            tag_checks: TagChecks::Async,
            no_hafdbs: false,
            folio_orders: None,
            quiet: false,
            icount: false,
            text,
        };
        for word in text.split_ascii_whitespace() {
            match Word::of(word) {
                Word::Memory(mib) => args.memory_mib = Some(mib),
                Word::Swap(mib) => args.swap_mib = mib,
                Word::NoMte => args.no_mte = true,
                Word::TagChecks(checks) => args.tag_checks = checks,
                Word::NoHafdbs => args.no_hafdbs = true,
                Word::FolioOrders(orders) => args.folio_orders = Some(orders),
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

    /// The words that mean nothing here.
    pub fn unknown(&self) -> impl Iterator<Item = &'a str> {
        self.words().filter(|word| matches!(Word::of(word), Word::Unknown))
    }
}

fn folio_orders(list: &str) -> Option<FolioOrders> {
    list.split(',').try_fold(FolioOrders::SINGLE, |all, order| all.with(order.parse().ok()?))
}

enum Word {
    Memory(u64),
    Swap(u64),
    NoMte,
    TagChecks(TagChecks),
    NoHafdbs,
    FolioOrders(FolioOrders),
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
            Some(("swap", value)) => value.parse().map_or(Self::Unknown, Self::Swap),
            Some(("folio-orders", value)) => folio_orders(value).map_or(Self::Unknown, Self::FolioOrders),
            Some(("tag-checks", "sync")) => Self::TagChecks(TagChecks::Sync),
            Some(("tag-checks", "async")) => Self::TagChecks(TagChecks::Async),
            Some(("tag-checks", "asymm")) => Self::TagChecks(TagChecks::Asymm),
            Some(("selftest", _)) => Self::Selftest,
            Some(_) => Self::Unknown,
        }
    }
}
