"""What a Llama is made of: the settings in a Hugging Face `config.json`, checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CheckpointError", "LlamaConfig", "RopeScaling"]


class CheckpointError(ValueError):
    """A model folder that cannot be used as it is: the message names the file, what is wrong and the way out."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary wavelengths (`rope_type` "llama3"; Dubey et al. 2024).

    Wavelengths shorter than original/high_freq_factor tokens stay, longer than original/low_freq_factor are
    multiplied by `factor`, and those between are interpolated.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Settings of a Llama 1, 2, 3, 3.1 or 3.2 text model, named as in Hugging Face's `config.json`."""

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: each key-value head serves a whole group of heads"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim={self.head_dim} is odd: rotary embeddings turn pairs of numbers")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LlamaConfig:
        """Read `folder/config.json`.

        Raises:
            CheckpointError: the file is missing or not JSON, or asks for something this model does not do.
        """
        path = Path(folder) / "config.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist: give a Hugging Face Llama folder") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON ({error}): download it again") from None
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path} holds no JSON object: download it again")
        try:
            return cls.from_dict(settings)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> LlamaConfig:
        """Read the settings of a parsed `config.json`; what this model cannot do faithfully raises by name.

        Raises:
            CheckpointError: a field is missing or has a value that is not supported.
        """
        _refuse_what_differs(settings)
        _refuse_wrong_types(settings)
        heads = settings["num_attention_heads"]
        rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
        if settings.get("original_max_position_embeddings"):  # this spelling wins, as it does in transformers
            rope = {**rope, "original_max_position_embeddings": settings["original_max_position_embeddings"]}
        eos = settings.get("eos_token_id")
        return cls(
            **{k: settings[k] for k in _REQUIRED},
            num_key_value_heads=settings.get("num_key_value_heads") or heads,
            head_dim=settings.get("head_dim") or settings["hidden_size"] // heads,
            max_position_embeddings=settings.get("max_position_embeddings") or 2048,
            rms_norm_eps=1e-6 if settings.get("rms_norm_eps") is None else float(settings["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta") or settings.get("rope_theta") or 10000.0),
            rope_scaling=_read_rope_scaling(rope),
            tie_word_embeddings=settings.get("tie_word_embeddings") or False,
            attention_bias=settings.get("attention_bias") or False,
            mlp_bias=settings.get("mlp_bias") or False,
            bos_token_id=settings.get("bos_token_id"),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            dtype=settings.get("dtype") or settings.get("torch_dtype") or "float32",
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as Hugging Face writes them; `from_dict(to_dict(c)) == c`."""
        rope: dict[str, Any] | None = None
        if self.rope_scaling is not None:
            rope = {"rope_type": "llama3", **vars(self.rope_scaling)}
        eos = list(self.eos_token_ids)
        own = ("rope_scaling", "eos_token_ids", "dtype")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            **{k: v for k, v in vars(self).items() if k not in own},
            "rope_scaling": rope,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "torch_dtype": self.dtype,
        }


_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and value > 0)


def _refuse_wrong_types(settings: dict[str, Any]) -> None:
    """Raise on a field that is missing or holds what it cannot mean, such as text for a number; null is a default."""
    kinds: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (_REQUIRED, _is_whole, "a whole number above 0"),
        (("num_key_value_heads", "head_dim", "max_position_embeddings"), _is_whole, "a whole number above 0"),
        (("rope_theta",), _is_number, "a number above 0"),
        (("rms_norm_eps",), lambda v: v == 0 or _is_number(v), "a number, 0 or above"),
        (("original_max_position_embeddings",), _is_whole, "a whole number above 0"),
        (("tie_word_embeddings", "attention_bias", "mlp_bias"), lambda v: isinstance(v, bool), "true or false"),
        (("rope_scaling", "rope_parameters"), lambda v: isinstance(v, dict), "an object"),
    )
    wrong = [
        f"{name}={settings.get(name)!r} must be {what}"
        for names, fits, what in kinds
        for name in names
        if not fits(settings.get(name)) and (settings.get(name) is not None or name in _REQUIRED)
    ]
    eos = settings.get("eos_token_id")
    if not all(token is None or isinstance(token, int) for token in (eos if isinstance(eos, list) else [eos])):
        wrong.append(f"eos_token_id={eos!r} must be a whole number or a list of them")
    if wrong:
        raise CheckpointError("; ".join(wrong))


def _refuse_what_differs(settings: dict[str, Any]) -> None:
    """Raise on a field that would make the model compute something else than `Llama` does."""
    architectures = settings.get("architectures") or ["LlamaForCausalLM"]
    if architectures != ["LlamaForCausalLM"] or settings.get("model_type", "llama") != "llama":
        raise CheckpointError(
            f"architectures={architectures}, model_type={settings.get('model_type')!r} is not supported: "
            "only LlamaForCausalLM of model_type 'llama' is"
        )
    allowed: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "is_causal": (True, None),
        "partial_rotary_factor": (None, 1.0),
        "quantization_config": (None,),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "attention_chunk_size"), (None, False)),
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), (None, 0, 1)),
        **dict.fromkeys(("vision_config", "text_config", "image_token_index"), (None,)),
    }
    for field, values in allowed.items():
        if settings.get(field, values[0]) not in values:
            raise CheckpointError(f"{field}={settings[field]!r} is not supported: only {values[0]!r} is")
    others = set(settings.get("layer_types") or ()) - {"full_attention"}
    if others:
        raise CheckpointError(f"layer_types holds {', '.join(map(repr, others))}: only 'full_attention' is supported")


def _read_rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    """From `rope_scaling` (its type spelt `type` or `rope_type`) or transformers 5's `rope_parameters`."""
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise CheckpointError(
            f"rope_parameters of their own for {', '.join(nested)} are not supported: only one set is"
        )
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise CheckpointError(f"partial_rotary_factor={rope['partial_rotary_factor']!r} is not supported: only 1.0 is")
    kind = rope.get("rope_type") or rope.get("type")
    if kind in ("default", None):
        return None
    if kind != "llama3":
        raise CheckpointError(f"rope_type={kind!r} is not supported: only 'default' and 'llama3' are")
    names = RopeScaling.__dataclass_fields__
    missing = [name for name in names if not isinstance(rope.get(name), (int, float))]
    if missing:
        raise CheckpointError(f"rope_scaling of rope_type 'llama3' lacks {', '.join(missing)}")
    scaling = RopeScaling(**{name: rope[name] for name in names})
    if not 0 < scaling.factor < float("inf") or not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        raise CheckpointError(
            f"{scaling} makes no sense: factor is above 0, and low_freq_factor below high_freq_factor"
        )
    return scaling
