/* mmap, munmap, mprotect: where memory comes to lie, what remains of it, which errors. */
#include "ebb.h"

#define KERNEL 0xffffff8040200000UL

static void placing(void)
{
	char *p = map(8 * PAGE, RW), *q;

	expect((u64)p & (PAGE - 1), 0);
	for (u64 i = 0; i < 8 * PAGE; i += 64)
		expect(p[i], 0);
	/* A free hint is taken, and rounded down; one in use is not. */
	expect(call(SYS_munmap, p, 8 * PAGE), 0);
	q = map_at(p + 5, PAGE, RW, ANON);
	check(q == p || q == p + PAGE);
	char *r = map_at(q, PAGE, RW, ANON);
	check(r != q && (u64)r < -4095UL);
	/* Lengths are rounded up. */
	char *s = map(1, RW);
	s[PAGE - 1] = 1;
	expect(call(SYS_munmap, s, 1), 0);
	check(!mapped(s, PAGE));
}

static void fixed(void)
{
	char *p = map(4 * PAGE, RW);

	p[0] = p[PAGE] = p[2 * PAGE] = p[3 * PAGE] = 7;
	expect((long)map_at(p + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE), -EEXIST);
	expect((long)map_at(p - PAGE, 2 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE), -EEXIST);
	expect(p[PAGE], 7);
	check(map_at(p + PAGE, 2 * PAGE, RW, ANON | MAP_FIXED) == p + PAGE);
	expect(p[0], 7);
	expect(p[PAGE], 0);
	expect(p[2 * PAGE], 0);
	expect(p[3 * PAGE], 7);
	expect(call(SYS_munmap, p + PAGE, PAGE), 0);
	check(map_at(p + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE) == p + PAGE);
	expect(p[PAGE], 0);
	expect((long)map_at(p + 1, PAGE, RW, ANON | MAP_FIXED), -EINVAL);
	expect((long)map_at(p + 1, PAGE, RW, ANON | MAP_FIXED_NOREPLACE), -EINVAL);
	/* Beyond the 48 bits that Linux gives, and far beyond. */
	expect((long)map_at((void *)0x0001000000000000UL, PAGE, RW, ANON | MAP_FIXED), -ENOMEM);
	expect((long)map_at((void *)0xffffff8000000000UL, PAGE, RW, ANON | MAP_FIXED), -ENOMEM);
}

static void errors(void)
{
	char *p = map(PAGE, RW);

	expect((long)map_at(0, 0, RW, ANON), -EINVAL);
	expect((long)map_at(0, -1UL, RW, ANON), -ENOMEM);
	expect((long)map_at(0, -PAGE, RW, ANON), -ENOMEM);
	expect((long)map_at(0, 1UL << 55, RW, ANON), -ENOMEM);
	expect((long)map_at(0, PAGE, RW, MAP_ANONYMOUS), -EINVAL); /* neither private nor shared */
	expect(call(SYS_munmap, p, 0), -EINVAL);
	expect(call(SYS_munmap, p + 1, PAGE), -EINVAL);
	/* Half a page is 2, 8 or 32 KiB: aligned for a kernel with smaller pages. */
	expect(call(SYS_munmap, p + PAGE / 2, PAGE), -EINVAL);
	expect(call(SYS_mprotect, p + PAGE / 2, PAGE, RW), -EINVAL);
	expect(call(SYS_madvise, p + PAGE / 2, PAGE, MADV_DONTNEED), -EINVAL);
	expect((long)map_at(p + PAGE / 2, PAGE, RW, ANON | MAP_FIXED), -EINVAL);
	expect(call(SYS_mmap, 0, PAGE, RW, ANON, -1, PAGE / 2), -EINVAL);
	expect(call(SYS_munmap, p, -PAGE), -EINVAL);
	expect(call(SYS_munmap, 0x0001000000000000UL, PAGE), -EINVAL);
	expect(call(SYS_mprotect, p + 1, PAGE, RW), -EINVAL);
	expect(call(SYS_mprotect, p, 0, RW), 0);
	expect(call(SYS_mprotect, p, PAGE, 0x100), -EINVAL);
	expect(call(SYS_mprotect, p, -PAGE, RW), -ENOMEM);
	/* What is allowed, and what is looked at first. */
	expect(call(SYS_mprotect, p, PAGE, RW | PROT_SEM), 0);
	expect(call(SYS_mprotect, p, 0, 0x100), 0);
	expect(call(SYS_mprotect, p + 1, 0, RW), -EINVAL);
	expect(call(SYS_mprotect, p, -PAGE, 0x100), -ENOMEM);
	/* The kernel's half. */
	expect(call(SYS_munmap, KERNEL, PAGE), -EINVAL);
	expect(call(SYS_mprotect, KERNEL, PAGE, RW), -ENOMEM);
	expect(call(SYS_mprotect, KERNEL, 0, RW), 0);
	expect(call(SYS_mprotect, KERNEL, PAGE, 0x100), -EINVAL);
	expect(call(SYS_mprotect, KERNEL + 1, PAGE, RW), -EINVAL);
	expect(call(SYS_mprotect, -PAGE, PAGE, RW), -ENOMEM);
	/* The first pages are nobody's, so that a null pointer is a mistake; under Linux root may have them. */
	long low = (long)map_at(0, PAGE, RW, ANON | MAP_FIXED);
	check(low == -EPERM || low == 0);
	expect(call(SYS_munmap, 0, PAGE), 0);
	/* Nothing there: munmap does not mind, mprotect does. */
	expect(call(SYS_munmap, p, PAGE), 0);
	expect(call(SYS_munmap, p, PAGE), 0);
	expect(call(SYS_mprotect, p, PAGE, RW), -ENOMEM);
}

