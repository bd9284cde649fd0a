// The arm64 Image header, and the way from the boot loader's state to Rust in the upper half; the same way again for
// every further CPU.
//
// Entered at EL1 or EL2 with the MMU off and x0 = physical address of the device tree (Linux's
// Documentation/arch/arm64/booting.rst). Leaves EL2 at once, maps the first gigabytes of physical memory with one
// table that serves both halves, turns the MMU on, and calls kmain(x0) on the boot stack. kmain replaces the table.
//
// A further CPU enters at secondary_entry, by PSCI's CPU_ON, in the same state and with x0 = physical address of its
// block (src/kernel/percpu.rs). It has the kernel's final table from the start, and calls secondary_main on a stack of
// its own.
//
// The operands in braces are the build's: log2 of a page's bytes, and of a stack's.

.set PAGE_SHIFT, {page_shift}
.set STACK_SHIFT, {stack_shift}

// TCR_EL1.TG0 and TG1; the largest block of the early map; the bytes of a root table for 39-bit addresses.
.if PAGE_SHIFT == 12
.set EARLY_TG0, 0
.set EARLY_TG1, 2
.set EARLY_BLOCK_SHIFT, 30              // level 1, which is the root
.set ROOT_BYTES, 4096
.elseif PAGE_SHIFT == 14
.set EARLY_TG0, 2
.set EARLY_TG1, 1
.set EARLY_BLOCK_SHIFT, 25              // level 2, one below the root: at 16 KiB level 1 has no blocks
.set ROOT_BYTES, 64
.else
.set EARLY_TG0, 1
.set EARLY_TG1, 3
.set EARLY_BLOCK_SHIFT, 29              // level 2, which is the root
.set ROOT_BYTES, 8192
.endif

.set EARLY_DEVICE, (1 << 54) | (1 << 53) | (1 << 10) | (2 << 2) | 1       // UXN, PXN, AF, AttrIndx 2, block
.set EARLY_NORMAL, (1 << 54) | (1 << 10) | (3 << 8) | (0 << 2) | 1        // UXN, AF, inner shareable, AttrIndx 0, block

// T0SZ 25, IRGN0, ORGN0 Write-Back, SH0 inner, TG0; the same for T1SZ, with TBI1.
.set EARLY_TCR_LOW, 25 | (1 << 8) | (1 << 10) | (3 << 12) | (EARLY_TG0 << 14)
.set EARLY_TCR_HIGH, (25 << 16) | (1 << 24) | (1 << 26) | (3 << 28) | (EARLY_TG1 << 30) | (1 << 38)

// Offsets in a CPU's block.
.set CPU_EMERGENCY_STACK, 16
.set CPU_STACK, 24
.set CPU_ROOT, 32

// From EL2 to EL1, at \target. x1 = the early vectors.
.macro leave_el2 target
    msr     vbar_el2, x1
    // EL1 is AArch64; pointer authentication and allocation tags are not trapped. Without ATA (bit 56) every tag
    // reads as 0 at EL1 (Arm ARM, D24.2.53, HCR_EL2).
    ldr     x0, =((1 << 56) | (1 << 41) | (1 << 40) | (1 << 31))
    msr     hcr_el2, x0
    mov     x0, #0x33ff                 // CPTR_EL2: FP and SIMD not trapped, SVE and SME are
    msr     cptr_el2, x0
    msr     hstr_el2, xzr
    mov     x0, #3                      // EL1 may use the counter and the timer
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    msr     vttbr_el2, xzr
    // ICC_SRE_EL2 exists only with a GICv3 system register interface (ID_AA64PFR0_EL1.GIC).
    mrs     x0, id_aa64pfr0_el1
    ubfx    x0, x0, #24, #4
    cbz     x0, .Lno_gic\@
    mov     x0, #0xf
    msr     S3_4_C12_C9_5, x0           // ICC_SRE_EL2: system registers, also for EL1
    isb
.Lno_gic\@:
    // Fine-grained traps off, where there are any (ID_AA64MMFR0_EL1.FGT).
    mrs     x0, id_aa64mmfr0_el1
    ubfx    x0, x0, #56, #4
    cbz     x0, .Lno_traps\@
    msr     S3_4_C1_C1_4, xzr           // HFGRTR_EL2
    msr     S3_4_C1_C1_5, xzr           // HFGWTR_EL2
    msr     S3_4_C1_C1_6, xzr           // HFGITR_EL2
    msr     S3_4_C3_C1_4, xzr           // HDFGRTR_EL2
    msr     S3_4_C3_C1_5, xzr           // HDFGWTR_EL2
