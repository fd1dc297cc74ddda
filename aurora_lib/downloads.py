"""What `full` needs from the Hugging Face hub, fetched beforehand, resumable, and compared with the hub's checksums.

huggingface_hub 2 begins a file again after a kill, and what it fetches over plain HTTP it compares by size only. But its
`http_get` can append, and the hub lists a SHA-256 or a git hash of every file: the two are put together here.
"""

import argparse
import errno
import hashlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, errors, hf_hub_url, snapshot_download
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, filter_repo_objects

from aurora_lib.course.scale import FULL
from aurora_lib.data.sources import SOURCES
from aurora_lib.evaluation import hub as hub_benchmarks

ADAPTER = "wangrongsheng/Aurora@800248aab91edc742e220cdfcf426fab33b746e6"  # the authors' own
VARIABLES = {part: f"AURORA_{part.upper()}" for part in ("model", "data", "benchmarks", "adapter")}
PATTERNS = {
    "model": ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"],
    "benchmarks": ["*.zip", *(f"*/{split}-*.parquet" for split in hub_benchmarks.SPLITS)],
    "adapter": ["adapter_config.json", "adapter_model.safetensors"],
}
IGNORED = [
    "consolidated*",
    "all/*",
    "auxiliary*",
]  # the base once more in another format; MMLU once more, its training
AGAIN = "What has come stays: run the same command again"
MIRROR = "set HF_ENDPOINT to a mirror"
FAILURES = (OSError, errors.HTTPError)
NO_HUB = (ValueError, KeyError, TypeError)  # what the client makes of an answer that is no listing
GB = 1e9


class DownloadError(RuntimeError):
    """Something could not be fetched; the message says what, and what to do."""


class Wanted(NamedTuple):
    """Some files of one repository; `folder` is where they go below `--to`."""

    part: str
    repository: str
    revision: str | None
    patterns: list[str]
    folder: str

    @property
    def kind(self) -> str:
        return "dataset" if self.part in ("data", "benchmarks") else "model"


class File(NamedTuple):
    """One file: `size` in bytes, `checksum` a SHA-256 (64 digits) or a git blob's SHA-1 (40)."""

    name: str
    size: int
    checksum: str
    url: str
    place: Path

    @property
    def partial(self) -> Path:
        return self.place.with_name(f".{self.place.name}.{self.checksum[:12]}.incomplete")

    @property
    def missing(self) -> int:
        """Bytes still to fetch, by sizes alone."""
        there = [path.stat().st_size for path in (self.place, self.partial) if path.is_file()]
        return self.size - max((size for size in there if size <= self.size), default=0)


def wanted(parts: list[str], environ: Mapping[str, str] = os.environ) -> Iterator[Wanted]:
    """What `full` reads from the hub; a part that its variable points to a local folder is printed and left out."""
    for part in parts:
        own = environ.get(VARIABLES[part])
        if own and (part in ("data", "benchmarks") or Path(own).expanduser().is_dir()):
            print(f"{part}: {VARIABLES[part]}={own} is local, nothing to fetch")
        elif part == "data":
            for source, (released, _, name, folder) in SOURCES.items():
                yield Wanted(part, name, None, [folder + released], f"data/{source}")
        elif part == "benchmarks":
            for task, name in hub_benchmarks.REPOSITORIES.items():
                yield Wanted(part, name, None, PATTERNS[part], f"benchmarks/{task}")
        else:
            pinned = ADAPTER if part == "adapter" else f"{FULL['base_model']}@{FULL['revision']}"
            name, _, revision = (own or pinned).partition("@")
            # the folder keeps the repository's name, by which an adapter knows its base
            yield Wanted(part, name, revision or None, PATTERNS[part], name.split("/")[-1])


