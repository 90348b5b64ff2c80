"""What holds for every command: help with an example that parses, and no PyTorch where none is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from examples.leukemia.__main__ import COMMANDS, _parser, main


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


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--no-such-option"])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith("error: ") and "--help" in line


def test_numbers_that_no_index_can_hold_are_refused(capsys: pytest.CaptureFixture) -> None:
    for option in ("--since", "--articles"):
        with pytest.raises(SystemExit) as caught:
            main(["ask", "imatinib", option, "9" * 30])
        assert caught.value.code == 2 and "is not a whole number" in capsys.readouterr().err


def test_a_stop_while_a_command_is_imported_is_one_line(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", stop)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from its last checkpoint\n"
