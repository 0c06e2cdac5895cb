"""A balloon: the sparse device of a hypervisor, which is what MADV_POPULATE_WRITE was made for.

A guest sees 64 GiB, of which the host lends it some: ranges are *plugged* (committed) and *unplugged* (released) while
it runs. The host has less memory than the guest may ask for, so plugs fail; with ordinary memory that is an OOM kill of
the guest, or a SIGBUS, some time later. Here it is an exception at the plug, and the device is as it was before.

    python examples/balloon.py --limit 256MiB --seconds 5
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _compare import command, mib, show

from arena import CommitError, Reservation
from arena.sizes import parse_size

BLOCK = 2 << 20  # bytes that are plugged at a time, as virtio-mem does
PAGE = 4096
STAMP = struct.Struct("<QQ")  # the block's number and how often it was plugged, on each of its pages


class Balloon:
    """The device. Which blocks are plugged is all it has to remember."""

    def __init__(self, size: int, *, shared: bool) -> None:
        self.memory = Reservation(size, shared=shared, fork="drop", name="balloon")
        self.plugged: dict[int, int] = {}
        self.plugs = 0

    def plug(self, first: int, count: int) -> int:
        """The guest gets [first, first + count) and writes to it at once. Blocks that it did not have; CommitError, and
        nothing has changed."""
        absent = [block for block in range(first, first + count) if block not in self.plugged]
        self.memory.commit(count * BLOCK, offset=first * BLOCK)
        self.plugs += 1
        for block in absent:
            self.plugged[block] = self.plugs
            self.write(block)
        return len(absent)

    def unplug(self, first: int, count: int) -> int:
        """The host takes it back. Blocks that were plugged."""
        self.memory.release(count * BLOCK, offset=first * BLOCK)
        return sum(self.plugged.pop(block, None) is not None for block in range(first, first + count))

    def write(self, block: int) -> None:
        stamp = STAMP.pack(block, self.plugged[block])
        with self.memory.view(BLOCK, offset=block * BLOCK) as view:
            for page in range(0, BLOCK, PAGE):
                view[page : page + STAMP.size] = stamp

    def check(self) -> int:
        """Every page of every plugged block holds what was written, and nothing else is there. Bytes checked."""
        for block, generation in self.plugged.items():
            stamp = STAMP.pack(block, generation)
            with self.memory.view(BLOCK, offset=block * BLOCK, readonly=True) as view:
                for page in range(0, BLOCK, PAGE):
                    if view[page : page + STAMP.size] != stamp:
                        raise SystemExit(f"block {block} has lost its data at byte {page}")
        present = self.memory.residency().present
        if not present == self.memory.committed == len(self.plugged) * BLOCK:
            raise SystemExit(
                f"{present} bytes are present and {self.memory.committed} committed: something is left behind"
            )
        return present


@contextmanager
def limited(nbytes: int) -> Iterator[str]:
    """This process may use so much memory more. What sees to it: a memory cgroup where we may make one, else
    RLIMIT_DATA, which counts private memory only."""
    v1 = Path("/sys/fs/cgroup/memory")
    root, name = (v1, "memory.limit_in_bytes") if v1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = root / f"balloon-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + nbytes, before[1]))
        try:
            yield "RLIMIT_DATA"
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        return
    try:
        (group / name).write_text(str(nbytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield str(group / name)
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def play(device: Balloon, blocks: int, seconds: float, rng: random.Random) -> dict[str, str]:
    """Plugs and unplugs at random. What happened, in words."""
    done = {"plugged": 0, "refused": 0, "unplugged": 0, "checked": 0, "peak": 0}
    refusal = ""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        count = rng.randint(1, 32)
        first = rng.randrange(blocks - count)
        if device.plugged and rng.random() < 0.4:
            first = max(0, min(rng.choice(list(device.plugged)) - count // 2, blocks - count))
            done["unplugged"] += device.unplug(first, count)
        else:
            try:
                done["plugged"] += device.plug(first, count)
            except CommitError as error:
                done["refused"] += 1
                refusal = refusal or str(error)
                # Nothing was lost, and nothing is left of it.
                done["checked"] += device.check()
                for block in rng.sample(list(device.plugged), len(device.plugged) // 4):
                    done["unplugged"] += device.unplug(block, 1)
        done["peak"] = max(done["peak"], len(device.plugged))
    done["checked"] += device.check()
    return {
        "blocks plugged": f"{done['plugged']}",
        "unplugged": f"{done['unplugged']}",
        "plugs refused": f"{done['refused']}",
        "most at a time": mib(done["peak"] * BLOCK),
        "data checked": mib(done["checked"]),
        "the first refusal": refusal or "none",
    }


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="64GiB", help="what the guest sees (default: %(default)s)")
    parser.add_argument("--limit", default="256MiB", help="what the host has for it (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="how long (default: %(default)s)")
    parser.add_argument("--shared", action="store_true", help="a memfd, as for a device in another process")
    parser.add_argument("--seed", type=int, help="the same plugs as last time")
    args = parser.parse_args()
    size = parse_size(args.size)
    if size < 64 * BLOCK:
        parser.error("--size must be at least 128MiB")
    with limited(parse_size(args.limit, "limit")) as by:
        device = Balloon(size, shared=args.shared)
        with device.memory:
            print(f"a device of {args.size}, {args.limit} of memory for it, by {by}")
            rows = play(device, size // BLOCK, args.seconds, random.Random(args.seed))
        refusal = rows.pop("the first refusal")
        show(list(rows.items()))
        print(f"the first refusal: {refusal}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
