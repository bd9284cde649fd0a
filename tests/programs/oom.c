/*
 * Memory runs out: who dies, and what becomes of the others.
 *
 *   oom hog [HOW]       a child takes memory without end, beside small ones that use theirs all the time; it dies.
 *                       HOW: store (the default), populate, copy: who touches its pages; threads: it has some;
 *                       break: its data grow, locked, while a thread of it forks
 *   oom sleeper HOW N   a large child sleeps, N small ones take more than is left: the sleeper dies, none of the others.
 *                       HOW: nap, wait, futex, vfork: what it sleeps in
 *   oom equals          two of one size sleep, and another one takes more than is left: the younger dies
 *   oom first           the first program itself takes memory without end: it dies last
 */
#include "threads.h"

enum { BYSTANDERS = 3, BYSTANDER_BYTES = 1 << 20, MOST = 8 };

static void nap(u64 ms)
{
	u64 time[2] = { ms / 1000, ms % 1000 * 1000000 };

	call(SYS_nanosleep, time, 0);
}

static __attribute__((noreturn)) void sleep_for_ever(void)
{
	for (;;)
		nap(1000000);
}

/* Memory and swap that are free, in bytes. */
static u64 free_bytes(void)
{
	u64 info[16];

	expect(call(SYS_sysinfo, info), 0);
	return info[5] + info[9];
}

/* Word i of a program's data: no page repeats one word, and no two are alike. */
static u64 word(u64 seed, u64 i) { return (seed << 32 | i) * 6364136223846793005UL + 1; }

/* Two words of each page. */
static void fill(char *p, u64 bytes, u64 seed)
{
	for (u64 at = 0; at < bytes; at += PAGE) {
		*(u64 *)(p + at) = word(seed, at);
		*(u64 *)(p + at + PAGE / 2) = word(seed, at + 1);
	}
}

static int is_filled(char *p, u64 bytes, u64 seed)
{
	for (u64 at = 0; at < bytes; at += PAGE)
		if (*(u64 *)(p + at) != word(seed, at) || *(u64 *)(p + at + PAGE / 2) != word(seed, at + 1))
			return 0;
	return 1;
}

/* A child that says by its life that the others are to go on. */
static long flag_up(void)
{
	long pid = fork();

	if (pid == 0)
		sleep_for_ever();
	return pid;
}

static void flag_down(long flag)
{
	kill(flag, SIGKILL);
	expect(ending(flag), SIGKILL);
}

/* ---- those who only happen to be there ---- */

/* Data, and tags where there are such: of every granule another, so that a page's take a room of their own. */
static long bystander(u64 seed, long flag)
{
	long pid = fork();

	if (pid)
		return pid;
	char *p = map_at(0, BYSTANDER_BYTES, RW | PROT_MTE, ANON);
	int tagged = (u64)p < -4095UL;

	if (!tagged)
		p = map(BYSTANDER_BYTES, RW);
	fill(p, BYSTANDER_BYTES, seed);
	for (u64 at = 0; tagged && at < BYSTANDER_BYTES; at += 16)
		set_tag(p + at, word(seed, at) >> 40 & 15);
	for (int over = 0; !over && !failures;) {
		over = kill(flag, 0) != 0;
		check(is_filled(p, BYSTANDER_BYTES, seed));
		for (u64 at = 0; tagged && at < BYSTANDER_BYTES; at += over ? 16 : PAGE)
			if (tag_of(p + at) != (word(seed, at) >> 40 & 15)) {
				expect(tag_of(p + at), word(seed, at) >> 40 & 15);
				break;
			}
		nap(2);
	}
	leave_checked();
}

static struct { long flag, pids[BYSTANDERS]; } they;

static void begin_bystanders(void)
{
	they.flag = flag_up();
	for (int i = 0; i < BYSTANDERS; i++)
		they.pids[i] = bystander(i + 1, they.flag);
	nap(50);
}

static void end_bystanders(void)
{
	flag_down(they.flag);
	for (int i = 0; i < BYSTANDERS; i++)
		expect(ending(they.pids[i]), 0);
}

/* ---- one that takes all ---- */

enum { ALL = 1 << 20 };

static u64 spin_thread(struct thread *thread)
{
	for (;;)
		__asm__ volatile("");
	return thread->result;
}

static u64 nap_thread(struct thread *thread)
{
	sleep_for_ever();
	return thread->result;
}

static u64 futex_thread(struct thread *thread)
{
	static word_t word;

	for (;;)
		call(SYS_futex, &word, FUTEX_WAIT | PRIVATE, 0, 0);
	return thread->result;
}

static word_t forked;

