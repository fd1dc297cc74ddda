from html.parser import HTMLParser

from aurora_lib.course.html import to_html

EVIL = "<script>alert('你好')</script> [a](javascript:alert(1)) & \"5 < 6\""


def read(page):
    """Tags with their attributes, and the text between them; line breaks count as text."""
    tags, texts = [], []

    def start(tag, attributes):
        texts.append("\n") if tag == "br" else tags.append((tag, [name for name, _ in attributes]))

    parser = HTMLParser()
    parser.handle_starttag, parser.handle_data = start, texts.append
    parser.feed(page)
    return tags, "".join(texts).replace("\xa0", " ")


def test_every_text_of_a_conversation_is_escaped():
    tags, text = read(to_html([{"role": role, "content": EVIL} for role in ("system", "user", "assistant")]))
    assert tags == [("div", ["style"]), ("b", [])] * 3
    assert text == "".join(f"{name}: {EVIL}" for name in ("System", "You", "Model"))


def test_lines_and_indents_are_kept_without_any_style():
    code = "def f():\n    return '你  好'\n\n\nf()"
    page = to_html([{"role": "assistant", "content": code}])
    assert read(page)[1] == f"Model: {code}" and "\n" not in page  # a page would show a space


def test_escape_codes_become_visible_signs_and_an_empty_answer_a_bubble():
    assert "␛[31mred␇␡\tend" in to_html([{"role": "assistant", "content": "\x1b[31mred\x07\x7f\tend"}])
    assert "…" in to_html([{"role": "assistant", "content": ""}])
