/*
 * vfork and execve. The program runs itself again: its first argument then says what for, and what it finds is
 * its status.
 */
#include "ebb.h"

#define FIXED ((char *)0x1000000000UL)
#define SYNC (PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC | 0xfffeUL << PR_MTE_TAG_SHIFT)

static char *self;
static char *const no_environment[] = { 0 };
static volatile u64 shared[4], initial = 77;
static volatile u64 zeros[4096];
static long parent;

static long exec(const char *role, const char *argument)
{
	const char *argv[] = { self, role, argument, 0 };

	return call(SYS_execve, self, argv, no_environment);
}

/* ---- what the program does where it was run by itself ---- */

static int fresh(int argc, char **argv, char **envp, u64 *auxv)
{
	u64 x, heap = call(SYS_brk, 0);

	expect(argc, 3);
	check(equal(argv[2], "an argument with spaces"));
	check(!envp[0]);
	check(auxv_value(auxv, 6) == PAGE);
	/* Nothing of the memory before. */
	expect(initial, 77);
	for (u64 i = 0; i < 4096; i++)
		check(zeros[i] == 0);
	check(!mapped(FIXED, PAGE));
	expect(call(SYS_brk, heap + 4 * PAGE), heap + 4 * PAGE);
	for (u64 i = 0; i < 4 * PAGE / 8; i++)
		check(((u64 *)heap)[i] == 0);
	/* Nor of the registers, or of the mode of tag checks. */
	__asm__ volatile("mrs %0, fpcr" : "=r"(x));
	expect(x, 0);
	__asm__ volatile("mrs %0, fpsr" : "=r"(x));
	expect(x, 0);
	__asm__ volatile("mrs %0, tpidr_el0" : "=r"(x));
	expect(x, 0);
	__asm__ volatile("mov %0, v9.d[1]" : "=r"(x));
	expect(x, 0);
	expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL), 0);
	if (auxv_value(auxv, 26) >> 18 & 1) { /* HWCAP2_MTE */
		char *p = map(PAGE, RW | PROT_MTE);

		expect(tag_of(p), 0);
		set_tag(p, 5);
		*(volatile char *)p = 1; /* no check */
		expect(tag_of(p), 5);
	}
	return failures ? 99 : 42;
}

static int role(int argc, char **argv, char **envp, u64 *auxv)
{
	if (equal(argv[1], "there"))
		return 48;
	if (equal(argv[1], "fresh"))
		return fresh(argc, argv, envp, auxv);
	if (equal(argv[1], "slow")) {
		spin(60);
		return 43;
	}
	if (equal(argv[1], "children")) { /* those from before are its children still */
		int status = 0;

		expect(call(SYS_wait4, -1, &status, 0, 0) > 0, 1);
		expect(status, 12 << 8);
		expect(call(SYS_wait4, -1, &status, 0, 0), -ECHILD);
		return failures ? 99 : 44;
	}
	if (equal(argv[1], "again")) { /* argv[2]: so many more times */
		char next[2] = { argv[2][0] - 1, 0 };

		if (argv[2][0] == '0')
			return 45;
		exec("again", next);
		return 98;
	}
	if (equal(argv[1], "many")) {
		for (int i = 2; i < argc; i++)
			check(argv[i][0] == 'a' + i % 26 && argv[i][i] == 0);
		return failures || argc != 400 || argv[argc] ? 99 : 46;
	}
	if (equal(argv[1], "number")) /* the process is the same */
		return call(SYS_getpid) % 200 + 1;
	return 97;
}

/* ---- vfork ---- */

static int store_and_leave(void *arg)
{
	spin(30); /* the parent has all the time to go on, and does not */
	shared[0] = (u64)arg;
	shared[1] = call(SYS_getppid);
	call(SYS_brk, call(SYS_brk, 0) + PAGE);
	map_at(FIXED, PAGE, RW, ANON | MAP_FIXED);
	*FIXED = 7;
	return 3;
}

static int fail_to_exec(void *arg)
{
	const char *argv[] = { "none", 0 };

	(void)arg;
	shared[0] = call(SYS_execve, "/no/such/program", argv, no_environment);
	return 127;
}

static int exec_slow(void *arg)
{
	shared[0] = 5;
	exec("slow", arg);
	return 98;
}

static int die(void *arg)
{
	volatile u64 *null = arg;

	shared[0] = 6;
	*null = 1;
	return 98;
}

