"""The model: loaded in 4 bits, its tokenizer, its adapters, and what memory it needs."""

from aurora_lib.model import memory, nf4
from aurora_lib.model.adapters import AdapterError, find_adapter, load_adapter, save_adapter
from aurora_lib.model.nf4 import load_model, random_model
from aurora_lib.model.tokenizer import load_tokenizer

__all__ = [
    "AdapterError",
    "find_adapter",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "memory",
    "nf4",
    "random_model",
    "save_adapter",
]
