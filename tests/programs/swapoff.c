/*
 * swapon and swapoff: what is out comes back, data and tags; and their errors. Where the areas
 * are not devices of these names the errors are all that is tried. MADV_POPULATE_READ and
 * MADV_POPULATE_WRITE on the way.
 */
#include "ebb.h"

#define PAGES (8 * MIB / PAGE)

static const char first[] = "/dev/ram0", second[] = "/dev/ram1";

static u64 *area;
static int tagged;

static u64 *at(u64 page) { return area + page * (PAGE / 8); }

/* Zeros, one word, and what differs from word to word. */
static u64 word(u64 page, u64 i)
{
	switch (page % 4) {
	case 0: return 0;
	case 1: return page * 0x9e3779b97f4a7c15UL;
	default: return (page + i) * 0x9e3779b97f4a7c15UL;
	}
}

static unsigned tag(u64 page, u64 i) { return page % 3 == 0 ? 0 : page % 3 == 1 ? page % 16 : (page + i) % 16; }

static void fill(void)
{
	for (u64 page = 0; page < PAGES; page++) {
		for (u64 i = 0; i < PAGE / 8; i++)
			at(page)[i] = word(page, i);
		for (u64 i = 0; tagged && i < PAGE / 8; i += 2)
			set_tag(at(page) + i, tag(page, i / 2));
	}
}

static u64 wrong(void)
{
	u64 count = 0;

	for (u64 page = 0; page < PAGES; page++) {
		for (u64 i = 0; i < PAGE / 8; i++)
			count += at(page)[i] != word(page, i);
		for (u64 i = 0; tagged && i < PAGE / 8; i += 2)
			count += tag_of(at(page) + i) != tag(page, i / 2);
	}
	return count;
}

/* Free swap and swap in all, in bytes. */
static u64 swap_free, swap_all;

static void look(void)
{
	struct { long up; u64 loads[3], ram, ram_free, shared, buffer, swap, swap_free; u64 rest[8]; } info;

	memset(&info, 0, sizeof(info));
	expect(call(SYS_sysinfo, &info), 0);
	swap_free = info.swap_free, swap_all = info.swap;
}

static void errors(void)
{
	char *hole = map(2 * PAGE, RW);

	expect(call(SYS_munmap, hole, PAGE), 0);
	expect(call(SYS_swapon, "/nowhere", 0), -ENOENT);
	expect(call(SYS_swapoff, "/nowhere"), -ENOENT);
	expect(call(SYS_swapon, "", 0), -ENOENT);
	expect(call(SYS_swapon, hole, 0), -EFAULT);
	expect(call(SYS_swapoff, hole), -EFAULT);
	expect(call(SYS_swapon, "/nowhere", 0x80000), -EINVAL);
	char *path = map(8192, RW);

	memset(path, 'a', 8192);
	expect(call(SYS_swapoff, path), -ENAMETOOLONG);
	/* MADV_POPULATE_*: as the accesses would do. */
	char *range = map(4 * PAGE, RW);

	expect(call(SYS_madvise, range, 4 * PAGE, MADV_POPULATE_WRITE), 0);
	expect(call(SYS_madvise, range, 4 * PAGE, MADV_POPULATE_READ), 0);
	expect(call(SYS_mprotect, range, PAGE, PROT_READ), 0);
	expect(call(SYS_madvise, range, PAGE, MADV_POPULATE_READ), 0);
	expect(call(SYS_madvise, range, PAGE, MADV_POPULATE_WRITE), -EINVAL);
	expect(call(SYS_mprotect, range, PAGE, PROT_NONE), 0);
	expect(call(SYS_madvise, range, PAGE, MADV_POPULATE_READ), -EINVAL);
	expect(call(SYS_munmap, range + PAGE, PAGE), 0);
	expect(call(SYS_madvise, range + PAGE, 2 * PAGE, MADV_POPULATE_READ), -ENOMEM);
	expect(call(SYS_madvise, range + 1, PAGE, MADV_POPULATE_READ), -EINVAL);
	expect(call(SYS_madvise, range, 0, MADV_POPULATE_READ), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp;
	errors();
	tagged = auxv_value(auxv, 26) >> 18 & 1; /* HWCAP2_MTE */
	if (tagged)
		expect(call(SYS_prctl, PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE), 0);
	area = map(PAGES * PAGE, RW | (tagged ? PROT_MTE : 0));
	fill();
	if (call(SYS_swapoff, "/dev/none") != -ENOENT || call(SYS_swapon, first, 0) != -EBUSY) {
		put("no area is called "), put(first), put("\n");
		return finish();
	}
	look();
	u64 all = swap_all;

	for (int round = 0; round < 3; round++) {
		expect(call(SYS_madvise, area, PAGES * PAGE, MADV_PAGEOUT), 0);
		look();
		check(swap_free < swap_all);
		/* The other one takes nothing from here on, and gives back what it has. */
		expect(call(SYS_swapoff, second), 0);
		expect(call(SYS_swapoff, second), -EINVAL);
		expect(wrong(), 0);
		expect(call(SYS_madvise, area, PAGES * PAGE, MADV_PAGEOUT), 0);
		expect(call(SYS_swapoff, first), 0);
		look();
		expect(swap_all, 0);
		expect(wrong(), 0);
		expect(call(SYS_madvise, area, PAGES * PAGE, MADV_PAGEOUT), 0);
		expect(call(SYS_swapon, second, 0x8000 | 7), 0);
		expect(call(SYS_swapon, first, 0), 0);
		expect(call(SYS_swapon, first, 0), -EBUSY);
		look();
		expect(swap_all, all);
		expect(swap_free, all);
		fill();
	}
	return finish();
}
