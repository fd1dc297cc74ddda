"""Talk to a model: sessions with history, streaming, a widget, and base beside tuned."""

from aurora_lib.chat_compare import compare
from aurora_lib.chat_session import ChatSession
from aurora_lib.chat_widget import to_html, widget

__all__ = ["ChatSession", "compare", "to_html", "widget"]
