"""A prefetcher as PyTorch's DataLoader is one: worker threads put batches together some steps ahead of the training.

A batch is a block of an arena, and the training may keep it for as long as it likes: the memory goes back with the last
array or tensor that looks at it, and a later batch finds it, present. Of np.empty, malloc gives batches of 32 MiB and
more back to the kernel, and most smaller ones too, so that each is found anew by page faults.

    python examples/prefetch.py --batch 64 --ahead 3

Yields torch tensors where torch is installed, and NumPy arrays elsewhere. The order depends on the seed and the epoch
only. What the dataset raises comes out of the loop, with its traceback. A loop that is left early stops the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from _compare import Spent, command, mib, milliseconds, show, take_turns

from arena import Arena

try:
    import numpy as np
except ImportError:
    sys.exit("this example needs NumPy: pip install 'sparse-arena[numpy]'")

Batch = tuple[Any, Any]  # the samples and their labels: tensors, or arrays


class Dataset(Protocol):
    """Anything with samples of one shape, u1, and a label for each. Called by several threads at a time."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


def as_tensors() -> Callable[[Any], Any]:
    """What makes an array a tensor, without a copy. The tensor keeps the array, and the array its block."""
    try:
        return importlib.import_module("torch").from_numpy  # type: ignore[no-any-return]
    except ImportError:
        return lambda array: array


def sampler(count: int, batch: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Which samples are in which batch: all of them, once, in another order each epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return (order[at : at + batch] for at in range(0, count, batch))


class Prefetcher:
    """Iterate over it once for each epoch. ``make(shape, dtype)``: Arena.empty or np.empty. At most ``ahead`` batches
    are ready, or being made, besides those that the loop has."""

    def __init__(
        self, dataset: Dataset, make: Callable[..., Any], *, batch: int, workers: int, ahead: int, seed: int = 0
    ) -> None:
        if batch < 1 or workers < 1 or ahead < 1:
            raise ValueError(f"batch, workers and ahead must be 1 or more, not {batch}, {workers} and {ahead}")
        self.dataset = dataset
        self.make = make
        self.batch, self.workers, self.ahead, self.seed = batch, workers, ahead, seed
        self.epoch = 0
        self.tensor = as_tensors()

    def __iter__(self) -> Generator[Batch, None, None]:
        batches = sampler(len(self.dataset), self.batch, self.seed, self.epoch)
        self.epoch += 1
        return self._run(batches)

    def _run(self, batches: Iterator[list[int]]) -> Generator[Batch, None, None]:
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.workers, "prefetch")
        try:
            while True:
                while len(pending) < self.ahead and (indices := next(batches, None)) is not None:
                    pending.append(pool.submit(self.collate, indices))
                if not pending:
                    return
                # In the order of the sampler, whoever is ready first. Raises what the dataset has raised.
                yield pending.popleft().result()
        finally:
            # Also where the loop was left: Python closes a generator that nobody has any more.
            pool.shutdown(cancel_futures=True)
            pending.clear()

    def collate(self, indices: Sequence[int]) -> Batch:
        """A batch of f4 from 0 to 1, in one pass."""
        samples = self.make((len(indices), *self.dataset.shape), "f4")
        labels = self.make(len(indices), "i8")
        for place, index in enumerate(indices):
            sample, labels[place] = self.dataset[index]
            np.multiply(sample, np.float32(1 / 255), out=samples[place])
        return self.tensor(samples), self.tensor(labels)


class Pictures:
    """A dataset in memory. Each picture holds its own number in its first pixels; so does its label."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.pixels = np.random.default_rng(1).integers(0, 256, (count, *shape), "u1")
        for number in range(count):
            self.pixels[number].reshape(-1)[:4] = np.frombuffer(number.to_bytes(4, "little"), "u1")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int, /) -> tuple[Any, int]:
        return self.pixels[index], index


def check(samples: Any, labels: Any) -> None:
    """Each sample is what its label says."""
    first = np.rint(np.asarray(samples).reshape(len(labels), -1)[:, :4] * 255).astype("u1")
    if not (np.ascontiguousarray(first).view("<u4")[:, 0] == np.asarray(labels)).all():
        raise RuntimeError("a batch has samples that are not its labels'")


@dataclass
class Epoch:
    spent: Spent  # from the first batch to the last
    batches: int
    seen: int  # the sum of the labels


def train(prefetcher: Prefetcher) -> Epoch:
    """An epoch. The training is one look at each number."""
    epoch = Epoch(Spent(), 0, 0)
    with contextlib.closing(iter(prefetcher)) as batches:
        for samples, labels in batches:
            check(samples, labels)
            samples.max()
            epoch.seen += int(labels.sum())
            if not epoch.batches:
                epoch.spent.begin()
            epoch.batches += 1
        epoch.spent.end()
    return epoch


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=2000, help="pictures (default: %(default)s)")
    parser.add_argument("--side", type=int, default=224, help="their height and width (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--ahead", type=int, default=3, help="batches (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="the ways take turns (default: %(default)s)")
    args = parser.parse_args()
    if min(args.batch, args.workers, args.ahead, args.epochs) < 1 or args.side < 2 or args.samples < 2 * args.batch:
        parser.error("numbers must be 1 or more, --side 2 or more, and there must be --samples for two batches")

    pictures = Pictures(args.samples, (3, args.side, args.side))
    of_a_batch = 4 * args.batch * 3 * args.side**2 + 8 * args.batch
    # Those ahead, and the one that the loop has.
    need = (args.ahead + 1) * (of_a_batch + 128)
    arena = Arena(4 * need + (64 << 20), fork="drop", name="prefetch")
    arena.warm(need)
    print(f"{args.samples} pictures, {-(-args.samples // args.batch)} batches of {mib(of_a_batch)}", flush=True)

    def way(make: Callable[..., Any]) -> Callable[[], Epoch]:
        prefetcher = Prefetcher(pictures, make, batch=args.batch, workers=args.workers, ahead=args.ahead)
        return lambda: train(prefetcher)

    ways = {"arena": way(arena.empty), "np.empty": way(np.empty)}
    epochs = take_turns(ways, args.epochs)
    if {epoch.seen for some in epochs.values() for epoch in some} != {sum(range(args.samples))}:
        sys.exit("an epoch has not seen each sample once")
    times = [statistics.median(epoch.spent.seconds for epoch in some) for some in epochs.values()]
    faults = [sum(epoch.spent.faults for epoch in some) / args.epochs for some in epochs.values()]
    count = epochs["arena"][0].batches - 1
    rows = [
        ["", *ways],
        ["page faults a batch", *(f"{value / count:,.1f}" for value in faults)],
        ["time a batch", *(milliseconds(value / count) for value in times)],
        ["time, to the arena's", *(f"{value / times[0]:.2f} x" for value in times)],
    ]
    show(rows)
    stats = arena.stats()
    print(f"of {mib(need)} warmed the arena had at most {mib(stats.peak_live)} in use; now {stats.live} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
