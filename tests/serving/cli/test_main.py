from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from stepwell.serving.cli import main as cli

COMMAND_LINES = [
    *(["serve"], ["demo"], ["generate"], ["ladder"], ["explain"], ["profile"], ["simulate"], ["bench"]),
    *(["train", "nested"], ["train", "routed"], ["train", "supernet"]),
]


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command_and_version_is_told(stepwell):
    ran = stepwell("--help")
    assert ran.status == 0
    assert all(f"\n    {name} " in ran.out for name in cli.COMMANDS)
    assert stepwell("--version").out.startswith("stepwell ")


@pytest.mark.parametrize("command", COMMAND_LINES, ids=" ".join)
def test_every_command_has_help_and_reports_in_json(stepwell, command):
    ran = stepwell(*command, "--help")
    assert ran.status == 0
    assert "--json" in ran.out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["frobnicate"],
        ["ladder"],
        ["ladder", "nested-lm", "--frobnicate"],
        ["generate", "nested-lm"],
        ["generate", "nested-lm", "x", "--slo-ms", "soon"],
        ["serve"],
        ["serve", "nested-lm", "--grpc-port", "eighty"],
        ["train"],
        ["train", "frobnicate"],
        ["demo", "--requests", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2_and_says_so_on_standard_error(stepwell, argv):
    ran = stepwell(*argv)
    assert ran.status == 2
    assert ran.out == ""
    assert "error: " in ran.err


def test_help_does_not_wait_for_torch_or_grpc():
    script = """
        import sys
        from stepwell.serving.cli.main import build_parser
        build_parser().format_help()
        slow = {"torch", "grpc", "matplotlib", "numpy", "tokenizers", "yaml"} & set(sys.modules)
        sys.exit(str(slow) if slow else 0)
    """
    ran = python("-c", textwrap.dedent(script))
    assert ran.returncode == 0, ran.stderr


def test_as_a_process_a_failure_is_status_1_and_one_line(tmp_path):
    missing = str(tmp_path / "missing.json")
    ran = python("-m", "stepwell.serving.cli.main", "train", "nested", "--recipe", missing, "--json")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert missing in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error():
    script = """
        import sys
        from stepwell.serving.cli import main
        main.ladder.run = lambda args: print("x" * 1_000_000)
        sys.exit(main.main(["ladder", "nested-lm"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_our_own_mistakes_keep_their_trace(stepwell, monkeypatch):
    def broken(args):
        raise RuntimeError("ours")

    monkeypatch.setattr(cli.ladder, "run", broken)
    with pytest.raises(RuntimeError, match="ours"):
        stepwell("ladder", "nested-lm")


def test_an_interrupt_is_told_in_one_line(stepwell, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.ladder, "run", interrupted)
    assert stepwell("ladder", "nested-lm").error == "error: interrupted"
