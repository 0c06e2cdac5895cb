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


_PAGES = {"auto": ARENA_PAGES_AUTO, "4K": ARENA_PAGES_4K, "4KiB": ARENA_PAGES_4K, "thp": ARENA_PAGES_THP}
_FORK = {"copy": ARENA_FORK_COPY, "drop": ARENA_FORK_DROP, "wipe": ARENA_FORK_WIPE}


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


cdef void configure(reservation_config *c, uint64_t size, pages, fork, dump, bytes name, uint64_t headroom) except *:
    c.size = size
    c.pages = choose(_PAGES, pages, "pages")
    c.fork = choose(_FORK, fork, "fork")
    c.dump = bool(dump)
    c.headroom = headroom
    c.name = <const char *>name if name is not None else NULL


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
    locked = dirty = None
    if whole:
        locked, dirty = _smaps(address, length)
    return Residency(r.present, r.huge, r.zero, r.swapped, locked, dirty)


def _smaps(address, length):
    """Locked and dirty bytes of the mappings within the range, from /proc/self/smaps."""
    locked = dirty = 0
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
    return locked, dirty
