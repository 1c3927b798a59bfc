"""BERT (Devlin et al., 2019) and its relatives: norms after each addition, learned positions, both directions.

https://arxiv.org/abs/1810.04805. MiniLM and AntiBERTy (Ruffolo et al., 2021, https://arxiv.org/abs/2112.07782) are
BERTs; RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692) has other names, and its positions begin later.
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._huggingface import act, head_width
from fastllm.families.source import Recipe, Source
from fastllm.tensors import Tensor, floats, joined_rows, part


def bert(source: Source) -> Recipe:
    """BertModel, BertForMaskedLM, BertForPreTraining, AntiBERTy. The pooler is read as part of a classifier only."""
    head = "cls.predictions"
    transform = (f"{head}.transform.dense", f"{head}.transform.LayerNorm")
    return _encoder(source, "bert.", head, transform, pairs=True)


def roberta(source: Source) -> Recipe:
    """RobertaModel, RobertaForMaskedLM, and the same for XLM-R and CamemBERT.

    Positions begin at the row after the padding token's id.
    """
    source.refuse("hidden_act", "gelu")  # the head has gelu always, and the core one activation for all
    first = source.integer("pad_token_id", 1) + 1
    return _encoder(source, "roberta.", "lm_head", ("lm_head.dense", "lm_head.layer_norm"), first=first)


def _encoder(
    source: Source,
    prefix: str,
    head: str,
    transform: tuple[str, str],
    *,
    first: int = 0,
    pairs: bool = False,
) -> Recipe:
    """The recipe of an encoder whose modules are under `prefix`.

    head: the module that predicts masked tokens, if there is one. transform: the matrix and the norm it begins with.
    first: the row of the first position. pairs: whether the second of a pair of texts has a token type of its own,
    where the model has two types.
    """
    source.refuse("is_decoder", False)
    source.refuse("position_embedding_type", "absolute")
    dim, heads = source.integer("hidden_size", 768), source.integer("num_attention_heads", 12)
    head_dim = head_width(source, dim, heads)
    longest = source.rows("max_position_embeddings", f"{prefix}embeddings.position_embeddings.weight") - first
    second_segment = pairs and source.task == "sequence classification" and source.integer("type_vocab_size", 2) > 1
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size", 3072),
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers", 12),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.rows("vocab_size", f"{prefix}embeddings.word_embeddings.weight"),
        max_seq=longest,
        positions=longest,
        rotary_dim=0,
        norm="layer",
        norm_eps=source.number("layer_norm_eps", 1e-12),
        norm_after=True,
        act=act(source),
        gated=False,
        causal=False,
        head=any(f"{name}.weight" in source.tensors for name in (*transform, f"{head}.decoder")),
        second_segment=second_segment,
        attn_scale=head_dim**-0.5,
    )
    _positions(source, f"{prefix}embeddings", first, config)
    source.norm("embed_norm", f"{prefix}embeddings.LayerNorm", bias=True)
    for i in range(config.n_layers):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"layers.{i}"
        for name in ("query", "key", "value"):
            source.linear(f"{ours}.attn.w{name[0]}", f"{theirs}.attention.self.{name}", bias=True)
        source.linear(f"{ours}.attn.wo", f"{theirs}.attention.output.dense", bias=True)
        source.norm(f"{ours}.attn_norm", f"{theirs}.attention.output.LayerNorm", bias=True)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.intermediate.dense", bias=True)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.output.dense", bias=True)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm", bias=True)
    embed = f"{prefix}embeddings.word_embeddings.weight"
    if not config.head:
        source.matrix("embed", embed)
    else:
        source.embedding(embed, f"{head}.decoder.weight", tied=True, needed=True)
        source.linear("head.dense", transform[0], bias=True)
        source.norm("head.norm", transform[1], bias=True)
        # Two names of one parameter; some files have both.
        bias = source.tensors.get(f"{head}.bias")
        decoder = f"{head}.decoder.bias"
        source.vector("head.bias", decoder if bias is None or decoder in source.tensors else bias)
    return source.recipe(config)


def _positions(source: Source, theirs: str, first: int, config: Config) -> None:
    """Names the table of positions: rows `first` and on of the file's, with the token type of the text added to each.

    With a second segment the table follows once more, with the second token type.
    """
    table = source.tensor(f"{theirs}.position_embeddings.weight")
    kinds = source.tensor(f"{theirs}.token_type_embeddings.weight")
    if kinds.rows <= config.second_segment or kinds.width != table.width:
        raise source.error(
            f"has token types of {kinds.rows} x {kinds.width}, positions of {table.rows} x {table.width}"
        )
    positions = part(table, first, first + config.positions)
    segments = [_plus_row(positions, kinds, i) for i in range(1 + config.second_segment)]
    source.matrix("positions", joined_rows(segments))


def _plus_row(table: Tensor, kinds: Tensor, kind: int) -> Tensor:
    """A table of positions with the vector of token type `kind` added to each row."""
    return Tensor("f32", table.shape, lambda begin, end: floats(table, begin, end) + floats(kinds, kind, kind + 1))
