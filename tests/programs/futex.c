/*
 * futex: its errors and times, who is woken, and whom a word reaches.
 */
#include "threads.h"

enum { WAITERS = 4 };

static struct thread threads[WAITERS];
static word_t words[4], turn;
static u32 bits_of[WAITERS] = { 1, 2, 4, 6 };

/* How many wait on a word: moved to where they are. */
static long waiting(word_t *word) { return futex(word, FUTEX_REQUEUE | PRIVATE, 0, (void *)100, word, 0); }

static void wait_until(word_t *word, long count)
{
	while (waiting(word) != count)
		call(SYS_sched_yield);
}

static u64 wait_once(struct thread *me) { return futex(me->arg, FUTEX_WAIT | PRIVATE, 0, 0, 0, 0); }

static u64 wait_for_bits(struct thread *me)
{
	return futex(&words[0], FUTEX_WAIT_BITSET | PRIVATE, 0, 0, 0, bits_of[(u64)me->arg]);
}

static void errors(void)
{
	u64 none[2] = { 0, 0 }, wrong[2] = { 0, 1000000000 }, negative[2] = { -1UL, 0 };
	char *hole = map(2 * PAGE, RW);

	words[0] = 5;
	expect(futex(&words[0], FUTEX_WAIT, 4, 0, 0, 0), -EAGAIN);
	expect(futex(&words[0], FUTEX_WAIT | PRIVATE, 4, 0, 0, 0), -EAGAIN);
	expect(futex(&words[0], FUTEX_WAIT_BITSET, 4, 0, 0, 1), -EAGAIN);
	expect(futex((char *)&words[0] + 2, FUTEX_WAIT | PRIVATE, 5, 0, 0, 0), -EINVAL);
	expect(futex((char *)&words[0] + 2, FUTEX_WAKE | PRIVATE, 1, 0, 0, 0), -EINVAL);
	expect(futex(&words[0], FUTEX_WAIT_BITSET, 5, 0, 0, 0), -EINVAL);
	expect(futex(&words[0], FUTEX_WAKE_BITSET, 1, 0, 0, 0), -EINVAL);
	expect(futex(&words[0], FUTEX_WAIT, 5, wrong, 0, 0), -EINVAL);
	expect(futex(&words[0], FUTEX_WAIT, 5, negative, 0, 0), -EINVAL);
	expect(futex(&words[0], FUTEX_WAIT, 5, (void *)8, 0, 0), -EFAULT);
	expect(futex(&words[0], FUTEX_WAIT | CLOCK_REALTIME_FLAG, 5, 0, 0, 0), -ENOSYS);
	expect(futex(&words[0], 77, 5, 0, 0, 0), -ENOSYS);
	expect(futex(&words[0], FUTEX_WAIT, 5, none, 0, 0), -ETIMEDOUT);
	expect(futex(&words[0], FUTEX_WAIT_BITSET, 5, none, 0, 1), -ETIMEDOUT);
	expect(futex(&words[0], FUTEX_WAIT_BITSET | CLOCK_REALTIME_FLAG, 5, none, 0, 1), -ETIMEDOUT);
	expect(futex(&words[0], FUTEX_WAIT, 4, none, 0, 0), -EAGAIN);
	expect(futex(&words[0], FUTEX_WAKE, 1, 0, 0, 0), 0);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 1, 0, 0, 0), 0);
	expect(futex(&words[0], FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)1, &words[1], 4), -EAGAIN);
	expect(futex(&words[0], FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)1, &words[1], 5), 0);
	expect(futex(&words[0], FUTEX_CMP_REQUEUE | PRIVATE, -1, (void *)1, &words[1], 5), -EINVAL);
	expect(futex(&words[0], FUTEX_REQUEUE | PRIVATE, 1, (void *)-1, &words[1], 5), -EINVAL);

	/* What is not there. */
	expect(call(SYS_munmap, hole, PAGE), 0);
	expect(futex(hole, FUTEX_WAIT | PRIVATE, 0, none, 0, 0), -EFAULT);
	expect(futex(hole, FUTEX_WAKE | PRIVATE, 1, 0, 0, 0), 0);
	expect(futex(hole, FUTEX_WAKE, 1, 0, 0, 0), -EFAULT);
	expect(futex((void *)(1UL << 60), FUTEX_WAIT | PRIVATE, 0, none, 0, 0), -EFAULT);
	expect(futex((void *)-8UL, FUTEX_WAKE | PRIVATE, 1, 0, 0, 0), -EFAULT);
	/* What was never touched, and what is out. */
	expect(futex(hole + PAGE, FUTEX_WAIT | PRIVATE, 0, none, 0, 0), -ETIMEDOUT);
	*(word_t *)(hole + PAGE) = 9;
	expect(call(SYS_madvise, hole + PAGE, PAGE, MADV_PAGEOUT), 0);
	expect(futex(hole + PAGE, FUTEX_WAIT | PRIVATE, 9, none, 0, 0), -ETIMEDOUT);
	expect(call(SYS_madvise, hole + PAGE, PAGE, MADV_PAGEOUT), 0);
	expect(futex(hole + PAGE, FUTEX_WAIT | PRIVATE, 8, none, 0, 0), -EAGAIN);
	expect(call(SYS_mprotect, hole + PAGE, PAGE, PROT_NONE), 0);
	expect(futex(hole + PAGE, FUTEX_WAIT | PRIVATE, 9, none, 0, 0), -EFAULT);
}

