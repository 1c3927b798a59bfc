"""Each construct of Jinja that chat templates use renders as in transformers.

The filters, methods, tests and statements are those in the templates of some 240 models, and all others of Jinja whose
result is defined.
"""

import json

import pytest

from fastllm import TokenizerError
from fastllm.chat import ChatTemplate
from fastllm.chat import _sandbox as sandbox
from fastllm.tokenizer import find, from_blob
from helpers import vocabularies

pytest.importorskip("transformers")
pytest.importorskip("jinja2")

from helpers import conversations

VALUES = "{% set text = ' A <b> é\\tß\\n x-1 ' %}{% set items = [3, 1, 2, 1] %}{% set map = {'b': 1, 'a': [2, none]} %}"
FILTERS = """
text | capitalize; text | center(40); text | e; text | forceescape; text | escape | upper; text | indent
text | length; text | indent(2, true, true); text | indent('> '); text | lower; text | replace('b', 'cc')
text | replace('b', 'c', 1); text | reverse; text | safe; text | string; text | striptags; text | title; text | trim
text | trim(' A'); text | upper; text | truncate(5); text | truncate(8, true, '..'); text | urlencode
text | wordcount; text | wordwrap(4); text | list; text | wordwrap(3, wrapstring='|'); text | first; text | last
text | count; text | tojson; 'see http://a.b/c' | urlize; items | batch(3, 'x') | list; items | slice(3) | list
items | sort; items | sort(reverse=true); items | unique | list; items | sum; [[1], [2]] | sum(start=[])
[{'a': 1}, {'a': 2}] | sum('a'); items | max; items | min; items | join('-'); items | select('odd') | list
items | reject('gt', 1) | list; items | map('string') | join; items | reverse | list
[{'a': 1}, {'b': 2}] | selectattr('a', 'defined') | list; [{'a': 1}, {}] | rejectattr('a') | list; items | tojson
[{'a': 1}, {'a': 2}] | map(attribute='a') | list; [{'a': 1}] | map(attribute='c', default='no') | list
['b', 'A'] | sort; [{'a': 2}, {'a': 1}] | groupby('a'); ['b', 'A'] | unique | join(', ')
[{'a': 'x'}] | join('+', attribute='a'); map | dictsort; map | dictsort(true, 'value', true) | list if false else 1
map | items | list; map | tojson(indent=2); map | tojson(sort_keys=true); map | tojson(separators=(',', ':'))
map | tojson(ensure_ascii=true); map | tojson('\\t'); map | xmlattr; map | length; map | list; map | string
map | pprint; 'é' | tojson; nothing | default('d'); '' | d('e', true); -1.5 | abs; '42' | int; '4x' | int(7)
'ff' | int(base=16); '1.5' | float; 1.25 | round(1); 7 | round(-1); 1.21 | round(1, 'ceil'); 123456 | filesizeformat
'%s and %05.1f' | format('x', 2.25); '%(a)s' | format(a=1); 9 | string; map | attr('a'); nothing | length
none | string; [] | first; [] | max; '' | trim | length; {'a': true} | tojson; 1e30 | tojson; [1, 'x'] ~ 1.0
none ~ true; items | map('tojson') | join; map.items() | list
"""
METHODS = """
text.strip(); text.lstrip(); text.rstrip('\\n '); text.split(); text.split('b', 1); text.rsplit('b', 1)
text.splitlines(); text.partition('b'); text.rpartition('>'); text.startswith(' A'); text.endswith(('x', ' '))
text.lower(); text.upper(); text.title(); text.capitalize(); text.swapcase(); text.casefold()
text.replace('b', 'cc'); text.replace('b', 'c', 1); text.find('b'); text.rfind('b'); text.index('b')
text.index('q'); text.rindex('b'); text.count('b'); text.isdigit(); text.isalpha(); text.isalnum(); text.isspace()
text.isupper(); text.islower(); text.istitle(); text.isascii(); text.isdecimal(); text.isnumeric()
text.isidentifier(); text.isprintable(); text.removeprefix(' A'); text.removesuffix(' '); text.center(30, '*')
text.ljust(30); text.rjust(30, '.'); '-7'.zfill(5); text.expandtabs(4); text.translate({98: 'xyz'})
', '.join(items | map('string')); '-'.join(['a', 'b']); '-'.join(map); '{} {1}'.format(1, 2)
'{:>6}|{:05.1f}'.format('a', 2); '{0[a]} {x!r:>9}'.format(map, x='é'); '{a.real} {b}'.format(a=1, b=none)
'{a}'.format_map(map); '{:>{w}}'.format(1, w=4); '{0.__class__}'.format(1); '{0.append}'.format(items)
'%d-%s' % (1, 'a'); '%(a)s' % map; '%5.1f%%' % 2.25; 'x%s' % [1]; '%*d' % (5, 1); '%r' % 'é'; '%s'; 5 % 3
'%d' % 'x'; '%s %s' % (1,); map.get('a'); map.get('z', 5); map.keys(); map.values(); map.items(); map.copy()
map.pop('a'); map.update({}); map.clear(); items.index(2); items.count(1); items.append(1); items.pop()
items.sort(); items.copy(); (1, 2).index(2); (1, 2).count(1); (5).bit_length(); (1.5).is_integer(); (7).real
(1.5).hex(); range(9).count(3); range(9).index(3); true.real; map.a; map['a']; map.b.c.d; text.nothing
text.nothing(); items.0; items[-1]; items[1:]; items[::-1]; text[2:5]; text[99]; map[1:]; dict(a=1); dict(map, b=2)
dict([(1, 2)]); dict.fromkeys([1, 2], 'x'); dict.mro; range(3) | list; range(1, 9, 3) | list; 'a' * 3; [1] * 2
2 ** 10; 2.5 ** 2; 7 // 2; 7 / 2; -7 % 3; 1 + 2.5; 'a' + 'b'; [1] + [2]; (1,) + (2,); 'a' + 1; 10 ** 20 * 3
range(10 ** 6); 'b' in text; 1 in items; 'a' in map; 2 not in items; 1 < 2 <= 3; 1 == 1.0; not text; text and 1
'' or 'x'; 'yes' if text else 'no'; 'yes' if nothing; [1, 'a', (2, none), {'k': true}]; 1.0; 1e100; 0.1 + 0.2; none
true; nothing; 'a' 'b'; ('<' | safe) + '<'; '<' + ('>' | safe); ('<' | safe) ~ '<'; ('%s' | safe) % '<'
('{}' | safe).format('<b>'); '&' | e | e; ('<' | safe) * 2; ('a' | safe).replace('a', '<')
('-' | safe).join(['<', '>']); ('<a>b' | safe).striptags(); '<' | e | length; ('&lt;' | safe).unescape()
(text | safe).strip().split('b'); ['<' | safe, '<'] | join(','); ('<' | safe) | tojson; '' | safe
(text | safe).upper() ~ text; [text | safe] | string; text | safe | trim; '<' | safe | replace('<', '&')
text | e | safe; strftime_now('%d %B %Y'); joiner(', ')(); cycler('a', 'b').next(); namespace(a=1).a
namespace(_a=1); namespace(a=1); raise_exception('no'); messages[0].content.replace('\\r\\n', '\\n').strip()
messages | length; messages[-1]['role']; bos_token + eos_token; tools is none; documents is defined
add_generation_prompt is true; nothing is defined; unk_token
"""
TESTS = """
items is iterable; text is string; map is mapping; items is sequence; none is none; true is boolean; true is true
1 is false; 1 is number; 1 is integer; 1.0 is float; 3 is odd; 4 is even; 9 is divisibleby 3; text is lower
text is upper; nothing is undefined; 1 is eq 1; 1 is ne 2; 1 is lt 2; 1 is le 1; 2 is gt 1; 2 is ge 2; 1 is sameas 1
1 is in items; text is callable; text.upper is callable; 'trim' is filter; 'odd' is test; ('a' | safe) is escaped
text is not none
"""
EXPRESSIONS = [each.strip() for part in (FILTERS, METHODS, TESTS) for each in part.replace("\n", ";;").split(";;")]
STATEMENTS = [
    "{% for m in messages %}{{ m.role }}: {{ m.content.replace('\\r\\n', '\\n').strip() }}\n{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.revindex0 }}{% else %}none{% endfor %}",
    "{% for m in messages recursive %}{{ m.role }}{% if loop.first and loop.depth < 3 %}{{ loop(messages) }}{% endif %}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop.previtem.role }}{{ loop.nextitem is defined }}"
    "{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}"
    "{% endif %}{{ i }}{% endfor %}",
    "{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}={{ v }};{% endfor %}"
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ c }}{% endfor %}",
    "{% set ns = namespace(n=0, s='') %}{% for i in range(3) %}{% set ns.n = ns.n + i %}"
    "{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns }}",
    "{% set x %}a {{ messages[0].role }} <b>{% endset %}{{ x | upper }}"
    "{% set y | trim | replace('a', 'b') %} a {% endset %}{{ y }}",
    "{% set a, b = 1, [2] %}{{ a }}{{ b }}{% if a == 2 %}x{% elif b %}y{% else %}z{% endif %}{{ self }}",
    "{% macro f(a, b='d', *args, **kw) %}{{ a }}{{ b }}{{ args }}{{ kw }}{{ caller() if caller }}{% endmacro %}"
    "{{ f(1) }}{{ f(1, 2, 3, k='<') }}{% call f('x') %}in{{ 1 }}side{% endcall %}{{ f.name }}{{ f('<') | e }}{{ f }}",
    "{% macro deep(n) %}{% if n %}[{{ deep(n - 1) }}]{% endif %}{% endmacro %}{{ deep(20) }}{{ deep(2) | length }}",
    "{% macro f(x) %}{{ x.split('b')[0].strip() }}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
    "{% filter upper %}a{{ messages[0].content.replace('H', 'j') }}{% endfilter %}{% filter indent(2) %}a\nb"
    "{% endfilter %}",
    "{% with a = 1, b = 'x'.upper() %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% block body %}{{ 'x'.replace('x', 'y') }}{% for i in [1] %}{{ 'a'.join(['b', 'c']) }}{% endfor %}"
    "{% endblock %}{{ self.body() }}",
    "{% generation %}{% set inner = 1 %}a{{ 'x' | upper }}{% endgeneration %}{{ inner is defined }}"
    "{% set z = 1 %}{{ z }}",
    "{% raw %}{{ x }}{% endraw %}{# no #}\n  {%- if true -%}  \n a {%- endif %}\n\n  {% if true %}\nb\n  "
    "{% endif %}\n c \n",
    "{% autoescape true %}{{ '<' }}{{ '<' ~ '>' }}{{ ('<' | safe) ~ '<' }}{{ ['<', '>'] | join('&') }}"
    "{% endautoescape %}{{ '<' }}",
    "{% set j = joiner(', ') %}{% for i in range(3) %}{{ j() }}{{ i }}{% endfor %}"
    "{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.current }}",
    "{% set ns = namespace() %}{% set ns.a = 'x' %}{{ ns.a }}{{ ns.b is defined }}"
    "{% set q = namespace(items=[1]) %}{{ q.items }}",
    "{% for m in messages %}{% set r = m.role %}{% endfor %}{{ r is defined }}"
    "{% for x in messages[0].content.split() | reverse %}{{ x }}{% endfor %}",
    "{% do 1 %}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% set messages = messages[1:] %}{{ messages | length }}"
    "{{ messages is defined and messages and messages[0].role }}",
    "{{ messages[0]['nothing']['more'] }}",
    "{{ nothing.more }}",
    "{{ 1 / 0 }}",
    "{{ x | nofilter }}",
    "{{ 1 is notest }}",
    "{{ '%s' | tojson % 'é' }}{{ 'a' if 'a'.upper() == 'A' else 'b'.join([1]) }}",
    "{% if messages[0].content is string and messages[0].content.startswith('H') %}"
    "{{- messages[0].content | trim -}}{% endif %}",
]
CASES = [f"{VALUES}{{{{ {each} }}}}" for line in EXPRESSIONS for each in line.split("; ") if each] + STATEMENTS


