"""A chat page in the browser, as the original had: `pip install gradio`, `python -m tools.pages.gradio_page`.

The same session class as everywhere. Every answer is given in a session of its own, built from what the page
sends: visitors share nothing but the weights. It listens on this machine only.
"""

import html
import sys
from collections.abc import Iterator

from aurora_lib import chat
from aurora_lib.course import Scale, choose
from aurora_lib.course.html import visible
from aurora_lib.model import find_adapter, load_adapter, load_model, load_tokenizer


def reply(model, tokenizer, scale: Scale, message: str, history: list, tuned, temperature) -> Iterator[str]:
    """The answer to `message`, longer from piece to piece; `history` is the page's list."""
    settings = dict(max_new_tokens=scale.max_new_tokens, temperature=temperature, adapter=tuned)
    session = chat.ChatSession(model, tokenizer, **settings)
    session.messages = [{"role": turn["role"], "content": text_of(**turn)} for turn in history]
    said = ""
    try:
        for piece in session.stream(message):
            said += piece
            yield html.escape(visible(said))  # Gradio would show HTML, pictures from anywhere included
    except Exception as error:  # too long for the context, for one: the visitor reads why
        yield html.escape(f"[{error}]")


def text_of(role: str, content, **_) -> str:
    """The text of a message of the page (Gradio 5: a string, 6: a list of parts), answers unescaped."""
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return html.unescape(text) if role == "assistant" else text


def main() -> None:
    try:
        import gradio
    except ImportError:
        sys.exit("This page needs Gradio, which the course does not install: pip install gradio")
    scale = choose()
    base = load_model(scale.base_model, **scale.loading)
    model = load_adapter(base, find_adapter(scale))
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)

    def answer(message: str, history: list, tuned: bool, temperature: float) -> Iterator[str]:
        yield from reply(model, tokenizer, scale, message, history, tuned, temperature)

    gradio.ChatInterface(
        answer,
        chatbot=gradio.Chatbot(render_markdown=False, latex_delimiters=[], label=f"Aurora, {scale.name}"),
        additional_inputs=[gradio.Checkbox(True, label="tuned"), gradio.Slider(0, 2, 0, label="temperature")],
        title="Aurora",
    ).launch(server_name="127.0.0.1")


if __name__ == "__main__":
    main()
