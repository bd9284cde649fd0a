/*
 * Threads: how they begin and end, what each has for itself, what they share, and what becomes of their process.
 *
 *	threads            all checks
 *	threads exec       what a thread runs by execve: it is alone, and the leader
 */
#include "threads.h"

enum { THREADS = 4, COUNTS = 3000, ROUNDS = 4, REGION_PAGES = 512 };

static struct thread threads[THREADS];
static struct barrier barrier;
static word_t held, inside;
static volatile u64 counted;
static volatile char *region;
static int tagged;
static char *own_path;

static u64 tell_ids(struct thread *me)
{
	return call(SYS_gettid) == (long)me->id && call(SYS_gettid) != call(SYS_getpid) &&
	       call(SYS_getpid) == (long)(u64)me->arg && thread_pointer() == (u64)me->tls;
}

static u64 count(struct thread *me)
{
	u64 wrong = 0;

	meet(&barrier, THREADS);
	for (int i = 0; i < COUNTS; i++) {
		lock(&held);
		wrong += inside++ != 0;
		counted++;
		if (i % 64 == 0)
			call(SYS_sched_yield);
		inside--;
		unlock(&held);
		wrong += thread_pointer() != (u64)me->tls;
	}
	return wrong;
}

/* Every page, all threads at the same time; each has a word and a granule of it. */
static u64 touch(struct thread *me)
{
	u64 mine = (u64)me->arg, wrong = 0;

	for (u64 round = 0; round < ROUNDS; round++) {
		meet(&barrier, THREADS);
		if (mine == round % THREADS)
			wrong += call(SYS_madvise, region, REGION_PAGES * PAGE, MADV_PAGEOUT) != 0;
		for (u64 page = 0; page < REGION_PAGES; page++) {
			char *granule = (char *)region + page * PAGE + 16 * mine + 64 * round;
			char *before = granule - 64;

			*(volatile u64 *)granule = page * 8 + mine;
			if (tagged)
				set_tag(granule, (page + mine) & 15);
			if (round == 0)
				continue;
			wrong += *(volatile u64 *)before != page * 8 + mine;
			wrong += tagged && tag_of(before) != ((page + mine) & 15);
		}
	}
	return wrong;
}

/* Maps, stores, protects, gives up, unmaps: each its own, in one list of regions. */
static u64 remap(struct thread *me)
{
	u64 wrong = 0, mine = (u64)me->arg;

	for (u64 i = 0; i < 60; i++) {
		u64 bytes = (1 + (i + mine) % 24) * PAGE;
		char *p = map_at(0, bytes, RW, ANON);

		wrong += (u64)p >= -4095UL;
		for (u64 at = 0; at < bytes; at += PAGE)
			*(volatile u64 *)(p + at) = at ^ mine;
		wrong += call(SYS_mprotect, p, PAGE, PROT_READ) != 0;
		for (u64 at = 0; at < bytes; at += PAGE)
			wrong += *(volatile u64 *)(p + at) != (at ^ mine);
		wrong += call(SYS_madvise, p + bytes - PAGE, PAGE, MADV_DONTNEED) != 0;
		wrong += *(volatile u64 *)(p + bytes - PAGE) != 0;
		wrong += call(SYS_munmap, p, bytes) != 0;
	}
	return wrong;
}

/* q8 is as little shared as any other register. */
static u64 keep_vectors(struct thread *me)
{
	u64 mine = (u64)me->arg + 100, seen, wrong = 0;

	for (int i = 0; i < 200; i++) {
		__asm__ volatile("fmov d8, %0" : : "r"(mine + i) : "v8");
		call(SYS_sched_yield);
		__asm__ volatile("fmov %0, d8" : "=r"(seen) : : "v8");
		wrong += seen != mine + i;
	}
	return wrong;
}

static u64 all(u64 (*body)(struct thread *))
{
	u64 sum = 0;

	for (u64 i = 0; i < THREADS; i++)
		expect(start(&threads[i], body, (void *)i) > 0, 1);
	for (u64 i = 0; i < THREADS; i++) {
		join(&threads[i]);
		sum += threads[i].result;
	}
	return sum;
}

