"""glimpse serve behind TLS, with a certificate made for the test: requests and streams, and clients
that do not speak TLS beside them."""

import http.client
import json
import pathlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import unittest

from program import golden_answer, run
from test_serve import DETAIL, events_of, question, start


def make_certificate(folder, name):
    """A self-signed certificate for 127.0.0.1, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True)
    return certificate, key


@unittest.skipUnless(shutil.which("openssl"), "openssl, which makes the certificate, is missing")
class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.certificate, cls.key = make_certificate(pathlib.Path(cls.folder.name), "server")
        cls.process, cls.port = start("--tls-cert", str(cls.certificate), "--tls-key", str(cls.key))

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(60)
        cls.process.stderr.close()
        cls.folder.cleanup()

    def connect(self):
        context = ssl.create_default_context(cafile=str(self.certificate))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=120, context=context)

    def ask(self, connection, body):
        connection.request("POST", "/v1/chat/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        self.assertEqual(response.status, 200, text)
        return text

    def test_one_connection_carries_a_whole_answer_and_a_stream(self):
        connection = self.connect()
        whole = json.loads(self.ask(connection, question("05.png")))
        kept = connection.sock
        self.assertEqual(whole["choices"][0]["message"]["content"], golden_answer("05.png", DETAIL))
        events = events_of(self.ask(connection, question("05.png", stream=True)))
        self.assertIs(connection.sock, kept)
        self.assertIn(kept.version(), ("TLSv1.2", "TLSv1.3"))
        text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        self.assertEqual(text, golden_answer("05.png", DETAIL))
        connection.close()

    def test_a_client_that_does_not_know_the_certificate_turns_away(self):
        stranger = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=120,
                                               context=ssl.create_default_context())
        with self.assertRaises(ssl.SSLCertVerificationError):
            stranger.request("GET", "/health")
        stranger.close()

    def test_clients_that_speak_no_tls_are_dropped_and_disturb_nobody(self):
        silent = [socket.create_connection(("127.0.0.1", self.port), 120) for _ in range(8)]
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", self.port), 120) as plain:
                plain.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
                answer = b""
                try:
                    while piece := plain.recv(4096):  # to the end: the server closes
                        answer += piece
                except ConnectionResetError:
                    pass
                self.assertNotIn(b"HTTP/", answer)
        connection = self.connect()
        connection.request("GET", "/health")
        self.assertEqual(json.loads(connection.getresponse().read())["status"], "ok")
        connection.close()
        for one in silent:
            one.close()

    def test_a_certificate_without_its_own_key_is_refused_at_the_start(self):
        _, other_key = make_certificate(pathlib.Path(self.folder.name), "other")
        missing = pathlib.Path(self.folder.name) / "missing.pem"
        for certificate, key in ((self.certificate, other_key), (missing, self.key)):
            result = run("serve", "--port", "0", "--device", "cpu", "--tls-cert", certificate,
                         "--tls-key", key)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("TLS cannot start", result.stderr)


if __name__ == "__main__":
    unittest.main()
