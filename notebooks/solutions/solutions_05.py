"""Solutions to notebook 05."""

from aurora_lib.course import DATA
from aurora_lib.evaluation import multiple_choice
from aurora_lib.model import load_model, load_tokenizer

# 05.1: 2 * 1.96 * sqrt(0.519 * 0.481 / 1346), in points
width = 5.34


# 05.2: the row before a token foresees it
def answer_logprob(logits, ids, start):
    table = logits.log_softmax(-1)
    return sum(table[i - 1, ids[i]] for i in range(start, len(ids)))


# 05.3: a coin's toss for each question on which the two differ
def mcnemar(before, after):
    from scipy.stats import binomtest

    gained = sum(b > a for a, b in zip(before, after, strict=True))
    lost = sum(a > b for a, b in zip(before, after, strict=True))
    return binomtest(gained, gained + lost).pvalue if gained + lost else 1.0


# 05.4: after "答案：" a letter has no space before it, and is another token
def letter_ids(tokenizer, before, gap):
    texts = [before + gap + letter for letter in "ABCD"]
    return [tokenizer(text, add_special_tokens=False).input_ids[-1] for text in texts]


# 05.5: `small` so that the notebook's own model stays as it is
small, words = load_model(DATA / "tiny"), load_tokenizer(DATA / "tiny")


def draw(number):
    return multiple_choice(small, words, "ceval", subjects=["civil_servant"], shuffle=number)


ANSWERS = {"05.1": width, "05.2": answer_logprob, "05.3": mcnemar, "05.4": letter_ids, "05.5": draw}