static void begin_and_end(void)
{
	for (int i = 0; i < 3 * THREADS; i++) {
		struct thread *thread = &threads[i % THREADS];
		long id = start(thread, tell_ids, (void *)call(SYS_getpid));

		expect(id > 0, 1);
		join(thread);
		expect(thread->result, 1);
		expect(call(SYS_tgkill, call(SYS_getpid), id, 0) == 0 || call(SYS_tkill, id, 0) == -ESRCH, 1);
	}
	expect(call(SYS_gettid), call(SYS_getpid));
	expect(call(SYS_set_tid_address, 0), call(SYS_getpid));
}

static void errors(void)
{
	char *stack = threads[0].stack + STACK_BYTES;
	u64 head[3];

	expect(clone_to(CLONE_VM | CLONE_THREAD, stack, 0, 0, 0, thread_body, 0, 0), -EINVAL);
	expect(clone_to(CLONE_THREAD | CLONE_SIGHAND, stack, 0, 0, 0, thread_body, 0, 0), -EINVAL);
	expect(clone_to(CLONE_SIGHAND | SIGCHLD, stack, 0, 0, 0, thread_body, 0, 0), -EINVAL);
	expect(call(SYS_set_robust_list, head, sizeof(head) - 1), -EINVAL);
	expect(call(SYS_set_robust_list, head, sizeof(head)), 0);
	expect(call(SYS_tgkill, call(SYS_getpid), call(SYS_gettid), 0), 0);
	expect(call(SYS_tgkill, 0, call(SYS_gettid), 0), -EINVAL);
	expect(call(SYS_tgkill, call(SYS_getpid), -1, 0), -EINVAL);
	expect(call(SYS_tgkill, 32000, call(SYS_gettid), 0), -ESRCH);
	expect(call(SYS_tgkill, call(SYS_getpid), 32000, 0), -ESRCH);
	expect(call(SYS_tkill, 32000, 0), -ESRCH);
}

/* ---- what becomes of the process: each in a child ---- */

static word_t go;

static void wait_for(word_t *word)
{
	while (!__atomic_load_n(word, __ATOMIC_ACQUIRE))
		futex(word, FUTEX_WAIT, 0, 0, 0, 0);
}

static void set(word_t *word)
{
	__atomic_store_n(word, 1, __ATOMIC_RELEASE);
	futex(word, FUTEX_WAKE, 100, 0, 0, 0);
}

static u64 end_all(struct thread *me) { leave((int)(u64)me->arg); }
static u64 sleep_for_ever(struct thread *me)
{
	for (;;)
		futex(&held, FUTEX_WAIT, 0, 0, 0, 0);
	return (u64)me;
}

static u64 spin_for_ever(struct thread *me)
{
	for (volatile int on = 1; on;)
		;
	return (u64)me;
}

static u64 store_beyond(struct thread *me) { *(volatile char *)me->arg = 1; return 0; }
static u64 end_late(struct thread *me) { (void)me; sleep_ms(30); return 0; }
static u64 end_when_told(struct thread *me) { (void)me; wait_for(&go); return 0; }
static u64 exit_is_last(struct thread *me)
{
	sleep_ms(60);
	call(SYS_exit, 5);
	return (u64)me;
}

static void end_of_all(void)
{
	for (u64 i = 0; i < THREADS - 1; i++)
		start(&threads[i], i == 1 ? spin_for_ever : sleep_for_ever, 0);
	start(&threads[THREADS - 1], end_all, (void *)7);
	sleep_for_ever(0);
}

static void leader_ends_first(void)
{
	start(&threads[0], exit_is_last, 0);
	start(&threads[1], end_late, 0);
	for (;;)
		call(SYS_exit, 3);
}

static void fault_of_one(void)
{
	start(&threads[0], spin_for_ever, 0);
	start(&threads[1], sleep_for_ever, 0);
	start(&threads[2], store_beyond, (void *)8);
	sleep_for_ever(0);
}

static void unmapped_by_another(void)
{
	char *p = map(4 * PAGE, RW);

	*p = 1;
	start(&threads[0], spin_for_ever, 0);
	call(SYS_munmap, p, 4 * PAGE);
	start(&threads[1], store_beyond, p);
	sleep_for_ever(0);
}

static void signal_to_one(void)
{
	start(&threads[0], sleep_for_ever, 0);
	start(&threads[1], spin_for_ever, 0);
	call(SYS_tgkill, call(SYS_getpid), threads[0].made, SIGTERM);
	sleep_for_ever(0);
}

