"""The chat in a terminal: `python -m aurora_lib.chat`. Standard output holds the answers and nothing else."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout

from aurora_lib.chat.session import ChatSession
from aurora_lib.course import ScaleError, choose, html
from aurora_lib.model import AdapterError, find_adapter, load_adapter, load_model, load_tokenizer, memory

# beside escape codes, a terminal obeys the C1 controls, and marks that turn the direction of writing
OBEYED = re.compile("[\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` as it may go to a terminal: what a model writes is shown, and never obeyed."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", html.visible(text))


def talk(session: ChatSession, lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Answer `lines` in turn through `write`; what fails is said in a sentence, and Ctrl-C ends an answer."""
    for line in lines:
        try:
            if not line.strip():
                session.reset()
                continue
            for piece in session.stream(line.strip()):
                write(printable(piece))
            write("\n" + f"[{session.forgotten} old turns are forgotten]\n" * bool(session.forgotten))
        except KeyboardInterrupt:
            write(" [stopped]\n")
        except (ValueError, RuntimeError) as error:  # RuntimeError: the GPU is full, say
            write(printable(f"[{error}]\n"))


def main(arguments: list[str] | None = None) -> None:
    """Talk to the model of the notebooks. An empty line begins a new conversation, Ctrl-D leaves."""
    parser = argparse.ArgumentParser(prog="python -m aurora_lib.chat", description=main.__doc__)
    parser.add_argument("--base", dest="adapter", action="store_false", help="without the adapter")
    parser.add_argument("--system", default="", help="a line put before the first question")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    asked = parser.parse_args(arguments)
    for stream in (sys.stdin, sys.stdout):  # a byte that is no UTF-8 must not end the talk
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        with redirect_stdout(sys.stderr):
            scale = choose()
            adapter = find_adapter(scale)  # first: what is missing is told before a long load
            model = load_adapter(load_model(scale.base_model, **scale.loading), adapter)
            tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    except (ScaleError, AdapterError, memory.DoesNotFit, OSError) as error:
        sys.exit(str(error))
    print(main.__doc__, file=sys.stderr)
    session = ChatSession(model, tokenizer, max_new_tokens=scale.max_new_tokens, **vars(asked))
    try:
        talk(session, sys.stdin, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