.Lno_traps\@:
    ldr     x0, =0x30d00800             // SCTLR_EL1: the RES1 bits of Armv8.0, MMU off
    msr     sctlr_el1, x0
    mov     x0, #0x3c5                  // EL1h, all interrupts masked
    msr     spsr_el2, x0
    adr     x0, \target
    msr     elr_el2, x0
    eret
.endm

.macro set_translation
    // MAIR_EL1: 0 Normal Write-Back, 1 the same with allocation tags (where there are any), 2 Device-nGnRE.
    mrs     x0, id_aa64pfr1_el1
    ubfx    x0, x0, #8, #4
    cmp     x0, #2
    mov     x1, #0xff
    mov     x2, #0xf0
    csel    x2, x2, x1, hs
    orr     x1, x1, x2, lsl #8
    mov     x2, #0x04
    orr     x1, x1, x2, lsl #16
    msr     mair_el1, x1

    // TCR_EL1: 39 bits and one granule in both halves, walks in Normal Write-Back inner shareable memory, TBI1.
    ldr     x0, =(EARLY_TCR_LOW | EARLY_TCR_HIGH)
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf
    mov     x2, #5                      // at most 48 bits: more would need another descriptor format
    cmp     x1, x2
    csel    x1, x1, x2, lo
    orr     x0, x0, x1, lsl #32
    msr     tcr_el1, x0
.endm

// The MMU on, with the tables of x0 in the lower and x1 in the upper half, and on to \target in the upper half.
.macro enter_upper_half target
    msr     ttbr0_el1, x0
    msr     ttbr1_el1, x1
    tlbi    vmalle1
    ic      iallu
    dsb     ish
    isb
    ldr     x0, =0x30d0181d             // RES1 bits, I, SA0, SA, C, M
    msr     sctlr_el1, x0
    isb
    ldr     x0, =\target
    br      x0
.endm

.section .head, "ax"
.globl _start
_start:
    b       entry                       // code0
    .long   0                           // code1
    .quad   0                           // text_offset: RAM + 2 MiB
    .quad   __image_bytes               // image_size, with .bss and the stacks
    .quad   8 | ((PAGE_SHIFT - 10) / 2) << 1    // flags: little endian, the page size, anywhere in memory
    .quad   0, 0, 0
    .long   0x644d5241                  // "ARM\x64"
    .long   0

entry:
    mov     x19, x0                     // the device tree
    // A vector table first: an unexpected trap then ends the machine instead of hanging it without a word.
    adrp    x1, early_vectors
    add     x1, x1, :lo12:early_vectors
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    at_el1

    leave_el2 at_el1

at_el1:
    msr     vbar_el1, x1
    msr     daifset, #0xf
    msr     spsel, #1
    isb

    // The image is linked for one address: loaded elsewhere it could not run.
    adr     x0, _start
    ldr     x1, =LOAD_ADDRESS
    cmp     x0, x1
    b.ne    early_death

    // ID_AA64MMFR0_EL1.TGran4, TGran16, TGran64: whether the CPU has this build's granule.
    mrs     x0, id_aa64mmfr0_el1
.if PAGE_SHIFT == 14
    ubfx    x0, x0, #20, #4
    cbz     x0, refuse_granule          // of the three this one alone is absent at 0
.else
    ubfx    x0, x0, #(PAGE_SHIFT == 12) * 4 + 24, #4
    cmp     x0, #0xf
    b.eq    refuse_granule
.endif

    // With the MMU off stores go past the caches. Dirty lines of the same memory must be gone before, so that none is
    // written over them, and what was fetched meanwhile after, so that nothing old is seen once the MMU is on.
    bl      bss_range
    bl      clean_and_invalidate
    bl      bss_range
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:
    // One root table for both halves: with 39-bit addresses the linear map's entry i and the identity map's entry i
    // are the same physical memory. The first gigabyte holds the devices, the second is the first one of RAM.
    adrp    x20, early_table
    add     x20, x20, :lo12:early_table
    mov     x1, x20
.if PAGE_SHIFT == 14
    adrp    x1, early_blocks
    add     x1, x1, :lo12:early_blocks
    orr     x0, x1, #3
    str     x0, [x20]
.endif
    ldr     x2, =EARLY_DEVICE
    ldr     x3, =EARLY_NORMAL
    mov     x4, #(1 << EARLY_BLOCK_SHIFT)
    mov     x5, xzr                     // the physical address
1:  tst     x5, #(1 << 30)
    csel    x0, x2, x3, eq
    orr     x0, x0, x5
    str     x0, [x1], #8
    add     x5, x5, x4
    tbz     x5, #31, 1b
    dsb     sy
    bl      bss_range
    bl      clean_and_invalidate

    set_translation
    mov     x0, x20
    mov     x1, x20
    enter_upper_half upper_half

