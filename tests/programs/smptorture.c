/*
 * Several processes, each with several threads in one space, all at random: stores of words and tags, advice, rights,
 * mappings, forks, locks. Each thread has words and granules of every page for itself, and knows what they hold.
 *
 *	smptorture [SEED [STEPS [MIB [PROCESSES]]]]
 *
 * The seed gives each thread's steps; what the others do meanwhile it does not.
 */
#include "beside.h"

enum { MOST_PROCESSES = 16 };

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 seed = argc > 1 ? value(argv[1]) : 1, count = argc > 4 ? value(argv[4]) : 6;
	u64 bytes = (argc > 3 ? value(argv[3]) : 8) << 20, mismatches = 0;
	long pids[MOST_PROCESSES];

	(void)envp;
	steps_each = argc > 2 ? value(argv[2]) : 300;
	common_pages = bytes / PAGE;
	has_tags = (auxv_value(auxv, 26) >> 18 & 1) && seed % 3; /* HWCAP2_MTE */
	if (common_pages == 0 || common_pages > MOST_PAGES || count > MOST_PROCESSES)
		return 97;
	for (u64 i = 0; i < count; i++) {
		while ((pids[i] = call(SYS_clone, SIGCHLD)) == -EAGAIN)
			call(SYS_sched_yield);
		if (pids[i] == 0)
			leave(run_beside(seed, i) != 0);
	}
	for (u64 i = 0; i < count; i++) {
		int end = pids[i] > 0 ? ending(pids[i]) : -1;

		if (end != 0) {
			mismatches++;
			put("process "), put_num(i), put(" ended with "), put_num(end), put("\n");
		}
	}
	put_num(mismatches), put(" mismatches\n");
	return mismatches != 0;
}
