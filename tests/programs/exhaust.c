/* Takes memory without end, with data that no one can make smaller: dies with 137. */
#include "ebb.h"

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 size = 64UL << 30, x = 1;
	u64 *p = map_at(0, size, RW, ANON | MAP_NORESERVE);
	int tagged = argc > 1 && equal(argv[1], "tagged");

	(void)envp, (void)auxv;
	if (tagged)
		p = map_at(0, size, RW | PROT_MTE, ANON | MAP_NORESERVE);
	put("filling\n");
	for (u64 i = 0; i < size / 8; i += 2) {
		x = x * 6364136223846793005UL + 1442695040888963407UL;
		p[i] = x;
		if (tagged)
			set_tag(p + i, x >> 60);
	}
	put("still alive\n");
	return 1;
}
