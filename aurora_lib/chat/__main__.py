"""The chat in a terminal: `python -m aurora_lib.chat`. Standard output holds the answers and nothing else."""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path

from aurora_lib.chat.session import ChatSession
from aurora_lib.course import ScaleError, choose, html
from aurora_lib.model import AdapterError, find_adapter, load_adapter, load_model, load_tokenizer, memory

COMMANDS = Path(__file__).with_name("commands.txt").read_text(encoding="utf-8").rstrip()
# beside escape codes, a terminal obeys the C1 controls, and marks that turn the direction of writing
OBEYED = re.compile("[\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` as it may go to a terminal: what a model writes is shown, and never obeyed."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", html.visible(text))


def talk(session: ChatSession, lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Answer `lines` in turn through `write`; a slash begins a command, what fails is said in a sentence."""
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        try:
            if text.startswith("/"):
                write(printable(_obey(session, *text.split(maxsplit=1))) + "\n")
            elif text:
                _answer(session, text, write)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: the GPU is full, say
            write(printable(f"[{error}]\n"))


def _obey(session: ChatSession, command: str, argument: str = "") -> str:
    """Do what a command says, and say what was done."""
    if command == "/reset":
        session.reset()
        return "[a new conversation]"
    if command in ("/base", "/tuned"):
        session.adapter = command == "/tuned"
        return f"[the {command[1:]} model answers from here on]"
    if command == "/save":
        saved = argument and session.save(Path(argument).expanduser())
        return f"[saved as {saved}]" if saved else "[name a file: /save a.json]"
    return COMMANDS if command == "/help" else f"[there is no {command}; /help lists what there is]"


def _answer(session: ChatSession, text: str, write: Callable[[str], object]) -> None:
    """Ctrl-C ends the answer between two tokens, where nothing is half done; again, it ends the program."""
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        with closing(session.stream(text)) as pieces:
            for piece in pieces:
                write(printable(piece))
                if stopped:
                    write(" [stopped]")
                    break
    finally:
        signal.signal(signal.SIGINT, before)
    write("\n")
    if session.forgotten:
        write(f"[{session.forgotten} old turns no longer fit the context window]\n")


def _typed(session: ChatSession) -> Iterator[str]:
    """Lines from the keyboard, or from a pipe, without a prompt; Ctrl-C drops the line being typed."""
    while True:
        try:
            yield input(f"{'tuned' if session.adapter else 'base'}> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n[/quit or Ctrl-D leaves]")
        except EOFError:
            return


def main(arguments: list[str] | None = None) -> None:
    """Talk to the model and the adapter of the notebooks (AURORA_SCALE, AURORA_ADAPTER)."""
    shown = dict(prog="python -m aurora_lib.chat", description=main.__doc__, epilog=COMMANDS)
    parser = argparse.ArgumentParser(**shown, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", dest="adapter", action="store_false", help="begin with the base model")
    parser.add_argument("--system", default="", help="a line put before the first question")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling above temperature 0")
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
    session = ChatSession(model, tokenizer, max_new_tokens=scale.max_new_tokens, **vars(asked))
    if sys.stdin.isatty():
        print(COMMANDS)
    try:
        talk(session, _typed(session), lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
