"""Models by their name on the Hugging Face hub, by the huggingface_hub library, with its cache, tokens, offline mode.

https://huggingface.co/docs/huggingface_hub. Of a repository only the files that fastllm reads are downloaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath

from fastllm.errors import CheckpointError, import_error

# llama2.c's files with a vocabulary of 32,000 come without their tokenizer, Llama's. This copy of it is not gated.
LLAMA_TOKENIZER = ("hf-internal-testing/llama-tokenizer", "tokenizer.model")

# The files of a repository that may be its weights, best first: those of the first pattern that matches any are taken.
_WEIGHTS = (
    "model*.safetensors",
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
    "consolidated.*.pth",
    "*.ckpt",
    "ckpt-0/*",
    "*.gguf",
)
# The files beside the weights: configs, tokenizers, templates, indexes.
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "additional_chat_templates/*.jinja", "*.yaml", "tok*.bin")
# sentence-transformers has a folder for each module after the model, such as 1_Pooling and 2_Dense.
_MODULE = re.compile(r"[1-9]\d*_\w+/(?:config\.json|model\.safetensors|pytorch_model\.bin)")
_PATIENCE = 10  # seconds for the hub to answer
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")  # one of the files of a GGUF model that is split


def fetch(name: str, revision: str | None) -> Path:
    """The folder of owner/name, or the file of owner/name/file, in the cache; downloads it if it is not there.

    Without a network, what the cache has of it counts. Raises CheckpointError where there is none, in one sentence.
    """
    owner, repo, *rest = name.split("/")
    repo, file = f"{owner}/{repo}", "/".join(rest)
    with _one_sentence(name, repo, revision):
        from huggingface_hub import HfApi, errors, snapshot_download

        try:
            # This request does not retry. snapshot_download would, for half a minute where there is no network.
            about = HfApi(library_name="fastllm").model_info(repo, revision=revision, timeout=_PATIENCE)
            names = [file.rfilename for file in about.siblings or ()]
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception:  # offline, wanted or not
            if (known := _cached(repo, file, revision)) is None:
                raise
            return known
        chosen = _of_file(repo, names, file) if file else _of_folder(repo, names)
        patterns = [escape(name) for name in chosen]
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, library_name="fastllm"))
    return folder / file if file else folder


def _cached(repo: str, file: str, revision: str | None) -> Path | None:
    """The files of an earlier run in the cache, or None."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["/"])
    except Exception:  # not in the cache either; the hub's own error says more, and the caller raises it
        return None
    return Path(found) / file if (Path(found) / file).exists() else None


def llama_tokenizer() -> Path:
    """The path of Llama's tokenizer.model. Raises CheckpointError."""
    repo, file = LLAMA_TOKENIZER
    with _one_sentence(f"{repo}/{file}", repo, None):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo, file, library_name="fastllm"))


def _of_folder(repo: str, names: Sequence[str]) -> list[str]:
    """Of the names of a repository's files, those that it takes to run the model. Raises CheckpointError."""
    home, modules = _modules(names) if "modules.json" in names else ("", [])
    weights = next((found for p in _WEIGHTS if (found := [n for n in names if _matches(n, home + p)])), [])
    single = [n for n in weights if n.endswith(".gguf") and not PART.search(n)]
    if not weights or len(single) > 1:
        what = f"{len(single)} models" if weights else "no weights of a form that fastllm knows"
        such = next((n for n in names if n.endswith((".gguf", ".bin"))), None)
        raise CheckpointError(f"{repo} has {what} on the hub: name a file{f', such as {repo}/{such}' if such else ''}")
    beside = [n for n in names if any(_matches(n, p) or _matches(n, home + p) for p in _BESIDE)]
    return [*weights, *modules, *beside]


def _modules(names: Sequence[str]) -> tuple[str, list[str]]:
    """Of sentence-transformers' files: the folder of the model, "" for the top, and the files of the other modules."""
    first = [n.removesuffix("config.json") for n in names if re.fullmatch(r"0_\w+/config\.json", n)]
    home = first[0] if first and "config.json" not in names else ""
    better = {n.replace("model.safetensors", "pytorch_model.bin") for n in names if n.endswith("/model.safetensors")}
    return home, [n for n in names if _MODULE.fullmatch(n) and n not in better]


def _of_file(repo: str, names: Sequence[str], file: str) -> list[str]:
    """A file, the other parts of its model if it is split, and configs and tokenizers of its folder."""
    if file not in names:
        raise CheckpointError(f"{repo} has no file {file} on the hub")
    parts = PART.sub(r"-?????-of-\1.gguf", escape(file))
    folder = PurePosixPath(file).parent
    beside = [
        n for n in names if PurePosixPath(n).parent == folder and any(fnmatchcase(Path(n).name, p) for p in _BESIDE)
    ]
    return [*(n for n in names if fnmatchcase(n, parts)), *beside]


def _matches(name: str, pattern: str) -> bool:
    """As in a shell, where a star matches no slash."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


@contextmanager
def _one_sentence(name: str, repo: str, revision: str | None) -> Iterator[None]:
    """Turns the errors of huggingface_hub into a CheckpointError of one sentence."""
    try:
        from huggingface_hub import errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except (ImportError, OSError) as error:
        missing = CheckpointError(
            f"{name} does not exist here; to get it from the Hugging Face hub: pip install 'fastllm[hub]'"
        )
        raise import_error(error, "huggingface_hub", missing) from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    at = f" at {revision!r}" if revision else ""
    try:
        yield
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo} and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{name} is neither a file here nor a model on the hub (or it is private)") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision!r} on the hub") from None
    except errors.HFValidationError:
        raise CheckpointError(f"{name} does not exist") from None
    except Exception as error:  # of the HTTP library, which differs between versions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}{at} is not here, and the hub cannot be reached: {reason}") from None
