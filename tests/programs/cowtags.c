/* Tags after a fork: copied with the page, and private from then on. Without MTE there is nothing to do. */
#include "pages.h"

#define PAGES (4 * GROUP)
#define SYNC (PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC)
#define ASYNC (PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_ASYNC)

static void fresh(void)
{
	use(map_at(area, PAGES * PAGE, RW | PROT_MTE, ANON | (area ? MAP_FIXED : 0)), PAGES);
}

enum what { TAGS, DATA, BOTH, WHATS };

static void change(enum what what, u64 first, u64 n, u64 salt)
{
	for (u64 page = first; page < PAGES; page += n) {
		if (what != TAGS)
			store_data(page, page + salt);
		if (what != DATA)
			store_tags(page, page + salt + 1);
	}
}

/* Either side first, or alone; tags only, data only, both. */
static void sides(void)
{
	for (int what = 0; what < WHATS; what++) {
		for (int order = 0; order < 4; order++) {
			long go = gate(), done = gate(), pid;

			fresh();
			pid = fork();
			if (pid == 0) {
				expect(wrong(), 0);
				if (order & 1)
					change(what, order & 2, 3, 300);
				expect(wrong(), 0);
				open_gate(done);
				pass(go);
				expect(wrong(), 0);
				if (!(order & 1))
					change(what, 1, 2, 400);
				expect(wrong(), 0);
				leave_checked();
			}
			pass(done);
			expect(wrong(), 0);
			if (order != 3)
				change(what, 0, order & 2 ? 1 : GROUP, 500);
			expect(wrong(), 0);
			open_gate(go);
			pass(go);
			expect(ending(pid), 0);
			expect(wrong(), 0);
			change(BOTH, 0, 1, 600);
			expect(wrong(), 0);
		}
	}
}

/* One tag store is enough to part two pages, and does it for that page and no other. */
static void single(void)
{
	for (int side = 0; side < 2; side++) {
		fresh();
		long done = gate(), pid = fork();

		if ((pid == 0) == (side == 0)) {
			set_tag(granule(7, 3), tag(model[7].tags, 3) ^ 5);
			expect(tag_of(granule(7, 3)), tag(model[7].tags, 3) ^ 5);
			expect(tag_of(granule(7, 2)), tag(model[7].tags, 2));
			expect(tag_of(granule(7, 4)), tag(model[7].tags, 4));
			set_tag(granule(7, 3), tag(model[7].tags, 3));
			/* Two granules at a time, zeros with the tag, a block of tags with zeros. */
			u64 p = (u64)with_tag(granule(9, 0), 6);
			__asm__ volatile(MEMTAG "st2g %0, [%0]" : : "r"(p) : "memory");
			expect(tag_of(granule(9, 1)), 6);
			p = (u64)with_tag(granule(10, 0), 6);
			__asm__ volatile(MEMTAG "stzg %0, [%0]" : : "r"(p) : "memory");
			expect(*(volatile u64 *)granule(10, 0), 0);
			p = (u64)with_tag(granule(11, 0), 6);
			__asm__ volatile(MEMTAG "dc gva, %0" : : "r"(p) : "memory");
			expect(tag_of(granule(11, 0)), 6);
			p = (u64)with_tag(granule(12, 0), 6);
			__asm__ volatile(MEMTAG "dc gzva, %0" : : "r"(p) : "memory");
			expect(tag_of(granule(12, 0)), 6);
			expect(*(volatile u64 *)granule(12, 0), 0);
			for (u64 page = 9; page < 13; page++)
				store_data(page, page), store_tags(page, page);
			expect(wrong(), 0);
		}
		if (pid == 0) {
			if (side == 1)
				pass(done);
			expect(wrong(), 0);
			leave_checked();
		}
		open_gate(done);
		pass(done);
		expect(ending(pid), 0);
		expect(wrong(), 0);
	}
}

/* Memory that nobody touched, or only read: no tags, on either side, until one sets them for itself. */
static void untouched(void)
{
	area = map_at(area, PAGES * PAGE, RW | PROT_MTE, ANON | MAP_FIXED);
	memset(model, 0, sizeof(model));
	for (u64 page = 0; page < GROUP; page++)
		expect(tag_of(granule(page, 5)), 0);
	long pid = fork();

	change(TAGS, pid == 0, 3, 70);
	expect(wrong(), 0);
	if (pid == 0)
		leave_checked();
	expect(ending(pid), 0);
	expect(wrong(), 0);
}

