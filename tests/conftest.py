"""Fixtures that all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is ever fetched


# a busy machine is no failure; CI tries the same examples every time, everyone else new ones
settings.register_profile("here", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("here")


def pytest_configure(config: pytest.Config) -> None:
    """With `-n` a core each: threads of several workers would wait for one another in busy loops."""
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real() -> Path:
    """Real weights, tokenizers and abstracts; skips where they are absent, except under CI, which has them."""
    folder = Path(os.environ.get("LORA_LITE_REAL", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        message = f"no real data at {folder} (set LORA_LITE_REAL to its folder)"
        assert not os.environ.get("CI"), f"{message}: CI must not skip for that"
        pytest.skip(message)
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded random numbers."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def command():
    """Runs `python -m examples.leukemia` with arguments in the checkout and returns what it printed."""

    def run(*arguments: object, **settings) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "examples.leukemia", *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False, **settings)

    return run
