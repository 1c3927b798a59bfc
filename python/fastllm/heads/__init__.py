"""What a model makes of its last hidden states besides logits: vectors of texts, labels of texts and tokens.

dense: the layers that compute them; embedding: one vector for a text; labels: scores of labels, and of pairs of texts.
Embedding, Classifier and Ranking are plain data, which converted files keep as JSON.
"""

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
