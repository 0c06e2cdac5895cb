"""The pytest plugin: its marker and its fixture, in pytest runs of their own."""

from __future__ import annotations

import importlib.metadata
import textwrap
from collections.abc import Callable

import pytest

pytest_plugins = "pytester"

pytestmark = [
    pytest.mark.skipif(
        not any(point.value == "pytest_arena" for point in importlib.metadata.entry_points(group="pytest11")),
        reason="the plugin is not installed (the package is not, or is an older one)",
    ),
]

PRELUDE = """
import asyncio, ctypes, mmap, unittest
import pytest

def fresh(pages):
    m = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    return m

def fault():  # more often than what is allowed to the interpreter's own pages
    m = fresh(50)
    for at in range(0, len(m), mmap.PAGESIZE):
        m[at] = 1

"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    def run(code: str, *options: str, conftest: str = "") -> pytest.RunResult:
        if conftest:
            pytester.makeconftest(textwrap.dedent(conftest))
        path = pytester.makepyfile(PRELUDE + textwrap.dedent(code))
        return pytester.runpytest_subprocess(
            path, "--strict-markers", "-W", "error", "-p", "no:cacheprovider", "-p", "no:randomly", *options
        )

    return run


def test_who_does_not_ask_for_it_pays_nothing(run: Run) -> None:
    run(
        """
        import sys

        def test_nothing_of_arena_is_there():
            assert "pytest_arena" in sys.modules
            assert not [name for name in sys.modules if name.partition(".")[0] in ("arena", "numpy")]
        """
    ).assert_outcomes(passed=1)


def test_the_marker_is_registered(run: Run) -> None:
    result = run("", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.no_page_faults(allow_minor=0, [*], where=True, warmup=3): *"])


def test_a_test_that_does_not_fault_passes_and_one_that_does_fails(run: Run) -> None:
    result = run(
        """
        @pytest.mark.no_page_faults(warmup=300)  # until the interpreter's own pages are there
        def test_steady():
            assert sum(range(1000)) == 499500

        @pytest.mark.no_page_faults
        def test_faulting():
            m = fresh(3)
            m[0] = 1
            m[mmap.PAGESIZE] = 1
            m[2 * mmap.PAGESIZE] = 1

        @pytest.mark.no_page_faults(allow_minor=20)
        def test_allowed():
            fresh(3)[0] = 1

        def test_unmarked():
            fresh(3)[0] = 1
        """
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["[3-9] page faults ([3-9] minor, 0 major) where no minor faults are allowed; *"])
    assert "arena/" not in result.stdout.str()  # as of a traceback of ours


def test_the_lines_of_python(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        @pytest.mark.no_page_faults(where="lines")
        def test_faulting():
            m = fresh(2)
            m[0] = 1
            m[mmap.PAGESIZE] = 1
            kept.append(m)

        kept = []
        """
    )
    result.assert_outcomes(failed=1)
    if "perf_event_open(2) says" in result.stdout.str():
        pytest.skip("page faults cannot be sampled here")
    (path,) = pytester.path.glob("test_*.py")
    first = path.read_text().splitlines().index("    m[0] = 1") + 1
    result.stdout.fnmatch_lines([f"* 0x*, {path}:{first}*", f"  0x*, {path}:{first + 1}"])
    assert "During handling" not in result.stdout.str()


def test_how_often_it_is_called(run: Run) -> None:
    run(
        """
        calls = []

        @pytest.fixture
        def made():
            calls.append("made")
            yield len(calls)
            calls.append("gone")

        @pytest.mark.no_page_faults(allow_minor=20)
        def test_by_itself(made):
            calls.append("called")

        def test_three_times_before():
            assert calls == ["made", "called", "called", "called", "called", "gone"]
            calls.clear()

        @pytest.mark.no_page_faults(warmup=0, allow_minor=1000)
        @pytest.mark.parametrize("n", [1, 2])
        def test_cold(n):
            calls.append(n)

        def test_once_each():
            assert calls == [1, 2]
        """
    ).assert_outcomes(passed=5)


def test_what_a_test_raises_is_its_own(run: Run) -> None:
    result = run(
        """
        from arena.realtime import no_page_faults as guard

        pytestmark = pytest.mark.no_page_faults(allow_minor=20)

        def test_assertion():
            x = 1
            assert x == 2

        def test_skipped():
            pytest.skip("for a reason")

        @pytest.mark.xfail(raises=KeyError, strict=True)
        def test_expected():
            raise KeyError

        def test_inner():
            with guard():
                fresh(1)[0] = 1

        def test_raises():
            with pytest.raises(ZeroDivisionError):
                1 / 0
        """
    )
    result.assert_outcomes(passed=1, failed=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["*assert x == 2", "*assert 1 == 2", "*with guard():*"])


def test_classes_and_unittest(run: Run) -> None:
    run(
        """
        @pytest.mark.no_page_faults(allow_minor=20)
        class TestBoth:
            def test_steady(self):
                pass

            def test_faulting(self):
                fault()

        @pytest.mark.no_page_faults(allow_minor=20)
        class Case(unittest.TestCase):
            def test_steady(self):
                self.assertEqual(1, 1)

            def test_faulting(self):
                fault()
        """
    ).assert_outcomes(passed=2, failed=2)


def test_coroutines_whatever_runs_them(run: Run) -> None:
    result = run(
        """
        @pytest.mark.no_page_faults(allow_minor=20)
        async def test_steady():
            await asyncio.sleep(0)

        @pytest.mark.no_page_faults
        async def test_faulting():
            await asyncio.sleep(0)
            fresh(1)[0] = 1
        """,
        conftest="""
        import asyncio
        import inspect

        def pytest_pyfunc_call(pyfuncitem):
            assert inspect.iscoroutinefunction(pyfuncitem.obj)
            asyncio.run(pyfuncitem.obj())
            return True
        """,
    )
    result.assert_outcomes(passed=1, failed=1)


def test_the_fixture(run: Run) -> None:
    result = run(
        """
        def test_steady(no_page_faults):
            with no_page_faults(allow_minor=20):
                pass

        def test_faulting(no_page_faults):
            m = fresh(5)
            with no_page_faults():
                m[0] = 1
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*PageFaultError: * minor, 0 major) where no minor faults are allowed; *"])


@pytest.mark.parametrize("nonsense", ["-1", "warmup=-1", "where='line'", "often=3", "'1'"])
def test_nonsense(run: Run, nonsense: str) -> None:
    result = run(
        f"""
        @pytest.mark.no_page_faults({nonsense})
        def test_it():
            pass

        def test_the_next():
            pass
        """
    )
    result.assert_outcomes(passed=1, failed=1)
