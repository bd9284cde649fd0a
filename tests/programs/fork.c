/* Processes: fork, how a child ends and what wait4 says of it, kill, orphans, many children. */
#include "ebb.h"

static int status;

static long wait_any(long pid, int options) { return call(SYS_wait4, pid, &status, options, 0); }

static __attribute__((noreturn)) void yield_for_ever(void)
{
	for (;;)
		call(SYS_sched_yield);
}

static void identity(void)
{
	long me = call(SYS_getpid), pid = fork();

	if (pid == 0) {
		long self = call(SYS_getpid);

		expect(call(SYS_getppid), me);
		check(self != me && self > 0);
		expect(call(SYS_gettid), self);
		/* The parent's number for the child is the child's own: so much of it as a status can hold. */
		leave(failures ? 0 : self % 255 + 1);
	}
	check(pid > 0 && pid != me);
	expect(ending(pid), (pid % 255 + 1) << 8);
	expect(call(SYS_getpid), me);
}

/* All registers but x0 are as they were, on both sides; the thread's own register and FPCR are, too. */
static void registers(void)
{
	static struct { u64 x[32], q[8], tpidr, fpcr, fpsr, sp_moved; } out;
	register u64 *x9 __asm__("x9") = (u64 *)&out;
	register long x0 __asm__("x0") = SIGCHLD;
	u64 tpidr;

	__asm__ volatile("mrs %0, tpidr_el0" : "=r"(tpidr));
	__asm__ volatile(
		"mov x1, #0\n mov x2, #0\n mov x3, #0\n mov x4, #0\n mov x8, #220\n"
		"mov x5, #105\n mov x6, #106\n mov x7, #107\n mov x10, #110\n mov x11, #111\n mov x12, #112\n mov x13, #113\n"
		"mov x14, #114\n mov x15, #115\n mov x16, #116\n mov x17, #117\n mov x20, #120\n mov x21, #121\n"
		"mov x22, #122\n mov x23, #123\n mov x24, #124\n mov x25, #125\n mov x26, #126\n mov x27, #127\n mov x28, #128\n"
		"mov x30, #130\n dup v0.2d, x5\n dup v8.2d, x10\n dup v15.2d, x11\n dup v31.2d, x12\n"
		"lsl x19, x5, #40\n msr tpidr_el0, x19\n mov x19, #0x400000\n msr fpcr, x19\n mov x19, #0x11\n msr fpsr, x19\n"
		"mov x19, sp\n svc #0\n"
		"stp x5, x6, [%1, #40]\n str x7, [%1, #56]\n stp x10, x11, [%1, #80]\n stp x12, x13, [%1, #96]\n"
		"stp x14, x15, [%1, #112]\n stp x16, x17, [%1, #128]\n stp x20, x21, [%1, #160]\n stp x22, x23, [%1, #176]\n"
		"stp x24, x25, [%1, #192]\n stp x26, x27, [%1, #208]\n str x28, [%1, #224]\n str x30, [%1, #240]\n"
		"add x10, %1, #256\n stp q0, q8, [x10], #32\n stp q15, q31, [x10], #32\n"
		"mrs x11, tpidr_el0\n mrs x12, fpcr\n mrs x13, fpsr\n mov x14, sp\n sub x14, x14, x19\n"
		"stp x11, x12, [x10], #16\n stp x13, x14, [x10]\n msr fpcr, xzr\n"
		: "+r"(x0), "+r"(x9)
		:
		: "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
		  "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x30", "v0", "v8", "v15", "v31",
		  "memory", "cc");
	__asm__ volatile("msr tpidr_el0, %0" : : "r"(tpidr));
	if (x0 == 0)
		checks = failures = 0;
	static const u8 kept[] = { 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 22, 23, 24, 25, 26, 27, 28, 30 };
	for (u64 i = 0; i < sizeof(kept); i++)
		expect(out.x[kept[i]], 100 + kept[i]);
	static const u64 vectors[] = { 105, 110, 111, 112 };
	for (u64 i = 0; i < 8; i++)
		expect(out.q[i], vectors[i / 2]);
	expect(out.tpidr, 105UL << 40);
	expect(out.fpcr, 0x400000);
	expect(out.fpsr, 0x11);
	expect(out.sp_moved, 0);
	if (x0 == 0)
		leave_checked();
	expect(ending(x0), 0);
}

static void statuses(void)
{
	for (int code = 0; code < 256; code++) {
		long pid = fork();

		if (pid == 0)
			call(code & 1 ? SYS_exit : SYS_exit_group, code);
		expect(ending(pid), code << 8);
	}
	/* Only eight bits of it come through. */
	static const int large[] = { 256, 0x1234, -1, -256 };
	for (int i = 0; i < 4; i++) {
		long pid = fork();

		if (pid == 0)
			leave(large[i]);
		expect(ending(pid), (large[i] & 255) << 8);
	}
}

