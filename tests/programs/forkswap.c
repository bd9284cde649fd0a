/*
 * Memory that is out, or goes out, while several processes have it: each sees its own. pages.h explains the scripts.
 * The first argument, if there is one, takes the place of all scripts.
 */
#include "pages.h"

static const char *const scripts[] = {
	/* Out, then forked: both have it from the same place. */
	"oF0r1r", "oF1r0r", "oF0w1r", "oF1w0r", "oF0w1w0r1r", "oF1w0w1r0r", "oF1s0s1r0r", "oF0s1s0r1r",
	"oF1rX0Jr", "oF1wX0Jrw", "oF1X0Jrwor", "oF0ro1ro0r1r", "oF1hwo0hwo1r0r", "oF0d1r0r", "oF1d0ro1r0r", "oF1u0or1or",
	/* In again by a load, so that it is clean and its place outside is good; then forked. */
	"orF1w0or1or", "orF0w1or0or", "orF1s0o1o0r1r", "ohF1w0w1o0o1r0r", "orF1X0Jsor", "orF1t0ot1or0or", "ohF1t0or1or",
	"osoF1r0r", "owohF1wo0wo1r0r", "orsF1o0or1r",
	/* Forked, then out, by the one and the other; stores before, between and after. */
	"F0o1w0r1r", "F0o1s0r1r", "F1o0w1r0r", "F1o0s1r0r", "F0o1o0r1r", "F1w0o1o0r1r", "F0w1o0o1r0r", "F1v0o1ov0o1r0r",
	"F1oX0Jr", "F1woX0Jor", "F1X0Jor", "F0or1or0ws1ws0o1o0r1r", "F1t0o1ot0or1or", "F0t1o0ot1or0or", "F1p0o1op0r1wr",
	"Fo1s0r1o0s1r0o1r", "F0s1so0so1r0r1oX0Jor",
	/* The other ends while the pages are out: they are one process's again. */
	"oF1wX0Jwor", "oF1roX0Jwor", "oF1soX0Jhwor", "F0o1X0Jwor",
	/* Round and round. */
	"oF0wo1wo0wo1wo0wo1wo0r1r", "F1so0so1so0so1so0so1r0r", "owFoF2r0r1r", "oF0to1to0to1to0to1r0r",
	/* Three generations, and two children of one. */
	"oF1F0r1r2r", "oF1F2w1w0w2r1r0r", "oF1F0w1w2w0o1o2o0r1r2r", "F1F2o1o0o2w1w0w2r1r0r", "F1oF2wo0wo1wo2r1r0r",
	"orF1orF2or0s1s2s0o1o2o0r1r2r", "oFF0r1r2r", "oFF1w2w0r1o2o0o1r2r0r", "F1FX2wo0oJr2r0r",
	"oF1FX0Jw2ro0or2w0r", "F1woFX2ro0oJw2w0r", "orF1rFX2sr0wJo2or0r", "oF1F2oX1Jwo0r1r",
	/* Four. */
	"oF1F2F3w2w1w0w3o2o1o0o3r2r1r0r", "F0o1F0w1o2F0o3w2w1o3o2r0r1r3r", "oF1wF2wF3wo2o1o0o3r2r1r0r",
	"orF1hF2sF3to2to1so0wo3r2r1r0r", "F1vF2vF3v0o1o2o3o0v1r2r3r0r",
};

static void all(u64 count, u64 off, const char *script)
{
	if (script)
		play(script, count, off);
	for (u64 i = 0; !script && i < sizeof(scripts) / sizeof(scripts[0]); i++)
		play(scripts[i], count, off);
}

int main(int argc, char **argv, char **envp, u64 *auxv)
{
	const char *script = argc > 1 ? argv[1] : 0;
	int mte = auxv_value(auxv, 26) >> 18 & 1; /* HWCAP2_MTE */

	(void)envp;
	for (tagged = 0; tagged <= mte; tagged++) {
		/* Whole groups, and parts of some. */
		all(2 * GROUP, 0, script);
		if (tagged == mte)
			all(GROUP + 3, 7, script);
	}
	/* Much at a time. */
	tagged = mte;
	play("oF0wo1wo0wo1wo0r1r", MOST, 0);
	play("F1oF2wo0wo1wo2r1r0r", MOST, 3);
	return finish();
}
