/*
 * A bad pointer to a system call is -EFAULT, or a short count where the first part was
 * good; never a signal and never a kernel fault.
 */
#include "ebb.h"

struct iovec { const void *base; u64 len; };

/* Addresses at which no program has memory. */
static void *const nowhere[] = {
	(void *)0, (void *)8, (void *)0x0000fffffffff000UL, (void *)0x0001000000000000UL,
	(void *)0x8000000000000000UL, (void *)0xffffff8040200000UL, (void *)0xffffffffffffffffUL,
};

static void everywhere(void)
{
	for (u64 i = 0; i < sizeof(nowhere) / sizeof(nowhere[0]); i++) {
		void *p = nowhere[i];
		struct iovec v = { p, 16 };

		expect(call(SYS_write, 1, p, 16), -EFAULT);
		expect(call(SYS_writev, 1, p, 1), -EFAULT);
		expect(call(SYS_writev, 1, &v, 1), -EFAULT);
		expect(call(SYS_uname, p), -EFAULT);
		expect(call(SYS_clock_gettime, 1, p), -EFAULT);
		expect(call(SYS_getrandom, p, 16, 0), -EFAULT);
		expect(call(SYS_sysinfo, p), -EFAULT);
	}
}

/* Memory that ends, or that may not be written. */
static void edges(void)
{
	char *p = map(4 * PAGE, RW);
	struct iovec v[2] = { { "good ", 5 }, { (void *)16, 4 } };

	expect(call(SYS_munmap, p + PAGE, PAGE), 0);
	expect(call(SYS_mprotect, p + 2 * PAGE, PAGE, PROT_READ), 0);
	expect(call(SYS_mprotect, p + 3 * PAGE, PAGE, PROT_NONE), 0);

	memcpy(p + PAGE - 6, "part1\n", 6);
	long n = call(SYS_write, 1, p + PAGE - 6, 12);
	check(n == 6 || n == -EFAULT); /* short or refused, both are allowed */
	n = call(SYS_writev, 1, v, 2);
	check(n == 5 || n == -EFAULT);
	put("\n");

	expect(call(SYS_clock_gettime, 1, p + PAGE - 8), -EFAULT);
	expect(call(SYS_uname, p + PAGE - 8), -EFAULT);
	expect(call(SYS_uname, p + 2 * PAGE), -EFAULT);
	expect(call(SYS_getrandom, p + 2 * PAGE, 8, 0), -EFAULT);
	expect(call(SYS_getrandom, p + 3 * PAGE, 8, 0), -EFAULT);
	expect(call(SYS_write, 1, p + 3 * PAGE, 8), -EFAULT);
	/* A page that the program may read and has not touched: the kernel faults it in. */
	expect(call(SYS_write, 1, p + 2 * PAGE, 1), 1);
	expect(call(SYS_getrandom, p, 8, 0), 8);
}

/* Program text is there to be read, not to be written. */
static void text(void)
{
	expect(call(SYS_uname, (void *)main), -EFAULT);
	expect(call(SYS_getrandom, (void *)main, 4, 0), -EFAULT);
}

/* A buffer of many untouched pages, and one whose pages are out. */
static void far_pages(void)
{
	char *p = map(64 * PAGE, RW);

	expect(call(SYS_getrandom, p + PAGE - 4, 8, 0), 8);
	for (int i = 0; i < 64; i++)
		p[i * PAGE] = (char)i;
	expect(call(SYS_madvise, p, 64 * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_clock_gettime, 1, p + 5 * PAGE - 8), 0);
	expect(call(SYS_madvise, p, 64 * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_write, 1, p + 10 * PAGE, 0), 0);
	for (int i = 0; i < 64; i++)
		if (i != 5)
			expect(p[i * PAGE], i);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	everywhere();
	edges();
	text();
	far_pages();
	return finish();
}
