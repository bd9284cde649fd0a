/* mlock, munlock, mlockall, mincore, and what MADV_WILLNEED brings: what stays under pressure, what is told, errors. */
#include "ebb.h"

#define PAGES 256
#define PRESSURE (192 * MIB)
#define KERNEL 0xffffff8040200000UL

static void fill(u64 *p, u64 pages)
{
	for (u64 page = 0; page < pages; page++)
		p[page * (PAGE / 8)] = page + 1;
}

static int intact(const u64 *p, u64 pages)
{
	for (u64 page = 0; page < pages; page++)
		if (p[page * (PAGE / 8)] != page + 1)
			return 0;
	return 1;
}

static void tells(void)
{
	u64 *p = map(PAGES * PAGE, RW);
	unsigned char told[8];

	call(SYS_madvise, p, PAGES * PAGE, MADV_NOHUGEPAGE);
	expect(present(p, PAGES), 0);
	fill(p, 5);
	expect(present(p, PAGES), 5);
	expect(call(SYS_madvise, p + PAGE / 8, 2 * PAGE, MADV_DONTNEED), 0);
	expect(present(p, PAGES), 3);
	expect(call(SYS_mincore, p, 4 * PAGE, told), 0);
	expect(told[0] & 1, 1);
	expect(told[1] & 1, 0);
	expect(told[3] & 1, 1);
	/* A length that is no multiple of the page counts as the next one that is; none at all is none. */
	expect(call(SYS_mincore, p, PAGE + 1, told), 0);
	expect(call(SYS_mincore, p, 0, told), 0);
	expect(call(SYS_mincore, (char *)p + 1, PAGE, told), -EINVAL);
	expect(call(SYS_mincore, p, PAGE, KERNEL), -EFAULT);
	expect(call(SYS_mincore, p, PAGE, 8), -EFAULT);
	expect(call(SYS_mincore, KERNEL, PAGE, told), -ENOMEM);
	expect(call(SYS_munmap, p + PAGE / 8, PAGE), 0);
	expect(call(SYS_mincore, p, 3 * PAGE, told), -ENOMEM);
	expect(call(SYS_munmap, p, PAGES * PAGE), 0);
}

static void comes(void)
{
	u64 *p = map(PAGES * PAGE, RW);

	fill(p, PAGES);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_WILLNEED), 0);
	check(intact(p, PAGES));
	expect(present(p, PAGES), PAGES);
	/* What is there already, and what never was. */
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_WILLNEED), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_DONTNEED), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_WILLNEED), 0);
	expect(p[0], 0);
	expect(call(SYS_munmap, p, PAGES * PAGE), 0);
}

static void stays(void)
{
	u64 *p = map(PAGES * PAGE, RW), *q = map(PAGES * PAGE, RW);

	fill(p, PAGES);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	/* What was out comes, what never was is made. */
	expect(call(SYS_mlock, p, PAGES * PAGE), 0);
	expect(present(p, PAGES), PAGES);
	expect(call(SYS_mlock2, q, PAGES * PAGE, MLOCK_ONFAULT), 0);
	q[0] = 1;
	for (u64 round = 0; round < 2; round++) {
		u64 *big = map(PRESSURE, RW);

		for (u64 i = 0; i < PRESSURE / 8; i += PAGE / 8)
			big[i] = i;
		expect(present(p, PAGES), PAGES);
		check(present(q, PAGES) >= 1);
		for (u64 i = 0; i < PRESSURE / 8; i += PAGE / 8)
			if (big[i] != i)
				check(0);
		expect(call(SYS_munmap, big, PRESSURE), 0);
	}
	check(intact(p, PAGES));
	/* Advice that would take it away. */
	expect(call(SYS_madvise, p, PAGE, MADV_DONTNEED), -EINVAL);
	expect(call(SYS_madvise, p, PAGE, MADV_FREE), -EINVAL);
	expect(call(SYS_madvise, p, PAGE, MADV_COLD), -EINVAL);
	expect(call(SYS_madvise, p, PAGE, MADV_PAGEOUT), -EINVAL);
	expect(call(SYS_madvise, p, PAGE, MADV_WILLNEED), 0);
	check(intact(p, PAGES));
	/* The child's is not locked. */
	long child = fork();
	if (child == 0) {
		expect(call(SYS_madvise, p, PAGE, MADV_PAGEOUT), 0);
		check(intact(p, PAGES));
		leave_checked();
	}
	expect(ending(child), 0);
	expect(call(SYS_munlock, p, PAGES * PAGE), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	check(intact(p, PAGES));
	expect(call(SYS_munmap, p, PAGES * PAGE), 0);
	expect(call(SYS_munmap, q, PAGES * PAGE), 0);
}

static void errors(void)
{
	char *p = map(4 * PAGE, RW);

	/* Any address in a page means the page. */
	expect(call(SYS_mlock, p + 5, 1), 0);
	expect(call(SYS_mlock, p, 0), 0);
	expect(call(SYS_mlock2, p, PAGE, 2), -EINVAL);
	expect(call(SYS_mlock, p, -PAGE), -EINVAL);
	expect(call(SYS_mlock, KERNEL, PAGE), -ENOMEM);
	expect(call(SYS_munmap, p + PAGE, PAGE), 0);
	expect(call(SYS_mlock, p, 4 * PAGE), -ENOMEM);
	expect(call(SYS_munlock, p, 4 * PAGE), -ENOMEM);
	/* Nobody may touch it, so it cannot come; locked it is. */
	char *none = map(PAGE, PROT_NONE);
	expect(call(SYS_mlock, none, PAGE), -ENOMEM);
	expect(call(SYS_madvise, none, PAGE, MADV_DONTNEED), -EINVAL);
	expect(call(SYS_mprotect, none, PAGE, PROT_READ), 0);
	expect(*none, 0);
	expect(call(SYS_madvise, none, PAGE, MADV_DONTNEED), -EINVAL);
	expect(call(SYS_munmap, none, PAGE), 0);
	expect(call(SYS_munmap, p, 4 * PAGE), 0);
}

static void all(void)
{
	expect(call(SYS_mlockall, 0), -EINVAL);
	expect(call(SYS_mlockall, 8), -EINVAL);
	expect(call(SYS_mlockall, MCL_ONFAULT), -EINVAL);
	char *before = map(8 * PAGE, RW);
	expect(call(SYS_mlockall, MCL_CURRENT), 0);
	expect(present(before, 8), 8);
	char *after = map(8 * PAGE, RW);
	expect(present(after, 8), 0);
	expect(call(SYS_mlockall, MCL_FUTURE | MCL_ONFAULT), 0);
	char *lazily = map(8 * PAGE, RW);
	expect(present(lazily, 8), 0);
	expect(call(SYS_madvise, lazily, PAGE, MADV_DONTNEED), -EINVAL);
	expect(call(SYS_mlockall, MCL_FUTURE), 0);
	char *at_once = map(8 * PAGE, RW);
	expect(present(at_once, 8), 8);
	expect(call(SYS_munlockall), 0);
	expect(call(SYS_madvise, before, PAGE, MADV_DONTNEED), 0);
	expect(call(SYS_madvise, at_once, PAGE, MADV_DONTNEED), 0);
	char *locked = (char *)call(SYS_mmap, 0, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	expect(present(locked, 8), 8);
	expect(call(SYS_madvise, locked, PAGE, MADV_FREE), -EINVAL);
	expect(call(SYS_munlock, locked, 8 * PAGE), 0);
	expect(present(map(8 * PAGE, RW), 8), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	tells();
	comes();
	errors();
	stays();
	all();
	return finish();
}
