/*
 * A process at random, and the processes that come from it, three generations deep: stores of pages, words and tags,
 * advice, rights, mappings, locks, forks. Each knows what its own pages hold.
 *
 * With `bear` it goes on over a device that fails or damages pages. A page that cannot be read back, so often as it is
 * tried, is counted; a child that reads it nevertheless must die of that, with SIGBUS; then its contents are given up.
 * All other pages must be as they were. Each process keeps in memory what it needs itself, and its parent has its count
 * from its status.
 */
#ifndef TREE_H
#define TREE_H

#include "pages.h"

/* 1 + 2 + 4 + 8 processes may share a page. */
enum { DEPTH = 3, KIDS = 2, FAMILY = 15, TRIES = 8 };
/* What a process ends with that counts: so many pages above BORE, or MISMATCH. */
enum { MISMATCH = 1, BORE = 2, MOST_BORNE = 253 };
enum { SYS_stats = 0x6501, STAT_DAMAGED = 12 };

static u64 state, mismatches, forks, refused, done, borne, deaths;
/* Pages that most steps are about, for a while; 0: each is about any. */
static u64 window, hot;
/* What is locked in memory: one run. */
static u64 locked_from, locked_to;
static int depth, have, keep, bearing;
static long kids[KIDS];

static u64 number(void)
{
	state ^= state << 13, state ^= state >> 7, state ^= state << 17;
	return state * 0x2545f4914f6cdd1dUL >> 33;
}

static u64 below(u64 end) { return number() % end; }

static u64 any_page(void)
{
	if (!window || !below(4))
		return below(pages);
	if (!below(128))
		hot = below(pages);
	return (hot + below(window)) % pages;
}

static void mismatch(const char *what, u64 page)
{
	if (++mismatches > 5)
		return;
	put("process "), put_num(call(SYS_getpid)), put(", generation "), put_num(depth), put(": ");
	put(what), put(", page "), put_num(page), put("\n");
}

/* What the process cannot do without stays in memory. */
static void stay(void)
{
	if (!bearing)
		return;
	if (call(SYS_mlockall, MCL_CURRENT | MCL_ONFAULT) || call(SYS_munlock, area, pages * PAGE))
		mismatch("mlockall", 0);
}

static long touch(u64 page) { return call(SYS_madvise, at(page), PAGE, MADV_POPULATE_READ); }

/* Brings a page in, if that is not sure to work, or gives it up. */
static void ready(u64 page)
{
	long error = bearing ? -EFAULT : 0;

	for (int tries = 0; tries < TRIES && error == -EFAULT; tries++)
		error = touch(page);
	if (error == 0)
		return;
	if (error != -EFAULT)
		mismatch("MADV_POPULATE_READ", page);
	borne++;
	long pid = call(SYS_clone, SIGCHLD);
	if (pid == 0) {
		(void)*(volatile u64 *)at(page);
		leave(0);
	}
	if (pid > 0 && ending(pid) != SIGBUS)
		mismatch("what could not be read was read", page);
	if (call(SYS_madvise, at(page), PAGE, MADV_DONTNEED))
		mismatch("MADV_DONTNEED", page);
	expect_zero(page);
}

static void look(u64 page)
{
	ready(page);
	if (!right(page))
		mismatch("not what was stored", page);
}

static int rights(int prot) { return prot | (tagged ? PROT_MTE : 0); }

static void succeed(const char *what, long result, u64 page)
{
	if (result != 0)
		mismatch(what, page);
}

static void protect(u64 from, u64 to, int prot)
{
	succeed("mprotect", call(SYS_mprotect, at(from), (to - from) * PAGE, rights(prot)), from);
	for (u64 page = from; page < to; page++)
		model[page].read_only = !(prot & PROT_WRITE);
}

/* Will a store to this page work? If not, the kernel's fails as well; and now and then it is made to work. */
static int can_store(u64 page)
{
	ready(page);
	if (!model[page].read_only)
		return 1;
	if (writable(at(page)))
		mismatch("a store to memory to be read only", page);
	if (below(2))
		return 0;
	protect(page, page + 1, RW);
	return 1;
}

static void reap(void)
{
	int end = ending(kids[--have]);

	if (bearing && end == SIGBUS) {
		/* Between the page's coming in and the access it left again. */
		deaths++;
	} else if (bearing && end >> 8 >= BORE && !(end & 255)) {
		borne += (end >> 8) - BORE;
	} else if (end != 0) {
		put("a child ended with "), put_num(end), put("\n");
		mismatches++;
	}
}