static u64 fork_and_look(struct thread *me)
{
	volatile u64 *counter = me->arg;
	long pid = call(SYS_clone, SIGCHLD);

	if (pid == 0) {
		u64 before = *counter;

		/* The other thread is not here to count. */
		sleep_ms(20);
		if (*counter != before || call(SYS_gettid) != call(SYS_getpid) || thread_pointer() != (u64)me->tls)
			leave(1);
		*counter = 0;
		/* And as a process it may have threads again. */
		start(&threads[2], tell_ids, (void *)call(SYS_getpid));
		join(&threads[2]);
		leave(threads[2].result ? 0 : 2);
	}
	return pid > 0 ? ending(pid) : 1000;
}

static u64 count_until_told(struct thread *me)
{
	volatile u64 *counter = me->arg;

	while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
		++*counter;
	return 0;
}

static void fork_of_one(void)
{
	start(&threads[0], count_until_told, (void *)&counted);
	start(&threads[1], fork_and_look, (void *)&counted);
	join(&threads[1]);
	set(&go);
	join(&threads[0]);
	leave(threads[1].result ? 1 : 0);
}

static u64 exec(struct thread *me)
{
	const char *argv[] = { own_path, "exec", 0 }, *none[] = { 0 };

	(void)me;
	call(SYS_execve, own_path, argv, none);
	leave(98);
}

static void exec_of_one(void)
{
	start(&threads[0], spin_for_ever, 0);
	start(&threads[1], sleep_for_ever, 0);
	start(&threads[2], exec, 0);
	sleep_for_ever(0);
}

static void exec_of_two(void)
{
	start(&threads[0], exec, 0);
	start(&threads[1], exec, 0);
	sleep_for_ever(0);
}

/* A child's child is every thread's to wait for. */
static u64 wait_for_any(struct thread *me)
{
	int status = 0;

	(void)me;
	return call(SYS_wait4, -1, &status, 0, 0) > 0 ? status : 1000;
}

static void wait_by_another(void)
{
	long pid = call(SYS_clone, SIGCHLD);

	if (pid == 0)
		leave(9);
	start(&threads[0], wait_for_any, 0);
	join(&threads[0]);
	leave(threads[0].result == 9 << 8 ? 0 : 1);
}

static void many(void)
{
	/* One after the other, more than there can be at once. */
	for (int i = 0; i < 200; i++) {
		if (start(&threads[i % THREADS], end_late, 0) <= 0)
			leave(1);
		if (i % THREADS == THREADS - 1)
			for (int j = 0; j < THREADS; j++)
				join(&threads[j]);
	}
	leave(0);
}

static void told_at_once(void)
{
	for (int i = 0; i < THREADS; i++)
		start(&threads[i], end_when_told, 0);
	set(&go);
	for (int i = 0; i < THREADS; i++)
		join(&threads[i]);
	leave(0);
}

static int in_child(void (*body)(void))
{
	long pid = fork();

	if (pid == 0) {
		body();
		leave(99);
	}
	return ending(pid);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp;
	if (argc > 1) /* a thread's execve: see exec_of_one */
		return call(SYS_gettid) == call(SYS_getpid) ? 42 : 43;
	own_path = argv[0];
	tagged = auxv_value(auxv, 26) >> 18 & 1; /* HWCAP2_MTE */
	region = map(REGION_PAGES * PAGE, RW | (tagged ? PROT_MTE : 0));

	begin_and_end();
	errors();
	expect(all(count), 0);
	expect(counted, THREADS * COUNTS);
	expect(all(touch), 0);
	expect(all(remap), 0);
	expect(all(keep_vectors), 0);
	expect(in_child(end_of_all), 7 << 8);
	expect(in_child(leader_ends_first), 5 << 8); /* the last one's */
	expect(in_child(fault_of_one), SIGSEGV);
	expect(in_child(unmapped_by_another), SIGSEGV);
	expect(in_child(signal_to_one), SIGTERM);
	expect(in_child(fork_of_one), 0);
	expect(in_child(exec_of_one), 42 << 8);
	expect(in_child(exec_of_two), 42 << 8);
	expect(in_child(wait_by_another), 0);
	expect(in_child(many), 0);
	for (int i = 0; i < 10; i++)
		expect(in_child(told_at_once), 0);
	return finish();
}
