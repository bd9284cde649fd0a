/* Copy on write: what one process stores after a fork no other sees, whatever the order and the kind of memory. */
#include "pages.h"

enum order { PARENT_FIRST, CHILD_FIRST, PARENT_ONLY, CHILD_ONLY, CHILD_GONE, ORDERS };

/*
 * Parent and child store, each where it says, in all orders. The gates are made before the memory is, so that they
 * have no share in it, where it is a mapping.
 */
static void sides(void *memory, u64 count, u64 mapping, u64 first_p, u64 n_p, u64 first_c, u64 n_c)
{
	for (int order = 0; order < ORDERS; order++) {
		long go = gate(), done = gate(), pid;

		if (mapping)
			memory = map_at(memory, count * PAGE, RW, ANON | MAP_FIXED);
		use(memory, count);
		pid = fork();
		if (pid == 0) {
			expect(wrong(), 0);
			if (order == CHILD_FIRST)
				store_some(first_c, n_c, 1000);
			if (order == CHILD_GONE)
				leave_checked();
			open_gate(done);
			pass(go);
			/* Here the parent has stored, or will not. */
			expect(wrong(), 0);
			if (order == PARENT_FIRST || order == CHILD_ONLY)
				store_some(first_c, n_c, 1000);
			expect(wrong(), 0);
			leave_checked();
		}
		if (order == CHILD_GONE) {
			expect(ending(pid), 0);
			open_gate(done);
		}
		pass(done);
		expect(wrong(), 0);
		if (order != CHILD_ONLY)
			store_some(first_p, n_p, 2000);
		expect(wrong(), 0);
		open_gate(go);
		pass(go);
		if (order != CHILD_GONE)
			expect(ending(pid), 0);
		expect(wrong(), 0);
		/* Alone again. */
		store_some(0, 1, 3000);
		expect(wrong(), 0);
	}
}

/* Each of a row of processes stores to pages of its own choice, before and after the next is forked. */
static void chain(int levels)
{
	long pid;

	if (levels == 0)
		return;
	store_some(levels, 5, 100 * levels);
	pid = fork();
	if (pid == 0) {
		expect(wrong(), 0);
		store_some(0, levels + 1, 100 * levels + 50);
		chain(levels - 1);
		expect(wrong(), 0);
		leave_checked();
	}
	store_some(2, 7, 100 * levels + 70);
	expect(wrong(), 0);
	expect(ending(pid), 0);
	expect(wrong(), 0);
}

/* Four generations share pages and live at once; they store one after the other, in each order. */
static void generations(void *memory, u64 count)
{
	static const u8 orders[][4] = {
		{ 0, 1, 2, 3 }, { 3, 2, 1, 0 }, { 1, 3, 0, 2 }, { 2, 0, 3, 1 }, { 0, 3, 1, 2 }, { 3, 0, 2, 1 },
	};

	for (u64 o = 0; o < sizeof(orders) / 4; o++) {
		long turns[5], pid = 0;
		int me = 0;

		for (int i = 0; i < 5; i++)
			turns[i] = gate();
		use(map_at(memory, count * PAGE, RW, ANON | MAP_FIXED), count);
		while (me < 3 && (pid = fork()) == 0)
			me++;
		if (me == 3) { /* all are there */
			pid = 0;
			open_gate(turns[0]);
		}
		for (int turn = 0; turn < 4; turn++) {
			pass(turns[turn]);
			expect(wrong(), 0);
			if (orders[o][turn] == me) {
				store_some(o % 2, o < 4 ? 1 : GROUP, 100 * (me + 1));
				open_gate(turns[turn + 1]);
			}
		}
		/* All have stored. */
		pass(turns[4]);
		expect(wrong(), 0);
		store_some(me, 4, 1000 + me);
		if (pid)
			expect(ending(pid), 0);
		expect(wrong(), 0);
		if (me)
			leave_checked();
	}
}

