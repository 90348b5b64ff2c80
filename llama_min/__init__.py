"""A minimal Llama 3.1 that loads Hugging Face folders: model, checkpoints, tokenizers, generation."""

from llama_min import _interrupt as _interrupt  # first: it is for the time in which the others are imported
from llama_min.checkpoint import load_llama, save_llama
from llama_min.config import CheckpointError, LlamaConfig, RopeScaling
from llama_min.generation import Token, generate, generate_batch, stream
from llama_min.model import KVCache, Llama
from llama_min.stacking import stack_products, unstack_products
from llama_min.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

__all__ = [
    "CheckpointError",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RopeScaling",
    "StreamDecoder",
    "Token",
    "Tokenizer",
    "generate",
    "generate_batch",
    "load_llama",
    "load_tokenizer",
    "save_llama",
    "stack_products",
    "stream",
    "unstack_products",
]
