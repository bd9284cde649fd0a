/*
 * A tree of processes, three generations deep, all at random at the same memory: stores of pages, words and tags,
 * advice, rights, mappings, forks. Each knows what its own pages hold.
 *
 *	forktorture [SEED [STEPS [MIB [keep|free [swapoff|bear]]]]]
 *
 * With MTE the memory has tags, unless the seed can be divided by 3. One process's steps follow from the seed; what
 * the others do meanwhile does not. With `keep` nothing is given up by MADV_FREE: Linux 6.12 fails otherwise, see
 * lazyfork.c. With `swapoff` the first process turns two swap areas off and on meanwhile, one after the other.
 *
 * With `bear` it goes on over a device that fails or damages pages, see tree.h; the first process looks on.
 */
#define MOST (128 * 256)
#include "tree.h"

/* All of it, and what it came to. */
static int run(u64 steps)
{
	live(steps);
	put_num(steps), put(" operations and "), put_num(forks), put(" forks of the first process, ");
	put_num(refused), put(" refused\n");
	if (refused && !forks)
		mismatch("no fork ever worked", 0);
	put_num(mismatches), put(" mismatches\n");
	return status();
}

/* The same in a child. What came back damaged, each process that had it may report, and nothing else. */
static int run_over_a_bad_device(char *place, u64 steps)
{
	u64 counters[STAT_DAMAGED + 1] = { 0 };
	area = place;
	call(SYS_mlockall, MCL_CURRENT | MCL_ONFAULT);
	long pid = fork();
	if (pid == 0) {
		stay();
		use(place, pages);
		leave(run(steps));
	}
	kids[have++] = pid;
	reap();
	/* Children of those that died. */
	for (int end = 0; call(SYS_wait4, -1, &end, 0, 0) > 0;)
		deaths += end == SIGBUS, mismatches += end != SIGBUS && (end & 255 || end >> 8 < BORE);
	put_num(borne), put(" pages could not be read back, "), put_num(deaths), put(" processes died of one\n");
	if (call(SYS_stats, counters, STAT_DAMAGED + 1) > STAT_DAMAGED) {
		put_num(counters[STAT_DAMAGED]), put(" came back damaged\n");
		if (borne > counters[STAT_DAMAGED] * FAMILY)
			mismatch("more was reported than damaged", 0);
	}
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
	bearing = argc > 5 && argv[5][0] == 'b';
	char *place = map(pages * PAGE + GROUP * PAGE, rights(RW));
	place = (char *)(((u64)place + GROUP * PAGE - 1) & -(GROUP * PAGE));
	if (bearing)
		return run_over_a_bad_device(place, steps);
	use(place, pages);
	return argc > 5 ? run_beside_swapoff(steps) : run(steps);
}
