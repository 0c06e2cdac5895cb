from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
from conftest import GIB, MIB, SUPPORT, faults_writing, rss

from arena import Arena, ArenaFullError, Block, CommitError


def test_an_arena_of_1_tib_costs_less_than_1_mib() -> None:
    Arena("64MiB").close()  # what the first arena of the process brings along is not this one's
    before = rss()
    a = Arena("1TiB")
    assert rss() - before < MIB
    assert a.stats().committed == 0


def test_alloc_gives_memory_that_is_there() -> None:
    with Arena("1GiB") as a:
        b = a.alloc("256MiB")
        view = memoryview(b)
        assert faults_writing(view) == 0
        view.release()
        b.free()


def test_no_fault_while_allocating_in_warmed_memory(child: Callable[..., str]) -> None:
    """In a process of its own: in this one the interpreter's memory faults too, after the forks of other tests."""
    child(
        """
        import gc
        from arena import Arena
        from measure import steady_faults
        a = Arena("1GiB")
        a.warm("128MiB")
        sizes = [64, 200, 4096, 70_000, 1 << 20, 20 << 20]
        def round_trips(n):
            for _ in range(n):
                for size in sizes:
                    b = a.alloc(size)
                    b[0] = b[size - 1] = 1
                    b.free()
                    del b
        gc.disable()
        commits = a.stats().commits
        assert steady_faults(lambda: round_trips(40)) == 0
        assert a.stats().commits == commits
        """,
        PYTHONPATH=str(SUPPORT),
    )


@pytest.mark.parametrize("size", [0, -1, 1 << 63, "nonsense", "", "65TiB"])
def test_sizes_that_make_no_sense(size: Any) -> None:
    with pytest.raises(ValueError):
        Arena(size)
    if size != "65TiB":
        with Arena("1MiB") as a, pytest.raises(ValueError):
            a.alloc(size)


@pytest.mark.parametrize("size", [1.5, float("nan"), None, b"1"])
def test_sizes_of_the_wrong_type(size: Any) -> None:
    with pytest.raises(TypeError):
        Arena(size)
    with Arena("1MiB") as a, pytest.raises(TypeError):
        a.alloc(size)


@pytest.mark.parametrize("align", [0, 3, -64, 100, 4 * MIB, "3KiB"])
def test_alignments_that_make_no_sense(align: Any) -> None:
    with Arena("16MiB") as a, pytest.raises(ValueError, match="align"):
        a.alloc(64, align=align)


@pytest.mark.parametrize("align", [1, 8, 64, 128, 4096, "64KiB", 2 * MIB])
def test_alignment(align: Any) -> None:
    with Arena("64MiB") as a:
        kept = [a.alloc(100 + i, align=align) for i in range(9)]
        step = 2 * MIB if align == 2 * MIB else 65536 if align == "64KiB" else max(int(align), 64)
        assert all(b.address % step == 0 for b in kept)
        assert len({b.offset for b in kept}) == 9


