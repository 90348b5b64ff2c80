"""Text to token ids and back: `tokenizer.json` (byte-level BPE of Llama 3) or sentencepiece `tokenizer.model`.

The two file formats are read by the libraries that define them; what is written here is what users get wrong:
which tokens frame a chat, that there is exactly one BOS, and that text which spells a special token stays text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llama_min.config import CheckpointError

__all__ = ["BPETokenizer", "SentencePieceTokenizer", "Tokenizer", "load_tokenizer"]

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Tokenizer(Protocol):
    """What both kinds of tokenizer offer."""

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    can_chat: bool

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]: ...


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json` if there is one, else `tokenizer.model`.

    Raises:
        CheckpointError: neither file is there, or the one that is cannot be read.
    """
    folder = Path(folder)
    for name, kind in (("tokenizer.json", BPETokenizer), ("tokenizer.model", SentencePieceTokenizer)):
        if (folder / name).is_file():
            try:
                return kind(folder / name)
            except ImportError:
                raise  # the library is not installed, the file may be fine
            except Exception as error:  # noqa: BLE001 (what tokenizers raises on a damaged file)
                raise CheckpointError(f"{folder / name} is not a tokenizer ({error}): download it again") from None
    raise CheckpointError(f"{folder} holds neither tokenizer.json nor tokenizer.model: copy the model's own into it")


class BPETokenizer:
    """The tokenizer of a `tokenizer.json`: byte-level BPE in Llama 3, where any text comes back from its ids.

    BOS and EOS are those that `tokenizer_config.json` beside the file names; without one, those of Llama 3.
    """

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer as Backend

        self._backend: Any = Backend.from_file(str(path))
        self._backend.no_truncation()
        self._backend.no_padding()
        # encode_special_tokens=True: "<|eot_id|>" written by a user is text, not the end of his turn
        self._backend.encode_special_tokens = True
        self.vocab_size: int = self._backend.get_vocab_size()
        named = _named_tokens(Path(path).with_name("tokenizer_config.json"))
        self.bos_id: int | None = self._backend.token_to_id(named.get("bos_token", "<|begin_of_text|>"))
        # a chat model names the end of a turn as its EOS; the end of a text, used by `encode(eos=True)`, comes last
        ends = dict.fromkeys((named.get("eos_token", "<|eot_id|>"), "<|eot_id|>", "<|end_of_text|>"))
        ids = (self._backend.token_to_id(token) for token in ends)
        self.eos_ids: tuple[int, ...] = tuple(i for i in ids if i is not None)
        frame = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        self._frame: list[int | None] = [self._backend.token_to_id(token) for token in frame]
        self.can_chat: bool = self.bos_id is not None and None not in self._frame

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of `text`, with BOS in front or an end token behind where asked for.

        Raises:
            ValueError: BOS or EOS is asked for and the tokenizer has none.
        """
        ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        return _framed(ids, self.bos_id, self.eos_ids, bos, eos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids of a conversation in Llama 3's chat format, and a mask of what the assistant says.

        Each turn is `<|start_header_id|>role<|end_header_id|>`, two newlines, the stripped text, `<|eot_id|>`;
        one `<|begin_of_text|>` stands in front of it all (Meta's `ChatFormat.encode_dialog_prompt`).

        Args:
            messages: dicts with `role` (system, user or assistant) and `content`.
            add_generation_prompt: end with the assistant's header, for the model to go on.

        Returns:
            ids and mask, of equal length; the mask is 1 on the assistant's text and its `<|eot_id|>`, else 0.

        Raises:
            ValueError: the tokenizer lacks the chat tokens, or a message lacks a known role or its content.
        """
        if not self.can_chat or self.bos_id is None:
            raise ValueError("this tokenizer has no chat tokens such as <|start_header_id|>: use encode()")
        start, end, turn = self._frame
        ids: list[Any] = [self.bos_id]
        mask = [0]
        for number, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in ("system", "user", "assistant") or not isinstance(content, str):
                raise ValueError(
                    f"message {number} has role {role!r} and content of type {type(content).__name__}: "
                    "roles are system, user and assistant, content is a string"
                )
            header = [start, *self.encode(role), end, *self.encode("\n\n")]
            body = [*self.encode(content.strip()), turn]
            ids += header + body
            mask += [0] * len(header) + [int(role == "assistant")] * len(body)
        if add_generation_prompt:
            header = [start, *self.encode("assistant"), end, *self.encode("\n\n")]
            ids += header
            mask += [0] * len(header)
        return ids, mask


class SentencePieceTokenizer:
    """The sentencepiece model of Llama 1 and 2, from a `tokenizer.model`."""

    can_chat = False

    def __init__(self, path: str | Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._backend: Any = SentencePieceProcessor(model_file=str(path))
        self.vocab_size: int = self._backend.vocab_size()
        bos, eos = self._backend.bos_id(), self._backend.eos_id()
        self.bos_id: int | None = None if bos < 0 else bos
        self.eos_ids: tuple[int, ...] = () if eos < 0 else (eos,)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of `text`, with BOS in front or EOS behind where asked for.

        Raises:
            ValueError: BOS or EOS is asked for and the tokenizer has none.
        """
        return _framed(list(self._backend.encode(text)), self.bos_id, self.eos_ids, bos, eos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens."""
        return str(self._backend.decode(list(ids)))

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Refuses: this kind of vocabulary has no tokens that frame a turn."""
        raise ValueError("a sentencepiece tokenizer.model has no chat tokens: use encode()")


def _named_tokens(path: Path) -> dict[str, str]:
    """`bos_token` and `eos_token` of a `tokenizer_config.json`, where there is one that names them."""
    if not path.is_file():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    tokens = {key: settings.get(key) for key in ("bos_token", "eos_token")}
    tokens = {key: token["content"] if isinstance(token, dict) else token for key, token in tokens.items()}
    return {key: token for key, token in tokens.items() if isinstance(token, str)}


def _framed(ids: list[int], bos_id: int | None, eos_ids: tuple[int, ...], bos: bool, eos: bool) -> list[int]:
    """`ids` with BOS before and the last of `eos_ids` (the end of a text, not of a turn) after, where asked for."""
    if bos and bos_id is None:
        raise ValueError("bos=True, but this tokenizer has no BOS token: encode with bos=False")
    if eos and not eos_ids:
        raise ValueError("eos=True, but this tokenizer has no EOS token: encode with eos=False")
    return ([bos_id] if bos and bos_id is not None else []) + ids + (list(eos_ids[-1:]) if eos else [])
