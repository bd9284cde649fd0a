// Copies between the kernel and the program, with the program's own rights and tag checks: LDTR and STTR obey the
// user permissions, and SCTLR_EL1.TCF0 while PSTATE.TCO is clear (Arm ARM, C6.2, "Load register (unprivileged)").
//
// copy_from_user_raw(x0 = to, x1 = from, x2 = bytes), copy_to_user_raw(x0 = to, x1 = from, x2 = bytes): return the
// bytes not copied. A fault between user_copy_start and user_copy_end that the address space cannot resolve continues
// at user_copy_from_bytes or user_copy_to_bytes when a wide step was under way, so that the part before the bad byte
// is still copied, and at user_copy_failed otherwise.

.section .text.uaccess, "ax"
.balign 16
.globl copy_from_user_raw
.globl copy_to_user_raw
.globl user_copy_start
.globl user_copy_end
.globl user_copy_failed
.globl user_copy_from_wide
.globl user_copy_from_bytes
.globl user_copy_to_wide
.globl user_copy_to_bytes

user_copy_start:
copy_from_user_raw:
    subs    x3, x2, #16
    b.lo    2f
user_copy_from_wide:
1:  ldtr    x4, [x1]
    ldtr    x5, [x1, #8]
    stp     x4, x5, [x0], #16
    add     x1, x1, #16
    mov     x2, x3
    subs    x3, x3, #16
    b.hs    1b
2:  cbz     x2, 3f
user_copy_from_bytes:
    ldtrb   w4, [x1]
    strb    w4, [x0], #1
    add     x1, x1, #1
    subs    x2, x2, #1
    b.ne    user_copy_from_bytes
3:  mov     x0, #0
    ret

copy_to_user_raw:
    subs    x3, x2, #16
    b.lo    2f
user_copy_to_wide:
1:  ldp     x4, x5, [x1]
    sttr    x4, [x0]
    sttr    x5, [x0, #8]
    add     x1, x1, #16
    add     x0, x0, #16
    mov     x2, x3
    subs    x3, x3, #16
    b.hs    1b
2:  cbz     x2, 3f
user_copy_to_bytes:
    ldrb    w4, [x1]
    sttrb   w4, [x0]
    add     x1, x1, #1
    add     x0, x0, #1
    subs    x2, x2, #1
    b.ne    user_copy_to_bytes
3:  mov     x0, #0
    ret

user_copy_failed:
    mov     x0, x2
    ret
user_copy_end:
