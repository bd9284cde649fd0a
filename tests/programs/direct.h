/*
 * A device that a program reads and writes straight from and to its pages, by O_DIRECT.
 *
 *	PROGRAM [DEVICE [plain|slow|fail|damage [MIB]]]
 *
 * The device is no swap area meanwhile, and what is on it is lost. A slow one takes SLOW_MS or more for all that it
 * does, so that others come in between; one that fails or damages does so now and then. MIB of memory are taken
 * meanwhile, if they are said.
 *
 * Linux takes these programs too, with a device that has sectors of 512 bytes, such as brd's /dev/ram0.
 */
#ifndef DIRECT_H
#define DIRECT_H

#include "threads.h"

enum { SYS_openat = 56, SYS_close = 57, SYS_pread = 67, SYS_pwrite = 68 };
enum { EIO = 5, EBADF = 9, EMFILE = 24, ETXTBSY = 26, ENOSPC = 28, ESPIPE = 29, ENOTDIR = 20 };
enum { O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_EXCL = 0200, O_DIRECTORY = 040000,
       O_DIRECT = 0200000, O_CLOEXEC = 02000000 };
enum { AT_FDCWD = -100, SECTOR = 512, SLOW_MS = 20 };

#define KERNEL 0xffffff8040200000UL
#define PAGES 24
#define BYTES (PAGES * PAGE)

static const char *name = "/dev/ram0";
static int slow, fails, damages, mte;
static u64 pressure;
static long disk;

static long open_device(int flags) { return call(SYS_openat, AT_FDCWD, name, flags | O_DIRECT); }

static u64 seed = 88172645463325252UL;

__attribute__((unused)) static u64 below(u64 end)
{
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	return seed % end;
}

static u64 word(u64 salt, u64 i) { return (salt + 1) * 0x9e3779b97f4a7c15UL ^ i * 0xbf58476d1ce4e5b9UL; }

static void fill(void *at, u64 bytes, u64 salt)
{
	for (u64 i = 0; i < bytes / 8; i++)
		((volatile u64 *)at)[i] = word(salt, i);
}

/* Bits that differ. */
__attribute__((unused)) static u64 wrong(const void *at, u64 bytes, u64 salt, u64 first)
{
	u64 bits = 0;

	for (u64 i = 0; i < bytes / 8; i++)
		for (u64 x = ((const volatile u64 *)at)[i] ^ word(salt, first + i); x; x &= x - 1)
			bits++;
	return bits;
}

__attribute__((unused)) static int is_zero(const void *at, u64 bytes)
{
	u64 any = 0;

	for (u64 i = 0; i < bytes / 8; i++)
		any |= ((const volatile u64 *)at)[i];
	return any == 0;
}

static unsigned tag_at(u64 granule, u64 salt) { return (granule * 0x9e3779b97f4a7c15UL + salt) >> 60; }

__attribute__((unused)) static void put_tags(char *at, u64 bytes, u64 salt)
{
	for (u64 g = 0; mte && g < bytes / 16; g++)
		set_tag(at + 16 * g, tag_at(g, salt));
}

__attribute__((unused)) static u64 wrong_tags(char *at, u64 bytes, u64 salt)
{
	u64 count = 0;

	for (u64 g = 0; mte && g < bytes / 16; g++)
		count += tag_of(at + 16 * g) != tag_at(g, salt);
	return count;
}

static char *memory(u64 bytes) { return map(bytes, RW | (mte ? PROT_MTE : 0)); }

/* Until the device does it. */
__attribute__((unused)) static long again(int number, void *at, u64 bytes, u64 pos)
{
	for (int tries = 0;; tries++) {
		long got = call(number, disk, at, bytes, pos);

		if (got != -EIO || !fails || tries == 100)
			return got;
	}
}

static int was_area;

/* What the program was told; and the device. */
static void begin_direct(int argc, char **argv, u64 *auxv)
{
	const char *how = argc > 2 ? argv[2] : "plain";

	mte = auxv_value(auxv, 26) >> 18 & 1; /* HWCAP2_MTE */
	if (argc > 1)
		name = argv[1];
	slow = equal(how, "slow"), fails = equal(how, "fail"), damages = equal(how, "damage");
	for (const char *s = argc > 3 ? argv[3] : ""; *s >= '0' && *s <= '9'; s++)
		pressure = pressure * 10 + *s - '0';
	was_area = call(SYS_swapoff, name) == 0;
	disk = open_device(O_RDWR);
	if (disk < 0)
		leave(97);
}

static int finish_direct(void)
{
	expect(call(SYS_close, disk), 0);
	if (was_area)
		expect(call(SYS_swapon, name, 0), 0);
	return finish();
}

#endif
