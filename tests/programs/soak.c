/*
 * All at once, for a time: eight processes with the trees that come from them (tree.h), one of threads (beside.h), and
 * swap areas that are turned off and on, one after the other, in more memory than there is. The time begins when each
 * has stored to all of its memory, and what it looks at in the end comes on top.
 *
 *	soak [SECONDS [SEED [MIB]]]
 *
 * MIB is what all of them store to before any forks: two and a half times the machine's memory, if it is not given.
 * With MTE the memory has tags, unless the seed can be divided by 3. Where the areas are not devices of these names
 * they stay. Linux 6.12 fails where pages are given up by MADV_FREE: lazyfork.c says why. A seed of which the last
 * digit is 0 has none of that.
 */
#define MOST (128 * 256)
#include "tree.h"
#include "beside.h"

enum { PROCESSES = 8, WINDOW = 96, STILL_THERE = 1 << 20 };

static u64 seconds;

/* Each begins to count when its memory is full. */
static void last(void) { deadline_ns = monotonic_ns() + seconds * 1000000000; }

/* A line, written at once: others write as well. */
static char line[256];
static u64 line_length;

static void add_text(const char *text)
{
	u64 more = length(text);

	if (more < sizeof(line) - line_length)
		memcpy(line + line_length, text, more), line_length += more;
}

static void add_number(const char *before, u64 number_)
{
	char text[24], *p = text + sizeof(text) - 1;

	*p = 0;
	do
		*--p = '0' + number_ % 10;
	while (number_ /= 10);
	add_text(before), add_text(p);
}

static void end_line(void)
{
	add_text("\n");
	call(SYS_write, 1, line, line_length);
	line_length = 0;
}

static int run_tree(u64 seed, u64 process, u64 bytes)
{
	state = (seed * 64 + process + 1) * 0x9e3779b97f4a7c15UL;
	pages = bytes / PAGE, window = WINDOW, keep = seed % 10 == 0;
	char *place = map(pages * PAGE + GROUP * PAGE, rights(RW));

	use((char *)(((u64)place + GROUP * PAGE - 1) & -(GROUP * PAGE)), pages);
	last();
	live(-1UL);
	add_number("process ", process), add_number(": ", done), add_number(" steps, ", forks);
	add_number(" forks, ", refused), add_number(" refused, ", mismatches), add_text(" wrong"), end_line();
	return mismatches != 0;
}

static int run_threads(u64 seed, u64 bytes)
{
	u64 all = 0, born = 0, amisses;

	common_pages = bytes / PAGE < MOST_PAGES ? bytes / PAGE : MOST_PAGES;
	has_tags = tagged, steps_each = -1UL;
	last();
	amisses = run_beside(seed, PROCESSES);
	for (u64 i = 0; i < THREADS; i++)
		all += lives[i].done, born += lives[i].forks;
	add_number("threads: ", all), add_number(" steps, ", born), add_number(" forks, ", amisses), add_text(" wrong");
	end_line();
	return amisses != 0;
}

/* Without memory for what is in it an area stays; so it does when a fork was faster. */
static int run_swapoff(void)
{
	static const char *const names[] = { "/dev/ram0", "/dev/ram1" };
	u64 times = 0, tries = 0, lost = 0;

	for (last(); !over(); sleep_us(50000)) {
		const char *name = names[tries++ % 2];
		long result = call(SYS_swapoff, name);

		if (result == 0)
			times++, lost += call(SYS_swapon, name, 0) != 0;
		else if (result == -ENOENT || result == -EINVAL || result == -EPERM)
			break;
		else
			lost += result != -ENOMEM && result != -EBUSY;
	}
	add_number("swapoff: ", times), add_number(" times in ", tries), add_number(" tries, ", lost);
	add_text(" wrong"), end_line();
	return lost != 0;
}

static u64 machine_bytes(void)
{
	struct { long up; u64 loads[3], ram, ram_free, shared, buffer, swap, swap_free; u64 rest[8]; } info;

	memset(&info, 0, sizeof(info));
	call(SYS_sysinfo, &info);
	return info.ram * (u32)info.rest[3] /* its unit */;
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 seed = argc > 2 ? value(argv[2]) : 1, wrong_ends = 0;
	u64 bytes = argc > 3 ? value(argv[3]) * MIB : machine_bytes() / 2 * 5, each = bytes / (PROCESSES + 1);
	long pids[PROCESSES + 2];
	int ends[PROCESSES + 2];

	(void)envp;
	seconds = argc > 1 ? value(argv[1]) : 10;
	tagged = (auxv_value(auxv, 26) >> 18 & 1) && seed % 3; /* HWCAP2_MTE */
	if (each / PAGE == 0 || each / PAGE > MOST)
		return 97;
	for (u64 i = 0; i < PROCESSES + 2; i++) {
		ends[i] = STILL_THERE;
		while ((pids[i] = call(SYS_clone, SIGCHLD)) == -EAGAIN) {
			/* What has ended makes room. */
			for (u64 j = 0; j < i; j++)
				if (ends[j] == STILL_THERE)
					call(SYS_wait4, pids[j], &ends[j], WNOHANG, 0);
			sleep_us(1000);
		}
		if (pids[i] == 0)
			leave(i < PROCESSES ? run_tree(seed, i, each) : i == PROCESSES ? run_threads(seed, each) : run_swapoff());
	}
	for (u64 i = 0; i < PROCESSES + 2; i++) {
		if (ends[i] == STILL_THERE)
			ends[i] = pids[i] > 0 ? ending(pids[i]) : -1;
		if (ends[i] != 0)
			wrong_ends++, add_number("process ", i), add_number(" ended with ", ends[i]), end_line();
	}
	put_num(wrong_ends), put(" mismatches\n");
	return wrong_ends != 0;
}
