"""Every mistake a user can make: one sentence with the value, a hint, an exit code by kind."""

import json
import os
import pathlib
import shutil
import struct
import tempfile
import threading
import unittest

from program import GOLDEN, MODEL, PICTURES, png, run


class Errors(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def fails(self, code, words, *arguments, stdin=None):
        result = run(*arguments, stdin=stdin)
        error = result.stderr if isinstance(result.stderr, str) else result.stderr.decode()
        self.assertEqual(result.returncode, code, error)
        self.assertEqual(len(result.stdout), 0)
        for word in words:
            self.assertIn(word, error)
        self.assertLessEqual(len(error.strip().splitlines()), 3, error)

    def write(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return path

    def model(self, without=()):
        """A copy of the bundled checkpoint; the weights are hard to copy, so they are linked."""
        copy = self.folder / "model"
        copy.mkdir()
        for file in MODEL.iterdir():
            if file.name in without:
                continue
            if file.suffix == ".safetensors":
                (copy / file.name).symlink_to(file)
            else:
                shutil.copy(file, copy)
        return copy

    # ---- pictures ----
    def test_no_such_file(self):
        self.fails(3, ["nowhere.png"], "caption", self.folder / "nowhere.png")

    def test_not_a_picture(self):
        self.fails(4, ["note.png"], "caption", self.write("note.png", b"hello, I am text"))

    def test_an_empty_file(self):
        self.fails(4, ["empty.jpg"], "caption", self.write("empty.jpg", b""))

    def test_empty_standard_input(self):
        self.fails(4, ["standard input"], "caption", "-", stdin=b"")

    def test_truncated_pictures(self):
        for name in ("00.png", "01.jpg", "03.webp"):
            data = (PICTURES / name).read_bytes()
            self.fails(4, [name], "caption", self.write(name, data[:len(data) // 2]))

    def test_a_bomb_is_refused_by_its_declared_size(self):
        self.fails(4, ["60000", "bomb.png"], "caption",
                   self.write("bomb.png", png(60000, 60000, rows=b"")))

    def test_an_aspect_ratio_over_200(self):
        self.fails(4, ["200", "206.25"], "caption",
                   GOLDEN / "preprocess" / "files" / "aspect206_error.png")

    def test_pipes_and_devices(self):
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        for content in (b"", b"hello, I am text"):
            writer = threading.Thread(target=pipe.write_bytes, args=(content,))
            writer.start()
            self.fails(4, ["pipe"], "caption", pipe)
            writer.join()
        self.fails(4, ["/dev/zero", "512 MiB"], "caption", "/dev/zero")

    def test_a_file_too_large_to_be_a_picture(self):
        path = self.folder / "huge.png"
        with path.open("wb") as file:
            file.truncate(1 << 40)  # takes no room
        self.fails(4, ["huge.png", "1048576 MiB", "512"], "caption", path)

    def test_names_that_lead_nowhere(self):
        self.fails(3, ["name of a picture is empty"], "caption", "")
        (self.folder / "loop").symlink_to(self.folder / "loop")
        self.fails(3, ["loop", "symbolic links"], "caption", self.folder / "loop")
        self.fails(3, ["a.png", "no such file"], "caption", PICTURES / "00.png" / "a.png")

    @unittest.skipIf(os.geteuid() == 0, "root may read everything")
    def test_what_may_not_be_read(self):
        path = self.write("secret.png", b"x")
        path.chmod(0)
        self.fails(3, ["secret.png", "Permission denied"], "caption", path)
        path.unlink()
        self.folder.chmod(0)
        self.addCleanup(self.folder.chmod, 0o700)
        self.fails(3, [str(self.folder), "Permission denied"], "caption", self.folder)

    # ---- models ----
    def test_no_such_model(self):
        self.fails(3, ["nobody/nothing"], "caption", PICTURES / "00.png", "--model", "nobody/nothing")

    def test_a_directory_without_a_checkpoint(self):
        self.fails(3, [str(self.folder), "config.json"], "caption", PICTURES / "00.png",
                   "--model", self.folder)

    def test_a_missing_shard(self):
        shard = "model-00002-of-00002.safetensors"
        self.fails(3, [shard], "caption", PICTURES / "00.png", "--model", self.model(without=[shard]))

    def break_shard(self, change):
        shard = "model-00001-of-00002.safetensors"
        copy = self.model(without=[shard])
        data = bytearray((MODEL / shard).read_bytes())
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + length])
        body = data[8 + length:]
        header, body = change(header, body)
        text = json.dumps(header).encode()
        (copy / shard).write_bytes(struct.pack("<Q", len(text)) + text + body)
        return copy, shard

    def test_truncated_safetensors(self):
        copy, shard = self.break_shard(lambda header, body: (header, body[:-1000]))
        self.fails(5, [shard], "caption", PICTURES / "00.png", "--model", copy)

    def test_overlapping_safetensors(self):
        def overlap(header, body):
            names = sorted((n for n in header if n != "__metadata__"),
                           key=lambda n: header[n]["data_offsets"][0])
            first, second = header[names[0]]["data_offsets"], header[names[1]]["data_offsets"]
            size = second[1] - second[0]
            header[names[1]]["data_offsets"] = [first[0], first[0] + size]
            return header, body
        copy, shard = self.break_shard(overlap)
        self.fails(5, [shard, "overlap"], "caption", PICTURES / "00.png", "--model", copy)

    def test_a_missing_tensor_is_named(self):
        missing = []

        def drop(header, body):
            name = next(n for n in header if n.endswith("weight"))
            entry = header.pop(name)
            missing.append(name)
            header["some.other.weight"] = entry
            return header, body
        copy, _ = self.break_shard(drop)
        self.fails(5, missing, "caption", PICTURES / "00.png", "--model", copy)

    def test_a_wrong_shape_is_named(self):
        wrong = []

        def flatten(header, body):
            name = next(n for n in header if n != "__metadata__" and len(header[n]["shape"]) == 2)
            rows, columns = header[name]["shape"]
            header[name]["shape"] = [rows * columns, 1]
            wrong.append(name)
            return header, body
        copy, _ = self.break_shard(flatten)
        self.fails(5, wrong, "caption", PICTURES / "00.png", "--model", copy)

    def change_config(self, change):
        copy = self.model()
        config = json.loads((copy / "config.json").read_text())
        change(config)
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    def test_an_unknown_architecture_is_named(self):
        def change(config):
            config["architectures"] = ["GiraffeForCausalLM"]
            config["model_type"] = "giraffe"
        self.fails(5, ["GiraffeForCausalLM"], "caption", PICTURES / "00.png",
                   "--model", self.change_config(change))

    def test_a_missing_key_is_named(self):
        copy = self.change_config(lambda config: config["text_config"].pop("num_hidden_layers"))
        self.fails(5, ["num_hidden_layers"], "caption", PICTURES / "00.png", "--model", copy)

    def test_damaged_json_is_named(self):
        copy = self.model()
        (copy / "config.json").write_text('{"architectures": [')
        self.fails(5, ["config.json"], "caption", PICTURES / "00.png", "--model", copy)

    def test_configurations_that_are_no_objects_are_named(self):
        for name in ("config.json", "generation_config.json", "processor_config.json",
                     "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json"):
            with self.subTest(name):
                copy = self.model()
                (copy / name).write_text("[]")
                word = "image processor" if name == "processor_config.json" else name
                self.fails(5, [word], "caption", PICTURES / "00.png", "--model", copy)
                shutil.rmtree(copy)

    def test_a_template_that_cannot_run_names_its_construct(self):
        copy = self.model()
        (copy / "chat_template.jinja").write_text("{% for m in messages %}{% frobnicate m %}{% endfor %}")
        self.fails(5, ["frobnicate"], "caption", PICTURES / "00.png", "--model", copy)

    # ---- requests and flags ----
    def test_a_prompt_longer_than_the_context(self):
        self.fails(6, ["64"], "caption", PICTURES / "00.png", "--context", "64")

    def test_an_unknown_flag(self):
        self.fails(2, ["--frobnicate"], "caption", PICTURES / "00.png", "--frobnicate")

    def test_a_misspelt_flag_or_command_is_told_its_name(self):
        self.fails(2, ["'--temperatur'", "did you mean --temperature?"], "caption", "x.png",
                   "--temperatur=3")
        self.fails(2, ["'capton'", "did you mean caption?"], "capton", "x.png")
        self.fails(2, ["a command is missing"])

    def test_a_choice_lists_what_there_is(self):
        self.fails(2, ["q4", "bf16", "fp8"], "caption", "x.png", "--kv", "q4")

    def test_a_flag_out_of_range(self):
        self.fails(2, ["--temperature", "-1", "0 and 100"], "caption", PICTURES / "00.png", "--temperature", "-1")

    def test_numbers_out_of_range_are_told_both_limits(self):
        for flag, value, limits in (
                ("--top-k", "-1", "0 and 16777216"), ("--top-k", "99999999999", "0 and 16777216"),
                ("--min-pixels", "0", "1 and"), ("--seed", "-1", "0 and 18446744073709551615"),
                ("--seed", "18446744073709551616", "0 and 18446744073709551615"),
                ("--temperature", "nan", "0 and 100"), ("--temperature", "", "0 and 100"),
                ("--threads", "1.5", "1 and 1024"), ("--context", "0", "16 and 1048576"),
                ("--max-tokens", "0", "1 and 1048576")):
            with self.subTest(flag=flag, value=value):
                self.fails(2, [flag, f"'{value}'", limits], "caption", "x.png", flag, value)
        self.fails(2, ["--port", "'99999'", "0 and 65535"], "serve", "--port", "99999")

    def test_a_picture_size_of_bench_is_refused_before_anything_is_measured(self):
        for size in ("1x", "0x5", "64x64z", "100000x100000"):
            self.fails(2, [f"'{size}'"], "bench", "--pictures", f"64x64,{size}")

    def test_flags_of_the_server_that_contradict(self):
        self.fails(2, ["--max-body-memory 1048576", "--max-body 2097152"], "serve", "--max-body",
                   "2MiB", "--max-body-memory", "1MiB")
        self.fails(2, ["--gpu-memory-utilization", "--vram"], "serve", "--device", "cpu",
                   "--gpu-memory-utilization", "0.9")
        self.fails(2, ["--gpu-memory-utilization", "1.5"], "serve", "--gpu-memory-utilization", "1.5")

    def test_no_file_given(self):
        self.fails(2, ["FILE"], "caption")

    def test_an_unknown_device(self):
        self.fails(2, ["tpu"], "caption", PICTURES / "00.png", "--device", "tpu")

    def test_pixel_limits_that_contradict(self):
        self.fails(2, ["100000", "70000"], "caption", PICTURES / "00.png", "--min-pixels", "100000",
                   "--max-pixels", "70000")


if __name__ == "__main__":
    unittest.main()
