"""Puts prometheus and promtool beside the Python that runs this, for the tests with a real Prometheus.

Links to those on PATH; else, on Debian and its kin, takes them from the distribution's package, without being root and
without installing it: package lists and the download live in a temporary folder. Where neither can be done it says so
and exits 0: the tests are then skipped. Needs the standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("prometheus", "promtool")
TIMEOUT_S = 60


class NotHereError(Exception):
    """Why there will be no Prometheus."""


def on_path() -> dict[str, Path]:
    """The tools that are installed; raises NotHereError unless all are."""
    found = {tool: shutil.which(tool) for tool in TOOLS}
    if missing := [tool for tool, path in found.items() if path is None]:
        raise NotHereError(f"no {' and no '.join(missing)} on PATH")
    return {tool: Path(path) for tool, path in found.items() if path}


def unpack_package(folder: Path) -> dict[str, Path]:
    """Download the package and unpack it in ``folder``. Raises NotHereError."""
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise NotHereError(f"no {' and no '.join(missing)} to get it with")
    lists, cache = folder / "lists", folder / "cache"
    for place in (lists / "partial", cache / "archives" / "partial"):
        place.mkdir(parents=True)
    settings = (f"Dir::State::lists={lists}", f"Dir::Cache={cache}", "APT::Sandbox::User=root",
                "Acquire::Retries=1", "Acquire::http::Timeout=10", "Acquire::https::Timeout=10")  # fmt: skip
    apt = ["apt-get", "-q", *(word for setting in settings for word in ("-o", setting))]
    call([*apt, "update"], folder, may_fail=True)  # one source out of order does not spoil the others
    call([*apt, "download", "prometheus"], folder)
    (package,) = folder.glob("prometheus_*.deb")
    call(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], folder)
    found = {tool: folder / "unpacked" / "usr" / "bin" / tool for tool in TOOLS}
    for path in found.values():
        call([str(path), "--version"], folder)
    return found


def call(command: Sequence[str], folder: Path, may_fail: bool = False) -> None:
    """Run a command in ``folder``. Raises NotHereError with its last line if it fails and may not."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHereError(f"{name}: {error}") from error
    if done.returncode and not may_fail:
        said = (done.stdout.splitlines() or [f"exit status {done.returncode}"])[-1]
        raise NotHereError(f"{name}: {said}; is there a network?")


def main() -> None:
    """Install what is missing."""
    place = Path(sys.executable).parent
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                found, put = on_path(), os.symlink
            except NotHereError:
                print("Getting Prometheus from the distribution's package ...", flush=True)
                found, put = unpack_package(Path(folder)), shutil.move
            for tool in reversed(TOOLS):  # the Makefile looks for the first: it comes last
                (place / tool).unlink(missing_ok=True)
                put(found[tool], place / tool)
    except (NotHereError, OSError) as error:
        print(f"No Prometheus: the tests that need it are skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
