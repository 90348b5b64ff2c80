"""The recipe of the embedded tiny Llama 3.1: its corpus, its tokenizer, its training. Two runs give the same bits.

    python -m examples.leukemia.pretrain --out FOLDER      # about 10 minutes on 2 cores
    python -m examples.leukemia.pretrain                   # the same, over the folder that ships

The model sees synthetic abstracts (synthetic.py, with another seed than the shipped set) as plain text and in chats that
ask to write, to finish or to repeat text. None of the application's tasks is among them: those are LoRA's to teach.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from examples.leukemia.synthetic import write_abstract
from llama_min import Llama, LlamaConfig, RopeScaling, Tokenizer, load_tokenizer, save_llama
from llama_min.tokenizer import LLAMA3_SPLIT
from lora_lite import Example, TrainConfig, Trainer

__all__ = ["CONFIG", "TINY_LLAMA", "corpus", "pretrain", "train_tokenizer"]

TINY_LLAMA = Path(__file__).parent / "data" / "tiny-llama"
DOCUMENTS, VOCABULARY, SEED, THREADS = 24_000, 2048, 1, 2

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


def corpus(documents: int) -> Iterator[list[dict[str, str]]]:
    """Chats, and plain texts as a single message of the role "text"."""
    rng = random.Random(SEED)
    for _ in range(documents):
        record = write_abstract(rng)
        sentences = record.abstract.split(". ")
        cut = rng.randrange(1, len(sentences))
        first, rest = ". ".join(sentences[:cut]) + ".", ". ".join(sentences[cut:])
        repeated = rng.choice(sentences).rstrip(".") + "."
        ask, answer = rng.choice(
            (
                ("", f"{record.title}\n{record.abstract}"),
                ("", record.abstract),
                (f"Write an abstract with this title: {record.title}", record.abstract),
                (f"Finish this abstract: {first}", rest),
                (f"Repeat this sentence: {repeated}", repeated),
            )
        )
        if ask:
            yield [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        else:
            yield [{"role": "text", "content": answer}]


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


def pretrain(folder: Path, documents: int = DOCUMENTS, progress: bool = True) -> None:
    """Train tokenizer and model and write them to `folder` as a Hugging Face folder.

    The number of threads is part of the recipe: sums over threads are rounded in another order with another number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chats = list(corpus(documents))
    train_tokenizer([message["content"] for chat in chats for message in chat], folder)
    tokenizer = load_tokenizer(folder)
    examples = [as_example(tokenizer, chat) for chat in chats]

    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(SEED)
    bos, eos = tokenizer.bos_id, tokenizer.eos_ids
    model = Llama(LlamaConfig(**{**vars(CONFIG), "bos_token_id": bos, "eos_token_ids": eos}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    settings = TrainConfig(
        epochs=1,
        batch_size=32,
        micro_batch_size=16,
        learning_rate=3e-3,
        final_learning_rate=0.05,
        weight_decay=0.01,
        seed=SEED,
        progress=progress,
    )
    started = time.perf_counter()
    history = Trainer(model, settings).fit(examples)
    save_llama(model, folder)
    tokens = sum(step.tokens for step in history)
    print(
        f"{len(history)} steps, {tokens:,} tokens in {time.perf_counter() - started:.0f} s; "
        f"loss {history[0].loss:.3f} -> {sum(step.loss for step in history[-20:]) / len(history[-20:]):.3f}; "
        f"wrote {folder}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.leukemia.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, default=TINY_LLAMA, help="folder to write (default: the one that ships)")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="size of the corpus (default: the recipe's)")
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.documents)
