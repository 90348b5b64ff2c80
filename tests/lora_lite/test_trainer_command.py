"""`python -m lora_lite train`, and the files that it reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama_min import load_llama, load_tokenizer
from lora_lite import DataError, Trainer, encode_row, encode_rows, load_adapter, read_rows
from lora_lite.__main__ import main

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "leukemia" / "data" / "tiny-llama"
CHAT = [
    {"role": "user", "content": "Name a drug <|eot_id|>"},
    {"role": "assistant", "content": "imatinib"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "dasatinib"},
]
ROWS = [
    {"messages": CHAT},
    {"prompt": "The drug of CML is", "completion": " imatinib."},
    {"text": "Chronic myeloid leukemia is treated with imatinib."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS * 3) + "\n\n")
    return path


def supervised(example, tokenizer) -> str:
    """The tokens that are learnt, each as it is spelt."""
    return "".join(
        tokenizer.token_bytes(token).decode() or ("<end>" if token in tokenizer.eos_ids else "<?>")
        for token, on in zip(example.ids, example.mask)
        if on
    )


def test_what_is_learnt_of_each_form(tokenizer, data: Path) -> None:
    """What the assistant says with its ends of turn (not the one that the user spells), a completion, a whole text."""
    chat, completion, text = encode_rows(read_rows(data), tokenizer)[:3]
    assert supervised(chat, tokenizer) == "imatinib<end>dasatinib<end>"
    assert supervised(completion, tokenizer) == " imatinib.<end>"
    assert supervised(text, tokenizer) == "Chronic myeloid leukemia is treated with imatinib.<end>"
    assert tokenizer.decode(completion.ids) == "The drug of CML is imatinib."
    for example in (chat, completion, text):
        assert example.ids[0] == tokenizer.bos_id and example.ids.count(tokenizer.bos_id) == 1
    assert (chat.name, text.name) == (f"{data}:1", f"{data}:3")


def test_csv_holds_the_same(tokenizer, tmp_path: Path) -> None:
    """Quoted line breaks and commas; a chat as JSON in a column."""
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"Say, ""it"":\nnow",yes\nb,c\n', encoding="utf-8-sig")
    first, second = encode_rows(read_rows(path), tokenizer)
    assert tokenizer.decode(first.ids) == 'Say, "it":\nnowyes' and second.name == f"{path}:4"
    path.write_text("messages\n" + '"' + json.dumps(CHAT).replace('"', '""') + '"\n')
    assert encode_rows(read_rows(path), tokenizer)[0].ids == encode_row(ROWS[0], tokenizer).ids


def test_bad_lines_are_named(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good"}\n{"text": "half\n[1]\n')
    with pytest.raises(DataError, match=r"data\.jsonl:2 is no JSON") as caught:
        read_rows(path)
    assert "data.jsonl:3" not in str(caught.value)
    wrong = [
        ({"question": "?", "answer": "!"}, "this one has question, answer"),
        ({"text": "a", "prompt": "b", "completion": "c"}, "this one has text, prompt, completion"),
        ([1], "a row is a JSON object"),
        ({"text": 3}, "text must be text"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"messages": CHAT[:1]}, "the assistant says nothing"),
        ({"messages": [{"role": "user"}]}, "messages must be a list"),
        ({"messages": [{**CHAT[0], "role": "doctor"}, CHAT[1]]}, "role 'doctor'"),
    ]
    path.write_text("\n".join(json.dumps(row) for row, _ in wrong))
    with pytest.raises(DataError) as caught:
        encode_rows(read_rows(path), tokenizer)
    for number, (line, (_, reason)) in enumerate(zip(str(caught.value).splitlines(), wrong, strict=True), 1):
        assert f"data.jsonl:{number}: " in line and reason in line
    for name, content, words in (
        ("data.txt", b"a", "data.txt: the file's name must end"),
        ("empty.jsonl", b"\n", "empty.jsonl holds no row"),
        ("bytes.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "bytes.jsonl:2 is no UTF-8"),
        ("deep.jsonl", b'{"text": "a"}\n' + b"[" * 10**5 + b"\n", "deep.jsonl:2 is no JSON"),
        ("more.csv", b'prompt,completion\na,b\na drug,"one, two"\na drug,one, two\n', "more.csv:4 has more cells"),
        ("quote.csv", b'text\nfine\n"half\n', "quote.csv:3 is no CSV"),
        ("late.csv", b'text\n"of two\nlines"\nfine\n"half\nmore\n', "late.csv:5 is no CSV"),
        ("wide.csv", b'prompt,completion\n"a\nb\nc",d,e\n', "wide.csv:2 has more cells"),
        ("return.csv", b'text\n"one\rline"\nfine,2\n', "return.csv:3 has more cells"),
        ("twice.csv", b"text,text\na,b\n", "twice.csv:1 has the column 'text' more than once"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_rows(tmp_path / name)
    (tmp_path / "long.csv").write_text("text\n" + "a" * 200_000 + "\n")
    ((_, row),) = read_rows(tmp_path / "long.csv")
    assert len(row["text"]) == 200_000


def test_a_list_of_rows(tmp_path: Path) -> None:
    """As they are, or with names of their own."""
    tokenizer = load_tokenizer(TINY)
    rows = [{"text": "a"}, {"prompt": "a", "completion": "b"}]
    plain, named = encode_rows(rows, tokenizer), encode_rows([("x", rows[0]), ("y", rows[1])], tokenizer)
    assert [e.name for e in plain] == ["row 1", "row 2"] and [e.name for e in named] == ["x", "y"]
    assert [e.ids for e in plain] == [e.ids for e in named]
    with pytest.raises(DataError, match="row 2: text is empty"):
        encode_rows([{"text": "a"}, {"text": ""}], tokenizer)
    with pytest.raises(DataError, match="row 1: a row is a JSON object"):
        encode_rows(["ab", None], tokenizer)


def test_a_template_that_never_ends_a_turn_or_begins_twice() -> None:
    """A user's end of turn is no end that is learnt; of BOS there is one, and first."""

    class Framed:
        bos_id, eos_ids = 1, (2,)

        def __init__(self, ids: list[int], mask: list[int]) -> None:
            self.chat = ids, mask

        def encode_chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
            return self.chat

    assert encode_row(ROWS[0], Framed([1, 5, 2, 6, 2], [0, 0, 0, 1, 1])).supervised == 2
    with pytest.raises(ValueError, match="no end of a turn is supervised"):
        encode_row(ROWS[0], Framed([1, 5, 2, 6, 2], [0, 0, 0, 1, 0]))
    for ids in ([1, 1, 6, 2], [5, 1, 6, 2]):
        with pytest.raises(ValueError, match="there must be one BOS, first"):
            encode_row(ROWS[0], Framed(ids, [0, 0, 1, 1]))


