//! Exceptions: from EL0 a fault that the address space resolves, the program's end, or the timer; from EL1 a user
//! copy's fault or the kernel's end.
//!
//! The vectors (`boot/vectors.S`) pass ESR_EL1 and FAR_EL1. The way of a page fault is kept short; whatever
//! ends the program is `#[cold]`.

use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{ELR_EL1, ESR_EL1, FAR_EL1, Readable, Writeable};
use ebbtide::addr::VirtAddr;
use ebbtide::space::{Access, Fault, FaultError};

use super::el0::WholeFrame;
use super::panic::{self, Registers};
use super::process::Signal;
use super::{cpu, global, interrupt, mte, percpu, process, sched, syscall, uaccess};

/// Exception classes: ESR_EL1.EC (Arm ARM, D24.2.40).
mod class {
    pub const WFX: u64 = 0x01;
    pub const SVC: u64 = 0x15;
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    pub const PC_ALIGNMENT: u64 = 0x22;
    pub const DATA_ABORT: u64 = 0x24;
    pub const DATA_ABORT_EL1: u64 = 0x25;
    pub const SP_ALIGNMENT: u64 = 0x26;
    pub const FP: u64 = 0x2c;
    pub const BRK: u64 = 0x3c;
}

/// Fault status codes of an abort: ESR_EL1.ISS\[5:0\].
mod status {
    pub const TAG_CHECK: u64 = 0x11;
    pub const ALIGNMENT: u64 = 0x21;
}

/// An abort's syndrome.
#[derive(Copy, Clone)]
struct Abort(u64);

impl Abort {
    #[inline]
    fn class(self) -> u64 {
        self.0 >> 26
    }

    #[inline]
    fn status(self) -> u64 {
        self.0 & 0x3f
    }

    /// A translation, access flag or permission fault, codes 0b0001xx to 0b0011xx: what an address space can resolve.
    #[inline]
    fn is_translation(self) -> bool {
        self.0 & 0b11_0000 == 0 && self.0 & 0b1100 != 0
    }

    /// Whether this is an instruction or data abort from EL0: the only two classes with these bits.
    #[inline]
    fn is_from_user(self) -> bool {
        const EITHER: u64 = class::INSTRUCTION_ABORT ^ class::DATA_ABORT;
        self.0 & (0x3f & !EITHER) << 26 == class::INSTRUCTION_ABORT << 26
    }

    #[inline]
    fn access(self) -> Access {
        const DATA: u64 = (class::INSTRUCTION_ABORT ^ class::DATA_ABORT) << 26;
        /// Also set for cache maintenance, which needs the right to read alone.
        const WRITE: u64 = 1 << 6;
        const CACHE_MAINTENANCE: u64 = 1 << 8;
        if self.0 & DATA == 0 {
            Access::Execute
        } else if self.0 & (WRITE | CACHE_MAINTENANCE) == WRITE {
            Access::Write
        } else {
            Access::Read
        }
    }
}

/// Whether an address lies in the upper half, of which no program has anything: bit 55, as 63:56 are a tag.
#[inline]
fn is_upper(address: u64) -> bool {
    address & 1 << 55 != 0
}

#[inline]
fn fault(abort: Abort, far: u64) -> Fault {
    Fault { address: VirtAddr::untagged(far), access: abort.access() }
}

/// A synchronous exception from EL0 that is not a system call.
#[unsafe(no_mangle)]
extern "C" fn el0_abort(esr: u64, far: u64) {
    let abort = Abort(esr);
    if abort.is_from_user() && abort.is_translation() {
        let resolved = if is_upper(far) {
            Err(FaultError::NotMapped)
        } else {
            process::space().handle_fault(global::mm(), fault(abort, far))
        };
        if let Err(error) = resolved {
            unresolved(&error);
        }
    } else {
        other_exception(abort, far);
    }
}

