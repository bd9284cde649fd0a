/* madvise: DONTNEED, PAGEOUT, hints, errors. */
#include "ebb.h"

#define PAGES 256
#define KERNEL 0xffffff8040200000UL

static u64 word(u64 page, u64 i) { return (page * 0x9e3779b97f4a7c15UL) ^ (i * 0xbf58476d1ce4e5b9UL); }

static void fill(u64 *p)
{
	for (u64 page = 0; page < PAGES; page++)
		for (u64 i = 0; i < PAGE / 8; i++)
			p[page * (PAGE / 8) + i] = word(page, i);
}

static int intact(const u64 *p)
{
	for (u64 page = 0; page < PAGES; page++)
		for (u64 i = 0; i < PAGE / 8; i++)
			if (p[page * (PAGE / 8) + i] != word(page, i))
				return 0;
	return 1;
}

static void pageout(void)
{
	u64 *p = map(PAGES * PAGE, RW);

	fill(p);
	/* Again and again: resident, out, out already, dropped clean, changed. */
	for (int round = 0; round < 4; round++) {
		expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
		if (round & 1)
			expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
		check(intact(p));
	}
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	p[0] = 1;
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(p[0], 1);
	p[0] = word(0, 0);
	check(intact(p));
	/* A part of it, and memory never touched. */
	expect(call(SYS_madvise, p + PAGE / 8, 3 * PAGE, MADV_PAGEOUT), 0);
	check(intact(p));
	u64 *q = map(8 * PAGE, RW);
	expect(call(SYS_madvise, q, 8 * PAGE, MADV_PAGEOUT), 0);
	expect(q[0], 0);
	/* Read only and no access at all. */
	expect(call(SYS_mprotect, p, PAGES * PAGE, PROT_READ), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_mprotect, p, PAGES * PAGE, PROT_NONE), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_mprotect, p, PAGES * PAGE, RW), 0);
	check(intact(p));
	expect(call(SYS_munmap, p, PAGES * PAGE), 0);
}

static void dontneed(void)
{
	u64 *p = map(PAGES * PAGE, RW);

	fill(p);
	expect(call(SYS_madvise, p + PAGE / 8, PAGE, MADV_DONTNEED), 0);
	for (u64 i = 0; i < PAGE / 8; i++)
		expect(p[PAGE / 8 + i], 0);
	expect(p[0], word(0, 0));
	expect(p[2 * PAGE / 8], word(2, 0));
	/* Also what is out is gone. */
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_DONTNEED), 0);
	for (u64 page = 0; page < PAGES; page++)
		expect(p[page * (PAGE / 8) + page], 0);
}

static void hints(void)
{
	u64 *p = map(PAGES * PAGE, RW);

	fill(p);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_WILLNEED), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_HUGEPAGE), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_NOHUGEPAGE), 0);
	check(intact(p));
}

static void errors(void)
{
	char *p = map(4 * PAGE, RW);

	p[0] = p[3 * PAGE] = 1;
	expect(call(SYS_madvise, p, PAGE, 4711), -EINVAL);
	expect(call(SYS_madvise, p, PAGE, -1), -EINVAL);
	expect(call(SYS_madvise, p + 1, PAGE, MADV_DONTNEED), -EINVAL);
	expect(call(SYS_madvise, p, 0, MADV_DONTNEED), 0);
	expect(call(SYS_madvise, p, -1UL, MADV_DONTNEED), -EINVAL);
	/* The kernel's half: the number is looked at first, then the address's alignment, then the length. */
	expect(call(SYS_madvise, KERNEL, PAGE, 4711), -EINVAL);
	expect(call(SYS_madvise, KERNEL + 1, PAGE, MADV_DONTNEED), -EINVAL);
	expect(call(SYS_madvise, KERNEL, 0, MADV_DONTNEED), 0);
	expect(call(SYS_madvise, KERNEL, PAGE, MADV_DONTNEED), -ENOMEM);
	expect(call(SYS_madvise, KERNEL, PAGE, MADV_WILLNEED), -ENOMEM);
	expect(call(SYS_madvise, -PAGE, 2 * PAGE, MADV_DONTNEED), -EINVAL);
	expect(p[0], 1);
	/* A length is rounded up. */
	expect(call(SYS_madvise, p, 1, MADV_DONTNEED), 0);
	expect(p[0], 0);
	/* Over a hole: what is mapped is done, then -ENOMEM. */
	expect(call(SYS_munmap, p + PAGE, PAGE), 0);
	expect(call(SYS_madvise, p, 4 * PAGE, MADV_DONTNEED), -ENOMEM);
	expect(p[3 * PAGE], 0);
	expect(call(SYS_munmap, p, 4 * PAGE), 0);
	expect(call(SYS_madvise, p, PAGE, MADV_DONTNEED), -ENOMEM);
	expect(call(SYS_madvise, p, PAGE, MADV_PAGEOUT), -ENOMEM);
	expect(call(SYS_madvise, p, PAGE, MADV_WILLNEED), -ENOMEM);
}

/* A long range with a hole is followed to its end; one with what is locked, up to there. */
static void far(void)
{
	enum { LONG = 9000 };
	char *p = map(LONG * PAGE, RW), *last = p + (LONG - 1) * PAGE;

	for (int locked = 0; locked < 2; locked++) {
		*p = *last = 1;
		expect(locked ? call(SYS_mlock, p + 2 * PAGE, PAGE) : call(SYS_munmap, p + PAGE, PAGE), 0);
		expect(call(SYS_madvise, p, LONG * PAGE, MADV_DONTNEED), locked ? -EINVAL : -ENOMEM);
		expect(*p, 0);
		expect(*last, locked);
	}
	expect(call(SYS_munmap, p, LONG * PAGE), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	pageout();
	dontneed();
	hints();
	errors();
	far();
	return finish();
}
