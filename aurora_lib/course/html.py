"""A conversation as HTML that needs no kernel: what readers on GitHub and in an unexecuted notebook see."""

import html

NAMES = {"user": "You", "assistant": "Model", "system": "System"}
COLORS = {
    "user": "background:#d8e8ff;color:#123;margin:4px 0 4px 15%",
    "assistant": "background:#f0f0f0;color:#222;margin:4px 15% 4px 0",
    "system": "background:#fff6d8;color:#432;margin:4px 8%",
}
# escape codes and their like have no picture; Unicode has a sign for each of them
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def visible(text: str) -> str:
    """`text` with control characters (but line breaks and tabs) as signs that can be seen, such as ␛."""
    return text.replace("\r\n", "\n").translate(CONTROLS)


def escaped(text: str) -> str:
    """`text` as HTML that shows it, line breaks and indents too, and never runs it; "…" for an empty one."""
    shown = html.escape(visible(text)) or "…"
    return shown.replace("  ", "&nbsp; ").replace("\n", "<br>")


def to_html(messages: list[dict[str, str]]) -> str:
    """A conversation as bubbles, every text escaped: a model's output is shown and never run.

    Reads well without its style, which GitHub drops: speakers are named, line breaks are elements.
    """
    return "".join(
        f'<div style="{COLORS[m["role"]]};border-radius:8px;padding:6px 10px;overflow-wrap:anywhere">'
        f"<b>{NAMES[m['role']]}:</b> {escaped(m['content'])}</div>"
        for m in messages
    )
