//! From a static ELF file to a program that is ready to run: segments, stack, auxiliary vector.
//!
//! Everything goes through the address space and the user copies: a segment is mapped writable, copied, and then
//! protected as its flags say; the library syncs the instruction cache before it lets anything execute. Running out
//! of memory here is an ordinary fault of the copy.
//!
//! A file linked for smaller pages than the kernel's fares as on Linux (fs/binfmt_elf.c, `elf_load`), which maps whole
//! pages of the file: a segment must lie at the same place of a page in the file and in memory, and where two segments
//! meet in a page the later one's mapping is the one that stays.

use alloc::vec::Vec;
use core::fmt;

use ebbtide::Mm;
use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::machine::Machine;
use ebbtide::space::{Growth, MapError, MapRequest, Placement, Protection};
use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::FileHeader;
use elf::segment::{ProgramHeader, SegmentTable};

use super::console::alert;
use super::page::PAGE;
use super::{Hardware, hwcap, random, uaccess};

/// The end of the stack: a page of the largest granule below the end of user addresses.
const STACK_TOP: u64 = (1 << 39) - (64 << 10);
/// How far the stack may grow.
pub const STACK_LIMIT: u64 = 8 << 20;
/// Longest argv and envp, strings and pointers together, and the program's path once more.
const ARGUMENTS_LIMIT: usize = 128 << 10;
/// Where a position-independent program goes.
const PIE_BASE: u64 = 0x40_0000;

/// A program in memory.
pub struct Loaded {
    /// Its first instruction.
    pub entry: u64,
    /// The page after its last segment: where the break starts.
    pub end: u64,
    /// Address, size and number of its program headers.
    headers: (u64, u64, u64),
}

/// Why a file cannot be run.
pub enum LoadError {
    /// Not an ELF file of this machine, or not a static one.
    Unsuitable(&'static str),
    /// The address space refuses a segment.
    Map(MapError),
    /// A segment's contents could not be copied.
    Copy,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsuitable(what) => f.write_str(what),
            Self::Map(error) => write!(f, "its memory cannot be mapped: {error}"),
            Self::Copy => f.write_str("its contents could not be copied into memory"),
        }
    }
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<uaccess::Fault> for LoadError {
    fn from(_: uaccess::Fault) -> Self {
        Self::Copy
    }
}

/// A file whose header is that of a program for this machine.
pub struct Image<'a> {
    file: &'a [u8],
    header: FileHeader<LittleEndian>,
    segments: SegmentTable<'a, LittleEndian>,
    /// What is added to its addresses.
    bias: u64,
}

impl<'a> Image<'a> {
    /// Looks at a file's header.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        use LoadError::Unsuitable;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file)
            .map_err(|_| Unsuitable("not a 64-bit little-endian ELF file"))?;
        let header = elf.ehdr;
        if header.e_machine != abi::EM_AARCH64 || header.class != elf::file::Class::ELF64 {
            return Err(Unsuitable("not an AArch64 program"));
        }
        let bias = match header.e_type {
            abi::ET_EXEC => 0,
            abi::ET_DYN => PIE_BASE,
            _ => return Err(Unsuitable("not an executable file")),
        };
        let segments = elf.segments().ok_or(Unsuitable("no program headers"))?;
        if segments.iter().any(|segment| segment.p_type == abi::PT_INTERP) {
            return Err(Unsuitable("it needs a dynamic linker, which there is not: link it with -static"));
        }
        Ok(Self { file, header, segments, bias })
    }

    /// Maps and copies its segments into an active space.
    pub fn load(&self, mm: &Mm<Hardware>, space: &Space<Hardware>) -> Result<Loaded, LoadError> {
        use LoadError::Unsuitable;
        let Self { file, ref header, ref segments, bias } = *self;
        let mut end = End::default();
        let mut headers = 0;
        let mut rights = Protection::empty();
        for segment in segments.iter().filter(|segment| segment.p_type == abi::PT_LOAD && segment.p_memsz != 0) {
            let start = segment.p_vaddr.checked_add(bias).ok_or(Unsuitable("a segment lies outside of memory"))?;
            if start < end.bytes {
                return Err(Unsuitable("its segments are not in order"));
            }
            let before = core::mem::replace(&mut rights, protection(&segment));
            if start & !(PAGE - 1) < end.page && !rights.contains(before) {
                alert!(
                    "two segments meet in the page at {:#x}, where as on Linux the first one's rights are lost (link \
                     it with -z max-page-size=65536)",
                    start & !(PAGE - 1)
                );
            }
            end = load_segment(mm, space, &segment, start, file)?;
            let offset = header.e_phoff.wrapping_sub(segment.p_offset);
            if offset < segment.p_filesz {
                headers = start + offset;
            }
        }
        if end.page == 0 {
            return Err(Unsuitable("it has no segment to load"));
        }
        Ok(Loaded {
            entry: header.e_entry.wrapping_add(bias),
            end: end.page,
            headers: (headers, header.e_phentsize.into(), header.e_phnum.into()),
        })
    }
}

