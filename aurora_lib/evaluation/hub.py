"""C-Eval, CMMLU and MMLU from the Hugging Face hub, laid out as their released folders of CSV files."""

import csv
from functools import cache
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

import pandas as pd
from huggingface_hub import cached_assets_path, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from aurora_lib.evaluation.subjects import released

REPOSITORIES = {"ceval": "ceval/ceval-exam", "cmmlu": "haonan-li/cmmlu", "mmlu": "cais/mmlu"}
SPLITS = {"dev": "dev", "val": "val", "validation": "val", "test": "test"}  # the hub's names -> the folders'


@cache
def download(task: str) -> Path:
    """The folder of a downloaded task (kept in the hub's cache, one for each commit).

    Raises OSError, in one sentence, without a network or where the repository holds something else than expected.
    """
    repository = REPOSITORIES[task]
    wanted = ["*.zip", *(f"*/{split}-*.parquet" for split in SPLITS)]
    try:
        source = snapshot_download(
            repository, repo_type="dataset", allow_patterns=wanted, ignore_patterns=["all/*", "auxiliary*"]
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise OSError(f"{repository} could not be downloaded ({type(error).__name__})") from error
    made = cached_assets_path("aurora", namespace=task, subfolder=Path(source).name)
    if not (made / "complete").is_file():
        lay_out(task, Path(source), made)
        (made / "complete").touch()
    return made


def lay_out(task: str, source: Path, made: Path) -> None:
    """Write `made`/split/subject.csv from a repository's archive, or else from its Parquet files.

    ceval-exam and cmmlu began as one zip with the released files; mmlu, and ceval-exam later, have Parquet files in a
    folder for each subject. Raises OSError where subjects are missing or the archive is damaged.
    """
    for archive in sorted(source.glob("*.zip")):
        try:
            with ZipFile(archive) as files:
                for member in map(PurePosixPath, files.namelist()):
                    if member.suffix == ".csv" and member.parent.name in SPLITS:
                        target = (
                            made / SPLITS[member.parent.name] / member.name
                        )  # two plain names: nothing can climb out
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(files.read(str(member)))
        except BadZipFile as error:
            raise OSError(f"{archive} is damaged ({error}); delete it and download again") from error
    for file in sorted(source.glob("*/*.parquet")):
        subject, split = file.parent.name, SPLITS.get(file.name.split("-")[0])
        if subject in released(task) and split:
            _write(task, pd.read_parquet(file), made / split / _name(task, subject, split))
    missing = [name for name in released(task) if not (made / "dev" / _name(task, name, "dev")).is_file()]
    if missing:
        raise OSError(
            f"{REPOSITORIES[task]} as downloaded lacks {len(missing)} subjects, such as {missing[0]}"
        )


def _name(task: str, subject: str, split: str) -> str:
    return f"{subject}.csv" if task == "cmmlu" else f"{subject}_{split}.csv"


def _write(task: str, table: pd.DataFrame, path: Path) -> None:
    """One split of one subject in the columns of the release; MMLU has no header, and its hub copy numbers answers."""
    if task == "mmlu":
        rows = [
            [row.question, *row.choices, "ABCD"[row.answer] if row.answer in range(4) else row.answer]
            for row in table.itertuples()
        ]
    else:
        rows = [list(table.columns), *table.itertuples(index=False)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