def files(want: Wanted, to: Path | None = None) -> list[File]:
    """The files as the hub lists them, and where they go: below `to`, or into the hub's cache. Raises DownloadError."""
    try:
        listing = HfApi().repo_info(
            want.repository, repo_type=want.kind, revision=want.revision, files_metadata=True, timeout=10
        )
    except (*FAILURES, *NO_HUB) as error:
        raise _explained(error, want.repository) from error
    by_name = {entry.rfilename: entry for entry in listing.siblings or []}
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=want.repository, repo_type=want.kind)
    base = to / want.folder if to else cache / "blobs"
    chosen = {}
    for name in filter_repo_objects(by_name, allow_patterns=want.patterns, ignore_patterns=IGNORED):
        entry = by_name[name]
        checksum = str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
        inside = (base / name).resolve().is_relative_to(base.resolve()) and "\\" not in name
        if not inside or entry.size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", checksum):
            raise DownloadError(
                f"{constants.ENDPOINT} lists {name!r} without a usable name, size or checksum."
            )
        url = hf_hub_url(want.repository, name, repo_type=want.kind, revision=listing.sha)
        place = base / (name if to else checksum)
        chosen[place] = File(name, entry.size, checksum, url, place)
    if not chosen:
        raise DownloadError(f"{want.repository} holds none of {', '.join(want.patterns)}. Check the name.")
    return list(chosen.values())


