/*
 * What may happen to a program's pages while a device reads or writes them (O_DIRECT, see direct.h): forks, stores, advice,
 * other mappings, the end of the process, and want of memory.
 */
#include "direct.h"

static struct request {
	int number;
	char *at;
	u64 bytes, pos;
	long got;
	u64 asked; /* ticks */
	word_t begun, ended;
} request;

static u64 ask(struct thread *thread)
{
	struct request *r = thread->arg;

	r->asked = ticks();
	__atomic_store_n(&r->begun, 1, __ATOMIC_RELEASE);
	r->got = call(r->number, disk, r->at, r->bytes, r->pos);
	__atomic_store_n(&r->ended, 1, __ATOMIC_RELEASE);
	return 0;
}

static struct thread other;

/* Another thread asks; on one CPU it sleeps already, if the device is slow. */
static void begin(int number, char *at, u64 bytes, u64 pos)
{
	request = (struct request){ number, at, bytes, pos, 0, 0, 0, 0 };
	check(start(&other, ask, &request) > 0);
	while (!__atomic_load_n(&request.begun, __ATOMIC_ACQUIRE))
		call(SYS_sched_yield);
	sleep_ms(1);
	call(SYS_sched_yield);
}

/* Certainly, and the device has not touched anything yet. */
static int under_way(void)
{
	return slow && !__atomic_load_n(&request.ended, __ATOMIC_ACQUIRE) &&
	       ticks() - request.asked < ticks_of_ms(SLOW_MS);
}

static void end(void)
{
	join(&other);
	expect(request.got, request.bytes);
}

/*
 * Three pages, or two where the kernel pins no more than 128 KiB at once; the device's part of the memory is from HALF
 * on, and HALF less than all of it.
 */
#define HALF (PAGE / 2)
#define LENGTH ((PAGE > 32768 ? 2 : 3) * PAGE)
#define PART (LENGTH - HALF)
enum { OLD = 10, DEVICE = 20, NEW = 30 };

/* One scenario: 1 if the request was under way throughout what was done. */
typedef int scenario(char *p);

static void reading(char *p) { begin(SYS_pread, p + HALF, PART, PAGE); }

static int device_data(char *p) { return wrong(p + HALF, PART, DEVICE, 0) == 0; }

/* The owner keeps its page, whoever stores first; a child has what was there at the fork. */
static int forks(char *p)
{
	reading(p);
	long pid = fork();
	if (pid == 0) {
		/* What the device had not done by then never comes here. */
		int met = under_way();

		check(!met || wrong(p, LENGTH, OLD, 0) == 0);
		sleep_ms(slow ? 2 * SLOW_MS : 1);
		check(!met || wrong(p, LENGTH, OLD, 0) == 0);
		fill(p, LENGTH, NEW);
		expect(wrong(p, LENGTH, NEW, 0), 0);
		expect(wrong_tags(p, LENGTH, 1), 0);
		leave_checked();
	}
	*(volatile u64 *)p = 77;
	int met = under_way();
	end();
	check(device_data(p));
	expect(*(volatile u64 *)p, 77);
	expect(ending(pid), 0);
	check(device_data(p));
	expect(*(volatile u64 *)p, 77);
	*(volatile u64 *)p = word(OLD, 0);
	return met;
}

/* The child was there before. */
static int forked(char *p)
{
	long go = gate(), pid = fork();

	if (pid == 0) {
		pass(go);
		expect(wrong(p, LENGTH, OLD, 0), 0);
		expect(wrong_tags(p, LENGTH, 1), 0);
		leave_checked();
	}
	reading(p);
	int met = under_way();
	end();
	check(device_data(p));
	open_gate(go), pass(go);
	expect(ending(pid), 0);
	check(device_data(p));
	return met;
}

static int advice_that_keeps(char *p)
{
	reading(p);
	call(SYS_madvise, p, LENGTH, MADV_COLD);
	for (int i = 0; i < 4; i++)
		expect(call(SYS_madvise, p, LENGTH, MADV_PAGEOUT), 0);
	int met = under_way();
	*(volatile u64 *)p = 5;
	end();
	expect(*(volatile u64 *)p, 5);
	*(volatile u64 *)p = word(OLD, 0);
	return met;
}

/* The device's store is a later one. */
static int given_up(char *p)
{
	reading(p);
	expect(call(SYS_madvise, p, LENGTH, MADV_FREE), 0);
	int met = under_way();
	end();
	call(SYS_madvise, p, LENGTH, MADV_PAGEOUT);
	check(!met || device_data(p));
	fill(p, LENGTH, OLD), put_tags(p, LENGTH, 1);
	fill(p + HALF, PART, DEVICE);
	return met;
}

static int forbidden(char *p)
{
	reading(p);
	expect(call(SYS_mprotect, p, LENGTH, PROT_NONE), 0);
	int met = under_way();
	end();
	expect(call(SYS_mprotect, p, LENGTH, RW | (mte ? PROT_MTE : 0)), 0);
	return met;
}

/* What is there now is none of the device's business. */
static int replaced(char *p)
{
	reading(p);
	expect(map_at(p, LENGTH, RW | (mte ? PROT_MTE : 0), ANON | MAP_FIXED), p);
	check(is_zero(p, LENGTH));
	fill(p, LENGTH, OLD), put_tags(p, LENGTH, 1);
	char *more = memory(BYTES);
	fill(more, BYTES, NEW);
	int met = under_way();
	end();
	expect(wrong(p, LENGTH, OLD, 0), 0);
	expect(wrong(more, BYTES, NEW, 0), 0);
	call(SYS_munmap, more, BYTES);
	fill(p + HALF, PART, DEVICE);
	return met;
}

