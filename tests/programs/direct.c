/*
 * Transfers between a device and a program's own pages (O_DIRECT, see direct.h): what arrives and what is left alone,
 * errors, descriptors, and a device that fails.
 */
#include "direct.h"

static u64 flips;

/* ---- what arrives ---- */

static void round_trips(void)
{
	static const u64 starts[] = { 0, 512, 1024, 1, 2 }, lengths[] = { 512, 1024, 3, 4, 5, 6, 7 };
	char *from = memory(BYTES), *to = memory(BYTES);

	/* What goes out goes to the same devices. */
	int swaps = !slow && !fails && !damages;

	for (u64 i = 0; i < 60; i++) {
		/* Small numbers stand for what lies at the ends of a page. */
		u64 values[] = { starts[below(5)], starts[below(5)], starts[below(5)] }, bytes = lengths[below(7)];

		for (int k = 0; k < 3; k++)
			values[k] = values[k] == 1 ? PAGE - 512 : values[k] == 2 ? 3 * PAGE + 512 : values[k];
		bytes = bytes == 3 ? PAGE - 512 : bytes == 4 ? PAGE : bytes == 5 ? PAGE + 512
			: bytes == 6 ? 3 * PAGE : bytes == 7 ? 19 * PAGE + 512 : bytes;
		u64 source = values[0], target = values[1], pos = values[2] + below(8) * PAGE;

		fill(from, BYTES, i), put_tags(from, BYTES, i);
		fill(to, BYTES, 1000 + i), put_tags(to, BYTES, 7 * i + 3);
		if (i & 1 && swaps)
			call(SYS_madvise, from, BYTES, MADV_PAGEOUT);
		if (i & 2 && swaps)
			call(SYS_madvise, to, BYTES, MADV_PAGEOUT);
		expect(again(SYS_pwrite, from + source, bytes, pos), bytes);
		expect(again(SYS_pread, to + target, bytes, pos), bytes);
		if (i & 4 && swaps)
			call(SYS_madvise, to, BYTES, MADV_PAGEOUT);
		u64 bits = wrong(to + target, bytes, i, source / 8);
		if (damages)
			flips += bits, check(bits <= 2 + bytes / PAGE);
		else
			expect(bits, 0);
		expect(wrong(to, target, 1000 + i, 0), 0);
		expect(wrong(to + target + bytes, BYTES - target - bytes, 1000 + i, (target + bytes) / 8), 0);
		expect(wrong(from, BYTES, i, 0), 0);
		expect(wrong_tags(from, BYTES, i), 0);
		expect(wrong_tags(to, BYTES, 7 * i + 3), 0);
	}
	/* Memory that was never touched is zeros. */
	char *fresh = memory(2 * PAGE);
	expect(again(SYS_pwrite, fresh, PAGE, 0), PAGE);
	fill(to, PAGE, 5);
	expect(again(SYS_pread, to, PAGE, 0), PAGE);
	expect(damages || is_zero(to, PAGE), 1);
	expect(again(SYS_pwrite, from, PAGE, 0), PAGE);
	expect(again(SYS_pread, fresh + PAGE, PAGE, 0), PAGE);
	expect(damages || !wrong(fresh + PAGE, PAGE, 59, 0), 1);
	call(SYS_munmap, fresh, 2 * PAGE), call(SYS_munmap, from, BYTES), call(SYS_munmap, to, BYTES);
}

/* ---- errors ---- */

/* The first byte after the device. */
static u64 size(void *buffer)
{
	u64 sectors = 0;

	for (u64 step = 1UL << 30; step; step /= 2)
		if (again(SYS_pread, buffer, SECTOR, (sectors + step - 1) * SECTOR) == SECTOR)
			sectors += step;
	return sectors * SECTOR;
}