def test_blocks_are_aligned_to_large_chunks_too() -> None:
    with Arena("256MiB", chunk="16MiB") as a:
        kept = [a.alloc(100, align="16MiB") for _ in range(3)]
        assert all(b.address % (16 * MIB) == 0 for b in kept)
        kept.clear()


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 3 * MIB},
        {"chunk": 0},
        {"chunk": 64},
        {"chunk": "2GiB"},
        {"pages": "12K"},
        {"pages": None},
        {"fork": "share"},
        {"populate": "maybe"},
        {"retain": -1},
        {"decay": -1, "retain": 0},
        {"decay": float("nan"), "retain": 0},
        {"decay": 1},
        {"name": "a[b]"},
        {"pages": "thp", "chunk": "64KiB"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Arena("64MiB", **options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError):
        Arena("64MiB", colour="red")  # type: ignore[call-arg]


def test_more_than_the_arena_holds() -> None:
    with Arena("8MiB") as a:
        with pytest.raises(ArenaFullError, match="8 MiB") as caught:
            a.alloc("9MiB")
        assert caught.value.requested == 9 * MIB
        assert caught.value.available == 8 * MIB
        assert caught.value.hint
        assert isinstance(caught.value, MemoryError)
        b = a.alloc("5MiB")
        with pytest.raises(ArenaFullError) as caught:
            a.alloc("4MiB")
        assert caught.value.available == 3 * MIB
        b.free()
        a.alloc("8MiB")


def test_grow_false_takes_committed_memory_only() -> None:
    with Arena("64MiB") as a:
        with pytest.raises(ArenaFullError, match="committed") as caught:
            a.alloc(100, grow=False)
        assert caught.value.available == 0
        a.warm("8MiB")
        commits = a.stats().commits
        b = a.alloc("8MiB", grow=False)
        with pytest.raises(ArenaFullError):
            a.alloc("1MiB", grow=False)
        assert a.stats().commits == commits
        del b


def test_the_ledger() -> None:
    with Arena("64MiB") as a:
        s = a.stats()
        assert (s.reserved, s.committed, s.live, s.blocks, s.fragmentation) == (64 * MIB, 0, 0, 0, 0)
        b = a.alloc(100)
        c = a.alloc(5 * MIB)
        s = a.stats()
        assert s.live == 128 + 5 * MIB
        assert s.blocks == 2
        assert s.committed == 6 * MIB
        assert s.free_committed == s.committed - s.live
        assert list(a.blocks()) == [(0, 128), (128, 5 * MIB)]
        b.free()
        s = a.stats()
        assert s.largest_free == 64 * MIB - 128 - 5 * MIB
        assert s.fragmentation == pytest.approx(128 / (64 * MIB - 5 * MIB))
        c.free()
        assert a.trim() == 6 * MIB
        s = a.stats()
        assert (s.committed, s.free_committed, s.live) == (0, 0, 0)
        assert s.peak_committed == 6 * MIB
        assert s.peak_live == 128 + 5 * MIB
        assert s.releases >= 1
        assert a.residency().present == 0


def test_what_is_committed_is_preferred() -> None:
    with Arena("1GiB") as a:
        first = a.alloc("32MiB")
        second = a.alloc("2MiB")
        first.free()
        commits = a.stats().commits
        kept = [a.alloc("4MiB") for _ in range(8)]
        assert a.stats().commits == commits
        assert {b.offset for b in kept} == {i * 4 * MIB for i in range(8)}
        del second


def test_retain_releases_what_is_beyond() -> None:
    with Arena("256MiB", retain="8MiB") as a:
        kept = [a.alloc("2MiB") for _ in range(32)]
        assert a.stats().committed == 64 * MIB
        kept.clear()
        assert a.stats().free_committed == 8 * MIB
        assert a.residency().present == 8 * MIB


def test_retain_nothing() -> None:
    with Arena("256MiB", retain=0) as a:
        b = a.alloc("64MiB")
        b.free()
        assert a.stats().committed == 0
        assert a.residency().present == 0


def test_what_was_warmed_is_kept_until_trim() -> None:
    with Arena("256MiB", retain=0) as a:
        a.warm("32MiB")
        assert a.stats().free_committed == 32 * MIB
        b = a.alloc("40MiB")
        b.free()
        assert a.stats().free_committed == 32 * MIB
        assert a.trim(keep="4MiB") == 28 * MIB
        assert a.trim() == 4 * MIB
        b = a.alloc("4MiB")
        del b
        assert a.stats().committed == 0


def test_warm_is_in_one_piece_and_tells_its_progress() -> None:
    seen: list[tuple[int, int]] = []
    with Arena("1GiB") as a:
        pin = a.alloc(64)
        a.warm("300MiB", threads=1, progress=lambda done, total: seen.append((done, total)))
        a.alloc("300MiB", grow=False)
        del pin
    assert seen[-1][0] == seen[-1][1] >= 300 * MIB
    assert all(x[0] <= y[0] for x, y in itertools.pairwise(seen))


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5])
def test_threads_that_make_no_sense(threads: Any) -> None:
    with Arena("8MiB") as a, pytest.raises(ValueError, match="threads"):
        a.warm("1MiB", threads=threads)