upper_half:
    ldr     x0, =vectors
    msr     vbar_el1, x0
    ldr     x1, =CPUS
    msr     tpidr_el1, x1
    ldr     x0, =emergency_stack_top
    str     x0, [x1, #CPU_EMERGENCY_STACK]
    ldr     x0, =boot_stack_top
    mov     sp, x0
    isb
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    bl      kmain

.globl secondary_entry
secondary_entry:
    mov     x19, x0                     // the CPU's block
    adrp    x1, early_vectors
    add     x1, x1, :lo12:early_vectors
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    secondary_at_el1
    leave_el2 secondary_at_el1

secondary_at_el1:
    msr     vbar_el1, x1
    msr     daifset, #0xf
    msr     spsel, #1
    isb
    set_translation
    adrp    x0, early_table             // the first CPU's map once more, as this code runs at its physical address
    add     x0, x0, :lo12:early_table
    ldr     x1, [x19, #CPU_ROOT]
    enter_upper_half secondary_upper_half

secondary_upper_half:
    ldr     x0, =vectors
    msr     vbar_el1, x0
    ldr     x0, =LINEAR_BASE
    add     x19, x19, x0
    msr     tpidr_el1, x19
    ldr     x0, [x19, #CPU_STACK]
    mov     sp, x0
    isb
    mov     x29, xzr
    mov     x30, xzr
    bl      secondary_main

// x0 = start of .bss, x1 = its end.
bss_range:
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
    ret

// clean_and_invalidate(x0 = start, x1 = end), to the point of coherency. Lines at the ends may be shared: nothing is
// dirty there that must not reach memory.
clean_and_invalidate:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4             // DminLine: log2 of words
    mov     x3, #4
    lsl     x2, x3, x2
    sub     x3, x2, #1
    bic     x0, x0, x3
1:  dc      civac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    1b
    dsb     sy
    ret

// No stack, no log: one line by semihosting, and the end. x1 = the line, x2 = the exit's parameters.
early_death:
    adr     x1, early_message
    adr     x2, early_exit
    b       1f
.globl refuse_cpu
refuse_cpu:
    adr     x1, refuse_message
    adr     x2, refuse_exit
    b       1f
refuse_granule:
    adr     x1, granule_message
    adr     x2, refuse_exit
1:  mov     x0, #0x04                   // SYS_WRITE0
    hlt     #0xf000
    mov     x0, #0x18                   // SYS_EXIT
    mov     x1, x2
    hlt     #0xf000
2:  wfi
    b       2b
.balign 8
early_exit:
    .quad   0x20026, 101                // ADP_Stopped_ApplicationExit, status
refuse_exit:
    .quad   0x20026, 125
early_message:
    .asciz  "ebbtide: the boot code trapped, or the image is not at RAM + 2 MiB (101)\n"
refuse_message:
    .asciz  "ebbtide: this build needs the atomics of Armv8.1, which this CPU has not (125)\n"
granule_message:
.if PAGE_SHIFT == 12
    .asciz  "ebbtide: this build has pages of 4 KiB, which this CPU has not (125)\n"
.elseif PAGE_SHIFT == 14
    .asciz  "ebbtide: this build has pages of 16 KiB, which this CPU has not (125)\n"
.else
    .asciz  "ebbtide: this build has pages of 64 KiB, which this CPU has not (125)\n"
.endif
.balign 4

// install_kernel_table(x0 = root, x1 = empty root): makes x0 the root of the upper half. Runs from the identity map, as
// the running code's own translation must not change from one valid entry to another (Arm ARM, D8.14.1).
.globl install_kernel_table
install_kernel_table:
    msr     ttbr1_el1, x1
    isb
    tlbi    vmalle1
    dsb     ish
    isb
    msr     ttbr1_el1, x0
    isb
    ret

.balign 2048
early_vectors:
    .rept   16
    .balign 128
    b       early_death
    .endr

.section .bss.early, "aw", %nobits
.balign ROOT_BYTES
early_table:
    .space  ROOT_BYTES
.globl empty_root
empty_root:
    .space  ROOT_BYTES
.if PAGE_SHIFT == 14
.balign 1 << PAGE_SHIFT
early_blocks:
    .space  1 << PAGE_SHIFT
.endif

// Stack slots of the CPU that boots: see linker.ld and vectors.S. Tasks and the other CPUs have theirs elsewhere
// (src/kernel/stack.rs).
.set SLOT_BYTES, 2 << STACK_SHIFT
.section .stacks, "aw", %nobits
.balign SLOT_BYTES
.globl stack_slots
stack_slots:
    .space  SLOT_BYTES
boot_stack_top:
    .space  SLOT_BYTES
.globl emergency_stack_top
emergency_stack_top:
