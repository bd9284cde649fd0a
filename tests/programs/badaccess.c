/*
 * Accesses that end a program with status 139; the first argument says which. The kernel
 * says on one line what was wrong.
 */
#include "ebb.h"

static volatile u64 *tagged_page(void)
{
	u64 *p = map(PAGE, RW | PROT_MTE);

	tag_mode(PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC);
	set_tag(p, 5);
	return with_tag(p, 10); /* memory has 5, the pointer 10 */
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	const char *how = argc > 1 ? argv[1] : "null";
	volatile u64 *p;

	(void)envp, (void)auxv;
	put("about to fail: "), put(how), put("\n");
	if (equal(how, "null")) {
		p = 0;
		__asm__("" : "+r"(p));
		*p = 1;
	} else if (equal(how, "read-only")) {
		p = map(PAGE, PROT_READ);
		(void)*p;
		*p = 1;
	} else if (equal(how, "none")) {
		p = map(PAGE, PROT_NONE);
		(void)*p;
	} else if (equal(how, "text")) {
		p = (volatile u64 *)((u64)main & ~7UL);
		*p = 1;
	} else if (equal(how, "unmapped")) {
		p = map(PAGE, RW);
		*p = 1;
		call(SYS_munmap, p, PAGE);
		(void)*p;
	} else if (equal(how, "execute")) {
		u32 *code = map(PAGE, RW);

		*code = 0xd65f03c0; /* ret */
		((void (*)(void))code)();
	} else if (equal(how, "kernel")) {
		p = (volatile u64 *)0xffffff8040200000UL;
		(void)*p;
	} else if (equal(how, "jump-null")) {
		void (*f)(void) = 0;

		__asm__("" : "+r"(f));
		f();
	} else if (equal(how, "tag-store")) {
		*tagged_page() = 1;
	} else if (equal(how, "tag-load")) {
		(void)*tagged_page();
	} else if (equal(how, "misaligned-data")) {
		u64 old;

		/* 135: an exclusive access must not cross 16 bytes */
		__asm__ volatile("ldxr %0, [%1]" : "=r"(old) : "r"((char *)map(PAGE, RW) + 12) : "memory");
	} else if (equal(how, "misaligned-pc")) {
		__asm__ volatile("br %0" : : "r"((u64)main + 2)); /* 135 */
	} else if (equal(how, "undefined")) {
		__asm__ volatile("udf #0"); /* 132: illegal instruction */
	} else if (equal(how, "privileged")) {
		__asm__ volatile("msr ttbr0_el1, xzr"); /* 132 */
	}
	put("still alive\n");
	return 1;
}