/// The end of a segment: its last byte's, and its last page's.
#[derive(Default)]
struct End {
    bytes: u64,
    page: u64,
}

/// As for mmap, whatever may be written or executed may be read.
fn protection(segment: &ProgramHeader) -> Protection {
    let mut protection = Protection::empty();
    protection.set(Protection::READ, segment.p_flags & (abi::PF_R | abi::PF_W | abi::PF_X) != 0);
    protection.set(Protection::WRITE, segment.p_flags & abi::PF_W != 0);
    protection.set(Protection::EXEC, segment.p_flags & abi::PF_X != 0);
    protection
}

/// What of the file comes to lie in a segment's pages: its data, and what stands before that in its first page.
fn contents<'a>(segment: &ProgramHeader, file: &'a [u8]) -> Result<&'a [u8], LoadError> {
    use LoadError::Unsuitable;
    // A segment of zeroes alone may have any offset.
    if segment.p_filesz == 0 {
        return Ok(&[]);
    }
    if segment.p_vaddr % PAGE != segment.p_offset % PAGE {
        return Err(Unsuitable("it is linked for smaller pages than this kernel's: -z max-page-size=65536 is for all"));
    }
    let end = segment.p_offset.checked_add(segment.p_filesz).ok_or(Unsuitable("a segment lies outside of the file"))?;
    let start = segment.p_offset & !(PAGE - 1);
    file.get(start as usize..end as usize).ok_or(Unsuitable("a segment lies outside of the file"))
}

/// Loads one segment at `start`.
fn load_segment(
    mm: &Mm<Hardware>,
    space: &Space<Hardware>,
    segment: &ProgramHeader,
    start: u64,
    file: &[u8],
) -> Result<End, LoadError> {
    let outside = LoadError::Unsuitable("a segment lies outside of memory");
    let first = start & !(PAGE - 1);
    let end = start.checked_add(segment.p_memsz).filter(|_| segment.p_filesz <= segment.p_memsz);
    let Some((bytes, page)) = end.and_then(|end| Some((end, end.checked_next_multiple_of(PAGE)?))) else {
        return Err(outside);
    };
    let data = contents(segment, file)?;
    let at = VirtAddr::new(first);
    space.map(
        mm,
        MapRequest {
            placement: Placement::Fixed(at),
            bytes: page - first,
            protection: Protection::READ | Protection::WRITE,
            growth: Growth::Fixed,
        },
    )?;
    uaccess::write(first, data)?;
    space.protect(mm, at, page - first, protection(segment))?;
    Ok(End { bytes, page })
}

/// Auxiliary vector entries (Linux's include/uapi/linux/auxvec.h).
mod at {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const EXECFN: u64 = 31;
}

/// Which strings.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Strings {
    /// argv.
    Arguments,
    /// envp, all of whose strings come after those of argv.
    Environment,
}

/// Why arguments cannot be passed.
pub enum ArgumentsError {
    /// They are longer than [`ARGUMENTS_LIMIT`].
    TooLong,
    /// The kernel has no room for them.
    NoMemory,
}

impl fmt::Display for ArgumentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "its arguments are longer than {} KiB", ARGUMENTS_LIMIT >> 10),
            Self::NoMemory => f.write_str("there is no room for its arguments"),
        }
    }
}

/// A program's path, argv and envp: the kernel's copy.
pub struct Arguments {
    /// Each string with its NUL.
    strings: Vec<u8>,
    path_bytes: usize,
    argc: usize,
    envc: usize,
}

impl Arguments {
    /// No strings yet.
    pub fn new(path: &[u8]) -> Result<Self, ArgumentsError> {
        let mut arguments = Self { strings: Vec::new(), path_bytes: path.len() + 1, argc: 0, envc: 0 };
        arguments.extend(path)?;
        arguments.extend(NUL)?;
        Ok(arguments)
    }

