/*
 * madvise: FREE and COLD. A page that was given up is wholly as it was or wholly zero, data and
 * tags, until it is stored to again; its neighbours keep what they have.
 */
#include "ebb.h"

#define PAGES 256
#define GROUP 16

enum state { OLD, GONE, MIXED };

static u64 *area;
static int tagged;

static u64 word(u64 page, u64 i) { return ((page * 0x9e3779b97f4a7c15UL) ^ (i * 0xbf58476d1ce4e5b9UL)) | 1; }

static u64 *at(u64 page) { return area + page * (PAGE / 8); }

static void fill(void)
{
	for (u64 page = 0; page < PAGES; page++) {
		for (u64 i = 0; i < PAGE / 8; i++)
			at(page)[i] = word(page, i);
		for (u64 i = 0; tagged && i < PAGE / 8; i += 2)
			set_tag(at(page) + i, 1 + (page + i / 2) % 15);
	}
}

/* What a page holds; words below `from` are not looked at, nor are their tags. */
static enum state state_from(u64 page, u64 from)
{
	u64 old = 0, gone = 0;

	for (u64 i = from; i < PAGE / 8; i++) {
		old += at(page)[i] == word(page, i);
		gone += at(page)[i] == 0;
	}
	for (u64 i = from; tagged && i < PAGE / 8; i += 2) {
		unsigned tag = tag_of(at(page) + i);

		old += tag == 1 + (page + i / 2) % 15;
		gone += tag == 0;
	}
	u64 all = PAGE / 8 - from + (tagged ? (PAGE / 8 - from) / 2 : 0);

	return old == all ? OLD : gone == all ? GONE : MIXED;
}

static enum state state(u64 page) { return state_from(page, 0); }

static int all_old(u64 from, u64 to)
{
	for (u64 page = from; page < to; page++)
		if (state(page) != OLD)
			return 0;
	return 1;
}

static void advise(u64 from, u64 to, int advice) { expect(call(SYS_madvise, at(from), (to - from) * PAGE, advice), 0); }

static void run(int prot)
{
	u64 lost = 0;

	area = map(PAGES * PAGE, prot);
	fill();
	advise(0, PAGES, MADV_COLD);
	check(all_old(0, PAGES));

	/*
	 * All of it, then stored to again here and there in the first half: a store may keep
	 * what lies around it, too.
	 */
	advise(0, PAGES, MADV_FREE);
	for (u64 page = 0; page < PAGES / 2; page += 3)
		at(page)[0] = at(page)[1] = 7;
	advise(0, PAGES, MADV_PAGEOUT);
	for (u64 page = 0; page < PAGES; page++) {
		int again = page < PAGES / 2 && page % 3 == 0;
		enum state now = again ? state_from(page, 2) : state(page);

		check(now != MIXED);
		if (again)
			check(at(page)[0] == 7 && at(page)[1] == 7);
		lost += now == GONE;
	}
	/* Nothing came between, so that what was stored to was still there; the others went. */
	for (u64 page = 0; page < PAGES / 2; page += 3)
		check(state_from(page, 2) == OLD);
	check(lost > 0);

	/* Parts of groups: the pages around them stay. */
	for (u64 from = 1; from < GROUP; from += 5) {
		for (u64 to = from + 1; to < GROUP + 3; to += 4) {
			fill();
			advise(from, to, MADV_FREE);
			advise(0, PAGES, MADV_PAGEOUT);
			check(all_old(0, from) && all_old(to, PAGES));
			for (u64 page = from; page < to; page++)
				check(state(page) != MIXED);
		}
	}

	/* What is out goes as well; a read-only page may be given up. */
	fill();
	advise(0, PAGES, MADV_PAGEOUT);
	advise(8, 40, MADV_FREE);
	for (u64 page = 8; page < 40; page++)
		check(state(page) != MIXED);
	check(all_old(0, 8) && all_old(40, PAGES));
	fill();
	expect(call(SYS_mprotect, at(64), 32 * PAGE, PROT_READ | (prot & PROT_MTE)), 0);
	advise(60, 100, MADV_FREE);
	advise(0, PAGES, MADV_PAGEOUT);
	for (u64 page = 60; page < 100; page++)
		check(state(page) != MIXED);
	check(all_old(0, 60) && all_old(100, PAGES));
	expect(call(SYS_munmap, area, PAGES * PAGE), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp;
	run(RW);
	if (auxv_value(auxv, 26) >> 18 & 1) { /* HWCAP2_MTE */
		tagged = 1;
		run(RW | PROT_MTE);
	}
	area = map(PAGE, RW);
	expect(call(SYS_munmap, area, PAGE), 0);
	expect(call(SYS_madvise, area, PAGE, MADV_FREE), -ENOMEM);
	expect(call(SYS_madvise, area, PAGE, MADV_COLD), -ENOMEM);
	expect(call(SYS_madvise, (char *)area + 1, PAGE, MADV_FREE), -EINVAL);
	return finish();
}
