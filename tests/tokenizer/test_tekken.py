"""Mistral's tekken.json gives mistral-common's ids, and broken files are refused."""

import json

import pytest

from fastllm import TokenizerError
from fastllm.tokenizer import decode, find, read
from helpers import vocabularies
from helpers.vocabularies import clean

pytest.importorskip("transformers")

LINES = vocabularies.lines(700, seed=5)


def test_tekken(tmp_path):
    mistral = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    for name, config in (("tekken.json", {}), ("tekken_2.json", {"version": "v3", "default_vocab_size": 700})):
        path = tmp_path / name
        path.write_bytes(vocabularies.tekken(**config))
        library = mistral.Tekkenizer.from_file(path)
        ours = read(path, library.n_words)
        assert (ours.kind, ours.size, ours.ends) == ("tekken", library.n_words, (library.eos_id,))
        texts = [clean(line) for line in LINES]
        wrong = [
            t for t in texts if [*ours.prefix, *ours.encode(t), *ours.suffix] != library.encode(t, bos=True, eos=False)
        ]
        assert wrong == []
        assert [decode(ours, ours.encode(text)) for text in texts] == texts
        assert decode(ours, range(library.n_words)) == library.decode(list(range(library.n_words)))
        assert all(ours.token_id(library.id_to_piece(i)) == i for i in range(10))
        assert ours.encode("[INST]a<SPECIAL_9>", special=True) == [3, *ours.encode("a"), 9]
    assert find(tmp_path, len(ours.stream().pieces) + 1000).kind == "tekken"


def test_tekken_without_special_tokens(tmp_path):
    mistral = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    path = tmp_path / "tekken.json"
    content = json.loads(vocabularies.tekken(default_num_special_tokens=25, default_vocab_size=500))
    del content["special_tokens"]
    path.write_text(json.dumps(content))
    library = mistral.Tekkenizer.from_file(path)
    ours = read(path, 500)
    assert ours.encode("a [TOOL_CALLS]") == library.encode("a [TOOL_CALLS]", bos=False, eos=False)
    assert [ours.token_id(library.id_to_piece(i)) for i in range(25)] == list(range(25))
    content["config"]["version"] = "v11"
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="has no special_tokens, which its version 'v11' needs"):
        read(path, 500)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("config"),
        lambda c: c["config"].pop("pattern"),
        lambda c: c["config"].update(pattern="("),
        lambda c: c["config"].update(default_vocab_size=1 << 40),
        lambda c: c["config"].update(default_num_special_tokens=1 << 40),
        lambda c: c["config"].update(default_num_special_tokens=2),
        lambda c: c["config"].update(default_num_special_tokens=True),
        lambda c: c.update(vocab={}),
        lambda c: c["vocab"].pop(3),
        lambda c: c["vocab"][300].update(token_bytes="?"),
        lambda c: c["vocab"][300].update(token_bytes=c["vocab"][299]["token_bytes"]),
        lambda c: c["vocab"].__setitem__(5, 7),
        lambda c: c["special_tokens"].pop(0),
        lambda c: c["special_tokens"][3].update(rank=1),
        lambda c: c["special_tokens"][3].update(token_str="<s>"),
        lambda c: c["special_tokens"][1].update(token_str="<begin>"),
        lambda c: c.update(special_tokens=[7]),
    ],
)
def test_broken_tekken(tmp_path, change):
    content = json.loads(vocabularies.tekken(400))
    change(content)
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tekken\.json is no usable tokenizer: "):
        read(tmp_path / "tekken.json", 1000)
