"""The main job: abstracts -> items -> LoRA -> evaluation -> int8 -> evaluation -> report, each step a few lines."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import platform
import random
import shlex
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from examples.leukemia.data import SPLITS, Record, UserError, read_abstracts, side_of
from examples.leukemia.evaluate import Evaluation, evaluate, worst
from examples.leukemia.fetch import fetch_command
from examples.leukemia.files import new_folder
from examples.leukemia.folders import copy_tokenizer, load_int8, save_int8, training_folder
from examples.leukemia.gazetteer import LEUKEMIA, Gazetteer, load_gazetteer
from examples.leukemia.index import BATCH, Index
from examples.leukemia.instructions import without_instructions_in
from examples.leukemia.lab import lab_reports, load_ranges
from examples.leukemia.measure import measure
from examples.leukemia.notice import NOTICE
from examples.leukemia.plain import GLOSSARY, load_glossary
from examples.leukemia.prepare import is_prepared, read_prepared, without_identifiers, without_repeats
from examples.leukemia.questions import Question, read_questions
from examples.leukemia.report import SCORE_CHARTS, write_report
from examples.leukemia.retrieved import retrieve_sources
from examples.leukemia.tasks import CONCLUDE, TASKS, Item, Knowledge, build_items, encode_item, open_questions
from llama_min import Llama, Tokenizer, load_llama, load_tokenizer, save_llama
from lora_lite import (
    LoRAConfig,
    TrainConfig,
    Trainer,
    add_lora,
    merge_lora,
    save_adapter,
    trainable_summary,
)
from lora_lite.checkpoints import checkpoint_steps
from quant_lite import QuantConfig, kernel_path, quantize_

__all__ = ["Settings", "run"]

SAVE_EVERY = 20  # steps from one checkpoint to the next
PAIRS = 30  # of answers, for people to rate
REHEARSAL = 0.1  # share of the passages that the tasks' stage reads again
# that an epoch holds an item: a label is one token, and to find, to keep most words and to conclude takes longer than to list
TIMES = {"subtype": 2, "question": 3, "plain": 3, "summary": 3, "lab": 2}
MOST_TIMES = 8  # that an epoch holds an item of a rare label
# every linear layer of a block: seven tasks want more than attention's four (Dettmers et al. 2023, section 4)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_CHARTS = (*SCORE_CHARTS, "items", "model_size", "prefill_time", "decode_time", "confusion")
_FOLDERS = ("adapter", "merged", "bfloat16", "int8", "data")
_FILES = ("index.sqlite", "metrics.json", "pairs.jsonl", "report.html")
MADE = {*_FOLDERS, *_FILES, *(f"{stem}.png" for stem in (*_CHARTS, "training_text", "training_tasks"))}


@dataclass(frozen=True)
class Settings:
    """What a run is made from; all of it lands in metrics.json."""

    model: Path
    abstracts: Path
    out: Path
    gazetteer: Path = LEUKEMIA
    glossary: Path = GLOSSARY
    questions: tuple[Path, ...] = ()
    dtype: str = "float32"
    rank: int = 16
    alpha: float = 32.0
    text_epochs: int = 1
    task_epochs: int = 1
    learning_rate: float = 4e-3
    batch_size: int = 8
    row_tokens: int = 2048
    max_answers: int = 40
    articles: int = 1  # the embedded model has been taught to read one
    seed: int = 0


def run(settings: Settings) -> Path:
    """Do the main job and return the folder of its outcome, whole, at `settings.out`.

    Where the training was stopped or killed before, it goes on from its last checkpoint, and ends with the same bits.

    Raises:
        UserError: the input cannot be used, or the training diverged.
        CheckpointError: the model folder, or the disk for checkpoints, cannot.
    """
    with new_folder(settings.out, MADE) as out:
        started = time.perf_counter()
        articles = _read(settings)
        knowledge = _knowledge(settings, len(articles.all))
        model, tokenizer = _load(settings)
        items, left_out = _prepare(articles, knowledge, tokenizer, model, settings.seed, out)
        retrieve = _retriever(articles.all, knowledge.gazetteer, settings, tokenizer, model, out)

        metrics: dict[str, Any] = {
            "notice": NOTICE,
            "settings": {key: _plain(value) for key, value in asdict(settings).items()},
            "made_with": {**_made_with(), "commands_before": articles.commands},
            "data": {
                "steps": [*articles.steps, {"step": "questions", **_question_counts(knowledge.questions, items)}],
                "articles": {name: len(rows) for name, rows in articles.sides.items()},
                "items": _item_counts(items, left_out),
            },
        }
        evaluations: dict[str, Evaluation] = {}

        def score(name: str, scored: Llama) -> None:
            evaluations[name] = evaluate(
                scored, tokenizer, knowledge.gazetteer, items["test"], settings.max_answers, name, retrieve
            )

        score("base", model)
        given = {name: value for name, value in vars(settings).items() if name != "out"}
        training = training_folder(settings.out, {**given, "items": out / "data"})
        metrics |= _fine_tune(model, tokenizer, items, settings, training, out / "adapter")
        score("base+LoRA", model)  # merged: the same products, to rounding, and faster
        with _parts("saving", 1):
            save_llama(model, out / "merged")
        copy_tokenizer(settings.model, out / "merged")

        quantized, metrics["quantization"] = _quantize(model, settings.model, out / "int8")
        score("LoRA+int8", quantized)
        metrics["scores"] = {name: each.as_json() for name, each in evaluations.items()}
        metrics["worst"] = worst(evaluations, "LoRA+int8")
        _write_pairs(evaluations["base"], evaluations["base+LoRA"], out / "pairs.jsonl")
        metrics |= measure(model, quantized, settings.model, out)
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        _write(metrics, out / "metrics.json")
        write_report(metrics, out)
    shutil.rmtree(training, ignore_errors=True)
    return settings.out


def _load(settings: Settings) -> tuple[Llama, Tokenizer]:
    """The model and its tokenizer, and that they go with each other and with the rank."""
    with _parts("loading", 2) as bar:
        tokenizer = load_tokenizer(settings.model)
        bar.update()
        model = load_llama(settings.model, dtype=getattr(torch, settings.dtype))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{settings.model}: the tokenizer knows {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
            "put the model's own tokenizer beside it"
        )
    if settings.rank > (width := model.config.hidden_size):
        raise UserError(f"--rank {settings.rank}: the model's layers are {width} wide: give a rank from 1 to {width}")
    _say(f"model: {settings.model}, {sum(p.numel() for p in model.parameters()):,} parameters")
    return model, tokenizer


@dataclass(frozen=True)
class _Articles:
    """The articles in the order of the file, and by side; variants of some in train; what each step of reading did.

    `commands` are those that fetched and prepared the file, as far as its folder tells.
    """

    all: list[Record]
    sides: dict[str, list[Record]]
    variants: list[Record]
    steps: list[dict[str, Any]]
    commands: list[str]


def _read(settings: Settings) -> _Articles:
    """The articles that can be used, cleaned and split, as `prepare` does it, without the files; or those it prepared."""
    cleaning: Counter[str] = Counter()
    variants: list[Record] = []
    steps: list[dict[str, Any]] = []
    commands = [*filter(None, [fetch_command(settings.abstracts)])]
    if is_prepared(settings.abstracts):
        prepared = read_prepared(settings.abstracts, load_gazetteer(settings.gazetteer).topic, cleaning)
        records, counts = prepared.records, prepared.counts | {"variants, for train": len(prepared.variants)}
        sides, (variants, _) = prepared.sides, without_identifiers(prepared.variants)
        variants, _ = without_instructions_in(variants)
        steps = [{"step": f"prepare: {step}", **row} for step, row in prepared.steps.items()]
        commands = prepared.commands
    else:
        records, counts = read_abstracts(settings.abstracts, cleaning=cleaning)
        sides = {record.pubmed_id: side_of(record.pubmed_id, settings.seed) for record in records}
    invented = sum(record.pubmed_id.startswith("SYN-") for record in records)
    kept = [record for record in records if not record.retracted]
    steps += [
        {"step": "read", **counts, "synthetic (invented)": invented},
        {"step": "clean", **dict(sorted(cleaning.items()))},
        {"step": "retracted", "left out": len(records) - len(kept)},
    ]
    kept, masked = without_identifiers(kept)
    kept, silenced = without_instructions_in(kept)
    kept, _, repeated = without_repeats(kept)
    steps += [
        {"step": "identifiers", **masked},
        {"step": "instructions", **silenced},
        {"step": "duplicates", **repeated},
    ]
    on_sides = {name: [r for r in kept if sides[r.pubmed_id] == name] for name in SPLITS}
    return _Articles(kept, on_sides, variants, steps, commands)


def _came_from(articles: _Articles) -> str:
    """What became of the rows of a file, in a line: where there are few articles left, a step may have taken the others."""
    counts = [
        (f"{step['step']}: {k}", v) for step in articles.steps if step["step"] != "clean" for k, v in step.items()
    ]
    return ", ".join(f"{name} {number:,}" for name, number in counts if isinstance(number, int) and number)


def _knowledge(settings: Settings, reports: int) -> Knowledge:
    """What the labels come from; there are as many lab reports as articles, so that neither drowns the other."""
    return Knowledge(
        load_gazetteer(settings.gazetteer),
        load_glossary(settings.glossary),
        read_questions(settings.questions),
        lab_reports(load_ranges(), reports, settings.seed),
    )


def _prepare(
    articles: _Articles, knowledge: Knowledge, tokenizer: Tokenizer, model: Llama, seed: int, out: Path
) -> tuple[dict[str, list[Item]], Counter[str]]:
    """Build the items of each side, and write them as out/data/SIDE.jsonl; open questions are for the test."""
    small = [name for name in SPLITS if not articles.sides[name]]
    if small:
        raise UserError(
            f"{len(articles.all)} articles are too few to split (nothing falls to {', '.join(small)}; {_came_from(articles)}): "
            "give 30 or more"
        )
    context = model.config.max_position_embeddings
    items: dict[str, list[Item]] = {name: [] for name in SPLITS}
    left_out, taken = Counter[str](), defaultdict[str, set[str]](set)
    try:
        for name in reversed(SPLITS):  # of the sentences that articles share, the test has the first choice
            reports = [report for report in knowledge.reports if side_of(report[0], seed) == name]
            records = articles.sides[name] + (articles.variants if name == "train" else [])
            items[name] = build_items(records, replace(knowledge, reports=reports), tokenizer, context, left_out, taken)
        items["test"] += open_questions(knowledge.questions, tokenizer, context)
    except (ValueError, ImportError) as error:  # a chat template that cannot write these turns
        raise UserError(f"the model's tokenizer: {error}") from None
    (out / "data").mkdir()
    for name, rows in items.items():
        lines = [json.dumps(vars(item), ensure_ascii=False) + "\n" for item in rows]
        (out / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return items, left_out


def _retriever(
    records: Sequence[Record], gazetteer: Gazetteer, settings: Settings, tokenizer: Tokenizer, model: Llama, out: Path
) -> Callable[[list[Item]], list[Item]]:
    """Index all articles in out/index.sqlite; return what puts passages from it in place of the sources of questions."""
    path = out / "index.sqlite"
    index = Index(path, gazetteer, create=True)
    with tqdm(total=len(records), desc="indexing", unit=" article", delay=1) as bar:
        for start in range(0, len(records), BATCH):
            index.add(records[start : start + BATCH])
            bar.update(len(records[start : start + BATCH]))
    index.close()

    @cache
    def found_for(items: tuple[Item, ...]) -> list[Item]:  # every model is asked the same
        # an answer from a file may be longer than the context: what is left for it is what an answer gets
        short = [replace(item, completion=" ".join(item.completion.split()[:20])) for item in items]
        found = retrieve_sources(
            short, path, tokenizer, model.config.max_position_embeddings, gazetteer, settings.articles
        )
        return [replace(with_source, completion=item.completion) for with_source, item in zip(found, items)]

    return lambda items: found_for(tuple(items))


def _fine_tune(
    model: Llama, tokenizer: Tokenizer, items: dict[str, list[Item]], settings: Settings, training: Path, adapter: Path
) -> dict[str, Any]:
    """Train LoRA on `model`, save it to `adapter` and merge it in place; return what metrics.json says of it.

    Args:
        training: the folder of the checkpoints.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    add_lora(model, LoRAConfig(settings.rank, settings.alpha, targets=TARGETS), generator=generator)
    trainable = trainable_summary(model)
    _say(trainable)
    history = _train(model, tokenizer, items, settings, training)
    save_adapter(model, adapter, base_model=str(settings.model))
    with _parts("merging", 1):
        change = merge_lora(model).largest_change
    return {"trainable": trainable, "training": history, "largest_merge_change": change}