def test_reset_frees_all_at_once() -> None:
    with Arena("64MiB") as a:
        kept = [a.alloc(1000) for _ in range(100)]
        view = memoryview(kept[7])
        with pytest.raises(BufferError):
            a.reset()
        assert not kept[7].freed
        view.release()
        a.reset()
        assert all(b.freed for b in kept)
        assert a.stats().blocks == 0
        with pytest.raises(BufferError):
            memoryview(kept[0])
        with pytest.raises(ValueError):
            kept[1].free()
        again = a.alloc(1000)
        kept.clear()  # must not free what is not theirs any more
        assert a.stats().blocks == 1
        assert not again.freed


def test_zero_never_hands_out_old_bytes() -> None:
    with Arena("64MiB") as a:
        for n in (100, 5000, 3 * MIB):
            b = a.alloc(n)
            b[:] = b"\xff" * n
            b.free()
            z = a.alloc(n, zero=True)
            assert bytes(z[:]) == bytes(n)
            z[:] = b"\xff" * n
            del z
        a.trim()
        z = a.alloc(8 * MIB, zero=True)
        assert bytes(z[:]) == bytes(8 * MIB)


def test_released_memory_comes_back_zero() -> None:
    with Arena("64MiB") as a:
        b = a.alloc("10MiB")
        b[:] = b"\xff" * (10 * MIB)
        b.free()
        assert a.trim() == 10 * MIB
        assert bytes(a.alloc("10MiB")[:]) == bytes(10 * MIB)


def test_closing_keeps_blocks_alive() -> None:
    a = Arena("64MiB")
    b = a.alloc(1000)
    b[0] = 7
    view = memoryview(b)
    with pytest.raises(BufferError, match=r"^1 block of 1 KiB in all is alive: 1 KiB at offset 0; drop"):
        a.close(strict=True)
    assert repr(a) != "<arena.Arena closed>"
    a.close()
    assert a.closed and repr(a) == "<arena.Arena closed>"
    assert b[0] == view[0] == 7
    view.release()
    with pytest.raises(BufferError, match="alive"):
        a.close(strict=True)
    with pytest.raises(ValueError, match="closed"):
        a.alloc(1)
    with pytest.raises(ValueError, match="closed"):
        a.warm(1)
    before = a.stats().reserved
    assert before == 64 * MIB
    del b
    assert a.stats().reserved == 0
    a.close()
    a.close(strict=True)


def test_closing_gives_free_memory_back_at_once() -> None:
    a = Arena("256MiB", pages="4K", chunk="1MiB")
    a.warm("64MiB")
    first, second = a.alloc("8MiB"), a.alloc("8MiB")
    first[0] = 1
    second[0] = 2
    a.close()
    stats = a.stats()
    assert (stats.committed, stats.free_committed, stats.blocks) == (16 * MIB, 0, 2)
    first.free()
    assert a.stats().committed == 8 * MIB and second[0] == 2
    assert first.freed
    del second, first
    assert a.stats().reserved == a.stats().committed == 0


def test_what_is_made_in_a_with_outlives_it() -> None:
    with Arena("64MiB") as a:
        block = a.alloc(100)
        block[:3] = b"abc"
    assert a.closed and bytes(block[:3]) == b"abc"
    with pytest.raises(ValueError, match="closed"), a:
        pass


def test_a_progress_callback_may_use_the_arena() -> None:
    found: list[object] = []
    with Arena("1GiB") as a:
        a.warm("4MiB")

        def progress(done: int, total: int) -> None:
            found.append(a.alloc(100))
            if done < total:
                with pytest.raises((BufferError, ValueError)):
                    a.close()

        a.warm("512MiB", threads=1, progress=progress)
        assert found
        found.clear()