static int fork_within(void *arg)
{
	long pid = fork();

	if (pid == 0) {
		shared[2] = 1; /* seen by no one */
		leave(4);
	}
	shared[0] = ending(pid);
	shared[1] = vfork_to(store_and_leave, arg);
	return ending(shared[1]) == 3 << 8 ? 5 : 98;
}

static void shared_memory(void)
{
	long heap = call(SYS_brk, 0), pid = vfork_to(store_and_leave, (void *)11);
	int status;

	expect(shared[0], 11);
	expect(shared[1], call(SYS_getpid));
	expect(call(SYS_brk, 0), heap + PAGE);
	expect(*FIXED, 7);
	/* It has ended: that is why we go on. */
	spin(10);
	expect(call(SYS_wait4, pid, &status, WNOHANG, 0), pid);
	expect(status, 3 << 8);
	expect(call(SYS_munmap, FIXED, PAGE), 0);

	expect(ending(vfork_to(fail_to_exec, 0)), 127 << 8);
	expect(shared[0], -ENOENT);

	/* The parent goes on at the execve, and has its memory for itself again. */
	shared[1] = 8;
	pid = vfork_to(exec_slow, "x");
	expect(shared[0], 5);
	expect(call(SYS_wait4, pid, &status, WNOHANG, 0), 0);
	expect(ending(pid), 43 << 8);
	expect(shared[1], 8);

	expect(ending(vfork_to(die, 0)), SIGSEGV);
	expect(shared[0], 6);
	for (int i = 0; i < 100; i++) {
		shared[0] = 0;
		expect(ending(vfork_to(fail_to_exec, 0)), 127 << 8);
		expect(shared[0], -ENOENT);
	}
	shared[2] = 0;
	expect(ending(vfork_to(fork_within, (void *)13)), 5 << 8);
	expect(shared[0], 13);
	expect(shared[2], 0);
	expect(call(SYS_munmap, FIXED, PAGE), 0);
}

/* A page that a vfork's child shares with its parent, which shares it with the parent's own: one copy for both. */
static void between_forks(void)
{
	u64 *page = map(PAGE, RW);

	page[0] = 1, page[1] = 2;
	long pid = fork();
	if (pid == 0) {
		shared[0] = 0;
		expect(ending(vfork_to(store_and_leave, (void *)21)), 3 << 8);
		expect(shared[0], 21);
		expect(page[0], 1);
		page[0] = 5;
		leave_checked();
	}
	shared[0] = 31;
	expect(ending(pid), 0);
	expect(shared[0], 31);
	expect(page[0], 1);
	expect(call(SYS_munmap, page, PAGE), 0);
}

/* ---- execve ---- */

static void in_child(const char *what, const char *argument, int status)
{
	long pid = fork();

	if (pid == 0) {
		/* All sorts of things that the new program is not to find. */
		char *heap = (char *)call(SYS_brk, 0);

		initial = 1;
		for (u64 i = 0; i < 4096; i++)
			zeros[i] = i + 1;
		call(SYS_brk, heap + 4 * PAGE);
		memset(heap, 0xa5, 4 * PAGE);
		map_at(FIXED, 2 * PAGE, RW, ANON | MAP_FIXED);
		memset(FIXED, 0xa5, 2 * PAGE);
		call(SYS_madvise, FIXED, PAGE, MADV_PAGEOUT);
		tag_mode(SYNC);
		if (equal(what, "children") && fork() == 0)
			leave(12);
		if (equal(what, "number"))
			leave(exec(what, argument) ? 98 : 0);
		__asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1\n\tmsr tpidr_el0, %2\n\tdup v9.2d, %2"
				 : : "r"(0x400000UL), "r"(0x11UL), "r"(0x123456789UL) : "v9");
		exec(what, argument);
		leave(98);
	}
	if (equal(what, "number"))
		status = pid % 200 + 1;
	expect(ending(pid), status << 8);
	expect(initial, 77);
	expect(zeros[5], 0);
}