/// Ends the program for a fault that its address space refused; returns when it found no memory at first, and the
/// access may be repeated, or the process is to be killed.
///
/// Reads the syndrome again, so that the way of a resolved fault need not keep it: no exception came in between, as
/// nothing there copies from or to the program.
#[cold]
fn unresolved(error: &FaultError) {
    let (abort, far) = (Abort(ESR_EL1.get()), FAR_EL1.get());
    let mut error = *error;
    if error == FaultError::NoMemory {
        match process::outlast(fault(abort, far)) {
            Ok(()) | Err(FaultError::NoMemory) => return,
            Err(other) => error = other,
        }
    }
    let (address, access) = (VirtAddr::untagged(far).bytes(), verb(abort));
    let address = if is_upper(far) { far } else { address };
    match error {
        FaultError::NotMapped => {
            process::kill_at(address, Signal::SEGV, format_args!("{access} at {address:#x}, where nothing is mapped"))
        }
        FaultError::Protection => process::kill_at(
            address,
            Signal::SEGV,
            format_args!("{access} at {address:#x}, where the mapping forbids it"),
        ),
        FaultError::NoMemory => {}
        FaultError::Capped => process::doom_at_cap(),
        FaultError::Unreadable { area, slot } => process::kill_at(
            address,
            Signal::BUS,
            format_args!(
                "{access} at {address:#x}, whose page could not be read back from slot {slot} of swap area {area}"
            ),
        ),
        FaultError::Lost => process::kill_at(
            address,
            Signal::BUS,
            format_args!("{access} at {address:#x}, whose page was lost with its swap area"),
        ),
        FaultError::Damaged { area, slot } => process::kill_at(
            address,
            Signal::BUS,
            format_args!("{access} at {address:#x}, whose page came back damaged from slot {slot} of swap area {area}"),
        ),
    }
}

fn verb(abort: Abort) -> &'static str {
    match abort.access() {
        Access::Read => "a load",
        Access::Write => "a store",
        Access::Execute => "execution",
    }
}

/// What is left: tag checks, alignment, undefined and trapped instructions.
#[cold]
fn other_exception(abort: Abort, far: u64) {
    let pc = ELR_EL1.get();
    match abort.class() {
        class::WFX => {
            // WFI with a time-out: the program's time is up at once, others may run.
            ELR_EL1.set(pc + 4);
            sched::yield_now();
        }
        class::DATA_ABORT if abort.status() == status::TAG_CHECK => tag_check(abort, far),
        class::DATA_ABORT if abort.status() == status::ALIGNMENT => {
            process::kill_at(far, Signal::BUS, format_args!("{} at {far:#x}, which is misaligned", verb(abort)))
        }
        class::DATA_ABORT | class::INSTRUCTION_ABORT => {
            let code = abort.status();
            process::kill_at(far, Signal::SEGV, format_args!("{} at {far:#x}: fault status {code:#x}", verb(abort)))
        }
        class::PC_ALIGNMENT => process::kill(Signal::BUS, format_args!("execution at {far:#x}, which is misaligned")),
        class::SP_ALIGNMENT => process::kill(Signal::BUS, format_args!("misaligned stack pointer at pc {pc:#x}")),
        class::FP => process::kill(Signal::FPE, format_args!("floating-point exception at pc {pc:#x}")),
        class::BRK => process::kill(Signal::TRAP, format_args!("breakpoint {:#x} at pc {pc:#x}", abort.0 & 0xffff)),
        other => process::kill(
            Signal::ILL,
            format_args!("undefined or trapped instruction at pc {pc:#x} (class {other:#x})"),
        ),
    }
}

