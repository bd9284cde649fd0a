/*
 * A process of threads in one space, all at random: stores of words and tags, advice, rights, mappings, forks, locks.
 * Each thread has words and granules of every page for itself, and knows what they hold.
 */
#ifndef BESIDE_H
#define BESIDE_H

#include "threads.h"

enum { THREADS = 4, MOST_PAGES = 4096 };

struct life {
	u64 state, mine, done, mismatches, forks;
	u32 data[MOST_PAGES], added[MOST_PAGES];
	u8 tags[MOST_PAGES];
};

static struct thread threads[THREADS];
static struct life lives[THREADS];
static char *common;
static u64 common_pages, steps_each;
static int has_tags;
static word_t held;
static volatile u64 guarded[2];

static u64 draw(struct life *life)
{
	life->state ^= life->state << 13, life->state ^= life->state >> 7, life->state ^= life->state << 17;
	return life->state * 0x2545f4914f6cdd1dUL >> 33;
}

static u64 draw_below(struct life *life, u64 end) { return draw(life) % end; }

static char *own_granule(const struct life *life, u64 page) { return common + page * PAGE + 16 * life->mine; }

static void amiss(struct life *life, const char *what, u64 page)
{
	if (++life->mismatches > 3)
		return;
	put("process "), put_num(call(SYS_getpid)), put(", thread "), put_num(life->mine), put(": ");
	put(what), put(", page "), put_num(page), put("\n");
}

static void look_own(struct life *life, u64 page)
{
	volatile u64 *at = (volatile u64 *)own_granule(life, page);
	u64 first = at[0], second = at[1];

	if (first != life->data[page] || second != (life->data[page] ? ~first : 0))
		amiss(life, "not what was stored", page);
	if (has_tags && tag_of(own_granule(life, page)) != life->tags[page])
		amiss(life, "not the tag that was stored", page);
}

static void store_own(struct life *life, u64 page)
{
	volatile u64 *at = (volatile u64 *)own_granule(life, page);
	u32 value = draw(life) | 1;

	at[0] = life->data[page] = value;
	at[1] = ~(u64)value;
	if (has_tags && draw_below(life, 2))
		set_tag(own_granule(life, page), life->tags[page] = draw_below(life, 16));
}

/* All threads add to one word of a page, past what each has for itself. */
static word_t *common_word(u64 page) { return (word_t *)(common + page * PAGE + 16 * THREADS); }

static void add_one(struct life *life, u64 page)
{
	add(common_word(page), 1);
	life->added[page]++;
}

static void expect_none(struct life *life, const char *what, long result)
{
	if (result != 0)
		amiss(life, what, -result);
}

/* Memory of the thread's own, which comes and goes: of each page its number, or nothing where that was given up. */
static void visit(struct life *life)
{
	u64 bytes = (1 + draw_below(life, 20)) * PAGE, given_up = 0, what = draw_below(life, 8);
	char *p = map_at(0, bytes, RW, ANON);

	if ((u64)p >= -4095UL) {
		amiss(life, "mmap", -(u64)p);
		return;
	}
	if (what == 0)
		expect_none(life, "mlock", call(SYS_mlock, p, bytes));
	if (what == 1)
		expect_none(life, "MADV_POPULATE_WRITE", call(SYS_madvise, p, bytes, MADV_POPULATE_WRITE));
	for (u64 at = 0; at < bytes; at += PAGE)
		*(volatile u64 *)(p + at) = at + 1;
	if (what >= 2 && what < 6)
		expect_none(life, "MADV_PAGEOUT", call(SYS_madvise, p, bytes, MADV_PAGEOUT));
	if (what >= 5) {
		given_up = draw_below(life, bytes / PAGE) * PAGE;
		expect_none(life, "MADV_FREE", call(SYS_madvise, p, given_up, MADV_FREE));
	}
	if (what == 6) {
		expect_none(life, "MADV_DONTNEED", call(SYS_madvise, p, given_up, MADV_DONTNEED));
		for (u64 at = 0; at < given_up; at += PAGE)
			if (*(volatile u64 *)(p + at) != 0)
				amiss(life, "not gone", at / PAGE);
	}
	for (u64 at = 0; at < bytes; at += PAGE) {
		u64 seen = *(volatile u64 *)(p + at);

		if (seen != at + 1 && (seen != 0 || at >= given_up))
			amiss(life, "not what was stored for a while", at / PAGE);
	}
	expect_none(life, "munmap", call(SYS_munmap, p, bytes));
}