static void waiting(void)
{
	expect(wait_any(-1, 0), -ECHILD);
	expect(wait_any(-1, WNOHANG), -ECHILD);
	expect(wait_any(call(SYS_getpid), 0), -ECHILD);
	expect(wait_any(0x3fffff, 0), -ECHILD);
	/* One that runs: WNOHANG says 0 and stores nothing. A number that is another's is no child. */
	long pid = fork();
	if (pid == 0)
		yield_for_ever();
	status = 0x5a5a;
	expect(wait_any(pid, WNOHANG), 0);
	expect(wait_any(-1, WNOHANG), 0);
	expect(status, 0x5a5a);
	expect(wait_any(0x3fffff, 0), -ECHILD);
	expect(wait_any(pid, 0x100), -EINVAL);
	expect(kill(pid, SIGKILL), 0);
	expect(wait_any(pid, 0), pid);
	expect(status, SIGKILL);
	expect(wait_any(pid, 0), -ECHILD);

	/* The one asked for, though another ended before; then the other. */
	long first = fork();
	if (first == 0)
		leave(1);
	long second = fork();
	if (second == 0) {
		spin(10);
		leave(2);
	}
	expect(wait_any(second, 0), second);
	expect(status, 2 << 8);
	expect(wait_any(-1, 0), first);
	expect(status, 1 << 8);
	expect(wait_any(-1, 0), -ECHILD);

	/* 0: any child of the same process group, which all are. No place for the status, one for the use of resources. */
	static u64 usage[18];
	pid = fork();
	if (pid == 0)
		leave(3);
	expect(wait_any(0, 0), pid);
	expect(status, 3 << 8);
	pid = fork();
	if (pid == 0)
		leave(3);
	expect(call(SYS_wait4, pid, 0, 0, usage), pid);

	/* WNOHANG sees it end. */
	pid = fork();
	if (pid == 0) {
		spin(5);
		leave(4);
	}
	long got;
	while ((got = wait_any(pid, WNOHANG)) == 0)
		call(SYS_sched_yield);
	expect(got, pid);
	expect(status, 4 << 8);

	/* A place where nothing can be stored: the child is gone nevertheless. */
	char *page = map(PAGE, RW);
	expect(call(SYS_mprotect, page, PAGE, PROT_READ), 0);
	u64 bad[] = { (u64)page, 16, 0xffffff8000000000UL, (u64)main };
	for (int i = 0; i < 4; i++) {
		pid = fork();
		if (pid == 0)
			leave(5);
		expect(call(SYS_wait4, pid, bad[i], 0, 0), -EFAULT);
		expect(wait_any(pid, 0), -ECHILD);
	}
	/* Nothing is stored, hence nothing fails, where there is no child. */
	expect(call(SYS_wait4, -1, 16, 0, 0), -ECHILD);
	expect(call(SYS_munmap, page, PAGE), 0);
}

static void die(int how)
{
	u32 *page = map(PAGE, RW);
	volatile u64 *null = 0;

	__asm__("" : "+r"(null));
	switch (how) {
	case 0: *null = 1; break;
	case 1: (void)*(volatile u64 *)0xffffff8040200000UL; break;
	case 2: *(volatile u64 *)((u64)main & ~7UL) = 1; break;
	case 3: /* memory that a parent had writable */
		call(SYS_mprotect, page, PAGE, PROT_READ);
		*(volatile u32 *)page = 1;
		break;
	case 4: ((void (*)(void))page)(); break;
	case 5: __asm__ volatile("udf #0"); break;
	case 6: __asm__ volatile("br %0" : : "r"((u64)main + 2)); break;
	case 7: kill(call(SYS_getpid), SIGKILL); break;
	case 8: kill(call(SYS_getpid), SIGTERM); break;
	}
}

