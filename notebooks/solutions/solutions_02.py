"""Solutions to notebook 02."""


# 02.1: letters only, so that spaces and punctuation do not count; no letters, no Han
def han_share(text):
    letters = [c for c in text if c.isalpha()]
    return sum("一" <= c <= "鿿" for c in letters) / len(letters) if letters else 0.0


# 02.2: a dict remembers the order in which its keys came
def unique(rows):
    return list(dict.fromkeys(rows))


# 02.3: an answer that says something holds at least one letter or digit
def keep(answer):
    return any(c.isalnum() for c in answer)


# 02.4: 1 - (1 - j**rows)**bands = 1/2, solved for j
def half(bands, rows):
    return (1 - 0.5 ** (1 / bands)) ** (1 / rows)


ANSWERS = {"02.1": han_share, "02.2": unique, "02.3": keep, "02.4": half}
