"""pytest-benchmark over what a program does again and again with memory that is committed.

pytest bench/test_hot_paths.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

import arena

np = pytest.importorskip("numpy")
pytest.importorskip("pytest_benchmark")
from pytest_benchmark.fixture import BenchmarkFixture  # noqa: E402  only once it is known to be there

KIB, MIB = 1 << 10, 1 << 20
SIZES = [64, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB]


def in_bytes(size: int) -> str:
    return f"{size // MIB}MiB" if size >= MIB else f"{size // KIB}KiB" if size >= KIB else f"{size}B"


@pytest.fixture(scope="module")
def pool() -> Iterator[arena.Arena]:
    with arena.Arena("1GiB") as made:
        made.warm("256MiB")
        yield made


@pytest.fixture(scope="module")
def crowded() -> Iterator[tuple[arena.Arena, list[arena.Block]]]:
    """Fifty thousand blocks of mixed sizes are live, with holes among them."""
    pick = random.Random(1)
    made = arena.Arena("1GiB")
    made.warm("256MiB")
    blocks = [made.alloc(pick.choice((64, 256, KIB, 4 * KIB))) for _ in range(60_000)]
    pick.shuffle(blocks)
    del blocks[50_000:]
    yield made, blocks
    blocks.clear()
    made.close()


@pytest.mark.parametrize("size", SIZES, ids=in_bytes)
@pytest.mark.benchmark(group="alloc and drop")
def test_alloc_and_drop(benchmark: BenchmarkFixture, pool: arena.Arena, size: int) -> None:
    benchmark(pool.alloc, size)


@pytest.mark.parametrize("size", SIZES, ids=in_bytes)
@pytest.mark.benchmark(group="alloc and drop, others")
def test_np_empty_and_drop(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark(np.empty, size // 8)


@pytest.mark.parametrize("size", SIZES[:4], ids=in_bytes)
@pytest.mark.benchmark(group="alloc and drop, 50,000 blocks live")
def test_many_live(benchmark: BenchmarkFixture, crowded: tuple[arena.Arena, list[arena.Block]], size: int) -> None:
    benchmark(crowded[0].alloc, size)


@pytest.mark.benchmark(group="alloc and free")
def test_explicit_free(benchmark: BenchmarkFixture, pool: arena.Arena) -> None:
    benchmark(lambda: pool.alloc(4096).free())


@pytest.mark.benchmark(group="alloc and free")
def test_a_hundred_in_random_order(benchmark: BenchmarkFixture, pool: arena.Arena) -> None:
    pick = random.Random(2)
    sizes = [pick.choice((64, 1000, 4096, 20_000, 300_000)) for _ in range(100)]
    order = pick.sample(range(100), 100)

    def churn() -> None:
        blocks: list[arena.Block | None] = [pool.alloc(size) for size in sizes]
        for i in order:
            blocks[i] = None

    benchmark(churn)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.benchmark(group="10,000 alloc and drop in each of several threads")
def test_threads(benchmark: BenchmarkFixture, pool: arena.Arena, threads: int) -> None:
    def work() -> None:
        for _ in range(10_000):
            pool.alloc(4096)

    def all_of_them() -> None:
        started = [threading.Thread(target=work) for _ in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    benchmark(all_of_them)


@pytest.mark.benchmark(group="views")
def test_memoryview(benchmark: BenchmarkFixture, pool: arena.Arena) -> None:
    block = pool.alloc(4096)
    benchmark(memoryview, block)


@pytest.mark.benchmark(group="views")
def test_memoryview_of_a_bytearray(benchmark: BenchmarkFixture) -> None:
    benchmark(memoryview, bytearray(4096))


@pytest.mark.benchmark(group="views")
def test_frombuffer(benchmark: BenchmarkFixture, pool: arena.Arena) -> None:
    block = pool.alloc(4096)
    benchmark(np.frombuffer, block, np.uint8)


@pytest.mark.benchmark(group="views")
def test_frombuffer_of_a_bytearray(benchmark: BenchmarkFixture) -> None:
    benchmark(np.frombuffer, bytearray(4096), np.uint8)


@pytest.mark.benchmark(group="arrays")
def test_arena_empty(benchmark: BenchmarkFixture, pool: arena.Arena) -> None:
    benchmark(pool.empty, 512)


@pytest.mark.benchmark(group="arrays")
def test_arena_zeros(benchmark: BenchmarkFixture, pool: arena.Arena) -> None:
    benchmark(pool.zeros, 512)


@pytest.mark.benchmark(group="arrays")
def test_np_empty(benchmark: BenchmarkFixture) -> None:
    benchmark(np.empty, 512)
