/*
 * Tag check modes other than "none" and "synchronous", and the tags that IRG may choose.
 *
 * Without arguments, or with "asymm" (the kernel prefers the asymmetric mode): checks, none
 * of which may be fatal. With MODE ACCESS NEXT: an access with a wrong tag in that mode, then
 * something that enters the kernel; the program is to end there.
 *   MODE    async, both (the kernel chooses)
 *   ACCESS  load, store
 *   NEXT    write, exit, prctl, fault, undefined; turn: a child does it, and then waits for the end of its turn,
 *           after which its parent goes on; full: a fault for which there is no memory, at a limit that the
 *           program was started under, with nothing to swap to
 */
#include "ebb.h"

enum {
	SYNC = PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC, ASYNC = PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_ASYNC,
	BOTH = SYNC | ASYNC,
};
static const u64 ALL_TAGS = 0xffffUL << PR_MTE_TAG_SHIFT;

static long mode_now(void) { return call(SYS_prctl, PR_GET_TAGGED_ADDR_CTRL); }

/* Two pages, all of whose tags are 7. */
static char *tagged_pages(void)
{
	char *p = map(2 * PAGE, RW | PROT_MTE);

	for (u64 i = 0; i < 2 * PAGE; i += 16)
		set_tag(p + i, 7);
	return p;
}

/* PR_GET gives back what was set, whatever mode the CPU then runs in. */
static void what_was_set(void)
{
	static const u64 modes[] = { ASYNC, BOTH, SYNC, PR_TAGGED_ADDR_ENABLE, PR_MTE_TCF_ASYNC, 0 };

	for (u64 i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		for (u64 tags = 0; tags < 0x10000; tags = tags * 2 + 1) {
			expect(tag_mode(modes[i] | tags << PR_MTE_TAG_SHIFT), 0);
			expect(mode_now(), modes[i] | tags << PR_MTE_TAG_SHIFT);
		}
	/* What is refused changes nothing. */
	expect(tag_mode(ASYNC), 0);
	expect(tag_mode(BOTH | 1UL << 40), -EINVAL);
	expect(call(SYS_prctl, PR_SET_TAGGED_ADDR_CTRL, BOTH, 1), -EINVAL);
	expect(mode_now(), ASYNC);
}

/* Right tags, pages that come and go, and checks that are off: nothing to note. */
static void no_fault(u64 mode)
{
	char *p = tagged_pages(), *good = with_tag(p, 7);

	expect(tag_mode(mode), 0);
	for (int round = 0; round < 3; round++) {
		for (u64 i = 0; i < 2 * PAGE; i += 8)
			*(volatile u64 *)(good + i) = i;
		expect(call(SYS_madvise, p, 2 * PAGE, MADV_PAGEOUT), 0);
		for (u64 i = 0; i < 2 * PAGE; i += 8)
			expect(*(volatile u64 *)(good + i), i);
	}
	/* PSTATE.TCO is the program's own switch. */
	__asm__ volatile(MEMTAG "msr tco, #1\n\tstr xzr, [%0]\n\tldr xzr, [%0]\n\tmsr tco, #0" : : "r"(p) : "memory");
	expect(call(SYS_getpid) > 0, 1);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
	*(volatile char *)p = 1;
	expect(tag_mode(mode), 0);
	expect(call(SYS_getpid) > 0, 1);
}

/*
 * A buffer with the wrong tag, in memory and out of it: the kernel's loads and stores are
 * refused where the program's own would be synchronous faults, and else not checked.
 */
static void buffers(u64 mode, int loads, int stores)
{
	char *p = tagged_pages(), *good = with_tag(p, 7), *bad = with_tag(p, 8);

	good[0] = '.', good[1] = '\n';
	expect(tag_mode(mode), 0);
	for (int round = 0; round < 2; round++) {
		expect(call(SYS_write, 1, good, 2), 2);
		expect(call(SYS_write, 1, bad, 2), loads ? -EFAULT : 2);
		expect(call(SYS_getrandom, good + PAGE, 16, 0), 16);
		expect(call(SYS_getrandom, bad + PAGE, 16, 0), stores ? -EFAULT : 16);
		expect(call(SYS_clock_gettime, 1, bad + PAGE), stores ? -EFAULT : 0);
		expect(call(SYS_madvise, p, 2 * PAGE, MADV_PAGEOUT), 0);
	}
	/* Where nothing may be written, no mode lets the kernel do it. */
	expect(call(SYS_mprotect, p, 2 * PAGE, PROT_READ), 0);
	expect(call(SYS_getrandom, bad, 16, 0), -EFAULT);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
}

static u64 random_tag(u64 excluded)
{
	u64 x = 0;

	__asm__ volatile(MEMTAG "irg %0, %0, %1" : "+r"(x) : "r"(excluded));
	return x >> 56;
}

/* The tags that IRG chose in many tries, as a mask. */
static u64 random_tags(u64 excluded)
{
	u64 seen = 0;

	for (int i = 0; i < 2000; i++)
		seen |= 1UL << random_tag(excluded);
	return seen;
}

static void included_tags(u64 mode)
{
	u64 x = 0;

	expect(tag_mode(mode), 0);
	expect(random_tags(0), 1); /* no tag allowed: always 0 */
	expect(tag_mode(mode | ALL_TAGS), 0);
	expect(random_tags(0), 0xffff);
	expect(random_tags(0xff00), 0x00ff);
	expect(tag_mode(mode | 0x0212UL << PR_MTE_TAG_SHIFT), 0);
	expect(random_tags(0), 0x0212);
	expect(random_tags(0x0002), 0x0210);
	/* ADDG steps over what is not allowed: 1, 4, 9. */
	x = 1UL << 56;
	__asm__ volatile(MEMTAG "addg %0, %0, #0, #2" : "+r"(x));
	expect(x >> 56, 9);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE), 0);
}