def fetch(
    parts: list[str], to: Path | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Fetch and verify what `full` needs, into the hub's cache or below `to`; the variables to set for working offline.

    Prints sizes and free disk first. Whole and partial files are kept and used again; a file that does not match the
    hub's checksum is fetched once more. Raises DownloadError, in a sentence.
    """
    plan = [(want, files(want, to)) for want in wanted(parts, environ)]
    for want, found in plan:
        size, missing = sum(file.size for file in found) / GB, sum(file.missing for file in found) / GB
        print(
            f"{want.part}: {want.repository}, {len(found)} file(s), {size:.2f} GB, {missing:.2f} GB to fetch"
        )
    base = to or Path(constants.HF_HUB_CACHE)
    variables = {"HF_HUB_OFFLINE": "1"}
    try:
        base.mkdir(parents=True, exist_ok=True)
        missing, free = sum(file.missing for _, found in plan for file in found), shutil.disk_usage(base).free
        print(f"in all {missing / GB:.2f} GB to fetch; {base} has {free / GB:.2f} GB free", flush=True)
        if missing > free:
            raise DownloadError(f"{base} is too small. Make room, or name another disk with --to or HF_HOME.")
        for want, found in plan:
            _complete(want, found)
            if to:
                variables[VARIABLES[want.part]] = str(to.resolve() / want.folder.split("/")[0])
                if want.part == "benchmarks":
                    hub_benchmarks.lay_out(Path(want.folder).name, to / want.folder, to / want.folder)
            else:
                _link(want, found)
                if want.part == "adapter":
                    variables[VARIABLES["adapter"]] = "@".join(filter(None, (want.repository, want.revision)))
            print(f"{want.repository}: {len(found)} file(s) match the hub's checksums", flush=True)
    except FAILURES as error:
        raise _explained(error, str(base)) from error
    return variables


def _complete(want: Wanted, found: list[File]) -> None:
    """Fetch what is missing or damaged; what failed is tried once more, after the others."""
    failed = dict.fromkeys(found)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            tried = list(zip(failed, pool.map(_get, failed), strict=True))
            failed = {file: error for file, error in tried if error}
    for file, error in failed.items():
        raise _explained(error, f"{want.repository}/{file.name}") from error


def _get(file: File) -> Exception | None:
    """Complete and check one file, and say what went wrong; a partial file stays, a wrong one does not."""
    lock = Path(
        constants.HF_HUB_CACHE, ".locks", hashlib.sha1(str(file.place).encode()).hexdigest() + ".lock"
    )
    try:
        for folder in (lock.parent, file.place.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # two runs must not append to the same file
            if file.place.is_file() and _intact(file.place, file):
                return None
            file.place.unlink(missing_ok=True)
            with file.partial.open("ab") as stream:
                if stream.tell() > file.size:
                    stream.truncate(0)
                there = stream.seek(0, os.SEEK_END)
                headers = build_hf_headers() | {
                    "Accept-Encoding": "identity"
                }  # so that ranges count the file's bytes
                http_get(file.url, stream, resume_size=there, headers=headers, expected_size=file.size)
            if _intact(file.partial, file):
                file.partial.replace(file.place)
                return None
            file.partial.unlink()
        wrong = f"{file.name} came from {constants.ENDPOINT} with a wrong checksum twice and was deleted."
        return DownloadError(f"{wrong} Wait, or {MIRROR}. {AGAIN}.")
    except FAILURES as error:
        return error


def _intact(path: Path, file: File) -> bool:
    if path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256() if len(file.checksum) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest() == file.checksum


def _link(want: Wanted, found: list[File]) -> None:
    """Have the client make its snapshot, for which it finds the files in its cache; it must be these that it links."""
    names = [file.name for file in found]
    kind, revision = want.kind, want.revision
    snapshot = snapshot_download(want.repository, repo_type=kind, revision=revision, allow_patterns=names)
    for file in found:
        linked = Path(snapshot, file.name)
        if not linked.samefile(file.place) and not _intact(linked, file):
            raise DownloadError(f"{linked} is not the file that the hub lists. Delete it. {AGAIN}.")


def _explained(error: Exception, what: str) -> DownloadError:
    """The error as a sentence: the first that applies."""
    if isinstance(error, DownloadError):
        return error
    hub, kind = constants.ENDPOINT, type(error).__name__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    network = isinstance(error, errors.HTTPError)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    cut = str(error).startswith("Consistency check failed")  # the client's words for a wrong length
    sentences = (
        (isinstance(error, errors.OfflineModeIsEnabled), f"{what} needs the network: unset HF_HUB_OFFLINE."),
        (
            isinstance(error, errors.HFValidationError),
            f"{what} is neither a folder here nor a name on a hub.",
        ),
        (
            isinstance(error, errors.GatedRepoError),
            f"{what}: accept its terms on {hub}, then `hf auth login`.",
        ),
        (
            status in (401, 403, 404),
            f"{hub} has no {what} for you ({status}). Check the name and HF_ENDPOINT.",
        ),
        (status, f"{hub} answers {status} for {what}. Wait, or {MIRROR}. {AGAIN}."),
        (network, f"{hub} cannot be reached for {what} ({kind}). Check the network, or {MIRROR}. {AGAIN}."),
        (cut, f"{what} came from {hub} with a wrong length twice. Wait, or {MIRROR}. {AGAIN}."),
        (full, f"The disk is full: {what}. Make room, or name another with --to or HF_HOME. {AGAIN}."),
        (isinstance(error, OSError), f"{what}: {' '.join(str(error).split())}. {AGAIN}."),
        (True, f"{hub} answers for {what}, but not as the hub does ({kind}). Check HF_ENDPOINT."),
    )
    return DownloadError(next(sentence for applies, sentence in sentences if applies))


def main() -> None:
    """The command line; see `--help`."""
    usual = ["model", "data", "benchmarks"]
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.downloads", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--scale", choices=["tiny", "full"], default="full")
    parser.add_argument("--what", nargs="+", choices=list(VARIABLES), default=usual, help=f"default: {usual}")
    parser.add_argument("--to", type=Path, help="a folder of plain files, instead of the hub's cache")
    options = parser.parse_args()
    if options.scale == "tiny":
        parser.exit(0, "Nothing to fetch: all that `tiny` needs is in data/.\n")
    # at once, without waiting for the files in flight: what is partial goes on anyway
    stopped = f"\nStopped. {AGAIN}.\n".encode()
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, stopped), os._exit(130)))
    try:
        variables = fetch(options.what, options.to and options.to.expanduser())
    except DownloadError as error:
        parser.exit(1, f"{error}\n")
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    print(f"All is here and checked. To work without a network: export AURORA_SCALE=full {settings}")


if __name__ == "__main__":
    main()
