"""Talk to a model."""

from aurora_lib.chat.box import widget
from aurora_lib.chat.comparing import compare, prompts
from aurora_lib.chat.session import ChatSession
from aurora_lib.course.html import to_html

__all__ = ["ChatSession", "compare", "prompts", "to_html", "widget"]
