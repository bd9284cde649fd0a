//! The kernel's end: registers, a backtrace by frame pointers, and exit status 101.
//!
//! One CPU reports. It asks the others to stop, which they do where they next look: at an interrupt from EL0, in the
//! idle wait, or while they spin. Those that do in time are told of, with what they were doing.

use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::registers::{Readable, SCTLR_EL1, SPSR_EL1, TTBR0_EL1};

use super::console::{self, alert};
use super::percpu::{self, NO_TASK};
use super::{interrupt, mmu, process, stack, time};

/// Exit status of a panic: Rust's own.
const STATUS: i32 = 101;

/// So much of the program's space around a faulting address is told: some groups of 4 KiB pages.
const AROUND: u64 = 256 << 10;

/// What `boot/vectors.S` saves of an exception at EL1.
#[repr(C)]
pub struct Registers {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The interrupted stack pointer.
    pub sp: u64,
    /// Where the exception was taken, and where it returns to.
    pub elr: u64,
    /// The interrupted PSTATE.
    pub spsr: u64,
    /// What happened.
    pub esr: u64,
    /// The address it happened to.
    pub far: u64,
}

/// The number of the CPU that reports, plus one.
static REPORTER: AtomicUsize = AtomicUsize::new(0);

/// So long the others have time to stop.
const PATIENCE_NS: u64 = 200_000_000;

/// Begins the report, with the other CPUs stopped. A second panic of the CPU that is reporting one ends the machine at
/// once; one of another CPU waits for that.
fn enter() {
    let here = percpu::number() + 1;
    match REPORTER.compare_exchange(0, here, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(reporter) if reporter == here => {
            console::death(format_args!("kernel panic while reporting one ({STATUS})"));
            console::exit(STATUS);
        }
        Err(_) => stop(),
    }
    for other in percpu::all().filter(|other| other.number() + 1 != here) {
        interrupt::wake(other.number());
    }
    let until = time::counter().saturating_add(time::ticks_of(PATIENCE_NS));
    while time::counter() < until && percpu::all().any(|cpu| cpu.number() + 1 != here && !cpu.has_stopped()) {
        core::hint::spin_loop();
    }
}

/// Stops the calling CPU if another one reports a panic.
pub fn stop_if_asked() {
    let reporter = REPORTER.load(Ordering::Relaxed);
    if reporter != 0 && reporter != percpu::number() + 1 {
        stop();
    }
}

/// Stops the calling CPU for good.
#[inline(never)]
fn stop() -> ! {
    let frame: usize;
    // SAFETY: reads the frame pointer.
    unsafe { asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    percpu::here().stopped_at.store(frame, Ordering::Release);
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// What the other CPUs did.
fn print_others() {
    for cpu in percpu::all().filter(|cpu| cpu.number() != percpu::number()) {
        let number = cpu.number();
        let frame = cpu.stopped_at.load(Ordering::Acquire);
        let task = cpu.task.load(Ordering::Relaxed);
        let (task, has_task) = if task == NO_TASK { (0, false) } else { (task, true) };
        let doing = if has_task { "runs task" } else { "idles, task" };
        if frame == 0 {
            alert!("CPU {number} {doing} {task}, and does not stop");
        } else {
            alert!("CPU {number} {doing} {task}, stopped in:");
            backtrace(frame as u64);
        }
    }
}

/// Ends the kernel for an exception at EL1.
pub fn on_exception(what: &str, registers: &Registers) -> ! {
    enter();
    alert!("kernel panic: {what}{}", OnCpu);
    print(registers);
    alert!("backtrace:");
    alert!("  {:#018x}", registers.elr);
    backtrace(registers.x[29]);
    print_others();
    if registers.far & 1 << 55 == 0 {
        process::explain(registers.far);
        process::dump(registers.far & !(AROUND - 1), (registers.far | (AROUND - 1)).saturating_add(1));
    }
    console::death(format_args!(
        "kernel panic: {what} at pc {:#x}, address {:#x}, syndrome {:#x} ({STATUS})",
        registers.elr, registers.far, registers.esr
    ));
    console::exit(STATUS)
}

/// Which CPU it is, where there are several.
struct OnCpu;

impl fmt::Display for OnCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if percpu::count() > 1 { write!(f, " (on CPU {})", percpu::number()) } else { Ok(()) }
    }
}

