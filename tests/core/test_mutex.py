"""The mutex of csrc/sys/ in a build that checks: no system call under the mutex of an arena or a reservation."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from core._build import CSRC

pytestmark = pytest.mark.slow  # the same on every CPython

PROGRAM = """
#include <stdlib.h>
#include <string.h>
#include "sys/mapping.h"
#include "sys/mutex.h"
#include "sys/page.h"
#include "sys/proc.h"
#include "sys/thread.h"

int main(int n, char **args) {
    struct mutex m = {.rank = (enum mutex_rank)atoi(args[1])};
    char text[16];
    void *at;
    if (n != 3) return 2;
    mutex_lock(&m);
    (void)os_now_ns();
    if (strcmp(args[2], "none") == 0) mutex_unlock(&m);
    if (strcmp(args[2], "fork") == 0) mutex_check_fork(true);
    os_sleep_us(1);
    (void)os_overcommit_mode();
    return os_read("/proc/self/comm", text, sizeof text) > 0 ? os_map(&os_anonymous, OS_PAGE, OS_READ, &at) : 1;
}
"""
REGISTRY, ARENA, RESERVATION = 0, 1, 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutex")
    source, target = folder / "program.c", folder / "program"
    source.write_text(PROGRAM, encoding="utf-8")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-std=c11", "-pthread", "-DARENA_CHECKED"]
    flags += [f"-I{CSRC}", f"-I{CSRC}/include"]
    sources = [*sorted(CSRC.glob("sys/*.c")), source]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize(
    ("rank", "held", "answer"),
    [
        (REGISTRY, "held", 0),
        (ARENA, "held", -signal.SIGABRT),
        (RESERVATION, "held", -signal.SIGABRT),
        (ARENA, "none", 0),
        (RESERVATION, "none", 0),
        (ARENA, "fork", 0),
    ],
)
def test_no_system_call_under_the_mutex_of_an_arena(program: Path, rank: int, held: str, answer: int) -> None:
    assert subprocess.run([str(program), str(rank), held], timeout=60).returncode == answer
