// Page contents: zero, copy, compare, tags. Whole pages only: pointers are aligned to 4 KiB, lengths are multiples of
// it.
//
// Unrolled, because each instruction here is paid for every page of a fault or of swap traffic. The pointers carry 0
// in bits 59:56: DC GVA, DC GZVA, STZ2G and STGM of zero write the pointer's logical tag (Arm ARM, C5.3 and C6.2).
//
// The q registers belong to the program at EL0, whose FP state is live; they are saved on the stack and restored.

.arch_extension fp
.arch_extension simd
.arch_extension memtag

.section .text.ebbtide_contents, "ax"

.macro function name
    .balign 16
    .globl  \name
    .hidden \name
\name:
.endm

// Zero x1 bytes at x0 by DC ZVA (data) or DC GZVA (data and tags), blocks of 64 bytes.
.macro zero_by operation
1:  .rept   63
    dc      \operation, x0
    add     x0, x0, #64
    .endr
    dc      \operation, x0
    subs    x1, x1, #4096
    add     x0, x0, #64
    b.hi    1b
    ret
.endm

function ebbtide_zero_zva
    zero_by zva
function ebbtide_zero_gzva
    zero_by gzva

// The same for blocks of x2 bytes.
.macro zero_any operation
1:  .rept   8
    dc      \operation, x0
    add     x0, x0, x2
    .endr
    subs    x1, x1, x2, lsl #3
    b.hi    1b
    ret
.endm

// Blocks of up to 512 bytes: eight of them divide a page.
function ebbtide_zero_zva_any
    zero_any zva
function ebbtide_zero_gzva_any
    zero_any gzva

// Where DC ZVA is prohibited (DCZID_EL0.DZP).
function ebbtide_zero_stp
    add     x0, x0, #512
