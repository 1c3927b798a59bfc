"""Lines of text of many scripts, and small vocabularies of every kind, trained on them by the library of the kind."""

import base64
import json
import random

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = """
the a ocean there then once upon time été naïve world World HELLO dog. dogs, ran! to don't we'll I'M it's 12 3456 7.5
x = y + 1; def f(x): return x**2 // 3 if(a&&b){c[0]->d;} <div class="k"> https://x.ai/?q=1&r=%20 snake_case camelCase
Straße ΑΒΓ αβγ Привет мир 你好 世界 日本語 テキスト カタカナ 한국어 שלום مرحبا हिन्दी ไทย ქართული 😀 👩\u200d👩\u200d👧
🇩🇪 é e\u0301 ﬁ ½ Ⅷ \u200b … “q” \u2581under 0x1F
"""
WORDS = WORDS.split()
LOOK_ALIKES = ["<s>", "</s>", "<unk>", "<|im_end|>", "<|endoftext|>", "[MASK]", "[CLS]", "<0x41>", "<|im_", "<mask>"]
SPACES = [" ", " ", " ", "  ", "    ", "\n", "\n\n", "\t", " \n ", "\r\n", " " * 17, "", "\u3000"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def lines(count, seed=0, *, look_alikes=True):
    """Lines of words, spaces and random characters of many scripts, some with bytes that are no UTF-8 (as surrogates).

    look_alikes: also with texts that look like special tokens.
    """
    rng = random.Random(seed)
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0xE80), (0x2000, 0x2C00)]
    blocks += [(0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xFE00, 0x10000), (0x1F300, 0x1FA00)]
    out = ["", " ", "  ", "\n", "a", " a", "a ", "\0", "\ufeff", "\ufffd", "\U0010ffff", "'", "''s", "'S't"]
    while len(out) < count:
        parts = []
        for _ in range(rng.randrange(1, 12)):
            draw = rng.random()
            if draw < 0.6:
                parts.append(rng.choice(WORDS))
            elif draw < 0.7 and look_alikes:
                parts.append(rng.choice(LOOK_ALIKES))
            elif draw < 0.95:
                parts.append("".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(1, 5))))
            else:
                broken = bytes(rng.randrange(256) for _ in range(4)).decode("utf-8", "surrogateescape")
                parts.append(broken)
            parts.append(rng.choice(SPACES))
        out.append("".join(parts))
    return out


def clean(text):
    """A line without lone surrogates, which some libraries refuse: each becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


CORPUS = [clean(line) for line in lines(600, seed=9, look_alikes=False)] + [" ".join(WORDS)] * 20


# ---- trained by the tokenizers library -------------------------------------------------------------------------------


def byte_level(split, *, normalizer=None, vocab_size=900, ignore_merges=False):
    """A byte-level BPE whose pre-tokenizer splits words, as GPT-2 and Llama 3 have."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>", *SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def regex_split(pattern):
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2_split():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def word_pieces(*, lower, vocab_size=700):
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def by_id(tokenizer):
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def merges_of(tokenizer):
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def save_gpt2(tokenizer, folder):
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = [" ".join(merge) for merge in merges_of(tokenizer)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def ranks(vocab_size=1200):
    """A file of tiktoken's ranks as Llama 3's tokenizer.model is one: lines of a token in base64 and its rank."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = gpt2_split()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokens = [bytes(alphabet[character] for character in token) for token in by_id(tokenizer)]
    return b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))


def tekken(vocab_size=900, **config):
    """Mistral's tekken.json: tokens by rank, and the special tokens of older versions. config: more of its config."""
    tokens = [base64.b64decode(line.split()[0]) for line in ranks(vocab_size).splitlines()]
    tokens = [bytes([byte]) for byte in range(256)] + [token for token in tokens if len(token) > 1]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[TOOL_CALLS]"]
    config = {
        "pattern": TEKKEN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": len(tokens) + 10,
        "default_num_special_tokens": 10,
        "version": "v7",
    } | config
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": t.decode(errors="ignore") or None}
        for i, t in enumerate(tokens)
    ]
    special = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)]
    return json.dumps({"config": config, "vocab": vocab, "special_tokens": special}).encode()


TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_json(folder, *, vocab_size=900):
    """A tokenizer.json as Llama 2 has it: SentencePiece's BPE with byte fallback, and a template that adds BOS."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=names, limit_alphabet=200, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


# ---- trained by sentencepiece ----------------------------------------------------------------------------------------


def sentence_pieces(folder, *, prefix=True, vocab_size=600, symbols=True):
    """Trains a SentencePiece BPE model. symbols: with control and user-defined pieces."""
    more = {
        "user_defined_symbols": ["\n", "\u2581\u2581", "<start_of_turn>"],
        "control_symbols": ["<|im_start|>", "<|im_end|>"],
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        add_dummy_prefix=prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **(more if symbols else {}),
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


XLM_ROBERTA = {"unk_id": 0, "bos_id": 1, "eos_id": 2}


def unigram(path, *, vocab_size=400, **options):
    """Trains a SentencePiece unigram model with SentencePiece's own normalization."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20 + [word for word in WORDS for _ in range(9)]),
        model_prefix=str(path.with_suffix("")),
        vocab_size=vocab_size,
        model_type="unigram",
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.with_suffix(".vocab").unlink()


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def gguf(model, tokens, types, **values):
    """A GGUF tokenizer's metadata as JSON, in the form that formats.gguf passes on."""
    metadata = {"model": model, "tokens": tokens, "token_type": types, **values}
    return json.dumps({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}).encode()


def gguf_pieces(library, *, prefix):
    """The GGUF metadata that llama.cpp's converter writes for a SentencePiece model."""
    ids = range(library.vocab_size())
    tests = [(library.is_unknown, 2), (library.is_control, 3), (library.is_unused, 5), (library.is_byte, 6)]
    types = [next((kind for test, kind in tests if test(i)), 1) for i in ids]
    own = {"\n", "▁▁", "<start_of_turn>"}
    types = [4 if library.id_to_piece(i) in own else kind for i, kind in zip(ids, types, strict=True)]
    tokens = [library.id_to_piece(i).replace("▁", " ") if types[i] == 4 else library.id_to_piece(i) for i in ids]
    scores = [library.get_score(i) for i in ids]
    return gguf("llama", tokens, types, scores=scores, bos_token_id=1, eos_token_id=2, add_space_prefix=prefix)


def gguf_bytes(tokenizer, pre, **values):
    """The GGUF metadata of a byte-level BPE; special tokens are of the type control. pre: the name of its split."""
    tokens = by_id(tokenizer)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    types = [3 if token in special else 1 for token in tokens]
    merges = [" ".join(merge) for merge in merges_of(tokenizer)]
    return gguf("gpt2", tokens, types, merges=merges, pre=pre, bos_token_id=1, eos_token_id=2, **values)


# ---- comparing with transformers' classes ----------------------------------------------------------------------------

# Texts with mask tokens, and what looks like some.
MASKS = [
    "a <mask> b",
    "a<mask>b",
    " <mask>",
    "<mask>\n",
    "x [MASK] y",
    "[MASK]",
    "\t[MASK]z",
    "é <mask><mask> b",
    "<unk> .",
]


def same(ours, library, texts):
    """Asserts the library's ids for texts.

    Once with special tokens recognized and with those that are put around a text, once with special tokens as text.
    """
    taken = [(t, [*ours.prefix, *ours.encode(t, special=True), *ours.suffix], library.encode(clean(t))) for t in texts]
    assert [(text, got, want) for text, got, want in taken if got != want][:3] == []
    options = {"add_special_tokens": False, "split_special_tokens": True}
    plain = [(t, ours.encode(t), library.encode(clean(t), **options)) for t in texts]
    assert [(text, got, want) for text, got, want in plain if got != want][:3] == []


BART = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def save_bytes(folder, specials, config):
    """Writes a byte-level BPE as vocab.json and merges.txt; its first ids are the special tokens."""
    tokenizer = byte_level(gpt2_split(), vocab_size=600)
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*specials, *(t for t in state["vocab"] if t not in specials)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, state["merges"])) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
