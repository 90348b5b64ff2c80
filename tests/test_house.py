"""The rules between the rooms, and that what the documents say works as printed."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

PACKAGES = ("llama_min", "lora_lite", "quant_lite")
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_do_not_import_each_other(package: str) -> None:
    forbidden = {*PACKAGES, "examples", "tests", "benchmarks"} - {package}
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & forbidden, path


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package: str) -> None:
    """In a fresh interpreter: what a package may import where it is used is not loaded with it."""
    heavy = ("sentencepiece", "tokenizers", "transformers", "matplotlib", "scipy", "jinja2", "examples")
    code = f"import sys, {package}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_listed_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    public = {name for name in vars(module) if not name.startswith("_") and not inspect.ismodule(vars(module)[name])}
    assert public == set(module.__all__)
    for path in (ROOT / package).glob("*.py"):
        inner = importlib.import_module(f"{package}.{path.stem}" if path.stem != "__init__" else package)
        assert inner.__doc__ and list(inner.__all__)
        for name in inner.__all__:
            thing = getattr(inner, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert thing.__doc__ and not thing.__doc__.startswith(f"{name}("), f"{path}: {name}"
                methods = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else []
                for method, function in methods:
                    own = function.__module__.startswith(package) and not method.startswith("_")
                    if own and method not in ("forward", "extra_repr") and not getattr(thing, "_is_protocol", False):
                        assert function.__doc__, f"{path}: {name}.{method}"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_as_printed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks in order, in one namespace; a comment behind print(...) that ends the line is what it prints."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(path, "python"))
    printed_line = r"^( *print\(.*\)) +# ((?:model|trainable|the update).*)$"
    promised = re.findall(printed_line, code, re.MULTILINE)
    printed: list[str] = []
    names = {"print": lambda *words: printed.append(" ".join(map(str, words)))}
    script = tmp_path / "page.py"
    script.write_text(code, encoding="utf-8")
    runpy.run_path(str(script), names)
    for _, text in promised:
        assert text in printed


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here: the plain lines are then all there is")
def test_plain_lines_are_what_make_runs() -> None:
    """`make -n` of demo and test prints the lines that the README shows beneath each."""
    shell = blocks(ROOT / "README.md", "sh")
    plain = {"demo": shell[1], "test": shell[3]}
    assert shell[0] == "make demo\n" and shell[2] == "make test\n"
    for target, lines in plain.items():
        # without the flags of a make that runs these tests
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        line = ["make", "-n", target, "VENV=.absent"]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        made = [line.replace(".absent", ".venv") for line in done.stdout.splitlines() if not line.startswith("touch")]
        assert made == lines.splitlines()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_option_in_the_readme_exists() -> None:
    """Each line that runs a command of ours, against what that very command says of its options."""
    text = re.sub(r".*/(?:pip install|python -m pytest) .*", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    checked = set()
    for command, rest in re.findall(r"python -m ((?:examples\.leukemia|lora_lite) \w+)(.*)", text):
        line = [sys.executable, "-m", *command.split(), "--help"]
        help_text = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        options = set(re.findall(r"--[a-z][a-z-]+", rest))
        assert all(option in help_text for option in options), command
        checked |= options
        if command == "examples.leukemia run":
            of_run = help_text
    assert checked | {"--dtype", "--learning-rate"} == set(re.findall(r"--[a-z][a-z-]+", text))
    assert "--dtype" in of_run and "--learning-rate" in of_run
    assert "example:" in of_run and "no medical device" in " ".join(of_run.split())


def test_links_in_the_documents_lead_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_metadata_is_in_setup_cfg() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert {"demo", "test", "docs", "bench"} <= set(settings["options.extras_require"])
    assert "tool:pytest" in settings and "mypy" in settings
    assert (ROOT / "pyproject.toml").read_text().startswith("[build-system]\n")
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()
