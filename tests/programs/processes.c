/*
 * Processes by vfork and execve alone: who takes turns with whom, what each has for itself, how they end, and what
 * becomes of their children.
 *
 *   processes              all checks
 *   processes end          ends while others spin and sleep
 *   processes workloads N  runs N of /bin/demo at once
 *   processes swapoff      turns swap areas off and on while such run
 *   processes fault        a child that faults: its line of the log
 */
#include "ebb.h"

enum { SYS_clone3 = 435, SIGSTOP = 19, SIGABRT = 6, SIGHUP = 1 };

static char *self;
static char *const no_environment[] = { 0 };

static long nap(u64 seconds, u64 nanos)
{
	u64 time[2] = { seconds, nanos };

	return call(SYS_nanosleep, time, 0);
}

struct words { const char *path, *a, *b, *c, *d; };

static int run(void *arg)
{
	struct words *words = arg;
	const char *argv[] = { words->path, words->a, words->b, words->c, words->d, 0 };

	return call(SYS_execve, words->path, argv, no_environment) ? 96 : 0;
}

/* Starts a program; it runs when this returns. */
static long start(const char *path, const char *a, const char *b, const char *c, const char *d)
{
	struct words words = { path, a, b, c, d };

	return vfork_to(run, &words);
}

static long start_self(const char *role, const char *argument) { return start(self, role, argument, 0, 0); }

/* ---- what the program does where it was run by itself ---- */

static __attribute__((noreturn)) void spin_for_ever(void)
{
	for (;;)
		__asm__ volatile("");
}

/* The mode of tag checks, IRG's sequence and IRG's mask are the process' own. argv[2]: a digit. */
static int tags(int which)
{
	u64 mask = which == 1 ? 0x00fe : 0xff00, first[64], x;
	u64 check = which == 1 ? PR_MTE_TCF_SYNC : PR_MTE_TCF_NONE;
	char *p = map(PAGE, RW | PROT_MTE);

	expect(tag_mode(PR_TAGGED_ADDR_ENABLE | check | mask << PR_MTE_TAG_SHIFT), 0);
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < 64; i++) {
			__asm__ volatile(MEMTAG "irg %0, %1" : "=r"(x) : "r"(p));
			check(mask >> (x >> 56 & 15) & 1);
			first[i] = x;
			if (i % 16 == 0)
				spin(5);
			if (check == PR_MTE_TCF_NONE)
				*(volatile char *)with_tag(p, i % 16) = 1; /* no check */
			expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL),
			       PR_TAGGED_ADDR_ENABLE | check | mask << PR_MTE_TAG_SHIFT);
		}
	(void)first;
	if (check == PR_MTE_TCF_SYNC) {
		set_tag(p, 3);
		spin(30);
		*(volatile char *)with_tag(p, 3) = 1;
		if (!failures)
			*(volatile char *)with_tag(p, 4) = 1; /* its end */
	}
	return failures ? 99 : 60;
}

/* A wrong tag that is only noted: found by the next interrupt, though there is no system call. */
static int late_tags(void)
{
	char *p = map(PAGE, RW | PROT_MTE);

	*p = 1;
	tag_mode(PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_ASYNC | 0xfffeUL << PR_MTE_TAG_SHIFT);
	*(volatile char *)with_tag(p, 4) = 1;
	spin_for_ever();
}

static int role(int argc, char **argv)
{
	const char *role = argv[1];
	int digit = argc > 2 ? argv[2][0] - '0' : 0;

	if (equal(role, "leave"))
		return 10 * digit;
	if (equal(role, "spin"))
		spin_for_ever();
	if (equal(role, "brief")) {
		spin(40);
		return 50;
	}
	if (equal(role, "sleep"))
		for (;;)
			nap(1000, 0);
	if (equal(role, "null"))
		*(volatile int *)(u64)digit = 1;
	if (equal(role, "orphan")) { /* leaves a child behind */
		if (digit)
			start_self("brief", 0);
		else
			start_self("leave", "3");
		return 51;
	}
	if (equal(role, "waits")) /* for a child that never ends */
		return ending(start_self("spin", 0)) >= 0;
	if (equal(role, "tags"))
		return tags(digit);
	if (equal(role, "late tags"))
		return late_tags();
	if (equal(role, "parent"))
		return call(SYS_getppid) % 100;
	return 97;
}

