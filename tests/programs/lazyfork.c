/*
 * MADV_FREE and fork: what one process gives up the others keep, and so does it itself what it stores afterwards.
 * pages.h explains the scripts. The first argument is how many MiB the letter m takes, to have memory reclaimed; none
 * if it is 0. The second takes the place of all scripts.
 *
 * Those of `sole` lost the pages on Linux 6.12: a page that was read in from swap was clean, nobody else had what was
 * in it, and giving it up asked for other owners only where it was not clean.
 */
#include "pages.h"

static const char *const sole[] = {
	"orF1lX0Jor", "orF1l0or", "orF1lX0Jmr", "orF1lr0or1r", "orF0lr1or0r", "orF0lm1r", "orF1Fl2lX1lX0or",
	"orF1F2lX1l0oro1r", "orF1kX0Jor", "ohF1lX0Jor", "oF1rl0or1r", "oFr1rl0or1r", "orF1lo0or1r",
	"orF1lX0JF2lX0Jor", "orcF1lcX0Jor", "orF1FX0Jr2l0or2r", "osorF1lX0Jor", "otorF1lX0Jor",
	"orF1lF2or1o0or",
};

static const char *const scripts[] = {
	/* Given up before the fork: nobody has a claim to it, until someone stores to it. */
	"lF1r0r", "lFo1o0r1r", "lF1so0o1r0r", "lF0so1o0r1r", "lF1s0so1o0r1r", "lF0s1so0o1r0r", "lF1t0o1or0r",
	"lF0to1or0r", "lsF1o0o1r0r", "lsFo1lX0Jor", "lvF1vo0vo1r0r", "lF1X0Jso0r", "lF1sX0Jor", "lF1soX0Jsor",
	"lF1s0m1r0r", "lF0sm1r0r", "lsF1lo0mo1r0r", "lF1wo0o1mor0r", "ltF1o0o1r0r", "lF1F2s0o1o2or1r0r",
	"lsF1lsF2lo1o0or2r1r", "rlF1s0o1or0r", "lmF1s0s1o0or1r", "olF1s0s1o0or1r", "orlF1s0so1o0r1r",
	"orlsF1o0or1r", "klF1s0vo1or0r", "ksoF1lX0Jor",
	/* Given up after it, by one of them, while the other has it still. */
	"F0lo1r0r", "F0lo1or0r", "F1lo0r1r", "F1l0o1o0r1r", "F0lm1r0r", "F1lm0r1r", "F1lX0Jor", "F1lX0Jmr",
	"F0ls1o0or1r", "F1ls0o1or0r", "F0l1so0or1r", "F1l0so1or0r", "F0l1s0so1o0r1r", "F1l0to1or0r",
	"F1lt0o1or0r", "F1kX0Jor", "F0ko1or0r", "F1ks0om1r0r", "F1lv0vom1or0r", "F0lr1wo0o1r0r", "F1d0l1o0or1r",
	"F0l1d0so1r0r",
	/* By all of them; only then may it go. */
	"F0l1lo0or1r", "F1lX0Jlor", "F0l1lm0m1r0r", "F0l1ls0o1or0r", "F1l0lso1o0r1r", "F1l0l1s0so1o0r1r",
	"F0lF2l1lo2so0or1r2r",
	/* Out when it is given up: a share of the place outside goes, and no more. */
	"oF1l0r1r", "oF0l1r0r", "oF1lX0Jr", "oF1l0lr1r", "oF1k0or1or", "oFo1lso0or1r", "oF1lF2ls0r1r2or",
	"oF0lm1r0mr", "oF1F2lX1lX0Jr", "oFF1l2r0lr1r2r", "F1o0o1l0ro1r", "F0o1lo0r1so0o1r", "osF1l0ro1r",
	"oF0ro1lo0r1r", "oF1lso0lso1r0r",
	/* After the other has gone it is one process's again, and stores keep it. */
	"F1X0Jlsor", "F1X0Jlor", "orF1X0Jlsor", "F1wX0Jlsor", "oF1X0Jlsor", "F1lX0Jlsor", "orF1X0Jlsmr",
	"F0l1X0Jsor",
	/* Rights come and go on the way. */
	"lpF1so0o1r0r", "F1lp0o1or0r", "lF1ps0po1or0r", "F0lps1or0or",
};

/* With pressure, which takes its time, those that make use of it. */
static void all(u64 count, u64 off, const char *const *list, u64 size)
{
	for (u64 i = 0; i < size / sizeof(*list); i++) {
		const char *m = list[i];

		while (pressure && *m && *m != 'm')
			m++;
		if (*m)
			play(list[i], count, off);
	}
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	const char *script = argc > 2 ? argv[2] : 0;
	int mte = auxv_value(auxv, 26) >> 18 & 1; /* HWCAP2_MTE */

	(void)envp;
	for (const char *digit = argc > 1 ? argv[1] : "0"; *digit; digit++)
		pressure = pressure * 10 + *digit - '0';
	for (tagged = pressure ? mte : 0; tagged <= mte; tagged++) {
		if (script) {
			play(script, 2 * GROUP, 0);
			continue;
		}
		all(2 * GROUP, 0, scripts, sizeof(scripts));
		if (tagged == mte && !pressure)
			all(GROUP + 3, 7, scripts, sizeof(scripts));
		all(2 * GROUP, 0, sole, sizeof(sole));
	}
	return finish();
}
