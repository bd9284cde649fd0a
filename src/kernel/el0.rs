//! What a program has in the CPU: the registers of EL0, and what is set for it alone.
//!
//! While a task is in the kernel they stay where they are. A change to a kernel task leaves them there too: such a task
//! has none, and runs in the address space of whoever was there before. Only a change to the task of another program
//! moves them, to the [`UserState`] of the one that they belong to; the scheduler knows whose they are.
//!
//! ESR_EL1 and FAR_EL1 count as the program's: a fault that sleeps reads them again afterwards. TFSRE0_EL1 does not:
//! whoever comes from EL0 with a wrong tag noted there ends (`boot/vectors.S`, [`el0_interrupt`]) and has it cleared
//! before anything else, and the kernel's copies note none, so that it is 0 at every change.
//!
//! [`el0_interrupt`]: super::trap

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{ELR_EL1, ESR_EL1, FAR_EL1, Readable, SP_EL0, SPSR_EL1, TPIDR_EL0, Writeable};

use super::cpu::{self, TagChecks};

/// What `boot/vectors.S` saves of a program at each exception: x0 to x18 and x30.
#[derive(Copy, Clone, Default)]
#[repr(C)]
pub struct Frame {
    /// x0 to x18.
    pub x: [u64; 19],
    /// x30.
    pub link: u64,
}

/// All general registers, as they are saved where another program may come of them.
#[derive(Copy, Clone, Default)]
#[repr(C)]
pub struct WholeFrame {
    /// x19 to x29, and 8 bytes that keep the stack aligned.
    pub kept: [u64; 12],
    /// The others.
    pub frame: Frame,
}

const _: () = assert!(size_of::<Frame>() == 160 && offset_of!(WholeFrame, frame) == 96);

/// PSTATE of a program: EL0, interrupts open, the exceptions that nothing here asks for masked.
const PSTATE: u64 = 0b1101 << 6;

/// PR_SET_TAGGED_ADDR_CTRL: its argument (Linux's Documentation/arch/arm64/memory-tagging-extension.rst).
#[derive(Copy, Clone, Eq, PartialEq, Default)]
pub struct TagControl(pub u64);

impl TagControl {
    /// PR_TAGGED_ADDR_ENABLE.
    pub const ENABLE: u64 = 1;
    /// PR_MTE_TCF_SYNC.
    pub const SYNC: u64 = 1 << 1;
    /// PR_MTE_TCF_ASYNC.
    pub const ASYNC: u64 = 1 << 2;
    /// PR_MTE_TAG_MASK.
    pub const INCLUDE: u64 = 0xffff << Self::INCLUDE_SHIFT;
    const INCLUDE_SHIFT: u32 = 3;

    /// A program that allows both kinds of checks gets what `tag-checks=` prefers, which then may also be the
    /// asymmetric one.
    fn checks(self) -> TagChecks {
        match self.0 & (Self::SYNC | Self::ASYNC) {
            0 => TagChecks::None,
            Self::SYNC => TagChecks::Sync,
            Self::ASYNC => TagChecks::Async,
            _ => TagChecks::from_number(PREFERRED_CHECKS.load(Ordering::Relaxed)),
        }
    }

    /// Lets the CPU obey it.
    pub fn apply(self) {
        if cpu::tags_in_use() {
            cpu::set_tag_checks(self.checks());
            cpu::set_excluded_tags(!(self.0 >> Self::INCLUDE_SHIFT) as u16);
        }
    }
}

static PREFERRED_CHECKS: AtomicU64 = AtomicU64::new(TagChecks::Async as u64);

/// Sets the checks of a program that leaves the choice.
pub fn prefer(checks: TagChecks) {
    PREFERRED_CHECKS.store(checks as u64, Ordering::Relaxed);
}

/// q0 to q31, FPCR and FPSR, as `boot/switch.S` has them.
#[derive(Copy, Clone)]
#[repr(C, align(16))]
struct Vectors {
    q: [[u64; 2]; 32],
    control: u64,
    status: u64,
}

unsafe extern "C" {
    fn save_vectors(into: *mut Vectors);
    fn load_vectors(from: *const Vectors);
}

/// A program's registers while they are not in the CPU; those of [`WholeFrame`] are on its task's stack.
#[derive(Copy, Clone)]
pub struct UserState {
    pc: u64,
    pstate: u64,
    stack: u64,
    thread: u64,
    syndrome: u64,
    fault_address: u64,
    /// RGSR_EL1: where IRG's sequence is.
    tag_seed: u64,
    /// What the program last set by prctl: valid also while the registers are in the CPU.
    pub tag_control: TagControl,
    vectors: Vectors,
}

impl UserState {
    /// Those of a program at its start.
    pub const fn new(entry: u64, stack: u64) -> Self {
        Self {
            pc: entry,
            pstate: PSTATE,
            stack,
            thread: 0,
            syndrome: 0,
            fault_address: 0,
            tag_seed: cpu::TAG_SEED,
            tag_control: TagControl(0),
            vectors: Vectors { q: [[0; 2]; 32], control: 0, status: 0 },
        }
    }

    /// Takes them from the CPU.
    pub fn save(&mut self) {
        self.pc = ELR_EL1.get();
        self.pstate = SPSR_EL1.get();
        self.stack = SP_EL0.get();
        self.thread = TPIDR_EL0.get();
        self.syndrome = ESR_EL1.get();
        self.fault_address = FAR_EL1.get();
        if cpu::tags_in_use() {
            self.tag_seed = cpu::tag_seed();
        }
        // SAFETY: stores within `vectors`.
        unsafe { save_vectors(&raw mut self.vectors) };
    }

    /// Brings them to the CPU.
    pub fn load(&self) {
        ELR_EL1.set(self.pc);
        SPSR_EL1.set(self.pstate);
        SP_EL0.set(self.stack);
        TPIDR_EL0.set(self.thread);
        ESR_EL1.set(self.syndrome);
        FAR_EL1.set(self.fault_address);
        if cpu::tags_in_use() {
            cpu::set_tag_seed(self.tag_seed);
        }
        self.tag_control.apply();
        // SAFETY: loads from `vectors`; the kernel's own code has nothing in these registers.
        unsafe { load_vectors(&raw const self.vectors) };
    }

    /// Moves the stack pointer of a program's copy.
    pub fn set_stack(&mut self, to: u64) {
        self.stack = to;
    }

    /// Sets the thread pointer of a program's copy.
    pub fn set_thread_pointer(&mut self, to: u64) {
        self.thread = to;
    }
}