static int checks_of(int asymm)
{
	what_was_set();
	no_fault(ASYNC);
	no_fault(BOTH);
	no_fault(SYNC);
	buffers(ASYNC, 0, 0);
	buffers(BOTH, asymm, 0);
	buffers(SYNC, 1, 1);
	buffers(ASYNC, 0, 0);
	included_tags(SYNC);
	included_tags(ASYNC);
	included_tags(PR_TAGGED_ADDR_ENABLE);
	return finish();
}

/* An access with the wrong tag, and at once an undefined instruction: no interrupt is likely to come in between. */
static void access_and_die(volatile char *p, int load)
{
	if (load)
		__asm__ volatile("ldrb wzr, [%0]\n\tudf #0" : : "r"(p) : "memory");
	else
		__asm__ volatile("strb wzr, [%0]\n\tudf #0" : : "r"(p) : "memory");
}

/* The child ends by an interrupt; the timer must wake the parent all the same. */
static int turn(volatile char *p, int load)
{
	long pid = fork();

	if (pid == 0) {
		if (tag_mode(ASYNC) != 0)
			leave(99);
		if (load)
			(void)*p;
		else
			*p = 1;
		for (;;)
			;
	}
	expect(ending(pid), SIGSEGV);
	for (int i = 0; i < 3; i++)
		sleep_us(20000);
	return finish();
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	volatile char *p, *fresh;

	(void)envp;
	put("HWCAP2_MTE3="), put_num(auxv_value(auxv, 26) >> 22 & 1), put("\n");
	if (argc < 4)
		return checks_of(argc > 1);
	p = (volatile char *)tagged_pages();
	if (equal(argv[3], "turn"))
		return turn(p, equal(argv[2], "load"));
	fresh = map(PAGE, RW);
	/* Without such a limit all is had. */
	if (equal(argv[3], "full") && call(SYS_madvise, map(16 * MIB, RW), 16 * MIB, MADV_POPULATE_WRITE) == 0)
		put("no limit\n");
	put("about to fail\n");
	if (tag_mode(equal(argv[1], "both") ? BOTH : ASYNC) != 0)
		return 99;
	if (equal(argv[3], "undefined")) /* whose own signal goes first */
		access_and_die(p, equal(argv[2], "load"));
	else if (equal(argv[2], "load"))
		(void)*p;
	else
		*p = 1;
	if (equal(argv[3], "exit"))
		leave(0);
	else if (equal(argv[3], "prctl"))
		tag_mode(0);
	else if (equal(argv[3], "fault") || equal(argv[3], "full"))
		*fresh = 1;
	put("still alive\n");
	return 1;
}
