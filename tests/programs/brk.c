/* The program break. */
#include "ebb.h"

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 start = call(SYS_brk, 0), now;
	char *p = (char *)start;

	(void)argc, (void)argv, (void)envp, (void)auxv;
	check(start != 0);
	expect(call(SYS_brk, 0), start);
	now = call(SYS_brk, start + 10 * PAGE + 100);
	expect(now, start + 10 * PAGE + 100);
	for (u64 i = 0; i < 10 * PAGE; i += 256)
		expect(p[i], 0);
	for (int i = 0; i < 10; i++)
		p[i * PAGE] = (char)(i + 1);
	/* Less keeps what is below; more again gives zeros. */
	expect(call(SYS_brk, start + 2 * PAGE), start + 2 * PAGE);
	expect(p[PAGE], 2);
	check(!writable((char *)(((u64)p + 3 * PAGE) & ~(PAGE - 1))));
	expect(call(SYS_brk, start + 10 * PAGE), start + 10 * PAGE);
	expect(p[PAGE], 2);
	expect(p[5 * PAGE], 0);
	/* What cannot be is refused: the break stays. */
	expect(call(SYS_brk, start - PAGE), start + 10 * PAGE);
	expect(call(SYS_brk, 8), start + 10 * PAGE);
	expect(call(SYS_brk, 1UL << 60), start + 10 * PAGE);
	/* It does not grow into a mapping. */
	char *wall = (char *)((start + 20 * PAGE) & ~(PAGE - 1));
	check(map_at(wall, PAGE, RW, ANON | MAP_FIXED_NOREPLACE) == wall);
	wall[0] = 9;
	expect(call(SYS_brk, start + 40 * PAGE), start + 10 * PAGE);
	expect(wall[0], 9);
	/* It is memory like any other: it goes out and comes back. */
	expect(call(SYS_madvise, start & ~(PAGE - 1), 8 * PAGE, MADV_PAGEOUT), 0);
	expect(p[PAGE], 2);
	return finish();
}
