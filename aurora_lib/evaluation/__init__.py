"""Where a score comes from: notebook 05. Read in this order:

- `benchmarks`: the questions, from the released files of C-Eval, CMMLU and MMLU.
- `fewshot`: a question with its examples as a prompt, and the log-probability of each answer.
- `multiple_choice` (in `evaluate`): from a benchmark to its score with an interval.
- `scores`: two models on the same questions, and `plot`.
- `probes`: facts and sums asked in Chinese and in English, answered freely: `load_probes`, `probe`, `says`;
  `perplexity`: how well a model foresees what it should say.
- `contamination`: benchmark questions among the rows to train on (notebook 02).
"""

from aurora_lib.evaluation import benchmarks, contamination, fewshot, probes, scores
from aurora_lib.evaluation.evaluate import least_seconds, multiple_choice
from aurora_lib.evaluation.probes import load_probes, perplexity, probe, says
from aurora_lib.evaluation.scores import plot
