/*
 * At a limit of memory, with nothing to swap to: a call that makes pages says that there is no memory for them, and the
 * program goes on. It was started under a limit of 4 MiB.
 */
#include "direct.h"

#define SIZE (16 * MIB)

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp;
	begin_direct(argc, argv, auxv);
	char *p = memory(SIZE), *last = p + SIZE - PAGE;

	/* What is used at the limit is there before. */
	expect(present(p, SIZE / PAGE), 0);
	expect(call(SYS_madvise, p, SIZE, MADV_POPULATE_WRITE), -ENOMEM);
	check(present(p, SIZE / PAGE) > 0 && present(p, SIZE / PAGE) < (long)(SIZE / PAGE));
	expect(call(SYS_pread, disk, last, PAGE, 0), -ENOMEM);

	/* What is given back can be had again. */
	expect(call(SYS_madvise, p, SIZE, MADV_DONTNEED), 0);
	fill(last, PAGE, 1);
	expect(call(SYS_pwrite, disk, last, PAGE, 0), PAGE);
	fill(last, PAGE, 2);
	expect(call(SYS_pread, disk, last, PAGE, 0), PAGE);
	expect(wrong(last, PAGE, 1, 0), 0);
	return finish_direct();
}