/* The child is this thread alone: what the thread knows of its own is so there as well. */
static void bear(struct life *life)
{
	long pid = call(SYS_clone, SIGCHLD);

	if (pid == 0) {
		life->mismatches = 0;
		for (u64 i = 0; i < 32; i++) {
			look_own(life, draw_below(life, common_pages));
			store_own(life, draw_below(life, common_pages));
		}
		for (u64 page = 0; page < common_pages; page += 7)
			look_own(life, page);
		leave(life->mismatches != 0);
	}
	if (pid == -EAGAIN || pid == -ENOMEM)
		return;
	if (pid < 0) {
		amiss(life, "clone", -pid);
		return;
	}
	life->forks++;
	int end = ending(pid);

	if (end != 0)
		amiss(life, "a child's end", end);
}

static u64 live_beside(struct thread *me)
{
	struct life *life = me->arg;

	for (u64 step = 0; step < steps_each && !over(); step++) {
		u64 page = draw_below(life, common_pages), count = 1 + draw_below(life, 64);

		if (count > common_pages - page)
			count = common_pages - page;
		life->done++;
		switch (draw_below(life, 64)) {
		case 0 ... 27:
			for (u64 i = 0; i < count; i++)
				store_own(life, page + i);
			break;
		case 28 ... 47:
			for (u64 i = 0; i < count; i++)
				look_own(life, page + i);
			break;
		case 48 ... 51:
			expect_none(life, "madvise", call(SYS_madvise, common + page * PAGE, count * PAGE, MADV_PAGEOUT));
			break;
		case 52:
			expect_none(life, "madvise", call(SYS_madvise, common + page * PAGE, count * PAGE, MADV_COLD));
			break;
		case 53: {
			static const int advice[] = {
				MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
			};

			expect_none(life, "madvise", call(SYS_madvise, common + page * PAGE, count * PAGE,
							  advice[draw_below(life, sizeof(advice) / sizeof(*advice))]));
			break;
		}
		case 54 ... 55:
			expect_none(life, "mprotect", call(SYS_mprotect, common + page * PAGE, count * PAGE,
						       RW | (has_tags ? PROT_MTE : 0) | (draw_below(life, 2) ? PROT_EXEC : 0)));
			break;
		case 56 ... 58:
			visit(life);
			break;
		case 59 ... 60:
			lock(&held);
			if (guarded[0]++ != guarded[1])
				amiss(life, "two held one lock", 0);
			guarded[1]++;
			unlock(&held);
			break;
		case 61:
			if (step % 4 == 0)
				bear(life);
			break;
		case 62:
			for (u64 i = 0; i < count; i++)
				add_one(life, page + i);
			break;
		default:
			call(SYS_sched_yield);
		}
	}
	for (u64 page = 0; page < common_pages; page++)
		look_own(life, page);
	return life->mismatches;
}

/* A process of threads: what they found wrong. */
static u64 run_beside(u64 seed, u64 process)
{
	u64 mismatches = 0;

	common = map(common_pages * PAGE, RW | (has_tags ? PROT_MTE : 0));
	for (u64 i = 0; i < THREADS; i++) {
		lives[i].mine = i;
		lives[i].state = (seed * 64 + process * THREADS + i + 1) * 0x9e3779b97f4a7c15UL;
		/* There may be too many for a while. */
		while (start(&threads[i], live_beside, &lives[i]) == -EAGAIN)
			call(SYS_sched_yield);
		if (threads[i].made <= 0)
			return 1000;
	}
	for (u64 i = 0; i < THREADS; i++) {
		join(&threads[i]);
		mismatches += threads[i].result;
	}
	for (u64 page = 0; page < common_pages; page++) {
		u32 sum = 0;

		for (u64 i = 0; i < THREADS; i++)
			sum += lives[i].added[page];
		if (*common_word(page) != sum)
			amiss(&lives[0], "an addition is lost", page), mismatches++;
	}
	return mismatches;
}

#endif
