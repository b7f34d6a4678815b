"""Qwen's tokenizer pipeline with a small vocabulary, learned from the answers about scenes.

Needs the `tokenizers` package. Special tokens have Qwen's names; their ids follow the vocabulary.
"""

import random

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

import conversations
import scenes

VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
                  "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
                  "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                  "<|image_pad|>", "<|video_pad|>"]
ADDED_TOKENS = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
                "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
                "<tool_response>", "</tool_response>", "<think>", "</think>"]
# The pattern of Qwen's tokenizer.json.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def sentences(catalogue, num_scenes, seed):
    rng = random.Random(seed)
    for _ in range(num_scenes):
        scene = scenes.random_scene(rng, catalogue, 256, 256)
        for question, answer in conversations.conversation(rng, scene):
            yield question
            yield answer


def learn(catalogue, num_scenes=60000, seed=1):
    """A byte-level BPE tokenizer of at most VOCABULARY_SIZE tokens, special ones included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False,
                                           use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False,
                                                    use_regex=False)
    tokenizer.train_from_iterator(
        sentences(catalogue, num_scenes, seed),
        trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS) - len(ADDED_TOKENS),
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                            show_progress=False, min_frequency=2))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)
                          for token in ADDED_TOKENS])
    return tokenizer


class Encoder:
    """Token ids of the pieces of a conversation."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.special = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        self.user, self.assistant = self.encode("user\n"), self.encode("assistant\n")
        self.line_break = self.encode("\n")
        # What stands before the picture's tokens in every training sequence.
        self.prefix = [self.special["<|im_start|>"], *self.user, self.special["<|vision_start|>"]]
        self.known = {}

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_cached(self, text):
        """Answers repeat; the cache is emptied before it grows large."""
        if text not in self.known:
            if len(self.known) > 200000:
                self.known.clear()
            self.known[text] = self.encode(text)
        return self.known[text]

    def question(self, text, is_first):
        """The user's turn (its opening stands before the picture when it is the first) and the
        opening of the answer."""
        opening = [] if is_first else [self.special["<|im_start|>"], *self.user]
        return [*opening, *self.encode_cached(text), self.special["<|im_end|>"], *self.line_break,
                self.special["<|im_start|>"], *self.assistant]

    def answer(self, text):
        return [*self.encode_cached(text), self.special["<|im_end|>"]]
