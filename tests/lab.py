"""A JupyterLab of this Python behind a headless Chromium, for tests of what readers see and type.

`with lab.notebook(folder, *cells) as page:` runs cells in a new notebook. `lab.missing()` says why that
cannot work here: it needs the `selenium` package, Chromium and its driver (Debian: chromium, chromium-driver,
fonts-noto-cjk).
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import urllib3

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-proxy-server", "--window-size=1200,1000"]
# no news, no update checks: the test talks to nobody but its own server
CONFIG = """
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.expose_app_in_browser = True
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.terminals_enabled = False
"""
# [what, its contrast ratio, the luminance below it] of every text against what is painted below it (WCAG 2)
CONTRASTS = """
const pen = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
function luminance(colors) {
  pen.clearRect(0, 0, 1, 1);
  for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
  const linear = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
    value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
const parts = document.querySelectorAll(arguments[0]);
const inks = [...parts].filter((part) => part.offsetParent).flatMap((part) =>
  (part.placeholder ? ["", "::placeholder"] : [""]).map((of) => [part, getComputedStyle(part, of).color]));
return inks.map(([part, color]) => {
  const below = [];
  for (let one = part; one; one = one.parentElement) below.unshift(getComputedStyle(one).backgroundColor);
  const paper = luminance(below), ink = luminance([...below, color]);
  const ratio = (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05);
  return [`${part.tagName} ${part.className} ${part.parentElement.className}`, ratio, paper];
});
"""
READY = """
const lab = window.jupyterapp, widget = lab && lab.shell.currentWidget;
const session = widget && widget.sessionContext && widget.sessionContext.session;
return Boolean(session && session.kernel && session.kernel.status === "idle");
"""


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def missing() -> str | None:
    """Why no browser test can run here, or None."""
    if importlib.util.find_spec("selenium") is None:
        return "the selenium package is not installed (pip install selenium)"
    if chromium() is None or shutil.which("chromedriver") is None:
        return "no Chromium, or no driver of it (Debian: apt install chromium chromium-driver fonts-noto-cjk)"
    return None


@dataclass
class Page:
    """What the browser shows; `driver` is selenium's."""

    driver: object

    def find(self, css: str):
        """The first element, waited for."""
        return self.wait(lambda: self.all(css), css)[0]

    def all(self, css: str) -> list:
        """The elements that are there now."""
        return self.driver.find_elements("css selector", css)

    def run(self, script: str, *arguments):
        """What this JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, element) -> None:
        """Click it where it is now: a mouse's click misses what moves, as below an output that grows."""
        self.run("arguments[0].focus(); arguments[0].click()", element)

    def html(self, css: str) -> str:
        return self.find(css).get_attribute("innerHTML")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 90):
        """What `condition()` returns once it is true; an error that names `what`, if that never comes."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition(), f"waited for {what}")

    def screenshot(self, path: Path) -> Path:
        self.driver.save_screenshot(str(path))
        return path


@contextmanager
def notebook(folder: Path, *cells: str) -> Iterator[Page]:
    """Run the cells of a notebook in `folder` (new files only there), and look at it.

    A test that fails leaves `failed.png` in the folder, beside JupyterLab's log.
    """
    from selenium import webdriver

    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    code = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=spec), folder / "page.ipynb")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium()
    for flag in [*FLAGS, f"--user-data-dir={folder / 'chromium'}"]:
        options.add_argument(flag)
    with _server(folder) as address:
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        page = Page(webdriver.Chrome(options=options, service=service))
        try:
            page.driver.get(address)
            page.wait(lambda: page.run(READY), "an idle kernel")
            page.run("window.jupyterapp.commands.execute('notebook:run-all-cells')")
            yield page
        except BaseException:
            page.screenshot(folder / "failed.png")
            raise
        finally:
            page.driver.quit()


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """JupyterLab on a free port of this machine; the address of the notebook, token and all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    homes = [f"JUPYTER_{name}_DIR" for name in ("CONFIG", "DATA", "RUNTIME")]
    homes += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    environment = os.environ | {name: str(folder / name) for name in homes}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    config = folder / "JUPYTER_CONFIG_DIR" / "jupyter_lab_config.py"
    config.parent.mkdir()
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", "--ServerApp.port_retries=0"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    kept = dict(cwd=folder, env=environment, start_new_session=True)
    with (folder / "jupyterlab.log").open("wb") as log:
        server = subprocess.Popen(command, **kept, stdout=log, stderr=log)
    try:
        patience = urllib3.Retry(150, backoff_factor=0.1, backoff_max=0.5)
        urllib3.request("GET", f"http://127.0.0.1:{port}/api?token={token}", retries=patience)
        yield f"http://127.0.0.1:{port}/lab/tree/page.ipynb?token={token}"
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels before itself
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
