"""What a scale needs from the Hugging Face hub, fetched beforehand, resumable, and compared with the hub's checksums.

Since 2.x huggingface_hub begins a file again after a kill, and what it fetches over plain HTTP it compares by size only.
Its `http_get` can append, and the hub lists a SHA-256 or git hash of every file: the two are put together here.
"""

import argparse
import errno
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers, filter_repo_objects

from aurora_lib import hub_benchmarks
from aurora_lib.scale import FULL
from aurora_lib.sources import SOURCES

RELEASED_ADAPTER = "wangrongsheng/Aurora@800248aab91edc742e220cdfcf426fab33b746e6"
VARIABLES = {part: f"AURORA_{part.upper()}" for part in ("model", "data", "benchmarks", "adapter")}
GB = 1e9
AGAIN = "What is whole stays: run the same command again"


class DownloadError(RuntimeError):
    """Something could not be fetched; the message says what, and what to do."""


class Wanted(NamedTuple):
    """Files of one repository; `folder` is where they lie below `--to`."""

    part: str
    repository: str
    revision: str | None
    patterns: list[str]
    kind: str
    folder: str


class File(NamedTuple):
    """One file: `checksum` is a SHA-256 (64 digits) or a git blob's SHA-1 (40), `size` is in bytes."""

    name: str
    size: int
    checksum: str
    url: str
    place: Path

    @property
    def partial(self) -> Path:
        return self.place.with_name(f".{self.place.name}.{self.checksum[:12]}.incomplete")


def wanted(parts: list[str], environ: Mapping[str, str] = os.environ) -> Iterator[Wanted]:
    """What `full` reads from the hub, by part; a part that a variable points to a local folder is printed and left out."""
    for part in parts:
        own = environ.get(VARIABLES[part])
        if own and (part in ("data", "benchmarks") or Path(own).expanduser().is_dir()):
            print(f"{part}: {VARIABLES[part]}={own} is local, nothing to fetch")
        elif part == "model":
            name, revision = (own, None) if own else (FULL["base_model"], FULL["revision"])
            patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
            # the folder keeps the model's name, by which adapters know their base
            yield Wanted(part, name, revision, patterns, "model", name.split("/")[-1])
        elif part == "adapter":
            name, _, revision = (own or RELEASED_ADAPTER).partition("@")
            patterns = ["adapter_config.json", "adapter_model.safetensors"]
            yield Wanted(part, name, revision or None, patterns, "model", name.split("/")[-1])
        elif part == "data":
            for source, (released, _, name, folder) in SOURCES.items():
                yield Wanted(part, name, None, [folder + released], "dataset", f"data/{source}")
        else:
            patterns = ["*.zip", *(f"*/{split}-*.parquet" for split in hub_benchmarks.SPLITS)]
            for task, name in hub_benchmarks.REPOSITORIES.items():
                yield Wanted(part, name, None, patterns, "dataset", f"benchmarks/{task}")


def files(want: Wanted, to: Path | None = None) -> list[File]:
    """The files of one repository as the hub lists them, with where they go: the hub's cache, or below `to`."""
    try:
        listing = HfApi().repo_info(
            want.repository, repo_type=want.kind, revision=want.revision, files_metadata=True, timeout=10
        )
    except (OSError, HTTPError, ValueError, KeyError, TypeError) as error:
        raise _explained(error, want.repository) from error
    ignored = [
        "consolidated*",
        "all/*",
        "auxiliary*",
    ]  # the base's second copy, in another format; MMLU's training
    found = filter_repo_objects(
        listing.siblings or [],
        allow_patterns=want.patterns,
        ignore_patterns=ignored,
        key=lambda f: f.rfilename,
    )
    base = to / want.folder if to else _cache(want) / "blobs"
    chosen = {}
    for entry in found:
        checksum = str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
        url = hf_hub_url(want.repository, entry.rfilename, repo_type=want.kind, revision=listing.sha)
        place = base / (entry.rfilename if to else checksum)
        safe = place.resolve().is_relative_to(base.resolve()) and "\\" not in entry.rfilename
        if not safe or entry.size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", checksum):
            raise DownloadError(
                f"{constants.ENDPOINT} lists {entry.rfilename!r} without a usable name or checksum."
            )
        chosen[place] = File(entry.rfilename, entry.size, checksum, url, place)
    if not chosen:
        raise DownloadError(f"{want.repository} holds none of {', '.join(want.patterns)}. Check the name.")
    return list(chosen.values())