/* Rights that change on one side. */
static void protection(void)
{
	static const struct { u8 before, child, parent; } rights[] = {
		{ PROT_READ, RW, PROT_READ }, { RW, PROT_READ, RW }, { PROT_NONE, RW, RW }, { PROT_NONE, RW, PROT_NONE },
		{ PROT_READ, RW, RW }, { RW, PROT_NONE, PROT_READ },
	};

	for (u64 i = 0; i < sizeof(rights) / sizeof(rights[0]); i++) {
		use(map(4 * GROUP * PAGE, RW), 4 * GROUP);
		expect(call(SYS_mprotect, area, pages * PAGE, rights[i].before), 0);
		for (int side = 0; side < 2; side++) { /* who does it first */
			long pid = fork();
			int mine = pid == 0 ? rights[i].child : rights[i].parent;

			if (pid != 0 && side == 0)
				expect(ending(pid), 0);
			expect(call(SYS_mprotect, area, pages * PAGE, mine), 0);
			expect(writable(at(3)), mine == RW);
			if (mine == RW) {
				store(3, 33);
				store_some(1, 3, 500 + pid);
				expect(call(SYS_mprotect, at(5), GROUP * PAGE, PROT_READ), 0);
				expect(writable(at(5)), 0);
			}
			expect(call(SYS_mprotect, area, pages * PAGE, PROT_READ), 0);
			expect(wrong(), 0);
			if (pid == 0)
				leave_checked();
			if (side == 1)
				expect(ending(pid), 0);
			expect(wrong(), 0);
			expect(call(SYS_mprotect, area, pages * PAGE, rights[i].before), 0);
		}
		expect(call(SYS_mprotect, area, pages * PAGE, RW), 0);
		expect(wrong(), 0);
		store_some(0, 2, 900);
		expect(wrong(), 0);
		expect(call(SYS_munmap, area, pages * PAGE), 0);
	}

	/* A right of the parent's that was used before fork is no right of the child's, once taken away there. */
	use(map(PAGE, RW), 1);
	long pid = fork();
	if (pid == 0) {
		call(SYS_mprotect, area, PAGE, PROT_READ);
		*(volatile u64 *)area = 1;
		leave(0);
	}
	expect(ending(pid), SIGSEGV);
	expect(wrong(), 0);
	expect(call(SYS_munmap, area, PAGE), 0);
}

/* Memory that one side gives back. */
static void given_back(void)
{
	for (int how = 0; how < 6; how++) {
		use(map(4 * GROUP * PAGE, RW), 4 * GROUP);
		u64 from = how & 1 ? 5 : 2 * GROUP, to = how & 1 ? 3 * GROUP + 3 : 4 * GROUP;
		void *start = at(from);
		u64 length = (to - from) * PAGE;
		int parent = how >= 4; /* does it; the child looks on */
		long done = gate(), pid = fork();

		if ((pid == 0) != parent) {
			if (how < 2 || parent) {
				expect(call(SYS_madvise, start, length, MADV_DONTNEED), 0);
			} else {
				expect(call(SYS_munmap, start, length), 0);
				expect(mapped(start, length), 0);
				expect(map_at(start, length, RW, ANON | MAP_FIXED), start);
			}
			for (u64 page = from; page < to; page++)
				expect_zero(page);
			expect(wrong(), 0);
			store_some(1, 3, 600);
			expect(wrong(), 0);
		}
		if (parent) {
			if (pid == 0)
				pass(done);
			else
				open_gate(done);
		}
		if (pid == 0) {
			expect(wrong(), 0);
			store_some(0, 4, 800);
			expect(wrong(), 0);
			leave_checked();
		}
		if (!parent)
			open_gate(done);
		pass(done);
		expect(ending(pid), 0);
		expect(wrong(), 0);
		store_some(0, 2, 700);
		expect(wrong(), 0);
		expect(call(SYS_munmap, area, pages * PAGE), 0);
	}
}

/* Pages that nobody touched before the fork, or that were only read. */
static void untouched(void)
{
	area = map(2 * GROUP * PAGE, RW);
	pages = 2 * GROUP;
	memset(model, 0, sizeof(model));
	for (u64 page = 0; page < GROUP; page++)
		expect(*(volatile u64 *)at(page), 0);
	long pid = fork();
	store_some(pid == 0, 3, pid == 0 ? 100 : 200);
	expect(wrong(), 0);
	if (pid == 0)
		leave_checked();
	expect(ending(pid), 0);
	expect(wrong(), 0);
	expect(call(SYS_munmap, area, pages * PAGE), 0);
}

