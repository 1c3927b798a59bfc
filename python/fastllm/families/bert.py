"""BERT (Devlin et al., 2019) and what shares its blocks: norms after each addition, learned positions, full attention.

MiniLM and AntiBERTy (Ruffolo et al., 2021) are BERTs; RoBERTa (Liu et al., 2019) differs in names and in where its
positions begin.
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families import Recipe, Source
from fastllm.families.huggingface import act, head_width, modern_names
from fastllm.tensors import Tensor, floats, joined_rows, part


def recipe(source: Source) -> Recipe:
    """BertModel, BertForMaskedLM, BertForPreTraining, AntiBERTy. A pooler is a part of a classifier, else left out."""
    head = "cls.predictions"
    pairs = source.task == "sequence classification" and source.integer("type_vocab_size", 2) > 1
    transform = (f"{head}.transform.dense", f"{head}.transform.LayerNorm")
    return _recipe(source, "bert.", head, transform, second_segment=pairs)


def roberta(source: Source) -> Recipe:
    """RobertaModel, RobertaForMaskedLM, their XLM and Camembert names. Positions start after the padding token's id."""
    source.refuse("hidden_act", "gelu")  # the head's is, whatever the blocks' may be
    first = source.integer("pad_token_id", 1) + 1
    return _recipe(source, "roberta.", "lm_head", ("lm_head.dense", "lm_head.layer_norm"), first=first)


def _recipe(
    source: Source,
    prefix: str,
    head: str,
    transform: tuple[str, str],
    *,
    first: int = 0,
    second_segment: bool = False,
) -> Recipe:
    """head: where the masked-token head is, if there is one; transform: the matrix and norm it begins with.

    second_segment: whether texts come in pairs whose second has a token type of its own.
    """
    source.refuse("is_decoder", False)
    source.refuse("position_embedding_type", "absolute")
    source.tensors = modern_names(source.tensors)
    dim, heads = source.integer("hidden_size"), source.integer("num_attention_heads")
    head_dim = head_width(source, dim, heads)
    longest = source.integer("max_position_embeddings") - first
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size"),
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.integer("vocab_size"),
        max_seq=longest,
        positions=longest,
        rotary_dim=0,
        norm="layer",
        norm_eps=source.number("layer_norm_eps", 1e-12),
        norm_after=True,
        act=act(source),
        gated=False,
        causal=False,
        head=f"{transform[0]}.weight" in source.tensors,
        second_segment=second_segment,
        attn_scale=head_dim**-0.5,
    )
    root = prefix if f"{prefix}embeddings.word_embeddings.weight" in source.tensors else ""
    table = source.tensor(f"{root}embeddings.position_embeddings.weight")
    kinds = source.tensor(f"{root}embeddings.token_type_embeddings.weight")
    if kinds.rows <= second_segment or kinds.width != table.width:
        raise source.error(
            f"has token types of {kinds.rows} x {kinds.width}, positions of {table.rows} x {table.width}"
        )
    positions = part(table, first, first + longest)
    segments = [_plus_row(positions, kinds, i) for i in range(1 + second_segment)]
    source.matrix("positions", joined_rows(segments))
    source.norm("embed_norm", f"{root}embeddings.LayerNorm")
    for i in range(config.n_layers):
        theirs, ours = f"{root}encoder.layer.{i}", f"layers.{i}"
        for name in ("query", "key", "value"):
            source.linear(f"{ours}.attn.w{name[0]}", f"{theirs}.attention.self.{name}")
        source.linear(f"{ours}.attn.wo", f"{theirs}.attention.output.dense")
        source.norm(f"{ours}.attn_norm", f"{theirs}.attention.output.LayerNorm")
        source.linear(f"{ours}.ffn.w1", f"{theirs}.intermediate.dense")
        source.linear(f"{ours}.ffn.w2", f"{theirs}.output.dense")
        source.norm(f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm")
    source.matrix("embed", f"{root}embeddings.word_embeddings.weight")
    if config.head:
        source.linear("head.dense", transform[0])
        source.norm("head.norm", transform[1])
        decoder = f"{head}.decoder"
        source.vector("head.bias", f"{decoder}.bias" if f"{decoder}.bias" in source.tensors else f"{head}.bias")
        if not source.flag("tie_word_embeddings", True):
            source.matrix("head", f"{decoder}.weight")
    return source.recipe(config)


def _plus_row(table: Tensor, kinds: Tensor, kind: int) -> Tensor:
    """Positions with the vector of a token type added to each."""
    return Tensor("f32", table.shape, lambda begin, end: floats(table, begin, end) + floats(kinds, kind, kind + 1))
