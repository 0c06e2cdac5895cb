"""The machine that the scenarios need, and workers on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import machine

from . import library
from .report import Report
from .worker import Job

MIB = 1 << 20
SUPPORT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Session:
    """A built library, and a disk and a tmpfs to work on."""

    library: Path
    disk: Path
    tmpfs: Path

    def start(self, job: Job) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            library.ENVIRONMENT: str(self.library),
            "LD_PRELOAD": str(self.library),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])),
            "PYTHONDONTWRITEBYTECODE": "1",
            # NumPy's threads would be threads of each forked child's parent; the interpreter's own allocator has
            # nothing to do with the malloc that fails.
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONMALLOC": "pymalloc",
        }
        command = [sys.executable, "-m", "inject.worker", json.dumps(asdict(job))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, job: Job, at_once: int = 1, report: Report | None = None) -> Report:
        """Runs the job, in so many workers side by side."""
        report = report if report is not None else Report()
        jobs = [replace(job, part=job.part + i * job.parts, parts=job.parts * at_once) for i in range(at_once)]
        workers = [self.start(job) for job in jobs]
        try:
            with ThreadPoolExecutor(at_once) as readers:
                try:
                    list(readers.map(report.follow, workers))
                except KeyboardInterrupt:
                    for worker in workers:
                        worker.kill()  # or the readers would wait for their end
                    raise
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        return report


@contextmanager
def session(folder: Path | None = None) -> Iterator[Session]:
    """Skips, saying why, where this machine cannot have what is needed."""
    if platform.libc_ver()[0] != "glibc":
        machine.skip("the library stands in front of glibc's malloc")
    if shutil.which("gcc") is None:
        machine.skip("there is no gcc to build the library with")
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = stack.enter_context(machine.disk(512 * MIB)(folder))
        tmpfs = stack.enter_context(machine.tmpfs(512 * MIB)(folder))
        yield Session(library.build(folder), disk.path, tmpfs.path)
