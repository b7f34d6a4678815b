"""The OpenAPI document against the server: what it forbids is refused by name, its limits are
accepted, and schemathesis, where it is installed, finds neither a 5xx nor an answer it does not
describe (pip install schemathesis; its commands must be on the PATH)."""

import json
import shutil
import subprocess
import tempfile
import unittest

from test_serve import KEY, call, start

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
BASE = {CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        COMPLETION: {"prompt": "Hi", "max_tokens": 1}}
# Values of another type than a property's own.
WRONG = {"string": [1, []], "integer": ["1", 1.5, True], "number": ["1", True], "boolean": ["yes", 1],
         "object": [[], "x"], "array": [{}, 1], None: [True, 1.5]}
# Options that are refused alone, for they would have no effect.
WITH = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True}}
SKIPPED_LIMITS = {"thinking_budget"}  # the bundled checkpoint does not think
LONG_ANSWERS = {"max_tokens", "max_completion_tokens"}  # their maximum is


class OpenApi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            keys.write(KEY + "\n")
            keys.flush()
            cls.process, cls.port = start("--api-key-file", keys.name, "--max-tokens", "4",
                                          "--context", "256")  # no answer takes long
        cls.document = json.loads(call(cls.port, "GET", "/openapi.json")[2])

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(60)
        cls.process.stderr.close()

    def properties(self):
        """(path, name, schema) of every option of a request, references resolved."""
        schemas = self.document["components"]["schemas"]
        for path in (CHAT, COMPLETION):
            content = self.document["paths"][path]["post"]["requestBody"]["content"]
            schema = schemas[content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]]
            for name, value in schema["properties"].items():
                value = value.get("allOf", [value])[0]
                if "$ref" in value:
                    value = schemas[value["$ref"].rsplit("/", 1)[1]]
                yield path, name, value

    def refused(self, path, name, value):
        body = {**BASE[path], **WITH.get(name, {}), name: value}
        status, _, text = call(self.port, "POST", path, body)
        self.assertEqual(status, 400, (path, name, value, text))
        error = json.loads(text)["error"]
        self.assertEqual(sorted(error), ["code", "message", "param", "type"])
        self.assertTrue((error["param"] or "").startswith(name), (name, value, error))

    def accepted(self, path, name, value):
        body = {**BASE[path], **WITH.get(name, {}), name: value}
        if name == "max_completion_tokens":
            del body["max_tokens"]
        status, _, text = call(self.port, "POST", path, body)
        self.assertEqual(status, 200, (path, name, value, text))

    def test_values_of_another_type_are_refused_by_name(self):
        for path, name, schema in self.properties():
            for value in WRONG[schema.get("type")]:
                with self.subTest(path=path, name=name, value=value):
                    self.refused(path, name, value)

    def test_values_outside_the_limits_are_refused_by_name(self):
        tried = 0
        for path, name, schema in self.properties():
            for limit, step in (("minimum", -1), ("maximum", 1)):
                if limit in schema:
                    with self.subTest(path=path, name=name, limit=limit):
                        self.refused(path, name, schema[limit] + step)
                        tried += 1
        self.assertGreater(tried, 30)

    def test_the_limits_themselves_are_accepted(self):
        tried = 0
        for path, name, schema in self.properties():
            for limit in ("minimum", "maximum"):
                if limit not in schema or name in SKIPPED_LIMITS:
                    continue
                if limit == "maximum" and name in LONG_ANSWERS:
                    continue
                with self.subTest(path=path, name=name, limit=limit):
                    self.accepted(path, name, schema[limit])
                    tried += 1
        self.assertGreater(tried, 30)

    def test_null_is_the_same_as_absent(self):
        tried = 0
        for path, name, _ in self.properties():
            if name in BASE[path]:
                continue
            self.accepted(path, name, None)
            tried += 1
        self.assertGreater(tried, 30)

    def test_options_that_are_not_described_are_refused(self):
        for path in BASE:
            self.refused(path, "not_an_option", 1)

    def test_the_document_says_which_routes_need_a_key(self):
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                head = {"Authorization": ""}
                status = call(self.port, method.upper(), path, "{}", head)[0]
                self.assertEqual(status == 401, "security" in operation, (path, status))

    def test_without_keys_no_route_needs_one(self):
        process, port = start()
        try:
            document = json.loads(call(port, "GET", "/openapi.json")[2])
            self.assertEqual(document["paths"].keys(), self.document["paths"].keys())
            for operations in document["paths"].values():
                for operation in operations.values():
                    self.assertNotIn("security", operation)
        finally:
            process.terminate()
            process.wait(60)
            process.stderr.close()

    @unittest.skipUnless(shutil.which("schemathesis"), "schemathesis is not installed")
    def test_schemathesis_finds_nothing(self):
        # What the document cannot say - options that need one another, prompts that must have
        # tokens - makes valid-looking requests a 400.
        result = subprocess.run(
            ["schemathesis", "run", f"http://127.0.0.1:{self.port}/openapi.json", "--seed", "1",
             "--header", f"Authorization: Bearer {KEY}", "--max-time", "60", "--no-color",
             "--request-timeout", "60",
             "--exclude-checks", "positive_data_acceptance"],
            capture_output=True, text=True, timeout=400, check=False,
            cwd=tempfile.gettempdir())
        self.assertEqual(result.returncode, 0, result.stdout[-6000:] + result.stderr)


if __name__ == "__main__":
    unittest.main()
