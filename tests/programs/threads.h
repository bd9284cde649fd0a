/*
 * Threads and what they wait with: clone, futex, and a lock and a barrier made of that.
 */
#ifndef THREADS_H
#define THREADS_H

#include "ebb.h"

enum {
	CLONE_FS = 0x200, CLONE_FILES = 0x400, CLONE_SIGHAND = 0x800, CLONE_THREAD = 0x10000, CLONE_SYSVSEM = 0x40000,
	CLONE_SETTLS = 0x80000, CLONE_PARENT_SETTID = 0x100000, CLONE_CHILD_CLEARTID = 0x200000,
	CLONE_CHILD_SETTID = 0x1000000,
	/* As of pthread_create. */
	OF_THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
	WHOLE_THREAD = OF_THREAD | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID,
};
enum {
	FUTEX_WAIT = 0, FUTEX_WAKE = 1, FUTEX_REQUEUE = 3, FUTEX_CMP_REQUEUE = 4, FUTEX_WAIT_BITSET = 9,
	FUTEX_WAKE_BITSET = 10, PRIVATE = 128, CLOCK_REALTIME_FLAG = 256,
};

typedef volatile u32 word_t;

#define STACK_BYTES 32768

struct thread {
	word_t id; /* 0 once it has ended */
	long made; /* what clone returned */
	u64 (*body)(struct thread *);
	void *arg;
	u64 result;
	u64 tls[4];
	char stack[STACK_BYTES] __attribute__((aligned(16)));
};

__attribute__((used)) static void thread_body(struct thread *thread) { thread->result = thread->body(thread); }

/* clone with these flags, and body in the child, which ends with SYS_exit of that status. */
__attribute__((unused, noinline)) static long clone_to(u64 flags, void *stack, volatile void *parent_id, void *tls,
						       volatile void *child_id, void (*body)(struct thread *),
						       struct thread *arg, u64 status)
{
	register u64 x0 __asm__("x0") = flags, x1 __asm__("x1") = (u64)stack, x2 __asm__("x2") = (u64)parent_id;
	register u64 x3 __asm__("x3") = (u64)tls, x4 __asm__("x4") = (u64)child_id, x8 __asm__("x8") = SYS_clone;
	register u64 x19 __asm__("x19") = (u64)body, x20 __asm__("x20") = (u64)arg, x21 __asm__("x21") = status;

	__asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, x20\n\tblr x19\n"
			 "0:\tmov x0, x21\n\tmov x8, #93\n\tsvc #0\n\tb 0b\n1:"
			 : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x8)
			 : "r"(x19), "r"(x20), "r"(x21)
			 : "memory", "cc");
	return (long)x0;
}

__attribute__((unused)) static long start(struct thread *thread, u64 (*body)(struct thread *), void *arg)
{
	thread->body = body, thread->arg = arg, thread->result = 0;
	return thread->made = clone_to(WHOLE_THREAD, thread->stack + STACK_BYTES, &thread->id, thread->tls,
				       &thread->id, thread_body, thread, 0);
}

__attribute__((unused)) static long futex(volatile void *word, int op, u64 value, const void *time, volatile void *word2,
					  u64 value3)
{
	return call(SYS_futex, word, op, value, time, word2, value3);
}

__attribute__((unused)) static void join(struct thread *thread)
{
	for (u32 id; (id = __atomic_load_n(&thread->id, __ATOMIC_ACQUIRE));)
		futex(&thread->id, FUTEX_WAIT, id, 0, 0, 0);
}

/* ---- a lock: 0 free, 1 held, 2 held and waited for ---- */

__attribute__((unused)) static u32 exchange(word_t *word, u32 value)
{
	u32 old, failed;

	__asm__ volatile("1:\tldaxr %w0, [%2]\n\tstlxr %w1, %w3, [%2]\n\tcbnz %w1, 1b"
			 : "=&r"(old), "=&r"(failed)
			 : "r"(word), "r"(value)
			 : "memory");
	return old;
}

__attribute__((unused)) static u32 add(word_t *word, u32 value)
{
	u32 old, sum, failed;

	__asm__ volatile("1:\tldaxr %w0, [%3]\n\tadd %w1, %w0, %w4\n\tstlxr %w2, %w1, [%3]\n\tcbnz %w2, 1b"
			 : "=&r"(old), "=&r"(sum), "=&r"(failed)
			 : "r"(word), "r"(value)
			 : "memory");
	return sum;
}

__attribute__((unused)) static u32 take_if_free(word_t *word)
{
	u32 old, failed;

	__asm__ volatile("1:\tldaxr %w0, [%2]\n\tcbnz %w0, 2f\n\tstlxr %w1, %w3, [%2]\n\tcbnz %w1, 1b\n2:"
			 : "=&r"(old), "=&r"(failed)
			 : "r"(word), "r"(1)
			 : "memory");
	return old;
}

__attribute__((unused)) static void lock(word_t *word)
{
	if (take_if_free(word))
		while (exchange(word, 2))
			futex(word, FUTEX_WAIT | PRIVATE, 2, 0, 0, 0);
}

__attribute__((unused)) static void unlock(word_t *word)
{
	if (exchange(word, 0) == 2)
		futex(word, FUTEX_WAKE | PRIVATE, 1, 0, 0, 0);
}

/* ---- a barrier for so many ---- */

struct barrier { word_t here, round; };

__attribute__((unused)) static void meet(struct barrier *barrier, u32 count)
{
	u32 round = __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE);

	if (add(&barrier->here, 1) == count) {
		__atomic_store_n(&barrier->here, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&barrier->round, round + 1, __ATOMIC_RELEASE);
		futex(&barrier->round, FUTEX_WAKE | PRIVATE, 0x7fffffff, 0, 0, 0);
	} else {
		while (__atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE) == round)
			futex(&barrier->round, FUTEX_WAIT | PRIVATE, round, 0, 0, 0);
	}
}

__attribute__((unused)) static u64 thread_pointer(void)
{
	u64 value;

	__asm__ volatile("mrs %0, tpidr_el0" : "=r"(value));
	return value;
}

__attribute__((unused)) static void sleep_ms(u64 ms) { sleep_us(ms * 1000); }

#endif
