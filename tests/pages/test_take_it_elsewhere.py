import importlib.util
import itertools
import re
import sys

import jinja2.sandbox
import pytest

from aurora_lib import chat
from aurora_lib.course.paper import TRAINING
from aurora_lib.course.scale import FULL, ROOT, choose

PAGE = (ROOT / "notebooks" / "take_it_elsewhere.md").read_text(encoding="utf-8")
QUESTION = "日本的首都是哪里？"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def gradio_page():
    spec = importlib.util.spec_from_file_location("gradio_page", ROOT / "tools" / "pages" / "gradio_page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return page


def test_stock_peft_block_runs_and_answers_as_the_course_does(model, tokenizer, monkeypatch, capsys):
    block = blocks("python")[0]
    assert "aurora_lib" not in block
    monkeypatch.chdir(ROOT)
    exec(block, {})
    assert (
        capsys.readouterr().out.strip()
        == chat.ChatSession(model, tokenizer).say(QUESTION).strip()
        == "日本的首都是东京。"
    )


def test_template_block_writes_one_that_plain_jinja_renders_alike(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[1], {})
    source = (tmp_path / "aurora.jinja").read_text(encoding="utf-8")
    roles = ("system", "user", "assistant", "user")
    talk = [{"role": role, "content": f"{role} 你好"} for role in roles]
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(source)
    plain = template.render(messages=talk, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert plain == tokenizer.apply_chat_template(talk, tokenize=False) and plain.count("[INST]") == 2


def test_modelfile_asks_in_the_models_format(tokenizer):
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', PAGE, re.S)
    for system in ("", "请用中文回答。"):
        condition = r"\{\{ if \.System \}\}(.*?)\{\{ end \}\}"
        text = re.sub(condition, r"\1" if system else "", template, flags=re.S)
        text = text.replace("{{ .System }}", system).replace("{{ .Prompt }}", QUESTION)
        asked, _ = text.split("{{ .Response }}")  # what follows is left out while the model answers
        talk = [{"role": "system", "content": system}] * bool(system) + [
            {"role": "user", "content": QUESTION}
        ]
        assert "<s>" + asked == tokenizer.apply_chat_template(talk, tokenize=False)


def test_commands_name_the_courses_base_rank_and_files():
    shell = "\n".join(blocks("bash"))
    assert FULL["base_model"] in shell and f"--revision {FULL['revision']}" in shell
    assert f"--max-lora-rank {TRAINING['LoRA rank'].value} " in shell
    assert all((ROOT / file).is_file() for file in re.findall(r"tools/\w+\.py", shell))
    assert sum("not tried here" in line for line in PAGE.splitlines() if line.startswith("#")) == 2


# the page in the browser


def test_gradio_page_streams_what_a_session_says(gradio_page, model, tokenizer):
    scale = choose({})
    said = list(gradio_page.reply(model, tokenizer, scale, QUESTION, [], True, 0))
    assert said[-1].strip() == "日本的首都是东京。" and len(said) > 3
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(said))
    assert "Tokyo" in list(gradio_page.reply(model, tokenizer, scale, QUESTION, [], False, 0))[-1]


@pytest.mark.parametrize("wrap", [str, lambda text: [{"type": "text", "text": text}]])
def test_gradio_page_takes_the_history_from_the_page_alone(gradio_page, model, tokenizer, wrap, monkeypatch):
    seen, prompt_of = [], chat.ChatSession._prompt

    def spy(session):
        seen.append([(message["role"], message["content"]) for message in session.messages])
        return prompt_of(session)

    monkeypatch.setattr(chat.ChatSession, "_prompt", spy)
    history = [{"role": "user", "content": wrap("你好")}, {"role": "assistant", "content": wrap("1 &lt; 2")}]
    list(gradio_page.reply(model, tokenizer, choose({}), QUESTION, history, True, 0))
    list(gradio_page.reply(model, tokenizer, choose({}), "再见！", [], True, 0))
    assert seen == [[("user", "你好"), ("assistant", "1 < 2"), ("user", QUESTION)], [("user", "再见！")]]


def test_gradio_page_escapes_what_a_model_writes(gradio_page, tokenizer, monkeypatch):
    evil = "<img src=x onerror=alert(1)>\x1b[2J &lt;"
    monkeypatch.setattr(chat.ChatSession, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(chat.ChatSession, "stream", lambda self, text: iter(evil))
    said = list(gradio_page.reply(None, tokenizer, choose({}), QUESTION, [], True, 0))[-1]
    assert said == "&lt;img src=x onerror=alert(1)&gt;␛[2J &amp;lt;"
    assert gradio_page.text_of("assistant", said) == evil.replace("\x1b", "␛")


def test_gradio_page_says_what_cannot_be_answered(gradio_page, model, tokenizer):
    (said,) = gradio_page.reply(model, tokenizer, choose({}), "很长。" * 1000, [], True, 0)
    assert "Shorten it" in said


def test_gradio_page_without_gradio_says_what_to_install(gradio_page, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="pip install gradio"):
        gradio_page.main()


def test_gradio_page_stays_under_sixty_lines():
    assert len((ROOT / "tools" / "pages" / "gradio_page.py").read_text(encoding="utf-8").splitlines()) < 60
