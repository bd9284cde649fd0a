//! What the kernel left on the stack: argc, argv, envp and the auxiliary vector; and the `--name VALUE`
//! options in argv.

use core::{ffi::CStr, str::FromStr};

use crate::eprintln;

/// Keys of the auxiliary vector.
mod key {
    pub const NULL: usize = 0;
    pub const PAGESZ: usize = 6;
    pub const HWCAP2: usize = 26;
}

const HWCAP2_MTE: usize = 1 << 18;

/// The program's start block.
pub struct Env {
    stack: *const usize,
}

impl Env {
    /// The start block at the initial stack pointer.
    ///
    /// # Safety
    /// `stack` must be what the kernel put into `sp` for this program: argc, argv and envp with their zeros,
    /// then (key, value) pairs up to key 0, all of it and the strings untouched for as long as the program
    /// runs.
    pub unsafe fn from_stack(stack: *const usize) -> Self {
        Self { stack }
    }

    fn word(&self, index: usize) -> usize {
        // SAFETY: every caller stays at or before the end of the auxiliary vector, as the layout tells it.
        unsafe { self.stack.add(index).read() }
    }

    /// The words of argv, the program's name first. One that is not UTF-8 is empty.
    pub fn argv(&self) -> impl Iterator<Item = &str> {
        (0..self.word(0)).map(|i| {
            let string = self.word(1 + i) as *const core::ffi::c_char;
            // SAFETY: each of the argc words of argv points at a zero-terminated string.
            unsafe { CStr::from_ptr(string) }.to_str().unwrap_or("")
        })
    }

    /// The value of a key of the auxiliary vector.
    fn aux(&self, wanted: usize) -> Option<usize> {
        // Past argc, argv and its zero; then past envp and its zero.
        let mut at = self.word(0) + 2;
        while self.word(at) != 0 {
            at += 1;
        }
        at += 1;
        while self.word(at) != key::NULL {
            if self.word(at) == wanted {
                return Some(self.word(at + 1));
            }
            at += 2;
        }
        None
    }

    /// Bytes of a page of the kernel, the unit of its calls: 4, 16 or 64 KiB.
    pub fn page_size(&self) -> usize {
        self.aux(key::PAGESZ).unwrap_or(4096)
    }

    /// Whether memory can have tags.
    pub fn has_mte(&self) -> bool {
        self.aux(key::HWCAP2).unwrap_or(0) & HWCAP2_MTE != 0
    }

    /// The values of the options in `names`, in that order; `None` for one that is not given. `Err` if argv
    /// has anything else, after telling on standard error.
    pub fn options<const N: usize>(&self, names: [&str; N]) -> Result<[Option<&str>; N], BadArgs> {
        let mut values = [None; N];
        let mut words = self.argv().skip(1);
        while let Some(word) = words.next() {
            // Both `--name VALUE` and `--name=VALUE`.
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            let Some(index) = names.iter().position(|&n| n == name) else {
                eprintln!("no such option: {name}");
                return Err(BadArgs);
            };
            values[index] = inline.or_else(|| words.next());
            if values[index].is_none() {
                eprintln!("{name} needs a value");
                return Err(BadArgs);
            }
        }
        Ok(values)
    }
}

/// The command line makes no sense; the reason stands on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadArgs;

impl BadArgs {
    /// The program's exit status for it.
    pub const STATUS: i32 = 2;
}

/// The number that an option's value says, or `default` if the option was not given.
pub fn number<T: FromStr>(value: Option<&str>, default: T) -> Result<T, BadArgs> {
    match value {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            eprintln!("not a number that fits: {text}");
            BadArgs
        }),
    }
}
