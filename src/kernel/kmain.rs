//! The order of boot, from the assembly's jump to the program's first instruction.
//!
//! Each step may use what the ones before it made:
//!
//! 1. the early map, still: device tree, boot arguments, the plan of memory, the final map;
//! 2. the CPU's control registers, and the proof that its memory tags work;
//! 3. heap, machine, [`Mm`](ebbtide::Mm), swap area, interrupt controller, the background reclaimer's task;
//! 4. the other CPUs, which then idle;
//! 5. the first process.
//!
//! No interrupt is ever taken in the kernel: its code runs until it waits or returns.

mod board;
mod bootargs;
mod collapse;
mod console;
mod cpu;
mod direct;
mod dt;
mod el0;
mod elf;
mod floor;
mod global;
mod heap;
mod hwcap;
mod initrd;
mod interrupt;
mod layout;
mod mmu;
mod mte;
mod page;
mod panic;
mod percpu;
mod process;
mod random;
mod sched;
#[cfg(feature = "selftest")]
mod selftest;
mod smp;
mod stack;
mod stats;
mod swap;
mod syscall;
mod time;
mod trap;
mod uaccess;
mod watchdog;

use core::arch::global_asm;

use ebbtide::machine::aarch64::Aarch64;
use ebbtide::machine::{Features, Machine, Tags};

use board::Virt;
use bootargs::BootArgs;
use console::{alert, log};
use floor::Counter;

global_asm!(
    include_str!("../../boot/head.S"),
    page_shift = const page::SHIFT,
    stack_shift = const stack::SHIFT
);
global_asm!(include_str!("../../boot/vectors.S"), stack_shift = const stack::SHIFT);
global_asm!(include_str!("../../boot/switch.S"));
global_asm!(include_str!("../../boot/uaccess.S"));
global_asm!(include_str!("../../boot/floors.S"), options(raw));

/// The machine that the library runs on here.
pub type Hardware = Aarch64<Virt>;

/// Exit status of a set-up that cannot work: the script's own for a bad command line.
const CANNOT_START: i32 = 125;

unsafe extern "C" {
    /// In `boot/head.S`, as no Rust code of an LSE build can be trusted to run on a CPU without.
    fn refuse_cpu() -> !;
}

/// Ends the machine on a CPU that cannot run this build. Not inlined, so that a debugger's stop at [`kmain`] shows
/// that function itself. (The build for Armv8.0 has nothing to check; there the next call stands first.)
#[inline(never)]
fn check_cpu() {
    if cfg!(target_feature = "lse") && !cpu::has_lse() {
        // SAFETY: ends the machine.
        unsafe { refuse_cpu() }
    }
}

/// Ends the machine before any program ran.
fn cannot_start(why: core::fmt::Arguments<'_>) -> ! {
    console::death(format_args!("{why} ({CANNOT_START})"));
    console::exit(CANNOT_START)
}