static int emptied(char *p)
{
	reading(p);
	expect(call(SYS_madvise, p, LENGTH, MADV_DONTNEED), 0);
	int met = under_way();
	end();
	check(!met || is_zero(p, LENGTH));
	fill(p, LENGTH, OLD), put_tags(p, LENGTH, 1);
	fill(p + HALF, PART, DEVICE);
	return met;
}

/* A device that reads memory gets what was there, whatever becomes of the mapping. */
static int written(char *p)
{
	char *from = memory(LENGTH);
	int met;

	fill(from + HALF, PART, NEW);
	begin(SYS_pwrite, from + HALF, PART, 8 * PAGE);
	expect(map_at(from, LENGTH, RW | (mte ? PROT_MTE : 0), ANON | MAP_FIXED), from);
	fill(from, LENGTH, OLD);
	met = under_way();
	join(&other);
	check(request.got == (long)PART);
	memset(from, 0, LENGTH);
	expect(call(SYS_pread, disk, from, PART, 8 * PAGE), PART);
	check(!met || wrong(from, PART, NEW, 0) == 0);
	expect(call(SYS_munmap, from, LENGTH), 0);
	fill(p + HALF, PART, DEVICE);
	return met;
}

/* The process ends, by itself or killed, and another one has memory at once. */
static int ended(char *p, int signal)
{
	long pid = fork();

	if (pid == 0) {
		reading(p);
		if (signal)
			for (kill(call(SYS_getpid), signal);;)
				call(SYS_sched_yield);
		leave(under_way() ? 3 : 4);
	}
	sleep_ms(1);
	char *more = memory(BYTES);
	fill(more, BYTES, NEW);
	int end = ending(pid);
	fill(more + BYTES / 2, BYTES / 2, OLD);
	sleep_ms(slow ? SLOW_MS : 1);
	expect(wrong(more, BYTES / 2, NEW, 0), 0);
	expect(wrong(more + BYTES / 2, BYTES / 2, OLD, 0), 0);
	expect(wrong(p, LENGTH, OLD, 0), 0);
	expect(wrong_tags(p, LENGTH, 1), 0);
	call(SYS_munmap, more, BYTES);
	if (signal)
		expect(end, signal);
	else
		check(end == 3 << 8 || end == 4 << 8);
	fill(p + HALF, PART, DEVICE);
	return signal || end == 3 << 8;
}

static int exits(char *p) { return ended(p, 0); }
static int is_killed(char *p) { return ended(p, SIGKILL); }

static void meanwhile(const char *what, scenario *play)
{
	int met = 0, tries = 0;

	/* Whatever meets whatever, it goes well; and on a slow device it does meet. */
	do {
		char *p = memory(LENGTH);

		fill(p, PART, DEVICE);
		expect(again(SYS_pwrite, p, PART, PAGE), PART);
		fill(p, LENGTH, OLD), put_tags(p, LENGTH, 1);
		met += play(p);
		check(device_data(p));
		expect(wrong(p, HALF, OLD, 0), 0);
		expect(wrong_tags(p, LENGTH, 1), 0);
		expect(call(SYS_munmap, p, LENGTH), 0);
	} while (++tries < (slow ? 40 : 4) && met < 2);
	if (slow && !met)
		put(what), put(" never met a request under way\n"), failures++;
}

/* Memory is short while the other thread reads and writes. */
static word_t enough;

static u64 transfers(struct thread *thread)
{
	char *from = memory(4 * PAGE), *to = memory(4 * PAGE);
	u64 bad = 0, count = 0;

	(void)thread;
	while (!__atomic_load_n(&enough, __ATOMIC_ACQUIRE)) {
		u64 salt = 100 + count++, at = below(4) * 512, bytes = PAGE + below(5) * 512;

		fill(from, 4 * PAGE, salt);
		bad += call(SYS_pwrite, disk, from + at, bytes, at) != (long)bytes;
		fill(to, 4 * PAGE, salt + 1), put_tags(to, 4 * PAGE, salt);
		bad += call(SYS_pread, disk, to + at, bytes, at) != (long)bytes;
		bad += wrong(to + at, bytes, salt, at / 8) != 0 || wrong_tags(to, 4 * PAGE, salt) != 0;
		bad += wrong(to, at, salt + 1, 0) != 0;
		bad += wrong(to + at + bytes, 4 * PAGE - at - bytes, salt + 1, (at + bytes) / 8) != 0;
	}
	check(count > 0);
	return bad;
}

static void under_pressure(void)
{
	u64 bytes = pressure * MIB;
	char *p = memory(bytes);

	check(start(&other, transfers, 0) > 0);
	for (u64 pass = 0; pass < 2; pass++)
		for (u64 at = 0; at < bytes; at += PAGE) {
			if (pass && wrong(p + at, 512, at, 0))
				failures++;
			fill(p + at, 512, at);
		}
	__atomic_store_n(&enough, 1, __ATOMIC_RELEASE);
	join(&other);
	expect(other.result, 0);
	expect(call(SYS_munmap, p, bytes), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	static const struct { const char *what; scenario *play; } all[] = {
		{ "fork", forks }, { "a child from before", forked }, { "MADV_PAGEOUT", advice_that_keeps },
		{ "MADV_FREE", given_up }, { "mprotect", forbidden }, { "mmap", replaced }, { "MADV_DONTNEED", emptied },
		{ "mmap under a write", written }, { "exit", exits }, { "SIGKILL", is_killed },
	};

	(void)envp;
	begin_direct(argc, argv, auxv);
	for (u64 i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		meanwhile(all[i].what, all[i].play);
	if (pressure)
		under_pressure();
	return finish_direct();
}
