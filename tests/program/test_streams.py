"""Standard streams that are full, closed or cut, and Ctrl-C: never silence, never a crash."""

import signal
import subprocess
import unittest

from program import PICTURES, PROGRAM

ONE = ["caption", PICTURES / "00.png", "--max-tokens", "4"]
ENDLESS = ["--ignore-eos", "--no-loop-guard", "--max-tokens", "3000"]
CAPTION = ["caption", str(PICTURES / "00.png"), *ENDLESS]


def run(arguments, **streams):
    return subprocess.run([PROGRAM, *map(str, arguments)], text=True, check=False, timeout=120,
                          **streams)


def shell(redirection, *arguments):
    """The program with descriptors as only a shell leaves them."""
    return subprocess.run(["bash", "-c", f'"$0" "$@" {redirection}', PROGRAM, *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=120)


def started(arguments):
    """A running program that hears Ctrl-C, even where this test was started in the background."""
    return subprocess.Popen(
        [PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


class Streams(unittest.TestCase):
    def test_a_full_disk_is_reported(self):
        for arguments in (ONE, [*ONE, "--json"], [*ONE, PICTURES / "01.jpg"], ["plan"],
                          ["doctor", "--json"], ["caption", "--help"], ["--version"]):
            with self.subTest(arguments), open("/dev/full", "w", encoding="utf-8") as full:
                result = run(arguments, stdout=full, stderr=subprocess.PIPE)
                self.assertEqual(result.returncode, 10, result.stderr)
                self.assertIn("No space left on device", result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 2, result.stderr)

    def test_a_closed_standard_output_is_reported(self):
        result = shell(">&-", *ONE)
        self.assertEqual(result.returncode, 10)
        self.assertIn("Bad file descriptor", result.stderr)

    def test_errors_that_nobody_can_read_keep_their_exit_code(self):
        for redirection in ("2>&-", "2>/dev/full", "<&- >&- 2>&-"):
            with self.subTest(redirection):
                self.assertEqual(shell(redirection, "caption", "nowhere.png").returncode, 3)

    def test_a_reader_that_leaves_ends_the_program(self):
        with started(CAPTION) as process:
            self.assertEqual(process.stdout.read(1), b"T")
            process.stdout.close()
            self.assertEqual(process.wait(60), -signal.SIGPIPE)
            self.assertEqual(process.stderr.read(), b"")

    def test_ctrl_c_ends_caption_in_the_middle_of_an_answer(self):
        with started(CAPTION) as process:
            self.assertEqual(process.stdout.read(1), b"T")
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(60), -signal.SIGINT)

    def test_ctrl_c_ends_the_answer_of_chat_and_not_chat(self):
        with started(["chat", *ENDLESS]) as process:
            process.stdin.write(b"Describe the sea.\n")
            process.stdin.flush()
            self.assertEqual(len(process.stdout.read(1)), 1)
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(b"/quit\n", timeout=60)
            self.assertTrue(rest.endswith(b" [stopped]\n"), rest)
            self.assertEqual(process.returncode, 0)


if __name__ == "__main__":
    unittest.main()