fn print(registers: &Registers) {
    for (row, values) in registers.x[..28].chunks(4).enumerate() {
        let first = 4 * row;
        let [a, b, c, d] = [values[0], values[1], values[2], values[3]];
        alert!(
            "  x{first:<2} {a:016x}  x{:<2} {b:016x}  x{:<2} {c:016x}  x{:<2} {d:016x}",
            first + 1,
            first + 2,
            first + 3
        );
    }
    let x = &registers.x;
    alert!("  x28 {:016x}  x29 {:016x}  x30 {:016x}  sp  {:016x}", x[28], x[29], x[30], registers.sp);
    alert!(
        "  pc  {:016x}  spsr {:08x}  esr {:08x}  far {:016x}",
        registers.elr,
        registers.spsr,
        registers.esr,
        registers.far
    );
    alert!("  sctlr {:016x}  ttbr0 {:016x}", SCTLR_EL1.get(), TTBR0_EL1.get());
}

/// Return addresses from a chain of frame records (AAPCS64, 6.4.6): each holds the caller's record and the return
/// address.
fn backtrace(mut frame: u64) {
    const DEPTH: usize = 32;
    let text = mmu::text();
    for _ in 0..DEPTH {
        let Some(stack) = stack::holding(frame as usize) else { return };
        if !frame.is_multiple_of(16) || frame as usize + 16 > stack.end {
            return;
        }
        let record: *const [u64; 2] = core::ptr::with_exposed_provenance(frame as usize);
        // SAFETY: the record lies within a mapped stack.
        let [caller, back] = unsafe { record.read() };
        if !text.contains(&back) {
            return;
        }
        alert!("  {back:#018x}");
        // Records of callers lie above; anything else would not end.
        if caller <= frame {
            return;
        }
        frame = caller;
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut registers = Registers { x: [0; 31], sp: 0, elr: 0, spsr: SPSR_EL1.get(), esr: 0, far: 0 };
    let into = &raw mut registers;
    // SAFETY: stores into `registers`, which is as large as the offsets say. x0 to x18 hold what this handler has
    // made of them, the others what the panicking function left.
    unsafe {
        asm!(
            "stp x0, x1, [{r}]", "stp x2, x3, [{r}, #16]", "stp x4, x5, [{r}, #32]",
            "stp x6, x7, [{r}, #48]", "stp x8, x9, [{r}, #64]", "stp x10, x11, [{r}, #80]",
            "stp x12, x13, [{r}, #96]", "stp x14, x15, [{r}, #112]", "stp x16, x17, [{r}, #128]",
            "stp x18, x19, [{r}, #144]", "stp x20, x21, [{r}, #160]", "stp x22, x23, [{r}, #176]",
            "stp x24, x25, [{r}, #192]", "stp x26, x27, [{r}, #208]", "stp x28, x29, [{r}, #224]",
            "mov {t}, sp", "stp x30, {t}, [{r}, #240]", "adr {t}, .", "str {t}, [{r}, #256]",
            r = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)
        );
    }
    enter();
    alert!("kernel {info}{}", OnCpu);
    print(&registers);
    alert!("backtrace:");
    backtrace(registers.x[29]);
    print_others();
    match info.location() {
        Some(place) => console::death(format_args!("kernel panic: {} at {place} ({STATUS})", info.message())),
        None => console::death(format_args!("kernel panic: {} ({STATUS})", info.message())),
    }
    console::exit(STATUS)
}