/// Called by `boot/head.S`, on the boot stack.
#[unsafe(no_mangle)]
extern "C" fn kmain(device_tree: u64) -> ! {
    check_cpu();
    // SAFETY: the boot protocol's x0, and the early map shows the first gigabyte of RAM.
    let tree = match unsafe { dt::Tree::read(device_tree) } {
        Ok(tree) => tree,
        Err(what) => cannot_start(format_args!("the device tree is of no use: {what}")),
    };
    // SAFETY: the device tree's UART; the early map shows the first gigabyte of devices, and later maps keep it.
    if let Err(why) = unsafe { console::start(tree.uart) } {
        cannot_start(format_args!("{why}"));
    }
    let args = BootArgs::parse(tree.boot_args());
    if args.quiet {
        console::be_quiet();
    }

    let (plan, mut ground) = match layout::plan(&tree, &args) {
        Ok(planned) => planned,
        Err(why) => cannot_start(format_args!("{why}")),
    };
    // SAFETY: nothing else uses memory above the image yet; the device tree was read.
    let initrd = unsafe { layout::relocate_initrd(&tree, &mut ground) };
    let tags = if !args.no_mte && cpu::has_mte() { Tags::Include } else { Tags::Ignore };
    if args.tag_checks == cpu::TagChecks::Asymm && !(tags == Tags::Include && cpu::has_asymmetric_checks()) {
        cannot_start(format_args!("this CPU has no asymmetric tag checks (FEAT_MTE3)"));
    }
    // SAFETY: called once, on the early map, with memory of which nothing is in use but what `ground` has given out.
    unsafe { mmu::install(&plan, &tree, &mut ground, tags) };
    cpu::set_controls(tags);
    heap::start();
    log!(
        "{} MiB of memory, {} MiB of swap, pages of {} KiB, {} CPU{}, EL1, PSCI {} by {}",
        plan.managed.pages() << page::SHIFT >> 20,
        plan.swap.pages() << page::SHIFT >> 20,
        page::PAGE >> 10,
        tree.cpus.len(),
        if tree.cpus.len() == 1 { "" } else { "s" },
        tree.psci_version(),
        tree.psci
    );
    if tags == Tags::Include
        && let Err(why) = mte::self_check(&mut ground)
    {
        cannot_start(format_args!("{why}"));
    }
    if !args.no_mte && !cpu::has_mte() {
        log!("this CPU has no memory tags");
    }

    let mut without = Features::empty();
    without.set(Features::MTE, args.no_mte);
    without.set(Features::HW_ACCESS | Features::HW_DIRTY, args.no_hafdbs);
    // SAFETY: EL1, the only machine; `Virt` keeps the promises of a board now that the final map is in place.
    let machine = unsafe { Aarch64::new(Virt, without) };
    if let Err(error) = machine.start_cpu() {
        cannot_start(format_args!("this CPU cannot be used: {error:?}"));
    }
    log!("features: {:?}, {} ASID bits", machine.features(), machine.asid_bits());
    random::seed(if args.icount { 0 } else { tree.seed });
    floor::start(&mut ground, if args.icount { Counter::Instructions } else { Counter::Time });

    let mm = layout::start_mm(machine, &plan, &mut ground, args.policy);
    if let Err(why) = swap::start(mm, &plan, &args) {
        cannot_start(format_args!("{why}"));
    }
    if let Some(orders) = args.folio_orders {
        mm.set_folio_orders(orders);
    }
    sched::start();
    sched::spawn(reclaimer);
    collapse::start(args.collapse_ms);

    let Some(files) = initrd else {
        cannot_start(format_args!("there is no initrd, hence no program to run"));
    };
    let Some(controller) = tree.interrupts else {
        cannot_start(format_args!("there is no GICv2 or GICv3: -machine virt,gic-version=3"));
    };
    // SAFETY: the final map shows the controller's registers, and nothing else uses them.
    if let Err(why) = unsafe { interrupt::start(controller, tree.cpus_present) } {
        cannot_start(format_args!("{why}"));
    }
    if tree.cpus_present > tree.cpus.len() {
        alert!("of {} CPUs the first {} are used", tree.cpus_present, tree.cpus.len());
    }
    watchdog::start(args.watchdog_seconds());
    smp::start(&tree, tags);

    #[cfg(feature = "selftest")]
    if let Some(name) = args.selftest() {
        selftest::run(name, mm, &plan);
    }
    #[cfg(not(feature = "selftest"))]
    if let Some(name) = args.selftest() {
        cannot_start(format_args!("this kernel was built without self-tests: {name} cannot run"));
    }
    for word in args.unknown() {
        alert!("boot argument {word} is unknown");
    }
    process::run(mm, files, &args, plan.managed.pages() << page::SHIFT)
}

/// The background reclaimer's task.
extern "C" fn reclaimer() -> ! {
    global::mm().reclaimer()
}