/* PROT_MTE that only one side adds, to pages with data that both still share. */
static void added(void)
{
	for (int side = 0; side < 2; side++) {
		fresh(); /* so that there are frames about with tags in them */
		area = map_at(area, PAGES * PAGE, RW, ANON | MAP_FIXED);
		for (u64 page = 0; page < PAGES; page++) {
			expect_zero(page);
			store_data(page, page + 9);
		}
		long done = gate(), pid = fork();

		if ((pid == 0) == (side == 0)) {
			expect(call(SYS_mprotect, area, PAGES * PAGE, RW | PROT_MTE), 0);
			expect(wrong(), 0);
			change(TAGS, 1, 2, 80);
			change(DATA, 2, 3, 80);
			expect(wrong(), 0);
		} else if (pid == 0) {
			pass(done);
			expect(wrong(), 0);
			set_tag(granule(1, 1), 3); /* does nothing */
			expect(tag_of(granule(1, 1)), 0);
		}
		if (pid == 0)
			leave_checked();
		open_gate(done);
		pass(done);
		expect(ending(pid), 0);
		expect(wrong(), 0);
		expect(call(SYS_mprotect, area, PAGES * PAGE, RW | PROT_MTE), 0);
		expect(wrong(), 0);
	}
}

/* Several generations, each with tags of its own. */
static void chain(int levels)
{
	if (levels == 0)
		return;
	change(TAGS, levels, 3, 100 * levels);
	long pid = fork();

	if (pid == 0) {
		expect(wrong(), 0);
		change(levels & 1 ? TAGS : BOTH, 0, levels + 1, 100 * levels + 50);
		chain(levels - 1);
		expect(wrong(), 0);
		leave_checked();
	}
	change(TAGS, 1, 4, 100 * levels + 30);
	expect(wrong(), 0);
	expect(ending(pid), 0);
	expect(wrong(), 0);
}

/* The tag check mode and the tags for IRG are the child's, too, and its own from then on. */
static void modes(void)
{
	static const u64 settings[] = {
		SYNC | 0xfffeUL << PR_MTE_TAG_SHIFT, ASYNC | 0x40UL << PR_MTE_TAG_SHIFT, SYNC | ASYNC,
		PR_TAGGED_ADDR_ENABLE, 0,
	};

	for (u64 i = 0; i < sizeof(settings) / 8; i++) {
		expect(tag_mode(settings[i]), 0);
		long pid = fork();

		expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL), settings[i]);
		if (i == 1) {
			u64 x = 0;

			__asm__ volatile(MEMTAG "irg %0, %0" : "+r"(x));
			expect(x >> 56, 6);
		}
		if (pid == 0) {
			expect(tag_mode(SYNC), 0);
			leave_checked();
		}
		expect(ending(pid), 0);
		expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL), settings[i]);
	}
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
}

/* A wrong tag ends the one whose pointer it was, as its own mode says; the other has its checks still. */
static void mismatches(void)
{
	fresh();
	store_tags(3, 2 * 7 + 1); /* all 7 */
	volatile char *good = with_tag(granule(3, 8), 7), *bad = with_tag(granule(3, 8), 9), *plain = granule(3, 8);

	for (int how = 0; how < 6; how++) {
		expect(tag_mode(how == 4 ? ASYNC : SYNC), 0);
		long pid = fork();

		if (pid == 0) {
			switch (how) {
			case 0: (void)*bad; break;
			case 1: *bad = 1; break;
			case 2: *plain = 1; break; /* the pointer's tag is 0 */
			case 3: /* right for the parent, no longer here */
				set_tag((void *)plain, 8);
				*good = 1;
				break;
			case 4: /* found out at the call */
				*bad = 1;
				call(SYS_getpid);
				break;
			case 5: /* allowed here, and here only */
				tag_mode(PR_TAGGED_ADDR_ENABLE);
				*bad = 1;
				call(SYS_getpid);
				leave(55);
			}
			leave(77);
		}
		expect(ending(pid), how == 5 ? 55 << 8 : SIGSEGV);
		expect(*good, (char)(word(model[3].data, 16) & 255));
		*good = *good;
	}
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
	expect(wrong(), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp;
	if (!(auxv_value(auxv, 26) >> 18 & 1)) { /* HWCAP2_MTE */
		put("no MTE\n");
		return finish();
	}
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
	tagged = 1;
	sides();
	single();
	untouched();
	added();
	fresh();
	chain(5);
	modes();
	mismatches();
	return finish();
}
