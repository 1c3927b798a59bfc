"""Train the built-in demo model from scratch: write the stories, then learn from them.

Usage: ``python -m storyteller.train --out DIR [--seed N] [--minutes M] [--resume model.bin]``

In bench/, with torch, numpy and sentencepiece.  It writes
``tokenizer.model`` (SentencePiece), ``model.bin`` (float32, llama2.c's first format) and
``stories.safetensors``, both of them in int8, which the package ships.
"""

from __future__ import annotations

import argparse
import itertools
import math
import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.weights import store
from fastllm.weights.packing import assemble
from storyteller.corpus import stories

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 128, 352, 5, 4, 2, 1024, 384
HEAD = DIM // HEADS
BOS, EOS = 1, 2

STORIES = 100_000
HELD_OUT = 2_000
BATCH = 16
PEAK_RATE = 4e-3
WARMUP = 0.02  # of the training time


class RMSNorm(nn.Module):
    """Scale to unit root mean square."""

    def __init__(self) -> None:
        """Start with weights of one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return functional.rms_norm(x, (DIM,), self.weight.to(x.dtype), 1e-5)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of each head by the angle of their position."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


class Layer(nn.Module):
    """One Llama layer: grouped attention, then a gated feed-forward part."""

    def __init__(self) -> None:
        """Create the weights under llama2.c's names."""
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(), RMSNorm()
        self.wq = nn.Linear(DIM, HEADS * HEAD, bias=False)
        self.wk = nn.Linear(DIM, KV_HEADS * HEAD, bias=False)
        self.wv = nn.Linear(DIM, KV_HEADS * HEAD, bias=False)
        self.wo = nn.Linear(HEADS * HEAD, DIM, bias=False)
        self.w1 = nn.Linear(DIM, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, DIM, bias=False)
        self.w3 = nn.Linear(DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """Return the layer's output for a batch of sequences."""
        h = self.attention_norm(x)
        q = rotate(self.wq(h).view(*x.shape[:2], HEADS, HEAD), turn)
        k = rotate(self.wk(h).view(*x.shape[:2], KV_HEADS, HEAD), turn)
        v = self.wv(h).view(*x.shape[:2], KV_HEADS, HEAD).float()
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 2) for t in (k, v))
        # On a CPU, attention is faster in float32; the rest is faster in bfloat16.
        with torch.autocast("cpu", enabled=False):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        out: Tensor = x + self.w2(functional.silu(self.w1(h)) * self.w3(h))
        return out


