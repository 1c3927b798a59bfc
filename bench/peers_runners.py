"""One class for each peer that is a Python package: it loads a model and times what it computes.

A class imports its package only when it loads a model, so that a process measures no other import.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

BEFORE = 8  # tokens of a prompt before a decode
SETTLE = 4  # new tokens before those that are timed


class Runner(ABC):
    """A loaded model. New tokens are given ids, or greedy ones if the peer can only generate."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.threads: int = spec["threads"]
        self.vocab: int = spec["vocab"]
        self.room: int = spec["room"]  # positions that the work needs
        self.batch: int = spec["batch"]  # texts at once
        self.kv: str = spec["kv"]  # the type of keys and values: f16 or q8
        self.scratch: str = spec["scratch"]  # a folder for files
        self.settings: dict[str, Any] = spec["settings"]
        self.load(spec["model"], spec["variant"])

    @abstractmethod
    def load(self, model: str, variant: str) -> None: ...

    @abstractmethod
    def prompt(self, tokens: list[int]) -> None:
        """Computes the logits after a prompt that shares no beginning with earlier ones."""

    @abstractmethod
    def decode(self, before: int, count: int) -> float:
        """Seconds for `count` new tokens after a prompt of `before` tokens, which may be cached since the last call."""

    def decode_batch(self, sequences: int, count: int) -> float:
        """Seconds for `count` new tokens of each of `sequences` texts in one batch."""
        raise RuntimeError("is not measured with several sequences at once")

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        return [1, *((7919 * (i + 1) + 104729 * seed) % (self.vocab - 100) + 50 for i in range(count - 1))]


class FastLLM(Runner):
    def load(self, model: str, variant: str) -> None:
        import fastllm
        from fastllm.decoding import Sampling

        self.llm = fastllm.load(model, threads=self.threads, kv=self.kv)
        self.greedy = Sampling(temperature=0)

    def _start(self, tokens: list[int], count: int) -> Any:
        generation = iter(self.llm.start(tokens, self.greedy, max_tokens=count, seed=0, stop=()))
        next(generation)  # the first token is computed with the prompt
        return generation

    def prompt(self, tokens: list[int]) -> None:
        # Another first token each time, so that no part of the prompt is in the cache.
        self._start([tokens[-1], *tokens[1:]], 1)

    def decode(self, before: int, count: int) -> float:
        generation = self._start(self.tokens(before), 1 + SETTLE + count)
        for _ in range(SETTLE):
            next(generation)
        start = time.perf_counter()
        done = sum(1 for _ in generation)
        if done != count:
            raise RuntimeError(f"{done} new tokens, not {count}")
        return time.perf_counter() - start

    def decode_batch(self, sequences: int, count: int) -> float:
        from fastllm.engine import Scheduler

        self.llm._scheduler = scheduler = Scheduler(self.llm._engine, sequences)
        total, begun = 1 + SETTLE + count, 0.0

        def watch(token: int) -> bool:
            nonlocal begun
            if all(len(text.tokens) > SETTLE for text in texts) and begun == 0:
                begun = time.perf_counter()
            return False

        texts = [
            self.llm.start(self.tokens(BEFORE, i), self.greedy, max_tokens=total, seed=0, stop=())
            for i in range(sequences)
        ]
        texts[-1].watch = watch
        scheduler.run(texts)
        if any(len(text.tokens) != total for text in texts):
            raise RuntimeError(f"fewer than {total} tokens")
        return time.perf_counter() - begun


