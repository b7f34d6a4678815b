"""The demo checkpoint's shape, and a forward pass for training over many pictures of one size.

The modules and weights are transformers' own Qwen3VLForConditionalGeneration; only the order of
the work differs: no padding, no gather of picture rows, a batch dimension everywhere.
Needs torch and transformers. tests: export.py compares this pass with transformers' own.
"""

import torch
import torch.nn.functional as F
import transformers.models.qwen3_vl.modeling_qwen3_vl as qwen3_vl
from transformers import Qwen3VLConfig

import tokenizer as tokens

HIDDEN = 384
VISION_HIDDEN = 256
VISION_HEADS = 4
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 128
DEEPSTACK_BLOCKS = (1, 3, 5)
PATCH, MERGE = 16, 2
CELL = PATCH * MERGE  # pixels of one picture token
POSITION_GRID = 48


def make_config(special):
    """`special`: token name -> id."""
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True,
            "rope_theta": 5000000.0}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": tokens.VOCABULARY_SIZE, "hidden_size": HIDDEN, "intermediate_size": 1024,
            "num_hidden_layers": 6, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "attention_bias": False, "rope_theta": 5000000.0,
            "rope_scaling": rope, "tie_word_embeddings": True,
            "bos_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"]},
        vision_config={
            "depth": 8, "hidden_size": VISION_HIDDEN, "num_heads": VISION_HEADS,
            "intermediate_size": 1024, "out_hidden_size": HIDDEN,
            "deepstack_visual_indexes": list(DEEPSTACK_BLOCKS), "patch_size": PATCH,
            "temporal_patch_size": 2, "spatial_merge_size": MERGE,
            "num_position_embeddings": POSITION_GRID**2, "in_channels": 3,
            "hidden_act": "gelu_pytorch_tanh"},
        image_token_id=special["<|image_pad|>"], video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"], tie_word_embeddings=True)


def to_patches(images):
    """[B, 3, height, width] in 0..1 -> [B, cell rows, cell columns, 2, 2, 3, 16, 16] in -1..1: in
    the order of the vision tower, four patches of a merged cell after another."""
    batch, _, height, width = images.shape
    cells = ((images - 0.5) / 0.5).view(batch, 3, height // CELL, MERGE, PATCH, width // CELL,
                                        MERGE, PATCH)
    return cells.permute(0, 2, 5, 3, 6, 1, 4, 7)


def num_picture_tokens(height, width):
    return height * width // CELL**2


def rotate_half(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rotated(x, cosines, sines):
    return x * cosines + rotate_half(x) * sines


def rms_norm(x, norm):
    return F.rms_norm(x.float(), (x.shape[-1],), None, 1e-6) * norm.weight


def vision_block(hidden, block, cosines, sines):
    batch, length, _ = hidden.shape                                  # [B, patches, 256]
    qkv = block.attn.qkv(block.norm1(hidden))
    q, k, v = (qkv.view(batch, length, 3, VISION_HEADS, VISION_HIDDEN // VISION_HEADS)
               .permute(2, 0, 3, 1, 4).unbind(0))
    q, k = rotated(q, cosines, sines).to(v.dtype), rotated(k, cosines, sines).to(v.dtype)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    hidden = hidden + block.attn.proj(attended.reshape(batch, length, VISION_HIDDEN))
    widened = F.gelu(block.mlp.linear_fc1(block.norm2(hidden)), approximate="tanh")
    return hidden + block.mlp.linear_fc2(widened)


def text_layer(hidden, layer, cosines, sines):
    batch, length, _ = hidden.shape                                  # [B, tokens, 384]
    attention, normed = layer.self_attn, rms_norm(hidden, layer.input_layernorm)

    def heads(projection, count):
        return projection(normed).view(batch, length, count, HEAD_DIM)

    q = rms_norm(heads(attention.q_proj, HEADS), attention.q_norm).transpose(1, 2)
    k = rms_norm(heads(attention.k_proj, KV_HEADS), attention.k_norm).transpose(1, 2)
    v = heads(attention.v_proj, KV_HEADS).transpose(1, 2)
    q, k = rotated(q, cosines, sines).to(v.dtype), rotated(k, cosines, sines).to(v.dtype)
    group = HEADS // KV_HEADS
    attended = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1),
                                              v.repeat_interleave(group, 1), is_causal=True)
    attended = attended.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM)
    hidden = hidden + attention.o_proj(attended)
    normed, mlp = rms_norm(hidden, layer.post_attention_layernorm), layer.mlp
    return hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))


