"""The real OpenAI client against glimpse serve. Runs where the package openai is installed
(pip install openai); the same features are tested without it in test_serve.py."""

import base64
import importlib.util
import json
import signal
import unittest

from program import PICTURES, golden_answer
from test_serve import KEY, start

DETAIL = "Describe this image in detail."
HAS_CLIENT = importlib.util.find_spec("openai") is not None


def picture(name, **options):
    data = base64.b64encode((PICTURES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", **options}}


def ask(*parts):
    return [{"role": "user", "content": [*parts]}]


def text(words):
    return {"type": "text", "text": words}


@unittest.skipUnless(HAS_CLIENT, "the package openai is not installed: pip install openai")
class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import openai
        cls.openai = openai
        cls.server, port = start("--max-sequences", "8")
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY,
                                   max_retries=0, timeout=300)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.send_signal(signal.SIGTERM)
        cls.server.wait(60)
        cls.server.stderr.close()

    def chat(self, messages, **options):
        return self.client.chat.completions.create(
            model="demo", messages=messages, **{"temperature": 0, "max_tokens": 256, **options})

    def test_models_are_listed(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["demo"])

    def test_a_picture_is_described(self):
        answer = self.chat(ask(picture("05.png"), text(DETAIL)))
        self.assertEqual(answer.choices[0].message.content, golden_answer("05.png", DETAIL))
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.total_tokens,
                         answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_stream_is_the_same_answer_with_usage_at_its_end(self):
        words, usage = "", None
        stream = self.chat(ask(picture("05.png"), text(DETAIL)), stream=True,
                           stream_options={"include_usage": True})
        for chunk in stream:
            if chunk.choices:
                words += chunk.choices[0].delta.content or ""
            usage = chunk.usage or usage
        self.assertEqual(words, golden_answer("05.png", DETAIL))
        self.assertGreater(usage.completion_tokens, 0)

    def test_several_pictures_and_turns(self):
        messages = ask(picture("05.png"), picture("00.png", detail="low"), text("Describe both."))
        first = self.chat(messages, max_completion_tokens=20, max_tokens=self.openai.omit)
        self.assertLessEqual(first.usage.completion_tokens, 20)
        messages += [{"role": "assistant", "content": first.choices[0].message.content},
                     {"role": "user", "content": "And now?"}]
        second = self.chat(messages, max_tokens=5)
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 0)

    def test_choices_and_seeds(self):
        options = {"n": 3, "seed": 11, "temperature": 1.5, "max_tokens": 12}
        first = self.chat(ask(text("Hello")), **options)
        again = self.chat(ask(text("Hello")), **options)
        self.assertEqual([c.index for c in first.choices], [0, 1, 2])
        self.assertEqual([c.message.content for c in first.choices],
                         [c.message.content for c in again.choices])

    def test_stop_strings_and_log_probabilities(self):
        whole = golden_answer("05.png", DETAIL)
        word = whole.split()[3]
        answer = self.chat(ask(picture("05.png"), text(DETAIL)), stop=[word], logprobs=True,
                           top_logprobs=2)
        self.assertEqual(answer.choices[0].message.content, whole[:whole.index(word)])
        token = answer.choices[0].logprobs.content[0]
        self.assertEqual(len(token.top_logprobs), 2)
        self.assertAlmostEqual(token.logprob, token.top_logprobs[0].logprob, places=5)

    def test_penalties_and_options_beyond_openais(self):
        answer = self.chat(ask(text("Hello")), presence_penalty=1.5, frequency_penalty=1.0,
                           max_tokens=8, extra_body={"top_k": 5, "min_p": 0.1,
                                                     "repetition_penalty": 1.2})
        self.assertGreater(answer.usage.completion_tokens, 0)

    def test_completions_of_text_and_of_tokens(self):
        for prompt in ("The image shows", [303, 267, 368]):
            answer = self.client.completions.create(model="demo", prompt=prompt, max_tokens=5,
                                                    temperature=0)
            self.assertEqual(answer.usage.completion_tokens, 5)
        several = self.client.completions.create(model="demo", prompt=["A", "The"], n=2,
                                                 max_tokens=3)
        self.assertEqual(len(several.choices), 4)

    def test_json_follows_its_schema(self):
        schema = {"type": "object", "additionalProperties": False, "required": ["name", "count"],
                  "properties": {"name": {"type": "string", "maxLength": 20},
                                 "count": {"type": "integer"}}}
        answer = self.chat(
            ask(picture("05.png"), text("What is this?")), max_tokens=200,
            response_format={"type": "json_schema",
                             "json_schema": {"name": "thing", "strict": True, "schema": schema}})
        if answer.choices[0].finish_reason == "stop":
            value = json.loads(answer.choices[0].message.content)
            self.assertEqual(set(value), {"name", "count"})
            self.assertIsInstance(value["count"], int)
        else:
            self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_a_tool_that_must_be_called_is_called(self):
        tool = {"type": "function",
                "function": {"name": "note", "parameters": {
                    "type": "object", "properties": {"ok": {"type": "boolean"}},
                    "required": ["ok"], "additionalProperties": False}}}
        answer = self.chat(ask(text("Hello")), tools=[tool], tool_choice="required", max_tokens=200)
        choice = answer.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertEqual(choice.message.tool_calls[0].function.name, "note")
        self.assertIsInstance(json.loads(choice.message.tool_calls[0].function.arguments)["ok"], bool)

    def test_mistakes_are_the_clients_own_exceptions(self):
        errors = self.openai
        with self.assertRaises(errors.BadRequestError) as caught:
            self.chat(ask(text("Hello")), temperature=500)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(errors.NotFoundError):
            self.client.chat.completions.create(model="another", messages=ask(text("Hello")))
        with self.assertRaises(errors.UnprocessableEntityError):
            self.chat(ask({"type": "image_url",
                           "image_url": {"url": "data:image/png;base64,aGVsbG8="}}))


if __name__ == "__main__":
    unittest.main()
