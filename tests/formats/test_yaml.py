"""The reader of YAML configs gives what PyYAML gives, or refuses the file."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastllm.formats._yaml import YAMLError, load
from helpers.calls import soon

yaml = pytest.importorskip("yaml")

# In the style of mindformers' configs: comments, lists of operators, anchors, brackets over several lines.
CONFIG = r"""# model of a test
seed: 0
output_dir: './output' # path to save
load_checkpoint: ''
only_save: False
runner:
  epochs: 2
  warmup: 1_000
  rate: 5.e-5
  eps: 1.e-8
  text: 1e-8
train_dataset: &train_dataset
  data_loader:
    type: MindDataset
    shuffle: True
  input_columns: ["input_ids", 'labels']  # names
  python_multiprocessing: false
train_task:
  type: CausalLanguageModelDataset
  dataset_config: *train_dataset
callbacks:
  - type: MFLossMonitor
  - type: CheckpointMonitor
    prefix: "llama2"
    parts:
    - [1, 2,
       3]  # lines
    - {a: 1, "b": [], c: {}, d: }
  -
    type: Other
model:
  model_config:
    type: LlamaConfig
    num_layers: 32
    n_kv_heads:
    rms_norm_eps: 1.0e-05
    ignore: -100
    octal: 0o17 017 0
    scaling_factor:
      factor: 8.0
      original: 8192
    path: "a\\.b\t\u00e9"
    it: 'it''s # no comment' # one
    url: http://a:80/#b
    wide: [ -1, .5, +7, 0x1F, 0b11, 017, .inf, ~, null, yes, Off, "yes", y ]
"""


def same(found, expected):
    """Equality that compares types too, and by which NaN equals NaN."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, dict):
        pairs = zip(found.items(), expected.items(), strict=False)
        return len(found) == len(expected) and all(same(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected or (isinstance(found, float) and math.isnan(found) and math.isnan(expected))


def test_a_config():
    assert same(load(CONFIG), yaml.safe_load(CONFIG))
    assert same(load("\ufeff---\r\n" + CONFIG.replace("\n", "\r\n")), yaml.safe_load(CONFIG))


PRINTABLE = st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f\u2028\u2029\x85\xad")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(PRINTABLE, max_size=8).filter(lambda text: text.isprintable()),
    st.sampled_from(
        ["1e-8", "0x1", "yes", "~", "- a", "a: b", "#", "a #b", "''", "*a", "&a", "[", "%", "?", "08", "<", ":"]
    ),
)
KEYS = st.one_of(st.text("abc_:# -", min_size=1, max_size=6), st.integers(0, 99), st.booleans())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(
    value=st.dictionaries(KEYS, VALUES, max_size=5) | st.lists(VALUES, max_size=4),
    style=st.sampled_from([None, True, False]),
    indent=st.sampled_from([2, 4]),
    twice=st.booleans(),
)
def test_what_pyyaml_writes(value, style, indent, twice):
    """Any plain value that PyYAML writes, also when it occurs twice and the second time as an alias."""
    value = [value, value] if twice else value
    text = yaml.safe_dump(value, default_flow_style=style, indent=indent, width=10**6, allow_unicode=True)
    try:
        found = load(text)
    except YAMLError as error:
        # What is refused: an anchor within brackets, and a key that is not a scalar of one line.
        assert any(mark in text for mark in ("&id", "? ", "=", "<<")), error  # noqa: PT017
    else:
        assert same(found, yaml.safe_load(text))


PARTS = ["a", "b: ", ": ", ":", "- ", "-", "\n", "\n  ", "\n    ", "\n- ", " ", "[", "]", "{", "}", ",", ", ", "'", '"']
PARTS += ["#", " #", "&x ", "*x", "1", "0", "_", ".", "e-5", "null", "yes", "?", "!", "|", ">", "%", "@", "\\", "---"]


def read_the_same(text):
    """Asserts that a text that is read is read by PyYAML too, with the same result."""
    try:
        with soon():
            found = load(text)
    except YAMLError as error:
        assert str(error).startswith("line ")  # noqa: PT017
    else:
        assert same(found, yaml.safe_load(text)), text


@settings(max_examples=1500)
@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
@example("a: b: c")
@example("- a: 1\n b: 2")
@example("a:\n- b\n -c")
@example("a:\n  &x\n  b: 1")
@example("[a, , b]")
@example("{a: b, c}")
def test_any_text(text):
    read_the_same(text)


@settings(max_examples=500)
@given(data=st.data())
def test_a_config_that_is_changed(data):
    text = CONFIG
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from([*PARTS, ""])) + text[at + data.draw(st.integers(0, 5)) :]
    read_the_same(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: [", "line 1 opens a bracket that is not closed"),
        ("a:\n  b: 'x\n", "line 2 has a quoted text that does not end on it"),
        ("- " * 3000, "line 1 is nested too deeply"),
        ("a: " + "[" * 3000, "line 1 is nested too deeply"),
        ("a: &a [1]\nb:\n  <<: *a", "line 3 merges keys with <<"),
        ("a: &a [*a]", "line 1 has the alias *a, which is no value before it"),
        ("a: !!python/object/apply:os.system ['true']", "line 1 has '!!python"),
        ("a: |\n  text", "line 1 has '|' where a value begins"),
        ("a: x\n  y", "line 1 goes on|line 2 goes on"),
        ("a: 2024-01-01", "a date"),
        ("a: 12:30:45", "a number to base 60"),
        ("a:\tb", "line 1 has the character"),
        ("a: \0", "line 1 has the character"),
        ("a: 1\n---\nb: 2", "line 2 begins another document"),
        ("a: " + "9" * 5000, "which is no number"),
        ("x" * 2000 + ": 1", "key that is too long"),
    ],
)
def test_what_is_refused(text, cause):
    with soon(), pytest.raises(YAMLError, match=cause.replace("*", r"\*").replace("'|'", r"'\|'")):
        load(text)


def test_aliases_take_no_more_memory():
    """An alias names an object without a copy: 2^n values in n lines take little memory."""
    levels = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" if i else "a0: &a0 [x]" for i in range(60)]
    with soon():
        found = load("\n".join(levels))
    assert found["a59"][0] is found["a59"][1]
