"""The prefetcher: batches in order, exceptions where they belong, and every block back."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import pytest
from example import no_thread_is_left, row, run_example

from arena import Arena

np = pytest.importorskip("numpy", reason="NumPy is not installed")

import prefetch  # noqa: E402  (it ends the program where there is no NumPy)

pytestmark = pytest.mark.slow  # the same on every CPython

SHAPE = (3, 16, 16)
BATCH = 10
BYTES = BATCH * 4 * 3 * 16 * 16 + 128  # of a batch and its labels


@pytest.fixture
def arena() -> Arena:
    return Arena("256MiB")


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no torch."""
    monkeypatch.setitem(sys.modules, "torch", None)


def prefetcher(arena: Arena, dataset: Any = None, **options: int) -> prefetch.Prefetcher:
    options = {"batch": BATCH, "workers": 2, "ahead": 3, **options}
    return prefetch.Prefetcher(prefetch.Pictures(95, SHAPE) if dataset is None else dataset, arena.empty, **options)


def test_what_it_costs() -> None:
    status, said, complained = run_example("prefetch", "--samples", 160, "--side", 64, "--batch", 8)
    assert (status, complained) == (0, "")
    ours, ordinary = row(said, "page faults a batch")
    assert ours < 3 and ordinary > 60  # a batch has 96 pages; the first few are not counted
    assert "now 0 bytes" in said


@pytest.mark.usefixtures("arrays")
def test_the_order_is_the_samplers_whoever_is_ready_first(arena: Arena) -> None:
    class Uneven(prefetch.Pictures):
        def __getitem__(self, index: int, /) -> tuple[Any, int]:
            time.sleep(index % 7 * 1e-4)
            return super().__getitem__(index)

    one = prefetcher(arena, workers=1, ahead=1)
    four = prefetcher(arena, Uneven(95, SHAPE), workers=4, ahead=8)
    other = prefetcher(arena, seed=1)
    orders = [[label for _, labels in of for label in labels.tolist()] for of in (one, four, four, one, other)]
    assert all(sorted(order) == list(range(95)) for order in orders)
    assert orders[0] == orders[1] != orders[2] == orders[3]
    assert orders[4] != orders[0]


@pytest.mark.usefixtures("arrays")
def test_a_batch_is_the_loops_for_as_long_as_it_likes(arena: Arena) -> None:
    batches = list(prefetcher(arena))
    assert [len(labels) for _, labels in batches] == [10] * 9 + [5]
    for samples, labels in batches:
        prefetch.check(samples, labels)
    assert arena.stats().blocks == 2 * len(batches)
    view = batches[0][0][3, 1:]
    del batches, samples, labels
    assert arena.stats().blocks == 1  # the view's
    del view
    assert arena.stats().blocks == 0


@pytest.mark.usefixtures("arrays")
def test_no_more_batches_are_made_than_was_said(arena: Arena) -> None:
    for _, labels in prefetcher(arena, ahead=2, workers=4):
        time.sleep(0.003)
        labels.sum()
    assert arena.stats().peak_live <= 3 * BYTES


class Broken(Exception):
    pass


class OneIsBroken(prefetch.Pictures):
    def __getitem__(self, index: int, /) -> tuple[Any, int]:
        if index == 50:
            raise Broken("sample 50 cannot be read")
        return super().__getitem__(index)


@pytest.mark.usefixtures("arrays")
def test_what_the_dataset_raises_comes_out_of_the_loop(arena: Arena) -> None:
    loader = prefetcher(arena, OneIsBroken(95, SHAPE))
    for _ in range(2):  # an epoch that fails does not spoil the next
        good, told, samples, labels = 0, "", None, None
        with no_thread_is_left():
            try:
                for samples, labels in loader:
                    prefetch.check(samples, labels)
                    good += len(labels)
            except Broken:
                told = traceback.format_exc()
        del samples, labels
        assert good < 95 and "raise Broken" in told and "__getitem__" in told
        assert arena.stats().blocks == 0


@pytest.mark.usefixtures("arrays")
def test_break_stops_the_workers_and_gives_every_block_back(arena: Arena) -> None:
    with no_thread_is_left():
        for samples, labels in prefetcher(arena, workers=4, ahead=6):
            prefetch.check(samples, labels)
            break
        assert arena.stats().blocks == 2
        del samples, labels
    assert arena.stats().blocks == 0


@pytest.mark.usefixtures("arrays")
def test_an_arena_that_is_too_small_says_so_in_the_loop() -> None:
    small = Arena("2MiB", chunk="4K")
    with no_thread_is_left(), pytest.raises(MemoryError, match="cannot allocate"):
        list(prefetcher(small, prefetch.Pictures(1000, SHAPE)))
    assert small.stats().blocks == 0


def test_tensors_where_there_is_torch(arena: Arena) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for samples, labels in prefetcher(arena):
        assert isinstance(samples, torch.Tensor) and samples.dtype == torch.float32 and labels.dtype == torch.int64
        assert arena.address <= samples.data_ptr() < arena.address + arena.size
        prefetch.check(samples, labels)
        kept = samples[1]
    del samples, labels
    assert arena.stats().blocks == 1
    del kept
    assert arena.stats().blocks == 0


def test_nonsense_is_refused(arena: Arena) -> None:
    for nonsense in ({"batch": 0}, {"workers": 0}, {"ahead": -1}):
        with pytest.raises(ValueError, match="1 or more"):
            prefetcher(arena, **nonsense)
    for option, value in (("--batch", 0), ("--workers", 0), ("--samples", 10), ("--side", 1), ("--epochs", 0)):
        status, _, complained = run_example("prefetch", option, value)
        assert status == 2 and "1 or more" in complained
