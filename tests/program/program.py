"""Runs the built program for the tests of this folder. Standard library only."""

import json
import os
import pathlib
import struct
import subprocess
import zlib

PROGRAM = os.environ["GLIMPSE_PROGRAM"]
SOURCE = pathlib.Path(os.environ["GLIMPSE_SOURCE_DIR"])
GOLDEN = SOURCE / "tests" / "golden"
PICTURES = GOLDEN / "demo" / "pictures"
MODEL = SOURCE / "models" / "demo"


def run(*arguments, stdin=None, timeout=120, env=None):
    """The finished process; output as text."""
    environment = dict(os.environ, **(env or {}))
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, timeout=timeout,
        env=environment, check=False,
        **({} if isinstance(stdin, bytes) else {"text": True, "encoding": "utf-8"}))


def golden_answer(picture, prompt):
    """What transformers says of a golden picture."""
    for entry in json.loads((GOLDEN / "demo" / "answers.json").read_text()):
        if entry["file"] == picture:
            for answer in entry["answers"]:
                if answer["prompt"] == prompt:
                    return answer["text"]
    raise KeyError((picture, prompt))


def png(width, height, rows=None):
    """A PNG file of a flat colour; with rows=b"" only the header says that size."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    if rows is None:
        rows = (b"\0" + b"\x20\x80\xc0" * width) * height
    return (b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
