/*
 * What a test program needs and no more: start code, system calls, printing, checks.
 * No libc: aarch64-linux-gnu-gcc -O2 -static -nostdlib FILE.c
 *
 * The programs use only Linux's interface, so each also runs under Linux, and has to
 * pass there: a check that Linux fails tests something that nobody promises.
 */
#ifndef EBB_H
#define EBB_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#define MIB (1UL << 20)

/* The kernel's, from the auxiliary vector. */
static u64 page_size;
#define PAGE page_size

/* ---- start: the kernel passes argc, argv, envp and auxv on the stack ---- */

int main(int argc, char **argv, char **envp, u64 *auxv);

static __attribute__((noreturn)) void leave(int status);

__attribute__((used, noreturn)) static void start_c(u64 *sp)
{
	int argc = (int)sp[0];
	char **argv = (char **)(sp + 1), **envp = argv + argc + 1, **end = envp;

	while (*end)
		end++;
	for (u64 *aux = (u64 *)(end + 1); aux[0]; aux += 2)
		if (aux[0] == 6) /* AT_PAGESZ */
			page_size = aux[1];
	leave(main(argc, argv, envp, (u64 *)(end + 1)));
}

__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tb start_c\n");

/* ---- system calls, by Linux's numbers ---- */

enum {
	SYS_write = 64, SYS_writev = 66, SYS_exit = 93, SYS_exit_group = 94,
	SYS_set_tid_address = 96, SYS_futex = 98, SYS_set_robust_list = 99, SYS_nanosleep = 101,
	SYS_clock_gettime = 113, SYS_sched_yield = 124, SYS_kill = 129,
	SYS_tkill = 130, SYS_tgkill = 131,
	SYS_uname = 160, SYS_getrlimit = 163, SYS_setrlimit = 164, SYS_prctl = 167, SYS_getpid = 172, SYS_getppid = 173, SYS_gettid = 178,
	SYS_sysinfo = 179, SYS_brk = 214, SYS_munmap = 215, SYS_mremap = 216, SYS_clone = 220, SYS_execve = 221,
	SYS_mmap = 222, SYS_swapon = 224, SYS_swapoff = 225, SYS_mprotect = 226, SYS_mlock = 228,
	SYS_munlock = 229, SYS_mlockall = 230, SYS_munlockall = 231, SYS_mincore = 232, SYS_madvise = 233,
	SYS_wait4 = 260, SYS_prlimit64 = 261, SYS_getrandom = 278, SYS_mlock2 = 284,
};

enum {
	EPERM = 1, ENOENT = 2, ESRCH = 3, E2BIG = 7, ECHILD = 10, EAGAIN = 11, ENOMEM = 12, EFAULT = 14, EBUSY = 16,
	EINTR = 4, EEXIST = 17, EINVAL = 22, ENAMETOOLONG = 36, ENOSYS = 38, ETIMEDOUT = 110,
};
enum { SIGILL = 4, SIGBUS = 7, SIGKILL = 9, SIGSEGV = 11, SIGTERM = 15, SIGCHLD = 17 };
enum { CLONE_VM = 0x100, CLONE_VFORK = 0x4000, WNOHANG = 1 };

enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, PROT_MTE = 0x20, PROT_SEM = 8, RW = 3, RX = 5 };
enum {
	MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20,
	MAP_GROWSDOWN = 0x100, MAP_LOCKED = 0x2000, MAP_NORESERVE = 0x4000, MAP_FIXED_NOREPLACE = 0x100000,
	ANON = MAP_PRIVATE | MAP_ANONYMOUS,
};
enum {
	MADV_NORMAL = 0, MADV_WILLNEED = 3, MADV_DONTNEED = 4, MADV_HUGEPAGE = 14,
	MADV_NOHUGEPAGE = 15, MADV_FREE = 8, MADV_COLD = 20, MADV_PAGEOUT = 21,
	MADV_POPULATE_READ = 22, MADV_POPULATE_WRITE = 23,
};
enum { RLIMIT_STACK = 3, RLIMIT_RSS = 5, RLIMIT_NOFILE = 7 };
enum { MLOCK_ONFAULT = 1, MCL_CURRENT = 1, MCL_FUTURE = 2, MCL_ONFAULT = 4 };
enum {
	PR_SET_TAGGED_ADDR_CTRL = 55, PR_GET_TAGGED_ADDR_CTRL = 56,
	PR_TAGGED_ADDR_ENABLE = 1, PR_MTE_TCF_NONE = 0, PR_MTE_TCF_SYNC = 2,
	PR_MTE_TCF_ASYNC = 4, PR_MTE_TAG_SHIFT = 3,
};

static long call6(long n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register u64 x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	register long x8 __asm__("x8") = n;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5), "r"(x8)
			 : "memory", "cc");
	return (long)x0;
}

