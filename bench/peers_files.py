"""Each peer's files of the shapes, made by the peer's own converter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers_kinds import Peer
from peers_models import SHAPES, write_folder

HERE = Path(__file__).resolve().parent


class Files:
    """The folder with every peer's files for each shape, each made once with the peer's own converter."""

    def __init__(self, folder: Path, smollm2: Path | None, where: dict[str, str]) -> None:
        self.folder, self.smollm2, self.where = folder, smollm2, where

    def prepare(self, peer: Peer) -> None:
        """Makes the file if it is missing; sets peer.model and, if the file tells it, peer.token_bytes.

        Raises RuntimeError if the file cannot be made.
        """
        peer.scratch = self.folder / peer.shape
        peer.scratch.mkdir(parents=True, exist_ok=True)
        if peer.shape == "SmolLM2-135M":
            self._smollm2(peer)
            return
        home = peer.scratch
        write_folder(home / "hf", SHAPES[peer.shape])
        source, name = str(home / "hf"), peer.variant.name
        if peer.kind == "fastllm":
            peer.model = self._made(home / f"fastllm-{name}.safetensors", peer.python(), "fastllm_file", source, name)
        elif peer.kind == "llama2.c":
            peer.model = self._made(home / "llama2c.bin", sys.executable, "llama2c_file", source)
        elif peer.kind in ("llama.cpp", "ik_llama.cpp"):
            peer.model = self._gguf(peer, source)
        elif peer.kind == "torch":
            peer.model = home / "hf"
        else:
            function, *more = {
                "ctranslate2": ("ctranslate2_folder",),
                "ort": ("ort_folder",),
                "openvino": ("openvino_folder", peer.shape),
            }[peer.kind]
            target = home / f"{peer.kind}-{name}"
            peer.model = self._made(target, peer.python(), function, source, name, after=more)
        self._count_bytes(peer)

    def _smollm2(self, peer: Peer) -> None:
        if self.smollm2 is None:
            raise RuntimeError("--smollm2 is not given")
        if peer.kind == "fastllm":
            target = peer.scratch / f"fastllm-{peer.variant.name}.safetensors"
            peer.model = self._made(target, peer.python(), "fastllm_file", str(self.smollm2), peer.variant.name)
        else:
            peer.model = self.smollm2
        self._count_bytes(peer)

    def _gguf(self, peer: Peer, source: str) -> Path:
        python, kind = self._llama_cpp(peer), peer.variant.name
        target = peer.scratch / f"{kind}.gguf"
        if not target.exists():
            plain = self._made(peer.scratch / "f16.gguf", python, "gguf_file", source, after=[peer.shape])
            self._made(target, python, "quantized_gguf", str(plain), kind)
        return target

    def _llama_cpp(self, peer: Peer) -> str:
        """The interpreter with llama.cpp that makes and reads the peer's GGUF."""
        return self.where["llama.cpp"] if peer.is_binary else peer.python()

    def _made(
        self, target: Path, python: str, function: str, source: str, *rest: str, after: Sequence[str] = ()
    ) -> Path:
        if not target.exists():
            unfinished = target.with_name(f"unfinished-{target.name}")
            convert(python, function, source, str(unfinished), *rest, *after)
            unfinished.rename(target)
        return target

    def _count_bytes(self, peer: Peer) -> None:
        if peer.model.suffix == ".gguf":
            peer.token_bytes = convert(self._llama_cpp(peer), "gguf_token_bytes", str(peer.model))
        elif peer.kind == "fastllm":
            peer.token_bytes = convert(peer.python(), "fastllm_token_bytes", str(peer.model))


def convert(python: str, function: str, *args: str) -> Any:
    command = [python, str(HERE / "peers_convert.py"), function, json.dumps(args)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return json.loads(output(subprocess.run(command, text=True, capture_output=True, check=False, env=environment)))


def output(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process wrote. If it failed, raises RuntimeError with the last line of its errors."""
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
        raise RuntimeError(said[-1][:300] if said and done.returncode > 0 else ended)
    return done.stdout.strip().splitlines()[-1]
