"""The packed cache: a checkpoint of another form is packed once, into a file of our own form, which is then mapped.

    load(path, options)
      |   digest of path, options, and fastllm's own code  ->  NAME.DIGEST.packed in the folder (folder.py)
      |-- the file is there, and all that packing asked of the file system is answered as it was then: map it
      |-- else, one process at a time: open_source -> plan -> packed piece by piece into a temporary file, synced,
      |   renamed -> map it. Weights that are rounded to four bits are calibrated, as `convert` does
      '-- nothing can be kept (too large, disk full, no folder): pack into memory, and say why (CacheWarning)

A packed file is a converted file (store.py) whose header has "packed", a JSON object:

    digest     the whole digest
    answers    [question, answer] of each question of files.Reading: which version of each file was opened, which files
               were looked for and not there, ... A file that is edited, added or removed changes an answer
    modified   the file's own time of modification: whatever has written to it since has changed it. It is an even
               second before the file was written, which every file system can keep
    model, unused, place    the checkpoint's path; its tensors without use; where tokenizers were looked for

Beside the tokenizer's own bytes it has the ready form ("tokenizer.ready", "ready": its bytes), which is read at once.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm import _core
from fastllm.errors import CacheWarning, CheckpointError, CheckpointWarning, TokenizerError
from fastllm.files import Reading, TargetError, map_file, reading, unchanged
from fastllm.progress import note
from fastllm.tokenizer import Tokenizer, find, ready
from fastllm.weights import folder, store
from fastllm.weights.source import Opened, open_source, tokenizer_inside

if TYPE_CHECKING:
    from fastllm.weights.packing import Known, Plan, Progress

_SMALL = 8 << 20  # bytes of a file that is packed in the time, some 6 ms, that it takes to look for a packed one
_CODE = ("config", "tensors", "formats", "families", "tokenizer", "heads", "weights")  # decide what is packed

Loaded = tuple[store.Stored, Tokenizer | TokenizerError]


class Asked(NamedTuple):
    """What is to be loaded: the arguments of open_source, the type to pack weights as, and whether floats that become
    four bits are rounded by our own text."""

    path: Path
    tokenizer: str | None
    from_hub: bool
    adapters: Sequence[Path]
    dtype: str | None
    calibrated: bool = True

    def open(self) -> Opened:
        """The checkpoint. Raises as open_source does."""
        return open_source(self.path, self.tokenizer, from_hub=self.from_hub, adapters=self.adapters)

    def digest(self) -> str:
        """Another one for whatever may give another file. Links in the folder's path are followed, the last is not: a
        file's name may say what it is."""
        path = os.path.join(os.path.realpath(self.path.parent), self.path.name) if self.path.name else os.getcwd()
        files = [os.path.abspath(file) for file in (self.tokenizer, *self.adapters) if file is not None]
        options = [path, self.tokenizer is not None, files, self.from_hub, self.dtype, self.calibrated]
        return _digest([options, store.VERSION, store.LAYOUT, _code()])


def load(asked: Asked, *, threads: int, read: Reading, progress: Progress | None, keep: bool) -> Loaded:
    """A checkpoint's packed weights, and its tokenizer or why it has none.

    read: the `reading` block around this call, in which only the checkpoint may have been opened. keep: whether the
    packed cache is used. Raises as open_source does, and CheckpointError for weights that cannot be used.
    """
    opened = None
    watched = read.watched(progress)
    try:
        place = folder.cache_folder() if keep and not _is_small(asked.path) else None
        if place is not None:
            folder.check(place)
            digest = asked.digest()
            target = place / folder.file_name(Path(os.path.abspath(asked.path)), digest)
            if (found := _find(target, digest, asked.path, say=True)) is not None:
                return found
            with folder.alone(target, lambda: note(f"waiting for another process, which packs {asked.path}")):
                if (found := _find(target, digest, asked.path, say=True)) is not None:
                    return found
                opened = asked.open()
                with _about(asked.path):
                    _write(target, digest, asked, opened, answers=read.answers, threads=threads, progress=watched)
            if (found := _find(target, digest, asked.path, say=False)) is not None:
                return found[0], opened.tokenizer
            raise TargetError(f"{target} cannot be used right after it was written")
    except TargetError as error:
        sentence = f"{asked.path} is packed into memory at each start: {error}"
        warnings.warn(sentence, CacheWarning, stacklevel=3)
    from fastllm.weights.packing import assemble, plan

    opened = opened or asked.open()
    with _about(asked.path):
        dtype = asked.dtype or opened.dtype
        plans = plan(opened.recipe, dtype)
        known, watched = _known(asked, opened, plans, threads=threads, progress=watched)
        stored = assemble(opened.recipe, dtype=dtype, threads=threads, progress=watched, known=known)
    return stored, opened.tokenizer


