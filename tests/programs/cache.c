/*
 * Code made at run time: written to anonymous memory, made executable, run; paged out and
 * run again; changed and run again.
 */
#include "ebb.h"

typedef long function(void);

/* mov w0, #n; ret */
static void compile(u32 *at, u32 n)
{
	at[0] = 0x52800000 | n << 5;
	at[1] = 0xd65f03c0;
}

/* A program that makes code says so to the caches, line by line. */
static void publish(void *from, u64 len)
{
	for (u64 p = (u64)from & ~63UL; p < (u64)from + len; p += 64)
		__asm__ volatile("dc cvau, %0" : : "r"(p) : "memory");
	__asm__ volatile("dsb ish" : : : "memory");
	for (u64 p = (u64)from & ~63UL; p < (u64)from + len; p += 64)
		__asm__ volatile("ic ivau, %0" : : "r"(p) : "memory");
	__asm__ volatile("dsb ish; isb" : : : "memory");
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	enum { PAGES = 32 };
	char *p = map(PAGES * PAGE, RW);

	(void)argc, (void)argv, (void)envp, (void)auxv;
	for (u32 round = 0; round < 4; round++) {
		expect(call(SYS_mprotect, p, PAGES * PAGE, RW), 0);
		for (u32 i = 0; i < PAGES; i++)
			compile((u32 *)(p + i * PAGE), 1000 * round + i);
		publish(p, PAGES * PAGE);
		expect(call(SYS_mprotect, p, PAGES * PAGE, RX), 0);
		for (u32 i = 0; i < PAGES; i++)
			expect(((function *)(p + i * PAGE))(), 1000 * round + i);
		for (int again = 0; again < 2; again++) {
			expect(call(SYS_madvise, p, PAGES * PAGE, MADV_PAGEOUT), 0);
			for (u32 i = 0; i < PAGES; i++)
				expect(((function *)(p + i * PAGE))(), 1000 * round + i);
		}
	}
	/* The frames of that code now hold other code at other addresses. */
	expect(call(SYS_munmap, p, PAGES * PAGE), 0);
	p = map(PAGES * PAGE, RW | PROT_EXEC);
	for (u32 i = 0; i < PAGES; i++)
		compile((u32 *)(p + i * PAGE), 9000 + i);
	publish(p, PAGES * PAGE);
	for (u32 i = 0; i < PAGES; i++)
		expect(((function *)(p + i * PAGE))(), 9000 + i);
	/* This program's own text goes out and comes back under its feet. */
	u64 text = (u64)main & ~(PAGE - 1);
	expect(call(SYS_madvise, text, PAGE, MADV_PAGEOUT), 0);
	expect(((function *)(p + PAGE))(), 9001);
	return finish();
}
