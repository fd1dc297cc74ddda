"""A card that says what a cleaned dataset holds, where it came from and what was done to it."""

from datasets import Dataset

from aurora_lib.data.cleaning import CleaningResult

# As stated where the sets are published; all three were written by, or with, commercial models.
RELEASED_LICENCES = {
    "alpaca_zh": "Apache-2.0 (repository); machine-generated",
    "alpaca_gpt4_zh": "CC BY-NC 4.0; GPT-4 answers: not for commercial use",
    "sharegpt_zh": "see the publisher's page; ChatGPT conversations shared by users, may hold personal data",
}


def card(
    result: CleaningResult,
    saved: Dataset,
    *,
    origin: str,
    licences: dict[str, str],
    steps: dict[str, str],
    rejected: int,
) -> str:
    """The card of `saved` (what `result` kept, perhaps split), as Markdown.

    `origin` is where the rows were read from, `licences` those of the sources, `steps` what each step taken does, `rejected`
    the rows that were no conversation.
    """
    report = result.report
    sources = [name for name in report.columns if name != "total"]

    def count(step: str, action: str, source: str = "total") -> str:
        return f"{int(report[source].get((step, action), 0)):,}"

    lines = [
        "# Cleaned Chinese conversations",
        "",
        f"{len(saved):,} conversations in `messages` format, cleaned from {origin} for supervised fine-tuning.",
        "",
        "| source | licence | read | kept |",
        "|---|---|---|---|",
        *(
            f"| {name} | {licences.get(name, 'unknown')} | {count('read', 'read', name)} | {count('kept', 'kept', name)} |"
            for name in sources
        ),
        "",
        f"Rows that were no conversation and were set aside before: {rejected:,}.",
        "",
        "| step | what it does | edited | dropped |",
        "|---|---|---|---|",
        *(
            f"| {name} | {does} | {count(name, 'edited')} | {count(name, 'dropped')} |"
            for name, does in steps.items()
        ),
        "",
        "Known limits: steps are rules, which leave some dirt and drop some good rows; facts in the answers were not checked; "
        "personal data is masked only where that optional step was taken.",
    ]
    return "\n".join(lines) + "\n"