def _known(
    asked: Asked, opened: Opened, plans: Mapping[str, Plan], *, threads: int, progress: Progress
) -> tuple[Known | None, Progress]:
    """What packing is to know of the model's inputs, and its progress: see calibrated."""
    from fastllm.weights.calibration import calibrated

    if not asked.calibrated:
        return None, progress
    return calibrated(opened, plans, asked.path, None, threads=threads, progress=progress)


def _is_small(path: Path) -> bool:
    """Whether a checkpoint is one small file, and not the first of several (NAME-00001-of-00003.gguf)."""
    with suppress(OSError):
        return "-of-" not in path.name and path.is_file() and path.stat().st_size < _SMALL
    return False


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """A block that packs the checkpoint `path`, whose errors name it."""
    try:
        yield
    except TargetError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from None


def _find(target: Path, digest: str, model: Path, *, say: bool) -> Loaded | None:
    """What a packed file holds; None where there is none that may be used. model: the checkpoint, for messages.
    say: whether its tensors without use are named, as they are where it is opened.
    """
    try:
        with reading():  # of its own: what is asked here is no question about the checkpoint
            data = map_file(target, follow=False)
            if not store.is_store(data):
                return None
            about = os.fstat(data.obj.fileno())  # type: ignore[attr-defined]  # a _core.MappedFile
            stored = store.load(target, data)
            kept = stored.packed
            if (
                kept is None
                or (kept["digest"], kept["modified"]) != (digest, about.st_mtime_ns)
                or not folder.is_trusted(about)
                or not unchanged(kept["answers"])
            ):
                return None
            unused, place = [str(name) for name in kept["unused"]], Path(kept["place"])
    except (CheckpointError, KeyError, TypeError, OSError):
        return None
    folder.touch(target, about)
    if unused and say:
        from fastllm.families.names import unused_sentence

        warnings.warn(unused_sentence(model, unused), CheckpointWarning, stacklevel=4)
    words: Tokenizer | TokenizerError
    if stored.tokenizer is not None:
        words = _ready_words(stored) or tokenizer_inside(model, *stored.tokenizer)
    else:
        try:
            words = find(place, stored.config.vocab_size)
        except TokenizerError as error:
            words = error
    return stored._replace(identity=_digest([digest, kept["answers"]])), words


def _ready_words(stored: store.Stored) -> Tokenizer | None:
    """The tokenizer of a packed file, from its ready form; None where it has none, or the library's version changed."""
    if not stored.ready or stored.tokenizer is None:
        return None
    try:
        words = ready.load(stored.ready)
    except TokenizerError:
        return None
    words.kind, words.blob = stored.tokenizer
    return words


def _write(
    target: Path,
    digest: str,
    asked: Asked,
    opened: Opened,
    *,
    answers: Mapping[tuple[str, ...], Any],
    threads: int,
    progress: Progress,
) -> None:
    """Packs a checkpoint into the file `target`. Raises TargetError, and CheckpointError as store.write does."""
    from fastllm.weights.convert import parts
    from fastllm.weights.packing import plan

    plans = plan(opened.recipe, asked.dtype or opened.dtype)
    folder.make_room(target.parent, sum(matrix.nbytes for matrix in plans.values()))
    modified = int(time.time()) // 2 * 2 * 10**9
    packed = {
        "digest": digest,
        "answers": [[list(question), answer] for question, answer in answers.items()],
        "modified": modified,
        "model": os.path.abspath(asked.path),
        "unused": opened.recipe.unused,
        "place": os.path.abspath(opened.place),
    }
    words = opened.tokenizer
    stored = store.Stored.of(
        opened.recipe,
        {},
        tokenizer=opened.vocabulary,
        source=opened.about,
        packed=packed,
        ready=b"" if isinstance(words, TokenizerError) else ready.dump(words),
    )
    known, progress = _known(asked, opened, plans, threads=threads, progress=progress)
    found = parts(opened.recipe, plans, threads, progress, known)
    store.write(target, stored, found, private=True, modified=modified)


def _digest(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    """The hash of the code, and of the text to calibrate with, that decide what is packed: what an earlier version
    packed is not taken up.

    Contents are hashed, not times: environments that have the same version share files. Raises TargetError where the
    code is not in files, as in an archive.
    """
    root, found = Path(__file__).parents[1], sha256(Path(_core.__file__).read_bytes())
    for name in _CODE:
        files = sorted((root / name).rglob("*.py")) or list(root.glob(f"{name}.py"))
        if not files:  # an installation without sources has compiled files in their place, which begin with a time
            files = sorted((root / name).rglob("*.pyc")) or list(root.glob(f"{name}.pyc"))
        if not files:
            raise TargetError(f"fastllm has no files of its own in {root}, which would tell its versions")
        for file in [*files, *sorted((root / name).rglob("*.txt"))]:
            found.update(file.read_bytes()[16 if file.suffix == ".pyc" else 0 :])
    return found.hexdigest()
