"""Where this process is: in a container, in a service of systemd, or at a login; on a real kernel or on a played one.
That decides which line mends a thing. The signs are read in one place and judged in another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .files import Files

__all__ = ["Kind", "Place", "Signs", "place_of", "read_signs"]

Kind: TypeAlias = Literal["kubernetes", "docker", "podman", "lxc", "container", "systemd", "login"]


@dataclass(frozen=True)
class Place:
    kind: Kind = "login"
    sign: str = ""
    """What says that it is this kind."""
    unit: str = ""
    """The name of the service of systemd."""
    sandbox: Literal["", "gVisor", "WSL1", "WSL2"] = ""
    user_namespace: bool = False
    """Whether the process is in a user namespace of its own. Its capabilities count inside that only: the kernel asks
    for CAP_IPC_LOCK and CAP_SYS_NICE in the first namespace."""

    @property
    def contained(self) -> bool:
        return self.kind not in ("systemd", "login")


@dataclass(frozen=True)
class Signs:
    files: frozenset[str] = frozenset()
    """Those of FILES that exist."""
    environment: Mapping[str, str] | None = None
    """Those variables of ENVIRONMENT that are set."""
    cgroups: str = ""
    """The text of /proc/self/cgroup."""
    manager: str = ""
    """The text of /run/systemd/container."""
    version: str = ""
    """The text of /proc/version."""
    uid_map: str = ""
    """The text of /proc/self/uid_map."""


FILES = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")
ENVIRONMENT = ("KUBERNETES_SERVICE_HOST", "container")

# The signs that a container's own files and environment give, the surest first.
_SIGNS: tuple[tuple[str, Kind], ...] = (
    ("KUBERNETES_SERVICE_HOST", "kubernetes"),
    ("/var/run/secrets/kubernetes.io", "kubernetes"),
    ("/run/.containerenv", "podman"),
    ("/.dockerenv", "docker"),
)
# A container's id has to follow: docker.service is the host's, and so are conmon's and LXC's monitors.
_CGROUPS: tuple[tuple[str, Kind], ...] = (
    (r"/kubepods\b", "kubernetes"),
    (r"/docker[-/][0-9a-f]{12}", "docker"),
    (r"/libpod-[0-9a-f]{12}", "podman"),
    (r"/lxc(\.payload)?[./]", "lxc"),
    (r"/(cri-)?containerd[-/:]", "container"),
)
_NAMES: dict[str, Kind] = {"docker": "docker", "podman": "podman", "lxc": "lxc"}

# gVisor's kernel says this of itself, whatever it runs on.
_GVISOR = re.compile(r"version 4\.4\.0 .*Sun Jan 10 15:06:54 PST 2016|gvisor", re.IGNORECASE)


def read_signs(files: Files) -> Signs:
    return Signs(
        files=frozenset(path for path in FILES if os.path.exists(path)),
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        cgroups=files.text("/proc/self/cgroup") or "",
        manager=files.word("/run/systemd/container") or "",
        version=files.word("/proc/version") or " ".join(os.uname()[2:4]),
        uid_map=files.word("/proc/self/uid_map") or "",
    )


def place_of(signs: Signs) -> Place:
    kind, sign, unit = _kind(signs)
    release = signs.version.partition("version ")[2].partition(" ")[0] or signs.version
    sandbox: Literal["", "gVisor", "WSL1", "WSL2"] = ""
    if _GVISOR.search(signs.version):
        sandbox = "gVisor"
    elif "microsoft" in release.lower():
        sandbox = "WSL2" if "WSL2" in release or "microsoft-standard" in release else "WSL1"
    numbers = signs.uid_map.split()
    return Place(kind, sign, unit, sandbox, bool(numbers) and numbers != ["0", "0", str(2**32 - 1)])


def _kind(signs: Signs) -> tuple[Kind, str, str]:
    environment = signs.environment or {}
    for sign, kind in _SIGNS:
        if sign in signs.files or sign in environment:
            return kind, sign, ""
    for pattern, kind in _CGROUPS:
        found = re.search(pattern, signs.cgroups)
        if found:
            return kind, f"{found.group()} in /proc/self/cgroup", ""
    for sign, name in (
        ("the variable container", environment.get("container")),
        ("/run/systemd/container", signs.manager),
    ):
        if name:
            return _NAMES.get(name, "container"), f"{sign} says {name}", ""
    for line in signs.cgroups.splitlines():
        units = [part for part in line.rpartition(":")[2].split("/") if part.endswith(".service")]
        if units:
            # The manager of a user's units cannot give them more than it has itself.
            unit = next((u for u in units if u.startswith("user@")), units[-1])
            return "systemd", f"{unit} in /proc/self/cgroup", "user@.service" if unit.startswith("user@") else unit
    return "login", "no sign of a container or of a service", ""