static void errors(void)
{
	const char *argv[] = { self, "fresh", 0 };
	char *hole = map(2 * PAGE, RW), *nothing[] = { 0 };
	u64 *pointers = (u64 *)(hole + PAGE) - 1, size = 4 * MIB;

	expect(call(SYS_munmap, hole + PAGE, PAGE), 0);
	*pointers = (u64)self; /* the next one cannot be read */
	expect(call(SYS_execve, "/no/such/program", argv, nothing), -ENOENT);
	expect(call(SYS_execve, "no-such-program", argv, nothing), -ENOENT);
	expect(call(SYS_execve, "", argv, nothing), -ENOENT);
	expect(call(SYS_execve, 0, argv, nothing), -EFAULT);
	expect(call(SYS_execve, hole + PAGE, argv, nothing), -EFAULT);
	expect(call(SYS_execve, self, hole + PAGE, nothing), -EFAULT);
	expect(call(SYS_execve, self, pointers, nothing), -EFAULT);
	expect(call(SYS_execve, self, argv, hole + PAGE), -EFAULT);
	expect(call(SYS_execve, self, argv, pointers), -EFAULT);
	const char *bad[] = { self, hole + PAGE, 0 };
	expect(call(SYS_execve, self, bad, nothing), -EFAULT);
	expect(call(SYS_execve, self, argv, bad), -EFAULT);
	/* A string without end runs into the hole. */
	memset(hole, 'a', PAGE);
	bad[1] = hole;
	expect(call(SYS_execve, self, bad, nothing), -EFAULT);

	/* Longer than any path, than any argument, and than all arguments together. */
	char *text = map(size, RW);
	memset(text, 'a', size - 1);
	expect(call(SYS_execve, text, argv, nothing), -ENAMETOOLONG);
	bad[1] = text;
	expect(call(SYS_execve, self, bad, nothing), -E2BIG);
	expect(call(SYS_execve, self, argv, bad), -E2BIG);
	const char **lots = map(size, RW);
	for (u64 i = 0; i < 4096; i++)
		lots[i] = text + size - 4000;
	expect(call(SYS_execve, self, lots, nothing), -E2BIG);
	/* After all that nothing has changed. */
	expect(initial, 77);
	expect(text[5], 'a');
	expect(call(SYS_munmap, text, size), 0);
	expect(call(SYS_munmap, lots, size), 0);
	expect(call(SYS_munmap, hole, PAGE), 0);
}

/* 400 arguments, of up to 400 bytes. */
static void many_arguments(void)
{
	static char text[400][401];
	static char *argv[401];
	long pid = fork();

	if (pid == 0) {
		for (int i = 0; i < 400; i++) {
			memset(text[i], 'a' + i % 26, i);
			argv[i] = text[i];
		}
		argv[0] = self, argv[1] = "many";
		call(SYS_execve, self, argv, no_environment);
		leave(98);
	}
	expect(ending(pid), 46 << 8);
}

/* An argument may end with the last byte that a program can have. */
static void argument_at_the_end(void)
{
	long pid = fork();

	if (pid == 0) {
		char *end = (char *)(1UL << 52);

		/* However many bits addresses have; and it may be the stack, whose last word nobody needs. */
		for (; end > (char *)(1UL << 38); end = (char *)((u64)end / 2)) {
			void *last = map_at(end - PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE);

			if (last == end - PAGE || (long)last == -EEXIST)
				break;
		}
		memcpy(end - 6, "there", 6);
		exec(end - 6, 0);
		leave(98);
	}
	expect(ending(pid), 48 << 8);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	self = argv[0];
	if (argc > 1)
		return role(argc, argv, envp, auxv);
	if (argc == 0 || !argv[0][0]) /* no arguments is one empty one */
		return argc == 1 && envp[0] && equal(envp[0], "NAME=value") && !envp[1] ? 47 : 99;
	parent = call(SYS_getpid);
	/* Where it cannot be found by the name that it was given, the kernel has another. */
	long found = fork();
	if (found == 0) {
		exec("there", 0);
		leave(98);
	}
	if (ending(found) != 48 << 8)
		self = (char *)auxv_value(auxv, 31); /* AT_EXECFN */
	if (!self) {
		put("what is this program called?\n");
		return 96;
	}
	shared_memory();
	between_forks();
	in_child("fresh", "an argument with spaces", 42);
	in_child("slow", 0, 43);
	in_child("children", 0, 44);
	in_child("again", "9", 45);
	in_child("number", 0, 0);
	many_arguments();
	argument_at_the_end();
	long pid = fork();
	if (pid == 0) {
		char *const environment[] = { "NAME=value", 0 };

		call(SYS_execve, self, 0, environment);
		leave(98);
	}
	expect(ending(pid), 47 << 8);
	errors();
	for (int i = 0; i < 20; i++)
		in_child("fresh", "an argument with spaces", 42);
	check(call(SYS_getpid) == parent);
	return finish();
}