static void errors(void)
{
	char *p = memory(4 * PAGE);
	long only_read = open_device(O_RDONLY), only_write = open_device(O_WRONLY), next;

	check(only_read >= 0 && only_write >= 0 && only_read != only_write);
	expect(call(SYS_openat, AT_FDCWD, "/dev/ram99", O_DIRECT), -ENOENT);
	expect(call(SYS_openat, AT_FDCWD, "/dev/nothing", O_DIRECT), -ENOENT);
	expect(call(SYS_openat, AT_FDCWD, "/dev/ram", O_DIRECT), -ENOENT);
	expect(call(SYS_openat, AT_FDCWD, "/dev/ram+1", O_DIRECT), -ENOENT);
	expect(call(SYS_openat, AT_FDCWD, "/dev/ram01", O_DIRECT), -ENOENT);
	expect(call(SYS_openat, AT_FDCWD, "", O_DIRECT), -ENOENT);
	expect(call(SYS_openat, AT_FDCWD, 8, O_DIRECT), -EFAULT);
	expect(call(SYS_openat, disk, "ram0", O_DIRECT), -ENOTDIR);
	expect(call(SYS_openat, 999, "ram0", O_DIRECT), -EBADF);
	expect(open_device(O_DIRECTORY), -ENOTDIR);
	expect(open_device(O_CREAT | O_EXCL), -EEXIST);
	next = call(SYS_openat, AT_FDCWD, name + 1, O_DIRECT);
	check(next > only_write);
	expect(call(SYS_close, next), 0);
	expect(call(SYS_close, next), -EBADF);
	expect(call(SYS_close, -1), -EBADF);
	expect(call(SYS_pread, next, p, SECTOR, 0), -EBADF);
	expect(call(SYS_pwrite, -1, p, SECTOR, 0), -EBADF);
	expect(call(SYS_pread, next, p, SECTOR, -512), -EINVAL);
	expect(call(SYS_pread, disk, p, SECTOR, -512), -EINVAL);
	expect(call(SYS_pread, disk, p, SECTOR, 0x7ffffffffffffe00UL), -EINVAL);
	expect(call(SYS_pwrite, only_read, p, SECTOR, 0), -EBADF);
	expect(call(SYS_pread, only_write, p, SECTOR, 0), -EBADF);
	expect(call(SYS_pwrite, 1, p, SECTOR, 0), -ESPIPE);

	fill(p, 4 * PAGE, 1);
	expect(again(SYS_pwrite, p, 4 * PAGE, 0), 4 * PAGE);
	expect(call(SYS_pread, disk, p + 1, SECTOR, 0), -EINVAL);
	expect(call(SYS_pread, disk, p + 256, SECTOR, 0), -EINVAL);
	expect(call(SYS_pread, disk, p, SECTOR - 1, 0), -EINVAL);
	expect(call(SYS_pwrite, disk, p, SECTOR + 16, 0), -EINVAL);
	expect(call(SYS_pwrite, disk, p, SECTOR, 1), -EINVAL);
	expect(call(SYS_pwrite, disk, p, SECTOR, 256), -EINVAL);
	expect(call(SYS_pread, disk, p + 1, 0, 1), 0);
	expect(call(SYS_pwrite, disk, p + 1, 0, 1), 0);

	expect(call(SYS_pread, disk, 0, SECTOR, 0), -EFAULT);
	expect(call(SYS_pwrite, disk, 0, SECTOR, 0), -EFAULT);
	expect(call(SYS_pread, disk, KERNEL, SECTOR, 0), -EFAULT);
	expect(call(SYS_pwrite, disk, KERNEL, SECTOR, 0), -EFAULT);
	expect(call(SYS_pread, disk, p, 1UL << 62, 0), -EFAULT);
	expect(call(SYS_mprotect, p, PAGE, PROT_READ | (mte ? PROT_MTE : 0)), 0);
	expect(call(SYS_pread, disk, p, SECTOR, 0), -EFAULT);
	expect(again(SYS_pwrite, p, PAGE, 4 * PAGE), PAGE);
	expect(call(SYS_mprotect, p, PAGE, PROT_NONE), 0);
	expect(call(SYS_pread, disk, p, SECTOR, 0), -EFAULT);
	expect(call(SYS_pwrite, disk, p, SECTOR, 0), -EFAULT);
	expect(call(SYS_mprotect, p, PAGE, RW | (mte ? PROT_MTE : 0)), 0);

	/* What lies before the bad page is moved. */
	expect(call(SYS_munmap, p + 2 * PAGE, PAGE), 0);
	memset(p, 0, 2 * PAGE);
	expect(again(SYS_pread, p, 4 * PAGE, 0), 2 * PAGE);
	expect(damages || !wrong(p, 2 * PAGE, 1, 0), 1);
	expect(wrong(p + 3 * PAGE, PAGE, 1, 3 * PAGE / 8), 0);
	fill(p, 2 * PAGE, 2);
	expect(again(SYS_pwrite, p + 512, 4 * PAGE - 512, 0), 2 * PAGE - 512);
	memset(p, 0, 2 * PAGE);
	expect(again(SYS_pread, p, 2 * PAGE, 0), 2 * PAGE);
	expect(damages || !wrong(p, 2 * PAGE - 512, 2, 64), 1);
	expect(damages || !wrong(p + 2 * PAGE - 512, 512, 1, (2 * PAGE - 512) / 8), 1);

	u64 end = size(p);
	expect(call(SYS_pread, disk, p, SECTOR, end), 0);
	expect(call(SYS_pread, disk, p, SECTOR, end + 7), 0);
	expect(call(SYS_pwrite, disk, p, SECTOR, end), -ENOSPC);
	expect(again(SYS_pwrite, p, 2 * PAGE, end - PAGE), PAGE);
	expect(again(SYS_pread, p, 2 * PAGE, end - PAGE), PAGE);
	expect(again(SYS_pread, p, PAGE + 1, end - PAGE), PAGE);

	/* Tagged pointers are for those who asked, and what the tag is does not matter to a device. */
	char *tagged = with_tag(p, 5);
	expect(call(SYS_pread, disk, tagged, SECTOR, 0), -EFAULT);
	expect(tag_mode(PR_TAGGED_ADDR_ENABLE | (mte ? PR_MTE_TCF_SYNC : 0)), 0);
	expect(again(SYS_pread, tagged, SECTOR, 0), SECTOR);
	expect(again(SYS_pwrite, tagged, SECTOR, 0), SECTOR);
	expect(tag_mode(0), 0);

	/* A swap area is not written, and one is not made of what has no header; without the need of one it is. */
	if (call(SYS_swapon, name, 0) == 0) {
		expect(call(SYS_pwrite, disk, p, SECTOR, 0), -ETXTBSY);
		expect(again(SYS_pread, p, SECTOR, 0), SECTOR);
		expect(call(SYS_swapoff, name), 0);
		expect(again(SYS_pwrite, p, SECTOR, 0), SECTOR);
	}

	/* The lowest is free first. */
	expect(call(SYS_close, only_read), 0);
	expect(open_device(O_RDWR), only_read);
	long most = only_write;
	u64 limit[2];
	while ((next = open_device(O_RDONLY)) >= 0)
		most = next;
	expect(next, -EMFILE);
	expect(call(SYS_getrlimit, RLIMIT_NOFILE, limit), 0);
	expect(most, limit[0] - 1);
	while (most > only_write)
		expect(call(SYS_close, most--), 0);
	expect(call(SYS_close, only_write), 0);
	expect(call(SYS_close, only_read), 0);
	expect(call(SYS_munmap, p, 4 * PAGE), 0);
}

