/*
 * What the kernel hands to a new program: prints argv, envp and the auxiliary vector,
 * and leaves with the number given by "exit=N" among the arguments (else 0).
 */
#include "ebb.h"

static const struct { u64 key; const char *name; } known[] = {
	{ 3, "AT_PHDR" }, { 4, "AT_PHENT" }, { 5, "AT_PHNUM" }, { 6, "AT_PAGESZ" }, { 9, "AT_ENTRY" },
	{ 16, "AT_HWCAP" }, { 23, "AT_SECURE" }, { 25, "AT_RANDOM" }, { 26, "AT_HWCAP2" },
};

extern char _start[];

static int wanted_status(int argc, char **argv)
{
	int status = 0;

	for (int i = 1; i < argc; i++)
		if (!memcmp(argv[i], "exit=", 5 < length(argv[i]) ? 5 : length(argv[i]) + 1))
			for (const char *p = argv[i] + 5; *p; p++)
				status = status * 10 + *p - '0';
	return status;
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	put("argc="), put_num(argc), put("\n");
	for (int i = 0; i < argc; i++)
		put("argv["), put_num(i), put("]=<"), put(argv[i]), put(">\n");
	check(argv[argc] == 0);
	for (; *envp; envp++)
		put("env <"), put(*envp), put(">\n");

	for (u64 i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		put(known[i].name), put("=");
		put_hex(auxv_value(auxv, known[i].key)), put("\n");
	}
	check(PAGE == 4096 || PAGE == 16384 || PAGE == 65536);
	expect(auxv_value(auxv, 9), (u64)_start);
	expect(auxv_value(auxv, 4), 56);
	/* AT_PHDR is mapped, and the first header's type is a known one. */
	check(*(u32 *)auxv_value(auxv, 3) <= 7);
	/* HWCAP: FP and ASIMD; no SVE (bit 22). HWCAP2: no SVE2 (bit 1), no SME (bit 23). */
	expect(auxv_value(auxv, 16) & 3, 3);
	expect(auxv_value(auxv, 16) >> 22 & 1, 0);
	expect(auxv_value(auxv, 26) >> 1 & 1, 0);
	expect(auxv_value(auxv, 26) >> 23 & 1, 0);
	put("HWCAP2_MTE="), put_num(auxv_value(auxv, 26) >> 18 & 1), put("\n");
	/* 16 random bytes: not all zero. */
	u64 *random = (u64 *)auxv_value(auxv, 25);
	check(random && (random[0] | random[1]));
	expect((u64)__builtin_frame_address(0) & 15, 0);
	check(finish() == 0);
	return failures ? 1 : wanted_status(argc, argv);
}