#define CALL_N(_0, a, b, c, d, e, f, ...) call6(_0, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e), (u64)(f))
/* call(number, up to six arguments of any scalar type); missing ones are 0 */
#define call(...) CALL_N(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

static __attribute__((noreturn)) void leave(int status)
{
	for (;;)
		call(SYS_exit_group, status);
}

__attribute__((unused)) static void *map_at(void *hint, u64 len, int prot, int flags)
{
	return (void *)call(SYS_mmap, hint, len, prot, flags, -1, 0);
}

/* ---- memory and strings; the compiler calls the first three on its own ---- */

#define PLAIN_LOOP __attribute__((used, optimize("no-tree-loop-distribute-patterns")))

PLAIN_LOOP void *memset(void *p, int c, u64 n)
{
	for (u64 i = 0; i < n; i++)
		((volatile u8 *)p)[i] = (u8)c;
	return p;
}

PLAIN_LOOP void *memcpy(void *p, const void *q, u64 n)
{
	for (u64 i = 0; i < n; i++)
		((volatile u8 *)p)[i] = ((const u8 *)q)[i];
	return p;
}

PLAIN_LOOP u64 strlen(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	return n;
}

PLAIN_LOOP int memcmp(const void *p, const void *q, u64 n)
{
	for (u64 i = 0; i < n; i++)
		if (((const u8 *)p)[i] != ((const u8 *)q)[i])
			return ((const u8 *)p)[i] - ((const u8 *)q)[i];
	return 0;
}

static u64 length(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	return n;
}

__attribute__((unused)) static int equal(const char *a, const char *b)
{
	return length(a) == length(b) && !memcmp(a, b, length(a));
}

/* The number that an argument is. */
__attribute__((unused)) static u64 value(const char *digits)
{
	u64 n = 0;

	while (*digits)
		n = n * 10 + *digits++ - '0';
	return n;
}

/* ---- printing: one write for each piece ---- */

static void put(const char *s) { call(SYS_write, 1, s, length(s)); }

static void put_base(u64 n, unsigned base)
{
	char text[24], *p = text + sizeof(text) - 1;

	*p = 0;
	do
		*--p = "0123456789abcdef"[n % base];
	while (n /= base);
	put(p);
}

__attribute__((unused)) static void put_hex(u64 n) { put("0x"), put_base(n, 16); }

static void put_num(long n)
{
	if (n < 0)
		put("-");
	put_base(n < 0 ? -(u64)n : (u64)n, 10);
}

/* ---- checks ---- */

static int checks, failures;

__attribute__((unused)) static void check_at(int line, const char *what, long got, long want)
{
	checks++;
	if (got == want)
		return;
	failures++;
	put("line "), put_num(line), put(": "), put(what), put(" is ");
	put_num(got), put(", expected "), put_num(want), put("\n");
}

/* expect(value, wanted): the test goes on after a failure */
#define expect(got, want) check_at(__LINE__, #got, (long)(got), (long)(want))
#define check(condition) check_at(__LINE__, #condition, !!(condition), 1)

/* The last line and the status of a program of checks. */
__attribute__((unused)) static int finish(void)
{
	put_num(checks), put(" checks, "), put_num(failures), put(" failed\n");
	return failures != 0;
}

__attribute__((unused)) static void *map(u64 len, int prot)
{
	void *p = map_at(0, len, prot, ANON);

	if ((u64)p >= -4095UL) {
		put("mmap failed\n");
		leave(99);
	}
	return p;
}

/* The pages of a range that are in memory; -errno. */
__attribute__((unused)) static long present(const void *p, u64 pages)
{
	unsigned char told[256];
	long n = 0;

	for (u64 page = 0, some; page < pages; page += some) {
		some = pages - page < sizeof(told) ? pages - page : sizeof(told);
		long error = call(SYS_mincore, (const char *)p + page * PAGE, some * PAGE, told);

		if (error)
			return error;
		for (u64 i = 0; i < some; i++)
			n += told[i] & 1;
	}
	return n;
}

/* Is all of [p, p + len) mapped? WILLNEED asks, and at most brings in what is out. */
__attribute__((unused)) static int mapped(const void *p, u64 len)
{
	return call(SYS_madvise, p, len, MADV_WILLNEED) == 0;
}

/* Would a store by the kernel to this byte work? It is overwritten. */
__attribute__((unused)) static int writable(void *p) { return call(SYS_getrandom, p, 1, 0) == 1; }

__attribute__((unused)) static u64 auxv_value(const u64 *auxv, u64 key)
{
	for (; auxv[0]; auxv += 2)
		if (auxv[0] == key)
			return auxv[1];
	return 0;
}

/* ---- tags ---- */

#define MEMTAG ".arch armv8.5-a+memtag\n\t"

__attribute__((unused)) static void *with_tag(void *p, unsigned tag)
{
	return (void *)(((u64)p & ~(15UL << 56)) | ((u64)tag << 56));
}

