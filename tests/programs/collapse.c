/*
 * Memory in single pages, of which a kernel may make large folios again behind the program's back: first touched so,
 * in part paged out, in part shared with a child that has gone. Whatever it does, data and tags stay, and stores that
 * fall together with it are not lost.
 */
#define MOST 256
#include "pages.h"

/* Long beside the time between two searches that the kernel is asked for; the program uses its pages meanwhile. */
#define MS 1000

static void go_on(void)
{
	u64 salt = 0;

	for (u64 from = ticks(), length = ticks_of_ms(MS); ticks() - from < length; salt += MOST)
		for (u64 page = 0; page < pages; page++) {
			store_word(page, salt + page);
			if (tagged)
				store_tag(page, salt / MOST + page);
		}
	expect(wrong(), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)argc, (void)argv, (void)envp;
	tagged = auxv_value(auxv, 26) >> 18 & 1; /* HWCAP2_MTE */
	char *place = map((MOST + GROUP) * PAGE, RW | (tagged ? PROT_MTE : 0));
	char *start = (char *)(((u64)place + GROUP * PAGE - 1) & -(GROUP * PAGE));
	expect(call(SYS_madvise, start, MOST * PAGE, MADV_NOHUGEPAGE), 0);
	use(start, MOST);
	expect(call(SYS_madvise, start, MOST * PAGE, MADV_HUGEPAGE), 0);
	go_on();

	/* In part out. */
	for (u64 page = 0; page < pages; page += 8)
		advise(page, page + 2, MADV_PAGEOUT);
	go_on();

	/* In part copied. */
	long child = fork();
	if (child == 0) {
		store_some(0, 5, 1000);
		go_on();
		leave_checked();
	}
	go_on();
	expect(ending(child), 0);
	go_on();
	return finish();
}
