"""Print the commands that fetch and check what `full` needs: `python -m tools.pages.downloads`.

`docs/downloads.md` shows and explains them; a test holds that page to what is printed here.
"""

import shutil
from pathlib import Path

from huggingface_hub import constants

from aurora_lib.course.scale import FULL, PRESETS
from aurora_lib.data import sources
from aurora_lib.evaluation import benchmarks

ADAPTER = FULL["shipped"].split("@")  # the authors' own
MODEL_FILES = "--include '*.safetensors' --include '*.json' --include '*.jinja' --include tokenizer.model"
BENCHMARK_FILES = "--include '*.zip' --include '*/*.parquet' --exclude 'all/*' --exclude 'auxiliary*'"


def commands() -> list[str]:
    """Every download, then every check."""
    wanted = {}
    for preset in (FULL, PRESETS["mid"]):
        model = f"{preset['base_model']} --revision {preset['revision']}"
        wanted[model] = f"{MODEL_FILES} --exclude 'consolidated*'"
    for source in sources.SOURCES.values():
        wanted[f"{source['repository']} --type dataset"] = source["folder"] + source["released"]
    for repository in benchmarks.REPOSITORIES.values():
        wanted[f"{repository} --type dataset"] = BENCHMARK_FILES
    wanted["{} --revision {}".format(*ADAPTER)] = "adapter_config.json adapter_model.safetensors"
    downloads = [f"hf download {what} {files}" for what, files in wanted.items()]
    return downloads + [f"hf cache verify {what}" for what in wanted]


def main() -> None:
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    print(f"# {free / 1e9:,.0f} GB are free for {cache} (docs/downloads.md says what is needed)")
    print(*commands(), sep="\n")


if __name__ == "__main__":
    main()