@pytest.mark.parametrize("source", CASES, ids=lambda source: source.removeprefix(VALUES)[:50])
@pytest.mark.filterwarnings("ignore::Warning:transformers")
def test_as_transformers_has_it(source):
    messages = [conversations.USER, {"role": "assistant", "content": "bye"}, conversations.USER]
    found, expected = conversations.ours(source, messages, {}), conversations.theirs(source, messages, {})
    if isinstance(expected, Exception):
        assert isinstance(found, Exception), found
    else:
        assert found == expected


@pytest.mark.parametrize("name", conversations.CONVERSATIONS)
def test_what_templates_are_shown(name):
    """Templates see all variables and messages: null is undefined, and reasoning is there under all its names.

    Arguments of calls that are JSON text, as OpenAI's API has them, are shown as the objects that templates want.
    """
    source = (
        "{{ messages | tojson }}{{ tools | tojson }}{{ documents }}{{ enable_thinking }}{{ add_generation_prompt }}"
    )
    messages, variables = conversations.CONVERSATIONS[name]
    expected = conversations.theirs(source, conversations.with_objects(messages), variables)
    assert conversations.ours(source, messages, variables) == expected


def test_methods_that_are_not_run():
    with pytest.raises(TokenizerError, match=r"refused: it calls str\.encode, which is none of the methods"):
        sandbox.render("{% for x in ['a'] %}{{ x.encode('idna') }}{% endfor %}", {})


def test_a_template_for_tools(tmp_path):
    """Of several templates "tool_use" is for conversations with tools, in whichever file the templates are."""
    level = vocabularies.byte_level(vocabularies.gpt2_split())
    level.save(str(tmp_path / "tokenizer.json"))
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    config = tmp_path / "tokenizer_config.json"

    def check():
        found = find(tmp_path, 2000)
        for tokenizer in (found, from_blob(found.kind, found.blob)):
            template = ChatTemplate(tokenizer)
            assert template.render([conversations.USER]) == "plain"
            assert template.render([conversations.USER], tools=None) == "plain"
            assert template.render([conversations.USER], tools=[]) == "with tools"

    for value in (several, {each["name"]: each["template"] for each in several}):
        config.write_text(json.dumps({"chat_template": value}))
        check()
    config.write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    check()
    metadata = json.loads(vocabularies.gguf_bytes(level, "gpt-2"))
    metadata |= {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "with tools"}
    gguf = from_blob("gguf", json.dumps(metadata).encode())
    assert (gguf.chat_template, gguf.tool_template) == ("plain", "with tools")