/* The memory tag of the granule at p. */
__attribute__((unused)) static unsigned tag_of(void *p)
{
	u64 x = (u64)p;

	__asm__ volatile(MEMTAG "ldg %0, [%0]" : "+r"(x) : : "memory");
	return x >> 56 & 15;
}

__attribute__((unused)) static void set_tag(void *p, unsigned tag)
{
	void *tagged = with_tag(p, tag);

	__asm__ volatile(MEMTAG "stg %0, [%0]" : : "r"(tagged) : "memory");
}

__attribute__((unused)) static long tag_mode(u64 mode)
{
	return call(SYS_prctl, PR_SET_TAGGED_ADDR_CTRL, mode);
}

/* ---- time ---- */

__attribute__((unused)) static u64 ticks(void)
{
	u64 now;

	__asm__ volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(now) : : "memory");
	return now;
}

__attribute__((unused)) static u64 ticks_of_ms(u64 ms)
{
	u64 hz;

	__asm__("mrs %0, cntfrq_el0" : "=r"(hz));
	return hz * ms / 1000;
}

/* Spins for so long, without a system call. */
__attribute__((unused)) static void spin(u64 ms)
{
	for (u64 from = ticks(), length = ticks_of_ms(ms); ticks() - from < length;)
		;
}

/* ---- processes: what one knows of another is how it ended ---- */

/* As fork: 0 in the child, whose checks and failures begin at 0. */
__attribute__((unused)) static long fork(void)
{
	long pid = call(SYS_clone, SIGCHLD);

	if (pid < 0) {
		put("fork: "), put_num(pid), put("\n");
		leave(98);
	}
	if (pid == 0)
		checks = failures = 0;
	return pid;
}

/* The end of a child of checks. */
__attribute__((unused, noreturn)) static void leave_checked(void) { leave(failures != 0); }

/* How a child ended: status << 8, or the signal. -1: it is none of the caller's. */
__attribute__((unused)) static int ending(long pid)
{
	int status = 0;

	return call(SYS_wait4, pid, &status, 0, 0) == pid ? status & ~0x80 /* a core was written */ : -1;
}

__attribute__((unused)) static long kill(long pid, int signal) { return call(SYS_kill, pid, signal); }

__attribute__((unused)) static u64 monotonic_ns(void)
{
	u64 time[2] = { 0, 0 };

	call(SYS_clock_gettime, 1, time);
	return time[0] * 1000000000 + time[1];
}

/* When a program ends that lasts for a time; 0 for one that does not. */
static u64 deadline_ns;

__attribute__((unused)) static int over(void) { return deadline_ns && monotonic_ns() >= deadline_ns; }

/* Sleeps for so long, or until a signal. */
__attribute__((unused)) static void sleep_us(u64 us)
{
	u64 time[2] = { us / 1000000, us % 1000000 * 1000 };

	call(SYS_nanosleep, time, 0);
}

/*
 * Processes take turns by gates. A gate is a child that does nothing until it is killed, by whoever knows its
 * number; pass() waits for that. Its parent must pass it too: until then it is a zombie, which can be signalled.
 * It has its share of the memory that was there when it was made. After a minute it gives up: those who should have
 * opened it are no more. Nobody here waits by sched_yield: a dozen that do keep every CPU at the scheduler's lock,
 * and where an emulator's CPUs are more than the host's, nobody else gets on.
 */
__attribute__((unused)) static long gate(void)
{
	long pid = fork();

	if (pid == 0) {
		sleep_us(60000000);
		leave(1);
	}
	return pid;
}

__attribute__((unused)) static void open_gate(long pid) { kill(pid, SIGKILL); }

__attribute__((unused)) static void pass(long pid)
{
	int end = ending(pid);

	if (end >= 0)
		expect(end, SIGKILL);
	else
		while (kill(pid, 0) != -ESRCH)
			sleep_us(200);
}

/*
 * As vfork; the child calls body(arg) and leaves with what that returns. It runs on the parent's stack, below what
 * is in use, and must not come back here: hence no function that returns twice.
 */
__attribute__((unused, noinline)) static long vfork_to(int (*body)(void *), void *arg)
{
	register long x0 __asm__("x0") = CLONE_VM | CLONE_VFORK | SIGCHLD;
	register long x1 __asm__("x1") = 0, x2 __asm__("x2") = 0, x3 __asm__("x3") = 0, x4 __asm__("x4") = 0;
	register long x8 __asm__("x8") = SYS_clone;
	register int (*x9)(void *) __asm__("x9") = body;
	register void *x10 __asm__("x10") = arg;

	__asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tmov x0, x10\n\tblr x9\n"
			 "0:\tmov x8, #94\n\tsvc #0\n\tb 0b\n1:" /* exit_group */
			 : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x8), "+r"(x9), "+r"(x10)
			 :
			 : "x5", "x6", "x7", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "x30", "memory", "cc",
			   "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22",
			   "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
	return x0;
}

#endif
