/* The q registers, FPCR and FPSR are the program's: faults and system calls keep them. */
#include "ebb.h"

struct state { u64 q[64], fpcr, fpsr; };

/* Loads all 32 q registers, stores to *poke (or makes a system call if that is 0), saves them. */
static void round_trip(const struct state *in, struct state *out, volatile u64 *poke)
{
	register const struct state *x9 __asm__("x9") = in;
	register struct state *x10 __asm__("x10") = out;
	register volatile u64 *x11 __asm__("x11") = poke;

#define EACH(op) \
	op "q0, q1, [x12], #32\n" op "q2, q3, [x12], #32\n" op "q4, q5, [x12], #32\n" op "q6, q7, [x12], #32\n" \
	op "q8, q9, [x12], #32\n" op "q10, q11, [x12], #32\n" op "q12, q13, [x12], #32\n" op "q14, q15, [x12], #32\n" \
	op "q16, q17, [x12], #32\n" op "q18, q19, [x12], #32\n" op "q20, q21, [x12], #32\n" op "q22, q23, [x12], #32\n" \
	op "q24, q25, [x12], #32\n" op "q26, q27, [x12], #32\n" op "q28, q29, [x12], #32\n" op "q30, q31, [x12], #32\n"

	__asm__ volatile(
		"mov x12, x9\n" EACH("ldp ")
		"ldp x13, x14, [x12]\n msr fpcr, x13\n msr fpsr, x14\n"
		"cbz x11, 1f\n str x11, [x11]\n b 2f\n"
		"1: mov x8, #124\n svc #0\n" /* sched_yield */
		"2: mov x12, x10\n" EACH("stp ")
		"mrs x13, fpcr\n mrs x14, fpsr\n stp x13, x14, [x12]\n msr fpcr, xzr\n"
		: "+r"(x9), "+r"(x10), "+r"(x11)
		:
		: "x0", "x8", "x12", "x13", "x14", "memory",
		  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15",
		  "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

static struct state in, out;

static void same(void)
{
	for (int i = 0; i < 64; i++)
		expect(out.q[i], in.q[i]);
	expect(out.fpcr, in.fpcr);
	expect(out.fpsr, in.fpsr);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 *p = map(256 * PAGE, RW);

	(void)argc, (void)argv, (void)envp, (void)auxv;
	for (u64 i = 0; i < 64; i++)
		in.q[i] = (i + 1) * 0x0123456789abcdefUL;
	in.fpcr = 1UL << 22; /* round towards plus infinity */
	in.fpsr = 0x11;
	round_trip(&in, &out, 0);
	same();
	for (int i = 0; i < 256; i++) /* first touch */
		round_trip(&in, &out, p + i * (PAGE / 8));
	same();
	for (int round = 0; round < 3; round++) {
		expect(call(SYS_madvise, p, 256 * PAGE, MADV_PAGEOUT), 0);
		for (int i = 0; i < 256; i++) { /* from swap */
			memset(&out, 0, sizeof(out));
			round_trip(&in, &out, p + i * (PAGE / 8));
			check(!memcmp(&in, &out, sizeof(in)));
		}
	}
	same();
	for (int i = 0; i < 256; i++)
		expect(p[i * (PAGE / 8)], (u64)(p + i * (PAGE / 8)));
	/* Arithmetic works: 1.5 * 2.0 + 0.25. */
	volatile double a = 1.5, b = 2.0, c = 0.25;
	expect((long)((a * b + c) * 100), 325);
	return finish();
}