class Llama(nn.Module):
    """The whole model; the output layer shares the embedding's weights."""

    turn: Tensor

    def __init__(self) -> None:
        """Create the weights, small enough for the first loss to be log(VOCAB)."""
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** -(torch.arange(0, HEAD, 2) / HEAD))
        # A complex number of length one for each position and pair; the heads share it.
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles)[:, None])
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(weight, std=0.04 / math.sqrt(2 * LAYERS if residual else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits after each of *tokens*."""
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, self.turn[: tokens.shape[1]])
        return functional.linear(self.norm(x), self.tok_embeddings.weight)


def train_tokenizer(path: Path, seed: int) -> spm.SentencePieceProcessor:
    """Train the tokenizer on some stories and return it."""
    spm.SentencePieceTrainer.train(
        sentence_iterator=stories(seed, 20_000),
        model_writer=(writer := path.open("wb")),
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    writer.close()
    return spm.SentencePieceProcessor(model_file=str(path))


def batches(tokenizer: spm.SentencePieceProcessor, texts: Iterator[str], rng: np.random.Generator) -> list[np.ndarray]:
    """Return the stories as BOS, text, EOS, in batches of stories of exactly the same length.

    So every story starts at position 0, as it does when the model runs, and nothing is padded.
    """
    by_length: dict[int, list[list[int]]] = {}
    while chunk := list(itertools.islice(texts, 10_000)):
        for tokens in tokenizer.encode(chunk, out_type=int, add_bos=True, add_eos=True):
            by_length.setdefault(len(tokens), []).append(tokens)
    found = [
        np.array(group[start : start + BATCH], dtype=np.int16)
        for group in by_length.values()
        for start in range(0, len(group), BATCH)
    ]
    return [found[i] for i in rng.permutation(len(found))]


def loss_of(model: nn.Module, rows: np.ndarray) -> Tensor:
    """Return the mean cross entropy of predicting each token from the ones before it."""
    tokens = torch.from_numpy(rows).long()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, held_out: list[np.ndarray]) -> float:
    """Return the mean loss per token."""
    total = sum(loss_of(model, rows).item() * rows.size for rows in held_out)
    return total / sum(rows.size for rows in held_out)


def fit(model: Llama, corpus: list[np.ndarray], minutes: float, first: int) -> float:
    """Train for so many minutes, from batch *first* on, and return the mean loss of the last steps."""
    # Muon learns the layers' matrices from far fewer stories; the rest is for AdamW.
    layers = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [model.tok_embeddings.weight, *(p for p in model.parameters() if p.dim() == 1)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(layers, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    start, losses, seen = time.monotonic(), deque[float](maxlen=100), 0
    for step in itertools.count():
        done = (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            break
        for group in itertools.chain(*(each.param_groups for each in optimizers)):
            group["lr"] = PEAK_RATE * min(1, done / WARMUP) * (1 + math.cos(math.pi * done)) / 2
        rows = corpus[(first + step) % len(corpus)]
        loss = loss_of(model, rows)
        model.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
        losses.append(loss.item())
        seen += rows.size
        if step % 50 == 0:
            mean = sum(losses) / len(losses)
            print(f"{done:6.1%}  step {step}  {seen / 1e6:.2f} M tokens  loss {mean:.4f}", flush=True)
    print(f"{step} steps, {seen / 1e6:.1f} M tokens, {step / len(corpus):.2f} of the corpus")
    return sum(losses) / len(losses)


def tensors(model: Llama) -> Iterator[Tensor]:
    """Yield the weights in llama2.c's order."""
    yield model.tok_embeddings.weight
    for name in ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"):
        for layer in model.layers:
            yield getattr(layer, name).weight
    yield from (model.norm.weight, model.turn.real, model.turn.imag)


@torch.no_grad()
def read_weights(model: Llama, path: Path) -> None:
    """Take the weights of an earlier run's model.bin."""
    values = torch.from_numpy(np.fromfile(path, "<f4", offset=28))
    for tensor in itertools.islice(tensors(model), 9 * LAYERS + 2):
        tensor.copy_(values[: tensor.numel()].view_as(tensor))
        values = values[tensor.numel() :]


@torch.no_grad()
def round_to_int8(model: Llama) -> None:
    """Round the matrices as the shipped file does: int8, one float16 scale per 32 weights."""
    for weight in model.parameters():
        if weight.dim() == 2:
            groups = weight.view(-1, 32)
            scale = (groups.abs().amax(1, keepdim=True) / 127).half().float().clamp(min=1e-8)
            groups.copy_((groups / scale).round().clamp(-127, 127) * scale)


def package(out: Path) -> None:
    """Convert model.bin and tokenizer.model to the file the package ships: int8, mapped as it is."""
    path = out / "model.bin"
    plan = recipe(open_checkpoint(path))
    stored = assemble(plan._replace(stop=(BOS, EOS)), dtype="q8", threads=1)
    tokenizer = ("sentencepiece", (out / "tokenizer.model").read_bytes())
    store.save(out / "stories.safetensors", stored._replace(tokenizer=tokenizer))


def main() -> None:
    """Make the corpus, the tokenizer and the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--resume", type=Path, help="a model.bin to go on from")
    parser.add_argument("--first", type=int, default=0, help="the batch to begin with, when resuming")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    tokenizer = train_tokenizer(args.out / "tokenizer.model", args.seed)
    rng = np.random.default_rng(args.seed)
    corpus = batches(tokenizer, stories(args.seed, STORIES), rng)
    held_out = batches(tokenizer, stories(args.seed + 1, HELD_OUT), rng)
    model = Llama()
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    print(f"{sum(rows.size for rows in corpus) / 1e6:.1f} M tokens", flush=True)

    if args.resume:
        read_weights(model, args.resume)
    trained = fit(model, corpus, args.minutes, args.first)
    with (args.out / "model.bin").open("wb") as file:
        file.write(struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT))
        for tensor in tensors(model):
            file.write(tensor.detach().numpy().astype("<f4").tobytes())
    print(f"loss: training {trained:.4f}, held out {evaluate(model, held_out):.4f}", end="")
    round_to_int8(model)
    print(f", held out as int8 {evaluate(model, held_out):.4f}")
    package(args.out)


if __name__ == "__main__":
    main()
