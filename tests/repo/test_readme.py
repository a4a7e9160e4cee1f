"""The code blocks of README.md run, in order, as a reader would run them.

``python`` blocks are run whole. Of ``bash`` and ``console`` blocks, ``stepwell ...`` is run, one command a line, and
``make TARGET`` must name a target; any other command fails the test. ``stepwell serve`` is left running for the blocks
that follow, on free ports in place of 8001 and 8002. A block below ``<!-- not run: why -->`` is passed over.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.*-->\s*\Z")
SHELL = {"bash", "console"}
OPERATORS = {"&&", "||", "|", ";", "&", ">", ">>", "<"}
SHOWN = {"", "text", "json", "yaml", "mermaid"}
"""Languages of blocks that are read, not run."""
TIMEOUT_S = 300


class BlockError(AssertionError):
    """A block that does not do what the reader is told."""


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """One a line; a backslash continues it. In a console those after ``$``, the rest being output."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(markdown: str) -> Iterator[Block]:
    """The blocks to run. Raises BlockError for a language of which it is not known whether it runs."""
    for match in FENCE.finditer(markdown):
        language, text = match.groups()
        line = markdown.count("\n", 0, match.start()) + 1
        if language not in SHELL | SHOWN | {"python"}:
            raise BlockError(f"line {line}: language {language!r}; use python, bash, console or one of {SHOWN}")
        if language not in SHOWN and not NOT_RUN.search(markdown, 0, match.start()):
            yield Block(line, language, text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Reader:
    """Runs blocks in ``folder``; the servers they start end with ``servers``."""

    folder: Path
    root: Path
    servers: ExitStack
    ports: dict[str, str] = field(default_factory=lambda: {"8001": str(free_port()), "8002": str(free_port())})

    def read(self, markdown: str) -> None:
        for block in blocks_of(markdown):
            if block.language == "python":
                self.run(block, [sys.executable, "-c", self.with_ports(block.text)])
            for command in block.commands if block.language in SHELL else ():
                self.run_command(block, shlex.split(self.with_ports(command), comments=True))

    def with_ports(self, text: str) -> str:
        return re.sub(r"\b800[12]\b", lambda match: self.ports[match[0]], text)

    def run_command(self, block: Block, words: list[str]) -> None:
        stepwell = str(Path(sys.executable).with_name("stepwell"))
        if OPERATORS.intersection(words):
            raise BlockError(f"line {block.line}: {shlex.join(words)}: one plain command a line, or mark it")
        if words[0] == "make":
            self.run(block, ["make", "-n", "-C", str(self.root), *words[1:]])
        elif words[:2] == ["stepwell", "serve"]:
            ports = ["--grpc-port", self.ports["8001"], "--http-port", self.ports["8002"]]
            self.servers.enter_context(self.server(block, [stepwell, *words[1:], *ports]))
        elif words[0] == "stepwell":
            self.run(block, [stepwell, *words[1:]])
        else:
            raise BlockError(f"line {block.line}: {shlex.join(words)}: not a command this test may run; mark the block")

    def run(self, block: Block, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise BlockError(f"line {block.line}: {shlex.join(command)}: exit status {done.returncode}\n{done.stderr}")

    @contextmanager
    def server(self, block: Block, command: list[str]) -> Iterator[None]:
        with subprocess.Popen(command, cwd=self.folder) as process:
            try:
                self.await_ready(block, process)
                yield
                if process.poll() is not None:
                    raise BlockError(f"line {block.line}: the server ended by itself")
            finally:
                process.terminate()

    def await_ready(self, block: Block, process: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + TIMEOUT_S
        while process.poll() is None and time.monotonic() < give_up:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.ports['8002']}/readyz", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise BlockError(f"line {block.line}: the server was never ready, exit status {process.poll()}")


@pytest.fixture
def reader(root: Path, tmp_path: Path) -> Iterator[Reader]:
    """A reader in a folder that looks like the repository, so that what a command writes lands elsewhere."""
    for entry in root.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    with ExitStack() as servers:
        yield Reader(tmp_path, root, servers)


def test_readme_blocks_run(reader: Reader, root: Path) -> None:
    markdown = (root / "README.md").read_text()
    assert list(blocks_of(markdown))
    reader.read(markdown)


@pytest.mark.parametrize(
    ("language", "text", "complaint"),
    [
        ("python", "1 / 0", "ZeroDivisionError"),
        ("bash", "stepwell no-such-command", "exit status 2"),
        ("console", "$ stepwell --help\nusage: ...\n$ stepwell no-such-command", "exit status 2"),
        ("bash", "make no-such-target", "no-such-target"),
        ("bash", "stepwell --help && ls", "one plain command"),
        ("bash", "# a comment\nls", "not a command"),
        ("bash", "stepwell serve --no-such-option", "never ready"),
        ("zsh", "ls", "language 'zsh'"),
    ],
)
def test_a_block_that_fails_is_reported_with_its_line(reader: Reader, language: str, text: str, complaint: str) -> None:
    with pytest.raises(BlockError, match=f"^line 3: (?s:.*){complaint}"):
        reader.read(f"# Title\n\n```{language}\n{text}\n```\n")


@pytest.mark.parametrize(
    "markdown",
    [
        "<!-- not run: needs a GPU -->\n\n```python\n1 / 0\n```\n",
        "<!-- not run: takes an hour -->\n```bash\nmake no-such-target\n```\n",
        "```yaml\nmodels: []\n```\n```\nls\n```\n",
        "```python\nopen('made', 'w').close()\n```\n\n```console\n$ stepwell \\\n    --help\nls\n```\n",
    ],
)
def test_a_block_that_is_marked_or_right_passes(reader: Reader, markdown: str) -> None:
    reader.read(markdown)
    assert (reader.folder / "made").exists() == ("made" in markdown)


def test_a_mark_covers_the_next_block_only(reader: Reader) -> None:
    block = "```python\n1 / 0\n```\n"
    with pytest.raises(BlockError, match=r"^line 5: (?s:.*)ZeroDivisionError"):
        reader.read(f"<!-- not run: why -->\n{block}{block}")
