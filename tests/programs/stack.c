/*
 * The stack grows down on its own: "deep MIB" uses so much of it, "endless" never stops
 * and dies with 139. "region" grows a mapping of its own made with MAP_GROWSDOWN.
 */
#include "ebb.h"

static __attribute__((noinline)) u64 descend(u64 bytes)
{
	volatile u8 frame[1008];

	frame[0] = (u8)bytes;
	u64 below = bytes > sizeof(frame) ? descend(bytes - sizeof(frame)) : 0;
	return below + frame[0];
}

static void grows_down(void)
{
	/* Room below is made first, so that growth has somewhere to go. */
	char *room = map(512 * PAGE, PROT_NONE);
	char *top = room + 511 * PAGE;

	expect(call(SYS_munmap, room, 512 * PAGE), 0);
	check(map_at(top, PAGE, RW, ANON | MAP_FIXED | MAP_GROWSDOWN) == top);
	for (char *p = top; p > top - 100 * PAGE; p -= PAGE / 2)
		*(volatile char *)p = 5;
	expect(*(top - 99 * PAGE), 5);
	check(mapped(top - 99 * PAGE, 100 * PAGE));
	check(!mapped(top - 300 * PAGE, PAGE));
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	const char *how = argc > 1 ? argv[1] : "deep";
	u64 mib = 4;

	(void)envp, (void)auxv;
	if (equal(how, "region"))
		grows_down();
	else if (equal(how, "endless"))
		mib = 1UL << 20;
	check(descend(mib * MIB) < -1UL);
	return finish();
}