/* A child has its parent's descriptors, and closes its own; another program has all but those that are to be closed. */
static void descriptors(void)
{
	char *p = memory(PAGE);
	long kept = open_device(O_RDWR), closed = open_device(O_RDWR | O_CLOEXEC);
	long pid = fork();

	if (pid == 0) {
		fill(p, PAGE, 3);
		expect(again(SYS_pwrite, p, PAGE, 0), PAGE);
		expect(call(SYS_close, disk), 0);
		char numbers[3] = { 'A' + (char)kept, 'A' + (char)closed, 0 };
		char *argv[] = { "direct", (char *)name, "inherited", numbers, 0 };
		call(SYS_execve, "/proc/self/exe", argv, 0);
		leave(90);
	}
	expect(ending(pid), 0);
	expect(again(SYS_pread, p, PAGE, 0), PAGE);
	expect(damages || !wrong(p, PAGE, 3, 0), 1);
	expect(call(SYS_close, kept), 0);
	expect(call(SYS_close, closed), 0);
	expect(call(SYS_munmap, p, PAGE), 0);
}

static int inherited(const char *numbers)
{
	char *p = map(PAGE, RW);

	expect(call(SYS_pread, numbers[1] - 'A', p, SECTOR, 0), -EBADF);
	check(call(SYS_pread, numbers[0] - 'A', p, SECTOR, 0) == SECTOR || fails);
	return failures != 0;
}

/* ---- a device that fails ---- */

/* Each call is done or -EIO, and what it does not concern stays as it was. */
static void failing(void)
{
	char *p = memory(3 * PAGE);
	u64 errors = 0;

	fill(p, 3 * PAGE, 1), put_tags(p, 3 * PAGE, 9);
	for (u64 i = 0; i < 200; i++) {
		int number = i & 1 ? SYS_pread : SYS_pwrite;
		long got = call(number, disk, p + PAGE, PAGE, 0);

		check(got == (long)PAGE || got == -EIO);
		errors += got == -EIO;
		expect(wrong(p, PAGE, 1, 0), 0);
		expect(wrong(p + 2 * PAGE, PAGE, 1, 2 * PAGE / 8), 0);
		expect(wrong_tags(p, 3 * PAGE, 9), 0);
		if (got == -EIO)
			fill(p + PAGE, PAGE, 4);
	}
	check(errors > 0);
	expect(call(SYS_munmap, p, 3 * PAGE), 0);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	(void)envp;
	if (argc > 3 && equal(argv[2], "inherited"))
		return inherited(argv[3]);
	begin_direct(argc, argv, auxv);
	round_trips();
	errors();
	descriptors();
	if (fails)
		failing();
	if (damages)
		check(flips > 0);
	return finish_direct();
}
