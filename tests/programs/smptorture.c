/*
 * Several processes, each with several threads in one space, all at random: stores of words and tags, advice, rights,
 * mappings, forks, locks. Each thread has words and granules of every page for itself, and knows what they hold.
 *
 *	smptorture [SEED [STEPS [MIB [PROCESSES]]]]
 *
 * The seed gives each thread's steps; what the others do meanwhile it does not.
 */
#include "threads.h"

enum { THREADS = 4, MOST_PAGES = 4096, MOST_PROCESSES = 16 };

struct life {
	u64 state, mine, mismatches, forks;
	u32 data[MOST_PAGES];
	u8 tags[MOST_PAGES];
};

static struct thread threads[THREADS];
static struct life lives[THREADS];
static char *area;
static u64 pages, steps;
static int tagged;
static word_t held;
static volatile u64 guarded[2];

static u64 number(struct life *life)
{
	life->state ^= life->state << 13, life->state ^= life->state >> 7, life->state ^= life->state << 17;
	return life->state * 0x2545f4914f6cdd1dUL >> 33;
}

static u64 below(struct life *life, u64 end) { return number(life) % end; }

static char *granule(const struct life *life, u64 page) { return area + page * PAGE + 16 * life->mine; }

static void mismatch(struct life *life, const char *what, u64 page)
{
	if (++life->mismatches > 3)
		return;
	put("process "), put_num(call(SYS_getpid)), put(", thread "), put_num(life->mine), put(": ");
	put(what), put(", page "), put_num(page), put("\n");
}

static void look(struct life *life, u64 page)
{
	volatile u64 *at = (volatile u64 *)granule(life, page);
	u64 first = at[0], second = at[1];

	if (first != life->data[page] || second != (life->data[page] ? ~first : 0))
		mismatch(life, "not what was stored", page);
	if (tagged && tag_of(granule(life, page)) != life->tags[page])
		mismatch(life, "not the tag that was stored", page);
}

static void store(struct life *life, u64 page)
{
	volatile u64 *at = (volatile u64 *)granule(life, page);
	u32 value = number(life) | 1;

	at[0] = life->data[page] = value;
	at[1] = ~(u64)value;
	if (tagged && below(life, 2))
		set_tag(granule(life, page), life->tags[page] = below(life, 16));
}

static void succeed(struct life *life, const char *what, long result)
{
	if (result != 0)
		mismatch(life, what, -result);
}

/* Some memory of the thread's own, which comes and goes. */
static void visit(struct life *life)
{
	u64 bytes = (1 + below(life, 20)) * PAGE;
	char *p = map_at(0, bytes, RW, ANON);

	if ((u64)p >= -4095UL) {
		mismatch(life, "mmap", -(u64)p);
		return;
	}
	for (u64 at = 0; at < bytes; at += PAGE)
		*(volatile u64 *)(p + at) = at + 1;
	if (below(life, 2))
		succeed(life, "madvise", call(SYS_madvise, p, bytes, MADV_PAGEOUT));
	for (u64 at = 0; at < bytes; at += PAGE)
		if (*(volatile u64 *)(p + at) != at + 1)
			mismatch(life, "not what was stored for a while", at / PAGE);
	succeed(life, "munmap", call(SYS_munmap, p, bytes));
}

/* The child is this thread alone: what the thread knows of its own is so there as well. */
static void bear(struct life *life)
{
	long pid = call(SYS_clone, SIGCHLD);

	if (pid == 0) {
		life->mismatches = 0;
		for (u64 i = 0; i < 32; i++) {
			look(life, below(life, pages));
			store(life, below(life, pages));
		}
		for (u64 page = 0; page < pages; page += 7)
			look(life, page);
		leave(life->mismatches != 0);
	}
	if (pid == -EAGAIN || pid == -ENOMEM)
		return;
	if (pid < 0) {
		mismatch(life, "clone", -pid);
		return;
	}
	life->forks++;
	int end = ending(pid);

	if (end != 0)
		mismatch(life, "a child's end", end);
}

static u64 live(struct thread *me)
{
	struct life *life = me->arg;

	for (u64 step = 0; step < steps; step++) {
		u64 page = below(life, pages), count = 1 + below(life, 64);

		if (count > pages - page)
			count = pages - page;
		switch (below(life, 64)) {
		case 0 ... 27:
			for (u64 i = 0; i < count; i++)
				store(life, page + i);
			break;
		case 28 ... 47:
			for (u64 i = 0; i < count; i++)
				look(life, page + i);
			break;
		case 48 ... 51:
			succeed(life, "madvise", call(SYS_madvise, area + page * PAGE, count * PAGE, MADV_PAGEOUT));
			break;
		case 52 ... 53:
			succeed(life, "madvise", call(SYS_madvise, area + page * PAGE, count * PAGE, MADV_COLD));
			break;
		case 54 ... 55:
			succeed(life, "mprotect", call(SYS_mprotect, area + page * PAGE, count * PAGE,
						       RW | (tagged ? PROT_MTE : 0) | (below(life, 2) ? PROT_EXEC : 0)));
			break;
		case 56 ... 58:
			visit(life);
			break;
		case 59 ... 60:
			lock(&held);
			if (guarded[0]++ != guarded[1])
				mismatch(life, "two held one lock", 0);
			guarded[1]++;
			unlock(&held);
			break;
		case 61:
			if (step % 4 == 0)
				bear(life);
			break;
		default:
			call(SYS_sched_yield);
		}
	}
	for (u64 page = 0; page < pages; page++)
		look(life, page);
	return life->mismatches;
}

static u64 run(u64 seed, u64 process)
{
	u64 mismatches = 0;

	area = map(pages * PAGE, RW | (tagged ? PROT_MTE : 0));
	for (u64 i = 0; i < THREADS; i++) {
		lives[i].mine = i;
		lives[i].state = (seed * 64 + process * THREADS + i + 1) * 0x9e3779b97f4a7c15UL;
		/* There may be too many for a while. */
		while (start(&threads[i], live, &lives[i]) == -EAGAIN)
			call(SYS_sched_yield);
		if (threads[i].made <= 0)
			return 1000;
	}
	for (u64 i = 0; i < THREADS; i++) {
		join(&threads[i]);
		mismatches += threads[i].result;
	}
	return mismatches;
}

static u64 value(const char *s)
{
	u64 n = 0;

	while (*s)
		n = n * 10 + *s++ - '0';
	return n;
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 seed = argc > 1 ? value(argv[1]) : 1, count = argc > 4 ? value(argv[4]) : 6;
	u64 bytes = (argc > 3 ? value(argv[3]) : 8) << 20, mismatches = 0;
	long pids[MOST_PROCESSES];

	(void)envp;
	steps = argc > 2 ? value(argv[2]) : 300;
	pages = bytes / PAGE;
	tagged = (auxv_value(auxv, 26) >> 18 & 1) && seed % 3; /* HWCAP2_MTE */
	if (pages == 0 || pages > MOST_PAGES || count > MOST_PROCESSES)
		return 97;
	for (u64 i = 0; i < count; i++) {
		while ((pids[i] = call(SYS_clone, SIGCHLD)) == -EAGAIN)
			call(SYS_sched_yield);
		if (pids[i] == 0)
			leave(run(seed, i) != 0);
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
