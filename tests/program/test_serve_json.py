"""Answers of a given form over HTTP: response_format, tools and reasoning_content."""

import json
import pathlib
import tempfile
import unittest

from program import MODEL
from test_serve import call, events_of, start

CHAT = "/v1/chat/completions"
POINT = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["größe", "名前", 3, None]},
    "box": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000},
            "minItems": 4, "maxItems": 4}},
    "required": ["name", "kind", "box"], "additionalProperties": False}
FIND = {"type": "function", "function": {"name": "find", "description": "Finds a thing.",
        "parameters": {"type": "object", "properties": {
            "what": {"enum": ["rocket", "apple"]}, "count": {"type": "integer", "minimum": 1}},
            "required": ["what", "count"], "additionalProperties": False}}}
STOP = {"type": "function", "function": {"name": "stop", "parameters": {
        "type": "object", "properties": {}, "additionalProperties": False}}}

THINKING_TEMPLATE = """
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n<think>\\n' -}}
"""


def chat(**options):
    """A question whose answer is drawn at random, so that nothing but the form is certain."""
    return {"messages": [{"role": "user", "content": "Describe a rocket."}], "temperature": 1.3,
            "top_k": 0, "top_p": 1, "loop_guard": False, "max_tokens": 300, **options}


def schema_format(schema, **options):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **options}}


class Served(unittest.TestCase):
    """A server for the tests of a class."""
    flags = ()

    @classmethod
    def setUpClass(cls):
        cls.process, cls.port = start("--max-sequences", "4", *cls.flags)

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(60)
        cls.process.stderr.close()

    def ask(self, body, status=200):
        got, _, text = call(self.port, "POST", CHAT, body)
        self.assertEqual(got, status, text)
        return json.loads(text)

    def stream(self, body):
        status, _, text = call(self.port, "POST", CHAT, {**body, "stream": True})
        self.assertEqual(status, 200, text)
        return [event["choices"][0] for event in events_of(text)]

    def refused(self, part, body):
        error = self.ask(body, 400)["error"]
        self.assertIn(part, error["message"])
        self.assertEqual(error["type"], "invalid_request_error")


class ResponseFormat(Served):
    def check_point(self, text):
        value = json.loads(text)
        self.assertEqual(list(value), ["name", "kind", "box"])
        self.assertLessEqual(len(value["name"]), 12)
        self.assertIn(value["kind"], POINT["properties"]["kind"]["enum"])
        self.assertEqual(len(value["box"]), 4)
        for number in value["box"]:
            self.assertTrue(type(number) is int and 0 <= number <= 1000, number)

    def test_an_answer_follows_its_schema(self):
        for seed in range(5):
            value = self.ask(chat(seed=seed, response_format=schema_format(POINT, strict=True)))
            self.assertEqual(value["choices"][0]["finish_reason"], "stop")
            self.check_point(value["choices"][0]["message"]["content"])

    def test_so_does_a_stream_and_each_of_n_choices(self):
        body = chat(seed=9, response_format=schema_format(POINT))
        choices = self.stream(body)
        self.check_point("".join(c["delta"].get("content") or "" for c in choices))
        self.assertEqual(choices[-1]["finish_reason"], "stop")
        for choice in self.ask({**body, "n": 3})["choices"]:
            self.check_point(choice["message"]["content"])

    def test_json_object_is_an_object(self):
        value = self.ask(chat(seed=2, response_format={"type": "json_object"}))["choices"][0]
        content = value["message"]["content"]
        self.assertTrue(content.startswith("{"))
        if value["finish_reason"] == "stop":
            self.assertIsInstance(json.loads(content), dict)

    def test_a_pattern_is_followed(self):
        schema = {"type": "object", "required": ["plate", "mail"], "additionalProperties": False,
                  "properties": {"plate": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
                                 "mail": {"type": "string", "format": "email"}}}
        value = self.ask(chat(seed=3, temperature=1, max_tokens=300,
                              response_format=schema_format(schema)))["choices"][0]
        self.assertEqual(value["finish_reason"], "stop")
        answer = json.loads(value["message"]["content"])
        self.assertRegex(answer["plate"], r"\A[A-Z]{2}-[0-9]{3}\Z")
        self.assertRegex(answer["mail"], r"\A[\w.+-]+@[\w.-]+\.[A-Za-z]+\Z")

    def test_max_tokens_cuts_json_and_says_length(self):
        value = self.ask(chat(max_tokens=4, response_format=schema_format(POINT)))
        self.assertEqual(value["choices"][0]["finish_reason"], "length")

    def test_a_schema_that_cannot_be_used_is_a_400_that_says_why(self):
        for part, schema in (("look-around", {"properties": {"a": {"pattern": "^(?=x)"}}}),
                             ("lacks its )", {"properties": {"a": {"pattern": "(x"}}}),
                             ("\"uniqueItems\"", {"type": "array", "uniqueItems": True}),
                             ("refers to nothing", {"$ref": "#/$defs/a"}),
                             ("no value is left", {"enum": ["a"], "type": "integer"}),
                             ("another document", {"$ref": "https://example.org/schema"}),
                             ("itself", {"anyOf": [{"$ref": "#"}]})):
            self.refused(part, chat(response_format=schema_format(schema)))
            self.assertEqual(call(self.port, "POST", CHAT, chat(
                stream=True, response_format=schema_format(schema)))[0], 400)
        self.refused("ignore_eos", chat(ignore_eos=True, response_format=schema_format(POINT)))
        self.refused("response_format.type", chat(response_format={"type": "yaml"}))
        self.assertEqual(call(self.port, "GET", "/health")[0], 200)


