"""glimpse ask against glimpse serve, and pictures that the server fetches by URL."""

import contextlib
import http.server
import json
import os
import pathlib
import signal
import tempfile
import threading
import time
import unittest

from program import PICTURES, golden_answer, run
from test_serve import call, start

DETAIL = "Describe this image in detail."


class Files(http.server.BaseHTTPRequestHandler):
    """A host of pictures with bad manners."""

    def do_GET(self):
        if self.path == "/moved":
            return self.redirect("/05.png")
        if self.path == "/local":
            return self.redirect(f"http://localhost:{self.server.server_port}/05.png")
        if self.path == "/forever":
            return self.redirect("/forever")
        if self.path == "/slow":
            time.sleep(30)
            return None
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 20))
            return None
        file = PICTURES / self.path[1:]
        self.send_response(200 if file.is_file() else 404)
        self.end_headers()
        if file.is_file():
            self.wfile.write(file.read_bytes())
        return None

    def redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Ask(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
        cls.files.daemon_threads = True
        threading.Thread(target=cls.files.serve_forever, daemon=True).start()
        cls.host = f"127.0.0.1:{cls.files.server_port}"
        keys = tempfile.NamedTemporaryFile("w", delete=False)
        with keys:
            keys.write("a-key-for-tests\n")
        cls.keys = keys.name
        cls.server, cls.port = start("--api-key-file", keys.name, "--max-body", "2MiB",
                                     "--allow-picture-host", cls.host)
        cls.url = ["--url", f"http://127.0.0.1:{cls.port}", "--api-key-file", keys.name]

    @classmethod
    def tearDownClass(cls):
        cls.server.send_signal(signal.SIGTERM)
        cls.server.wait(60)
        cls.server.stderr.close()
        cls.files.shutdown()
        cls.files.server_close()
        os.unlink(cls.keys)

    # ---- the client ----
    def test_a_question_is_answered_as_by_caption(self):
        result = run("ask", PICTURES / "05.png", DETAIL, "--temperature", "0", *self.url)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, golden_answer("05.png", DETAIL) + "\n")
        self.assertEqual(result.stderr, "")

    def test_a_picture_comes_through_standard_input_and_json_goes_out(self):
        result = run("ask", "-", DETAIL, "--json", "--logprobs", "2", "--temperature", "0", *self.url,
                     stdin=(PICTURES / "05.png").read_bytes())
        value = json.loads(result.stdout)
        self.assertEqual(value["text"], golden_answer("05.png", DETAIL))
        self.assertEqual(value["finish_reason"], "stop")
        self.assertEqual(len(value["logprobs"]), value["usage"]["completion_tokens"])
        self.assertEqual(value["usage"]["pictures"][0]["grid_thw"], [1, 14, 20])

    def test_the_key_may_come_from_the_environment(self):
        result = run("ask", "Hello", *self.url[:2], env={"GLIMPSE_API_KEY": "a-key-for-tests"})
        self.assertEqual(result.returncode, 0, result.stderr)
        result = run("ask", "Hello", *self.url[:2], env={"GLIMPSE_API_KEY": "wrong"})
        self.assertEqual(result.returncode, 2)
        self.assertIn("API key", result.stderr)

    def test_mistakes_are_told_as_caption_tells_them(self):
        with tempfile.TemporaryDirectory() as folder:
            note = pathlib.Path(folder) / "note.png"
            note.write_text("these are only words")
            for code, word, arguments in (
                    (4, "not a picture", [note, "What?"]),
                    (3, "nowhere.png", [pathlib.Path(folder) / "nowhere.png", "What?"]),
                    (2, "question is missing", [note]),
                    (3, "ask for demo", ["What?", "--model", "another"]),
                    (2, "ftp", ["What?", "--url", "ftp://here"])):
                result = run("ask", *arguments, *(self.url if "--url" not in arguments else []))
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertIn(word, result.stderr)
                self.assertEqual(result.stdout, "")

    def test_no_server_is_a_sentence_and_a_hint(self):
        result = run("ask", "Hello", "--url", "http://127.0.0.1:1")
        self.assertEqual(result.returncode, 3)
        self.assertIn("127.0.0.1:1 does not answer", result.stderr)
        self.assertIn("glimpse serve", result.stderr)

    # ---- pictures by URL ----
    def fetch(self, url):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": DETAIL}]
        status, _, body = call(self.port, "POST", "/v1/chat/completions",
                               {"messages": [{"role": "user", "content": content}],
                                "temperature": 0, "max_tokens": 256})
        return status, json.loads(body)

    def test_a_picture_is_fetched_from_an_allowed_host_and_redirections_are_followed(self):
        for name in ("05.png", "moved"):
            status, value = self.fetch(f"http://{self.host}/{name}")
            self.assertEqual(status, 200, value)
            self.assertEqual(value["choices"][0]["message"]["content"],
                             golden_answer("05.png", DETAIL))

    def test_what_may_not_or_cannot_be_fetched_is_a_400_that_says_why(self):
        port = self.files.server_port
        for url, words in ((f"http://localhost:{port}/05.png", "does not fetch from"),
                           (f"http://{self.host}/local", "does not fetch from"),
                           ("http://169.254.169.254/latest/meta-data", "does not fetch from"),
                           (f"http://{self.host}/forever", "redirected more than 3 times"),
                           (f"http://{self.host}/none.png", "answered 404"),
                           (f"http://{self.host}/endless", "larger than 2097152 bytes"),
                           (f"http://u@{self.host}/05.png", "user name")):
            status, value = self.fetch(url)
            self.assertEqual(status, 400, value)
            self.assertIn(words, value["error"]["message"])
            self.assertEqual(value["error"]["param"], "messages[0].content[0].image_url.url")

    def test_a_slow_host_holds_up_nobody_else_and_ends_in_time(self):
        slow = {}
        asking = threading.Thread(target=lambda: slow.update(answer=self.fetch(f"http://{self.host}/slow")))
        asking.start()
        status, value = self.fetch(f"http://{self.host}/05.png")
        self.assertEqual(status, 200, value)
        asking.join(60)
        self.assertEqual(slow["answer"][0], 400)
        self.assertIn("too long", slow["answer"][1]["error"]["message"])


if __name__ == "__main__":
    unittest.main()
