//! Interrupts: one of them, the virtual timer's, through a GICv3.
//!
//! They are masked at EL1, always, and open at EL0. So one is taken when a program runs, or wakes the CPU from
//! [`wait_for_any`] without being taken. The timer's line is a level: it falls when the timer is set to another time
//! or stopped, and the interrupt is gone with it, taken or not.

use core::ptr::NonNull;

use aarch64_cpu::asm::{barrier, wfi};
use aarch64_cpu::registers::{CNTV_CTL_EL0, CNTV_CVAL_EL0, Writeable};
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};

use super::dt::Gic;
use super::mmu;

/// The virtual timer of each CPU (Arm's BSA, "PPI assignments").
const TIMER: IntId = IntId::ppi(11);

/// The priority of the one interrupt, and a mask that lets it pass: lower is more urgent.
const PRIORITY: u8 = 0x80;
const PRIORITY_MASK: u8 = 0xff;

/// Sets the controller up. Nothing is interrupted yet: see the module's head.
///
/// # Safety
/// The registers are a GICv3's, mapped in the linear map, and used by nothing else.
pub unsafe fn start(controller: Gic) -> Result<(), &'static str> {
    const BROKEN: &str = "the interrupt controller cannot be used";
    let [distributor, redistributors] = controller.registers().map(|(start, _)| mmu::linear(start));
    let distributor = NonNull::new(distributor.cast()).ok_or(BROKEN)?;
    let redistributors = NonNull::new(redistributors.cast()).ok_or(BROKEN)?;
    // SAFETY: the caller's promise. One CPU is in use.
    let mut gic = unsafe { GicV3::new(UniqueMmioPointer::new(distributor), redistributors, 1) }.map_err(|_| BROKEN)?;
    gic.setup(0);
    GicCpuInterface::set_priority_mask(PRIORITY_MASK);
    gic.set_interrupt_priority(TIMER, Some(0), PRIORITY).map_err(|_| BROKEN)?;
    gic.enable_interrupt(TIMER, Some(0), true).map_err(|_| BROKEN)
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

/// Ends the interrupt that was taken, and stops the timer, or it would come again at once.
pub fn acknowledge() {
    GicCpuInterface::handle_interrupt(InterruptGroup::Group1, |_| set_timer(None));
}

/// Idles until an interrupt is pending.
pub fn wait_for_any() {
    barrier::dsb(barrier::SY);
    wfi();
}
