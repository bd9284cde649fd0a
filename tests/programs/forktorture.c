/*
 * A tree of processes, three generations deep, all at random at the same memory: stores of pages, words and tags,
 * advice, rights, mappings, forks. Each knows what its own pages hold.
 *
 *	forktorture [SEED [STEPS [MIB [keep|free [swapoff]]]]]
 *
 * With MTE the memory has tags, unless the seed can be divided by 3. One process's steps follow from the seed; what
 * the others do meanwhile does not. With `keep` nothing is given up by MADV_FREE: Linux 6.12 fails otherwise, see
 * lazyfork.c. With `swapoff` the first process turns two swap areas off and on meanwhile, one after the other.
 */
#define MOST (128 * 256)
#include "pages.h"

enum { DEPTH = 3, KIDS = 2 };

static u64 state, mismatches, forks, refused;
static int depth, have, keep;
static long kids[KIDS];

static u64 number(void)
{
	state ^= state << 13, state ^= state >> 7, state ^= state << 17;
	return state * 0x2545f4914f6cdd1dUL >> 33;
}

static u64 below(u64 end) { return number() % end; }

static void mismatch(const char *what, u64 page)
{
	if (++mismatches > 5)
		return;
	put("process "), put_num(call(SYS_getpid)), put(", generation "), put_num(depth), put(": ");
	put(what), put(", page "), put_num(page), put("\n");
}

static void look(u64 page)
{
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
		model[page].read_only = prot != RW;
}

/* Will a store to this page work? If not, the kernel's fails as well; and now and then it is made to work. */
static int can_store(u64 page)
{
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

	if (end != 0) {
		put("a child ended with "), put_num(end), put("\n");
		mismatches++;
	}
}

static void live(u64 steps);

static void branch(u64 steps)
{
	u64 salt = number();
	long pid = call(SYS_clone, SIGCHLD);

	if (pid == 0) {
		depth++, have = 0, mismatches = 0;
		state ^= salt * 0x9e3779b97f4a7c15UL | 1;
		live(steps / 6 + 20);
		leave(mismatches != 0);
	}
	if (pid < 0)
		refused++;
	else
		forks++, kids[have++] = pid;
}

static void step(u64 left)
{
	u64 what = below(64), from = below(pages), length = 1 + below(what & 1 ? 4 : 24), to = from + length;

	if (to > pages)
		to = pages;
	u64 bytes = (to - from) * PAGE;

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
		protect(from, to, RW);
	} else if (what < 62) {
		succeed("munmap", call(SYS_munmap, at(from), bytes), from);
		if (mapped(at(from), bytes))
			mismatch("still mapped", from);
		if (map_at(at(from), bytes, rights(RW), ANON | MAP_FIXED) != at(from))
			mismatch("mmap", from);
		for (u64 page = from; page < to; page++)
			expect_zero(page), model[page].read_only = 0;
	} else if (have && (have == KIDS || below(2))) {
		reap();
	} else if (depth < DEPTH) {
		branch(left);
	}
}

static void live(u64 steps)
{
	/* Where it is much, each child looks at some of it. */
	u64 every = depth ? 1 + pages / 2048 : 1;

	while (steps--)
		step(steps);
	for (u64 page = below(every); !depth && page < pages; page += every)
		look(page);
	while (have)
		reap();
	for (u64 page = below(every); page < pages; page += every)
		look(page);
}

static u64 value(const char *text)
{
	u64 n = 0;

	while (*text)
		n = n * 10 + *text++ - '0';
	return n;
}

/* All of it, and what it came to. */
static int run(u64 steps)
{
	live(steps);
	put_num(steps), put(" operations and "), put_num(forks), put(" forks of the first process, ");
	put_num(refused), put(" refused\n");
	if (refused && !forks)
		mismatch("no fork ever worked", 0);
	put_num(mismatches), put(" mismatches\n");
	return mismatches != 0;
}

/* The same in a child, and swap areas that come and go until it has ended. */
static int run_beside_swapoff(u64 steps)
{
	static const char *const names[] = { "/dev/ram0", "/dev/ram1" };
	u64 times = 0, tries = 0, lost = 0;
	long pid = fork(), end = 0;
	int status = -1;

	if (pid == 0)
		leave(run(steps));
	while (end == 0) {
		const char *name = names[tries++ % 2];

		/* Without memory for what is in it the area stays; so it does when a fork was faster. */
		if (call(SYS_swapoff, name) == 0) {
			times++;
			lost += call(SYS_swapon, name, 0) != 0;
		}
		call(SYS_sched_yield);
		end = call(SYS_wait4, pid, &status, WNOHANG, 0);
	}
	put_num(times), put(" times swapoff in "), put_num(tries), put(" tries\n");
	return status != 0 || lost || times == 0;
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 seed = argc > 1 ? value(argv[1]) : 1, steps = argc > 2 ? value(argv[2]) : 1500;

	(void)envp;
	state = (seed + 1) * 0x9e3779b97f4a7c15UL;
	tagged = (auxv_value(auxv, 26) >> 18 & 1) && seed % 3; /* HWCAP2_MTE */
	pages = (argc > 3 ? value(argv[3]) : 4) * MIB / PAGE;
	keep = argc > 4 && argv[4][0] == 'k';
	if (pages == 0 || pages > MOST)
		return 97;
	char *place = map(pages * PAGE + GROUP * PAGE, rights(RW));
	use((char *)(((u64)place + GROUP * PAGE - 1) & -(GROUP * PAGE)), pages);
	return argc > 5 ? run_beside_swapoff(steps) : run(steps);
}
