"""Text to token ids and back: `tokenizer.json` (byte-level BPE of Llama 3) or sentencepiece `tokenizer.model`.

The two file formats are read by the libraries that define them; what is written here is what users get wrong:
which tokens frame a chat, that there is exactly one BOS, and that text which spells a special token stays text.
"""

from __future__ import annotations

import base64
import bisect
import codecs
import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from llama_min.config import CheckpointError

__all__ = ["BPETokenizer", "SentencePieceTokenizer", "StreamDecoder", "Tokenizer", "load_tokenizer"]

# Llama 3's split of a text into words, digit groups of three, punctuation and space (Meta's tokenizer.py)
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# and its special tokens, in their order behind the 128,000 others; 256 in all, the rest reserved
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Tokenizer(Protocol):
    """What both kinds of tokenizer offer."""

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    can_chat: bool
    leading_space: bool

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...
    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, date: str | None = None
    ) -> tuple[list[int], list[int]]: ...


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json` if there is one, else `tokenizer.model`.

    Raises:
        CheckpointError: neither file is there, or the one that is cannot be read.
    """
    folder = Path(folder)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            try:
                return _read_tokenizer(folder / name)
            except (ImportError, CheckpointError):
                raise  # a library that is not installed, or another file of the folder: the message says so already
            except Exception as error:  # noqa: BLE001 (what tokenizers raises on a damaged file)
                raise CheckpointError(f"{folder / name} is not a tokenizer ({error}): download it again") from None
    raise CheckpointError(f"{folder} holds neither tokenizer.json nor tokenizer.model: copy the model's own into it")


def _read_tokenizer(path: Path) -> Tokenizer:
    """By the file's name and, for `tokenizer.model`, which two formats share, by its first line."""
    if path.suffix == ".json":
        return BPETokenizer.from_json(path)
    with path.open("rb") as file:
        first = file.readline(1000)
    if re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n?", first):
        return BPETokenizer.from_tiktoken(path)
    tokenizer = SentencePieceTokenizer(path)
    tokenizer.folder_has_template = "chat_template" in _read_settings(path.parent)
    return tokenizer


class StreamDecoder:
    """Text from tokens as they come, never half a character: the pieces of a text's ids, joined, are that text.

    Example::

        decoder = StreamDecoder(tokenizer, continues=True)
        for token in stream(model, ids):
            print(decoder.push(token), end="")
        print(decoder.flush())

    Args:
        tokenizer: what the tokens are of.
        stop: strings at which the text ends: no piece holds any of one, and `stopped` tells that one has come.
        continues: whether the tokens go on with a text that came before. At the start of a text, sentencepiece's
            vocabularies spell a space that is not there; it is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), continues: bool = False) -> None:
        if not all(stop):
            raise ValueError(f"stop={list(stop)!r} holds an empty string, at which no text could begin")
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the bytes of an unfinished character
        self._drop_space = tokenizer.leading_space and not continues
        self._stop = tuple(stop)
        self._text = ""  # whole characters that may begin a stop string
        self.stopped = False

    @property
    def held(self) -> int:
        """How many whole characters are held back because they may begin a stop string."""
        return len(self._text)

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has come; empty while a character or a stop string may go on."""
        if self.stopped:
            return ""
        text = self._text + self._without_leading_space(self._utf8.decode(self._token_bytes(token)))
        found = [text.index(stop) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._text = True, ""
            return text[: min(found)]
        certain = 0
        while certain < len(text) and not any(stop.startswith(text[certain:]) for stop in self._stop):
            certain += 1
        self._text = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, at the end of the stream: U+FFFD for a character that never came whole."""
        rest = "" if self.stopped else self._text + self._without_leading_space(self._utf8.decode(b"", final=True))
        self._text = ""
        return rest

    def _without_leading_space(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


class BPETokenizer:
    """The tokenizer of a `tokenizer.json`: byte-level BPE in Llama 3, where any text comes back from its ids.

    BOS and EOS are those that `tokenizer_config.json` beside the file names; without one, those of Llama 3.

    Args:
        backend: a `tokenizers.Tokenizer`.
        folder: where `tokenizer_config.json` and a `chat_template` are looked for; None for Llama 3.1's own.
    """

    def __init__(self, backend: Any, folder: Path | None = None) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        settings = _read_settings(folder)
        self.vocab_size: int = backend.get_vocab_size()
        self.bos_id: int | None = backend.token_to_id(settings.get("bos_token", "<|begin_of_text|>"))
        # a chat model names the end of a turn as its EOS; the end of a text, used by `encode(eos=True)`, comes last
        ends = dict.fromkeys((settings.get("eos_token", "<|eot_id|>"), "<|eot_id|>", "<|end_of_text|>"))
        ids = (backend.token_to_id(token) for token in ends)
        self.eos_ids: tuple[int, ...] = tuple(i for i in ids if i is not None)
        added = backend.get_added_tokens_decoder().items()
        self._added = {i: b"" if token.special else token.content.encode() for i, token in added}
        byte_level = type(backend.decoder).__name__ == "ByteLevel"
        self._letters = {letter: byte for byte, letter in _byte_letters().items()} if byte_level else None
        self.leading_space: bool = not byte_level  # a vocabulary made from sentencepiece's
        self._template: str | None = settings.get("chat_template")
        self._special = {name: token for name, token in settings.items() if name != "chat_template"}
        if self.bos_id is not None:
            self._special.setdefault("bos_token", "<|begin_of_text|>")
        # vocabularies made from sentencepiece's spell a space before the first word of a text, and of no other piece
        text = backend.to_str()
        first, never = '"prepend_scheme":"first"', '"prepend_scheme":"never"'
        self._continuing = type(backend).from_str(text.replace(first, never)) if first in text else backend
        frame = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        self.can_chat: bool = bool(self._template) or None not in map(backend.token_to_id, frame)

    @classmethod
    def from_json(cls, path: Path) -> BPETokenizer:
        """Read a Hugging Face `tokenizer.json`."""
        from tokenizers import Tokenizer as Backend

        return cls(Backend.from_file(str(path)), path.parent)

    @classmethod
    def from_tiktoken(cls, path: Path) -> BPETokenizer:
        """Read Meta's `tokenizer.model` of Llama 3: a line a token, its bytes in base64 and its rank.

        The file has no merges. They follow from the ranks: BPE joins two tokens wherever the joined bytes are a token
        too, the lowest rank of the result first.
        """
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        ranks: dict[bytes, int] = {}
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        letters = _byte_letters()
        spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
        merges = [
            (spelt[token[:cut]], spelt[token[cut:]])
            for token in ranks  # in the order of rank, as the file has them
            for cut in sorted(
                (c for c in range(1, len(token)) if token[:c] in ranks and token[c:] in ranks),
                key=lambda c: (ranks[token[:c]], ranks[token[c:]]),
            )
        ]
        vocabulary = {spelt[token]: rank for token, rank in ranks.items()}
        backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
        split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        backend.decoder = decoders.ByteLevel()
        names = [*LLAMA3_SPECIAL, *(f"<|reserved_special_token_{n}|>" for n in range(3, 256 - len(LLAMA3_SPECIAL) + 3))]
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return cls(backend, path.parent)

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Ids of `text`, with BOS in front or an end token behind where asked for.

        Args:
            special: whether text that spells a special token, such as "<|eot_id|>", becomes that token; else it
                stays text, so that a user cannot end his own turn.

        Raises:
            ValueError: BOS or EOS is asked for and the tokenizer has none.
        """
        ids = list(self._encode(text, special).ids)
        return _framed(ids, self.bos_id, self.eos_ids, bos, eos)

    def _encode(self, text: str, special: bool, continues: bool = False) -> Any:
        backend = self._continuing if continues else self._backend
        backend.encode_special_tokens = not special
        return backend.encode(_whole(text), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, in UTF-8, perhaps a part of a character; nothing for a special token."""
        if token in self._added:
            return self._added[token]
        spelt = self._backend.id_to_token(token)
        if spelt is None:
            raise ValueError(f"token {token} is not in the vocabulary of {self.vocab_size}")
        if self._letters is None:
            return _piece_bytes(spelt)
        return bytes(self._letters[letter] for letter in spelt)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, date: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and a mask of what the assistant says.

        The format is the folder's own `chat_template` where it has one (through jinja2), else Llama 3.1's: each turn is
        `<|start_header_id|>role<|end_header_id|>`, two newlines, the stripped text, `<|eot_id|>`; one
        `<|begin_of_text|>` stands in front, and a system turn that begins with two lines of dates comes first.

        Args:
            messages: dicts with `role` (system, user or assistant) and `content`.
            add_generation_prompt: end with the assistant's header, for the model to go on.
            date: what Llama 3.1's system turn says today is, or `date_string` to a folder's template; None leaves the
                template's own, which is "26 Jul 2024" in Llama 3.1's.

        Returns:
            ids and mask, of equal length; the mask is 1 on the assistant's text and its end of turn, else 0.

        Raises:
            ValueError: the tokenizer has neither a template nor the chat tokens, the template fails or writes more
                than one BOS, or a message lacks a known role or its content.
            ImportError: the folder has a `chat_template` and jinja2 is not installed.
        """
        for number, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in ("system", "user", "assistant") or not isinstance(content, str):
                raise ValueError(
                    f"message {number} has role {role!r} and content of type {type(content).__name__}: "
                    "roles are system, user and assistant, content is a string"
                )
        if self._template:
            whole = [{**message, "content": _whole(message["content"])} for message in messages]
            return self._encode_template(whole, add_generation_prompt, date)
        if not self.can_chat:
            raise ValueError("this tokenizer has no chat tokens such as <|start_header_id|>: use encode()")

        system = messages[0]["content"].strip() if messages and messages[0]["role"] == "system" else ""
        turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
        about = f"Cutting Knowledge Date: December 2023\nToday Date: {date or '26 Jul 2024'}\n\n{system}"
        ids, mask = [self._token("<|begin_of_text|>")], [0]
        for role, text in [("system", about), *((turn["role"], turn["content"].strip()) for turn in turns)]:
            header, body = self._header(role), [*self.encode(text), self._token("<|eot_id|>")]
            ids += header + body
            mask += [0] * len(header) + [int(role == "assistant")] * len(body)
        if add_generation_prompt:
            ids += self._header("assistant")
            mask += [0] * (len(ids) - len(mask))
        return ids, mask

    def _header(self, role: str) -> list[int]:
        start, end = self._token("<|start_header_id|>"), self._token("<|end_header_id|>")
        return [start, *self.encode(role), end, *self.encode("\n\n")]

    def _token(self, name: str) -> int:
        return int(self._backend.token_to_id(name))

    def _encode_template(
        self, messages: Sequence[Message], add_generation_prompt: bool, date: str | None
    ) -> tuple[list[int], list[int]]:
        """Through the folder's template: special tokens are recognised in what it writes, never in the messages."""
        prompt = {"add_generation_prompt": add_generation_prompt, **self._special}
        if date is not None:
            prompt["date_string"] = date
        parts, shown, kept = _template_parts(self._template or "", messages, prompt)
        text = "".join(parts)
        cuts, spoken = self._template_spans(parts, shown, kept)
        starts, stops = [low for low, _ in spoken], [high for _, high in spoken]

        def is_spoken(low: int, high: int) -> int:
            """1 where some of text[low:high] is spoken."""
            after = bisect.bisect_right(stops, low)
            return int(after < len(starts) and starts[after] < high)

        ids: list[int] = []
        mask: list[int] = []
        done = 0
        for low, high in [*cuts, (len(text), len(text))]:
            piece = self._encode(text[done:low], special=False, continues=done > 0)
            ids += piece.ids
            # a token that begins with the template's space and goes on with what is spoken is spoken
            mask += [is_spoken(done + at, done + to) for at, to in piece.offsets]
            if high > low:
                ids.append(self._token(text[low:high]))
                mask.append(is_spoken(low, high))
            done = high
        if self.bos_id is not None and ids.count(self.bos_id) > 1:
            raise ValueError(
                f"the folder's chat_template writes {ids.count(self.bos_id)} BOS tokens: mend the template"
            )
        return ids, mask

    def _template_spans(
        self, parts: Sequence[str], shown: Sequence[Message], kept: Sequence[bool]
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Where the joined parts hold the template's special tokens, and where what the assistant speaks; rising."""
        names = [token.content for token in self._backend.get_added_tokens_decoder().values()]
        special = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")
        cuts: list[tuple[int, int]] = []
        spoken: list[tuple[int, int]] = []
        start = 0
        for n, part in enumerate(parts):
            if n % 2 == 0:  # the template's own words
                cuts += [(start + m.start(), start + m.end()) for m in special.finditer(part)]
            elif shown[n // 2]["role"] == "assistant":
                head, tail = _own_space(shown[n // 2]["content"])
                low = start - (len(head) if kept[n - 1] and parts[n - 1].endswith(head) else 0)
                high = start + len(part) + (len(tail) if kept[n + 1] and parts[n + 1].startswith(tail) else 0)
                spoken.append((low, high))
            start += len(part)
        text = "".join(parts)
        # what ends a turn is spoken too, with the white space that the template may set before it
        ends = {len(text) - len(text[stop:].lstrip()): stop for _, stop in spoken}
        return cuts, sorted(spoken + [(ends[low], high) for low, high in cuts if low in ends])


class SentencePieceTokenizer:
    """The sentencepiece model of Llama 1 and 2, from a `tokenizer.model`."""

    can_chat = False
    leading_space = True
    folder_has_template = False

    def __init__(self, path: str | Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._backend: Any = SentencePieceProcessor(model_file=str(path))
        self.vocab_size: int = self._backend.vocab_size()
        bos, eos = self._backend.bos_id(), self._backend.eos_id()
        self.bos_id: int | None = None if bos < 0 else bos
        self.eos_ids: tuple[int, ...] = () if eos < 0 else (eos,)

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Ids of `text`, with BOS in front or EOS behind where asked for.

        Raises:
            ValueError: BOS or EOS is asked for and the tokenizer has none; `special`, since sentencepiece never reads
                a control token from text.
        """
        if special:
            raise ValueError("special=True: sentencepiece never reads a control token from text; use bos and eos")
        return _framed(list(self._backend.encode(_whole(text))), self.bos_id, self.eos_ids, bos, eos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens."""
        return str(self._backend.decode(list(ids)))

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, in UTF-8, perhaps a part of a character; nothing for a control token."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary of {self.vocab_size}")
        if self._backend.is_control(token):
            return b""
        if self._backend.is_unknown(token):
            return " \u2047 ".encode()  # as sentencepiece writes what it does not know
        return _piece_bytes(self._backend.id_to_piece(token))

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, date: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Refuses: this kind of vocabulary has no tokens that frame a turn."""
        if self.folder_has_template:
            raise ValueError(
                "the folder's chat_template cannot be used with a sentencepiece tokenizer.model, whose control tokens "
                "are not read from text: add the model's tokenizer.json to the folder, or use encode()"
            )
        raise ValueError("a sentencepiece tokenizer.model has no chat tokens: use encode()")


def _read_settings(folder: Path | None) -> dict[str, str]:
    """The special tokens ("bos_token", "eos_token", ...) and the "chat_template" of a folder, as its files name them."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the second has the last word
        if folder is None or not (folder / file).is_file():
            continue
        path = folder / file
        try:
            settings = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as a JSON object ({error}): download it again") from None
        for name, value in settings.items():
            if name.endswith("_token"):
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    found[name] = value
        if settings.get("chat_template") is not None:
            found["chat_template"] = _one_template(settings["chat_template"], path)
    for file in ("additional_chat_templates/default.jinja", "chat_template.jinja"):
        if folder is not None and (folder / file).is_file():
            found["chat_template"] = (folder / file).read_text(encoding="utf-8")
    return found


def _one_template(value: Any, path: Path) -> str:
    """A template's text, or of several named ones the one named "default"."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}.get("default")
    if not isinstance(value, str):
        raise CheckpointError(f"{path}: chat_template is neither a text nor a list with one named 'default'")
    return value


def _render(template: str, messages: Sequence[Message], names: dict[str, Any]) -> str:
    """A chat template's text."""
    try:
        return str(_compiled(template).render(messages=list(messages), tools=None, documents=None, **names))
    except ImportError:
        raise ImportError("the folder has its own chat_template, which needs jinja2: pip install jinja2") from None
    except Exception as error:  # noqa: BLE001 (a template is the folder's own code and may raise anything)
        from jinja2 import TemplateError

        said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"the folder's chat_template cannot write these messages: {said}") from None


@cache
def _compiled(template: str) -> Any:
    """A template in the sandbox, with the functions that transformers gives templates; compiling takes milliseconds."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    return environment.from_string(template)


def _own_space(text: str) -> tuple[str, str]:
    """The white space that `text` begins and ends with; of nothing else, all of it is the beginning."""
    core = text.strip()
    head = text[: len(text) - len(text.lstrip())]
    return head, text[len(head) + len(core) :] if core else ""


def _template_parts(
    template: str, messages: Sequence[Message], prompt: dict[str, Any]
) -> tuple[list[str], list[Message], list[bool]]:
    """What a template writes, cut around the messages' texts: its own words at even places, texts at odd ones.

    With them the message of each text, and for each part whether the texts beside it stand there with the white space
    that they came with.

    Raises:
        ValueError: the template changes more of a text than the white space around it.
    """
    text = _render(template, messages, prompt)
    # Render again with a mark of private-use letters for each text, to see where the template puts them, and once
    # more with the bare marks, to see whether it keeps the white space around a text.
    marks = [f"\ue000{n}\ue001" for n in range(len(messages))]
    marked, bare = (
        re.split("\ue000(\\d+)\ue001", _render(template, [{**m, "content": c} for m, c in pairs], prompt))
        for pairs in (
            [(m, _around(m["content"], mark)) for m, mark in zip(messages, marks)],
            list(zip(messages, marks)),
        )
    )
    parts = [*marked]
    shown = [messages[int(number)] for number in parts[1::2]]  # a template may leave out or move a message
    parts[1::2] = [message["content"].strip() for message in shown]
    if "".join(parts) != text:
        raise ValueError("the folder's chat_template rewrites the messages: render it yourself and use encode()")
    kept = [len(bare) == len(parts) and part != plain for part, plain in zip(parts, bare)]  # own white space in it
    return parts, shown, kept


def _around(text: str, mark: str) -> str:
    """`mark` between the white space that `text` begins and ends with."""
    head, tail = _own_space(text)
    return head + mark + tail


def _whole(text: str) -> str:
    """`text` with broken surrogates, which no UTF-8 can hold, replaced by U+FFFD; whole pairs are joined."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte (Radford et al. 2019): itself if printable, else from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _piece_bytes(piece: str) -> bytes:
    """A sentencepiece piece: one byte spelt "<0x0A>", or text in which U+2581 stands for a space."""
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _framed(ids: list[int], bos_id: int | None, eos_ids: tuple[int, ...], bos: bool, eos: bool) -> list[int]:
    """`ids` with BOS before and the last of `eos_ids` (the end of a text, not of a turn) after, where asked for."""
    if bos and bos_id is None:
        raise ValueError("bos=True, but this tokenizer has no BOS token: encode with bos=False")
    if eos and not eos_ids:
        raise ValueError("eos=True, but this tokenizer has no EOS token: encode with eos=False")
    first = [bos_id] if bos and bos_id is not None and ids[:1] != [bos_id] else []  # text may have spelt it already
    return first + ids + (list(eos_ids[-1:]) if eos else [])
