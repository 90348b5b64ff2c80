"""What holds for every command: help with an example that parses, and no PyTorch where none is needed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from examples.leukemia.__main__ import COMMANDS, _ask_again, _parser, main


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and "example: python -m examples.leukemia" in words and "no medical device" in words
    assert _parser([name]).parse_args(shlex.split(COMMANDS[name].example)).command == name


def test_the_commands_on_the_page_parse(root: Path) -> None:
    page = (root / "docs" / "leukemia.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m examples\.leukemia (.+)$", page, re.MULTILINE)
    assert {shlex.split(line)[0] for line in lines} == set(COMMANDS)
    for line in lines:
        arguments = shlex.split(line, comments=True)
        assert _parser(arguments).parse_args(arguments)
    for name in COMMANDS:
        assert f"| `{name}` |" in page


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"run"}))
def test_light_commands_do_not_load_pytorch(name: str, root: Path) -> None:
    code = (
        "import sys; from examples.leukemia.__main__ import _parser; "
        f"_parser([{name!r}]); print([m for m in ('torch', 'requests', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PRINTS = """
import runpy, sys
from examples.leukemia import rate
rate.arguments = lambda parser: parser.add_argument("lines", type=int)
rate.main = lambda options: print("a line\\n" * options.lines, end="")
sys.argv = ["leukemia", "rate", *sys.argv[1:]]
runpy.run_module("examples.leukemia", run_name="__main__")
"""


@pytest.mark.parametrize("arguments", ["1", "100000", "--help"])  # more than is held back till the end, and less
def test_nobody_who_reads_is_no_error(arguments: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `ask ... | head -1`: here the reader is gone before the command starts."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-c", PRINTS, arguments]
    done = subprocess.run(line, cwd=root, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


STOPPED_AT_AN_IMPORT = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), int(sent))

_, wanted, sent = sys.argv
sys.argv = ["leukemia", "index", "--help"]
sys.meta_path.insert(0, Stop())
runpy.run_module("examples.leukemia", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["argparse", "examples.leukemia.data", "examples.leukemia.index"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_at_any_import_prints_no_traceback(module: str, sent: signal.Signals, root: Path) -> None:
    """A shell reports 130 and 143 for a process that its signal ended, as for one that exits with them."""
    line = [sys.executable, "-c", STOPPED_AT_AN_IMPORT, module, str(int(sent))]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode in (-sent, 128 + sent) and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


STOPPED_IN_A_CALLBACK = """
import runpy, signal, sys, time, weakref
signal.signal(signal.SIGINT, signal.default_int_handler)
from examples.leukemia import rate

class Thing:
    pass

def main(options):
    things = [Thing()]
    reference = weakref.ref(things[0], lambda _: signal.raise_signal(int(sent)))
    things.clear()
    time.sleep(30)

rate.main = main
*_, sent = sys.argv
sys.argv = ["leukemia", "rate", "pairs"]
runpy.run_module("examples.leukemia", run_name="__main__")
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_a_callback_is_not_lost(sent: signal.Signals, root: Path) -> None:
    """Python can raise nothing there, and only says so; importlib has such callbacks for every module."""
    line = [sys.executable, "-c", STOPPED_IN_A_CALLBACK, str(int(sent))]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + sent and done.stderr == "stopped; every rating is kept; --report prints them\n"


LOST_ON_THE_WAY = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from examples.leukemia import rate
from examples.leukemia.data import UserError

def main(options):
    try:
        signal.raise_signal(int(sent))
    except BaseException:
        pass
    {then}

rate.main = main
*_, sent = sys.argv
sys.argv = ["leukemia", "rate", "pairs"]
runpy.run_module("examples.leukemia", run_name="__main__")
"""


@pytest.mark.parametrize(
    "then", ["raise ValueError('no shape')", "raise UserError('no model')", "raise OSError", "pass"]
)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_c_code_loses_is_still_a_stop(sent: signal.Signals, then: str, root: Path) -> None:
    """PyTorch's C++ may clear the exception of a stop and raise another one, or none; nothing else is then to blame."""
    line = [sys.executable, "-c", LOST_ON_THE_WAY.format(then=then), str(int(sent))]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + sent and done.stderr == "stopped; every rating is kept; --report prints them\n"


STOPPED_IN_A_BRITTLE_IMPORT = """
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from examples.leukemia import rate

def main(options):
    import brittle
    time.sleep(options.seconds)

rate.arguments = lambda parser: parser.add_argument("seconds", type=int)
rate.main = main
*_, folder, sent, seconds = sys.argv
sys.path.insert(0, folder)
sys.argv = ["leukemia", "rate", seconds]
runpy.run_module("examples.leukemia", run_name="__main__")
"""


@pytest.mark.parametrize("seconds", [0, 30])  # the command ends before the stop is raised, and goes on for long
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_for_an_import_to_end(sent: signal.Signals, seconds: int, root: Path, tmp_path: Path) -> None:
    """PyTorch aborts where an exception comes into the C++ with which it starts."""
    brittle = f"import os, signal\ntry:\n    signal.raise_signal({int(sent)})\nexcept BaseException:\n    os.abort()\n"
    (tmp_path / "brittle.py").write_text(brittle)
    line = [sys.executable, "-c", STOPPED_IN_A_BRITTLE_IMPORT, str(tmp_path), str(int(sent)), str(seconds)]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + sent and done.stderr == "stopped; every rating is kept; --report prints them\n"


def test_a_second_stop_does_not_wait(root: Path, tmp_path: Path) -> None:
    """Nor for an import that never ends: the system ends the process, in silence."""
    (tmp_path / "brittle.py").write_text(
        "import signal, time\nfor _ in range(2):\n    signal.raise_signal(15)\ntime.sleep(30)"
    )
    line = [sys.executable, "-c", STOPPED_IN_A_BRITTLE_IMPORT, str(tmp_path), "15", "0"]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_what_else_is_raised_in_a_callback_is_said(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("sys.unraisablehook", _ask_again)
    things = [type("Thing", (), {})()]
    reference = weakref.ref(things[0], lambda _: 1 / 0)
    things.clear()
    assert "ZeroDivisionError" in capsys.readouterr().err and reference() is None


@pytest.mark.parametrize("year", ["0", "20", "198", "20240", "-2020", "2020.0", "year", "２０２０", ""])
@pytest.mark.parametrize("option", ["--since", "--until"])
def test_years_that_are_none_are_refused(option: str, year: str, capsys: pytest.CaptureFixture) -> None:
    """A digit too many finds nothing, one too few everything: both would look like an answer."""
    with pytest.raises(SystemExit) as caught:
        main(["ask", "imatinib", f"{option}={year}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and f"{year!r} is no year of four digits, such as 2020" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--no-such-option"])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith("error: ") and "--help" in line


def test_numbers_that_no_index_can_hold_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ask", "imatinib", "--articles", "9" * 30])
    assert caught.value.code == 2 and "is not a whole number" in capsys.readouterr().err


def test_a_stop_while_a_command_is_imported_is_one_line(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", stop)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from its last checkpoint\n"
