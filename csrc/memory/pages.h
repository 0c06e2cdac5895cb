/* pages.h: what is done to a run of a reservation's pages, whatever stands behind them: unmapped, given back, locked. */
#ifndef ARENA_PAGES_H
#define ARENA_PAGES_H

#include "memory/reservation.h"

#define PAGES_STEP ((uint64_t)64 << 20) /* 4 ms of 4 KiB pages: for how long one call keeps the mmap_lock */

static inline uint64_t bytes_of(const struct reservation *r, uint64_t pages) { return pages << r->page_shift; }
static inline char *at_page(const struct reservation *r, uint64_t page) { return r->base + bytes_of(r, page); }

/* Advice that has to be there before the first page, and again after a range was mapped anew. *op: what was refused. */
int pages_advise(const struct reservation *r, void *at, uint64_t bytes, const char **op);

/* No page of the range is mapped any more; what the mapping itself held, a private mapping's copies, goes back. */
int pages_unmap(struct reservation *r, uint64_t first, uint64_t end);
/* What the backing has in the range goes back as well. *gone: nothing is mapped there any more, also where the backing has
 * refused to give back what is behind. */
int pages_give_back(struct reservation *r, uint64_t first, uint64_t end, bool discard, bool *gone);

/* mlocks them in any case; pages of the hugetlb pool need that not. */
int pages_mlock(struct reservation *r, uint64_t first, uint64_t end);
/* Locks them where what is committed is to be locked: by the reservation's own `lock`, or by mlockall.h. */
int pages_lock(struct reservation *r, uint64_t first, uint64_t end);
int pages_unlock(struct reservation *r, uint64_t first, uint64_t end);
/* Of an operation's range, the pages that the map calls present are locked as they have to be by now: whoever locked or
 * unlocked all memory meanwhile has left them out. Under the reservation's lock, which is dropped in between. */
void pages_catch_up_with_mlockall(struct reservation *r, struct reservation_op *op);

/* Bytes of the machine's memory for each byte committed. */
unsigned pages_cost(const struct reservation *r, bool write);

#endif