    /// Adds to the string that is being made.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), ArgumentsError> {
        if self.length() + bytes.len() > ARGUMENTS_LIMIT {
            return Err(ArgumentsError::TooLong);
        }
        self.strings.try_reserve(bytes.len()).map_err(|_| ArgumentsError::NoMemory)?;
        self.strings.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends the string, as one of `kind`.
    pub fn end_string(&mut self, kind: Strings) -> Result<(), ArgumentsError> {
        self.extend(NUL)?;
        match kind {
            Strings::Arguments => self.argc += 1,
            Strings::Environment => self.envc += 1,
        }
        // Its pointer may be what is too much.
        self.extend(&[])
    }

    /// Bytes of strings and pointers.
    fn length(&self) -> usize {
        self.strings.len() + 8 * (self.argc + self.envc)
    }
}

const NUL: &[u8] = b"\0";

/// Words that go to the program's memory, one after the other.
struct Words(u64);

impl Words {
    fn push(&mut self, word: u64) -> Result<(), LoadError> {
        uaccess::write_words(self.0, &[word])?;
        self.0 += 8;
        Ok(())
    }
}

/// Maps the stack and fills it as the ABI says (Linux's fs/binfmt_elf.c, `create_elf_tables`); returns the stack
/// pointer.
pub fn build_stack(
    mm: &Mm<Hardware>,
    space: &Space<Hardware>,
    loaded: &Loaded,
    arguments: &Arguments,
) -> Result<u64, LoadError> {
    const PLATFORM: &[u8] = b"aarch64\0";
    const SEED_BYTES: u64 = 16;
    let mut seed = [0; SEED_BYTES as usize];
    random::fill(&mut seed);
    // Strings go to the top; all of them, and the fixed part, are certainly below this.
    let room = (arguments.length() as u64 + 1024).next_multiple_of(PAGE);
    let random = STACK_TOP - room;
    let platform = random + SEED_BYTES;
    let strings = platform + PLATFORM.len() as u64;
    let (headers, header_bytes, header_count) = loaded.headers;
    let vector = [
        (at::HWCAP, hwcap::first()),
        (at::PAGESZ, PAGE),
        (at::CLKTCK, 100),
        (at::PHDR, headers),
        (at::PHENT, header_bytes),
        (at::PHNUM, header_count),
        (at::BASE, 0),
        (at::FLAGS, 0),
        (at::ENTRY, loaded.entry),
        (at::UID, 0),
        (at::EUID, 0),
        (at::GID, 0),
        (at::EGID, 0),
        (at::SECURE, 0),
        (at::RANDOM, random),
        (at::HWCAP2, hwcap::second(mm.machine().features())),
        (at::EXECFN, strings),
        (at::PLATFORM, platform),
        (at::NULL, 0),
    ];
    // argc, the pointers with two ends, the auxiliary vector.
    let words = 1 + arguments.argc + 1 + arguments.envc + 1 + 2 * vector.len();
    let pointer = (random - 8 * words as u64) & !15;
    let bottom = (pointer & !(PAGE - 1)) - 16 * PAGE;
    space.map(
        mm,
        MapRequest {
            placement: Placement::FixedNoReplace(VirtAddr::new(bottom)),
            bytes: STACK_TOP - bottom,
            protection: Protection::READ | Protection::WRITE,
            growth: Growth::Down { limit_bytes: STACK_LIMIT },
        },
    )?;
    uaccess::write(random, &seed)?;
    uaccess::write(platform, PLATFORM)?;
    uaccess::write(strings, &arguments.strings)?;
    let mut words = Words(pointer);
    words.push(arguments.argc as u64)?;
    let mut string = strings + arguments.path_bytes as u64;
    let ends = arguments.strings[arguments.path_bytes..].split_inclusive(|&byte| byte == 0);
    for (number, bytes) in ends.enumerate() {
        if number == arguments.argc {
            words.push(0)?;
        }
        words.push(string)?;
        string += bytes.len() as u64;
    }
    if arguments.envc == 0 {
        words.push(0)?;
    }
    words.push(0)?;
    for (kind, value) in vector {
        words.push(kind)?;
        words.push(value)?;
    }
    Ok(pointer)
}
