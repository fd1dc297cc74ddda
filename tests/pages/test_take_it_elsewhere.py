import itertools
import re
import sys

import jinja2.sandbox
import pytest

from aurora_lib.chat import ChatSession
from aurora_lib.course.paper import TRAINING
from aurora_lib.course.scale import FULL, ROOT, choose
from tools.pages import gradio_page

PAGE = (ROOT / "notebooks" / "take_it_elsewhere.md").read_text(encoding="utf-8")
QUESTION = "日本的首都是哪里？"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.S | re.M)


def test_stock_peft_block_runs_and_answers_as_the_course_does(model, tokenizer, monkeypatch, capsys):
    block = blocks("python")[0]
    assert "aurora_lib" not in block
    monkeypatch.chdir(ROOT)
    exec(block, {})
    said = ChatSession(model, tokenizer).say(QUESTION).strip()
    assert capsys.readouterr().out.strip() == said == "日本的首都是东京。"


def test_template_block_writes_one_that_plain_jinja_renders_alike(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[1], {})
    source = (tmp_path / "aurora.jinja").read_text(encoding="utf-8")
    told = [dict(role=role, content=f"{role} 你好") for role in ("system", "user", "assistant", "user")]
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(source)
    plain = template.render(messages=told, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert plain == tokenizer.apply_chat_template(told, tokenize=False) and plain.count("[INST]") == 2


def test_modelfile_asks_in_the_models_format(tokenizer):
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', PAGE, re.S)
    for system in ("", "请用中文回答。"):
        condition = r"\{\{ if \.System \}\}(.*?)\{\{ end \}\}"
        text = re.sub(condition, r"\1" if system else "", template, flags=re.S)
        text = text.replace("{{ .System }}", system).replace("{{ .Prompt }}", QUESTION)
        asked, _ = text.split("{{ .Response }}")  # what follows is left out while the model answers
        told = [dict(role="system", content=system), dict(role="user", content=QUESTION)]
        assert "<s>" + asked == tokenizer.apply_chat_template(told[not system :], tokenize=False)


def test_commands_name_the_courses_base_rank_and_files():
    shell = "\n".join(blocks("bash"))
    assert FULL["base_model"] in shell and f"--revision {FULL['revision']}" in shell
    assert f"--max-lora-rank {TRAINING['LoRA rank'].value} " in shell
    assert f"python -m {gradio_page.__name__}" in shell
    assert sum("not tried here" in line for line in PAGE.splitlines() if line.startswith("#")) == 2


def test_gradio_page_streams_what_a_session_says(model, tokenizer):
    said = list(gradio_page.reply(model, tokenizer, choose({}), QUESTION, [], True, 0))
    assert said[-1].strip() == "日本的首都是东京。" and len(said) > 3
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(said))
    assert "Tokyo" in list(gradio_page.reply(model, tokenizer, choose({}), QUESTION, [], False, 0))[-1]


@pytest.mark.parametrize("wrap", [str, lambda text: [{"type": "text", "text": text}]])
def test_gradio_page_takes_the_history_from_the_page_alone(model, tokenizer, wrap, monkeypatch):
    seen = []
    listen = lambda session, text: seen.append(session.messages) or iter("")  # noqa: E731
    monkeypatch.setattr(ChatSession, "stream", listen)
    history = [{"role": "user", "content": wrap("你好")}, {"role": "assistant", "content": wrap("1 &lt; 2")}]
    for turns in (history, []):
        list(gradio_page.reply(model, tokenizer, choose({}), QUESTION, turns, True, 0))
    assert seen == [[{"role": "user", "content": "你好"}, {"role": "assistant", "content": "1 < 2"}], []]


def test_gradio_page_escapes_what_a_model_writes(model, tokenizer, monkeypatch):
    evil = "<img src=x onerror=alert(1)>\x1b[2J &lt;"
    monkeypatch.setattr(ChatSession, "stream", lambda session, text: iter(evil))
    said = list(gradio_page.reply(model, tokenizer, choose({}), QUESTION, [], True, 0))[-1]
    assert said == "&lt;img src=x onerror=alert(1)&gt;␛[2J &amp;lt;"
    assert gradio_page.text_of("assistant", said) == evil.replace("\x1b", "␛")


def test_gradio_page_says_what_cannot_be_answered_and_what_to_install(model, tokenizer, monkeypatch):
    (said,) = gradio_page.reply(model, tokenizer, choose({}), "很长。" * 1000, [], True, 0)
    assert "Shorten it" in said
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="pip install gradio"):
        gradio_page.main()