class LlamaCpp(Runner):
    """Token ids are given, not sampled: its best case."""

    def load(self, model: str, variant: str) -> None:
        import ctypes

        import llama_cpp as lib

        self.lib, self.log = lib, lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self.log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.use_extra_bufts = self.settings["repack"]  # repacks weights for AMX or wide registers
        loaded = lib.llama_model_load_from_file(model.encode(), options)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.room * self.batch, self.batch
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = self.threads
        flash = self.settings.get("flash", params.flash_attn_type)
        params.flash_attn_type = flash
        if self.kv == "q8":
            params.type_k = params.type_v = lib.GGML_TYPE_Q8_0
        params.no_perf = True
        self.context = lib.llama_init_from_model(loaded, params) if loaded else None
        if not self.context:
            raise RuntimeError("llama.cpp does not load the model")
        self.memory = lib.llama_get_memory(self.context)
        self.before = 0  # length of the last decode's prompt
        # Values are laid out differently without flash attention, so the two have separate files.
        self.state = Path(self.scratch) / f"llama.cpp-{self.kv}-{flash}.state"
        self.tokens_of_batch = lib.llama_batch_init(512, 0, self.batch)

    def _decode(self, spans: list[tuple[int, int, int]], wanted: int) -> None:
        """Decodes a batch of (token, position, sequence) and waits for the logits of the last `wanted` tokens."""
        batch = self.tokens_of_batch
        batch.n_tokens = len(spans)
        for i, (token, position, sequence) in enumerate(spans):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i >= len(spans) - wanted
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        if wanted:
            self.lib.llama_get_logits_ith(self.context, -1)
        else:
            self.lib.llama_synchronize(self.context)

    def prompt(self, tokens: list[int]) -> None:
        self.lib.llama_memory_clear(self.memory, True)
        for at in range(0, len(tokens), 512):
            part = tokens[at : at + 512]
            self._decode([(token, at + i, 0) for i, token in enumerate(part)], int(at + 512 >= len(tokens)))

    def decode(self, before: int, count: int) -> float:
        if self.before == before:
            self.lib.llama_memory_seq_rm(self.memory, 0, before, -1)
        elif before > 512:
            self._restore(before)
        elif self.settings["repack"]:  # with AMX some versions crash on a batch
            for at, token in enumerate(self.tokens(before)):
                self._decode([(token, at, 0)], 1)
        else:
            self.prompt(self.tokens(before))
        self.before = before
        one = (self.lib.llama_token * 1)()
        batch = self.lib.llama_batch_get_one(one, 1)
        start = 0.0
        for i, token in enumerate(self.tokens(SETTLE + count, 1)):
            if i == SETTLE:
                start = time.perf_counter()
            one[0] = token
            if self.lib.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")
            self.lib.llama_get_logits_ith(self.context, -1)
        return time.perf_counter() - start

    def _restore(self, before: int) -> None:
        """Loads the state after a long prompt, which an earlier process has saved, or computes and saves it."""
        path, tokens = str(self.state).encode(), self.tokens(before)
        held = (self.lib.llama_token * before)(*tokens)
        if self.state.exists():
            found = self.lib.ctypes.c_size_t()
            if self.lib.llama_state_load_file(self.context, path, held, before, found) and found.value == before:
                return
        self.prompt(tokens)
        self.lib.llama_state_save_file(self.context, path, held, before)

    def decode_batch(self, sequences: int, count: int) -> float:
        self._decode([(50 + at + s, at, s) for at in range(BEFORE) for s in range(sequences)], sequences)
        start = time.perf_counter()
        for at in range(BEFORE, BEFORE + count):
            self._decode([(50 + at + s, at, s) for s in range(sequences)], sequences)
        return time.perf_counter() - start


class CTranslate2(Runner):
    def load(self, model: str, variant: str) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            model, device="cpu", compute_type=self.settings["compute"], inter_threads=1, intra_threads=self.threads
        )

    def _generate(self, prompts: list[list[int]], count: int) -> list[float]:
        """The time at which each step ended."""
        times: list[float] = []

        def note(step: Any) -> bool:
            if step.batch_id == 0:
                times.append(time.perf_counter())
            return False

        words = [[f"w{t}" if t > 2 else "<s>" for t in prompt] for prompt in prompts]
        self.generator.generate_batch(
            words,
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
            max_batch_size=0,
        )
        return times

    def prompt(self, tokens: list[int]) -> None:
        self._generate([tokens], 1)

    def decode(self, before: int, count: int) -> float:
        return self.decode_batch(1, count)

    def decode_batch(self, sequences: int, count: int) -> float:
        times = self._generate([self.tokens(BEFORE, i) for i in range(sequences)], 1 + SETTLE + count)
        return times[-1] - times[SETTLE]