def fetch(
    parts: list[str], to: Path | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Fetch and verify what `full` needs, into the hub's cache or below `to`; the variables to set, and their values.

    Prints sizes and free disk before anything is fetched. Whole and partial files are kept and used again; a file that
    does not match the hub's checksum is fetched once more. Raises DownloadError, in a sentence.
    """
    plan = {want: files(want, to) for want in wanted(parts, environ)}
    for want, found in plan.items():
        size, rest = sum(file.size for file in found) / GB, sum(map(_missing, found)) / GB
        print(f"{want.part}: {want.repository}, {len(found)} files, {size:.2f} GB, {rest:.2f} GB to fetch")
    base = to or Path(constants.HF_HUB_CACHE)
    variables = {"HF_HUB_OFFLINE": "1"}
    try:
        base.mkdir(parents=True, exist_ok=True)
        missing = sum(_missing(file) for found in plan.values() for file in found)
        free = shutil.disk_usage(base).free
        print(f"in all {missing / GB:.2f} GB to fetch; {base} has {free / GB:.2f} GB free", flush=True)
        if missing > free:
            raise DownloadError(f"{base} is too small. Make room, or name another disk with --to or HF_HOME.")
        for want, found in plan.items():
            _complete(want, found)
            if to and want.part == "benchmarks":
                hub_benchmarks.lay_out(Path(want.folder).name, to / want.folder, to / want.folder)
            elif not to:
                _link(want, found)
            print(f"{want.repository}: {len(found)} files match the hub's checksums", flush=True)
            if to:
                folder = want.folder.split("/")[0] if want.kind == "dataset" else want.folder
                variables[VARIABLES[want.part]] = str(to.resolve() / folder)
            elif want.part == "adapter":
                variables[VARIABLES["adapter"]] = "@".join(filter(None, (want.repository, want.revision)))
    except (OSError, HTTPError) as error:
        raise _explained(error, str(base)) from error
    return variables


def _complete(want: Wanted, found: list[File]) -> None:
    """Fetch what is missing or damaged; what failed is tried once more, after the others."""
    failed = dict.fromkeys(found)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            errors = zip(failed, pool.map(_get, failed), strict=True)
            failed = {file: error for file, error in errors if error}
    for file, error in failed.items():
        raise _explained(error, f"{want.repository}/{file.name}") from error


def _get(file: File) -> Exception | None:
    """Complete and check one file, and say what went wrong; a partial file stays, a wrong one does not."""
    try:
        if file.place.is_file():
            if _intact(file.place, file):
                return None
            file.place.unlink()
        file.place.parent.mkdir(parents=True, exist_ok=True)
        with file.partial.open("ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
            headers = build_hf_headers() | {
                "Accept-Encoding": "identity"
            }  # ranges count the file's own bytes
            http_get(
                file.url,
                stream,
                resume_size=stream.seek(0, os.SEEK_END),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
            )
        if _intact(file.partial, file):
            file.partial.replace(file.place)
            return None
        file.partial.unlink()
        return DownloadError(
            f"{file.name} came from {constants.ENDPOINT} with a wrong checksum twice and was deleted. Try later or from "
            "another mirror (HF_ENDPOINT)."
        )
    except (OSError, HTTPError, ValueError) as error:
        return error


def _missing(file: File) -> int:
    """Bytes still to fetch, by sizes alone."""
    if file.place.is_file() and file.place.stat().st_size == file.size:
        return 0
    return max(0, file.size - (file.partial.stat().st_size if file.partial.is_file() else 0))


def _intact(path: Path, file: File) -> bool:
    if path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256() if len(file.checksum) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest() == file.checksum


def _cache(want: Wanted) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=want.repository, repo_type=want.kind)


def _link(want: Wanted, found: list[File]) -> None:
    """Let the client make its snapshot of the files, which finds them in its cache; it must be these that it links."""
    names = [file.name for file in found]
    snapshot = snapshot_download(
        want.repository, repo_type=want.kind, revision=want.revision, allow_patterns=names
    )
    for file in found:
        linked = Path(snapshot) / file.name
        if not linked.samefile(file.place) and not _intact(linked, file):
            raise DownloadError(f"{linked} is not the file that the hub lists. Delete it. {AGAIN}.")


def _explained(error: Exception, what: str) -> DownloadError:
    """The error as a sentence."""
    hub = constants.ENDPOINT
    if isinstance(error, DownloadError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(f"{what} cannot be fetched while HF_HUB_OFFLINE=1 is set. Unset it.")
    if isinstance(error, GatedRepoError):
        return DownloadError(f"{what} asks for consent: give it on {hub}, then log in with `hf auth login`.")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403, 404):
            return DownloadError(
                f"{hub} has no {what} for you ({status}). Check name and revision, or HF_ENDPOINT."
            )
        return DownloadError(
            f"{hub} answers {status} for {what}. Wait, or set HF_ENDPOINT to a mirror. {AGAIN}."
        )
    if isinstance(error, HTTPError):
        return DownloadError(
            f"{hub} could not be reached for {what} ({type(error).__name__}). Check the network, or set HF_ENDPOINT to a "
            f"mirror. {AGAIN}."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"The disk is full: {what}. Make room, or set HF_HOME or --to to another. {AGAIN}."
        )
    if str(error).startswith("Consistency check failed"):  # the client's words for a wrong length
        return DownloadError(
            f"{what} came from {hub} with a wrong length twice. {AGAIN}, or set HF_ENDPOINT to a mirror."
        )
    if isinstance(error, OSError):
        return DownloadError(f"{what}: {error}. {AGAIN}.")
    return DownloadError(
        f"{hub} answers, but not as the hub does ({type(error).__name__}). Check HF_ENDPOINT."
    )


def main() -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.downloads", description=fetch.__doc__.split("\n")[0]
    )
    parser.add_argument("--scale", choices=["tiny", "full"], default="full")
    parser.add_argument(
        "--what", nargs="+", choices=list(VARIABLES), default=["model", "data", "benchmarks"], metavar="PART"
    )
    parser.add_argument(
        "--to", type=Path, help="a folder of plain files, instead of the hub's cache (HF_HOME)"
    )
    options = parser.parse_args()
    if options.scale == "tiny":
        parser.exit(0, "Nothing to fetch: all that `tiny` needs is in data/.\n")
    # at once, without waiting for four files: what is partial goes on anyway
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, f"\nStopped. {AGAIN}.\n".encode()), os._exit(130)))
    try:
        variables = fetch(options.what, options.to and options.to.expanduser())
    except DownloadError as error:
        parser.exit(1, f"{error}\n")
    setting = " ".join(f"{name}={value}" for name, value in variables.items())
    print(f"All is here and checked. To work without a network: export AURORA_SCALE=full {setting}")


if __name__ == "__main__":
    main()
