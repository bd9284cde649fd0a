// Exception vectors of EL1, and the way back.
//
// From EL0 only what a Rust function may change is saved: x0 to x18 and x30. The rest of the program's state stays
// where it is, in x19 to x29, SP_EL0, ELR_EL1, SPSR_EL1 and the FP registers: Rust code keeps the first, a change to
// another program's task the others (src/kernel/el0.rs), and the kernel's own code uses no FP. An exception taken at
// EL1 (a fault of a user copy, or a bug) saves everything.
//
// Interrupts are masked at EL1. One taken at EL0 is handled like any other exception from there.
//
// TPIDR_EL1 names the CPU's block (src/kernel/percpu.rs). Whatever has to be done before the return to EL0 is told by
// the block's first word, which is one load to look at. Then x19 to x29 join the frame: what is done there may make a
// second program of it, or another one; and the task may go on on another CPU.
//
// A stack is the upper half of a slot whose lower half is not mapped: bit STACK_SHIFT of a good stack pointer is 1. The
// EL1 vector looks at that bit before it stores anything, so that an overflow is reported from the emergency stack.
//
// There are two tables. While wrong tags of EL0 may be noted in TFSRE0_EL1 instead of faulting at once, VBAR_EL1 names
// late_vectors, whose entry from EL0 looks there first; programs without such checks do not pay for that look.

.set STACK_SHIFT, {stack_shift}
.arch_extension fp
.set CPU_WORK, 0
.set CPU_EMERGENCY_STACK, 16
.set USER_FRAME, 160
.set REST_FRAME, 96
.set FULL_FRAME, 288

.macro save_user
    stp     x0, x1, [sp, #-USER_FRAME]!
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
.endm

.macro return_to_user slow
    mrs     x0, tpidr_el1
    ldr     w0, [x0, #CPU_WORK]
    cbnz    w0, \slow
    ldp     x18, x30, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #USER_FRAME
    eret
.endm

// An exception that must not happen: number and registers, then the end.
.macro unexpected number
    .balign 128
    msr     tpidrro_el0, x0
    mov     x0, #\number
    b       unexpected_exception
.endm

// A table with the given code for synchronous exceptions from EL0.
.macro vector_table el0_synchronous
    unexpected 0                        // EL1 with SP_EL0
    unexpected 1
    unexpected 2
    unexpected 3

    .balign 128                         // EL1, synchronous
    sub     sp, sp, #FULL_FRAME
    add     sp, sp, x0                  // sp' = sp + x0, x0' = sp: a swap without a free register
    sub     x0, sp, x0
    tbz     x0, #STACK_SHIFT, stack_overflow
    sub     x0, sp, x0
    sub     sp, sp, x0
    b       el1_synchronous
    unexpected 5
    unexpected 6
    unexpected 7

    .balign 128                         // EL0, synchronous
    save_user
    \el0_synchronous

    .balign 128                         // EL0, interrupt
    save_user
    b       interrupt
    unexpected 10
    unexpected 11

    unexpected 12                       // EL0 in AArch32
    unexpected 13
    unexpected 14
    unexpected 15
.endm

.macro dispatch
dispatch_user:
    mrs     x0, esr_el1
    tbz     x0, #31, system_call        // aborts from EL0 are the classes 0x20 and 0x24, SVC is 0x15
    mrs     x1, far_el1
    bl      el0_abort
    return_to_user work
.endm

// SCTLR_EL1.ITFSB is set with this table: the exception itself has brought TFSRE0_EL1 up to date, without a barrier.
// Bit 0 is the lower half, where the program's memory is.
.macro look_for_wrong_tags
    mrs     x0, S3_0_C5_C6_1            // TFSRE0_EL1
    tbz     x0, #0, dispatch_user
    mrs     x0, esr_el1
    mrs     x1, far_el1
    bl      el0_late_tag_fault
.endm

.section .text.vectors, "ax"
.balign 2048
.globl vectors
vectors:
    vector_table dispatch

.balign 2048
.globl late_vectors
late_vectors:
    vector_table look_for_wrong_tags

system_call:
    lsr     x1, x0, #26
    cmp     x1, #0x15
    b.ne    1f
    mov     x0, sp
    bl      el0_system_call
    str     x0, [sp]
2:  return_to_user work
1:  mrs     x1, far_el1
    bl      el0_abort
    b       2b

interrupt:
    bl      el0_interrupt
    b       2b

work:
    stp     x19, x20, [sp, #-REST_FRAME]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, xzr, [sp, #80]
    mov     x0, sp
    bl      el0_work
whole_frame_return:
    ldp     x19, x20, [sp]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldr     x29, [sp, #80]
    add     sp, sp, #REST_FRAME
    b       2b

// The first context_switch to a program's task returns here, with its whole frame on the stack.
.globl user_task_start
user_task_start:
    mov     x29, xzr
    bl      task_switched
    mov     x0, sp
    bl      el0_start
    b       whole_frame_return

// sp = FULL_FRAME below the interrupted one.
.macro save_full
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
.endm

.macro save_system
    mrs     x20, elr_el1
    mrs     x21, spsr_el1
    stp     x20, x21, [sp, #256]
    mrs     x20, esr_el1
    mrs     x21, far_el1
    stp     x20, x21, [sp, #272]
.endm

el1_synchronous:
    save_full
    add     x20, sp, #FULL_FRAME
    stp     x30, x20, [sp, #240]
    save_system
    mov     x0, sp
    bl      el1_exception
    ldp     x0, x1, [sp, #256]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    add     sp, sp, #FULL_FRAME
    eret

// x0 = the overflowed stack pointer - FULL_FRAME, sp = that + the interrupted x0. The program's registers serve as
// scratch: nothing returns from here.
stack_overflow:
    msr     sp_el0, x0
    sub     x0, sp, x0
    msr     tpidrro_el0, x0
    mrs     x0, tpidr_el1
    ldr     x0, [x0, #CPU_EMERGENCY_STACK]
    mov     sp, x0
    sub     sp, sp, #FULL_FRAME
    mrs     x0, tpidrro_el0
    save_full
    mrs     x20, sp_el0
    add     x20, x20, #FULL_FRAME
    stp     x30, x20, [sp, #240]
    save_system
    mov     x0, sp
    b       el1_stack_overflow

// x0 = vector number, TPIDRRO_EL0 = the interrupted x0. The stack may be anything: the emergency stack is good.
unexpected_exception:
    msr     tpidr_el0, x0               // the program's registers are lost: nothing returns from here
    mov     x0, sp
    msr     sp_el0, x0
    mrs     x0, tpidr_el1
    ldr     x0, [x0, #CPU_EMERGENCY_STACK]
    mov     sp, x0
    sub     sp, sp, #FULL_FRAME
    mrs     x0, tpidrro_el0
    save_full
    mrs     x20, sp_el0
    stp     x30, x20, [sp, #240]
    save_system
    mov     x0, sp
    mrs     x1, tpidr_el0
    b       el1_unexpected