static void holes(void)
{
	char *p = map(16 * PAGE, RW);

	for (int i = 0; i < 16; i++)
		p[i * PAGE] = (char)(i + 1);
	/* One page from the middle, then a range over the hole. */
	expect(call(SYS_munmap, p + 8 * PAGE, PAGE), 0);
	check(!mapped(p + 8 * PAGE, PAGE));
	check(!writable(p + 8 * PAGE));
	for (int i = 0; i < 16; i++)
		if (i != 8)
			expect(p[i * PAGE], i + 1);
	expect(call(SYS_munmap, p + 6 * PAGE, 4 * PAGE), 0);
	for (int i = 0; i < 16; i++)
		expect(mapped(p + i * PAGE, PAGE), i < 6 || i >= 10);
	/* mprotect changes what comes before a hole, then says so. */
	expect(call(SYS_mprotect, p + 5 * PAGE, 6 * PAGE, PROT_READ), -ENOMEM);
	check(!writable(p + 5 * PAGE + 8));
	check(writable(p + 10 * PAGE + 8));
	expect(p[5 * PAGE], 6);
	expect(p[10 * PAGE], 11);
}

static void protections(void)
{
	char *p = map(9 * PAGE, RW);

	for (int i = 0; i < 9; i++)
		p[i * PAGE] = (char)(i + 1);
	/* Split in three and again; what is in the pages stays. */
	expect(call(SYS_mprotect, p + 3 * PAGE, 3 * PAGE, PROT_READ), 0);
	expect(call(SYS_mprotect, p + 4 * PAGE, PAGE, PROT_NONE), 0);
	for (int i = 0; i < 9; i++)
		expect(writable(p + i * PAGE + 8), i < 3 || i > 5);
	expect(call(SYS_write, 77, p + 4 * PAGE, 1), -9);
	expect(p[3 * PAGE], 4);
	expect(p[5 * PAGE], 6);
	expect(call(SYS_mprotect, p, 9 * PAGE, RW), 0);
	for (int i = 0; i < 9; i++)
		expect(p[i * PAGE], i + 1);
	/* Untouched memory can change its mind too: read, then write. */
	char *q = map(4 * PAGE, PROT_READ);
	expect(q[0], 0);
	expect(call(SYS_mprotect, q, 4 * PAGE, RW), 0);
	q[0] = 3;
	q[PAGE] = 4;
	expect(q[0] + q[PAGE] + q[2 * PAGE], 7);
	/* PROT_NONE does not give up what is there, also if that is out. */
	expect(call(SYS_madvise, p, 9 * PAGE, MADV_PAGEOUT), 0);
	expect(call(SYS_mprotect, p, 9 * PAGE, PROT_NONE), 0);
	check(!writable(p + 8));
	expect(call(SYS_mprotect, p, 9 * PAGE, PROT_READ), 0);
	check(!writable(p + 8));
	for (int i = 0; i < 9; i++)
		expect(p[i * PAGE], i + 1);
}

/* Far more than there is: mapping takes nothing, only touching does. */
static void reserve(void)
{
	u64 size = 64UL << 30;
	char *p = map_at(0, size, RW, ANON | MAP_NORESERVE);

	check((u64)p < -4095UL);
	for (u64 at = 0; at < size; at += size / 32)
		p[at] = 1;
	for (u64 at = 0; at < size; at += size / 32)
		expect(p[at], 1);
	expect(call(SYS_munmap, p, size), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	placing();
	fixed();
	errors();
	holes();
	protections();
	reserve();
	return finish();
}
