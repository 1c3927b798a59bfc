"""Adds an adapter to a checkpoint: finds for each of the adapter's tensors the one of the model that it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from fastllm.errors import CheckpointError
from fastllm.formats import Checkpoint
from fastllm.tensors import Tensor, floats, transposed
from fastllm.weights.lora import _options
from fastllm.weights.lora._product import Factors, added

# The name of a LoRA tensor: module.part[.adapter name][.weight]; saving mostly drops the adapter's name.
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
)
# What PEFT puts around modules that were trained whole.
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.(?!weight$|bias$)[^.]+)?)(?=\.)")

_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # GPT-2's matrices, which are stored (inputs, outputs)
_HEADS = {"embed_tokens": "lm_head", "wte": "lm_head", "embed_in": "embed_out"}  # embedding -> head; the last, GPT-NeoX
# PEFT's task types -> the class of the model that the adapter was trained in, and the heads of such a class.
_TASKS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_CLASSIFIERS = ("classifier", "score")


class Merge:
    """One adapter on top of one checkpoint.

    base, adapter: the two; header, tensors, architecture: those of the merged checkpoint, as far as it is made. lost,
    added: the prefix that the adapter's names have and the base's have not, and the other way round.
    """

    def __init__(self, base: Checkpoint, adapter: Checkpoint) -> None:
        self.base, self.adapter = base, adapter
        self.options = _options.read(adapter)
        self.tensors, self.header, self.architecture = dict(base.tensors), dict(base.header), base.architecture
        self.lost, self.added = "", ""

    def result(self) -> Checkpoint:
        """The merged checkpoint. Raises CheckpointError."""
        modules: dict[str, dict[str, str]] = {}  # module -> part -> tensor
        whole: dict[str, str] = {}  # name in the model -> tensor
        for name in self.adapter.tensors:
            plain = name.removeprefix("base_model.model.")
            if found := _PART.fullmatch(plain):
                part = found["part"] + (".bias" if found["kind"] == "bias" else "")
                if modules.setdefault(found["module"], {}).setdefault(part, name) != name:
                    raise self.error(f"has {part} of {found['module']} more than once")
            elif plain.endswith((".weight", ".bias")) and "lora_" not in plain:
                if whole.setdefault(_WRAPPERS.sub("", plain), name) != name:
                    raise self.error(f"has {_WRAPPERS.sub('', plain)} more than once")
            else:
                raise self.error(f"has the tensor {name}, which is of no kind that fastllm applies")
        if not modules and not whole:
            raise self.error("has no tensors")
        whole = self.without_classifier(whole)
        changed = [self.replace(target, name) for target, name in whole.items()]
        changed += [self.add(module, parts) for module, parts in modules.items()]
        self.untie(changed)
        about = f"{self.base.format} with {self.adapter.path.name}"
        return self.base._replace(
            format=about, architecture=self.architecture, tensors=self.tensors, header=self.header
        )

    def error(self, what: str) -> CheckpointError:
        """An error to raise: "ADAPTER what"."""
        return CheckpointError(f"{self.adapter.path} {what}")

    def without_classifier(self, whole: dict[str, str]) -> dict[str, str]:
        """Adds the classifier that an adapter brings to a model that has none, and returns the rest of `whole`.

        The adapter does not name the classifier's labels.
        """
        task = _TASKS.get(str(self.adapter.header.get("task_type")))
        brought = {target: name for target, name in whole.items() if target.partition(".")[0] in _CLASSIFIERS}
        if task is None or not brought or any(name.partition(".")[0] in _CLASSIFIERS for name in self.tensors):
            return whole
        self.tensors |= {target: self.adapter.tensors[name] for target, name in brought.items()}
        self.header |= {"id2label": None, "num_labels": None}
        self.architecture = re.sub("(For[A-Z][A-Za-z]*|LMHeadModel|Model)$", "", self.architecture) + task
        return {target: name for target, name in whole.items() if target not in brought}

    def target(self, name: str, tensor: str) -> str:
        """The base's name of what the adapter calls `name`: the same, or the only one with the same end.

        Classes of the library nest a model differently, so that prefixes differ. tensor: the adapter's, for messages.
        """
        moved = self.added + name.removeprefix(self.lost) if name.startswith(self.lost) else name
        for known in (moved, name):
            if known in self.tensors:
                return known
        tail = name.rpartition("language_model.")[2]  # some versions have it before "model.", some after
        found = [
            t
            for t in self.tensors
            if t.endswith(f".{name}")
            or (name.endswith(f".{t}") and (t.count(".") > 1 or "." not in name.removesuffix(f".{t}")))
            or (tail != name and t.endswith(f".{tail}") and "language_model." in t)
        ]
        if len(found) != 1:
            if _module(name) in _HEADS.values() and (embedding := self.embedding()):
                return self.head(embedding)
            where = "several places" if found else "no place"
            raise self.error(f"has {tensor}, for which {self.base.path} has {where}")
        common = next(t for t in (name, found[0], tail) if name.endswith(t) and found[0].endswith(t))
        self.lost, self.added = name.removesuffix(common), found[0].removesuffix(common)
        return found[0]

    def head(self, embedding: str) -> str:
        """The head's name; of a tied head, the name it gets once it differs from the embedding."""
        there = [name for name in self.tensors if _module(name) in _HEADS.values()]
        return there[0] if there else f"{_HEADS[_module(embedding)]}.weight"

    def embedding(self) -> str | None:
        """The name of the embedding, None unless there is one."""
        names = [name for name in self.base.tensors if _module(name) in _HEADS]
        return names[0] if len(names) == 1 else None

    def weight(self, name: str) -> Tensor:
        """A matrix of the model; for a tied head the embedding."""
        embedding = self.embedding()
        if name not in self.tensors and embedding is not None:
            return self.base.tensors[embedding]
        return self.tensors[name]

    def replace(self, name: str, tensor: str) -> str:
        """Replaces a tensor that was trained whole, and returns its name in the base."""
        target, new = self.target(name, tensor), self.adapter.tensors[tensor]
        if new.shape != self.weight(target).shape:
            there = self.weight(target).shape
            raise self.error(f"has {tensor} of the shape {new.shape}, the model {target} of the shape {there}")
        self.tensors[target] = new
        return target

    def add(self, module: str, parts: Mapping[str, str]) -> str:
        """Adds the product of a module's two factors to its matrix, and returns that matrix's name in the base."""
        kind = "lora_embedding_" if "lora_embedding_A" in parts else "lora_"
        known = {f"{kind}A", f"{kind}B", "lora_magnitude_vector", "lora_B.bias"}
        if not {f"{kind}A", f"{kind}B"} <= parts.keys() or not parts.keys() <= known:
            raise self.error(f"is broken: it has {' and '.join(sorted(parts))} of {module}, not two factors")
        a, b = (self.adapter.tensors[parts[kind + letter]] for letter in "AB")
        target = self.target(f"{module}.weight", parts[f"{kind}A"])
        weight = self.weight(target)
        if (
            len(weight.shape) != 2
            or len(a.shape) != 2
            or len(b.shape) != 2
            or a.shape[0] != b.shape[1]
            or not a.shape[0]
        ):
            raise self.error(f"has factors of {a.shape} and {b.shape} for {target} of {weight.shape}")
        outputs, inputs = b.shape[0], a.shape[1]
        turned = weight.shape != (outputs, inputs) if outputs != inputs else self.is_conv1d(module, weight)
        turned = turned or kind == "lora_embedding_"
        if weight.shape != ((inputs, outputs) if turned else (outputs, inputs)):
            raise self.error(f"has factors of {a.shape} and {b.shape} for {target} of {weight.shape}")
        scale = self.options.scale(self.adapter, module, a.shape[0], parts[f"{kind}A"])
        magnitude = self.magnitude(module, parts, outputs, kind)
        factors = Factors(self.adapter.path, parts[f"{kind}A"], a, b, scale)
        if magnitude is not None and turned:
            weight = transposed(added(transposed(weight), factors, magnitude=magnitude))
        else:
            weight = added(weight, factors._replace(turned=turned), magnitude=magnitude)
        self.tensors[target] = weight
        if "lora_B.bias" in parts:
            self.add_bias(module, parts["lora_B.bias"], scale)
        return target

    def is_conv1d(self, module: str, weight: Tensor) -> bool:
        """Whether a square matrix is stored (inputs, outputs): a Conv1D of GPT-2, unless it was quantized."""
        return self.header.get("model_type") == "gpt2" and module.rpartition(".")[2] in _CONV1D and not weight.stored

    def magnitude(self, module: str, parts: Mapping[str, str], outputs: int, kind: str) -> Tensor | None:
        """The lengths of the merged rows, where the adapter is DoRA (Liu et al., 2024); None where it is not."""
        name = parts.get("lora_magnitude_vector")
        if (name is not None) != self.options.dora:
            what = "no lora_magnitude_vector" if name is None else "a lora_magnitude_vector"
            raise self.error(f"is broken: it has {what} of {module}, and use_dora {self.options.dora}")
        if name is None:
            return None
        if kind != "lora_":
            raise self.error(
                f"has {name}: fastllm does not apply DoRA to embeddings; merge it into its model with peft"
            )
        tensor = self.adapter.tensors[name]
        if math.prod(tensor.shape) != outputs:
            raise self.error(f"has {name} of the shape {tensor.shape} for {outputs} outputs")
        return tensor

    def add_bias(self, module: str, name: str, scale: float) -> None:
        """Adds the bias of a module's second factor to the module's."""
        target = self.target(f"{module}.bias", name)
        old, new = self.tensors[target], self.adapter.tensors[name]
        if old.shape != new.shape:
            raise self.error(f"has {name} of the shape {new.shape}, the model {target} of the shape {old.shape}")
        self.tensors[target] = Tensor("f32", old.shape, lambda b, e: floats(old, b, e) + floats(new, b, e) * scale)

    def untie(self, changed: Sequence[str]) -> None:
        """Gives a model whose head is its embedding a head of its own, where the adapter changes only one of them."""
        embedding = self.embedding()
        if embedding is None:
            masked = self.base.architecture.endswith(("ForMaskedLM", "ForPreTraining"))
            if masked and any(".word_embeddings." in name for name in changed):
                raise self.error(
                    "changes the embedding of a model whose head it is, too: merge it into its model with peft"
                )
            return
        head = self.head(embedding)
        if head in changed:
            self.header["tie_word_embeddings"] = False
        elif embedding in changed and not self.options.keep_tied:
            tied = self.header.get("tie_word_embeddings")
            if tied is True or (tied is None and head not in self.base.tensors):
                self.tensors[head] = self.base.tensors[embedding]
                self.header["tie_word_embeddings"] = False


def _module(tensor: str) -> str:
    """The module's own name, "lm_head" of "model.lm_head.weight"."""
    return tensor.removesuffix(".weight").rpartition(".")[2]
