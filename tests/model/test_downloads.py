"""Downloads from a hub of our own on 127.0.0.1, which drops, truncates and corrupts what it sends."""

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from aurora_lib import downloads
from aurora_lib.course.scale import DATA, FULL
from aurora_lib.data import sources
from aurora_lib.downloads import DownloadError
from aurora_lib.evaluation import benchmarks, subjects
from aurora_lib.evaluation import hub as hub_benchmarks
from aurora_lib.model import adapters, load_tokenizer

COMMIT = FULL["revision"]
MODEL = FULL["base_model"]
MIB = 2**20
CHUNK = 10 * MIB  # what the client writes at a time: what a drop or a kill can cost
NOBODY = "http://127.0.0.1:9"
ONLY_HERE = {"NO_PROXY": "127.0.0.1", "HTTP_PROXY": NOBODY, "HTTPS_PROXY": NOBODY}  # any other address fails
SHARD = "model-00001-of-00002.safetensors"


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Hub(ThreadingHTTPServer):
    """Repositories {"models/owner/name": {file: bytes}}; `faults[file]` are used up by one GET of that file each."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.faults = defaultdict(list)
        self.sent = defaultdict(int)  # bytes of content by file
        self.ranges = defaultdict(list)  # Range headers by file
        self.api_status = 200
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients are killed here on purpose


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.commit = next((part for part in parts if re.fullmatch("[0-9a-f]{40}", part)), COMMIT)
        if parts[0] == "api":
            return self.api(parts)
        if parts[0] == "cdn":  # large files lie elsewhere, as on the hub
            parts = parts[1:]
        elif parts[0] != "datasets":
            parts = ["models", *parts]
        files = self.server.repositories.get("/".join(parts[:3]), {})
        name = "/".join(parts[5:])
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        body, (sha256, git) = files[name], checksums(files[name])
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{git}"', "Accept-Ranges": "bytes"}
        if large(name) and not self.path.startswith("/cdn/"):
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(body))}
            return self.answer(302, b"", headers | linked | {"Location": f"/cdn/{'/'.join(parts)}"})
        self.send(name, body, headers)

    def api(self, parts):
        files = self.server.repositories.get("/".join(parts[1:4]))
        if self.server.api_status != 200:
            return self.answer(self.server.api_status, b"")
        if files is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if parts[4:5] == ["tree"]:
            rows = []
            for name, body in files.items():
                sha256, git = checksums(body)
                lfs = {"lfs": {"oid": sha256, "size": len(body), "pointerSize": 130}} if large(name) else {}
                rows.append({"type": "file", "path": name, "size": len(body), "oid": git, **lfs})
            return self.answer(200, json.dumps(rows).encode())
        siblings = []
        for name, body in files.items():
            sha256, git = checksums(body)
            lfs = {"lfs": {"sha256": sha256, "size": len(body), "pointerSize": 130}} if large(name) else {}
            siblings.append({"rfilename": name, "size": len(body), "blobId": git, **lfs})
        answer = {"id": "/".join(parts[2:4]), "sha": self.commit, "siblings": siblings}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send(self, name, body, headers):
        hub, start, status = self.server, 0, 200
        if self.command == "HEAD":
            return self.answer(200, b"", headers | {"Content-Length": str(len(body))})
        kind, at = hub.faults[name].pop(0) if hub.faults[name] else ("", 0)
        if isinstance(kind, int):
            return self.answer(kind, b"")
        if asked := self.headers["Range"]:
            hub.ranges[name].append(asked)
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers |= {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        if kind == "corrupt":
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        end = at if kind and kind != "corrupt" else len(body)
        length = (at if kind == "short" else len(body)) - start
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()
        for begin in range(start, end, MIB):
            piece = body[begin : min(begin + MIB, end)]
            self.wfile.write(piece)
            hub.sent[name] += len(piece)
        if kind == "stall":
            hub.go_on.wait(15)
        if kind in ("drop", "stall"):
            self.close_connection = True


def checksums(body: bytes) -> tuple[str, str]:
    return hashlib.sha256(body).hexdigest(), hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".zip", ".pt"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub, with the client of this process pointed at it and at an empty cache; any other address is refused."""
    files = {
        "config.json": b'{"model_type": "mixtral"}',
        SHARD: content(1, 24 * MIB),
        "model-00002-of-00002.safetensors": content(2, MIB),
        "tokenizer.json": content(3, 5000),
        "consolidated.00.pt": b"not needed",
        "README.md": b"not needed",
    }
    server = Hub({f"models/{MODEL}": files})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    point_at(monkeypatch, server.url, tmp_path / "cache")
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join(5)
    huggingface_hub.close_session()


