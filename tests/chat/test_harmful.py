"""Malicious templates and messages: their time and memory are bounded, and nothing leaves the sandbox."""

import json
import subprocess
import sys

import pytest

from fastllm import OptionError, TokenizerError
from fastllm.chat import ChatTemplate
from fastllm.tokenizer import from_blob
from helpers.calls import soon

pytest.importorskip("transformers")
pytest.importorskip("jinja2")


def template(source, tmp_path):
    tokenizer = from_blob("letters", b"<unk>\na")
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer)


GROWING = "{%% set ns = namespace(s=%s) %%}{%% for i in range(100) %%}%s{%% endfor %%}{{ ns.s | length }}"
HARMFUL = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(999999) %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    GROWING % ("'aa'", "{% set ns.s = ns.s + ns.s %}"),
    GROWING % ("'aa'", "{% set ns.s = ns.s ~ ns.s %}"),
    GROWING % ("'aa'", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    GROWING % ("[1]", "{% set ns.s = [ns.s, ns.s] %}"),
    GROWING % ("[1]", "{% set ns.s = (ns.s, ns.s) %}"),
    GROWING % ("[1]", "{% set ns.s = {'a': ns.s, 'b': ns.s} %}"),
    GROWING % ("[1]", "{% set ns.s = dict(a=ns.s, b=ns.s) %}"),
    GROWING % ("[1]", "{% set ns.s = ns.s + ns.s %}"),
    "{{ 'a' * 10000000000 }}",
    "{{ [0] * 10000000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ ('9' * 99) | int ** 99 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "{{ '%999999999s' | format('x') }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "{{ ('{:>9999}' * 9999).format(*range(9999)) }}",
    "{{ ('{a:>9999}' * 9999).format_map({'a': 1}) }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ ('{:>999999999}' | safe).format(1) }}",
    "{% for f in ['{:>999999999}'] | map(attribute='format') %}{{ f(1) }}{% endfor %}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'a'.zfill(999999999) }}",
    "{{ 'a\\ta'.expandtabs(999999999) }}",
    "{{ ('a' * 99999).translate({97: 'x' * 99999}) }}",
    "{{ ('a' * 99999).encode('punycode') }}",
    "{{ (1).to_bytes(999999999, 'big') }}",
    "{{ [1] | batch(999999999, 0) | list }}",
    "{{ [1] | slice(999999999) | list }}",
    "{{ 1 | round(-999999999) }}",
    "{{ ('a' * 999999) | urlize }}",
    "{{ ('a ' * 9999) | wordwrap(2, wrapstring='x' * 9999) }}",
    "{{ dict.fromkeys(range(99999), 'x' * 99999) | string }}",
    GROWING % ("'x'", "{% set ns.s = namespace(a=ns.s, b=ns.s) %}"),
    GROWING % ("'x'", "{% set ns.s = [dict(a=ns.s).items()] * 2 %}"),
    "{{ [9 ** 999] * 999999 }}",
    "{% for i in range(99999) %}{% set a = [0] * 999999 %}{% endfor %}",
    "".join(f"{{% set a{i} = 'x' * 2000000 %}}" for i in range(999)),
    "{{ 'a' | center(999999999) }}",
    "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "{{ ('a' * 99999) | replace('a', 'a' * 99999) }}",
    "{{ ('a' * 99999).join('a' * 99999) }}",
    "{{ ('a' * 99999) | join('a' * 99999) }}",
    "{{ ('a' * 99999) | list | join('a' * 99999) }}",
    "{{ 'a\\na' | indent(999999999) }}",
    "{{ ['a'] | tojson(indent=999999999) }}",
    "{{ ('9' * 999999) | int }}",
    "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ ('a' * 99999) | list | tojson(separators=('a' * 99999, ':')) }}",
    "{{ 'a\\na' | indent('a' * 1999999) }}",
    "{{ range(99999) | map('list') | sum(start=[]) }}",
    "{{ range(99999) | map('string') | map('list') | sum(start=[]) }}",
    "{{ 1.5 | round(99999999, 'floor') }}",
    "{{ (messages | attr('__class__')).mro() }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ lipsum(999999) }}",
    "{{ open('/etc/passwd').read() }}",
    "{{" * 9999,
    "{{ " + "(" * 9999,
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% if %}",
    "{{ nothing.at.all }}",
    "x" * 200_000,
]


@pytest.mark.parametrize("source", HARMFUL, ids=lambda source: source[:40].strip())
def test_harmful_templates(source, tmp_path):
    with soon(), pytest.raises(TokenizerError, match=r"the chat template (is|cannot)") as error:
        template(source, tmp_path).render([{"role": "user", "content": "hi"}])
    assert "\n" not in str(error.value)


def test_memory_of_harmful_templates():
    """Each template in a process of its own, whose peak memory is checked."""
    code = """
import json, resource, sys
from fastllm import TokenizerError
from fastllm.chat import _sandbox as sandbox
sandbox.SECONDS = 0.2
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in json.load(sys.stdin):
    try:
        sandbox.render(source, {"messages": []})
    except TokenizerError:
        pass
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    quick = [source for source in HARMFUL if "99999) %}{" not in source and "f(60)" not in source]
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(quick), capture_output=True, text=True, timeout=60, check=True
    )
    before, after = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert (after - before) * unit < 400 << 20


def test_internals_stay_empty(tmp_path):
    """Names that begin with an underscore are undefined, so that a template shows nothing of Python's internals."""
    for source in (
        "{{ messages.__class__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ messages[0].__len__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.mro }}",
    ):
        assert template(source, tmp_path).render([{"role": "user", "content": "hi"}]) == ""


def test_messages_that_are_refused(tmp_path):
    ours = template("{{ messages[0].content }}{{ raise_exception('no tools') if tools }}", tmp_path)
    with pytest.raises(OptionError, match="refuses the messages: no tools"):
        ours.render([{"role": "user", "content": "hi"}], tools=[1])
    with pytest.raises(OptionError, match="role 'end'"):
        ours.render([{"role": "end", "content": "hi"}])
    for method in (ours.encode, ours.render):
        with pytest.raises(OptionError, match="type object"):
            method([{"role": "user", "content": object()}])
        with pytest.raises(OptionError, match="at least one message"):
            method([])
        with pytest.raises(OptionError, match=r"messages\[0\] is a str"):
            method(["hi"])


def test_long_conversations(tmp_path):
    """A template that asks for the number of messages at each message takes linear time."""
    source = "{% for m in messages %}{{ m.content }}{% if loop.index < messages | length %};{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": [{"text": str(i)} for i in range(4)]} for _ in range(1000)]
    text = template(source.replace("m.content", "m.content | map(attribute='text') | join"), tmp_path).render(messages)
    assert text == ";".join(["0123"] * 1000)