1:
    .set    offset, -512
    .rept   64
    stp     xzr, xzr, [x0, #offset]
    .set    offset, offset + 16
    .endr
    subs    x1, x1, #1024
    add     x0, x0, #1024
    b.hi    1b
    ret

function ebbtide_zero_stz2g
1:
    .set    offset, 0
    .rept   32
    stz2g   x0, [x0, #offset]
    .set    offset, offset + 32
    .endr
    subs    x1, x1, #1024
    add     x0, x0, #1024
    b.hi    1b
    ret

// LD1 and ST1 of four registers move 64 bytes each, by one instruction; on the cores whose manuals say so in as many
// cycles as two LDP or STP.

// Copy x2 bytes from x1 to x0, data only: 2 KiB a turn.
function ebbtide_copy
    stp     q0, q1, [sp, #-64]!
    stp     q2, q3, [sp, #32]
1:  .rept   32
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x1], #64
    st1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    .endr
    subs    x2, x2, #2048
    b.hi    1b
    ldp     q2, q3, [sp, #32]
    ldp     q0, q1, [sp], #64
    ret

// The sum of each page of x4 bytes among x2 bytes at x1, to x3 upwards (machine/sum.rs); copied to x0 as well. A block
// of 64 bytes becomes the state that the next one is added to, in the other four of v0 to v7. v16 is the factor.
.macro summed copies
    stp     q0, q1, [sp, #-144]!
    stp     q2, q3, [sp, #32]
    stp     q4, q5, [sp, #64]
    stp     q6, q7, [sp, #96]
    str     q16, [sp, #128]
    mov     w5, #0x79b5
    movk    w5, #0x9e37, lsl #16
    dup     v16.4s, w5
1:  mov     x5, x4
    mov     v6.16b, v16.16b
    mov     v7.16b, v16.16b
2:  .rept   16
    ld1     {v0.4s, v1.4s, v2.4s, v3.4s}, [x1], #64
    .if     \copies
    st1     {v0.4s, v1.4s, v2.4s, v3.4s}, [x0], #64
    .endif
    mla     v0.4s, v6.4s, v16.4s
    mla     v1.4s, v7.4s, v16.4s
    mla     v2.4s, v0.4s, v16.4s
    mla     v3.4s, v1.4s, v16.4s
    ld1     {v4.4s, v5.4s, v6.4s, v7.4s}, [x1], #64
    .if     \copies
    st1     {v4.4s, v5.4s, v6.4s, v7.4s}, [x0], #64
    .endif
    mla     v4.4s, v2.4s, v16.4s
    mla     v5.4s, v3.4s, v16.4s
    mla     v6.4s, v4.4s, v16.4s
    mla     v7.4s, v5.4s, v16.4s
    .endr
    ushr    v0.4s, v6.4s, #15
    ushr    v1.4s, v7.4s, #15
    eor     v6.16b, v6.16b, v0.16b
    eor     v7.16b, v7.16b, v1.16b
    subs    x5, x5, #2048
    b.hi    2b
    mla     v7.4s, v6.4s, v16.4s
    mov     x5, v7.d[0]
    mov     x6, v7.d[1]
    eor     x5, x5, x6, ror #29
    str     x5, [x3], #8
    subs    x2, x2, x4
    b.hi    1b
    ldr     q16, [sp, #128]
    ldp     q6, q7, [sp, #96]
    ldp     q4, q5, [sp, #64]
    ldp     q2, q3, [sp, #32]
    ldp     q0, q1, [sp], #144
    ret
.endm

function ebbtide_sum
    summed  0
function ebbtide_copy_summed
    summed  1

// Copy x2 bytes from x1 to x0 with the tags, where LDGM moves those of 256 bytes (GMID_EL1.BS = 6).
function ebbtide_copy_tagged
    stp     q0, q1, [sp, #-64]!
    stp     q2, q3, [sp, #32]
1:  .rept   4
    ldgm    x3, [x1]
    stgm    x3, [x0]
    .rept   4
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x1], #64
    st1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    .endr
    .endr
    subs    x2, x2, #1024
    b.hi    1b
    ldp     q2, q3, [sp, #32]
    ldp     q0, q1, [sp], #64
    ret

// Read x2 words of tags at x0 into x1: 4 KiB (16 words) a turn, GMID_EL1.BS = 6.
function ebbtide_load_tags
1:  .rept   7
    ldgm    x3, [x0]
    add     x0, x0, #256
    ldgm    x4, [x0]
    add     x0, x0, #256
    stp     x3, x4, [x1], #16
    .endr
    ldgm    x3, [x0]
    add     x0, x0, #256
    ldgm    x4, [x0]
    subs    x2, x2, #16
    add     x0, x0, #256
    stp     x3, x4, [x1], #16
    b.hi    1b
    ret

// Write x2 words of tags from x1 to x0, GMID_EL1.BS = 6.
function ebbtide_store_tags
1:  .rept   7
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
    subs    x2, x2, #16
    add     x0, x0, #256
    b.hi    1b
    ret

// The same for blocks of x3 bytes. LDGM puts the tags of a block at the nibble that address bits 7:4 name and STGM
// takes them from there, so the words of several blocks are joined by OR, and one word serves all its blocks.
function ebbtide_load_tags_any
1:  mov     x5, #0
    mov     x6, #256
2:  ldgm    x4, [x0]
    orr     x5, x5, x4
    add     x0, x0, x3
    subs    x6, x6, x3
    b.hi    2b
    str     x5, [x1], #8
    subs    x2, x2, #1
    b.hi    1b
    ret

function ebbtide_store_tags_any
1:  ldr     x4, [x1], #8
    mov     x6, #256
2:  stgm    x4, [x0]
    add     x0, x0, x3
    subs    x6, x6, x3
    b.hi    2b
    subs    x2, x2, #1
    b.hi    1b
    ret

// Make the tags of x1 bytes at x0 zero, blocks of x2 bytes (at most 256).
function ebbtide_zero_tags
1:  .rept   16
    stgm    xzr, [x0]
    add     x0, x0, x2
    .endr
    subs    x1, x1, x2, lsl #4
    b.hi    1b
    ret

// Whether x1 bytes at x0 repeat the word at x0. Most pages differ in the first 64 bytes, for which the general
// registers do; the rest is gathered in v4, a bit of which is set where a word differs, 2 KiB a turn.
function ebbtide_repeats
    ldr     x2, [x0]
    ldp     x3, x4, [x0]
    ldp     x5, x6, [x0, #16]
    ldp     x7, x8, [x0, #32]
    ldp     x9, x10, [x0, #48]
    cmp     x3, x2
    .irp    word, x4, x5, x6, x7, x8, x9, x10
    ccmp    \word, x2, #0, eq
    .endr
    b.ne    4f
    stp     q0, q1, [sp, #-96]!
    stp     q2, q3, [sp, #32]
    stp     q4, q5, [sp, #64]
    movi    v4.2d, #0
    dup     v5.2d, x2
    cbz     x2, 2f
1:  .rept   32
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
    mov     x3, v4.d[0]
    mov     x4, v4.d[1]
    orr     x3, x3, x4
    cbnz    x3, 3f
    subs    x1, x1, #2048
    b.hi    1b
    b       3f
    // Of a zero page the words are the bits.
2:  .rept   32
    ld1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    orr     v0.16b, v0.16b, v1.16b
    orr     v2.16b, v2.16b, v3.16b
    orr     v4.16b, v4.16b, v0.16b
    orr     v4.16b, v4.16b, v2.16b
    .endr
    mov     x3, v4.d[0]
    mov     x4, v4.d[1]
    orr     x3, x3, x4
    cbnz    x3, 3f
    subs    x1, x1, #2048
    b.hi    2b
3:  ldp     q4, q5, [sp, #64]
    ldp     q2, q3, [sp, #32]
    ldp     q0, q1, [sp], #96
    cmp     x3, #0
    cset    x0, eq
    ret
4:  mov     x0, #0
    ret

// Store the word x2 all over x1 bytes at x0: 2 KiB a turn.
function ebbtide_fill
    stp     q0, q1, [sp, #-64]!
    stp     q2, q3, [sp, #32]
    dup     v0.2d, x2
    mov     v1.16b, v0.16b
    mov     v2.16b, v0.16b
    mov     v3.16b, v0.16b
1:  .rept   32
    st1     {v0.2d, v1.2d, v2.2d, v3.2d}, [x0], #64
    .endr
    subs    x1, x1, #2048
    b.hi    1b
    ldp     q2, q3, [sp, #32]
    ldp     q0, q1, [sp], #64
    ret

// Clean x1 bytes at x0 to the point of unification in lines of x2 bytes (Arm ARM, B2.7.4.2).
function ebbtide_clean_data
1:  dc      cvau, x0
    add     x0, x0, x2
    subs    x1, x1, x2
    b.hi    1b
    ret

// Invalidate the instruction cache for x1 bytes at x0 in lines of x2 bytes.
function ebbtide_invalidate_code
1:  ic      ivau, x0
    add     x0, x0, x2
    subs    x1, x1, x2
    b.hi    1b
    ret
