"""Where a score comes from."""

from aurora_lib.evaluation.abilities import SkillResult, skills
from aurora_lib.evaluation.benchmarks import TASKS, EvalError, load_questions, load_subjects
from aurora_lib.evaluation.evaluate import multiple_choice
from aurora_lib.evaluation.fewshot import cloze_prompt, letter_ids, letter_prompt
from aurora_lib.evaluation.probes import OUTCOMES, ProbeResult, answers, load_probes, probe, says
from aurora_lib.evaluation.scores import CATEGORIES, EvalResult, Paired, Score, paired, plot, wilson
from aurora_lib.model.batching import encode

__all__ = [
    "CATEGORIES",
    "OUTCOMES",
    "TASKS",
    "EvalError",
    "EvalResult",
    "Paired",
    "ProbeResult",
    "Score",
    "SkillResult",
    "answers",
    "cloze_prompt",
    "encode",
    "letter_ids",
    "letter_prompt",
    "load_probes",
    "load_questions",
    "load_subjects",
    "multiple_choice",
    "paired",
    "plot",
    "probe",
    "says",
    "skills",
    "wilson",
]
