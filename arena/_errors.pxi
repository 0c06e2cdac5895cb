# -errno and its numbers become an exception.

cdef dict numbers_of(arena_error *e):
    return {
        "offset": e.offset,
        "requested": e.requested,
        "committed": e.committed,
        "available": None if e.available == UINT64_MAX else e.available,
    }


cdef object as_exception(int rc, arena_error *e, bint grow=True):
    cdef int err = -rc
    op = e.op.decode() if e != NULL and e.op != NULL else ""
    if err == ENOSPC and op in ("alloc", "resize"):
        return _errors.full_error(numbers_of(e), grow=grow)
    if err == ESHUTDOWN:
        return ValueError("the arena is closed")
    if err == ENOTCONN:
        return RuntimeError(
            "this process is a fork's child, and the memory was made with fork='drop' (the default for private hugetlb "
            "pages): it stays with the parent"
        )
    if err == EXDEV:
        return RuntimeError(
            "this process is a fork's child: it shares the arena's blocks with its parent, who alone gives out new ones"
        )
    if err == EDEADLK:
        return RuntimeError(
            "this memory is being committed by the very thread that asks for it, further up its stack "
            "(a progress callback or signal handler): nothing could ever finish"
        )
    if err == ECANCELED:
        return RuntimeError("the arena was reset while this block's memory was being committed")
    if err == EINVAL and op == "range":
        return ValueError(f"the range at offset {e.offset} of {e.requested} bytes is not within the reservation")
    return _errors.commit_error(err, op, e.where.decode("utf-8", "replace"), numbers_of(e))


cdef object as_reserve_exception(int rc, arena_error *e, reservation_config *config):
    op = e.op.decode() if e.op != NULL else ""
    if rc == -EINVAL and op == "chunk":
        return ValueError(
            "chunk must be a power of two from 4 KiB to 1 GiB, no smaller than a huge page where pages= asks for them, "
            f"and at least a 2^27th of the arena, not {e.requested}"
        )
    if rc == -EINVAL and op == "size":
        return ValueError(f"{op} must be from 1 byte to 64 TiB, not {e.requested}")
    if rc == -EINVAL and op == "readonly":
        return ValueError("readonly=True is for files that are there: in a directory a new one would be made")
    if rc == -EINVAL and op == "pages":
        return ValueError("a file on hugetlbfs has the pages of its mount: leave pages= out, or give that size")
    if rc == -EINVAL and op == "mbind":
        return ValueError(f"there is no NUMA node {config.node} with memory here (/sys/devices/system/node/has_memory)")
    path = config.path.decode("utf-8", "replace") if config.path != NULL else None
    return _errors.reserve_error(
        -rc, op, e.where.decode("utf-8", "replace"), path, config.page_bytes, numbers_of(e), os_overcommit_mode()
    )
