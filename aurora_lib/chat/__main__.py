"""Talk to a model: sessions with history, streaming, a widget, and base beside tuned.

`python -m aurora_lib.chat` talks in a terminal.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path

from aurora_lib.chat.session import ChatSession
from aurora_lib.course.html import visible

COMMANDS = """\
/reset      begin a new conversation
/base       go on with the base model (the adapter is switched off)
/tuned      go on with the tuned model
/save FILE  write the conversation as JSON
/quit       leave (so does Ctrl-D)
Ctrl-C stops an answer; what was said so far stays."""
# A terminal obeys more than escape codes: the C1 controls, and marks that turn the direction of writing around.
OBEYED = [*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
OBEYED = {code: f"\\u{code:04x}" for code in OBEYED}


def printable(text: str) -> str:
    """`text` as it may go to a terminal: what a model writes is shown, and never obeyed."""
    return visible(text).translate(OBEYED)


def talk(session: ChatSession, lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Answer `lines` in turn through `write`, piece by piece; lines that begin with a slash are commands.

    What cannot be done is said in a sentence, and the talk goes on.
    """
    for line in lines:
        text = line.strip()
        command, _, argument = text.partition(" ")
        if command == "/quit":
            return
        try:
            if text.startswith("/"):
                write(_obey(session, command, argument.strip()) + "\n")
            elif text:
                _answer(session, text, write)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: the GPU is full, say
            write(printable(f"[{error}]\n"))


def _obey(session: ChatSession, command: str, argument: str) -> str:
    """Do what a command says, and say what was done."""
    if command == "/reset":
        session.reset()
        return "[a new conversation]"
    if command in ("/base", "/tuned"):
        session.adapter = command == "/tuned"
        return f"[the {command[1:]} model answers from here on]"
    if command == "/save":
        if not argument:
            return "[name a file: /save talk.json]"
        return printable(f"[saved as {session.save(Path(argument).expanduser())}]")
    return (
        COMMANDS if command == "/help" else printable(f"[there is no {command}; /help lists what there is]")
    )


def _answer(session: ChatSession, text: str, write: Callable[[str], object]) -> None:
    with closing(session.stream(text)) as pieces, _interrupts() as interrupted:
        for piece in pieces:
            write(printable(piece))
            if interrupted:
                write(" [stopped]")
                break
    write("\n")
    if session.forgotten:
        write(f"[{session.forgotten} old turns no longer fit the context window]\n")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C fills the list, so that it ends an answer between two tokens; pressed again, it ends the program as ever."""
    seen: list[int] = []

    def note(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _typed(session: ChatSession) -> Iterator[str]:
    """Lines from the keyboard, or from a pipe, where no prompt is shown; Ctrl-C drops the line that is being typed."""
    while True:
        try:
            yield input(f"{'tuned' if session.adapter else 'base'}> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                return
            print("\n[/quit or Ctrl-D leaves]")
        except EOFError:
            return


def main(arguments: list[str] | None = None) -> None:
    """The terminal chat: the model and the adapter are those of the notebooks (AURORA_SCALE, AURORA_ADAPTER)."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.chat",
        description=f"{main.__doc__}\n\n{COMMANDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", action="store_true", help="begin with the base model")
    parser.add_argument("--system", default="", help="a line put before the first question")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: always the likeliest token (default)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling above temperature 0")
    asked = parser.parse_args(arguments)

    from aurora_lib.course.scale import ScaleError, choose
    from aurora_lib.model.adapters import AdapterError, find_adapter, load_adapter
    from aurora_lib.model.nf4 import load_model
    from aurora_lib.model.tokenizer import load_tokenizer

    for stream in (sys.stdin, sys.stdout):  # a byte that is no UTF-8 must not end the talk
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        with redirect_stdout(sys.stderr):  # standard output holds the answers and nothing else
            scale = choose()
            place = find_adapter(scale)
            model = load_adapter(load_model(scale.base_model, **scale.loading), place)
            tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    except (ScaleError, AdapterError, OSError) as error:
        sys.exit(str(error))
    session = ChatSession(
        model,
        tokenizer,
        system=asked.system,
        max_new_tokens=scale.max_new_tokens,
        temperature=asked.temperature,
        seed=asked.seed,
        adapter=not asked.base,
    )
    if sys.stdin.isatty():
        print(COMMANDS)

    def write(text: str) -> None:
        print(text, end="", flush=True)

    try:
        talk(session, _typed(session), write)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
