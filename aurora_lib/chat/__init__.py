"""Talk to a model. Read `session` first: a conversation is a list of messages, and one string for the model.

- `session`: `ChatSession`, a conversation in the model's exact format, streamed, within the context window.
- `decoding`: one token after another: the cache of keys and values, sampling, text in whole characters.
- `comparing`: `compare_models`, base beside tuned on the prompts of the paper's kinds.
- `box`: `ChatBox` for JupyterLab, with script and style sheet. `python -m aurora_lib.chat`: in a terminal.
"""

from aurora_lib.chat import decoding
from aurora_lib.chat.comparing import compare_models, prompts
from aurora_lib.chat.decoding import TextStream
from aurora_lib.chat.session import ChatSession


def __getattr__(name: str):
    """The box only where it is asked for: a terminal, or a GPU machine, may have no widgets."""
    if name != "ChatBox":
        raise AttributeError(name)
    from aurora_lib.chat.box import ChatBox

    return ChatBox
