"""Base and tuned model side by side."""

from aurora_lib.chat_session import ChatSession
from aurora_lib.language import language


def compare(prompts: list[str], base: ChatSession, tuned: ChatSession) -> list[dict[str, str]]:
    """Put each prompt to both sessions afresh: rows of prompt, base, base language, tuned, tuned language."""
    rows = []
    for prompt in prompts:
        row = {"prompt": prompt}
        for name, session in (("base", base), ("tuned", tuned)):
            session.reset()
            row[name] = session.say(prompt).strip()
            row[f"{name} language"] = language(row[name])
        rows.append(row)
    return rows