static u64 fork_thread(struct thread *thread)
{
	for (;; forked = 1) {
		long pid = fork();

		if (pid == 0)
			leave(0);
		if (pid > 0)
			ending(pid);
	}
	return thread->result;
}

static __attribute__((noreturn)) void take_by_break(void)
{
	static struct thread thread;

	check(start(&thread, fork_thread, 0) > 0);
	while (!__atomic_load_n(&forked, __ATOMIC_ACQUIRE))
		;
	expect(call(SYS_mlockall, MCL_FUTURE), 0);
	for (u64 end = call(SYS_brk, 0);;)
		end = call(SYS_brk, end + 4 * MIB);
}

static __attribute__((noreturn)) void take_all(const char *how)
{
	static struct thread threads[3];
	static u64 (*const bodies[3])(struct thread *) = { spin_thread, nap_thread, futex_thread };
	u64 piece = 16 * MIB;

	if (equal(how, "break"))
		take_by_break();
	for (int i = 0; equal(how, "threads") && i < 3; i++)
		check(start(&threads[i], bodies[i], 0) > 0);
	for (u64 n = 0; n < ALL; n++) {
		char *p = map_at(0, piece, RW, ANON | MAP_NORESERVE);

		if (equal(how, "populate"))
			call(SYS_madvise, p, piece, MADV_POPULATE_WRITE);
		if (equal(how, "copy"))
			for (u64 at = 0; at < piece; at += PAGE)
				call(SYS_getrandom, p + at + 8, 64, 0);
		fill(p, piece, n);
	}
	leave(97);
}

static int hog(const char *how)
{
	begin_bystanders();
	for (int round = 0; round < 2; round++) {
		long pid = fork();

		if (pid == 0)
			take_all(how);
		expect(ending(pid), SIGKILL);
	}
	end_bystanders();
	return finish();
}

/* ---- a large one that sleeps ---- */

static int sleep_as_child(void *arg)
{
	(void)arg;
	sleep_for_ever();
}

/* A child to wait for, which has nothing of what its parent takes later. */
static void awaited(void)
{
	if (fork() == 0) {
		/* Ends when it has become somebody else's. */
		for (long parent = call(SYS_getppid); call(SYS_getppid) == parent;)
			nap(10);
		leave(0);
	}
}

static __attribute__((noreturn)) void sleep_in(const char *how)
{
	if (equal(how, "wait"))
		ending(-1);
	if (equal(how, "futex"))
		futex_thread(0);
	if (equal(how, "vfork"))
		vfork_to(sleep_as_child, 0);
	sleep_for_ever();
}

static long large(u64 bytes, u64 seed, const char *how)
{
	long flag = flag_up(), pid = fork();

	if (pid == 0) {
		if (equal(how, "wait"))
			awaited();
		fill(map(bytes, RW), bytes, seed);
		kill(flag, SIGKILL);
		sleep_in(how);
	}
	expect(ending(flag), SIGKILL);
	return pid;
}

/* It keeps what it has until that one's end has been asked for, so that all of them have theirs at once. */
static long grower(u64 bytes, u64 seed, long victim)
{
	long pid = fork();

	if (pid == 0) {
		char *p = map(bytes, RW);

		fill(p, bytes, seed);
		while (kill(victim, 0) == 0)
			nap(2);
		check(is_filled(p, bytes, seed));
		leave_checked();
	}
	return pid;
}

static int sleeper(const char *how, u64 growers)
{
	u64 all = free_bytes();
	long big = large(all / 100 * 60 & -PAGE, 100, how), pids[MOST];

	nap(20);
	for (u64 i = 0; i < growers; i++)
		pids[i] = grower(all / 100 * 50 / growers & -PAGE, i, big);
	expect(ending(big), SIGKILL);
	for (u64 i = 0; i < growers; i++)
		expect(ending(pids[i]), 0);
	return finish();
}

static int equals(void)
{
	u64 all = free_bytes();
	long elder = large(all / 100 * 35 & -PAGE, 1, "nap"), younger = large(all / 100 * 35 & -PAGE, 2, "nap");
	long third = grower(all / 100 * 32 & -PAGE, 3, younger);

	expect(ending(younger), SIGKILL);
	expect(ending(third), 0);
	expect(kill(elder, 0), 0);
	kill(elder, SIGKILL);
	expect(ending(elder), SIGKILL);
	return finish();
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	const char *what = argc > 1 ? argv[1] : "hog", *how = argc > 2 ? argv[2] : "store";

	(void)envp, (void)auxv;
	if (equal(what, "sleeper"))
		return sleeper(how, argc > 3 ? argv[3][0] - '0' : 1);
	if (equal(what, "equals"))
		return equals();
	if (equal(what, "first")) {
		begin_bystanders();
		take_all(how);
	}
	return hog(how);
}