static void times(void)
{
	u64 wait[2] = { 0, 30000000 }, until[2], from = ticks();

	words[0] = 0;
	expect(futex(&words[0], FUTEX_WAIT | PRIVATE, 0, wait, 0, 0), -ETIMEDOUT);
	check(ticks() - from >= ticks_of_ms(30));
	expect(call(SYS_clock_gettime, 1, until), 0);
	until[1] += 30000000;
	if (until[1] >= 1000000000)
		until[0]++, until[1] -= 1000000000;
	from = ticks();
	expect(futex(&words[0], FUTEX_WAIT_BITSET | PRIVATE, 0, until, 0, -1U), -ETIMEDOUT);
	check(ticks() - from >= ticks_of_ms(29));
}

static void start_all(u64 (*body)(struct thread *), word_t *word)
{
	for (u64 i = 0; i < WAITERS; i++)
		expect(start(&threads[i], body, word ? (void *)word : (void *)i) > 0, 1);
	wait_until(word ? word : &words[0], WAITERS);
}

static void join_all(void)
{
	for (int i = 0; i < WAITERS; i++) {
		join(&threads[i]);
		expect(threads[i].result, 0);
	}
}

static void wakes(void)
{
	words[0] = words[1] = 0;
	start_all(wait_once, &words[0]);
	expect(futex(&words[1], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 0);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 1, 0, 0, 0), 1);
	expect(waiting(&words[0]), 3);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 2, 0, 0, 0), 2);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 1);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 0);
	join_all();

	start_all(wait_for_bits, 0);
	expect(futex(&words[0], FUTEX_WAKE_BITSET | PRIVATE, 10, 0, 0, 8), 0);
	expect(futex(&words[0], FUTEX_WAKE_BITSET | PRIVATE, 10, 0, 0, 1), 1);
	join(&threads[0]);
	expect(futex(&words[0], FUTEX_WAKE_BITSET | PRIVATE, 10, 0, 0, 2), 2);
	join(&threads[1]), join(&threads[3]);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 1);
	join_all();

	start_all(wait_once, &words[0]);
	expect(futex(&words[0], FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)2, &words[1], 1), -EAGAIN);
	expect(futex(&words[0], FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)2, &words[1], 0), 3);
	expect(waiting(&words[0]), 1);
	expect(waiting(&words[1]), 2);
	expect(futex(&words[0], FUTEX_REQUEUE | PRIVATE, 0, (void *)10, &words[1], 0), 1);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 0);
	expect(futex(&words[1], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 3);
	join_all();
}

