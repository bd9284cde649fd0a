/*
 * Processes that make no system call: they take turns with the others all the same, get about as much time as those,
 * and find their registers as they left them.
 */
#include "ebb.h"

/* Spins until that time; how often, as a power of two. */
static int rounds_until(u64 end)
{
	u64 rounds = 0;
	int power = 0;

	while ((long)(ticks() - end) < 0)
		rounds++;
	while (rounds >>= 1)
		power++;
	return power;
}

static __attribute__((noreturn)) void spin_for_ever(void)
{
	for (;;)
		__asm__ volatile("");
}

/* One that never ends keeps nobody from going on: not its parent, nor its sisters. */
static void no_starving(void)
{
	long stuck[3], pid;

	for (int i = 0; i < 3; i++) {
		stuck[i] = fork();
		if (stuck[i] == 0)
			spin_for_ever();
		/* Without a system call of our own, with some, and blocked. */
		spin(20);
		for (int j = 0; j < 10; j++)
			expect(call(SYS_sched_yield), 0);
		pid = fork();
		if (pid == 0) {
			spin(20);
			leave(i);
		}
		expect(ending(pid), i << 8);
		expect(call(SYS_wait4, -1, 0, WNOHANG, 0), 0);
	}
	for (int i = 0; i < 3; i++) {
		expect(kill(stuck[i], SIGKILL), 0);
		expect(ending(stuck[i]), SIGKILL);
	}
}

/* Three children, and then the parent with two, spin for the same time: none gets four times as much as another. */
static void fairness(void)
{
	for (int with_parent = 0; with_parent < 2; with_parent++) {
		u64 end = ticks() + ticks_of_ms(400);
		long pids[3];
		int least = 99, most = 0;

		for (int i = 0; i < 3; i++) {
			pids[i] = i < 3 - with_parent ? fork() : -1;
			if (pids[i] == 0)
				leave(rounds_until(end));
		}
		for (int i = 3; i--;) { /* the parent's own share first */
			int power = pids[i] < 0 ? rounds_until(end) : ending(pids[i]) >> 8;

			least = power < least ? power : least;
			most = power > most ? power : most;
		}
		check(least > 0);
		check(most - least <= 2);
	}
}

/* Is the CPU taken away, and given back soon enough, from one of three that spin? */
static void turns(void)
{
	long pids[3];

	for (int i = 0; i < 3; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			u64 last = ticks(), end = last + ticks_of_ms(300), away = 0, longest = 0;

			while (last < end) {
				u64 now = ticks(), gap = now - last;

				away += gap > ticks_of_ms(1);
				longest = gap > longest ? gap : longest;
				last = now;
			}
			/* Three times 300 ms in less than 900: with a single CPU there must be some. */
			leave((away > 0) | (longest < ticks_of_ms(250)) << 1);
		}
	}
	for (int i = 0; i < 3; i++) {
		int end = ending(pids[i]) >> 8;

		check(end & 2);
		/* Not where there is a CPU for each. */
		if (!(end & 1))
			put("never interrupted\n");
	}
}

struct state { u64 q[64], fpcr, fpsr, tpidr, x[16], flags; };
static struct state in, out;

/* Loads the registers, spins until that time without a store, a load or a call, and saves them. */
static void hold(u64 end)
{
	register const struct state *x19 __asm__("x19") = &in;
	register struct state *x20 __asm__("x20") = &out;
	register u64 x21 __asm__("x21") = end;

#define EACH(op) \
	op "q0, q1, [x22], #32\n" op "q2, q3, [x22], #32\n" op "q4, q5, [x22], #32\n" op "q6, q7, [x22], #32\n" \
	op "q8, q9, [x22], #32\n" op "q10, q11, [x22], #32\n" op "q12, q13, [x22], #32\n" op "q14, q15, [x22], #32\n" \
	op "q16, q17, [x22], #32\n" op "q18, q19, [x22], #32\n" op "q20, q21, [x22], #32\n" op "q22, q23, [x22], #32\n" \
	op "q24, q25, [x22], #32\n" op "q26, q27, [x22], #32\n" op "q28, q29, [x22], #32\n" op "q30, q31, [x22], #32\n"
#define GENERAL(op) \
	op "x0, x1, [x22], #16\n" op "x2, x3, [x22], #16\n" op "x4, x5, [x22], #16\n" op "x6, x7, [x22], #16\n" \
	op "x8, x9, [x22], #16\n" op "x10, x11, [x22], #16\n" op "x12, x13, [x22], #16\n" op "x14, x15, [x22], #16\n"

	__asm__ volatile(
		"mov x22, x19\n" EACH("ldp ")
		"ldp x23, x24, [x22], #16\n msr fpcr, x23\n msr fpsr, x24\n ldr x23, [x22], #8\n msr tpidr_el0, x23\n"
		GENERAL("ldp ") "ldr x23, [x22]\n msr nzcv, x23\n"
		"1: mrs x24, cntvct_el0\n sub x24, x24, x21\n tbnz x24, #63, 1b\n"
		"mov x22, x20\n" EACH("stp ")
		"mrs x23, fpcr\n mrs x24, fpsr\n stp x23, x24, [x22], #16\n mrs x23, tpidr_el0\n str x23, [x22], #8\n"
		GENERAL("stp ") "mrs x23, nzcv\n str x23, [x22]\n msr fpcr, xzr\n"
		:
		: "r"(x19), "r"(x20), "r"(x21)
		: "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x22",
		  "x23", "x24", "cc", "memory",
		  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15",
		  "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

static void registers(void)
{
	long pids[3];

	for (u64 who = 0; who < 3; who++) {
		pids[who] = fork();
		if (pids[who] != 0)
			continue;
		/* For each another set; and one that uses no vectors but has them all 0. */
		for (u64 i = 0; i < 64; i++)
			in.q[i] = who * (i + 1) * 0x0123456789abcdefUL;
		for (u64 i = 0; i < 16; i++)
			in.x[i] = who * 1000 + i;
		in.fpcr = who << 22;
		in.fpsr = who * 8 + 1;
		in.tpidr = who * 0x111111111UL;
		in.flags = who << 28;
		for (int round = 0; round < 15; round++) {
			memset(&out, 0xff, sizeof(out));
			hold(ticks() + ticks_of_ms(20));
			check(!memcmp(&in, &out, sizeof(in)));
		}
		leave_checked();
	}
	/* The parent's are in between. */
	for (int i = 0; i < 10; i++) {
		double x = 1.5;

		__asm__ volatile("" : "+w"(x));
		for (u64 end = ticks() + ticks_of_ms(10); ticks() < end;)
			__asm__ volatile("" : "+w"(x));
		check(x == 1.5);
		call(SYS_sched_yield);
	}
	for (int i = 0; i < 3; i++)
		expect(ending(pids[i]), 0);
}

/* While others are away waiting, or come and go, one that spins gets on. */
static void coming_and_going(void)
{
	u64 end = ticks() + ticks_of_ms(200);
	long pid = fork();
	int ended = 0;

	if (pid == 0)
		leave(rounds_until(end));
	while ((long)(ticks() - end) < 0) {
		long brief = fork();

		if (brief == 0)
			leave(1);
		expect(ending(brief), 1 << 8);
		ended++;
	}
	check(ended > 3);
	check(ending(pid) >> 8 > 4);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	no_starving();
	fairness();
	turns();
	registers();
	coming_and_going();
	return finish();
}
