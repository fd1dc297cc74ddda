"""A conversation as HTML, and a chat box for JupyterLab."""

import html
import threading
import warnings

from aurora_lib.chat_session import ChatSession

STYLE = {
    "user": "background:#d8e8ff;color:#123;margin:4px 4px 4px 20%;text-align:right",
    "assistant": "background:#f0f0f0;color:#222;margin:4px 20% 4px 4px",
    "system": "background:#fff6d8;color:#432;margin:4px 10%;font-size:85%",
}


NAMES = {"user": "You", "assistant": "Model", "system": "System"}


def to_html(messages: list[dict[str, str]]) -> str:
    """A conversation as bubbles. Every text is escaped: a model's output is shown and never run.

    Speakers are named, since GitHub drops the colours.
    """
    return "".join(
        f'<div style="{STYLE[m["role"]]};border-radius:8px;padding:6px 10px;white-space:pre-wrap">'
        f"<b>{NAMES[m['role']]}:</b> {html.escape(m['content']) or '…'}</div>"
        for m in messages
    )


def widget(session: ChatSession):
    """A chat box for JupyterLab: type, press Enter, watch the answer stream in; `Stop` ends it, `Reset` starts over."""
    import ipywidgets

    transcript = ipywidgets.HTML(value=to_html(session.messages))
    entry = ipywidgets.Text(placeholder="你好 / Hello", layout={"width": "60%"})
    send, stop, reset = (ipywidgets.Button(description=name) for name in ("Send", "Stop", "Reset"))
    note = ipywidgets.Label()
    stopped = threading.Event()
    worker = [threading.Thread()]

    def answer(text: str) -> None:
        said, pieces = "", session.stream(text)
        try:
            for piece in pieces:
                said += piece
                transcript.value = to_html([*session.messages, {"role": "assistant", "content": said}])
                if stopped.is_set():
                    break
            note.value = (
                f"{session.forgotten} old turns no longer fit the context" if session.forgotten else ""
            )
        except Exception as error:  # in a thread nobody else would show it
            note.value = str(error)
        finally:
            pieces.close()
            transcript.value = to_html(session.messages)

    def on_send(_) -> None:
        if entry.value.strip() and not worker[0].is_alive():
            text, entry.value = entry.value, ""
            stopped.clear()
            # a thread, because the kernel could not hear the Stop button while this handler runs
            worker[0] = threading.Thread(target=answer, args=(text,), daemon=True)
            worker[0].start()

    def on_stop(_=None) -> None:
        stopped.set()
        if worker[0].is_alive():
            worker[0].join()

    def on_reset(_) -> None:
        on_stop()
        session.reset()
        transcript.value, note.value = to_html(session.messages), ""

    send.on_click(on_send)
    stop.on_click(on_stop)
    reset.on_click(on_reset)
    with warnings.catch_warnings():
        # the suggested replacement also fires when the box merely loses focus
        warnings.simplefilter("ignore", DeprecationWarning)
        entry.on_submit(on_send)
    return ipywidgets.VBox([transcript, ipywidgets.HBox([entry, send, stop, reset]), note])
