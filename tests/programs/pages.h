/*
 * Pages with a pattern, and what a process expects of them: data, tags, what was given up. The expectations are in
 * memory that each process has for itself after a fork. And scripts, by which several processes take turns.
 */
#ifndef PAGES_H
#define PAGES_H

#include "ebb.h"

#define GRANULES (PAGE / 16)
#define GROUP 16
#ifndef MOST /* pages */
#define MOST 128
#endif

static char *area;
static u64 pages;
static int tagged;

/*
 * The first word and the first tag have values of their own, so that one store tells two pages apart. `maybe`: it
 * was given up by MADV_FREE, and is wholly as it was or wholly zero until the next store; OWN_*: what was stored since.
 */
enum { OWN_WORD = 1, OWN_TAG = 2 };
static struct page { u64 word; u32 data, tags; u8 tag, maybe, own, read_only; } model[MOST];

static u64 word(u64 seed, u64 i) { return seed ? (seed * 0x9e3779b97f4a7c15UL) ^ (i * 0xbf58476d1ce4e5b9UL) : 0; }

/* All alike for every other seed, different from granule to granule for the rest. */
static unsigned tag(u64 seed, u64 g)
{
	return seed == 0 ? 0 : seed & 1 ? seed / 2 & 15 : (seed * 0x94d049bb133111ebUL + g * 0x9e3779b97f4a7c15UL) >> 60;
}

static u64 *at(u64 page) { return (u64 *)(area + page * PAGE); }
static char *granule(u64 page, u64 g) { return area + page * PAGE + g * 16; }

static void store_data(u64 page, u64 seed)
{
	struct page *m = &model[page];

	m->data = seed, m->word = word(seed, 0);
	for (u64 i = 0; i < PAGE / 8; i++)
		((volatile u64 *)at(page))[i] = word(seed, i);
}

static void store_tags(u64 page, u64 seed)
{
	struct page *m = &model[page];

	m->tags = seed, m->tag = tag(seed, 0);
	for (u64 g = 0; g < GRANULES; g++)
		set_tag(granule(page, g), tag(seed, g));
}

/* All of a page. */
static void store(u64 page, u64 seed)
{
	store_data(page, seed);
	if (tagged)
		store_tags(page, seed + 1);
	model[page].maybe = model[page].own = 0;
}

/* One word of it. */
__attribute__((unused)) static void store_word(u64 page, u64 value)
{
	*(volatile u64 *)at(page) = model[page].word = value;
	model[page].own |= OWN_WORD;
}

/* One tag, and no data. */
__attribute__((unused)) static void store_tag(u64 page, unsigned value)
{
	set_tag(at(page), model[page].tag = value & 15);
	model[page].own |= OWN_TAG;
}

__attribute__((unused)) static void expect_zero(u64 page)
{
	u8 read_only = model[page].read_only;

	memset(&model[page], 0, sizeof(model[page]));
	model[page].read_only = read_only;
}

/* Does the page hold that? */
static int holds(u64 page, u64 data, u64 first_word, u64 tags, unsigned first_tag)
{
	volatile u64 *p = at(page);
	u64 wrong = p[0] ^ first_word;

	for (u64 i = 1; i < PAGE / 8; i++)
		wrong |= p[i] ^ word(data, i);
	if (tagged) {
		wrong |= tag_of(at(page)) ^ first_tag;
		for (u64 g = 1; g < GRANULES; g++)
			wrong |= tag_of(granule(page, g)) ^ tag(tags, g);
	}
	return wrong == 0;
}

/* Is the page as expected? What is seen of one that was given up is kept in mind. */
static int right(u64 page)
{
	struct page *m = &model[page];

	if (holds(page, m->data, m->word, m->tags, m->tag)) {
		if (m->own)
			m->maybe = 0;
	} else {
		u64 first_word = m->own & OWN_WORD ? m->word : 0;
		unsigned first_tag = m->own & OWN_TAG ? m->tag : 0;

		if (!m->maybe || !holds(page, 0, first_word, 0, first_tag))
			return 0;
		m->data = m->tags = 0, m->word = first_word, m->tag = first_tag, m->maybe = 0;
	}
	m->own = 0;
	return 1;
}

static u64 wrong(void)
{
	u64 count = 0;

	for (u64 page = 0; page < pages; page++)
		count += !right(page);
	return count;
}

/* The pages are all stored to. */
static void use(void *memory, u64 count)
{
	area = memory, pages = count;
	memset(model, 0, sizeof(model));
	for (u64 page = 0; page < pages; page++)
		store(page, page + 1);
}

/* Every n-th page from the first-th on. */
__attribute__((unused)) static void store_some(u64 first, u64 n, u64 salt)
{
	for (u64 page = first; page < pages; page += n)
		store(page, page + salt);
}

__attribute__((unused)) static void advise(u64 from, u64 to, int advice)
{
	expect(call(SYS_madvise, at(from), (to - from) * PAGE, advice), 0);
}

/* Whether pages were lost when they were given up before has to be known by then. */
__attribute__((unused)) static long give_up(u64 from, u64 to)
{
	for (u64 page = from; page < to; page++)
		if (model[page].own)
			right(page);
	long result = call(SYS_madvise, at(from), (to - from) * PAGE, MADV_FREE);
	for (u64 page = from; page < to; page++)
		model[page].maybe = 1;
	return result;
}

