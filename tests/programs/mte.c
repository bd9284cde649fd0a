/*
 * Memory tags: where they start, what keeps them, what they do to system calls. With the
 * argument "absent", on a machine without MTE: mprotect and prctl refuse it.
 */
#include "ebb.h"

#define GRANULES (PAGE / 16)
#define PAGES 64
#define SYNC (PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC)

struct iovec { const void *base; u64 len; };

/* Four kinds of pages: tags all 0, all the same, few runs, all different. */
static unsigned pattern(u64 page, u64 granule)
{
	switch (page % 4) {
	case 0: return 0;
	case 1: return page / 4 % 15 + 1;
	case 2: return (granule * 5 / GRANULES + page) & 15;
	default: return (unsigned)((granule * 0x9e3779b97f4a7c15UL + page * 0xbf58476d1ce4e5b9UL) >> 60);
	}
}

static void fill(char *p)
{
	for (u64 page = 0; page < PAGES; page++)
		for (u64 g = 0; g < GRANULES; g++) {
			set_tag(p + page * PAGE + g * 16, pattern(page, g));
			*(u64 *)with_tag(p + page * PAGE + g * 16, pattern(page, g)) = page * GRANULES + g;
		}
}

static long wrong_granules(char *p)
{
	long wrong = 0;

	for (u64 page = 0; page < PAGES; page++)
		for (u64 g = 0; g < GRANULES; g++) {
			char *at = p + page * PAGE + g * 16;

			wrong += tag_of(at) != pattern(page, g);
			wrong += *(u64 *)with_tag(at, pattern(page, g)) != page * GRANULES + g;
		}
	return wrong;
}

static long nonzero_tags(char *p, u64 pages)
{
	long n = 0;

	for (u64 g = 0; g < pages * GRANULES; g++)
		n += tag_of(p + g * 16) != 0;
	return n;
}

static void fresh(void)
{
	char *p = map(PAGES * PAGE, RW | PROT_MTE);

	/* By read, by write, by tag store. */
	expect(nonzero_tags(p, 2), 0);
	p[2 * PAGE] = 1;
	expect(nonzero_tags(p + 2 * PAGE, 1), 0);
	set_tag(p + 3 * PAGE + 32, 9);
	expect(tag_of(p + 3 * PAGE + 32), 9);
	expect(nonzero_tags(p + 3 * PAGE, 1), 1);
	/* What an earlier owner left does not show: neither data nor tags. */
	fill(p);
	expect(call(SYS_munmap, p, PAGES * PAGE), 0);
	p = map(PAGES * PAGE, RW | PROT_MTE);
	expect(nonzero_tags(p, PAGES), 0);
	for (u64 i = 0; i < PAGES * PAGE; i += 16)
		expect(*(u64 *)(p + i), 0);
	fill(p);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_DONTNEED), 0);
	expect(nonzero_tags(p, PAGES), 0);
}

/* mprotect adds PROT_MTE to memory that has data: the data stays, the tags are 0. */
static void added(void)
{
	char *dirty = map(PAGES * PAGE, RW | PROT_MTE), *p;

	fill(dirty); /* so that there are frames about with tags in them */
	expect(call(SYS_munmap, dirty, PAGES * PAGE), 0);
	p = map(PAGES * PAGE, RW);
	for (u64 i = 0; i < PAGES * PAGE; i += 16)
		*(u64 *)(p + i) = i;
	/* Half of it is out meanwhile. */
	expect(call(SYS_madvise, p, PAGES / 2 * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_mprotect, p, PAGES * PAGE, RW | PROT_MTE), 0);
	expect(nonzero_tags(p, PAGES), 0);
	for (u64 i = 0; i < PAGES * PAGE; i += 16)
		expect(*(u64 *)(p + i), i);
	set_tag(p, 3);
	expect(tag_of(p), 3);
	/* It is there to stay: a later mprotect without it does not take it away. */
	expect(call(SYS_mprotect, p, PAGE, RW), 0);
	expect(tag_of(p), 3);
	set_tag(p + 16, 4);
	expect(tag_of(p + 16), 4);
	expect(call(SYS_mprotect, p, PAGE, PROT_NONE), 0);
	expect(call(SYS_mprotect, p, PAGE, PROT_READ), 0);
	expect(tag_of(p + 16), 4);
}

