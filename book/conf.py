"""Sphinx settings of the book: `make book`. Sources are read where they lie, nothing is executed.

Everything a page needs comes with it: formulas become MathML, which browsers draw themselves, and fonts are
the reader's own.
"""

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import jieba
from docutils import nodes
from latex2mathml.converter import convert
from PIL import Image
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
SECONDS, MEMORY = "notebook time [s]", "notebook peak memory [GiB]"  # labels of aurora_lib.course.results

project = html_title = "Aurora"
language = "en"
root_doc = "book/index"
extensions = ["myst_nb", "sphinx.ext.githubpages"]
include_patterns = [
    "book/*.md",
    "README*.md",
    "CONTRIBUTING*.md",
    "data/*.md",
    "data/*/*.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "notebooks/*.md",
    "notebooks/solutions/*.md",
    "notebooks/zh/*.ipynb",
    "notebooks/zh/*.md",
    "results/*/*.md",
    "tools/*/*.md",
]
exclude_patterns = [".*", "runs", "wheelhouse", "book/_build", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the outputs hold static fallbacks, and these scripts would come from a network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["book.css", "live/live.css"]
html_js_files = ["search.js", "live/live.js"]
html_search_language = "zh"  # splits Chinese with jieba, stems English words
jieba.setLogLevel("WARNING")
html_copy_source = html_show_sourcelink = html_show_copyright = html_use_index = False


def is_chinese(page: str) -> bool:
    return page.startswith("notebooks/zh/") or page.endswith(".zh")


def other_language(page: str, pages: set[str]) -> str | None:
    """The same page in the other language, where there is one."""
    if page.startswith("notebooks/zh/"):
        twin = page.replace("/zh/", "/", 1)
    elif page.endswith(".zh"):
        twin = page.removesuffix(".zh")
    else:
        twins = (page.replace("notebooks/", "notebooks/zh/", 1), f"{page}.zh")
        twin = next((name for name in twins if name != page and name in pages), "")
    return twin if twin in pages else None


def costs(folder: str, head: tuple[str, ...], units: tuple[str, str], missing: str) -> str:
    """Markdown table of the recorded time and memory of the notebooks in `folder`, links seen from book/."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for path in sorted((ROOT / folder).glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
        row = [f"[{title}](../{folder}/{path.name})"]
        for where in ("tiny", "h100"):
            record = ROOT / "results" / where / f"{path.name[:2]}.json"
            if record.is_file():
                values = json.loads(record.read_text(encoding="utf-8"))["values"]
                row += [f"{values[SECONDS]:.0f} {units[0]}", f"{values[MEMORY]:.1f} {units[1]}"]
            else:
                row += [missing, missing]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


myst_substitutions = {
    "costs": costs(
        "notebooks",
        ("notebook", "`tiny`, two cores: time", "peak memory", "`full`, one H100: time", "peak memory"),
        ("s", "GiB"),
        "not measured",
    ),
    "costs_zh": costs(
        "notebooks/zh",
        ("notebook", "`tiny`，两个核心：时间", "内存峰值", "`full`，一块 H100：时间", "内存峰值"),
        ("秒", "GiB"),
        "未实测",
    ),
}


def mend_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Links as on GitHub: a folder becomes its README, or else only its words; a page becomes HTML."""
    here = Path(app.env.doc2path(page)).parent

    def is_page(path: Path) -> bool:
        return path.is_relative_to(ROOT) and str(path.relative_to(ROOT).with_suffix("")) in app.env.found_docs

    def folder(link: re.Match) -> str:
        words, target = link.groups()
        path = (here / target).resolve()
        if path.parent == ROOT / "book" / "live":  # it lies there in the book, and a browser shows it
            return f"<a href='{'../' * page.count('/')}_static/live/{path.name}'>{words}</a>"
        if not path.is_dir():
            return link[0]
        return f"[{words}]({target.rstrip('/')}/README.md)" if is_page(path / "README.md") else words

    def tag(link: re.Match) -> str:
        target = Path(link[2])
        return f"{link[1]}{target.with_suffix('.html')}" if is_page((here / target).resolve()) else link[0]

    source[0] = re.sub(r"\[([^\[\]\n]+)\]\(([\w./-]+)\)", folder, source[0])
    source[0] = re.sub(r'(<a href=\\?")([\w./-]+\.(?:md|ipynb))', tag, source[0])


def add_language(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """The page's language in its head: browsers then choose the right glyphs. A link to its twin on top."""
    # else browsers ask a server for a picture that is not there
    context["metatags"] = context.get("metatags", "") + '<link rel="icon" href="data:,">'
    if is_chinese(page):
        context["language"] = "zh-CN"
    twin = other_language(page, app.env.found_docs)
    if twin and doctree is not None:
        label = ("English", "en") if is_chinese(page) else ("中文", "zh-CN")
        link = f'<a href="{context["pathto"](twin)}" lang="{label[1]}" hreflang="{label[1]}">{label[0]}</a>'
        context["body"] = f'<p class="other-language">{link}</p>\n{context["body"]}'


# Islands: in place of `<!-- live: kind -->` a page has the model itself, and texts that it is offered
TEXTS = json.loads((ROOT / "book" / "live" / "texts.json").read_text(encoding="utf-8"))
SAID = json.loads((ROOT / "results" / "tiny" / "live.json").read_text(encoding="utf-8"))["said"]
FILES = {  # what an island fetches -> where it comes from; the scripts of book/live lie beside them
    "tiny": ("config.json", "model.safetensors", "tokenizer.json"),
    "tiny_adapter": ("adapter_config.json", "adapter_model.safetensors"),
}
FRONTS = ("chat/box.js", "chat/box.css", "routing/explorer.js", "routing/explorer.css")
POLICY = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'self'"
)


def add_islands(app: Sphinx, page: str, source: list[str]) -> None:
    """A box for live.js to fill, which knows what loading takes; without JavaScript it shows what was said."""
    size = sum((ROOT / "data" / folder / name).stat().st_size for folder in FILES for name in FILES[folder])

    def island(marker: re.Match) -> str:
        kind, texts = marker[1], html.escape(json.dumps(TEXTS[marker[1]], ensure_ascii=False))
        language = "" if page == root_doc else f" data-language='{'zh' if is_chinese(page) else 'en'}'"
        said = "".join(f"<tr><th>{name}<td>{html.escape(text)}" for name, text in SAID) * (kind == "question")
        inner = f"<table>{said}</table>" if said else ""
        return f"<div class='live' data-live='{kind}' data-bytes='{size}' data-texts='{texts}'{language}>{inner}</div>"

    source[0] = re.sub(r"<!-- live: (\w+) -->", island, source[0])


def finish(app: Sphinx, error: Exception | None) -> None:
    """Bring what the islands fetch, and forbid every page all scripts but those that it came with."""
    if error is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    how = dict(colors=256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    for picture in (out / "_images").glob("*.png"):  # plots need no more colours: a quarter of the bytes
        with Image.open(picture) as image:
            image.convert("RGBA").quantize(**how).save(picture)
    live = out / "_static" / "live"
    shutil.copytree(ROOT / "book" / "live", live, dirs_exist_ok=True)
    for folder, names in FILES.items():
        (live / folder).mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(ROOT / "data" / folder / name, live / folder / name)
    for name in FRONTS:
        shutil.copy(ROOT / "aurora_lib" / name, live)
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        inline = re.findall(r"<script(?![^>]*(?:\bsrc=|/json))[^>]*>(.+?)</script>", text, re.S)
        digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline}
        policy = POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in sorted(digests)))
        meta = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        before = (
            r'<meta charset="utf-8"\s*/?>(<meta http-equiv="Content-Security[^>]*>)?'  # of an earlier build
        )
        page.write_text(re.sub(before, meta, text, count=1), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB, weights included")


def visit_math(self, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math-block">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def add_front_page(app: Sphinx, error: Exception | None) -> None:
    """index.html at the top, where everybody looks for it."""
    if error is None:
        target = app.builder.get_target_uri(root_doc)
        page = f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
        page += f'<link rel="icon" href="data:,"><meta http-equiv="refresh" content="0; url={target}">'
        page += f'<a href="{target}">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.add_config_value("islands", [TEXTS, SAID], "env")  # pages are built anew when these change
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("source-read", mend_links)
    app.connect("source-read", add_islands)
    app.connect("html-page-context", add_language)
    app.connect("build-finished", add_front_page)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}
