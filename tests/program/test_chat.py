"""glimpse chat from a pipe and from a terminal."""

import os
import pty
import select
import signal
import time
import unittest

from program import PICTURES, PROGRAM, golden_answer, run


class Chat(unittest.TestCase):
    def test_a_picture_and_two_questions(self):
        lines = f"/image {PICTURES / '00.png'}\nRead the text in this image.\n/quit\n"
        result = run("chat", "--quiet", stdin=lines)
        self.assertEqual(result.stdout, golden_answer("00.png", "Read the text in this image.") + "\n")
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_missing_picture_does_not_end_the_chat(self):
        lines = f"/image /nowhere.png\n/image {PICTURES / '00.png'}\nRead the text in this image.\n"
        result = run("chat", "--quiet", stdin=lines)
        self.assertIn("/nowhere.png", result.stderr)
        self.assertIn("Peace", result.stdout)

    def test_an_unknown_command_lists_the_commands(self):
        result = run("chat", "--quiet", stdin="/dance\n")
        self.assertIn("/image PATH", result.stderr)

    def test_control_c_stops_the_answer_and_not_the_program(self):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(PROGRAM, [PROGRAM, "chat", "--ignore-eos", "--no-loop-guard",
                               "--max-tokens", "3000"])
        try:
            output = self.read_until(terminal, b"> ")
            os.write(terminal, b"Describe everything.\n")
            time.sleep(1.0)
            os.kill(pid, signal.SIGINT)
            output = self.read_until(terminal, b"[stopped]")
            self.assertIn(b"[stopped]", output)
            os.write(terminal, b"/quit\n")
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done == pid:
                    self.assertEqual(os.waitstatus_to_exitcode(status), 0)
                    return
                self.drain(terminal)
            self.fail("the program did not leave on /quit")
        finally:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(terminal)

    def drain(self, terminal):
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                return os.read(terminal, 4096)
            except OSError:
                return b""
        return b""

    def read_until(self, terminal, mark, seconds=30):
        output = b""
        deadline = time.monotonic() + seconds
        while mark not in output and time.monotonic() < deadline:
            output += self.drain(terminal)
        self.assertIn(mark, output)
        return output


if __name__ == "__main__":
    unittest.main()