def point_at(monkeypatch, url: str, cache: Path) -> None:
    huggingface_hub.close_session()
    for name in ("AURORA_MODEL", "AURORA_DATA", "AURORA_BENCHMARKS", "AURORA_ADAPTER", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ONLY_HERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(cache / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def model_files(hub: Hub) -> dict[str, bytes]:
    return {n: b for n, b in hub.repositories[f"models/{MODEL}"].items() if b != b"not needed"}


def folder(to: Path) -> dict[str, bytes]:
    """What lies in a folder, the unfinished included."""
    return {str(f.relative_to(to)): f.read_bytes() for f in to.rglob("*") if f.is_file()}


def test_what_is_fetched_is_whole_announced_and_not_fetched_again(hub, tmp_path, capsys):
    variables = downloads.fetch(["model"], tmp_path / "to")
    place = tmp_path / "to" / "Mixtral-8x7B-Instruct-v0.1"
    assert folder(place) == model_files(hub)
    assert variables == {"AURORA_MODEL": str(place), "HF_HUB_OFFLINE": "1"}
    printed = capsys.readouterr().out
    assert f"{MODEL}, 4 file(s), 0.03 GB, 0.03 GB to fetch" in printed and "GB free" in printed
    hub.sent.clear()
    (place / SHARD).write_bytes(content(1, 24 * MIB - 1) + b"!")  # spoilt on the disk since
    downloads.fetch(["model"], tmp_path / "to")
    assert folder(place) == model_files(hub) and list(hub.sent) == [SHARD]


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, tmp_path):
    hub.faults[SHARD] = [("drop", 15 * MIB)]
    downloads.fetch(["model"], tmp_path)
    assert folder(tmp_path / "Mixtral-8x7B-Instruct-v0.1") == model_files(hub)
    assert hub.ranges[SHARD] == [f"bytes={CHUNK}-"]
    assert hub.sent[SHARD] == (15 + 24 - 10) * MIB


def test_a_file_cut_short_is_completed_and_one_always_cut_short_is_named(hub, tmp_path):
    hub.faults[SHARD] = [("short", 15 * MIB)]
    downloads.fetch(["model"], tmp_path)
    assert folder(tmp_path / "Mixtral-8x7B-Instruct-v0.1") == model_files(hub)
    assert hub.ranges[SHARD] == [f"bytes={15 * MIB}-"]
    hub.faults[SHARD] = [("short", 15 * MIB), ("short", 20 * MIB)]
    with pytest.raises(DownloadError, match=rf"{SHARD} came from http.* with a wrong length twice"):
        downloads.fetch(["model"], tmp_path / "another")
    kept = folder(tmp_path / "another" / "Mixtral-8x7B-Instruct-v0.1")
    assert SHARD not in kept and "tokenizer.json" in kept and 20 * MIB in map(len, kept.values())


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json"])  # a SHA-256, a git hash
def test_a_corrupted_file_is_found_by_its_checksum_and_never_stays(hub, tmp_path, name):
    hub.faults[name] = [("corrupt", 4000)]
    downloads.fetch(["model"], tmp_path)
    place = tmp_path / "Mixtral-8x7B-Instruct-v0.1"
    assert folder(place) == model_files(hub)
    assert hub.sent[name] == 2 * len(model_files(hub)[name])
    (place / name).unlink()
    hub.faults[name] = [("corrupt", 4000)] * 2
    with pytest.raises(DownloadError, match=f"{name} came from .* wrong checksum twice and was deleted"):
        downloads.fetch(["model"], tmp_path)
    assert folder(place).keys() == model_files(hub).keys() - {name}


def test_a_hub_that_cannot_answer_is_named_in_a_sentence(hub, tmp_path, monkeypatch):
    def sentence() -> str:
        with pytest.raises(DownloadError) as raised:
            downloads.fetch(["model"], tmp_path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    hub.api_status = 503
    assert "answers 503 for mistralai" in sentence() and hub.url in sentence()
    hub.api_status = 204
    assert "not as the hub does" in sentence()
    hub.api_status = 200
    hub.faults["config.json"] = [(503, 0)] * 2
    assert "answers 503 for mistralai/Mixtral-8x7B-Instruct-v0.1/config.json" in sentence()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in sentence()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    monkeypatch.setenv("AURORA_MODEL", "nobody/nothing")
    assert "has no nobody/nothing for you (404)" in sentence()
    monkeypatch.setenv("AURORA_MODEL", "/no/such/folder")
    assert "/no/such/folder is neither a folder here" in sentence()
    monkeypatch.delenv("AURORA_MODEL")
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    assert f"{NOBODY} cannot be reached for mistralai" in sentence() and "(ConnectError)" in sentence()


def test_a_disk_too_small_is_refused_before_and_a_full_one_named(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: usage._replace(free=24 * MIB))
        with pytest.raises(DownloadError, match="too small"):
            downloads.fetch(["model"], tmp_path / "to")
    assert not hub.sent

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads, "http_get", full)
    with pytest.raises(DownloadError, match="The disk is full"):
        downloads.fetch(["model"], tmp_path / "to")


@pytest.mark.parametrize("name", ["../outside.json", "{0}/outside.json", "a/../../outside.json"])
def test_a_name_that_leads_outside_the_folder_is_refused(hub, tmp_path, name):
    hub.repositories[f"models/{MODEL}"][name.format(tmp_path)] = b"{}"
    with pytest.raises(DownloadError, match=r"outside\.json"):
        downloads.fetch(["model"], tmp_path / "to")
    assert not hub.sent


def test_a_killed_download_goes_on_where_it_was(hub, tmp_path):
    command = [
        sys.executable,
        "-m",
        "aurora_lib.downloads",
        "--scale",
        "full",
        "--what",
        "model",
        "--to",
        tmp_path / "to",
    ]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AURORA_", "HF_"))}
    environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **ONLY_HERE}
    hub.faults[SHARD] = [("stall", 22 * MIB)]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        try:
            begun = time.monotonic()
            while max([f.stat().st_size for f in tmp_path.rglob("*.incomplete")], default=0) < 2 * CHUNK:
                assert time.monotonic() - begun < 15 and first.poll() is None
                time.sleep(0.02)
        finally:
            first.send_signal(signal.SIGKILL)
    hub.go_on.set()
    second = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)
    assert second.returncode == 0, second.stderr
    place = tmp_path / "to" / "Mixtral-8x7B-Instruct-v0.1"
    assert folder(place) == model_files(hub)
    assert hub.ranges[SHARD] == [f"bytes={2 * CHUNK}-"] and hub.sent[SHARD] == (22 + 24 - 20) * MIB
    assert f"AURORA_MODEL={place}" in second.stdout.splitlines()[-1]


