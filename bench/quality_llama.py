"""llama.cpp's part of bench/quality.py, run by the Python that has it: reads a request as JSON, writes rows as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from quality_scores import answers, compare, equal

F16, TYPES = 1, {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}  # llama_ftype


@llama_cpp.llama_log_callback
def _say_nothing(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def quantize(source: str, out: Path, ftype: int, importance: dict[str, NDArray[np.float32]]) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = ftype, True
    if importance:
        kind = llama_cpp.llama_cpp.llama_model_imatrix_data
        entries = (kind * (len(importance) + 1))()  # an entry of zeros ends the list
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(source.encode(), str(out).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp cannot make {out.name}")


class Loaded:
    def __init__(self, path: Path, longest: int) -> None:
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = False  # batches crash with weights repacked for AMX
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = longest
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, text: list[int]) -> NDArray[np.float32]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(text), 0, 1)
        batch.n_tokens = len(text)
        for i, token in enumerate(text):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp cannot run the model")
        llama_cpp.llama_batch_free(batch)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(text), self.size)).copy()

    def free(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    llama_cpp.llama_log_set(_say_nothing, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    folder, longest = Path(request["folder"]), max(map(len, request["texts"]))
    importance = {name: np.ascontiguousarray(values) for name, values in np.load(request["importance"]).items()}
    exact_path, rows = folder / "f16.gguf", []
    quantize(request["model"], exact_path, F16, {})
    exact = Loaded(exact_path, longest)
    right = answers(exact, request["questions"], request["stop"])

    def measure(label: str, path: Path) -> None:
        other = Loaded(path, longest)
        same = equal(right, answers(other, request["questions"], request["stop"]))
        rows.append((label, path.stat().st_size, *compare(exact, other, request["texts"]), same))
        other.free()

    for name, ftype in TYPES.items():
        for weights in ({}, importance) if name != "Q8_0" else ({},):
            out = folder / f"{name}.gguf"
            quantize(str(exact_path), out, ftype, weights)
            measure(f"{name}, imatrix" if weights else name, out)
            out.unlink()
    if request["quantized"]:
        measure("the file as it is", Path(request["model"]))
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