/* ---- checks ---- */

static void statuses(void)
{
	u64 usage[18];
	int status = 5;

	memset(usage, 0xff, sizeof(usage));
	expect(call(SYS_wait4, -1, &status, 0, 0), -ECHILD);
	expect(call(SYS_wait4, -1, &status, WNOHANG, 0), -ECHILD);
	expect(call(SYS_wait4, 77777, &status, 0, 0), -ECHILD);
	expect(call(SYS_wait4, -1, &status, 0x10, 0), -EINVAL);
	expect(call(SYS_wait4, (int)0x80000000, &status, 0, 0), -ESRCH);
	expect(status, 5);
	expect(ending(start_self("leave", "0")), 0);
	expect(ending(start_self("leave", "7")), 70 << 8);
	expect(ending(start_self("null", "0")), SIGSEGV);
	expect(ending(start_self("parent", 0)), call(SYS_getpid) % 100 << 8);

	long a = start_self("leave", "1"), b = start_self("leave", "2");
	check(a != b && a > 0 && b > 0);
	expect(call(SYS_wait4, b, &status, 0, usage), b);
	expect(status, 20 << 8);
	check(usage[17] != -1UL);
	expect(call(SYS_wait4, b, &status, 0, 0), -ECHILD);
	/* A status that cannot be stored is lost. */
	expect(call(SYS_wait4, a, 8, 0, 0), -EFAULT);
	expect(call(SYS_wait4, a, &status, 0, 0), -ECHILD);
	/* Of any child, and without a place for the status. */
	a = start_self("leave", "1");
	expect(call(SYS_wait4, 0, 0, 0, 0), a);
	a = start_self("brief", 0);
	expect(call(SYS_wait4, a, &status, WNOHANG, 0), 0);
	expect(call(SYS_wait4, -1, &status, 2 | 8, 0), a);
	expect(status, 50 << 8);
}

/* Linux has threads. */
static void calls_that_are_not_there(void)
{
	if (call(SYS_getpid) != 1)
		return;
	expect(call(SYS_clone, CLONE_VM | SIGCHLD), -EINVAL);
	expect(call(SYS_clone, 0x3d0700), -EINVAL); /* a thread, but for its signal handlers */
	expect(call(SYS_clone3, 0, 0), -ENOSYS);
}

static void signals(void)
{
	long pid = start_self("spin", 0), other = start_self("sleep", 0);

	expect(kill(pid, 0), 0);
	expect(kill(pid, 65), -EINVAL);
	expect(kill(pid, -1), -EINVAL);
	expect(kill(77777, SIGTERM), -ESRCH);
	expect(kill(pid, SIGCHLD), 0); /* ignored */
	expect(call(SYS_wait4, pid, 0, WNOHANG, 0), 0);
	expect(kill(pid, SIGTERM), 0);
	expect(ending(pid), SIGTERM);
	expect(kill(pid, 0), -ESRCH);
	expect(call(SYS_tgkill, other, other, SIGABRT), 0);
	expect(ending(other), SIGABRT);
	expect(call(SYS_tgkill, 0, 0, SIGABRT), -EINVAL);
	/* One that waits for a child: the child stays, and is somebody else's. */
	pid = start_self("waits", 0);
	for (int turn = 0; turn < 200 && kill(pid + 1, 0) != 0; turn++)
		spin(20);
	spin(20);
	expect(kill(pid, SIGHUP), 0);
	expect(ending(pid), SIGHUP);
	expect(kill(pid + 1, SIGKILL), 0);
	/* A zombie gets signals, and keeps its status. */
	int end = SIGKILL;
	for (u64 ms = 30; end == SIGKILL && ms < 4000; ms *= 2) {
		pid = start_self("leave", "4");
		spin(ms);
		expect(kill(pid, SIGKILL), 0);
		end = ending(pid);
	}
	expect(end, 40 << 8);
}

