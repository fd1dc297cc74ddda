"""From the files of three Chinese datasets to clean conversations to train on. Notebook 02 walks through it.

Read in this order:

- `sources`: the conversation in a row, by the names in `layouts.toml`; what is none is set aside, and said.
- `edits` and `drops`: the steps, small functions of one conversation. `patterns.toml`: what they look for,
  each rule with examples. `duplicates`: equal and nearly equal ones. `language` (in `patterns`): of a text.
- `clean` (in `cleaning`): all steps over all rows; each is kept, or dropped with its step and reason;
  `account` tells it in lines.
- `split` (in `conversations`): pieces that fit the training length. `save_conversations` and
  `clean_conversations`: how notebook 02 hands them to the notebooks behind it. `hold_out`: a validation set.
"""

from aurora_lib.data import cleaning, drops, duplicates, edits, sources
from aurora_lib.data.cleaning import clean
from aurora_lib.data.conversations import clean_conversations, hold_out, save_conversations, split
from aurora_lib.data.patterns import language
