//! Interrupts, through a GICv2 or a GICv3: the virtual timer's of each CPU, and one by which CPUs wake each other.
//!
//! They are masked at EL1, always, and open at EL0. So one is taken when a program runs, or wakes the CPU from
//! [`wait_for_any`] without being taken. The timer's line is a level: it falls when the timer is set to another time
//! or stopped, and the interrupt is gone with it, taken or not. The other one is an edge that says nothing but that
//! there is something to look at: any number of them are as good as one.

use core::ptr::NonNull;

use aarch64_cpu::asm::{barrier, wfi};
use aarch64_cpu::registers::{CNTV_CTL_EL0, CNTV_CVAL_EL0, MPIDR_EL1, Readable, Writeable};
use arm_gic::gicv2::{self, GicV2};
use arm_gic::gicv3::{self, GicCpuInterface, GicV3, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use ebbtide::sync::Spin;

use super::dt::{Gic, GicVersion};
use super::global::Late;
use super::{mmu, percpu};

/// The virtual timer of each CPU (Arm's BSA, "PPI assignments").
const TIMER: IntId = IntId::ppi(11);

/// From one CPU to another.
const WAKE: IntId = IntId::sgi(0);

/// The priority of both, and a mask that lets it pass: lower is more urgent.
const PRIORITY: u8 = 0x80;
const PRIORITY_MASK: u8 = 0xff;

/// The fields of MPIDR_EL1 that say which CPU it is.
const AFFINITY: u64 = 0xff_00ff_ffff;

const BROKEN: &str = "the interrupt controller cannot be used";

/// The controller. The lock is for what CPUs share: with a GICv3 that is needed at boot alone, as each has an interface
/// of its own in its system registers.
enum Controller {
    V2(Spin<GicV2<'static>>),
    V3(Spin<GicV3<'static>>),
}

static CONTROLLER: Late<Controller> = Late::new();

/// Sets the controller up, with this CPU's part of it. Nothing is interrupted yet: see the module's head.
///
/// # Safety
/// The registers are the controller's, mapped in the linear map, and used by nothing else.
pub unsafe fn start(controller: Gic, cpus: usize) -> Result<(), &'static str> {
    let [distributor, others] = controller.registers.map(|(start, _)| mmu::linear(start));
    let controller = match controller.version {
        GicVersion::V2 => {
            // SAFETY: the caller's promise.
            let mut gic = unsafe { GicV2::new(distributor.cast(), others.cast()) };
            // Without the security extensions, which this machine does not have: all interrupts are of group 0.
            gic.setup();
            Controller::V2(Spin::new(gic))
        }
        GicVersion::V3 => {
            let distributor = NonNull::new(distributor.cast()).ok_or(BROKEN)?;
            let redistributors = NonNull::new(others.cast()).ok_or(BROKEN)?;
            // SAFETY: the caller's promise.
            let distributor = unsafe { UniqueMmioPointer::new(distributor) };
            // SAFETY: as above.
            let mut gic = unsafe { GicV3::new(distributor, redistributors, cpus) }.map_err(|_| BROKEN)?;
            let here = redistributor(&mut gic, cpus).ok_or(BROKEN)?;
            gic.setup(here);
            Controller::V3(Spin::new(gic))
        }
    };
    CONTROLLER.set(controller);
    start_cpu(cpus)
}

/// The number of the calling CPU's redistributor.
fn redistributor(gic: &mut GicV3<'_>, cpus: usize) -> Option<usize> {
    let affinity = MPIDR_EL1.get() & AFFINITY;
    (0..cpus).find(|&number| gic.gicr_typer(number).is_ok_and(|typer| typer.core_mpidr() == affinity))
}

/// Sets the calling CPU's part up.
pub fn start_cpu(cpus: usize) -> Result<(), &'static str> {
    match CONTROLLER.get().ok_or(BROKEN)? {
        Controller::V2(gic) => {
            let mut gic = gic.lock();
            // The interface is this CPU's own, whatever CPU asked for it first.
            if percpu::number() != 0 {
                gic.setup();
            }
            gic.set_priority_mask(PRIORITY_MASK);
            for interrupt in [TIMER, WAKE] {
                gic.enable_interrupt(interrupt, true).map_err(|_| BROKEN)?;
            }
        }
        Controller::V3(gic) => {
            let mut gic = gic.lock();
            let here = redistributor(&mut gic, cpus).ok_or(BROKEN)?;
            gic.init_cpu(here);
            GicCpuInterface::set_priority_mask(PRIORITY_MASK);
            GicCpuInterface::enable_group1(true);
            for interrupt in [TIMER, WAKE] {
                gic.set_interrupt_priority(interrupt, Some(here), PRIORITY).map_err(|_| BROKEN)?;
                gic.enable_interrupt(interrupt, Some(here), true).map_err(|_| BROKEN)?;
            }
        }
    }
    Ok(())
}

/// Lets the timer interrupt at a value of the counter, or not at all.
pub fn set_timer(at: Option<u64>) {
    match at {
        Some(at) => {
            CNTV_CVAL_EL0.set(at);
            CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR);
        }
        None => CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR),
    }
    barrier::isb(barrier::SY);
}

/// Interrupts another CPU. What was stored before is seen by it.
pub fn wake(cpu: usize) {
    barrier::dsb(barrier::ISHST);
    match CONTROLLER.get() {
        Some(Controller::V2(gic)) => {
            let target = gicv2::SgiTarget::List {
                target_list_filter: gicv2::SgiTargetListFilter::CPUTargetList,
                target_list: 1 << cpu,
            };
            gic.lock().send_sgi(WAKE, target);
        }
        Some(Controller::V3(_)) => {
            let [aff0, aff1, aff2, _, aff3, ..] = percpu::of(cpu).affinity().to_le_bytes();
            let target =
                SgiTarget::List { affinity3: aff3, affinity2: aff2, affinity1: aff1, target_list: 1 << (aff0 & 0xf) };
            let sent: Result<(), gicv3::GicError> =
                GicCpuInterface::send_sgi(WAKE, target, SgiTargetGroup::CurrentGroup1);
            debug_assert!(sent.is_ok());
            barrier::isb(barrier::SY);
        }
        None => {}
    }
}

/// Ends the interrupt that was taken or is pending, if there is one, and stops the timer, or it would come again at
/// once.
pub fn acknowledge() {
    match CONTROLLER.get() {
        Some(Controller::V2(gic)) => drop(gic.lock().handle_interrupt(InterruptGroup::Group0, |_| {})),
        Some(Controller::V3(_)) => drop(GicCpuInterface::handle_interrupt(InterruptGroup::Group1, |_| {})),
        None => {}
    }
    set_timer(None);
}

/// Idles until an interrupt is pending.
pub fn wait_for_any() {
    barrier::dsb(barrier::SY);
    wfi();
}
