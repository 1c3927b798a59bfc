"""Converts a folder of peers_models to a peer's format: python peers_convert.py FUNCTION JSON.

The peer's interpreter runs this, with the peer's own converter, offline.
"""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from peers_models import SHAPES, interleaved, read_tensors

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def fastllm_file(source: str, target: str, dtype: str) -> None:
    from fastllm.weights.convert import convert

    convert(source, target, dtype=dtype)


def fastllm_token_bytes(path: str) -> int:
    """Bytes of the weights that a new token reads."""
    import fastllm

    return fastllm.load(path, threads=1).bytes_per_token


def llama2c_file(folder: str, target: str) -> None:
    """Writes llama2.c's int8 format, and beside it a tokenizer in which every token is one word."""
    from fastllm.weights.convert import convert

    convert(folder, target, format="llama2c", version=2)
    vocab = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    with open(Path(target).with_name("tokenizer.bin"), "wb") as file:
        file.write(struct.pack("<i", 7))
        for i in range(vocab):
            file.write(struct.pack("<fi", 0, 7) + b" w%05d" % i)


def gguf_file(folder: str, target: str, name: str) -> None:
    """Writes an f16 GGUF without a tokenizer."""
    import gguf

    shape = SHAPES[name]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    for tensor, values in read_tensors(Path(folder) / "model.safetensors"):
        base = tensor.removesuffix(".weight")
        prefix = ""
        if base.startswith("model.layers."):
            _, _, layer, base = base.split(".", 3)
            prefix = f"blk.{layer}."
        heads = {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.kv_heads}.get(base)
        rows = interleaved(values, heads) if heads else values
        stored = np.ascontiguousarray(rows, np.float16 if rows.ndim == 2 else np.float32)
        writer.add_tensor(f"{prefix}{GGUF_NAMES[base]}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized_gguf(source: str, target: str, kind: str) -> None:
    """Quantizes a GGUF by llama.cpp itself."""
    import llama_cpp as lib

    log = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(log, ctypes.c_void_p(0))
    options = lib.llama_model_quantize_default_params()
    options.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp does not quantize to {kind}")


def gguf_token_bytes(path: str) -> int:
    """Bytes of the weights that a new token reads: all except an embedding that is not also the head."""
    import gguf

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def ctranslate2_folder(source: str, target: str, kind: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(source).convert(target, quantization=kind, force=True)


def ort_folder(source: str, target: str, kind: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target, "-p", kind]
    # int8 activations, as in the other peers.
    command += ["-e", "cpu", "-c", f"{target}.cache", "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
    _run(command)


def openvino_folder(source: str, target: str, kind: str, name: str) -> None:
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "-m", source]
    command += ["--weight-format", kind, "--task", "text-generation-with-past"]
    if kind == "int4":
        columns = (SHAPES[name].dim, SHAPES[name].hidden)
        group = next(g for g in (128, 64, 32) if all(n % g == 0 for n in columns))
        command += ["--sym", "--group-size", str(group), "--ratio", "1.0"]
    _run([*command, target])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])


FUNCTIONS = (
    fastllm_file,
    fastllm_token_bytes,
    llama2c_file,
    gguf_file,
    quantized_gguf,
    gguf_token_bytes,
    ctranslate2_folder,
    ort_folder,
    openvino_folder,
)

if __name__ == "__main__":
    named = {function.__name__: function for function in FUNCTIONS}
    print(json.dumps(named[sys.argv[1]](*json.loads(sys.argv[2]))))