def test_the_command(data: Path, tmp_path: Path) -> None:
    """It says what it will do, does it, and leaves an adapter that makes the model better at the data."""
    out = tmp_path / "run"
    line = [sys.executable, "-m", "lora_lite", "train", "--model", str(TINY), "--data", str(data), "--out", str(out)]
    more = ["--epochs", "8", "--batch-size", "3", "--learning-rate", "5e-3", "--packing", "128", "--dtype", "float32"]
    done = subprocess.run([*line, *more], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[0].startswith("trainable: 35,840 of") and "logits at supervised positions alone" in told[0]
    assert told[1].startswith("9 examples, ") and "packed into rows of 128" in told[1]
    assert told[2].startswith("24 steps: 8 epochs, 3 examples a step")
    # 1,282,432 float32 numbers; of the 35,840 trained ones also the gradient and two means of AdamW
    assert re.match(r"about \d+\.\d MB: weights 5\.1, gradients and optimizer 0\.4, activations [1-9]", told[3])
    model, tokenizer = load_llama(TINY, dtype=torch.float32), load_tokenizer(TINY)
    examples = encode_rows(read_rows(data), tokenizer)
    before = Trainer(model).evaluate(examples).loss
    load_adapter(model, out / "adapter", trainable=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(24))
    assert sum(line["tokens"] for line in lines) == 8 * sum(len(example.ids) for example in examples)
    assert Trainer(model).evaluate(examples).loss < 0.6 * before
    again = [*line[1:3], "train", "--config", str(out / "config.json")]
    refused = subprocess.run([sys.executable, *again], capture_output=True, text=True, timeout=600, check=False)
    assert refused.returncode == 2 and "holds a run that is at step 24" in refused.stderr
    assert main([*again[2:], "--resume", "--no-progress"]) == 0
    adapter = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(out / "adapter")
    (out / "metrics.jsonl").unlink()  # of an ended run there is then nothing to tell, but the adapter
    with pytest.warns(UserWarning, match="metrics.jsonl tells of 0 of the 24 steps so far"):
        assert main([*again[2:], "--resume", "--no-progress"]) == 0
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_options_and_config_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An option comes before the file, the file before the default; what is wrong is said, with exit code 2."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model": str(TINY), "data": str(data), "epochs": 2, "rank": 2, "progress": False}))
    out = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(out), "--epochs", "1", "--eval-share", "0.3"]) == 0
    written = json.loads((out / "config.json").read_text())
    assert (written["epochs"], written["rank"], written["batch_size"]) == (1, 2, 8)
    assert "6 examples" in capsys.readouterr().err
    for more, message in (
        (["--out", str(tmp_path / "x"), "--batch-size", "0"], "batch_size=0 must be"),
        (["--out", str(tmp_path / "x"), "--loader", "gguf"], "--loader 'gguf' is not known"),
        (["--out", str(tmp_path / "x"), "--model", "absent"], "--model absent"),
        (["--out", str(tmp_path / "x"), "--data", "absent.jsonl"], "absent.jsonl cannot be read"),
        ([], "--out must be given"),
    ):
        assert main(["train", "--config", str(config), *more]) == 2
        assert message in capsys.readouterr().err
    for setting, message in (
        ('"learning_rate": "2e-4"', 'learning_rate is "2e-4", and must be float'),
        ('"epochs": true', "epochs is true, and must be int"),
        ('"packing": 2.5', "packing is 2.5, and must be int or null"),
        ('"targets": "q_proj"', 'targets is "q_proj", and must be list'),
        ('"dtype": "foo"', "dtype 'foo' is not known: take bfloat16 or float32"),
    ):
        config.write_text(f'{{"model": "{TINY}", "data": "{data}", "out": "{tmp_path / "y"}", {setting}}}')
        assert main(["train", "--config", str(config)]) == 2
        assert message in capsys.readouterr().err
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "a"}\n')
    options = ["train", "--model", str(TINY), "--data", str(one), "--eval-share", "0.5", "--out", str(tmp_path / "z")]
    assert main(options) == 2
    assert "--eval-share needs two rows or more" in capsys.readouterr().err
    assert (
        main(["train", "--config", str(out / "config.json"), "--seed", "7"]) == 2
    )  # a run is there, which is not this
    assert json.loads((out / "config.json").read_text()) == written
    config.write_text('{"learning_rat": 1}')
    assert main(["train", "--config", str(config)]) == 2
    assert "'learning_rat' is no setting; near it: learning_rate" in capsys.readouterr().err


def test_a_loader_of_ones_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from llama_min import load_llama, load_tokenizer\n"
        "def load(folder, dtype):\n    return load_llama(folder, dtype=dtype), load_tokenizer(folder)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    line = ["train", "--model", str(TINY), "--data", str(data), "--out", "run", "--no-progress"]
    assert main([*line, "--loader", "mine:load", "--gradient-checkpointing"]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()


STOPPED_IN_PYTORCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.autograd":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stop())
"""


def test_ctrl_c_while_pytorch_is_imported(tmp_path: Path) -> None:
    """Ended by the signal, as a shell expects of it, and not with a traceback; not where it is imported by another."""
    (tmp_path / "sitecustomize.py").write_text(STOPPED_IN_PYTORCH)  # what Python imports before all else
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for how, stopped in ((["-m", "lora_lite", "train", "--help"], True), (["-c", "import lora_lite"], False)):
        line = [sys.executable, *how]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGINT and ("Traceback" not in done.stderr) == stopped
