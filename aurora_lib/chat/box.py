"""A chat box for JupyterLab: bubbles, streaming, settings. Its front is box.js, its look box.css."""

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anywidget
import traitlets

from aurora_lib.chat.session import ChatSession
from aurora_lib.course.html import NAMES, to_html, visible

PAUSE = 0.07  # seconds from one picture of a growing answer to the next: JupyterLab cannot draw much faster
# name -> type, least, most
SETTINGS = {
    "system": (str, None, None),
    "temperature": (float, 0, 100),
    "top_p": (float, 0.01, 1),
    "max_new_tokens": (int, 1, 32768),
    "seed": (int, 0, 2**53),  # a page counts no further
}
OPEN = weakref.WeakSet()  # the boxes that have not been closed


class ChatWidget(anywidget.AnyWidget):
    """The chat box of one session. `ask`, `stop`, `regenerate`, `reset` and `change` are what its buttons do.

    Nothing is asked while an answer streams (`busy`). The answer is made in a thread, since the kernel could not hear the
    Stop button while a cell or a handler runs; it ends with the answer.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    transcript = traitlets.List().tag(sync=True)  # of {role, name, content, forgotten}
    speaker = traitlets.Unicode(NAMES["assistant"]).tag(sync=True)
    answer = traitlets.Unicode().tag(sync=True)  # what has been said so far of the next message
    busy = traitlets.Bool(False).tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)

    def __init__(self, session: ChatSession):
        super().__init__()
        for box in list(OPEN):
            if box.session is session:  # the cell was run again: two boxes must not talk in one conversation
                box.close()
        self.session, self._stopped, self._worker = session, threading.Event(), threading.Thread()
        self._show()
        OPEN.add(self)
        self.on_msg(self._hear)

    def ask(self, text: str) -> None:
        """Send a message; its answer streams in."""
        if text.strip() and not self.busy:
            self.send({"taken": text})
            self._start(self.session.stream(text), [*self._bubbles(), _bubble("user", text)], text)

    def regenerate(self) -> None:
        """Answer the last question anew, in place of the last answer."""
        if not self.busy and self.session.messages[-1:] and self.session.messages[-1]["role"] == "assistant":
            self._start(self.session.regenerate(), self._bubbles()[:-1])

    def stop(self) -> None:
        """End the answer after the token that is being made; what was said stays."""
        self._stopped.set()

    def reset(self) -> None:
        """Begin a new conversation."""
        self._end()
        self.session.reset()
        self._show()

    def change(self, name: str, value) -> None:
        """Set `temperature`, `top_p`, `max_new_tokens`, `seed`, `system` or `adapter` of the session, from the next answer on."""
        if not self.busy:
            trouble = ""
            try:
                setattr(self.session, name, _checked(name, value))
            except ValueError as error:
                trouble = str(error)
            self._show(self.status, trouble)
        self.send({"settings": True})  # so that a box with a refused number shows the valid one again

    def close(self) -> None:
        """Leave nothing behind: the answer ends, and with it its thread."""
        if self in OPEN:
            OPEN.discard(self)
            self._end()
        super().close()

    def _hear(self, _, content: dict, buffers) -> None:
        """A message of the page."""
        action = content.pop("action", None)
        if action in ("ask", "regenerate", "stop", "reset", "change"):
            getattr(self, action)(**content)

    def _start(self, pieces: Iterator[str], transcript: list[dict], question: str = "") -> None:
        self._stopped = threading.Event()
        with self.hold_sync():
            self.transcript, self.answer, self.busy, self.trouble = transcript, "", True, ""
        self._worker = threading.Thread(
            target=self._answer, args=(pieces, self._stopped, question), daemon=True
        )
        self._worker.start()

    def _answer(self, pieces: Iterator[str], stopped: threading.Event, question: str) -> None:
        said, shown, trouble, before = "", 0.0, "", len(self.session.messages)
        try:
            with closing(pieces):
                for piece in pieces:
                    said += piece
                    if stopped.is_set():
                        break
                    if time.monotonic() - shown >= PAUSE:
                        shown = time.monotonic()
                        with self.hold_sync():
                            self.answer, self.status = visible(said), _figures(self.session)
        except Exception as error:  # in a thread nobody else would show it
            trouble = _sentence(error)
            if question and len(self.session.messages) == before:  # not taken: to be edited, not typed again
                self.send({"refused": question})
        finally:
            self._show(_figures(self.session), trouble)

    def _end(self) -> None:
        self.stop()
        if self._worker.is_alive():
            self._worker.join()

    def _show(self, status: str = "", trouble: str = "") -> None:
        """Show what the session holds, and that nothing is under way."""
        session = self.session
        names = [*SETTINGS, *["adapter"] * hasattr(session.model, "disable_adapter")]
        with self.hold_sync():
            self.transcript, self.answer, self.busy = self._bubbles(), "", False
            self.status, self.trouble = status, trouble
            self.settings = {name: getattr(session, name) for name in names}

    def _bubbles(self) -> list[dict]:
        bubbles, asked = [], 0
        for message in self.session.messages:
            asked += message["role"] == "user"
            forgotten = message["role"] != "system" and asked <= self.session.forgotten
            bubbles.append(_bubble(message["role"], message["content"], forgotten))
        return bubbles

    def _repr_mimebundle_(self, **kwargs):
        """The box, and beside it the conversation so far for pages without a kernel."""
        made = super()._repr_mimebundle_(**kwargs)
        if made is None:
            return None
        data, metadata = made
        box = to_html(self.session.messages) or "<i>A chat box: it shows where the notebook runs.</i>"
        return data | {"text/plain": "A chat box", "text/html": box}, metadata


def widget(session: ChatSession) -> ChatWidget:
    """A chat box for JupyterLab: Enter sends, Shift+Enter breaks the line; `Stop` ends an answer, settings are folded below."""
    return ChatWidget(session)


def _bubble(role: str, content: str, forgotten: bool = False) -> dict:
    return {"role": role, "name": NAMES[role], "content": visible(content), "forgotten": forgotten}


def _figures(session: ChatSession) -> str:
    """What the last answer cost, in a line; empty before there is one."""
    stats, (used, room) = session.stats, session.context
    if not stats.new_tokens:
        return ""
    said = [
        f"prompt {used} of {room} tokens",
        f"answer {stats.new_tokens} tokens",
        f"{stats.tokens_per_second:.0f} tokens/s",
        f"first after {stats.first_token:.2f} s",
    ]
    if session.forgotten:
        said.append(f"{session.forgotten} old turns no longer fit the context window")
    return " · ".join(said)


def _checked(name: str, value):
    """A setting as the session takes it; ValueError, in a sentence, for one it cannot take."""
    if name == "adapter":
        return bool(value)
    kind, least, most = SETTINGS[name]
    try:
        made = kind(value)
    except (ValueError, OverflowError):
        made = None
    if made is None or (least is not None and not least <= made <= most):
        number = "whole number" if kind is int else "number"
        raise ValueError(f"{name} cannot be {value!r}: give a {number} from {least} to {most}.")
    return made


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
