"""A card that says what a cleaned dataset holds, where it came from and what was done to it."""

from datasets import Dataset

from aurora_lib.cleaning import CleaningResult

# licence as stated where the set is published; all three were written by, or with, commercial models
LICENCES = {
    "alpaca_zh": "Apache-2.0 (repository); machine-generated",
    "alpaca_gpt4_zh": "CC BY-NC 4.0; GPT-4 answers: not for commercial use",
    "sharegpt_zh": "see the publisher's page; ChatGPT conversations shared by users, may hold personal data",
}


def card(result: CleaningResult, saved: Dataset, *, origin: str, steps: dict[str, str], rejected: int) -> str:
    """The card of `saved` (what `result` kept, perhaps split), as Markdown.

    `origin` is where the rows were read from, `steps` what each step does, `rejected` the rows that were no conversation.
    """
    counts = result.report.reset_index().to_dict("records")
    sources = [name for name in result.report.columns if name != "total"]
    lines = [
        "# Cleaned Chinese conversations",
        "",
        f"{len(saved):,} conversations in `messages` format, cleaned from {origin} for supervised fine-tuning.",
        "",
        "| source | licence | read | kept |",
        "|---|---|---|---|",
        *(
            f"| {name} | {LICENCES.get(name, 'unknown')} | {result.report.loc[('read', 'read'), name]:,} "
            f"| {_count(result, ('kept', 'kept'), name):,} |"
            for name in sources
        ),
        "",
        f"Rows that were no conversation and were set aside before: {rejected:,}.",
        "",
        "| step | what it does | edited | dropped |",
        "|---|---|---|---|",
    ]
    for name, does in steps.items():
        took = {row["action"]: row["total"] for row in counts if row["step"] == name}
        lines.append(f"| {name} | {does} | {took.get('edited', 0):,} | {took.get('dropped', 0):,} |")
    lines += [
        "",
        "Known limits: steps are rules and leave some dirt and drop some good rows; facts in the answers were not checked; "
        "personal data is masked only where that optional step was asked for.",
    ]
    return "\n".join(lines) + "\n"


def _count(result: CleaningResult, row: tuple[str, str], source: str) -> int:
    return int(result.report[source].get(row, 0))
