/*
 * RLIMIT_RSS: a program that may have 4 MiB goes through 16. Whatever the kernel makes of the limit, contents stay, the
 * limit is inherited, and bad calls are refused.
 *
 *   rss capped MIB   it was started under such a limit: no more is in memory, of it or of its children
 */
#include "ebb.h"

#define LIMIT (4 * MIB)
#define SIZE (16 * MIB)

static u64 *p;

static void fill(u64 by)
{
	for (u64 i = 0; i < SIZE / 8; i += 64)
		p[i] = i * by;
}

static int intact(u64 by)
{
	for (u64 i = 0; i < SIZE / 8; i += 64)
		if (p[i] != i * by)
			return 0;
	return 1;
}

static void limited(void)
{
	u64 limit[2] = { LIMIT, ~0UL }, told[2];

	expect(call(SYS_setrlimit, RLIMIT_RSS, limit), 0);
	expect(call(SYS_getrlimit, RLIMIT_RSS, told), 0);
	expect(told[0], LIMIT);
	p = map(SIZE, RW);
	fill(3);
	check(intact(3));
	expect(call(SYS_madvise, p, SIZE, MADV_WILLNEED), 0);
	check(intact(3));
	long child = fork();
	if (child == 0) {
		expect(call(SYS_prlimit64, 0, RLIMIT_RSS, 0, told), 0);
		expect(told[0], LIMIT);
		fill(5);
		check(intact(5));
		leave_checked();
	}
	expect(ending(child), 0);
	check(intact(3));
	limit[0] = ~0UL;
	expect(call(SYS_prlimit64, 0, RLIMIT_RSS, limit, told), 0);
	expect(told[0], LIMIT);
	fill(7);
	check(intact(7));
	expect(call(SYS_munmap, p, SIZE), 0);
}

static void errors(void)
{
	u64 limit[2] = { 2, 1 };

	expect(call(SYS_setrlimit, RLIMIT_RSS, limit), -EINVAL);
	expect(call(SYS_getrlimit, 16, limit), -EINVAL);
	expect(call(SYS_setrlimit, RLIMIT_RSS, 8), -EFAULT);
	expect(call(SYS_getrlimit, RLIMIT_RSS, 8), -EFAULT);
	expect(call(SYS_prlimit64, 99999, RLIMIT_RSS, 0, limit), -ESRCH);
	expect(call(SYS_getrlimit, RLIMIT_STACK, limit), 0);
	expect(limit[0], 8 * MIB);
}

static void capped(u64 limit)
{
	u64 told[2];

	expect(call(SYS_getrlimit, RLIMIT_RSS, told), 0);
	expect(told[0], limit);
	p = map(SIZE, RW);
	fill(3);
	check(intact(3));
	u64 bytes = present(p, SIZE / PAGE) * PAGE;
	check(bytes <= limit);
	check(bytes > limit / 2);
}

/* A program of its own, in the place of a child: /proc/self/exe capped MIB once. */
static int again(const char *mib)
{
	const char *argv[] = { "rss", "capped", mib, "once", 0 };
	long child = fork();

	if (child == 0) {
		call(SYS_execve, "/proc/self/exe", argv, argv + 4);
		leave(99);
	}
	return ending(child);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp, (void)auxv;
	if (argc > 2) {
		capped((argv[2][0] - '0') * MIB);
		if (argc == 3)
			expect(again(argv[2]), 0);
		return finish();
	}
	limited();
	errors();
	return finish();
}
