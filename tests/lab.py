"""A JupyterLab of this Python with a headless Chromium in front of it, for tests of what readers see and type.

`with lab.notebook(folder, source) as page:` runs one cell in a new notebook. `lab.missing()` says why that cannot work
here: it needs the `selenium` package, Chromium and its driver (Debian: chromium, chromium-driver, fonts-noto-cjk).
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1200,1000",
)
# no news, no update checks: the test talks to nobody but its own server
CONFIG = """
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.expose_app_in_browser = True
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.terminals_enabled = False
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
    if chromium() is None:
        return "no Chromium found (Debian: apt install chromium chromium-driver fonts-noto-cjk)"
    if shutil.which("chromedriver") is None:
        return "no chromedriver found (Debian: apt install chromium-driver)"
    return None


@dataclass
class Page:
    """What the browser shows; `driver` is selenium's."""

    driver: object

    def find(self, css: str):
        """The first element, waited for."""
        found = []
        self.wait(lambda: found.extend(self.all(css)) or found, css)
        return found[0]

    def all(self, css: str) -> list:
        """The elements that are there now."""
        return self.driver.find_elements("css selector", css)

    def press(self, element) -> None:
        """Click it where it is now: a mouse's click misses what moves, as outputs above a box do while a notebook runs."""
        self.driver.execute_script("arguments[0].focus(); arguments[0].click()", element)

    def html(self, css: str) -> str:
        return self.find(css).get_attribute("innerHTML")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Until `condition()` is true; AssertionError with what the page says, if that never comes."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                said = self.driver.find_element("tag name", "body").text
                raise AssertionError(f"waited {seconds} s for {what}; the page says: {said[-2000:]}")
            time.sleep(0.05)

    def screenshot(self, path: Path) -> Path:
        self.driver.save_screenshot(str(path))
        return path


@contextmanager
def notebook(folder: Path, source: str | Path) -> Iterator[Page]:
    """Run `source`, the only cell of a notebook in `folder` (new files only there), and look at it.

    `source` may be the path of a notebook as well: a copy of it is run. A test that fails leaves `failed.png` in the folder, beside JupyterLab's log.
    """
    from selenium import webdriver

    if isinstance(source, Path):
        shutil.copy(source, folder / "page.ipynb")
    else:
        cell = nbformat.v4.new_code_cell(source)
        spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=spec), folder / "page.ipynb")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium()
    for flag in (*FLAGS, f"--user-data-dir={folder / 'chromium'}"):
        options.add_argument(flag)
    with _server(folder) as address:
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        driver = webdriver.Chrome(options=options, service=service)
        try:
            page = Page(driver)
            driver.get(address)
            page.wait(lambda: driver.execute_script(READY), "an idle kernel", 90)
            driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
            yield page
        except BaseException:
            driver.save_screenshot(str(folder / "failed.png"))
            raise
        finally:
            driver.quit()


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """JupyterLab on a free port of this machine; the address of the notebook, token and all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    homes = {f"JUPYTER_{name}": str(folder / name.lower()) for name in own}
    homes |= {f"JUPYTERLAB_{name}": str(folder / name.lower()) for name in ("SETTINGS_DIR", "WORKSPACES_DIR")}
    homes |= {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    config = folder / "config_dir" / "jupyter_lab_config.py"
    config.parent.mkdir()
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", "--ServerApp.port_retries=0"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    news = folder / "settings_dir" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    log = folder / "jupyterlab.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | homes, stdout=out, stderr=out, start_new_session=True
        )
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + 60
        while True:
            try:
                direct.open(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/page.ipynb?token={token}"
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels before itself
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
