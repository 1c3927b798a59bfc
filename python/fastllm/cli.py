"""The command line: run, chat, embed, classify, rerank, convert, bench, info, inspect.

Generated text goes to stdout, everything else to stderr. Exit codes: 0; 2 for a wrong option, file or model, with one
sentence that names the cause; 130 for Ctrl-C, but 2 where that leaves a conversion undone. What else ends a process
(SIGTERM, SIGHUP, SIGQUIT) does as ever, but for a conversion, which it ends like Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from fastllm import __version__
from fastllm.errors import CheckpointError, CheckpointWarning, FastLLMError, OptionError, reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.decoding import Sampling
    from fastllm.engine import Generation
    from fastllm.llm import LLM
    from fastllm.tensors import Tensor
    from fastllm.weights.store import Stored


_LONG = 200  # characters of a value that inspect shows
_BUILT_IN = Path(__file__).parent / "demo" / "stories.safetensors"


_Options = Callable[[argparse.ArgumentParser], None]  # adds a command's options to its parser


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        """As wide as the terminal. argparse makes one for every option, and would import shutil to ask: 4 ms."""
        try:
            width = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
        except (ValueError, OSError):
            width = 80
        super().__init__(prog, width=width - 2)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        """One sentence, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", CheckpointWarning)
            warnings.showwarning = partial(_warn, warnings.showwarning)
            code: int = args.command(args)
        sys.stdout.flush()
    except (FastLLMError, MemoryError, ImportError) as error:
        print(f"fastllm: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        return 141
    except OSError as error:
        _drop_output()
        print(f"fastllm: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 2
    return code


def _warn(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Ours in a line, like an error, without the place in the program; those of libraries as ever."""
    if issubclass(category, CheckpointWarning):
        print("fastllm: " + str(message).replace("\n", "\\n"), file=sys.stderr)
    else:
        others(message, category, *place)


def _sentence(error: FastLLMError | MemoryError | ImportError) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, ImportError):
        return f"{error.name or 'a library'} cannot be loaded: {reason(error)}"
    return str(error).replace("\n", "\\n")  # of a file's name


def _drop_output() -> None:
    """Python would complain again when it flushes at exit."""
    with suppress(OSError):  # no more files can be opened
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> _Parser:
    parser = _Parser(prog="fastllm", description="Run language models on the computer you have.")
    parser.add_argument("--version", action="version", version=f"fastllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Command)
    for name, (command, options, about, description) in _COMMANDS.items():
        commands.add_parser(name, help=about, description=description, options=options).set_defaults(command=command)
    return parser


class _Command(_Parser):
    def __init__(self, *, options: _Options | None, **about: Any) -> None:
        """A command's parser. It gets its options when it is the one that is asked for: all take milliseconds."""
        super().__init__(**about)
        self._options = options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if self._options is not None:
            self._options(self)
        return super().parse_known_args(args, namespace)


def _run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a checkpoint, or its name on the hub; without, a built-in storyteller",
    )
    run.add_argument("-i", "--prompt", default="", metavar="TEXT", help="text to continue")
    length = run.add_mutually_exclusive_group()
    length.add_argument(
        "-n",
        "--steps",
        type=int,
        metavar="N",
        help="stop after N tokens in all, the prompt's included; 0 is the context's end (default 256; built-in: 0)",
    )
    length.add_argument("--max-tokens", type=int, metavar="N", help="write at most N new tokens")
    _model_options(run)
    _sampling_options(run)
    _guessing_options(run)
    run.add_argument("--json", action="store_true", help="print one JSON object at the end instead of text")


def _chat_options(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("model", metavar="MODEL", help="a checkpoint of a chat model")
    chat.add_argument("-y", "--system", metavar="TEXT", help="a system prompt")
    chat.add_argument("-n", "--max-tokens", type=int, metavar="N", help="write at most N new tokens a reply")
    _model_options(chat)
    _sampling_options(chat)
    _guessing_options(chat)


def _embed_options(embed: argparse.ArgumentParser) -> None:
    embed.add_argument("model", metavar="MODEL", help="a checkpoint, an encoder or not")
    embed.add_argument("texts", nargs="*", metavar="TEXT")
    embed.add_argument(
        "--pooling",
        metavar="HOW",
        help="of a text's tokens: mean, cls, last, max, weighted_mean, mean_sqrt_len (default: the model's, else mean)",
    )
    length = embed.add_mutually_exclusive_group()
    length.add_argument("--normalize", action="store_true", default=None, help="to length 1 (default: as the model's)")
    length.add_argument("--no-normalize", dest="normalize", action="store_false", help="as long as they are")
    prompts = embed.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="goes before each text (default: the model's, if any)")
    prompts.add_argument("--prompt-name", metavar="NAME", help="of one of the model's prompts, such as query")
    embed.add_argument("--truncate", action="store_true", help="cut texts that are too long, else they are errors")
    form = embed.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="lines are JSON lists (default)")
    form.add_argument("--text", action="store_true", help="lines are numbers with spaces between")
    _model_options(embed)


def _classify_options(classify: argparse.ArgumentParser) -> None:
    classify.add_argument("model", metavar="MODEL", help="a checkpoint of a classifier, of texts or of tokens")
    classify.add_argument("texts", nargs="*", metavar="TEXT", help="a tab parts a pair of texts")
    classify.add_argument("--json", action="store_true", help="lines are JSON objects with the scores of all labels")
    _model_options(classify)


def _rerank_options(rerank: argparse.ArgumentParser) -> None:
    rerank.add_argument("model", metavar="MODEL", help="a checkpoint of a reranker: a classifier of pairs, or a judge")
    rerank.add_argument("query", metavar="QUERY")
    rerank.add_argument("documents", nargs="*", metavar="DOCUMENT")
    rerank.add_argument("--instruction", metavar="TEXT", help="what the query is for (default: the model's)")
    rerank.add_argument("--template", metavar="FILE", help="a chat template with the roles query and document")
    rerank.add_argument("--json", action="store_true", help="lines are JSON objects")
    _model_options(rerank)


def _convert_options(convert: argparse.ArgumentParser) -> None:
    convert.add_argument("model", metavar="PATH", help="a checkpoint: a file, a folder, or a name of the hub")
    convert.add_argument("out", metavar="OUT", help="the file to write, OUT.safetensors")
    convert.add_argument(
        "--dtype", metavar="TYPE", help="f32, f16, bf16, q8 or q4 (default: as in the file; weights of a few bits: q8)"
    )
    convert.add_argument("--calibrate", metavar="FILE", help="a text by which q4 is made better, in minutes")
    convert.add_argument("--format", default="fastllm", metavar="NAME", help="fastllm (default) or llama2c")
    convert.add_argument("--version", type=int, metavar="N", help="llama2.c's: 0 (default) or 1 in f32, 2 in int8")
    convert.add_argument("--verify", action="store_true", help="run both and say how they differ")
    convert.add_argument("-z", "--tokenizer", metavar="FILE", help="default: beside the model, or in this folder")
    convert.add_argument("--threads", type=int, metavar="N", help="default: see fastllm info")
    convert.add_argument("--revision", metavar="NAME", help="of a model on the hub: branch, tag or commit")
    _lora_option(convert)


def _bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint; without, the built-in storyteller")
    bench.add_argument("--prompt", type=int, metavar="N", help="tokens of a prompt (default 512, if they fit)")
    bench.add_argument("--gen", type=int, metavar="N", help="tokens to write after it (default 128, if they fit)")
    bench.add_argument("--batch", default="1,4,16", metavar="N,...", help="texts at once (default 1,4,16)")
    bench.add_argument("--threads", metavar="N,...", help="default: 1, and as fastllm info says")
    bench.add_argument("--dtype", metavar="TYPE,...", help="convert weights to these (default: as in the file)")
    bench.add_argument("--json", action="store_true", help="print one JSON list of objects instead of a table")
    bench.add_argument("--plot", metavar="FILE", help="draw it, .png, .svg or .pdf; needs 'fastllm[plot]'")


def _inspect_options(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("file", metavar="PATH", help="a file, a folder, or a name of the hub")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-z", "--tokenizer", metavar="FILE", help="default: beside the model, or in this folder")
    parser.add_argument(
        "--dtype",
        metavar="TYPE",
        help="convert weights to f32, f16, bf16, q8 or q4 (default: as in the file; weights of a few bits: q8)",
    )
    parser.add_argument("--kv", metavar="TYPE", help="of keys and values: f32, f16 or q8 (default: f16; f32 with f32)")
    parser.add_argument("--context", type=int, metavar="N", help="positions a text may have (default: the model's)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: see fastllm info")
    parser.add_argument("--revision", metavar="NAME", help="of a model on the hub: branch, tag or commit")
    _lora_option(parser)


def _lora_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora", action="append", metavar="PATH", help="add a PEFT adapter to the weights; may be given several times"
    )


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--temperature", type=float, metavar="X", help="0 is greedy (default 1.0; built-in: 0.6)")
    parser.add_argument(
        "-p", "--top-p", type=float, default=0.9, metavar="X", help="nucleus of probability X; 1 is all (default 0.9)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help="of the N likeliest; 0 is all (default)")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="X", help="at least X times the best's probability")
    parser.add_argument("-s", "--seed", type=int, metavar="N", help="the same seed gives the same text")


def _guessing_options(parser: argparse.ArgumentParser) -> None:
    guesses = parser.add_mutually_exclusive_group()
    guesses.add_argument(
        "--lookup",
        action="store_true",
        help="guess tokens from the text so far: the same text, faster if it repeats",
    )
    guesses.add_argument(
        "--draft", metavar="MODEL", help="guess tokens with a smaller model of the same vocabulary: the same text"
    )


def _load(args: argparse.Namespace) -> LLM:
    from fastllm.llm import load
    from fastllm.progress import Bar

    with Bar("packing") as bar:
        return load(
            _BUILT_IN if args.model is None else args.model,
            dtype=args.dtype,
            kv=args.kv,
            threads=args.threads,
            context=args.context,
            tokenizer=args.tokenizer,
            revision=args.revision,
            lora=args.lora,
            progress=bar,
        )


def _load_draft(args: argparse.Namespace) -> LLM | None:
    from fastllm.llm import load

    return None if args.draft is None else load(args.draft, kv=args.kv, threads=args.threads)


def _sampling(args: argparse.Namespace) -> Sampling:
    from fastllm.decoding import Sampling

    temperature = args.temperature
    if temperature is None:
        temperature = 0.6 if args.model is None else 1.0
    return Sampling(temperature=temperature, top_p=args.top_p, top_k=args.top_k, min_p=args.min_p)


def _seed(args: argparse.Namespace) -> int:
    """The seed asked for, or a new one small enough to type again."""
    return int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed


# ---- run -----------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from fastllm.llm import TextStream
    from fastllm.tokenizer import decode

    sampling, seed = _sampling(args), _seed(args)
    llm = _load(args)
    tokens = llm.tokenize(args.prompt)
    max_tokens = args.max_tokens
    if max_tokens is None:
        steps = args.steps
        if steps is None:
            steps = 0 if args.model is None else 256
        if steps < 0:
            raise OptionError(f"-n must be 0 or more, not {steps}")
        if steps > 0:
            # As llama2.c counts: each step takes one token and shows the next.
            tokens = tokens[: steps + 1]
            max_tokens = steps + 1 - len(tokens)
    draft = _load_draft(args)
    generation = llm.start(tokens, sampling, max_tokens=max_tokens, seed=seed, lookup=args.lookup, draft=draft)
    prompt = decode(llm.tokenizer, tokens)
    pieces = TextStream(generation, llm.tokenizer, ())
    text, interrupted = [], False
    try:
        if not args.json:
            _write(prompt)
        for piece in pieces:
            text.append(piece)
            if not args.json:
                _write(piece)
    except KeyboardInterrupt:
        interrupted = True
    speed = _speed(llm, generation)
    if args.lookup or draft:
        speed |= {"proposed_tokens": generation.proposed, "accepted_tokens": generation.accepted}
    if args.json:
        import json

        reason = "interrupted" if interrupted else pieces.finish_reason
        about: dict[str, object] = {"prompt": prompt, "text": "".join(text)}
        about |= {"tokens": generation.tokens, "finish_reason": reason, "seed": seed}
        print(json.dumps(about | speed, ensure_ascii=False))
    else:
        _write("\n")
        print(_speed_line(speed, seed), file=sys.stderr)
    return 130 if interrupted else 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _speed(llm: LLM, generation: Generation) -> dict[str, float | int | str | None]:
    """What the run measured; None where too little ran to measure."""

    def rate(count: int, seconds: float) -> float | None:
        return count / seconds if count > 0 and seconds > 0 else None

    prompt = len(generation.prompt) - generation.cached
    # The first new token comes with the prompt.
    decode_tps = rate(len(generation.tokens) - 1, generation.decode_seconds)
    # A guess that was right spares reading the weights.
    forwards = len(generation.tokens) - 1 - generation.accepted
    forward_tps = rate(forwards, generation.decode_seconds)
    weight_gbps = forward_tps * llm.bytes_per_token / 1e9 if forward_tps else None
    return {
        "prompt_tokens": len(generation.prompt),
        "generated_tokens": len(generation.tokens),
        "prompt_tps": rate(prompt, generation.prompt_seconds),
        "decode_tps": decode_tps,
        "weight_gbps": weight_gbps,
        "read_gbps": llm.read_bandwidth(),
        "isa": llm.isa,
        "threads": llm.threads,
        "dtype": "+".join(llm.dtypes),
    }


def _speed_line(speed: dict[str, float | int | str | None], seed: int) -> str:
    parts = []
    for name in ("prompt", "generated"):
        tps = speed["prompt_tps" if name == "prompt" else "decode_tps"]
        rate = f", {tps:,.0f} tokens/s" if isinstance(tps, float) else ""
        parts.append(f"{name} {speed[f'{name}_tokens']} tokens{rate}")
    if "proposed_tokens" in speed:
        parts.append(f"guessed {speed['proposed_tokens']}, {speed['accepted_tokens']} of them right")
    used, read = speed["weight_gbps"], speed["read_gbps"]
    if isinstance(used, float) and isinstance(read, float):
        share = f", {used / read:.0%} of the {read:.1f} that reading alone takes" if used < 2 * read else ""
        parts.append(f"weights {used:.1f} GB/s{share}")
    threads = speed["threads"]
    parts.append(f"{speed['isa']}, {threads} thread{'s' if threads != 1 else ''}, {speed['dtype']}")
    parts.append(f"seed {seed}")
    return f"[{'; '.join(parts)}]"


# ---- chat ----------------------------------------------------------------------------------------------------------


def _chat(args: argparse.Namespace) -> int:
    from fastllm.chat import start_chat
    from fastllm.llm import TextStream

    sampling, seed = _sampling(args), _seed(args)
    llm = _load(args)
    draft = _load_draft(args)
    conversation = start_chat(llm, args.system)
    asking = sys.stdin.isatty()
    if asking:
        print("A line is a turn; Ctrl-D ends.", file=sys.stderr)
    while True:
        if asking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        if not line.strip():
            continue
        tokens = conversation.say(_without_end(line))
        generation = llm.start(
            tokens,
            sampling,
            max_tokens=args.max_tokens,
            seed=seed,
            stop=conversation.stop,
            lookup=args.lookup,
            draft=draft,
        )
        try:
            for piece in TextStream(generation, llm.tokenizer, ()):
                _write(piece)
        except KeyboardInterrupt:  # ends this reply, not the conversation
            if not asking:
                raise
        _write("\n")
        conversation.reply(generation.tokens)


# ---- embed, classify, rerank, convert ------------------------------------------------------------------------------


def _embed(args: argparse.Namespace) -> int:
    import json

    llm = _load(args)
    texts, what = (args.texts, "text") if args.texts else (_lines(), "line")

    def write(part: Sequence[str]) -> None:
        vectors = llm.embed(
            part,
            pooling=args.pooling,
            normalize=args.normalize,
            prompt=args.prompt,
            prompt_name=args.prompt_name,
            truncate=args.truncate,
        )
        for vector in vectors:
            numbers = [str(x) for x in vector]  # the shortest that are these float32
            print(" ".join(numbers) if args.text else json.dumps([float(x) for x in numbers]))

    _in_parts(texts, what, 256, write)
    return 0


def _lines() -> list[str]:
    return [_without_end(line) for line in sys.stdin]


def _without_end(line: str) -> str:
    """A line of stdin without its end, of Unix or of Windows."""
    return line.removesuffix("\n").removesuffix("\r")


def _in_parts(texts: Sequence[str], what: str, size: int, write: Callable[[Sequence[str]], None]) -> None:
    """Writes what becomes of texts, so many at a time: the first lines come before the last are computed."""
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        try:
            write(part)
        except FastLLMError as error:
            if error.text is None:
                raise
            write(part[: error.text])  # those before it are good
            said = str(error).replace(f"text {error.text}", f"{what} {start + error.text + 1}", 1)
            raise type(error)(said.replace("truncate=True", "--truncate")) from None


def _classify(args: argparse.Namespace) -> int:
    llm = _load(args)
    texts, what = (args.texts, "text") if args.texts else (_lines(), "line")
    each = llm.classifier is not None and llm.classifier.pooling == "each"

    def write(part: Sequence[str]) -> None:
        if each:
            for text in part:
                _write_tokens(llm, text, as_json=args.json)
        else:
            pairs = [(first, second) if tab else first for first, tab, second in (t.partition("\t") for t in part)]
            _write_labels(llm, part, llm.classify(pairs), as_json=args.json)

    _in_parts(texts, what, 1 if each else 64, write)
    return 0


def _write_tokens(llm: LLM, text: str, *, as_json: bool) -> None:
    """A line for each token of a text, and an empty one."""
    ids, scores = llm.token_classify(text)
    words = llm.tokenizer
    special, pieces = {words.token_id(token): token for token in words.special}, words.stream().pieces
    shown = [special.get(i) or (pieces[i].decode("utf-8", "replace") if i < len(pieces) else "") for i in ids]
    _write_labels(llm, shown, scores, as_json=as_json)
    if not as_json:
        print()


def _write_labels(llm: LLM, texts: Sequence[str], scores: NDArray[np.float32], *, as_json: bool) -> None:
    """The likeliest label of each text, from the scores of all, [n, labels]."""
    import json

    if llm.classifier is None:
        return
    for text, row in zip(texts, llm.classifier.probabilities(scores), strict=True):
        best = int(row.argmax())
        label, probability = llm.labels[best], float(row[best])
        if as_json:
            about: dict[str, object] = {"text": text, "label": label, "probability": probability}
            about["probabilities"] = [float(x) for x in row]
            print(json.dumps(about | {"labels": llm.labels}, ensure_ascii=False))
        else:
            print(f"{_in_line(label)}\t{probability:.6f}\t{_in_line(text)}")


def _in_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _rerank(args: argparse.Namespace) -> int:
    import json

    from fastllm.files import read_file

    template = None
    if args.template is not None:
        template = read_file(Path(args.template)).decode("utf-8", "replace")
    llm = _load(args)
    documents = args.documents or _lines()
    ranked = llm.rerank(args.query, documents, instruction=args.instruction, template=template)
    for index, score in ranked:
        document = documents[index]
        if args.json:
            print(json.dumps({"index": index, "score": score, "document": document}, ensure_ascii=False))
        else:
            print(f"{score:.6f}\t{index}\t{_in_line(document)}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from fastllm.llm.verify import verify
    from fastllm.progress import Bar
    from fastllm.weights.convert import convert

    before = _identity(args.out)
    try:
        with _ending_by_interrupt(), Bar("converting") as bar:
            no_tokenizer = convert(
                args.model,
                args.out,
                dtype=args.dtype,
                format=args.format,
                version=args.version,
                tokenizer=args.tokenizer,
                calibrate=args.calibrate,
                revision=args.revision,
                lora=args.lora,
                threads=args.threads,
                progress=bar,
            )
    except KeyboardInterrupt:
        if _identity(args.out) != before:
            raise  # just after it was written
        raise CheckpointError(f"{args.out} was not written: interrupted") from None
    print(f"{args.out}: {Path(args.out).stat().st_size:,} bytes", file=sys.stderr)
    if no_tokenizer:
        print(f"without a tokenizer: {no_tokenizer}", file=sys.stderr)
    if args.verify:
        found = verify(args.model, args.out, revision=args.revision, lora=args.lora, threads=args.threads)
        parts = [f"{found.what} differ by at most {found.largest:.3g}, by {found.mean:.3g} in the mean"]
        if found.kl is not None and found.top1 is not None:
            parts.append(f"KL {found.kl:.3g}")
            parts.append(f"top-1 agreement {found.top1:.1%}")
        print(f"over {found.tokens} tokens: {'; '.join(parts)}", file=sys.stderr)
    return 0


def _identity(path: str) -> tuple[int, int] | None:
    """Of the file at a path, if there is one: another file has another."""
    with suppress(OSError, ValueError):
        about = os.stat(path)
        return about.st_dev, about.st_ino
    return None


@contextmanager
def _ending_by_interrupt() -> Iterator[None]:
    """Lets the signals that end a process raise KeyboardInterrupt in the block, so that nothing half-written is left.

    Those that are ignored, as SIGHUP is under nohup, stay so.
    """
    import signal
    from time import monotonic

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: old for number, old in handlers.items() if old is not None and old != signal.SIG_IGN}
    last = -math.inf

    def interrupt(*_: object) -> None:
        """Once: a second signal, soon after, would end the cleaning up. A later one says that the first was lost."""
        nonlocal last
        last, soon = monotonic(), monotonic() < last + 1
        if not soon:
            raise KeyboardInterrupt

    try:
        for number in handlers:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)


# ---- bench ---------------------------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    from fastllm.bench import bench, check_plot, plot, table

    def numbers(name: str, text: str) -> list[int]:
        try:
            return [int(number) for number in text.split(",")]
        except ValueError:
            raise OptionError(f"--{name} takes whole numbers with commas between, not {text!r}") from None

    if args.plot is not None:
        check_plot(args.plot)
    model = _BUILT_IN if args.model is None else args.model
    rows = bench(
        model,
        prompt=args.prompt,
        gen=args.gen,
        batches=numbers("batch", args.batch),
        threads=None if args.threads is None else numbers("threads", args.threads),
        dtypes=[None] if args.dtype is None else args.dtype.split(","),
    )
    if args.json:
        import json

        print(json.dumps(rows))
    else:
        print(table(rows))
    if args.plot is not None:
        plot(rows, args.plot, title=Path(model).name)
    return 0


# ---- info, inspect -------------------------------------------------------------------------------------------------


def _info(_: argparse.Namespace) -> int:
    import platform

    from fastllm import _core
    from fastllm.families.architectures import FAMILIES
    from fastllm.machine import thread_count

    forced = os.environ.get("FASTLLM_ISA")
    built = _core.isas()
    chosen = _core.best_isa(forced)
    count, why = thread_count()
    print(f"fastllm {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"built:   {', '.join(name for name, _ in built)}")
    print(f"found:   {', '.join(name for name, supported in built if supported)}")
    print(f"chosen:  {chosen} ({'FASTLLM_ISA' if forced else 'the best found'})")
    print(f"threads: {count} ({why}){'' if _core.has_threads() else ', built without OpenMP'}")
    print(f"families: {', '.join(sorted(FAMILIES, key=str.lower))}")
    return 0


class _Contents(NamedTuple):
    """What inspect shows of a file. rows: name, type, shape and bytes of each tensor."""

    format: str
    header: dict[str, Any]
    rows: list[tuple[str, str, tuple[int, ...], int]]
    tokenizer: tuple[str, bytes] | None
    as_read: str = ""
    unused: frozenset[str] = frozenset()
    refusal: str = ""


def _inspect(args: argparse.Namespace) -> int:
    from fastllm.files import reading
    from fastllm.weights import store
    from fastllm.weights.source import find_source

    path, _ = find_source(args.file, None)
    with reading():
        stored = store.open_file(path)
        found = _of_checkpoint(path) if stored is None else _of_stored(stored)
    header, rows = found.header, found.rows
    if found.tokenizer:
        header["tokenizer"] = f"{found.tokenizer[0]}, {len(found.tokenizer[1]):,} bytes"
    total = sum(nbytes for *_, nbytes in rows)
    print(f"{path}: {found.format}, {total if path.is_dir() else path.stat().st_size:,} bytes")
    for key, value in header.items():
        text = str(value).replace("\n", "\\n")
        print(f"  {key:14} {text if len(text) <= _LONG else text[:_LONG] + ' ...'}")
    width = max((len(key) for key, *_ in rows), default=0)
    for key, dtype, shape, nbytes in rows:
        mark = "  unused" if key in found.unused else ""
        print(f"  {key:{width}}  {dtype:6}  {' x '.join(map(str, shape)):>16}  {nbytes:>14,} bytes{mark}")
    parameters = sum(math.prod(shape) for _, _, shape, _ in rows)
    print(f"{len(rows)} tensors, {parameters:,} parameters, {total:,} bytes{found.as_read}")
    if found.unused:
        print(f"{len(found.unused)} of them have no effect: unused")
    if found.refusal:
        print(f"cannot be run: {found.refusal}")
    return 0


def _of_stored(stored: Stored) -> _Contents:
    header = stored.config.to_json()
    if embedding := stored.embedding.to_json():
        header["embedding"] = embedding
    if stored.source:
        header["source"] = stored.source
    if stored.classifier is not None:
        header["labels"] = stored.classifier.labels
    rows = [(k, getattr(t, "dtype", "f32"), t.shape, t.nbytes) for k, t in stored.tensors.items()]
    for chain, layers in stored.dense.items():
        matrices = [layer.matrix for layer in layers]
        rows += [(f"{chain}.{i}", m.dtype, m.shape, m.nbytes) for i, m in enumerate(matrices)]
    return _Contents("fastllm", header, rows, stored.tokenizer)


def _of_checkpoint(path: Path) -> _Contents:
    from fastllm import families, quantized
    from fastllm.formats import open_checkpoint

    checkpoint = open_checkpoint(path)
    header = dict(checkpoint.header)
    header["architecture"] = checkpoint.architecture
    if (scheme := quantized.scheme(checkpoint)) is not None:
        header["quantized"] = scheme
    rows = [(k, *_as_stored(t)) for k, t in checkpoint.tensors.items()]
    as_read = " as they are read" if any(t.stored and not t.raw for t in checkpoint.tensors.values()) else ""
    unused, refusal = frozenset[str](), ""
    try:
        unused = frozenset(families.recipe(quantized.dequantized(checkpoint)).unused)
    except CheckpointError as error:
        refusal = str(error)
    return _Contents(checkpoint.format, header, rows, checkpoint.tokenizer, as_read, unused, refusal)


def _as_stored(tensor: Tensor) -> tuple[str, tuple[int, ...], int]:
    """A tensor's type, shape and bytes as the file has them; GGUF's types as they are read."""
    if tensor.raw is not None:
        return tensor.raw.kind, tensor.shape, math.prod(tensor.shape) * tensor.raw.size
    return tensor.stored or tensor.dtype, tensor.shape, tensor.nbytes


# Name -> what runs it, its options, what it is in the list of commands, and above its own help.
_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], _Options | None, str, str]] = {
    "run": (_run, _run_options, "write text", "Write text from a model."),
    "chat": (
        _chat,
        _chat_options,
        "talk to a model",
        "Talk to a model, in the format of its chat template: a line is a turn, end with Ctrl-D.",
    ),
    "embed": (
        _embed,
        _embed_options,
        "texts as vectors",
        "Print one vector for each text, a line each: of the arguments, or of the lines of stdin.",
    ),
    "classify": (
        _classify,
        _classify_options,
        "labels of texts, or of their tokens",
        "Print the likeliest label, its probability and the text, for each argument or each line of stdin. "
        "Of a model that labels tokens, a line for each token, and an empty one after each text.",
    ),
    "rerank": (
        _rerank,
        _rerank_options,
        "documents by how well they answer a query",
        "Print score, index and document, the best first: of the arguments, or of the lines of stdin.",
    ),
    "convert": (
        _convert,
        _convert_options,
        "make the file that loads at once",
        "Convert a checkpoint to a file that is mapped and run as it lies on disk, tokenizer inside.",
    ),
    "bench": (
        _bench,
        _bench_options,
        "how fast a model runs, and the machine",
        "Measure prompts and writing for each combination of types, threads and batches, in turns, beside what the "
        "machine reads and multiplies.",
    ),
    "info": (
        _info,
        None,
        "what this machine and build can do",
        "Instruction sets built, found and chosen; threads and why; the families of models that are known.",
    ),
    "inspect": (
        _inspect,
        _inspect_options,
        "what a model file holds",
        "Config, tensors, types and sizes of a model file.",
    ),
}