static void swapped(void)
{
	char *p = map(PAGES * PAGE, RW | PROT_MTE);

	fill(p);
	for (int round = 0; round < 4; round++) {
		expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
		expect(wrong_granules(p), 0);
	}
	/* A tag store is a write: it brings the page in, and makes it dirty. */
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	set_tag(p + 7 * PAGE + 48, 13);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(tag_of(p + 7 * PAGE + 48), 13);
	/* Also where the page came in by a load first, so that its copy outside is good. */
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(tag_of(p + 8 * PAGE + 48), pattern(8, 3));
	set_tag(p + 8 * PAGE + 48, 11);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(tag_of(p + 8 * PAGE + 48), 11);
	set_tag(p + 7 * PAGE + 48, pattern(7, 3));
	set_tag(p + 8 * PAGE + 48, pattern(8, 3));
	expect(wrong_granules(p), 0);
	/* Read only memory goes out with its tags as well. */
	expect(call(SYS_mprotect, p, PAGES * PAGE, PROT_READ), 0);
	expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
	expect(wrong_granules(p), 0);
}

/* Without PROT_MTE tag stores do nothing, and no pointer is checked. */
static void untagged(void)
{
	char *p = map(PAGE, RW);

	set_tag(p, 6);
	expect(tag_of(p), 0);
	*(volatile char *)with_tag(p, 5) = 1;
	expect(p[0], 1);
}

static void modes(void)
{
	char *p = map(PAGE, RW | PROT_MTE);

	set_tag(p, 5);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_NONE), 0);
	expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL), PR_TAGGED_ADDR_ENABLE);
	*(volatile char *)p = 1; /* wrong tag, no check */
	/* Checking, with tags 1 to 15 allowed to IRG. */
	expect(tag_mode(SYNC | 0xfffeUL << PR_MTE_TAG_SHIFT), 0);
	expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL), SYNC | 0xfffeUL << PR_MTE_TAG_SHIFT);
	*(volatile char *)with_tag(p, 5) = 2; /* the right tag */
	for (int i = 0; i < 100; i++) {
		u64 x = (u64)p;

		__asm__ volatile(MEMTAG "irg %0, %0" : "+r"(x));
		check((x >> 56 & 15) != 0);
	}
	/* Only tag 6 allowed. */
	expect(tag_mode(SYNC | 1UL << 6 << PR_MTE_TAG_SHIFT), 0);
	u64 x = (u64)p;
	__asm__ volatile(MEMTAG "irg %0, %0" : "+r"(x));
	expect(x >> 56 & 15, 6);
	expect(tag_mode(1UL << 40), -EINVAL);
	expect(call(SYS_prctl, PR_SET_TAGGED_ADDR_CTRL, SYNC, 1), -EINVAL);
	expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL, 1), -EINVAL);
	expect(call(SYS_prctl, 123456), -EINVAL);
}

/* The kernel reads and writes a program's buffers under the program's own checks. */
static void buffers(void)
{
	char *p = map(2 * PAGE, RW | PROT_MTE);
	struct iovec v;

	for (int i = 0; i < 32; i++)
		set_tag(p + i * 16, 7);
	char *good = with_tag(p, 7), *bad = with_tag(p, 8);

	expect(tag_mode(SYNC), 0);
	good[0] = '.', good[1] = '\n';
	expect(call(SYS_write, 1, good, 2), 2);
	expect(call(SYS_write, 1, bad, 2), -EFAULT);
	expect(call(SYS_write, 1, p, 2), -EFAULT);
	v = (struct iovec){ bad, 2 };
	expect(call(SYS_writev, 1, &v, 1), -EFAULT);
	v = (struct iovec){ good, 2 };
	expect(call(SYS_writev, 1, &v, 1), 2);
	expect(call(SYS_clock_gettime, 1, good), 0);
	expect(call(SYS_clock_gettime, 1, bad), -EFAULT);
	expect(call(SYS_getrandom, good, 16, 0), 16);
	expect(call(SYS_getrandom, bad, 16, 0), -EFAULT);
	/* From out of swap, too. */
	expect(call(SYS_madvise, p, 2 * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_getrandom, bad, 16, 0), -EFAULT);
	expect(call(SYS_getrandom, good, 16, 0), 16);
	/* With the checks off, the same pointers do. */
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
	expect(call(SYS_getrandom, bad, 16, 0), 16);
	expect(call(SYS_getrandom, p, 16, 0), 16);
}

static int absent(void)
{
	char *p = map(PAGE, RW);

	/* mmap passes over the bits that it does not know, mprotect does not. */
	char *q = map(PAGE, RW | PROT_MTE);
	q[0] = 1;
	expect(q[0], 1);
	expect(call(SYS_mprotect, p, PAGE, RW | PROT_MTE), -EINVAL);
	expect(tag_mode(SYNC), -EINVAL);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
	return finish();
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp;
	expect(auxv_value(auxv, 26) >> 18 & 1, argc == 1); /* HWCAP2_MTE */
	if (argc > 1 && equal(argv[1], "absent"))
		return absent();
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
	fresh();
	added();
	swapped();
	untagged();
	modes();
	buffers();
	return finish();
}
