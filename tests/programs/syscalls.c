/*
 * The plain system calls: what they return and store, and that anything else is -ENOSYS.
 */
#include "ebb.h"

struct iovec { const void *base; u64 len; };
struct timespec { long sec, nsec; };

static void identity(void)
{
	long pid = call(SYS_getpid);
	u32 clear_at_exit;

	check(pid > 0);
	expect(call(SYS_gettid), pid);
	expect(call(SYS_set_tid_address, &clear_at_exit), pid);
	expect(call(SYS_sched_yield), 0);
}

static void system_name(void)
{
	static char names[6][65];

	expect(call(SYS_uname, names), 0);
	check(equal(names[4], "aarch64"));
	for (int i = 0; i < 5; i++)
		check(names[i][0] != 0);
	put("sysname="), put(names[0]), put("\n");
}

static void time_goes_on(void)
{
	struct timespec a, b;
	u64 before, after;

	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(before));
	for (int clock = 0; clock < 2; clock++) { /* realtime, monotonic */
		expect(call(SYS_clock_gettime, clock, &a), 0);
		do
			if (call(SYS_clock_gettime, clock, &b) != 0)
				break;
		while (a.sec == b.sec && a.nsec == b.nsec);
		check(b.sec > a.sec || (b.sec == a.sec && b.nsec > a.nsec));
		check(b.nsec >= 0 && b.nsec < 1000000000);
	}
	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(after));
	check(after > before);
	expect(call(SYS_clock_gettime, 999, &a), -EINVAL);
}

static void randomness(void)
{
	static u64 words[64];
	int zeros = 0;

	expect(call(SYS_getrandom, words, sizeof(words), 0), sizeof(words));
	for (int i = 0; i < 64; i++)
		zeros += words[i] == 0;
	check(zeros < 2);
	expect(call(SYS_getrandom, words, 0, 0), 0);
	expect(call(SYS_getrandom, words, 8, 0x100), -EINVAL);
	/* The number and the flags are 32 bits wide. */
	expect(call(SYS_getrandom, words, 8, 1UL << 32), 8);
	expect(call(SYS_getrandom | 1UL << 32, words, 8, 0), 8);
}

static void writing(void)
{
	struct iovec pieces[3] = { { "vec", 3 }, { "", 0 }, { "tor\n", 4 } };

	expect(call(SYS_write, 1, "plain\n", 6), 6);
	expect(call(SYS_write, 1, "none", 0), 0);
	expect(call(SYS_writev, 1, pieces, 3), 7);
	expect(call(SYS_writev, 1, pieces, 0), 0);
	expect(call(SYS_writev, 1, pieces, -1), -EINVAL);
	expect(call(SYS_writev, 1, pieces, 1025), -EINVAL);
	expect(call(SYS_write, 77, "x", 1), -9); /* EBADF */
	/* Bytes are passed on as they are: also 0, 13 and 255. */
	expect(call(SYS_write, 1, "raw[\0\r\377\n]\n", 10), 10);
}

static void unknown_calls(void)
{
	/* Twice each: the kernel logs a number once. */
	for (int i = 0; i < 2; i++) {
		expect(call(1000, 1, 2, 3), -ENOSYS);
		expect(call(0xffffff), -ENOSYS);
		expect(call(-1L), -ENOSYS);
	}
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	identity();
	system_name();
	time_goes_on();
	randomness();
	writing();
	unknown_calls();
	return finish();
}
