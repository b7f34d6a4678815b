"""Renders templates with Python's Jinja2, set up as transformers does, and with Glimpse, and compares.

usage: compare_jinja.py RENDER_TEMPLATE_PROGRAM SOURCE_DIR
Exit status 77 (skipped) where jinja2 is not installed.
"""
import json
import pathlib
import subprocess
import sys

try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
except ImportError:
    print("skipped: needs Python's jinja2")
    sys.exit(77)

# Tuples print as lists here, so no snippet prints one. Each is rendered with the data below; "!" before one means that both must refuse it.
SNIPPETS = r"""
{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1.5 + 1 }} {{ 1e20 }} {{ 0.1 }} {{ 1e-5 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x'] ~ {'k': 'v'} }}
{{ "it's" }} {{ ["it's", 'a"b', 'a\nb', 'é\t'] }} {{ {'a': [1, 2.5, none, true]} }}
{{ s[0] }} {{ s[-1] }} {{ s[1:3] }} {{ s[::-1] }} {{ s[::2] }} {{ s[-3:] }} {{ s[5:2] }} {{ s[10:] }} {{ u[1:3] }} {{ u[::-1] }}
{{ n[::-1] }} {{ n[1:] }} {{ n[:-1] }} {{ n[-2] }} {{ n[::2] }} {{ n[3:0:-1] }} {{ n[99:] }}
{{ s.split('l') }} {{ s.split('l', 1) }} {{ '  a b  c '.split() }} {{ '  a b  c '.split(none, 1) }} {{ s.rsplit('l', 1) }} {{ 'a\nb\r\nc'.splitlines() }}
[{{ '  x '.strip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ '\n\na\n'.lstrip('\n') }}] [{{ 'abc'.rstrip('cb') }}] [{{ '\u3000a\u00a0'.strip() }}]
{{ s.startswith('he') }} {{ s.endswith(('x', 'lo')) }} {{ s.find('l') }} {{ u.find('\u00f1') }} {{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ s.count('l') }}
{{ s.upper() }} {{ 'ÀÉ'.lower() }} {{ 'a bc d'.title() }} {{ 'aBC'.capitalize() }} {{ '-'.join(['a', 'b']) }} {{ 'ab'.removeprefix('a') }} {{ '12'.isdigit() }}
{{ s | length }} {{ u | length }} {{ n | length }} {{ d | length }} {{ '  x ' | trim }} {{ s | upper }} {{ s | title }} {{ s | capitalize }}
{{ missing | default('x') }} {{ '' | default('x') }} {{ '' | default('x', true) }} {{ none | d('y', boolean=true) }} {{ missing | length }}[{{ missing }}]
{{ n | first }} {{ n | last }} {{ n | join('-') }} {{ l | join(', ', attribute='a') }} {{ n | sum }} {{ n | min }} {{ n | max }} {{ n | sort(reverse=true) }} {{ ['b', 'A', 'c'] | sort }}
{{ n | map('string') | join }} {{ l | map(attribute='a') | list }} {{ n | select('odd') | list }} {{ n | reject('odd') | list }} {{ l | selectattr('a', 'equalto', 1) | list }} {{ l | rejectattr('b') | list }}
{% for k, v in d | items %}{{ k }}{{ v }}{% endfor %} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('k') }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {% for k, v in d | dictsort %}{{ k }}{{ v }}{% endfor %}
{{ d | tojson }} {{ t | tojson }} {{ t | tojson(indent=2) }} {{ [] | tojson }} {{ {} | tojson(indent=4) }} {{ u | tojson }} {{ [1.0, none, true, "<'&>"] | tojson }} {{ t | tojson(sort_keys=true) }} {{ t | tojson(separators=(',', ':')) }}
{{ '3' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }} {{ '2.5' | float }} {{ -3 | abs }} {{ 3 | string }} {{ [1, 1, 2] | unique | list }} {{ n | reverse | list }} {{ s | reverse }} {{ s | list }}
{{ 'a\nb\n\nc' | indent }} | {{ 'a\nb' | indent(2, true) }} | {{ s | replace('l', 'x') }}
{{ 1 < 2 <= 2 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 in n }} {{ 'z' not in s }} {{ 'k' in d }} {{ not 1 }} {{ 1 and 0 or 'x' }} {{ none or 'y' }} {{ true == 1 }} {{ [1, 2] == [1, 2] }} {{ missing == none }} {{ (missing.x is defined) if false else 'z' }}
{{ s is string }} {{ d is mapping }} {{ n is iterable }} {{ n is sequence }} {{ 1 is number }} {{ none is none }} {{ missing is defined }} {{ s is not none }} {{ 4 is divisibleby 2 }} {{ 3 is odd }} {{ true is boolean }} {{ 1 is integer }} {{ 1.5 is float }} {{ 1 is eq 1 }} {{ 2 is in [1, 2] }} {{ true is true }} {{ s is not string or 1 }}
{{ 'yes' if n else 'no' }} {{ 'yes' if missing }} [{{ 'x' if false }}] {{ 1 if 0 else 2 if 0 else 3 }}
{% for x in n %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for x in n if x > 1 %}{{ x }}{{ loop.index }} {% else %}none{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in u %}{{ c }}.{% endfor %}{% for x in missing %}{% endfor %}
{% for x in n %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% set x = 1 %}{% for i in n %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}
{% set ns = namespace(a=0, b='') %}{% for i in n %}{% set ns.a = ns.a + i %}{% set ns.b = ns.b ~ i %}{% endfor %}{{ ns.a }}{{ ns.b }}
{% set a, b = [1, 2] %}{{ a }}{{ b }}{% set z %}block {{ a }}{% endset %}[{{ z }}]{% set p = 'x', 'y' %}{{ p | join }}
{% macro m(a, b='d') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m('x') | upper }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}
{%- if n -%}  x  {%- elif s -%} y {%- else -%} z {%- endif -%}  end
{% if false %}a{% elif true %}b{% else %}c{% endif %}{# comment #}{#- stripped -#} d
{% raw %}{{ not }} {% this %}{% endraw %}{{ '{{' }}{{ "%}" }}{{ {'a': {'b': 1}}['a']['b'] }}
{{ 'a' 'b' }}{{ 'x' * 3 }}{{ [0] * 2 }}{{ [1] + [2] }}{{ (1, 2)[1] }}{{ "\x41\u00e9\t" }}{{ 1_000 }}{{ n.0 }}{{ range(3) | list }}{{ range(5, 0, -2) | list }}
{{ d.k }}{{ d['k'] }}{{ d.nope }}{{ s.nope is defined }}{{ d['nope'] is defined }}{{ n[99] is defined }}{{ none.x is defined }}{{ dict(a=1) }}
{{ -2 ** 2 }} {{ 2 * -3 }} {{ 10 - 3 - 2 }} {{ 1 ~ (2 + 3) }} {{ 'a' in ['a'] == true }} {{ not 'a' in 'b' }} {{ 3 | abs + 1 }}
!{{ missing.x }}
!{{ missing.x.y is defined }}
!{{ 1 + 'a' }}
!{{ raise_exception('no') }}
!{{ 1 // 0 }}
!{{ missing + 1 }}
!{{ missing() }}
!{{ none | length }}
!{{ n.append(1) }}
!{{ 1 < 'a' }}
!{{ 'a' | nosuchfilter }}
!{% for x in 3 %}{% endfor %}
!{% if %}{% endif %}
!{{ 'a' + 1 }}
""".strip("\n").split("\n")

