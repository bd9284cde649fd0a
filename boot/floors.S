// The least that an operation on 4 KiB can cost: fully unrolled loops over what must be moved, and nothing else.
//
// Each function returns the counter's difference around its body. floor_empty has no body: its result is the
// measurement's own share. Only for measuring; the library's own loops are in src/machine/aarch64/contents.S.

.arch_extension fp
.arch_extension simd
.arch_extension memtag

.section .text.floors, "ax"

.macro floor name
    .balign 16
    .globl  \name
\name:
    isb
    mrs     x9, cntvct_el0
.endm

.macro end_floor
    isb
    mrs     x10, cntvct_el0
    sub     x0, x10, x9
    ret
.endm

floor floor_empty
end_floor

floor floor_zero                        // x0 = page
    .rept   63
    dc      zva, x0
    add     x0, x0, #64
    .endr
    dc      zva, x0
end_floor

floor floor_zero_tagged
    .rept   63
    dc      gzva, x0
    add     x0, x0, #64
    .endr
    dc      gzva, x0
end_floor

// The q registers are the program's: they are saved outside of the measured part.
.macro vector_floor name
    .balign 16
    .globl  \name
\name:
    stp     q0, q1, [sp, #-96]!
    stp     q2, q3, [sp, #32]
    stp     q4, q5, [sp, #64]
    isb
    mrs     x9, cntvct_el0
.endm

.macro end_vector_floor
    isb
    mrs     x10, cntvct_el0
    ldp     q4, q5, [sp, #64]
    ldp     q2, q3, [sp, #32]
    ldp     q0, q1, [sp], #96
    sub     x0, x10, x9
    ret
.endm

vector_floor floor_copy                 // x0 = to, x1 = from
    .rept   64
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x1], #64
    st1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    .endr
end_vector_floor

vector_floor floor_scan_zero            // x0 = page
    .rept   64
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    orr     v0.16b, v0.16b, v1.16b
    orr     v2.16b, v2.16b, v3.16b
    orr     v4.16b, v4.16b, v0.16b
    orr     v4.16b, v4.16b, v2.16b
    .endr
end_vector_floor

vector_floor floor_scan_word
    .rept   64
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    eor     v0.16b, v0.16b, v5.16b
    eor     v1.16b, v1.16b, v5.16b
    eor     v2.16b, v2.16b, v5.16b
    eor     v3.16b, v3.16b, v5.16b
    orr     v0.16b, v0.16b, v1.16b
    orr     v2.16b, v2.16b, v3.16b
    orr     v4.16b, v4.16b, v0.16b
    orr     v4.16b, v4.16b, v2.16b
    .endr
end_vector_floor

vector_floor floor_fill
    .rept   64
    st1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    .endr
end_vector_floor

vector_floor floor_copy_tagged          // x0 = to, x1 = from
    .rept   16
    ldgm    x3, [x1]
    stgm    x3, [x0]
    .rept   4
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x1], #64
    st1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    .endr
    .endr
end_vector_floor

floor floor_save_tags                   // x0 = page, x1 = 16 words
    .rept   7
    ldgm    x3, [x0]
    add     x0, x0, #256
    ldgm    x4, [x0]
    add     x0, x0, #256
    stp     x3, x4, [x1], #16
    .endr
    ldgm    x3, [x0]
    add     x0, x0, #256
    ldgm    x4, [x0]
    stp     x3, x4, [x1], #16
end_floor

floor floor_restore_tags
    .rept   7
    ldp     x3, x4, [x1], #16
    stgm    x3, [x0]
    add     x0, x0, #256
    stgm    x4, [x0]
    add     x0, x0, #256
    .endr
    ldp     x3, x4, [x1], #16
    stgm    x3, [x0]
    add     x0, x0, #256
    stgm    x4, [x0]
end_floor

// An exception and its return, with a handler that only returns.
    .balign 16
    .globl  floor_exception
floor_exception:
    mrs     x11, vbar_el1
    mrs     x12, elr_el1
    mrs     x13, spsr_el1
    adr     x14, floor_vectors
    msr     vbar_el1, x14
    isb
    mrs     x9, cntvct_el0
    svc     #0
    isb
    mrs     x10, cntvct_el0
    msr     vbar_el1, x11
    msr     elr_el1, x12
    msr     spsr_el1, x13
    isb
    sub     x0, x10, x9
    ret

floor floor_descriptor                  // x0 = an entry of nothing
    str     xzr, [x0]
end_floor

floor floor_tlbi
    tlbi    vale1is, xzr
end_floor

    .balign 2048
floor_vectors:
    .space  0x200
    eret                                // EL1 with SP_EL1, synchronous
    .balign 128