/* Stores of other kinds are stores as well: each alone must make a copy. */
static void kinds(void)
{
	enum { KINDS = 8 };
	u64 dczid, old, failed;

	__asm__("mrs %0, dczid_el0" : "=r"(dczid));
	use(map(2 * KINDS * PAGE, RW), 2 * KINDS);
	/* First the child does it all, and the second time the parent does, as the child lives. */
	for (int side = 0; side < 2; side++) {
		long done = gate(), pid = fork();

		if ((pid == 0) == (side == 0)) {
			u64 *p = at(0), x = 7;

			/* Exclusive: in a loop, as anyone writes it. */
			do
				__asm__ volatile("ldxr %0, [%2]\n\tadd %0, %0, #1\n\tstxr %w1, %0, [%2]"
						 : "=&r"(old), "=&r"(failed) : "r"(p) : "memory");
			while (failed & 1);
			expect(*p, word(model[0].data, 0) + 1);
			*p = word(model[0].data, 0);
			/* A block of zeros at once. */
			p = at(1);
			if (!(dczid & 16)) {
				__asm__ volatile("dc zva, %0" : : "r"(p) : "memory");
				for (u64 i = 0; i < 1UL << (dczid & 15) >> 1; i++)
					expect(p[i], 0);
				for (u64 i = 0; i < 1UL << (dczid & 15) >> 1; i++)
					p[i] = word(model[1].data, i);
			}
			/* Across the border of two pages. */
			p = (u64 *)((char *)at(3) - 3);
			*(volatile u64 *)p = ~0UL;
			expect(((u8 *)at(3))[4], 255);
			expect(((u8 *)at(3))[-3], 255);
			store(2, 42), store(3, 43);
			/* Pairs and vectors, with the base moved on. */
			p = at(4);
			__asm__ volatile("stp %1, %1, [%0], #16\n\tstr q0, [%0]" : "+r"(p) : "r"(x) : "memory");
			expect(at(4)[0], 7);
			store(4, 44);
			/* By the kernel: all bytes, and a status in the last ones of a page. */
			expect(call(SYS_getrandom, at(5), 2 * PAGE, 0), 2 * PAGE);
			store(5, 45), store(6, 46);
			int *status = (int *)at(8) - 1;
			long inner = fork();
			if (inner == 0)
				leave(9);
			expect(call(SYS_wait4, inner, status, 0, 0), inner);
			expect(*status, 9 << 8);
			store(7, 47);
			expect(wrong(), 0);
		}
		if (pid == 0) {
			if (side == 1)
				pass(done);
			expect(wrong(), 0);
			leave_checked();
		}
		open_gate(done);
		pass(done);
		expect(ending(pid), 0);
		expect(wrong(), 0);
	}
}

/* A copied page of code runs as it stands, without the program's doing; and changed, with it. */
static void code(void)
{
	u32 *page = map(PAGE, RW | PROT_EXEC);
	long pid;

	page[0] = 0x52800020; /* mov w0, #1 */
	page[1] = 0xd65f03c0; /* ret */
	page[64] = 0x52800060; /* mov w0, #3 */
	page[65] = 0xd65f03c0;
	for (u64 i = 0; i < 512; i += 4)
		__asm__ volatile("dc cvau, %0\n\tdsb ish\n\tic ivau, %0" : : "r"((char *)page + i) : "memory");
	__asm__ volatile("dsb ish\n\tisb" : : : "memory");
	expect(((int (*)(void))page)(), 1);
	pid = fork();
	if (pid == 0) {
		page[512] = 1; /* makes the copy; the code in it is as it was */
		expect(((int (*)(void))page)(), 1);
		expect(((int (*)(void))(page + 64))(), 3);
		page[0] = 0x52800040; /* mov w0, #2 */
		__asm__ volatile("dc cvau, %0\n\tdsb ish\n\tic ivau, %0\n\tdsb ish\n\tisb" : : "r"(page) : "memory");
		expect(((int (*)(void))page)(), 2);
		leave_checked();
	}
	expect(ending(pid), 0);
	expect(((int (*)(void))page)(), 1);
	expect(page[512], 0);
}

static u64 data[8 * 8192] __attribute__((aligned(65536))) = { 1 };
static u64 bss[8 * 8192] __attribute__((aligned(65536)));

static void on_the_stack(void)
{
	u64 frame[4 * 8192] __attribute__((aligned(16)));

	sides((void *)(((u64)frame + PAGE - 1) & -PAGE), 3, 0, 0, 1, 1, 1);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp, (void)auxv;
	sides(data, 8, 0, 0, 1, 0, 1);
	sides(bss, 8, 0, 0, 2, 1, 3);
	on_the_stack();
	char *heap = (char *)((call(SYS_brk, 0) + PAGE - 1) & -PAGE);
	expect(call(SYS_brk, heap + 20 * PAGE), heap + 20 * PAGE);
	sides(heap, 20, 0, 0, 1, 0, 1);

	/* Whole groups, single pages of them from either side, the same and others, and what lies across groups. */
	char *place = map(MOST * PAGE + GROUP * PAGE, RW);
	place = (char *)(((u64)place + GROUP * PAGE - 1) & -(GROUP * PAGE));
	sides(place, MOST / 2, 1, 0, 1, 0, 1);
	sides(place, MOST, 1, 0, GROUP, 0, GROUP);
	sides(place, MOST, 1, GROUP - 1, GROUP, 3, GROUP);
	sides(place, MOST, 1, 0, GROUP, 0, 1);
	sides(place, MOST, 1, 1, 2, 7, 5);
	sides(place + PAGE, 3 * GROUP + 5, 1, 0, 7, 2, 7);

	generations(place, 1);
	generations(place, 2 * GROUP);
	use(map_at(place, MOST * PAGE, RW, ANON | MAP_FIXED), MOST);
	chain(6);
	expect(call(SYS_munmap, place, MOST * PAGE), 0);
	protection();
	given_back();
	untouched();
	kinds();
	code();
	return finish();
}
