# From what Python callers say to what the C core takes, and back.

cdef uint64_t positive(size, what) except 0:
    n = parse_size(size, what)
    if n == 0:
        raise ValueError(f"{what} must not be 0")
    return n


cdef unsigned thread_count(threads) except? 0:
    if threads is None:
        return 0
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a positive int or None, not {threads!r}")
    return min(threads, 1024)


cdef bint for_writing(populate) except -1:
    if populate == "write":
        return True
    if populate == "read":
        return False
    raise ValueError(f"populate must be 'write' or 'read', not {populate!r}")


cdef uint64_t alignment(align) except 0:
    n = parse_size(align, "align")
    if n == 0 or n & (n - 1):
        raise ValueError(f"align must be a power of two, not {n}")
    return n


_FORK = {
    None: ARENA_FORK_AUTO, "copy": ARENA_FORK_COPY, "share": ARENA_FORK_SHARE, "drop": ARENA_FORK_DROP,
    "wipe": ARENA_FORK_WIPE,
}
_BACKING = {None: ARENA_BACKING_AUTO, "anonymous": ARENA_BACKING_ANONYMOUS, "memfd": ARENA_BACKING_MEMFD}


cdef choose(table, value, what):
    try:
        return table[value]
    except (KeyError, TypeError):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, table))}, not {value!r}") from None


cdef bytes name_of(name):
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    # The kernel takes 79 printable characters without these.
    if len(name) > 79 or not name.isascii() or not name.isprintable() or any(c in "[]\\$`" for c in name):
        raise ValueError("name must be up to 79 printable ASCII characters without []\\$`")
    return name.encode()


cdef void choose_pages(reservation_config *c, pages) except *:
    c.page_bytes = 0
    if pages == "auto":
        c.pages = ARENA_PAGES_AUTO
    elif pages == "thp":
        c.pages = ARENA_PAGES_THP
    else:
        try:
            nbytes = parse_size(pages, "pages")
        except (TypeError, ValueError):
            nbytes = 0
        if nbytes == 4096:
            c.pages = ARENA_PAGES_4K
        elif nbytes & (nbytes - 1) == 0 and 4096 < nbytes < 2 << 20:
            c.pages, c.page_bytes = ARENA_PAGES_THP, nbytes
        elif nbytes & (nbytes - 1) == 0 and 2 << 20 <= nbytes <= 16 << 30:
            c.pages, c.page_bytes = ARENA_PAGES_HUGETLB, nbytes
        else:
            raise ValueError(
                "pages must be 'auto', '4K', 'thp', or a size: of a hugetlb pool ('2M', '1G') or of mTHP ('64K'), "
                f"not {pages!r}"
            )


cdef class Wanted:
    """What a reservation is to be made of, in C, with what the pointers in it point to."""

    cdef reservation_config config
    cdef bytes name, path

    def __cinit__(
        self, size, headroom, path, fd, shared, backing, readonly, pages, lock, node, fork, dump, name,
    ):
        cdef reservation_config *c = &self.config
        memset(c, 0, sizeof(self.config))
        c.size = positive(size, "size")
        if headroom is not None:
            c.headroom, c.headroom_given = parse_size(headroom, "headroom"), True
        c.shared, c.readonly, c.dump, c.lock = bool(shared), bool(readonly), bool(dump), bool(lock)
        choose_pages(c, pages)
        c.fork = choose(_FORK, fork, "fork")
        c.backing = choose(_BACKING, backing, "backing")
        if (path is not None) + (fd is not None) + (backing is not None) > 1:
            raise ValueError("path=, fd= and backing= exclude each other")
        if path is not None:
            self.path = _os.fsencode(path)
            if not self.path or b"\0" in self.path:
                raise ValueError(f"path must name a file or directory, not {path!r}")
            c.backing, c.path = ARENA_BACKING_PATH, self.path
        if fd is not None:
            c.backing, c.fd = ARENA_BACKING_FD, descriptor_of(fd)
        if c.readonly and path is None and fd is None:
            raise ValueError("readonly=True is for files (path= or fd=): memory that is new has nothing to read")
        if node is not None:
            if not isinstance(node, int) or node < 0 or node > 1023:
                raise ValueError(f"node must be the number of a NUMA node, not {node!r}")
            c.bind, c.node = True, node
        if c.shared and c.fork in (ARENA_FORK_COPY, ARENA_FORK_WIPE):
            raise ValueError(f"shared memory cannot be had with fork={fork!r}: 'share' (the default) or 'drop'")
        if not c.shared and c.fork == ARENA_FORK_SHARE:
            raise ValueError("fork='share' needs shared=True")
        if c.fork == ARENA_FORK_WIPE and (c.backing > ARENA_BACKING_ANONYMOUS or c.pages == ARENA_PAGES_HUGETLB):
            raise ValueError("fork='wipe' is for private anonymous memory only")
        self.name = name_of(name)
        c.name = <const char *>self.name if self.name is not None else NULL


cdef int descriptor_of(fd) except -1:
    if hasattr(fd, "fileno"):
        fd = fd.fileno()
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise TypeError(f"fd must be an int or have fileno(), not {type(fd).__name__}")
    if fd < 0 or fd > 0x7fffffff:
        raise ValueError(f"fd must be an open file descriptor, not {fd}")
    return fd


cdef char *BYTES = b"B"


cdef inline int fill_view(
    object owner, Py_buffer *view, int flags, void *ptr, Py_ssize_t *size, bint readonly
) except -1:
    if readonly and flags & PyBUF_WRITABLE:
        raise BufferError("this view is read-only")
    view.obj = owner
    view.buf = ptr
    view.len = size[0]
    view.itemsize = 1
    view.readonly = readonly
    view.ndim = 1
    view.format = BYTES if flags & PyBUF_FORMAT else NULL
    view.shape = size if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    return 0


cdef residency_of(uint64_t address, uint64_t length, bint whole):
    cdef os_residency_t r
    cdef int rc
    with nogil:
        rc = os_residency(<void *>address, length, &r)
    if rc:
        raise OSError(-rc, f"cannot read /proc/self/pagemap: {_os.strerror(-rc)}")
    huge, zero, locked, dirty = r.huge, r.zero, None, None
    if not os_features().pagemap_scan:
        huge = zero = None
    if whole:
        mapped, locked, dirty = _smaps(address, length)
        if huge is None:
            huge = mapped
    return Residency(r.present, huge, zero, r.swapped, locked, dirty)


_HUGE = ("AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:", "Private_Hugetlb:", "Shared_Hugetlb:")


def _smaps(address, length):
    """Huge, locked and dirty bytes of the mappings within the range, from /proc/self/smaps."""
    huge = locked = dirty = 0
    inside = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            key, _, rest = line.partition(" ")
            if not key.endswith(":"):
                start, end = (int(n, 16) for n in key.split("-"))
                inside = start < address + length and address < end
            elif inside and key == "Locked:":
                locked += int(rest.split()[0]) * 1024
            elif inside and key in ("Shared_Dirty:", "Private_Dirty:"):
                dirty += int(rest.split()[0]) * 1024
            elif inside and key in _HUGE:
                huge += int(rest.split()[0]) * 1024
    return huge, locked, dirty
