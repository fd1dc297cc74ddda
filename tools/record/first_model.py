"""Record the load of the first model that the course shipped: `python -m tools.record.first_model`.

It was trained with the load-balancing loss pooled over layers. It is read from the repository's history, so
a clone without history cannot record it. `results/tiny/first_model.json`; notebook 01 shows it.
"""

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

from aurora_lib import evaluation, routing
from aurora_lib.course import results, write_whole
from aurora_lib.course.scale import ROOT
from aurora_lib.model import load_model, load_tokenizer

COMMIT = "41d8322"
RECORD = results.RECORDED / "tiny" / "first_model.json"


def main() -> None:
    packed = subprocess.check_output(["git", "archive", COMMIT, "data/tiny"], cwd=ROOT)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        model = Path(folder) / "data" / "tiny"
        base, tokenizer = load_model(model, device="cpu"), load_tokenizer(model)
        texts = [fact[side]["answer"] for fact in evaluation.load_probes() for side in ("zh", "en")]
        load = routing.expert_load(routing.trace_many(base, tokenizer, texts))
    shares = [[round(share, 4) for share in layer] for layer in load.tolist()]
    write_whole(RECORD, json.dumps({"commit": COMMIT, "texts": len(texts), "load": shares}, indent=1) + "\n")
    print(load.mul(100).round(decimals=1))


if __name__ == "__main__":
    main()