class OrtGenAI(Runner):
    def load(self, model: str, variant: str) -> None:
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(model)
        session = {"intra_op_num_threads": self.threads, "inter_op_num_threads": 1, **self.settings}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)

    def _generator(self, prompts: list[list[int]]) -> Any:
        import numpy as np

        params = self.og.GeneratorParams(self.model)
        options = {"max_length": self.room, "min_length": self.room, "do_sample": False}
        params.set_search_options(batch_size=len(prompts), **options)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator

    def prompt(self, tokens: list[int]) -> None:
        self._generator([tokens]).generate_next_token()

    def decode(self, before: int, count: int) -> float:
        return self._decode([self.tokens(before)], count)

    def decode_batch(self, sequences: int, count: int) -> float:
        return self._decode([self.tokens(BEFORE, i) for i in range(sequences)], count)

    def _decode(self, prompts: list[list[int]], count: int) -> float:
        generator = self._generator(prompts)
        for _ in range(1 + SETTLE):
            generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        return time.perf_counter() - start


class OpenVinoGenAI(Runner):
    def load(self, model: str, variant: str) -> None:
        import openvino_genai as ov

        self.ov = ov
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads, **self.settings}
        self.pipeline = ov.LLMPipeline(model, "CPU", **options)

    def _generate(self, prompts: list[list[int]], count: int) -> list[float]:
        """The seconds that each token of the first text took."""
        import numpy as np
        import openvino

        config = self.ov.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        tensor = openvino.Tensor(np.array(prompts, np.int64))
        mask = openvino.Tensor(np.ones((len(prompts), len(prompts[0])), np.int64))
        result = self.pipeline.generate(self.ov.TokenizedInputs(tensor, mask), config)
        if len(result.tokens[0]) != count:
            raise RuntimeError(f"{len(result.tokens[0])} new tokens, not {count}")
        return [float(t) / 1e6 for t in result.perf_metrics.raw_metrics.m_durations]

    def prompt(self, tokens: list[int]) -> None:
        self._generate([tokens], 1)

    def decode(self, before: int, count: int) -> float:
        return self.decode_batch(1, count)

    def decode_batch(self, sequences: int, count: int) -> float:
        steps = self._generate([self.tokens(BEFORE, i) for i in range(sequences)], 1 + SETTLE + count)
        return sum(steps[-count:])


class Torch(Runner):
    def load(self, model: str, variant: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        dtype = torch.bfloat16 if variant == "bf16" else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        if variant == "int8":
            self.model = torch.ao.quantization.quantize_dynamic(self.model, {torch.nn.Linear}, torch.qint8)

    def _forward(self, tokens: list[list[int]], past: Any = None) -> Any:
        ids = self.torch.tensor(tokens)
        with self.torch.inference_mode():
            return self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values

    def prompt(self, tokens: list[int]) -> None:
        self._forward([tokens])

    def decode(self, before: int, count: int) -> float:
        return self._decode([self.tokens(before)], count)

    def decode_batch(self, sequences: int, count: int) -> float:
        return self._decode([self.tokens(BEFORE, i) for i in range(sequences)], count)

    def _decode(self, prompts: list[list[int]], count: int) -> float:
        past = self._forward(prompts)
        for i in range(SETTLE):
            past = self._forward([[50 + i]] * len(prompts), past)
        start = time.perf_counter()
        for i in range(count):
            past = self._forward([[100 + i]] * len(prompts), past)
        return time.perf_counter() - start


RUNNERS: dict[str, type[Runner]] = {
    "fastllm": FastLLM,
    "llama.cpp": LlamaCpp,
    "ctranslate2": CTranslate2,
    "ort": OrtGenAI,
    "openvino": OpenVinoGenAI,
    "torch": Torch,
}
