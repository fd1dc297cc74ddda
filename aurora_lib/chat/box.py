"""A chat box for JupyterLab: bubbles, streaming, settings. Its front is box.js, its look box.css."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anywidget
import traitlets

from aurora_lib.chat.session import SETTINGS, ChatSession, checked
from aurora_lib.course import html

PAUSE = 0.07  # seconds from one picture of a growing answer to the next: JupyterLab cannot draw much faster


class ChatBox(anywidget.AnyWidget):
    """A chat box for JupyterLab. `ask`, `stop`, `regenerate`, `reset` and `change` are what its buttons do.

    Nothing is asked while an answer streams (`busy`). The answer is made in a thread that ends with it, since
    the kernel could not hear the Stop button while a cell or a handler runs.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    transcript = traitlets.List().tag(sync=True)  # of {role, content}
    answer = traitlets.Unicode().tag(sync=True)  # what has been said so far of the next message
    busy = traitlets.Bool(False).tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)

    def __init__(self, session: ChatSession):
        super().__init__()
        self.session, self._stopped, self._worker = session, threading.Event(), threading.Thread()
        self._show(session.messages)
        self.on_msg(self._hear)

    def ask(self, text: str) -> None:
        """Send a message; its answer streams in."""
        if self.busy:
            self.send({"refused": text})  # to be edited, not typed again
        elif text.strip():
            asked = {"role": "user", "content": text}
            self._start(self.session.stream(text), [*self.session.messages, asked], text)

    def regenerate(self) -> None:
        """Answer the last question anew, in place of the last answer."""
        if not self.busy and self.session.messages[-1:] and self.session.messages[-1]["role"] == "assistant":
            self._start(self.session.regenerate(), self.session.messages[:-1])

    def stop(self) -> None:
        """End the answer after the token that is being made; what was said stays."""
        self._stopped.set()

    def reset(self) -> None:
        """Begin a new conversation."""
        self._end()
        self.session.reset()
        self._show(self.session.messages)

    def change(self, name: str, value) -> None:
        """Give the session another system line or setting, from the next answer on."""
        if not self.busy:
            trouble = ""
            try:
                setattr(self.session, name, value if name == "system" else checked(name, value))
            except ValueError as error:
                trouble = str(error)
            self._show(self.session.messages, self.status, trouble)

    def _hear(self, _, content: dict, buffers) -> None:
        """A message of the page."""
        action = content.pop("action", None)
        if action in ("ask", "regenerate", "stop", "reset", "change"):
            getattr(self, action)(**content)

    def _start(self, pieces: Iterator[str], messages: list[dict], question: str = "") -> None:
        self._stopped.clear()
        self._show(messages, busy=True, status=self.status)
        self._worker = threading.Thread(target=self._answer, args=(pieces, question), daemon=True)
        self._worker.start()

    def _answer(self, pieces: Iterator[str], question: str) -> None:
        said, shown, trouble, before = "", 0.0, "", len(self.session.messages)
        try:
            with closing(pieces):
                for piece in pieces:
                    said += piece
                    if self._stopped.is_set():
                        break
                    if time.monotonic() - shown >= PAUSE:
                        shown = time.monotonic()
                        with self.hold_sync():
                            self.answer, self.status = html.visible(said), _figures(self.session)
        except Exception as error:  # in a thread nobody else would show it
            trouble = " ".join(str(error).split())[:400] or type(error).__name__
            if question and len(self.session.messages) == before:
                self.send({"refused": question})
        finally:
            self._show(self.session.messages, _figures(self.session), trouble)

    def _end(self) -> None:
        self.stop()
        if self._worker.is_alive():
            self._worker.join()

    def _show(self, messages: list[dict], status: str = "", trouble: str = "", busy: bool = False) -> None:
        offered = ["system", *SETTINGS]
        if not hasattr(self.session.model, "disable_adapter"):
            offered.remove("adapter")
        with self.hold_sync():
            self.transcript = [one | {"content": html.visible(one["content"])} for one in messages]
            self.answer, self.busy, self.status, self.trouble = "", busy, status, trouble
            self.settings = {name: getattr(self.session, name) for name in offered}

    def _repr_mimebundle_(self, **kwargs):
        """The box, and beside it the conversation so far for pages without a kernel."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        box = html.to_html(self.session.messages) or "<i>A chat box: it shows where the notebook runs.</i>"
        return data | {"text/plain": "A chat box", "text/html": box}, metadata


def _figures(session: ChatSession) -> str:
    """What the last answer cost, in a line; empty before there is one."""
    stats, (used, room) = session.stats, session.context
    said = f"prompt {used} of {room} tokens · answer {stats.new_tokens} tokens · "
    said += f"{stats.tokens_per_second:.0f} tokens/s · first after {stats.first_token:.2f} s"
    if session.forgotten:
        said += f" · {session.forgotten} old turns no longer fit the context window"
    return said if stats.new_tokens else ""