class TrainingPass:
    """forward() of one model; keeps what depends on the picture's size alone."""

    def __init__(self, model, prefix, compile_blocks=False):
        self.model, self.vision, self.text = model, model.model.visual, model.model.language_model
        self.device = next(model.parameters()).device
        self.prefix = prefix
        self.geometries = {}
        self.vision_block, self.text_layer = vision_block, text_layer
        if compile_blocks:
            self.vision_block = torch.compile(vision_block, dynamic=True)
            self.text_layer = torch.compile(text_layer, dynamic=True)

    def geometry(self, height, width, text_length):
        """Position-embedding rows and weights, and both towers' cosines and sines."""
        key = (height, width, text_length)
        if key not in self.geometries:
            grid = torch.tensor([[1, height // PATCH, width // PATCH]], device=self.device)
            rows, weights = qwen3_vl.get_vision_interpolation_indices_and_weights(
                grid, num_grid_per_side=POSITION_GRID, mode="bilinear", align_corners=True,
                spatial_merge_size=MERGE, kwargs={})
            positions = qwen3_vl.get_vision_position_ids(grid, MERGE, kwargs={})
            vision_rotary = self.vision.rotary_pos_emb(torch.zeros(1, device=self.device),
                                                       positions)
            config = self.model.config
            ids = torch.tensor([[*self.prefix,
                                 *[config.image_token_id] * num_picture_tokens(height, width),
                                 *[config.vision_end_token_id] * text_length]], device=self.device)
            positions, _ = self.model.model.get_rope_index(
                ids, (ids == config.image_token_id).int(), image_grid_thw=grid)
            text_rotary = self.text.rotary_emb(torch.zeros(1, device=self.device), positions)
            self.geometries[key] = (rows.to(self.device), weights.to(self.device),
                                    [table[None, None] for table in vision_rotary],
                                    [table[:, None] for table in text_rotary])
        return self.geometries[key]

    def encode(self, images, geometry):
        """[B, 3, height, width] -> picture embeddings and DeepStack rows, [B, tokens, 384]."""
        batch = images.shape[0]
        rows, weights, rotary, _ = geometry
        projection = self.vision.patch_embed.proj
        patches = to_patches(images).reshape(batch, -1, 3 * PATCH**2)
        # A still picture is the same frame twice: the two slices of the kernel add up.
        kernel = projection.weight.sum(2).reshape(VISION_HIDDEN, -1)
        hidden = F.linear(patches, kernel, projection.bias)
        hidden = hidden + (self.vision.pos_embed(rows) * weights[:, :, None]).sum(1)
        deepstack, cells = [], hidden.shape[1] // MERGE**2
        for number, block in enumerate(self.vision.blocks):
            hidden = self.vision_block(hidden, block, *rotary)
            if number in DEEPSTACK_BLOCKS:
                merger = self.vision.deepstack_merger_list[DEEPSTACK_BLOCKS.index(number)]
                merged = merger.norm(hidden.reshape(batch, cells, -1))
                deepstack.append(merger.linear_fc2(F.gelu(merger.linear_fc1(merged))))
        merger = self.vision.merger
        merged = merger.norm(hidden).reshape(batch, cells, -1)
        return merger.linear_fc2(F.gelu(merger.linear_fc1(merged))), deepstack

    def forward(self, images, ids):
        """Normed hidden states of the tokens after the picture [B, L, 384], picture embeddings.
        `ids` [B, L]: what follows the picture."""
        height, width = images.shape[2:]
        geometry = self.geometry(height, width, ids.shape[1])
        pictures, deepstack = self.encode(images, geometry)
        embed = self.text.embed_tokens
        prefix = embed(torch.tensor(self.prefix, device=self.device))[None]
        hidden = torch.cat([prefix.expand(len(ids), -1, -1).to(pictures.dtype), pictures,
                            embed(ids).to(pictures.dtype)], 1)
        begin, end = len(self.prefix), len(self.prefix) + pictures.shape[1]
        for number, layer in enumerate(self.text.layers):
            hidden = self.text_layer(hidden, layer, *geometry[3])
            if number < len(deepstack):
                hidden = torch.cat([hidden[:, :begin], hidden[:, begin:end] + deepstack[number],
                                    hidden[:, end:]], 1)
        return rms_norm(hidden[:, end:], self.text.norm), pictures

    def logits(self, hidden):
        return F.linear(hidden, self.text.embed_tokens.weight)
