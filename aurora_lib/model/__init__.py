"""The model: loaded in 4 bits, its tokenizer, its adapters, and the memory it needs.

Read in this order:

- `files`: whether a folder or hub id is a model that can be loaded, before it is (`read_config`).
- `nf4`: 4-bit experts, the heart of the room. `load_model` reads weights, `random_model` draws them.
- `memory`: what a model needs, predicted term by term (`memory.predict`).
- `tokenizer`: Mixtral's own, offline, or another family's with its own chat template (`load_tokenizer`).
- `adapters`: saved as a stock PEFT folder, found, and put on a base; AdapterError says what went wrong.
- `batching`: texts to token ids to padded batches. Evaluation and routing read models with it.
"""

from aurora_lib.model import batching, memory, nf4
from aurora_lib.model.adapters import AdapterError, find_adapter, load_adapter, resolve_targets, save_adapter
from aurora_lib.model.files import read_config
from aurora_lib.model.nf4 import load_model, random_model
from aurora_lib.model.tokenizer import load_tokenizer