/* Most advice refuses what is locked. */
static void unlock_meeting(u64 from, u64 to)
{
	if (from >= locked_to || to <= locked_from)
		return;
	succeed("munlock", call(SYS_munlock, at(locked_from), (locked_to - locked_from) * PAGE), locked_from);
	locked_from = locked_to = 0;
}

static void lock_some(u64 from, u64 to)
{
	unlock_meeting(locked_from, locked_to);
	succeed("mlock", call(SYS_mlock, at(from), (to - from) * PAGE), from);
	locked_from = from, locked_to = to;
}

static void advise_some(u64 from, u64 to, int advice)
{
	for (u64 page = from; page < to && advice == MADV_POPULATE_WRITE; page++)
		if (model[page].read_only)
			advice = MADV_POPULATE_READ;
	succeed("madvise", call(SYS_madvise, at(from), (to - from) * PAGE, advice), from);
}

static int status(void)
{
	return mismatches ? MISMATCH : !bearing ? 0 : BORE + (int)(borne < MOST_BORNE ? borne : MOST_BORNE);
}

static void live(u64 steps);

static void branch(u64 steps)
{
	u64 salt = number();
	long pid = call(SYS_clone, SIGCHLD);

	if (pid == 0) {
		depth++, have = 0, mismatches = borne = locked_from = locked_to = 0;
		stay();
		state ^= salt * 0x9e3779b97f4a7c15UL | 1;
		live(deadline_ns ? below(200) : steps / 6 + 20);
		leave(status());
	}
	if (pid < 0)
		refused++;
	else
		forks++, kids[have++] = pid;
}

static void step(u64 left)
{
	static const int others[] = {
		MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_NORMAL,
	};
	/* Over a bad device nothing that brings in more than a page at a time: the last but the forks. */
	u64 what = below(bearing ? 64 : 72), from = any_page(), length = 1 + below(what & 1 ? 4 : 24), to = from + length;

	if (to > pages)
		to = pages;
	u64 bytes = (to - from) * PAGE;

	done++;
	if (what >= 40 && what < 54)
		unlock_meeting(from, to);
	if (what < 8) {
		for (u64 page = from; page < to && page < from + 4; page++)
			if (can_store(page))
				store(page, number() & 0xffffff);
	} else if (what < 20) {
		for (u64 page = from; page < to; page++)
			if (can_store(page))
				store_word(page, number());
	} else if (what < 34) {
		for (u64 page = from; page < to; page++)
			look(page);
	} else if (what < 40) {
		for (u64 page = from; page < to && tagged; page++)
			if (can_store(page))
				store_tag(page, number());
	} else if (what < 46) {
		succeed("MADV_PAGEOUT", call(SYS_madvise, at(from), bytes, MADV_PAGEOUT), from);
	} else if (what < 50) {
		if (keep)
			return;
		for (u64 page = from; page < to; page++)
			ready(page);
		succeed("MADV_FREE", give_up(from, to), from);
	} else if (what < 52) {
		succeed("MADV_DONTNEED", call(SYS_madvise, at(from), bytes, MADV_DONTNEED), from);
		for (u64 page = from; page < to; page++)
			expect_zero(page);
	} else if (what < 54) {
		succeed("MADV_COLD", call(SYS_madvise, at(from), bytes, MADV_COLD), from);
	} else if (what < 57) {
		protect(from, to, PROT_READ);
	} else if (what < 60) {
		protect(from, to, below(4) ? RW : RW | PROT_EXEC);
	} else if (what < 62) {
		unlock_meeting(from, to);
		succeed("munmap", call(SYS_munmap, at(from), bytes), from);
		if (mapped(at(from), bytes))
			mismatch("still mapped", from);
		if (map_at(at(from), bytes, rights(RW), ANON | MAP_FIXED) != at(from))
			mismatch("mmap", from);
		for (u64 page = from; page < to; page++)
			expect_zero(page), model[page].read_only = 0;
	} else if (what < 68 && !bearing) {
		advise_some(from, to, others[below(sizeof(others) / sizeof(*others))]);
	} else if (what < 70 && !bearing) {
		lock_some(from, to);
	} else if (have && (have == KIDS || below(2))) {
		reap();
	} else if (depth < DEPTH) {
		branch(left);
	}
}

static void live(u64 steps)
{
	/* Where it is much, each child looks at some of it; where time is short, at little. */
	u64 every = depth ? 1 + pages / (deadline_ns ? 256 : 2048) : 1;

	while (steps-- && !over())
		step(steps);
	for (u64 page = below(every); !depth && !deadline_ns && page < pages; page += every)
		look(page);
	while (have)
		reap();
	for (u64 page = below(every); page < pages; page += every)
		look(page);
}

#endif
