"""glimpse serve: every route, streaming, errors, many clients, and the end on SIGTERM."""

import base64
import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from program import PICTURES, PROGRAM, golden_answer

DETAIL = "Describe this image in detail."
KEY = "a-key-for-tests"


def start(*flags):
    """A server on a free port, and that port."""
    process = subprocess.Popen(
        [PROGRAM, "serve", "--port", "0", "--device", "cpu", "--quiet", *flags],
        stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "listening on" in line:
            return process, int(line.rsplit(":", 1)[1])
    raise RuntimeError(f"the server ended with {process.wait()}")


def call(port, method, path, body=None, headers=None):
    """Status, headers and body of one call."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        data = json.dumps(body) if isinstance(body, (dict, list)) else body
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        head.update(headers or {})
        connection.request(method, path, data, head)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def picture_part(name, **options):
    data = base64.b64encode((PICTURES / name).read_bytes()).decode()
    return {"type": "image_url",
            "image_url": {"url": "data:image/png;base64," + data, **options}}


def question(name, **options):
    content = [picture_part(name), {"type": "text", "text": DETAIL}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0,
            "max_tokens": 256, **options}


def events_of(text):
    """The JSON objects of a stream, which must end with [DONE]."""
    lines = [line[len("data: "):] for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            keys.write(f"# for tests\nanother-key\n{KEY}\n")
            keys.flush()
            cls.process, cls.port = start("--api-key-file", keys.name, "--max-body", "4MiB",
                                          "--cors-origin", "https://example.org")

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(60)
        cls.process.stderr.close()

    def ask(self, body, path="/v1/chat/completions", status=200):
        got, _, text = call(self.port, "POST", path, body)
        self.assertEqual(got, status, text)
        return json.loads(text)

    def refused(self, status, param, body, path="/v1/chat/completions"):
        error = self.ask(body, path, status)["error"]
        self.assertEqual(error["param"], param, error)
        self.assertTrue(error["message"])

    def test_a_picture_is_described_as_transformers_does(self):
        value = self.ask(question("05.png"))
        self.assertEqual(value["choices"][0]["message"]["content"], golden_answer("05.png", DETAIL))
        self.assertEqual(value["choices"][0]["finish_reason"], "stop")
        picture = value["usage"]["pictures"][0]
        t, h, w = picture["grid_thw"]
        self.assertEqual(picture["visual_tokens"], t * h * w // 4)

    def test_a_stream_has_the_same_text_and_ends_with_its_usage(self):
        body = question("05.png", stream=True, stream_options={"include_usage": True})
        status, headers, text = call(self.port, "POST", "/v1/chat/completions", body)
        self.assertEqual(status, 200, text)
        self.assertEqual(headers["Content-Type"], "text/event-stream")
        events = events_of(text)
        whole = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        self.assertEqual(whole, golden_answer("05.png", DETAIL))
        self.assertGreater(events[-1]["usage"]["completion_tokens"], 0)
        self.assertEqual(events[-2]["choices"][0]["finish_reason"], "stop")

    def test_eight_clients_each_get_their_own_answer(self):
        names = ["00.png", "01.jpg", "03.webp", "05.png"] * 2
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda name: self.ask(question(name)), names))
        for name, value in zip(names, answers):
            self.assertEqual(value["choices"][0]["message"]["content"], golden_answer(name, DETAIL))

    def test_choices_and_logprobs_come_as_asked(self):
        value = self.ask(question("05.png", n=2, logprobs=True, top_logprobs=3, max_tokens=4))
        self.assertEqual([c["index"] for c in value["choices"]], [0, 1])
        tokens = value["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(tokens), 4)
        self.assertEqual(len(tokens[0]["top_logprobs"]), 3)
        self.assertEqual(value["usage"]["completion_tokens"], 8)

    def test_completions_go_without_the_template(self):
        value = self.ask({"prompt": "A red", "max_tokens": 3, "temperature": 0}, "/v1/completions")
        self.assertEqual(value["object"], "text_completion")
        self.assertEqual(value["usage"]["completion_tokens"], 3)

    def test_prompt_tokens_count_each_prompt_once(self):
        for prompt, n, tokens in (([5, 6, 7], 1, 3), ([5, 6, 7], 2, 3), ([[5, 6, 7], [8, 9]], 2, 5)):
            value = self.ask({"prompt": prompt, "n": n, "max_tokens": 2, "ignore_eos": True},
                             "/v1/completions")
            usage = value["usage"]
            self.assertEqual(usage["prompt_tokens"], tokens)
            self.assertEqual(usage["completion_tokens"], 2 * len(value["choices"]))
            self.assertEqual(usage["total_tokens"],
                             usage["prompt_tokens"] + usage["completion_tokens"])

    def test_every_get_route_answers(self):
        document = json.loads(call(self.port, "GET", "/openapi.json")[2])
        for path, methods in document["paths"].items():
            method = next(iter(methods)).upper()
            status = call(self.port, method, path, "{}" if method == "POST" else None)[0]
            self.assertEqual(status, 400 if method == "POST" else 200, path)
            other = "GET" if method == "POST" else "POST"
            self.assertEqual(call(self.port, other, path, "{}")[0], 405, path)
        metrics = call(self.port, "GET", "/metrics")[2]
        for name in ("kv_pages", "requests_waiting", "requests_running", "tokens_per_second",
                     "picture_cache_hits_total", "vision_seconds_total"):
            self.assertRegex(metrics, rf"(?m)^glimpse_{name} [0-9.e+-]+$")
        for name in ("time_to_first_token_seconds_count", 'memory_bytes{group="'):
            self.assertIn(f"glimpse_{name}", metrics)
        self.assertTrue(json.loads(call(self.port, "GET", "/v1/status")[2])["memory"])

    def test_wrong_requests_name_the_field(self):
        self.refused(400, "max_pixel", question("05.png", max_pixel=3))
        self.refused(400, "temperature", question("05.png", temperature=-1))
        self.refused(400, "top_logprobs", question("05.png", top_logprobs=2))
        self.refused(400, "messages", {})
        self.refused(404, "model", question("05.png", model="gpt-4"))
        url = "messages[0].content[0].image_url.url"
        for address in ("https://example.org/a.png", "file:///etc/hostname", "data:,x"):
            part = {"type": "image_url", "image_url": {"url": address}}
            self.refused(400, url, {"messages": [{"role": "user", "content": [part]}]})

    def test_a_bad_picture_is_422(self):
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
        self.refused(422, None, {"messages": [{"role": "user", "content": [part]}]})

    def test_http_errors_have_their_status(self):
        chat = "/v1/chat/completions"
        self.assertEqual(call(self.port, "GET", "/nowhere")[0], 404)
        self.assertEqual(call(self.port, "POST", chat, "{}", {"Authorization": "Bearer no"})[0], 401)
        self.assertEqual(call(self.port, "POST", chat, "{}", {"Content-Type": "text/plain"})[0], 415)
        self.assertEqual(call(self.port, "POST", chat, "[" * 10)[0], 400)
        self.assertEqual(call(self.port, "POST", chat, " " * (5 << 20))[0], 413)

    def exchange(self, data):
        """What comes back over a connection of its own until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def test_requests_sent_in_a_row_are_answered_in_their_order(self):
        text = self.exchange(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
                             b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n"
                             b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
                             b"GET http://x/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        heads = [part.split("\r\n\r\n") for part in text.split("HTTP/1.1 ")[1:]]
        self.assertEqual([head[:3] for head, _ in heads], ["200", "200", "404", "200"])
        self.assertEqual([bool(body) for _, body in heads], [True, False, False, True])
        self.assertIn(f"Content-Length: {len(heads[0][1])}", heads[1][0])

    def test_what_is_no_http_gets_a_400_and_an_end(self):
        post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        post += f"Authorization: Bearer {KEY}\r\n".encode()
        for data in (b"GET /health HTTP/2.0\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n",
                     post + b"Content-Length: -5\r\n\r\n",
                     post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                     post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                     post + b"Transfer-Encoding: gzip\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
                     post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
            head, body = self.exchange(data).split("\r\n\r\n")
            self.assertTrue(head.startswith("HTTP/1.1 400 "), (data, head))
            self.assertIn("Connection: close", head)
            self.assertEqual(sorted(json.loads(body)["error"]), ["code", "message", "param", "type"])

    def test_only_listed_origins_may_call(self):
        for origin, expected in (("https://example.org", "https://example.org"),
                                 ("https://example.com", None)):
            headers = call(self.port, "GET", "/health", None, {"Origin": origin})[1]
            self.assertEqual(headers["Access-Control-Allow-Origin"], expected)


class End(unittest.TestCase):
    def test_sigterm_finishes_what_was_accepted(self):
        process, port = start()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/v1/chat/completions",
                           json.dumps(question("05.png", stream=True)),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()  # the first event is there
        process.send_signal(signal.SIGTERM)
        events = events_of(response.read().decode())
        whole = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        self.assertEqual(whole, golden_answer("05.png", DETAIL))
        connection.close()
        self.assertEqual(process.wait(60), 0)
        process.stderr.close()
        with self.assertRaises(ConnectionRefusedError):
            call(port, "GET", "/health")

    def test_an_idle_model_is_unloaded_and_comes_back(self):
        process, port = start("--idle-unload", "1s")
        try:
            status = {"server": {"loaded": True}}
            for _ in range(2):
                answer = call(port, "POST", "/v1/chat/completions", question("05.png"))[2]
                text = json.loads(answer)["choices"][0]["message"]["content"]
                self.assertEqual(text, golden_answer("05.png", DETAIL))
                while status["server"]["loaded"]:  # until it is idle
                    time.sleep(0.05)
                    status = json.loads(call(port, "GET", "/v1/status")[2])
                self.assertEqual(status["memory"], [])
                self.assertIn("glimpse_loaded 0", call(port, "GET", "/metrics")[2])
                self.assertEqual(call(port, "GET", "/health")[0], 200)
                self.assertEqual(call(port, "GET", "/v1/models")[0], 200)
                status["server"]["loaded"] = True
        finally:
            process.terminate()
            process.wait(60)
            process.stderr.close()

    def test_bodies_beyond_the_memory_for_them_get_a_429(self):
        process, port = start("--max-body", "100KiB", "--max-body-memory", "100KiB")
        chat = "/v1/chat/completions"
        body = "[" + " " * 60000 + "]"  # no object: a 400 wherever there is room
        half = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            half.putrequest("POST", chat)
            half.putheader("Content-Type", "application/json")
            half.putheader("Content-Length", "60000")
            half.endheaders(b" " * 59999)
            status, headers = 400, {}
            while status == 400:  # until the server has read what was sent
                status, headers, _ = call(port, "POST", chat, body)
            self.assertEqual(status, 429)
            self.assertTrue(headers["Retry-After"])
            self.assertEqual(call(port, "GET", "/health")[0], 200)
            half.close()
            while status == 429:  # until the server has seen the end
                status = call(port, "POST", chat, body)[0]
            self.assertEqual(status, 400)
        finally:
            half.close()
            process.terminate()
            process.wait(60)
            process.stderr.close()

    def test_pictures_under_the_media_root_only(self):
        process, port = start("--media-root", str(PICTURES))
        try:
            for path, status in ((PICTURES / "05.png", 200),
                                 (PICTURES / ".." / "answers.json", 400)):
                part = {"type": "image_url", "image_url": {"url": "file://" + str(path)}}
                body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
                self.assertEqual(call(port, "POST", "/v1/chat/completions", body)[0], status)
        finally:
            process.terminate()
            process.wait(60)
            process.stderr.close()


if __name__ == "__main__":
    unittest.main()
