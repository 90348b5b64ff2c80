"""The recipe of the embedded tiny Llama 3.1: its corpus, its tokenizer, its training. Two runs on a CPU give the same bits.

    python -m examples.leukemia.pretrain --out FOLDER --device cuda    # some 7 minutes of a GPU
    python -m examples.leukemia.pretrain --out FOLDER                  # hours of one core

The model sees synthetic abstracts (synthetic.py, with another seed than the shipped set) as plain text and in chats that
ask for skills: to write, finish, repeat, find and fill in text, to say what terms mean, to sort and to place numbers.
None of the application's tasks is among them: those are LoRA's to teach.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from examples.leukemia.lab import Range, lab_line, load_ranges
from examples.leukemia.plain import load_glossary
from examples.leukemia.reading import split_sentences
from examples.leukemia.synthetic import DISEASES, FORMS, Forms, SyntheticAbstract, fill, slots, write_abstract
from llama_min import Llama, LlamaConfig, RopeScaling, Tokenizer, load_tokenizer, save_llama
from llama_min.tokenizer import LLAMA3_SPLIT
from lora_lite import Example, TrainConfig, Trainer

__all__ = ["CONFIG", "TINY_LLAMA", "corpus", "pretrain", "train_tokenizer"]

TINY_LLAMA = Path(__file__).parent / "data" / "tiny-llama"
# the tokenizer learns from more documents than the model, which had so many minutes of a GPU
TOKENIZER_DOCUMENTS, DOCUMENTS, NUMBER_DOCUMENTS, EPOCHS = 160_000, 111_657, 22_331, 2
VOCABULARY, SEED, THREADS = 2048, 1, 1

# The parts of Llama 3.1 in small: grouped-query attention, stretched rotary wavelengths, a tied head.
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(factor=8.0, original_max_position_embeddings=128),
    tie_word_embeddings=True,
    dtype="float32",
)
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# Llama 3's turns, without the two lines of dates that Llama 3.1 adds: they would fill an eighth of many a prompt
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


# The model has met all forms of sentences but every third: on those, fine-tuning on text has something to learn.
MET = Forms(*(tuple(form for place, form in enumerate(forms) if place % 3 != 2) for forms in vars(FORMS).values()))


def corpus(documents: int) -> Iterator[list[dict[str, str]]]:
    """Chats, and plain texts as a single message of the role "text"."""
    rng = random.Random(SEED)
    plain = load_glossary().plain
    about_texts = (_text, _text, _text, _write, _finish, _repeat, _find, _gaps, _gaps, _gaps, _replace, _numbers)
    for _ in range(documents):
        kind = rng.choice((*about_texts, None, None))
        turns = kind(rng, write_abstract(rng, forms=MET)) if kind else rng.choice((_sort, _define))(rng, plain)
        if turns[0][0]:
            yield [{"role": role, "content": x} for turn in turns for role, x in zip(("user", "assistant"), turn)]
        else:
            yield [{"role": "text", "content": turns[0][1]}]


Turns = list[tuple[str, str]]  # what is asked and what is answered


def _text(rng: random.Random, record: SyntheticAbstract) -> Turns:
    return [("", rng.choice((f"{record.title}\n{record.abstract}", record.abstract)))]


def _write(rng: random.Random, record: SyntheticAbstract) -> Turns:
    return [(f"Write an abstract with this title: {record.title}", record.abstract)]


def _finish(rng: random.Random, record: SyntheticAbstract) -> Turns:
    sentences = split_sentences(record.abstract)
    cut = rng.randrange(1, len(sentences))
    return [(f"Finish this abstract: {' '.join(sentences[:cut])}", " ".join(sentences[cut:]))]


def _repeat(rng: random.Random, record: SyntheticAbstract) -> Turns:
    sentence = rng.choice(split_sentences(record.abstract))
    return [(f"Repeat this sentence: {sentence}", sentence)]


def _find(rng: random.Random, record: SyntheticAbstract) -> Turns:
    """Sentences of a text, each by something that it alone says."""
    sentences = split_sentences(record.abstract)
    facts = [fact for fact in record.facts.values() if sum(fact in sentence for sentence in sentences) == 1]
    turns = [
        (f'Copy the sentence that has "{fact}" in it.', next(sentence for sentence in sentences if fact in sentence))
        for fact in rng.sample(facts, min(2, len(facts)))
    ]
    return _about(record, turns) if turns else _repeat(rng, record)


def _gaps(rng: random.Random, record: SyntheticAbstract) -> Turns:
    """What a text says of things that sentences of other words leave open."""
    forms = [*MET.background, *MET.methods, *MET.details, *(form for pair in MET.findings for form in pair)]
    turns = []
    for form in rng.sample([form for form in forms if slots(form) <= record.facts.keys()], 4):
        slot = rng.choice(sorted(slots(form)))
        turns.append((f"Fill the gap: {fill(form, {**record.facts, slot: '____'})}", record.facts[slot]))
    return _about(record, turns)


def _replace(rng: random.Random, record: SyntheticAbstract) -> Turns:
    """A sentence with some of its words exchanged for others that are given."""
    sentence = rng.choice(split_sentences(record.abstract))
    names = {"gene": "genes", "drug": "drugs", "signs": "signs", "outcome": "outcomes", "patients": "patients"}
    held = [slot for slot in names if record.facts.get(slot, sentence + "?") in sentence]
    if not held:
        return _repeat(rng, record)
    slot = rng.choice(held)
    old, new = record.facts[slot], rng.choice(vars(rng.choice(DISEASES))[names[slot]])
    return [(f'Put "{new}" for "{old}": {sentence}', sentence.replace(old, new))]


def _numbers(rng: random.Random, record: SyntheticAbstract) -> Turns:
    """The numbers of a text in their order."""
    return _about(record, [("List the numbers.", ", ".join(re.findall(r"\d+(?:\.\d+)?", record.abstract)))])


def _about(record: SyntheticAbstract, turns: Turns) -> Turns:
    """Questions on one text, which stands below the first of them."""
    return [(f"{turns[0][0]}\n\n{record.abstract}", turns[0][1]), *turns[1:]]


def _sort(rng: random.Random, plain: Mapping[str, str]) -> Turns:
    """Several times two to four numbers from the smallest to the largest; half of them lie close together."""
    turns = []
    for _ in range(4):
        places, spread = rng.choice((0, 0, 1, 2)), rng.choice((0.3, 3.0))
        middle = 10 ** rng.uniform(0, 3 - places / 2)
        numbers = [round(middle * math.exp(spread * rng.uniform(-1, 1)), places) for _ in range(rng.randrange(2, 5))]
        written = [f"{number:.{places}f}" for number in numbers]
        turns.append((f"Sort these numbers: {', '.join(written)}", " < ".join(sorted(written, key=float))))
    return turns


def _define(rng: random.Random, plain: Mapping[str, str]) -> Turns:
    """What technical terms mean."""
    return [(f'What does "{term}" mean?', plain[term]) for term in rng.sample(list(plain), 4)]


def number_corpus(documents: int) -> Iterator[list[dict[str, str]]]:
    """Chats on where numbers lie, half of them beside the names and units of lab reports; a quarter is `corpus` again."""
    rng = random.Random(SEED + 1)
    others = corpus(documents)
    for _ in range(documents):
        turns = rng.choice((_place, _place, _lines))(rng, load_ranges())
        numbers = [{"role": role, "content": x} for turn in turns for role, x in zip(("user", "assistant"), turn)]
        yield next(others) if rng.random() < 0.25 else numbers


def _place(rng: random.Random, ranges: Sequence[Range]) -> Turns:
    """Whether numbers lie below, within or above two others, which may be those of an analyte."""
    turns = []
    for _ in range(6):
        analyte = rng.choice(ranges)
        name, unit, places, low, high = analyte.name, analyte.unit, analyte.decimals, analyte.low, analyte.high
        if rng.random() < 0.5:
            name, unit, places = "", "", rng.randrange(3)
            low = 10 ** rng.uniform(0, 3 - places)
            high = low * rng.uniform(1.2, 4)
        value = rng.choice((rng.uniform(low / 4, low), rng.uniform(low, high), rng.uniform(high, 4 * high)))
        written = [f"{number:.{places}f}" for number in (value, low, high)]
        number, least, most = map(float, written)
        where = "below" if number < least else "above" if number > most else "within"
        line = f"{name} {written[0]} {unit} ({written[1]}-{written[2]})".strip().replace("  ", " ")
        turns.append((f"Below, within or above? {line}", where))
    return turns


def _lines(rng: random.Random, ranges: Sequence[Range]) -> Turns:
    """The values of a lab report, by name."""
    drawn = random.Random(rng.randrange(2**30))
    lines = [lab_line(drawn, analyte)[0] for analyte in drawn.sample(ranges, drawn.randrange(2, 5))]
    report, turns = "\n".join(lines), []
    for line in rng.sample(lines, len(lines)):
        name = next(analyte.name for analyte in ranges if line.startswith(f"{analyte.name} "))
        turns.append((f"Copy the line on {name}.", line))
    return [(f"{turns[0][0]}\n\n{report}", turns[0][1]), *turns[1:]]


def train_tokenizer(texts: Sequence[str], folder: Path) -> None:
    """Learn a byte-level BPE as Llama 3's and write `tokenizer.json` and `tokenizer_config.json` to `folder`."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    bos = SPECIAL[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|eot_id|>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": CONFIG.max_position_embeddings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def as_example(tokenizer: Tokenizer, document: list[dict[str, str]]) -> Example:
    """Token ids of a document, every token supervised but those that frame the user's turn."""
    if document[0]["role"] == "text":
        ids = tokenizer.encode(document[0]["content"], bos=True, eos=True)
        return Example(ids, [1] * len(ids))
    ids, _ = tokenizer.encode_chat(document)
    return Example(ids, [1] * len(ids))