def _repeats(items: Sequence[Item]) -> list[Item]:
    """What an epoch holds besides each item once: `TIMES`, and rare labels as often as the most frequent one.

    Else a model does best to never name a rare label; an item comes at most `MOST_TIMES`.
    """
    again = [item for item in items for _ in range(TIMES.get(item.task, 1) - 1)]
    of_label: dict[str, list[Item]] = {}
    for item in items:
        if item.task == "subtype":
            of_label.setdefault(item.completion, []).append(item)
    times, frequent = TIMES["subtype"], max(map(len, of_label.values()), default=0)
    for label in of_label.values():
        missing = min(times * frequent, MOST_TIMES * len(label)) - times * len(label)
        again += islice(cycle(label), missing)
    return again


def _train(
    model: Llama, tokenizer: Tokenizer, items: dict[str, list[Item]], settings: Settings, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """First the adapter reads the abstracts, then it learns the tasks; each stage keeps its best-scoring adapter.

    Two stages, because the loss is a mean over tokens: in one mixture the hundreds of tokens of a passage would drown
    the two of a label. The second stage rereads some passages, so that the first is not forgotten.

    Checkpoints lie in `folder`, by stage; where there are some, the stage goes on from the newest.
    """
    history = {}
    rng = random.Random(settings.seed)
    reread = [item for item in items["train"] if item.task == "text" and rng.random() < REHEARSAL]
    again = _repeats(items["train"])
    stages: dict[str, tuple[tuple[str, ...], int, list[Item]]] = {
        "text": (("text",), settings.text_epochs, []),
        "tasks": (TASKS[1:], settings.task_epochs, reread + again),
    }
    for stage, (tasks, epochs, extra) in stages.items():
        chosen = {
            side: [encode_item(item, tokenizer) for item in items[side] if item.task in tasks]
            for side in ("train", "validation")
        }
        if not chosen["train"] or not epochs:
            _say(f"no training on {stage}: {len(chosen['train'])} items, {epochs} epochs")
            continue
        chosen["train"] += [encode_item(item, tokenizer) for item in extra]
        config = TrainConfig(
            epochs=epochs,
            batch_size=settings.batch_size,
            packing=max(2, settings.row_tokens),  # a longer item has its row alone
            learning_rate=settings.learning_rate,
            evaluations=2,
            save_every=SAVE_EVERY,
            seed=settings.seed,
        )
        _say(f"training on {stage}: {len(chosen['train'])} items, {epochs} epochs")
        if done := checkpoint_steps(folder / stage / "checkpoints"):
            _say(f"going on after step {done[-1]}, from the checkpoint in {folder}")
        try:
            steps = Trainer(model, config, folder / stage).fit(chosen["train"], chosen["validation"], resume=True)
        except FloatingPointError as error:
            shutil.rmtree(folder, ignore_errors=True)  # to go on from there would end the same way
            raise UserError(f"{error} (--learning-rate {settings.learning_rate}, --alpha {settings.alpha})") from None
        history[stage] = [vars(step) for step in steps]
    if not history:
        raise UserError("there is nothing to train on: both stages are empty; give more abstracts or epochs")
    return history


def _quantize(model: Llama, tokenizer_folder: Path, folder: Path) -> tuple[Llama, dict[str, Any]]:
    """Write an int8 copy of `model` to `folder`; return what the file gives back, and the report."""
    with _parts("quantizing", 4) as bar:
        quantized = copy.deepcopy(model)
        bar.update()
        report = quantize_(quantized, QuantConfig())
        bar.update()
        save_int8(quantized, folder)
        copy_tokenizer(tokenizer_folder, folder)
        bar.update()
        read = load_int8(folder)
    # JSON has no infinity, which is the SQNR of a layer without error, such as one of zeros
    layers = [vars(row) | {"sqnr": row.sqnr if math.isfinite(row.sqnr) else None} for row in report.layers]
    return read, {"layers": layers, "kept_in_float": report.kept, "table": str(report)}


def _write_pairs(base: Evaluation, tuned: Evaluation, path: Path) -> None:
    """Write what both models said to the same prompts, for `rate`: some of each task that is answered in sentences."""
    of_task = [
        [
            {
                "id": f"{task} {number}: {item.pubmed_id}",
                "question": item.prompt,
                "answers": {"base": old, "base+LoRA": new},
            }
            for number, ((item, old, _), (_, new, _)) in enumerate(zip(base.answers[task], tuned.answers[task]), 1)
        ]
        for task in ("question", "summary", "plain")
        if task in base.answers
    ]
    in_turns = [row for rows in zip_longest(*of_task) for row in rows if row]
    path.write_text("".join(json.dumps(row) + "\n" for row in in_turns[:PAIRS]), encoding="utf-8")


def _write(metrics: dict[str, Any], path: Path) -> None:
    """Write metrics.json, which has no infinity: the perplexity of a model that was driven to nonsense."""
    try:
        text = json.dumps(metrics, indent=2, allow_nan=False)
    except ValueError:
        settings = metrics["settings"]
        given = f"--learning-rate {settings['learning_rate']}, --alpha {settings['alpha']}"
        raise UserError(f"a score is not a finite number: the training diverged ({given}); lower these") from None
    path.write_text(text + "\n", encoding="utf-8")


def _question_counts(questions: Sequence[Question], items: dict[str, list[Item]]) -> dict[str, int]:
    """How many questions came from files, and what became of them."""
    there = {item.pubmed_id for rows in items.values() for item in rows}
    lost = sum(question.pubmed_id not in there for question in questions if question.pubmed_id)
    unnamed = sum(not question.pubmed_id for question in questions)
    return {
        "from files": len(questions),
        "of articles": len(questions) - unnamed - lost,
        "of no article, for the test": unnamed,
        "left out: their article is not there": lost,
        "a patient's data masked": sum(question.masked for question in questions),
        "sentences of contexts that speak to a model, left out": sum(question.silenced for question in questions),
    }


def _item_counts(items: dict[str, list[Item]], left_out: Counter[str]) -> dict[str, dict[str, int]]:
    """How many items each task has on each side, how many of them were cut to fit, by how many words, and left out."""
    counts = {}
    for task in TASKS:
        rows = {name: [item for item in items[name] if item.task == task] for name in SPLITS}
        everything = [item for name in SPLITS for item in rows[name]]
        counts[task] = {name: len(rows[name]) for name in SPLITS} | {
            "cut_to_fit": sum(item.words_cut > 0 for item in everything),
            "words_cut": sum(item.words_cut for item in everything),
            "left_out": left_out[task],
        }
        if task == "subtype":
            counts[task] |= dict(sorted(Counter(f"label {item.completion}" for item in everything).items()))
        if task == "summary":
            conclusions = sum(item.instruction == CONCLUDE for item in everything)
            counts[task] |= {"conclusions": conclusions, "titles": len(everything) - conclusions}
    return counts


def _made_with() -> dict[str, Any]:
    packages = (
        "torch",
        "safetensors",
        "numpy",
        "tokenizers",
        "sentencepiece",
        "scipy",
        "rouge_score",
        "sacrebleu",
        "scikit-learn",
        "pyphen",
        "matplotlib",
        "jinja2",
    )
    return {
        "command": shlex.join(["python", "-m", "examples.leukemia", *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "int8_path": {"c": "the C kernels", "torch": "PyTorch's operators"}[kernel_path()],
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return (
        str(value) if isinstance(value, Path) else [str(each) for each in value] if isinstance(value, tuple) else value
    )


def _parts(what: str, parts: int) -> tqdm[NoReturn]:
    """A bar, on a terminal alone, of a step whose parts say nothing while they last: a large model takes minutes."""
    return tqdm(total=parts, desc=what, unit=" part", leave=False, disable=None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
