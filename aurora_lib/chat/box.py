"""A chat box for JupyterLab: bubbles, streaming, settings. Its front is box.js, its look box.css."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import zip_longest
from pathlib import Path

import anywidget
import traitlets

from aurora_lib.chat.comparing import table
from aurora_lib.chat.session import SETTINGS, ChatSession, checked
from aurora_lib.course import html

PAUSE = 0.07  # seconds from one picture of a growing answer to the next: JupyterLab cannot draw much faster


class ChatBox(anywidget.AnyWidget):
    """A chat box for JupyterLab. `ask`, `stop`, `regenerate`, `reset` and `change` are what its buttons do.

    `sessions` is a ChatSession, or {name: ChatSession}: a question goes to all of them, and each has a column
    for its answers. `questions` become buttons that ask them. Nothing is asked while an answer streams
    (`busy`). Answers are made in a thread that ends with them, since the kernel could not hear the Stop
    button while a cell or a handler runs. Raises ValueError for what are no such sessions.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    questions = traitlets.List().tag(sync=True)
    transcript = traitlets.List().tag(sync=True)  # of {role, said: (speaker, text) of each model}
    answer = traitlets.Dict().tag(sync=True)  # what has been said so far of the next message
    busy = traitlets.Bool(False).tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)

    def __init__(self, sessions: ChatSession | Mapping[str, ChatSession], questions: list[str] = ()):
        named = sessions if isinstance(sessions, Mapping) else {html.NAMES["assistant"]: sessions}
        self.names, self.sessions = list(map(str, named)), list(named.values())
        good = [one for one in self.sessions if isinstance(one, ChatSession)]
        asked = [[said for said in one.messages if said["role"] != "assistant"] for one in good]
        if not good or asked != asked[:1] * len(self.sessions):
            raise ValueError(
                "Give a ChatSession, or {name: ChatSession} that have been asked the same so far."
            )
        super().__init__(questions=list(questions))
        self._stopped, self._worker = threading.Event(), threading.Thread()
        self._show(self._said())
        self.on_msg(self._hear)

    def ask(self, text: str) -> None:
        """Send a message; its answers stream in."""
        if self.busy:
            self.send({"refused": text})  # to be edited, not typed again
        elif text.strip():
            said = [*self._said(), self._turn("user", text)]
            self._start([one.stream(text) for one in self.sessions], said, text)

    def regenerate(self) -> None:
        """Answer the last question anew, in place of the last answer."""
        said = self._said()
        if not self.busy and said and said[-1]["role"] == "assistant":
            self._start([one.regenerate() for one in self.sessions], said[:-1])

    def stop(self) -> None:
        """End the answers after the token that is being made; what was said stays."""
        self._stopped.set()

    def reset(self) -> None:
        """Begin a new conversation."""
        self.stop()
        if self._worker.is_alive():
            self._worker.join()
        for session in self.sessions:
            session.reset()
        self._show(self._said())

    def change(self, name: str, value) -> None:
        """Give the sessions another system line or setting, from the next answer on."""
        if not self.busy:
            trouble = ""
            try:
                value = value if name == "system" else checked(name, value)
                for session in self.sessions:
                    setattr(session, name, value)
            except ValueError as error:
                trouble = str(error)
            self._show(self._said(), self.status, trouble)

    def _hear(self, _, content: dict, buffers) -> None:
        """A message of the page."""
        action = content.pop("action", None)
        if action in ("ask", "regenerate", "stop", "reset", "change"):
            getattr(self, action)(**content)

    def _said(self) -> list[dict]:
        """The conversation so far, as in `transcript`."""
        turns = zip(*(one.messages for one in self.sessions), strict=False)
        return [self._turn(turn[0]["role"], *(one["content"] for one in turn)) for turn in turns]

    def _turn(self, role: str, *texts: str) -> dict:
        """A message of `transcript`: each model says its text, anybody else the first."""
        names = self.names if role == "assistant" else [html.NAMES[role]]
        return {"role": role, "said": list(zip(names, map(html.visible, texts), strict=False))}

    def _start(self, streams: list[Iterator[str]], said: list[dict], question: str = "") -> None:
        self._stopped.clear()
        self._show(said, busy=True, status=self.status)
        self._worker = threading.Thread(target=self._answer, args=(streams, question), daemon=True)
        self._worker.start()

    def _answer(self, streams: list[Iterator[str]], question: str) -> None:
        said, shown, trouble = [""] * len(streams), 0.0, ""
        before = [(one.messages, list(one.messages)) for one in self.sessions]
        try:
            with ExitStack() as stack:
                for stream in streams:
                    stack.enter_context(closing(stream))
                for pieces in zip_longest(*streams, fillvalue=""):  # all answers grow at once
                    said = [text + piece for text, piece in zip(said, pieces, strict=True)]
                    if self._stopped.is_set():
                        break
                    if time.monotonic() - shown >= PAUSE:
                        shown = time.monotonic()
                        with self.hold_sync():
                            self.answer, self.status = self._turn("assistant", *said), self._figures()
        except Exception as error:  # in a thread nobody else would show it
            trouble = " ".join(str(error).split())[:400] or type(error).__name__
            if not question or any(len(now) == len(old) for now, old in before):
                for now, old in before:  # a question is taken by all models or by none
                    now[:] = old
                self.send({"refused": question})
        finally:
            self._show(self._said(), self._figures(), trouble)

    def _show(self, said: list[dict], status: str = "", trouble: str = "", busy: bool = False) -> None:
        first, *others = self.sessions
        offered = ["system", *SETTINGS]
        if others or not hasattr(first.model, "disable_adapter"):  # two models may differ in just that
            offered.remove("adapter")
        with self.hold_sync():
            self.transcript, self.answer = said, self._turn("assistant", *[""] * len(self.names))
            self.busy, self.status, self.trouble = busy, status, trouble
            self.settings = {name: getattr(first, name) for name in offered}

    def _figures(self) -> str:
        """What the last answers cost, a line each; empty before there is one."""
        lines = []
        for name, session in zip(self.names, self.sessions, strict=True):
            stats, (used, room) = session.stats, session.context
            line = f"{name}: " * (len(self.names) > 1) + f"prompt {used} of {room} tokens · "
            line += f"answer {stats.new_tokens} tokens · {stats.tokens_per_second:.0f} tokens/s · "
            line += f"first after {stats.first_token:.2f} s"
            if session.forgotten:
                line += f" · {session.forgotten} old turns no longer fit the context window"
            lines += [line] * (stats.new_tokens > 0)
        return "\n".join(lines)

    def _repr_mimebundle_(self, **kwargs):
        """The box, and beside it the conversation so far for pages without a kernel."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        lines = [one["said"] for one in self._said()]
        shown = table(lines) if lines else "<i>A chat box: it shows where the notebook runs.</i>"
        return data | {"text/plain": "A chat box", "text/html": shown}, metadata