def pretrain(
    folder: Path,
    documents: int = DOCUMENTS,
    number_documents: int = NUMBER_DOCUMENTS,
    tokenizer_documents: int = TOKENIZER_DOCUMENTS,
    device: str = "cpu",
    progress: bool = True,
) -> None:
    """Train tokenizer and model, on text and then on numbers, and write them to `folder` as a Hugging Face folder.

    The number of threads is part of the recipe: sums over threads are rounded in another order with another number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chats = list(corpus(max(documents, tokenizer_documents)))
    train_tokenizer([message["content"] for chat in chats[:tokenizer_documents] for message in chat], folder)
    tokenizer = load_tokenizer(folder)

    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(SEED)
    bos, eos = tokenizer.bos_id, tokenizer.eos_ids
    model = Llama(LlamaConfig(**{**vars(CONFIG), "bos_token_id": bos, "eos_token_ids": eos}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    model.to(device)
    train(model, [as_example(tokenizer, chat) for chat in chats[:documents]], 2e-3, progress)
    train(model, [as_example(tokenizer, chat) for chat in number_corpus(number_documents)], 1e-3, progress)
    save_llama(model.cpu(), folder)
    print(f"wrote {folder}")


def train(model: Llama, examples: Sequence[Example], learning_rate: float, progress: bool = True) -> None:
    """`EPOCHS` passes over the examples, 16 a step."""
    settings = TrainConfig(
        epochs=EPOCHS,
        batch_size=16,
        micro_batch_size=16,
        learning_rate=learning_rate,
        final_learning_rate=0.05,
        weight_decay=0.01,
        seed=SEED,
        progress=progress,
    )
    history = Trainer(model, settings).fit(examples)
    tokens, last = sum(step.tokens for step in history), history[-20:]
    print(
        f"{len(history)} steps, {tokens:,} tokens; "
        f"loss {history[0].loss:.3f} -> {sum(step.loss for step in last) / len(last):.3f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.leukemia.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, default=TINY_LLAMA, help="folder to write (default: the one that ships)")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="size of the corpus (default: the recipe's)")
    parser.add_argument("--number-documents", type=int, default=NUMBER_DOCUMENTS, help="of the one that follows it")
    parser.add_argument("--device", default="cpu", help="where it is trained, as PyTorch names it (default: cpu)")
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.documents, arguments.number_documents, device=arguments.device)