BLOCKS = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}\nend\n",
    "  {%- for m in messages -%}\n  {{ m.role }}:\n  {% if not loop.last %}\n,\n  {%- endif %}\n{% endfor %}\n\n",
    "a\n\t {# c #}\nb {% if 1 %} \n c {% endif %} d\n{%+ if 1 %}x{% endif +%}\ny\n",
    "{{ x }}\n{{- y }}\n {%- set q = 1 %}\n\n {{ q -}}\n z\n\n",
    "{% generation %}in{% endgeneration %}\nout",
    "{% raw -%}\n a\n{%- endraw %}\nb",
]

DATA = {
    "s": "hello", "u": "año ñandú 日本", "n": [1, 2, 3, 4], "d": {"k": "v", "a": 1},
    "l": [{"a": 1, "b": True}, {"a": 2, "b": False}],
    "t": {"z": [1, {"y": "é"}], "a": {"n": None}, "e": [], "o": {}},
}
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo\n"}]


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    return made


def main():
    program, source_dir = sys.argv[1], pathlib.Path(sys.argv[2])
    tasks = []
    for snippet in SNIPPETS + BLOCKS:
        refused = snippet.startswith("!")
        tasks.append({"template": snippet[1:] if refused else snippet, "messages": MESSAGES, "extra": DATA})
    demo = (source_dir / "models/demo/chat_template.jinja").read_text()
    for case in json.loads((source_dir / "tests/golden/template/cases.json").read_text()):
        task = {k: case[k] for k in ("messages", "tools", "add_generation_prompt", "add_vision_id") if k in case}
        tasks.append(dict(task, template=demo))
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    answers = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
    jinja, differences = environment(), 0
    for task, line in zip(tasks, answers.splitlines(), strict=True):
        ours = json.loads(line)
        variables = dict(task.get("extra", {}), messages=task["messages"], tools=task.get("tools"),
                         add_generation_prompt=task.get("add_generation_prompt", True),
                         add_vision_id=task.get("add_vision_id", False))
        try:
            theirs = {"text": jinja.from_string(task["template"]).render(**variables)}
        except Exception as error:  # whatever Jinja raises, ours must refuse too
            theirs = {"error": repr(error)}
        if ("error" in theirs) != ("error" in ours) or theirs.get("text") != ours.get("text"):
            differences += 1
            print(f"DIFFERENT: {task['template'][:200]!r}\n  jinja2  {theirs}\n  glimpse {ours}")
    expected_refusals = sum(snippet.startswith("!") for snippet in SNIPPETS + BLOCKS)
    refusals = sum("error" in json.loads(line) for line in answers.splitlines())
    if refusals != expected_refusals:
        for task, line in zip(tasks, answers.splitlines(), strict=True):
            if "error" in json.loads(line):
                print(f"refused: {task['template'][:120]!r}: {json.loads(line)['error']}")
    print(f"{len(tasks)} templates, {refusals} refused, {differences} differences")
    return 1 if differences or refusals != expected_refusals else 0


if __name__ == "__main__":
    sys.exit(main())
