"""What a model makes of its stream besides logits: dense layers, labels of texts and tokens, and vectors of texts."""

from fastllm.heads import dense
from fastllm.heads.dense import Layer
from fastllm.heads.embedding import POOLINGS, Embedding, normalized, prompts_by_name
from fastllm.heads.labels import Classifier, Ranking, activate

__all__ = [
    "POOLINGS",
    "Classifier",
    "Embedding",
    "Layer",
    "Ranking",
    "activate",
    "dense",
    "normalized",
    "prompts_by_name",
]