/* The first process inherits children, and has nobody above it. Elsewhere there is nothing to see. */
static void orphans(void)
{
	int status;

	while (call(SYS_wait4, -1, &status, 0, 0) > 0) /* of `signals` */
		;
	if (call(SYS_getpid) != 1)
		return;
	expect(call(SYS_getppid), 0);
	for (int digit = 0; digit < 2; digit++) {
		long pid = start_self("orphan", digit ? "1" : "0");

		expect(ending(pid), 51 << 8);
		check(call(SYS_wait4, -1, &status, 0, 0) > pid);
		expect(status, (digit ? 50 : 30) << 8);
		expect(call(SYS_wait4, -1, &status, 0, 0), -ECHILD);
	}
}

/* Children that spin get on, and so do we. */
static void turns(void)
{
	long stuck = start_self("spin", 0), pids[3];
	u64 from = ticks();

	for (int i = 0; i < 3; i++)
		pids[i] = start_self("brief", 0);
	for (int i = 0; i < 3; i++)
		expect(ending(pids[i]), 50 << 8);
	/* Four spin: each gets its quarter or so. */
	check(ticks() - from < ticks_of_ms(4000));
	expect(call(SYS_wait4, stuck, 0, WNOHANG, 0), 0);
	from = ticks();
	for (int i = 0; i < 5; i++)
		expect(nap(0, 3000000), 0);
	check(ticks() - from >= ticks_of_ms(15));
	expect(nap(0, 1000000000), -EINVAL);
	expect(kill(stuck, SIGKILL), 0);
	expect(ending(stuck), SIGKILL);
}

static void tag_modes(const u64 *auxv)
{
	if (!(auxv_value(auxv, 26) >> 18 & 1)) /* HWCAP2_MTE */
		return;
	long a = start_self("tags", "1"), b = start_self("tags", "2"), c = start_self("late tags", 0);

	expect(ending(b), 60 << 8);
	expect(ending(a), SIGSEGV);
	expect(ending(c), SIGSEGV);
	expect(call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL), 0);
}

static int workloads(int count)
{
	static const char *const seeds[] = { "1", "2", "3", "4", "5", "6", "7", "8" };
	long pids[8];

	for (int i = 0; i < count; i++)
		pids[i] = start("/bin/demo", "--mib", "40", "--seed", seeds[i]);
	for (int i = 0; i < count; i++)
		expect(ending(pids[i]), 0);
	return finish();
}

/* What is out is in several spaces, which come and go. */
static int areas(void)
{
	static const char *const devices[] = { "/dev/ram0", "/dev/ram1" };
	long last = start("/bin/demo", "--mib", "48", "--passes", "3");
	int offs = 0, round = 0;

	start("/bin/demo", "--mib", "40", "--seed", "2");
	start("/bin/demo", "--mib", "24", "--seed", "3");
	while (call(SYS_wait4, last, 0, WNOHANG, 0) == 0) {
		const char *device = devices[round++ % 2];
		long done = call(SYS_swapoff, device);

		check(done == 0 || done == -ENOMEM || done == -EBUSY);
		if (done == 0) {
			offs++;
			expect(call(SYS_swapon, device, 0), 0);
		}
		nap(0, 20000000);
	}
	for (int i = 0, status; i < 2; i++) {
		check(call(SYS_wait4, -1, &status, 0, 0) > 0);
		expect(status, 0);
	}
	check(offs > 1);
	return finish();
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp;
	self = argv[0];
	if (argc > 1 && equal(argv[1], "end")) {
		start_self("spin", 0), start_self("sleep", 0), start_self("waits", 0), start_self("leave", "1");
		return 9;
	}
	if (argc > 1 && equal(argv[1], "workloads"))
		return workloads(argv[2][0] - '0');
	if (argc > 1 && equal(argv[1], "swapoff"))
		return areas();
	if (argc > 1 && equal(argv[1], "fault"))
		return ending(start_self("null", "8")) == SIGSEGV ? 0 : 1;
	if (argc > 1)
		return role(argc, argv);
	statuses();
	calls_that_are_not_there();
	signals();
	orphans();
	turns();
	tag_modes(auxv);
	return finish();
}