def everything(hub: Hub) -> None:
    """All repositories of `full`: the tiny model as base, its adapter, the bundled rows, empty subjects."""
    owner = downloads.ADAPTER.partition("@")[0]
    adapter, base = (
        {f.name: f.read_bytes() for f in (DATA / which).iterdir() if f.is_file()}
        for which in ("tiny_adapter", "tiny")
    )
    hub.repositories = {f"models/{MODEL}": base, f"models/{owner}": adapter}
    for released, _, name, where in sources.SOURCES.values():
        hub.repositories[f"datasets/{name}"] = {where + released: b"[]", "other.json": b"not needed"}
    for task, name in hub_benchmarks.REPOSITORIES.items():
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            for subject in subjects.released(task):
                files.writestr(f"dev/{subject}{'' if task == 'cmmlu' else '_dev'}.csv", "a")
        hub.repositories[f"datasets/{name}"] = {"all.zip": archive.getvalue()}


def test_everything_is_found_offline_afterwards_in_the_cache_and_in_a_folder(hub, tmp_path, monkeypatch):
    everything(hub)
    parts = list(downloads.VARIABLES)
    assert downloads.fetch(parts) == {"HF_HUB_OFFLINE": "1", "AURORA_ADAPTER": downloads.ADAPTER}
    sent = dict(hub.sent)
    downloads.fetch(parts)
    assert dict(hub.sent) == sent and "other.json" not in sent
    variables = downloads.fetch(parts, tmp_path / "to")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    sent = dict(hub.sent)
    for source in sources.SOURCES:
        with (
            pytest.warns(UserWarning, match="SHA-1")
            if source in sources.RELEASED
            else contextlib.nullcontext()
        ):
            assert sources.files(source, "hub")[0].read_bytes() == b"[]"
        assert len(sources.files(source, variables["AURORA_DATA"])) == 1
    for task in hub_benchmarks.REPOSITORIES:
        assert (hub_benchmarks.download.__wrapped__(task) / "dev").is_dir()
        assert (benchmarks.folder(task, variables["AURORA_BENCHMARKS"]) / "dev").is_dir()
    assert adapters._place(downloads.ADAPTER)[0] == "wangrongsheng/Aurora"
    assert adapters._place(variables["AURORA_ADAPTER"])[1] is None
    tokenizer = load_tokenizer(MODEL, revision=COMMIT)
    assert tokenizer("北京").input_ids == load_tokenizer(variables["AURORA_MODEL"])("北京").input_ids
    assert dict(hub.sent) == sent


def test_a_part_that_is_local_already_is_not_fetched(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AURORA_MODEL", str(tmp_path))
    assert downloads.fetch(["model"]) == {"HF_HUB_OFFLINE": "1"}
    assert not hub.sent and "is local, nothing to fetch" in capsys.readouterr().out