/*
 * A script is a row of letters, each something that a process does to the pages, and digits: from here on it is
 * that process's turn. The first process is 0, and the n-th fork makes process n. Each checks its pages at its end.
 *
 *	F fork			r check all		w store to a third of the pages
 *	X end (not 0)		h check every other	s store one word to each
 *	J wait for the last	o page out		v store one word to every fifth
 *	  child			c MADV_COLD		t store one tag to each (without tags: one word)
 *	l MADV_FREE all		d MADV_DONTNEED the	u unmap the second half and map it again
 *	k MADV_FREE the middle	  middle		p no access, read only, and back
 *	m take much memory, and give it back
 */
static u64 pressure; /* MiB, for m */

/* Takes memory, with data that no one can make smaller, in a process of its own. */
static void press(void)
{
	long pid = fork();

	if (pid == 0) {
		u64 x = 88172645463325252UL, *p = map_at(0, pressure * MIB, RW, ANON | MAP_NORESERVE);

		for (u64 i = 0; i < pressure * MIB / 8; i += 16) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			p[i] = x;
		}
		leave_checked();
	}
	expect(ending(pid), 0);
}

static void act(char what, int me, u64 salt)
{
	u64 from = pages / 4 + 1, to = pages - pages / 4 + 1;
	int prot = RW | (tagged ? PROT_MTE : 0);

	switch (what) {
	case 'o': advise(0, pages, MADV_PAGEOUT); break;
	case 'c': advise(0, pages, MADV_COLD); break;
	case 'r': expect(wrong(), 0); break;
	case 'h':
		for (u64 page = 1; page < pages; page += 2)
			check(right(page));
		break;
	case 'w': store_some(me % 3, 3, salt); break;
	case 's':
	case 'v':
		for (u64 page = 0; page < pages; page += what == 's' ? 1 : 5)
			store_word(page, salt + page);
		break;
	case 't':
		for (u64 page = 0; page < pages; page++) {
			if (tagged)
				store_tag(page, model[page].tag ^ (salt / 1000 % 15 + 1));
			else
				store_word(page, salt + page);
		}
		break;
	case 'd':
	case 'u':
		if (what == 'u')
			to = pages;
		if (what == 'd')
			advise(from, to, MADV_DONTNEED);
		else
			expect(map_at(at(from), (to - from) * PAGE, prot, ANON | MAP_FIXED), at(from));
		for (u64 page = from; page < to; page++)
			expect_zero(page);
		break;
	case 'l': expect(give_up(0, pages), 0); break;
	case 'k': expect(give_up(from, to), 0); break;
	case 'p':
		expect(call(SYS_mprotect, area, pages * PAGE, PROT_NONE), 0);
		expect(call(SYS_mprotect, area, pages * PAGE, prot & ~PROT_WRITE), 0);
		check(right(0));
		expect(call(SYS_mprotect, area, pages * PAGE, prot), 0);
		break;
	case 'm':
		if (pressure)
			press();
		break;
	default: check(!"a letter of a script");
	}
}

static int first_process;

/* Failures in a process are failures of the script: of its parent by its status, else by ending the program. */
static void tell(const char *script, int me)
{
	put(script), put(tagged ? " with tags" : ""), put(" fails in process "), put_num(me), put("\n");
	if (me && call(SYS_getppid) == 1)
		kill(first_process, SIGTERM);
}

/* Plays it in a mapping of that many pages, the first of which is the off-th of a group. */
__attribute__((unused)) static void play(const char *script, u64 count, u64 off)
{
	long turns[24], kids[4];
	int me = 0, born = 0, have = 0, turn = 0, made = 0, before = failures;
	char now = '0';
	u64 salt = 0;

	first_process = call(SYS_getpid);
	/* The gates are made before the memory, so that they have no share in it. */
	for (const char *s = script; *s; s++)
		if (*s >= '0' && *s <= '9' && *s != now)
			turns[made++] = gate(), now = *s;
	char *whole = map((count + 2 * GROUP) * PAGE, PROT_NONE);
	char *start = (char *)(((u64)whole + GROUP * PAGE - 1) & -(GROUP * PAGE)) + off * PAGE;
	use(map_at(start, count * PAGE, RW | (tagged ? PROT_MTE : 0), ANON | MAP_FIXED), count);
	now = '0';
	for (const char *s = script; *s; s++) {
		int mine = me == now - '0';

		salt += 1000;
		if (*s >= '0' && *s <= '9') {
			if (*s == now)
				continue;
			if (mine && me && failures && call(SYS_getppid) == 1)
				tell(script, me);
			if (mine)
				open_gate(turns[turn]);
			pass(turns[turn++]);
			now = *s;
		} else if (*s == 'F') {
			born++;
			long pid = mine ? fork() : 1;

			if (pid == 0)
				me = born, have = 0;
			else if (mine)
				kids[have++] = pid;
		} else if (mine && *s == 'J') {
			expect(ending(kids[--have]), 0);
		} else if (mine && *s == 'X' && me) {
			expect(wrong(), 0);
			if (failures)
				tell(script, me);
			if (turn < made)
				open_gate(turns[turn]);
			leave_checked();
		} else if (mine) {
			act(*s, me, salt);
		}
	}
	expect(wrong(), 0);
	while (have)
		expect(ending(kids[--have]), 0);
	expect(wrong(), 0);
	if (failures > (me ? 0 : before))
		tell(script, me);
	if (me)
		leave_checked();
	/* Orphans are process 1's. */
	for (int status = 0; first_process == 1 && call(SYS_wait4, -1, &status, 0, 0) > 0;)
		expect(status, 0);
	expect(call(SYS_munmap, whole, (count + 2 * GROUP) * PAGE), 0);
}

#endif