def test_reentry_that_could_never_finish_is_refused() -> None:
    caught: list[BaseException] = []
    from arena import Reservation

    with Reservation("1GiB") as r:

        def progress(done: int, total: int) -> None:
            if done < total:
                try:
                    r.commit("1MiB")
                except RuntimeError as error:
                    caught.append(error)

        r.commit(threads=1, progress=progress)
        assert caught
        assert "very thread" in str(caught[0])
        assert r.committed == GIB


def test_an_exception_in_progress_rolls_back() -> None:
    with Arena("2GiB") as a:
        with pytest.raises(ZeroDivisionError):
            a.warm("1GiB", progress=lambda done, total: 1 // 0)
        assert a.stats().committed == 0
        assert a.residency().present == 0
        with pytest.raises(TypeError, match="callable"):
            a.warm(1, progress=3)  # type: ignore[arg-type]


def test_more_than_the_machine_has_is_an_error_at_once() -> None:
    with Arena("16TiB") as a:
        with pytest.raises(CommitError) as caught:
            a.alloc("8TiB")
        error = caught.value
        assert isinstance(error, OSError)
        assert isinstance(error, MemoryError)
        assert error.errno is not None
        assert error.requested == 8 << 40
        assert error.available is not None
        assert error.available < 8 << 40
        assert error.hint in str(error)
        assert a.stats().committed == 0
        assert a.stats().blocks == 0
        a.alloc("1MiB")


def test_small_arenas_and_odd_sizes() -> None:
    for size in (1, 100, 4096, 5000, 100_000, 3 * MIB):
        with Arena(size) as a:
            assert a.size >= size
            b = a.alloc(min(size, 64))
            b[0] = 1
            del b


def test_populate_read_maps_the_zero_page() -> None:
    with Arena("64MiB", populate="read", pages="4K", chunk="64KiB") as a:
        b = a.alloc("1MiB")
        r = a.residency()
        assert bytes(b[:]) == bytes(MIB)
        assert r.present >= MIB
        if r.zero:
            assert r.zero == r.present
        del b


def test_immutable_types() -> None:
    with pytest.raises(TypeError):
        type("Mine", (Arena,), {})
    a = Arena("1MiB")
    with pytest.raises(AttributeError):
        a.anything = 1  # type: ignore[attr-defined]


def test_nothing_is_leaked_by_a_million_blocks() -> None:
    a = Arena("1GiB")
    for _ in range(100):
        a.alloc(100)
    refs = sys.getrefcount(a)
    for _ in range(100_000):
        a.alloc(100)
    assert sys.getrefcount(a) == refs
    assert a.stats().blocks == 0


def test_repr() -> None:
    with Arena("1GiB") as a:
        b = a.alloc("1MiB")
        assert "1 GiB reserved" in repr(a)
        assert "1 blocks" in repr(a)
        assert "1048576 bytes" in repr(b)
        b.free()
        assert "freed" in repr(b)
    assert "closed" in repr(a)


def test_the_index_is_warmed_for_as_many_blocks_as_are_asked_for() -> None:
    a = Arena("256MiB", pages="4K")
    a.warm("4MiB", blocks=1 << 16)
    blocks = [a.alloc(64, grow=False) for _ in range(1 << 16)]
    assert a.stats().blocks == len(blocks)


def test_without_room_in_the_index_alloc_that_may_not_grow_says_what_to_do() -> None:
    a = Arena("256MiB", pages="4K")
    a.warm("64MiB")
    blocks: list[Block] = []
    with pytest.raises(ArenaFullError, match=r"index has no room.*warm\(nbytes, blocks=\.\.\.\)"):
        blocks.extend(a.alloc(64, grow=False) for _ in range(1 << 20))
    a.warm("4MiB", blocks=len(blocks))
    blocks += [a.alloc(64, grow=False) for _ in range(len(blocks))]


@pytest.mark.parametrize(("blocks", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("8", TypeError)])
def test_counts_of_blocks_that_are_none(blocks: Any, error: type[Exception]) -> None:
    a = Arena("1MiB")
    with pytest.raises(error):
        a.warm(1, blocks=blocks)
    a.warm(1, blocks=1 << 70)  # all that there can be