class Tools(Served):
    def check_find(self, function):
        arguments = json.loads(function["arguments"])
        self.assertEqual(function["name"], "find")
        self.assertIn(arguments["what"], ["rocket", "apple"])
        self.assertGreaterEqual(arguments["count"], 1)

    def test_a_named_tool_is_called(self):
        choice = {"type": "function", "function": {"name": "find"}}
        for seed in range(4):
            value = self.ask(chat(seed=seed, tools=[STOP, FIND], tool_choice=choice))["choices"][0]
            self.assertEqual(value["finish_reason"], "tool_calls")
            self.assertIsNone(value["message"]["content"])
            calls = value["message"]["tool_calls"]
            self.assertEqual(len(calls), 1)
            self.assertEqual(calls[0]["type"], "function")
            self.assertTrue(calls[0]["id"].startswith("call_"))
            self.check_find(calls[0]["function"])

    def test_a_required_call_is_one_of_the_tools(self):
        for seed in range(4):
            value = self.ask(chat(seed=seed, tools=[STOP, FIND], tool_choice="required",
                                  parallel_tool_calls=False))["choices"][0]
            self.assertEqual(value["finish_reason"], "tool_calls")
            (tool_call,) = value["message"]["tool_calls"]
            self.assertIn(tool_call["function"]["name"], ["stop", "find"])

    def test_a_stream_has_the_call_in_pieces(self):
        choice = {"type": "function", "function": {"name": "find"}}
        choices = self.stream(chat(seed=3, tools=[FIND], tool_choice=choice))
        pieces = [p for c in choices for p in c["delta"].get("tool_calls", [])]
        self.assertGreater(len(pieces), 3)
        self.assertEqual({p["index"] for p in pieces}, {0})
        self.assertTrue(pieces[0]["id"].startswith("call_"))
        self.assertEqual(pieces[0]["type"], "function")
        self.assertFalse(any("id" in p or "name" in p["function"] for p in pieces[1:]))
        self.check_find({"name": pieces[0]["function"]["name"],
                         "arguments": "".join(p["function"]["arguments"] for p in pieces)})
        self.assertEqual(choices[-1]["finish_reason"], "tool_calls")
        self.assertEqual(choices[-1]["delta"], {})

    def test_tools_that_may_be_called_need_not_be(self):
        for choice in ("auto", "none"):
            value = self.ask(chat(temperature=0, tools=[FIND], tool_choice=choice))["choices"][0]
            self.assertIn(value["finish_reason"], ["stop", "tool_calls", "length"])
            if choice == "none":
                self.assertNotIn("tool_calls", value["message"])

    def test_wrong_tools_are_a_400(self):
        named = {"type": "function", "function": {"name": "open"}}
        self.refused("not one of the tools", chat(tools=[FIND], tool_choice=named))
        self.refused("no effect without tools", chat(tool_choice="required"))
        self.refused("no effect without tools", chat(parallel_tool_calls=False))
        odd = {"type": "function", "function": {"name": "odd", "strict": True, "parameters": {
            "type": "object", "properties": {"a": {"type": "array", "contains": {}}}}}}
        for choice in ("auto", "required"):
            self.refused("tool odd at /properties/a: the keyword \"contains\"",
                         chat(tools=[odd], tool_choice=choice))
        self.refused("at once", chat(tools=[FIND], tool_choice="required",
                                     response_format={"type": "json_object"}))


class Reasoning(Served):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="glimpse_thinking_")
        folder = pathlib.Path(cls.folder.name)
        for file in MODEL.iterdir():
            if file.name != "chat_template.jinja":
                (folder / file.name).symlink_to(file)
        (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE)
        cls.flags = ("--model", str(folder))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()

    def test_thought_and_answer_are_apart_and_only_the_answer_has_the_form(self):
        for seed in range(4):
            value = self.ask(chat(seed=seed, thinking_budget=10,
                                  response_format=schema_format(POINT)))
            choice = value["choices"][0]
            self.assertEqual(choice["finish_reason"], "stop")
            self.assertTrue(choice["message"]["reasoning_content"])
            self.assertIn("kind", json.loads(choice["message"]["content"]))
            details = value["usage"]["completion_tokens_details"]
            self.assertTrue(0 < details["reasoning_tokens"] <= 10)

    def test_a_stream_has_the_thought_first(self):
        deltas = [c["delta"] for c in self.stream(chat(
            seed=5, thinking_budget=10, response_format=schema_format(POINT)))]
        thought = "".join(d.get("reasoning_content") or "" for d in deltas)
        kinds = ["r" if "reasoning_content" in d else "c" for d in deltas if d.get("content")
                 or d.get("reasoning_content")]
        self.assertTrue(thought)
        self.assertEqual(kinds, sorted(kinds, reverse=True))
        json.loads("".join(d.get("content") or "" for d in deltas))

    def test_a_forced_call_follows_the_thought(self):
        value = self.ask(chat(seed=1, thinking_budget=8, tools=[FIND], tool_choice="required",
                              parallel_tool_calls=False))["choices"][0]
        self.assertEqual(value["finish_reason"], "tool_calls")
        self.assertTrue(value["message"]["reasoning_content"])
        self.assertEqual(value["message"]["tool_calls"][0]["function"]["name"], "find")


del Served  # not a test of its own

if __name__ == "__main__":
    unittest.main()
