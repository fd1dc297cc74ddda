"""Sphinx settings of the book: `make book`. Sources are read where they lie, nothing is executed.

Everything a page needs comes with it: formulas become MathML, which browsers draw themselves, and fonts are
the reader's own.
"""

import json
import re
from pathlib import Path

import jieba
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
SECONDS, MEMORY = "notebook time [s]", "notebook peak memory [GiB]"  # labels of aurora_lib.course.results

project = html_title = "Aurora"
language = "en"
root_doc = "book/index"
extensions = ["myst_nb"]
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
html_css_files = ["book.css"]
html_js_files = ["search.js"]
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
        page += f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("source-read", mend_links)
    app.connect("html-page-context", add_language)
    app.connect("build-finished", add_front_page)
    return {"parallel_read_safe": True}
