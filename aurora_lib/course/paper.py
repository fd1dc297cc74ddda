"""Every number the Aurora paper and its repository state, as data, each with its source.

Sources: "paper" is arXiv 2312.14557. "early README" and "README" are two versions of the repository's
README: the early one names checkpoint 3000 and comments out the category scores, the later one adds C-Eval
and generation scores. "released adapter" is wangrongsheng/Aurora on the hub, revision
800248aab91edc742e220cdfcf426fab33b746e6.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One published number, with its unit and the place it was published."""

    value: float
    unit: str
    source: str


CONVERSATIONS = {
    "alpaca_data_zh_51k, single round": Figure(51_461, "conversations", "paper, Table 1"),
    "alpaca_gpt4_data_zh, single round": Figure(48_818, "conversations", "paper, Table 1"),
    "sharegpt_70k, single round": Figure(41_066, "conversations", "paper, Table 1"),
    "sharegpt_70k, multiple rounds": Figure(35_333, "conversations", "paper, Table 1"),
    "total": Figure(176_678, "conversations", "paper, section 2 and Table 1"),
}
CATEGORIES = Figure(20, "categories", "paper, Figure 2")

TRAINING = {
    "learning rate": Figure(5e-5, "", "paper, section 4.1"),
    "epochs": Figure(3, "epochs", "paper, section 4.1"),
    "save every": Figure(1000, "steps", "paper, section 4.1"),
    "batch per device": Figure(2, "conversations", "README, training command"),
    "gradient accumulation": Figure(4, "batches", "README, training command"),
    "quantization": Figure(4, "bits", "README, training command"),
    "LoRA rank": Figure(8, "", "LLaMA-Factory default at the time; the command does not set it"),
    "LoRA alpha": Figure(16, "", "LLaMA-Factory default at the time; the command does not set it"),
    "LoRA dropout": Figure(0.1, "", "LLaMA-Factory default at the time; the command does not set it"),
    "cutoff": Figure(1024, "tokens", "LLaMA-Factory default at the time; the command does not set it"),
}
LORA_TARGETS = ("q_proj", "v_proj")  # README, training command

# What the authors' own run left beside the released adapter.
RUN = {
    "training time": Figure(269_031, "s", "released adapter, all_results.json"),
    "training loss, mean": Figure(0.3114, "", "released adapter, all_results.json"),
    "conversations a second": Figure(1.968, "conversations/s", "released adapter, all_results.json"),
    "steps a second": Figure(0.062, "steps/s", "released adapter, all_results.json"),
    "last checkpoint": Figure(16_000, "steps", "released adapter, folders"),
}

MEMORY = {
    "training": Figure(45, "GiB", "paper, Table 4"),
    "training, README": Figure(43, "GiB", "early README"),
    "inference": Figure(25, "GiB", "paper, Table 4"),
    "GPU": Figure(80, "GiB", "paper, section 4.1: NVIDIA H100"),
}

AURORA = {
    "C-Eval": Figure(51.9, "%", "paper, Table 3"),
    "MMLU": Figure(67.74, "%", "paper, Table 3"),
    "CMMLU": Figure(49.69, "%", "paper, Table 3"),
}
AURORA_BY_CATEGORY = {
    "CMMLU": {"STEM": 44.69, "Social Sciences": 52.03, "Humanities": 49.14, "Other": 51.58},
    "MMLU": {"STEM": 57.53, "Social Sciences": 77.42, "Humanities": 63.34, "Other": 74.41},
}  # early README, in a comment

# Table 3: model -> (C-Eval, MMLU, CMMLU), per cent, 5-shot. The authors collected the baselines; none was
# re-run.
TABLE_3 = {
    "GPT-4": (69.9, 83, 71),
    "ChatGPT": (52.5, 69.1, 53.9),
    "ChatGLM2-6B": (52.6, 45.9, 49.3),
    "XVERSE-13B-Chat": (54.6, 60.3, 46.4),
    "XVERSE-7B-Chat": (56.5, 61.4, 44.8),
    "Baichuan-7B": (44.7, 41.5, 44.6),
    "LLaMA-2-70B-Chat": (44.3, 63.8, 43.3),
    "Vicuna-13B-v1.5": (39.8, 56.6, 40.9),
    "LLaMA-65B": (40.4, 63.7, 40.6),
    "Chinese-Alpaca-2-7B": (41.5, 46.6, 40.5),
    "Vicuna-13B-v1.5-16k": (40.1, 55.7, 40.4),
    "LLaMA-2-13B-Chinese-Chat": (38.1, 55.5, 39.5),
    "Vicuna-33B-v1.3": (37.8, 59.2, 38.8),
    "LLaMA-2-13B-Chat": (36.2, 54.6, 38.7),
    "Mistral-7B-Instruct-v0.1": (39.2, 51.6, 38.4),
    "Vicuna-7B-v1.5": (36.8, 51, 37.3),
    "Vicuna-13B-v1.3": (35.3, 52.9, 36.8),
    "LLaMA-30B": (37.5, 58.7, 36),
    "LLaMA-2-Chinese-7B": (34.5, 47.9, 33.5),
    "Chinese-LLaMA-2-7B": (31.2, 37.5, 33.3),
    "MOSS-Moon-SFT": (33.1, 32.9, 33.2),
    "LLaMA-2-7B-Chat": (31.9, 46.2, 31.5),
    "Aurora": (51.9, 67.74, 49.69),
}

# README: checkpoint -> (BLEU-4, ROUGE-1, ROUGE-2, ROUGE-L) on held-out data. Two rows are labelled 8000
# there. By its position the second is checkpoint 10000, and it is listed so here.
GENERATION_SCORES = {
    6000: (18.4134, 38.2669, 18.9526, 26.572),
    8000: (18.3351, 38.4327, 19.058, 26.6573),
    10000: (18.5638, 38.5497, 19.1992, 26.8305),
    12000: (18.7156, 38.7787, 19.3347, 27.0613),
    14000: (18.5194, 38.6898, 19.2032, 26.8863),
}
CMB = {"Aurora": 29.87, "Mistral-7B": 22.26}  # README, a medical benchmark

# The figures a notebook's closing table sets beside its own, by the label the notebook records them under.
COMPARED = {
    "conversations": CONVERSATIONS["total"],
    "Mixtral-8x7B training memory, predicted [GiB]": MEMORY["training"],
    "Mixtral-8x7B inference memory, predicted [GiB]": MEMORY["inference"],
    "learning rate": TRAINING["learning rate"],
    "epochs": TRAINING["epochs"],
    "training time [s]": RUN["training time"],
    "C-Eval, 5-shot letters, tuned [share]": Figure(0.519, "share", AURORA["C-Eval"].source),
    "MMLU, 5-shot letters, tuned [share]": Figure(0.6774, "share", AURORA["MMLU"].source),
    "CMMLU, 5-shot letters, tuned [share]": Figure(0.4969, "share", AURORA["CMMLU"].source),
}