/* A word that has a tag, while loads and stores are checked: it is read through the pointer as it is. */
static void tagged(void)
{
	u64 none[2] = { 0, 0 };
	char *page = map(PAGE, RW | PROT_MTE);
	word_t *word = with_tag(page, 5), *other = with_tag(page + 16, 9);

	set_tag(page, 5), set_tag(page + 16, 9);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC), 0);
	for (int out = 0; out < 2; out++) {
		*word = 0;
		expect(futex(word, FUTEX_WAIT | PRIVATE, 1, none, 0, 0), -EAGAIN);
		expect(futex(word, FUTEX_WAIT | PRIVATE, 0, none, 0, 0), -ETIMEDOUT);
		expect(futex(word, FUTEX_WAIT, 0, none, 0, 0), -ETIMEDOUT);
		expect(futex(word, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)1, other, 0), 0);
		expect(futex(page, FUTEX_WAIT | PRIVATE, 0, none, 0, 0), -EFAULT);
		expect(futex(page, FUTEX_WAIT, 0, none, 0, 0), -EFAULT);
		expect(futex(page, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)1, other, 0), -EFAULT);
		expect(call(SYS_madvise, page, PAGE, MADV_PAGEOUT), 0);
	}
	start_all(wait_once, word);
	expect(futex(word, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)2, other, 0), 3);
	expect(futex(word, FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 1);
	expect(futex(other, FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 2);
	join_all();
	expect(tag_mode(0), 0);
}

/* The word at the same address of another process is another one. */
static void other_process(void)
{
	words[0] = 0;
	start_all(wait_once, &words[0]);
	long pid = fork();

	if (pid == 0) {
		u64 none[2] = { 0, 0 };

		expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), 0);
		expect(futex(&words[0], FUTEX_WAKE, 10, 0, 0, 0), 0);
		expect(futex(&words[0], FUTEX_WAIT, 0, none, 0, 0), -ETIMEDOUT);
		leave_checked();
	}
	expect(ending(pid), 0);
	expect(waiting(&words[0]), WAITERS);
	/* Nor is it the same to those who do not say that it is private. */
	expect(futex(&words[0], FUTEX_WAKE, 10, 0, 0, 0), 0);
	expect(futex(&words[0], FUTEX_WAKE | PRIVATE, 10, 0, 0, 0), WAITERS);
	join_all();
}

static u64 wait_shared(struct thread *me) { return futex(me->arg, FUTEX_WAIT, 0, 0, 0, 0); }

static void shared(void)
{
	words[2] = 0;
	for (u64 i = 0; i < WAITERS; i++)
		expect(start(&threads[i], wait_shared, (void *)&words[2]) > 0, 1);
	while (futex(&words[2], FUTEX_REQUEUE, 0, (void *)100, &words[2], 0) != WAITERS)
		call(SYS_sched_yield);
	expect(futex(&words[2], FUTEX_WAKE, 10, 0, 0, 0), WAITERS);
	join_all();
}

static u64 answer(struct thread *me)
{
	(void)me;
	for (u32 i = 0; i < 300; i++) {
		while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != 2 * i + 1)
			futex(&turn, FUTEX_WAIT | PRIVATE, 2 * i, 0, 0, 0);
		__atomic_store_n(&turn, 2 * i + 2, __ATOMIC_RELEASE);
		futex(&turn, FUTEX_WAKE | PRIVATE, 1, 0, 0, 0);
	}
	return 0;
}

static void turns(void)
{
	expect(start(&threads[0], answer, 0) > 0, 1);
	for (u32 i = 0; i < 300; i++) {
		__atomic_store_n(&turn, 2 * i + 1, __ATOMIC_RELEASE);
		futex(&turn, FUTEX_WAKE | PRIVATE, 1, 0, 0, 0);
		while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != 2 * i + 2)
			futex(&turn, FUTEX_WAIT | PRIVATE, 2 * i + 1, 0, 0, 0);
	}
	join(&threads[0]);
	expect(turn, 600);
}

/* Killed while it waits, with and without a time. */
static void killed(void)
{
	u64 hour[2] = { 3600, 0 };

	for (int timed = 0; timed < 2; timed++) {
		long pid = fork();

		if (pid == 0) {
			words[3] = 0;
			start_all(wait_once, &words[0]);
			for (;;)
				futex(&words[3], FUTEX_WAIT, 0, timed ? hour : 0, 0, 0);
		}
		sleep_ms(20);
		expect(kill(pid, SIGTERM), 0);
		expect(ending(pid), SIGTERM);
	}
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp;
	if (argc > 1 && equal(argv[1], "for-ever"))
		for (;;)
			futex(&words[0], FUTEX_WAIT, 0, 0, 0, 0);
	errors();
	times();
	wakes();
	if (auxv_value(auxv, 26) >> 18 & 1) /* HWCAP2_MTE */
		tagged();
	other_process();
	shared();
	turns();
	killed();
	return finish();
}
