"""python -m llama_min: streamed text, conversations, Ctrl-C and bad input."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from examples.leukemia.pretrain import TINY_LLAMA
from llama_min import generate, load_llama, load_tokenizer
from llama_min.__main__ import main
from llama_min._interrupt import is_command

FLOAT = ["--dtype", "float32"]


def written(ids: list[int], count: int, **sampling: float) -> str:
    model, tokenizer = load_llama(TINY_LLAMA, torch.float32), load_tokenizer(TINY_LLAMA)
    return tokenizer.decode(generate(model, ids, count, eos_ids=tokenizer.eos_ids, **sampling))


def test_writes_what_generate_gives(capsys: pytest.CaptureFixture) -> None:
    prompt = "Imatinib in chronic"
    assert main([str(TINY_LLAMA), prompt, "--max-new-tokens", "20", *FLOAT]) == 0
    ids = load_tokenizer(TINY_LLAMA).encode(prompt, bos=True)
    assert capsys.readouterr().out == written(ids, 20) + "\n"


def test_sampling_options_and_stop_strings(capsys: pytest.CaptureFixture) -> None:
    prompt = "Imatinib in chronic"
    sampling = {"temperature": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 4}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items()]
    line = [str(TINY_LLAMA), prompt, "--max-new-tokens=40", *FLOAT, *options]
    assert main(line) == 0
    ids = load_tokenizer(TINY_LLAMA).encode(prompt, bos=True)
    whole = capsys.readouterr().out
    assert whole == written(ids, 40, **sampling) + "\n" != written(ids, 40) + "\n"
    stop = whole[len(whole) // 2 :][:4]  # begins in the middle of a token as well as not
    assert main([*line, "--stop", "never said", f"--stop={stop}"]) == 0
    assert capsys.readouterr().out == whole.split(stop)[0] + "\n"


def test_stops_where_the_context_ends(capsys: pytest.CaptureFixture, real: Path) -> None:
    assert main([str(real / "stories260k"), "Once", "--max-new-tokens", "100000", "--temperature", "1", *FLOAT]) == 0
    assert capsys.readouterr().out.strip()


def test_chat_remembers_the_conversation(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = ["Repeat this sentence: Blood was taken.", "Repeat this sentence: No change."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n".join(turns) + "\n"))
    assert main([str(TINY_LLAMA), "--chat", "--max-new-tokens", "15", *FLOAT]) == 0
    answers = capsys.readouterr().out.splitlines()
    tokenizer, messages = load_tokenizer(TINY_LLAMA), []
    for turn, answer in zip(turns, answers):
        messages.append({"role": "user", "content": turn})
        ids, _ = tokenizer.encode_chat(messages, add_generation_prompt=True)
        assert answer == written(ids, 15)
        messages.append({"role": "assistant", "content": answer})
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/folder", "x"], "neither tokenizer.json nor tokenizer.model"),
        ([str(TINY_LLAMA), "x", "--top-p", "2"], "top_p=2.0"),
        ([str(TINY_LLAMA), "leukemia " * 2000], "fill the context of 1024: say less"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture, arguments: list[str], words: str) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and words in captured.err


def test_ends_at_the_configs_own_end_tokens(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """As `generate` does: the tokenizer's files need not know them all."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_LLAMA, folder)
    ids = load_tokenizer(folder).encode("Imatinib in chronic", bos=True)
    third = generate(load_llama(folder, torch.float32), ids, 3)[2]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [int(third)]}))
    assert main([str(folder), "Imatinib in chronic", "--max-new-tokens", "20", *FLOAT]) == 0
    assert capsys.readouterr().out == written(ids, 2) + "\n"


def test_a_reader_that_has_had_enough(root: Path) -> None:
    line = f"{sys.executable} -m llama_min {TINY_LLAMA} 'Imatinib in chronic' --dtype float32 | head -c 5"
    done = subprocess.run(line, shell=True, cwd=root, capture_output=True, text=True, check=False)
    assert len(done.stdout) == 5 and done.stderr == ""


@pytest.mark.parametrize("after", [0.15, 0.4, 0.8])
def test_ctrl_c_while_pytorch_is_imported(root: Path, after: float) -> None:
    """No traceback either; started so that a shell's background job, which is deaf to Ctrl-C, does not hand that on."""
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "llama_min", str(TINY_LLAMA), "--chat"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "llama_min/__init__.py" not in errors


def test_which_command_lines_are_ours() -> None:
    assert is_command(["python", "-X", "utf8", "-m", "llama_min", "folder"])
    for line in (["python"], ["python", "-m"], ["python", "-m", "pytest", "llama_min"], ["python", "llama_min"]):
        assert not is_command(line)


def test_ctrl_c_ends_cleanly(root: Path) -> None:
    """In the middle of a text: no traceback, exit code 130."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('llama_min', run_name='__main__')"
    )
    line = [sys.executable, "-c", code, str(TINY_LLAMA), "--chat"]
    process = subprocess.Popen(
        line, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.read(2) == "> "
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