static void deaths(void)
{
	static const u8 signals[] = {
		SIGSEGV, SIGSEGV, SIGSEGV, SIGSEGV, SIGSEGV, SIGILL, SIGBUS, SIGKILL, SIGTERM,
	};

	for (u64 how = 0; how < sizeof(signals); how++) {
		long pid = fork();

		if (pid == 0) {
			die(how);
			leave(77);
		}
		expect(ending(pid), signals[how]);
	}

	/* Killed as it runs without a system call, gives way, or waits itself. */
	for (int how = 0; how < 3; how++) {
		long pid = fork();

		if (pid == 0) {
			long inner = how == 2 ? fork() : 1;

			if (inner == 0) { /* ends when its parent did */
				while (call(SYS_getppid) != 1)
					call(SYS_sched_yield);
				leave(0);
			}
			while (how == 0)
				__asm__ volatile("");
			if (how == 1)
				yield_for_ever();
			ending(inner);
			leave(77);
		}
		/* Another CPU may be slow to begin; the last one is to have a child by now. */
		spin(how == 2 ? 200 : 5);
		expect(wait_any(pid, WNOHANG), 0);
		expect(kill(pid, 0), 0);
		expect(kill(pid, 65), -EINVAL);
		expect(kill(pid, SIGCHLD), 0); /* of no effect */
		expect(kill(pid, how == 1 ? SIGTERM : SIGKILL), 0);
		expect(ending(pid), how == 1 ? SIGTERM : SIGKILL);
		expect(kill(pid, SIGKILL), -ESRCH);
		expect(kill(pid, 0), -ESRCH);
		/* The child of the last one is process 1's now, and that may be this one. */
		if (how == 2 && call(SYS_getpid) == 1)
			check(wait_any(-1, 0) > 0);
		expect(wait_any(-1, 0), -ECHILD);
	}
	expect(kill(0x3fffff, SIGKILL), -ESRCH);
	expect(kill(0x3fffff, 65), -ESRCH); /* the process is looked for first */

	/* One that has ended can be signalled as long as nobody waited for it; its ending stays what it was. */
	long pid = fork();
	if (pid == 0)
		leave(6);
	spin(200);
	expect(kill(pid, SIGKILL), 0);
	expect(ending(pid), 6 << 8);
}

/*
 * Process 1 takes in the children of one that ended, and waits for them. Where that is this program it does it
 * below; the orphan reports by killing the witness, who otherwise gives up.
 */
static void orphans(void)
{
	int first = call(SYS_getpid) == 1;
	long witness = fork();

	if (witness == 0) {
		for (u64 from = ticks(); ticks() - from < ticks_of_ms(8000);)
			call(SYS_sched_yield);
		leave(1);
	}
	long pid = fork();
	if (pid == 0) {
		if (fork() != 0)
			leave(7);
		while (call(SYS_getppid) != 1)
			call(SYS_sched_yield);
		kill(witness, SIGKILL);
		leave(0);
	}
	expect(ending(pid), 7 << 8);
	expect(ending(witness), SIGKILL);
	if (first)
		check(wait_any(-1, 0) > 0);
	expect(wait_any(-1, 0), -ECHILD);

	/* A child killed while it has children itself: those live on. Many orphans are no more trouble than few. */
	for (int i = 0; i < 300; i++) {
		pid = fork();
		if (pid == 0) {
			if (fork() == 0)
				leave(i);
			if (i % 2)
				kill(call(SYS_getpid), SIGKILL);
			leave(8);
		}
		expect(ending(pid), i % 2 ? SIGKILL : 8 << 8);
		while (first && wait_any(-1, WNOHANG) > 0)
			;
	}
	while (first && wait_any(-1, 0) > 0)
		;
	expect(wait_any(-1, 0), -ECHILD);
}

/* Each level adds one to what the level below it came to, and has its own numbers. */
static int nested(int levels)
{
	long me = call(SYS_getpid), pid;

	if (levels == 0)
		return 1;
	pid = fork();
	if (pid == 0) {
		expect(call(SYS_getppid), me);
		int below = nested(levels - 1);
		leave(failures ? 99 : below);
	}
	int end = ending(pid);
	expect(wait_any(-1, 0), -ECHILD);
	return (end >> 8) + 1;
}

static void many(void)
{
	enum { LIVE = 30 };
	static u64 area[64 * 1024];
	long pids[LIVE];
	u32 seen = 0;

	for (int i = 0; i < 200; i++) {
		area[i * 97] = i;
		long pid = fork();

		if (pid == 0) {
			for (u64 j = 0; j < sizeof(area) / 8; j += 512)
				area[j] = j ^ i;
			leave(area[512] != (512UL ^ i));
		}
		expect(ending(pid), 0);
		expect(area[i * 97], i);
	}

	for (int i = 0; i < LIVE; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			for (u64 from = ticks(); ticks() - from < ticks_of_ms(30);)
				call(SYS_sched_yield);
			leave(i + 1);
		}
		for (int j = 0; j < i; j++)
			check(pids[j] != pids[i]);
	}
	for (int i = 0; i < LIVE; i++) {
		long pid = wait_any(-1, 0);
		int index = status >> 8;

		check(index >= 1 && index <= LIVE && pids[index - 1] == pid);
		seen |= 1U << (index - 1);
	}
	expect(seen, (1U << LIVE) - 1);
	expect(wait_any(-1, 0), -ECHILD);

	/* Thirty to be killed, the last one first. */
	for (int i = 0; i < LIVE; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			yield_for_ever();
	}
	for (int i = LIVE; i--;) {
		expect(kill(pids[i], SIGKILL), 0);
		expect(ending(pids[i]), SIGKILL);
	}
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	identity();
	registers();
	statuses();
	waiting();
	deaths();
	orphans();
	expect(nested(3), 4);
	many();
	return finish();
}