fn tag_check(abort: Abort, far: u64) -> ! {
    // FAR_EL1 bits 63:60 are UNKNOWN for a tag check fault; 59:56 are the pointer's tag (Arm ARM, D24.2.42).
    let (pointer, address) = (far >> 56 & 0xf, VirtAddr::untagged(far).bytes());
    let verb = verb(abort);
    match mte::tag_of_user(address) {
        Some(memory) => process::kill_at(
            address,
            Signal::SEGV,
            format_args!("tag check fault: {verb} at {address:#x}, pointer tag {pointer:#x}, memory tag {memory:#x}"),
        ),
        None => process::kill_at(
            address,
            Signal::SEGV,
            format_args!("tag check fault: {verb} at {address:#x}, pointer tag {pointer:#x}"),
        ),
    }
}

/// An exception from EL0 that found a wrong tag noted, of some access since the exception before.
///
/// What ends the program by itself, or is to kill it anyway, goes first; a system call is not made.
#[unsafe(no_mangle)]
extern "C" fn el0_late_tag_fault(esr: u64, far: u64) -> ! {
    let (abort, pc) = (Abort(esr), ELR_EL1.get());
    // It is this program's alone.
    cpu::forget_wrong_tag();
    if abort.class() != class::SVC {
        el0_abort(esr, far);
    }
    let entry = match abort.class() {
        class::SVC => "a system call",
        class::WFX => "a wait for an interrupt",
        _ => "a page fault",
    };
    late_tag_fault(entry, pc)
}

fn late_tag_fault(entry: &str, pc: u64) -> ! {
    if let Some(cause) = sched::fatal() {
        process::end_doomed(cause);
    }
    process::kill(Signal::SEGV, format_args!("asynchronous tag check fault, found at {entry}, pc {pc:#x}"))
}

/// The timer or another CPU, while a program ran.
#[unsafe(no_mangle)]
extern "C" fn el0_interrupt() {
    interrupt::acknowledge();
    panic::stop_if_asked();
    if cpu::wrong_tag_noted() {
        cpu::forget_wrong_tag();
        sched::timer_stopped();
        late_tag_fault("an interrupt", ELR_EL1.get());
    }
    sched::tick();
}

/// What is to be done before the return to EL0: see [`sched::work`].
#[unsafe(no_mangle)]
extern "C" fn el0_work(frame: &mut WholeFrame) {
    let work = sched::take_work();
    if work & sched::work::CALL != 0 {
        syscall::deferred(frame);
    }
    if let Some(cause) = sched::fatal() {
        process::end_doomed(cause);
    }
    if work & sched::work::KERNEL_TASK != 0 {
        sched::run_kernel_tasks();
    }
}

/// A new task, before its first instruction at EL0.
#[unsafe(no_mangle)]
extern "C" fn el0_start(frame: &mut WholeFrame) {
    process::begin(frame);
}

/// A synchronous exception at EL1: resolved, continued elsewhere, or the kernel's end.
#[unsafe(no_mangle)]
extern "C" fn el1_exception(registers: &mut Registers) {
    let abort = Abort(registers.esr);
    if abort.class() != class::DATA_ABORT_EL1 || is_upper(registers.far) || !uaccess::is_copy(registers.elr) {
        panic::on_exception("an exception in the kernel", registers);
    }
    if abort.is_translation()
        && percpu::here().no_faults.load(Ordering::Relaxed) == 0
        && process::resolve(fault(abort, registers.far)).is_ok()
    {
        return;
    }
    registers.elr = uaccess::continuation(registers.elr);
}

/// The EL1 vector found the stack pointer outside every stack.
#[unsafe(no_mangle)]
extern "C" fn el1_stack_overflow(registers: &Registers) -> ! {
    panic::on_exception("stack overflow in the kernel", registers)
}

/// A vector that is never used.
#[unsafe(no_mangle)]
extern "C" fn el1_unexpected(registers: &Registers, vector: u64) -> ! {
    const KIND: [&str; 4] = ["synchronous exception", "interrupt", "fast interrupt", "system error"];
    super::console::alert!("vector {vector}: {}", KIND[vector as usize % 4]);
    panic::on_exception("an exception that nothing here asks for", registers)
}

const _: () = assert!(size_of::<Registers>() == 288);
