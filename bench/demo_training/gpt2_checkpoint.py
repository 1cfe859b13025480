"""A tiny GPT-2 in PyTorch and its byte-level BPE, to and from a checkpoint directory in the Hugging Face
layout of the published gpt2."""

import json
import math
import os

import torch
import torch.nn as nn
import torch.nn.functional as F
from demo_tokenizer import byte_alphabet
from safetensors.torch import load_file, save_file

CONFIG = dict(
    activation_function="gelu_new",
    architectures=["GPT2LMHeadModel"],
    attn_pdrop=0.0,
    bos_token_id=None,
    embd_pdrop=0.1,
    eos_token_id=None,
    initializer_range=0.02,
    layer_norm_epsilon=1e-05,
    model_type="gpt2",
    n_ctx=256,
    n_embd=160,
    n_head=5,
    n_layer=4,
    n_positions=256,
    resid_pdrop=0.1,
    summary_activation=None,
    summary_first_dropout=0.1,
    summary_proj_to_labels=True,
    summary_type="cls_index",
    summary_use_proj=True,
    task_specific_params={"text-generation": {"do_sample": True, "max_length": 200}},
    vocab_size=None,
)
END = "<|endoftext|>"


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, std = c["n_embd"], c["initializer_range"]

        def linear(i, o, std=std):
            m = nn.Linear(i, o)
            nn.init.normal_(m.weight, std=std)
            nn.init.zeros_(m.bias)
            return m

        deep = std / math.sqrt(2 * c["n_layer"])
        self.c = c
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.attn_proj = linear(d, d), linear(d, d), linear(d, d), linear(d, d, deep)
        self.fc, self.mlp_proj = linear(d, 4 * d), linear(4 * d, d, deep)

    def drop(self, x):
        return F.dropout(x, self.c["resid_pdrop"], self.training)

    def forward(self, x):
        """x [B, T, D]"""
        c, (b, t, d) = self.c, x.shape
        h = self.ln_1(x)
        q, k, v = (m(h).view(b, t, c["n_head"], -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        s = (q * q.shape[-1] ** -0.5) @ k.mT
        with torch.autocast("cpu", enabled=False):  # bf16 in and out will do, and is much faster
            p = (s + torch.full((t, t), -1e30, dtype=s.dtype).triu(1)).softmax(-1)
        y = F.dropout(p, c["attn_pdrop"], self.training) @ v
        x = x + self.drop(self.attn_proj(y.transpose(1, 2).reshape(b, t, d)))
        return x + self.drop(self.mlp_proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh")))


class TinyGPT2(nn.Module):
    """c: a checkpoint's config.json as a dict."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.wte = nn.Parameter(torch.randn(c["vocab_size"], c["n_embd"]) * c["initializer_range"])
        self.wpe = nn.Parameter(torch.randn(c["n_positions"], c["n_embd"]) * c["initializer_range"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["n_layer"]))
        self.ln_f = nn.LayerNorm(c["n_embd"])

    def forward(self, ids):
        """ids [B, T] -> logits [B, T, V]"""
        x = F.dropout(self.wte[ids] + self.wpe[: ids.shape[1]], self.c["embd_pdrop"], self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte)


def build_tokenizer(text, vocab_size):
    """Byte-level BPE with GPT-2's pre-tokenizer, and its merges; ids: the 256 bytes in GPT-2's own order, the
    merges in order, <|endoftext|>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    alphabet = list(byte_alphabet().values())
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    merges = [tuple(m) for m in json.loads(tok.to_str())["model"]["merges"]]
    names = alphabet + list(dict.fromkeys(a + b for a, b in merges))
    tok = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(names)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(END, normalized=True, special=True)])
    return tok, merges


OUTER = {"wte": "wte.weight", "wpe": "wpe.weight", "ln_f.weight": "ln_f.weight", "ln_f.bias": "ln_f.bias"}
NORMS = ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"]
LINEARS = {"attn_proj": "attn.c_proj", "fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}


def export_tensors(model):
    """{name: bf16 tensor} as in the published gpt2; Conv1D weights are stored [in, out], the head is wte."""
    state = model.state_dict()
    out = {v: state[k] for k, v in OUTER.items()}
    for n in range(len(model.blocks)):
        p, b = f"h.{n}.", f"blocks.{n}."
        out |= {p + k: state[b + k] for k in NORMS}
        out[p + "attn.c_attn.weight"] = torch.cat([state[f"{b}{k}.weight"] for k in "qkv"]).T
        out[p + "attn.c_attn.bias"] = torch.cat([state[f"{b}{k}.bias"] for k in "qkv"])
        for ours, theirs in LINEARS.items():
            out[f"{p}{theirs}.weight"] = state[f"{b}{ours}.weight"].T
            out[f"{p}{theirs}.bias"] = state[f"{b}{ours}.bias"]
    return {k: v.bfloat16().contiguous() for k, v in out.items()}


def export(model, tok, merges, out):
    """Write the directory a published gpt2 is: config, weights, tokenizer."""
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "model.safetensors")
    save_file(export_tensors(model), path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
    end = tok.token_to_id(END)
    generation = dict(_from_model_config=True, bos_token_id=end, eos_token_id=end, transformers_version="4.26.0.dev0")
    for name, data in (
        ("config.json", model.c),
        ("generation_config.json", generation),
        ("tokenizer_config.json", dict(model_max_length=model.c["n_positions"])),
    ):
        with open(os.path.join(out, name), "w") as f:
            json.dump(data, f, indent=2)
            f.write("\n")
    with open(os.path.join(out, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump(dict(sorted(tok.get_vocab().items(), key=lambda p: p[1])), f)
    with open(os.path.join(out, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tok.save(os.path.join(out, "tokenizer.json"))


def load(path):
    """The model of a checkpoint directory, in evaluation mode."""
    with open(os.path.join(path, "config.json")) as f:
        model = TinyGPT2(json.load(f))
    raw = {k: v.float() for k, v in load_file(os.path.join(path, "model.safetensors")).items()}
    state = {k: raw[v] for k, v in OUTER.items()}
    for n in range(len(model.blocks)):
        p, b = f"h.{n}.", f"blocks.{n}."
        state |= {b + k: raw[p + k] for k in NORMS}
        weights, biases = raw[p + "attn.c_attn.weight"].T.chunk(3), raw[p + "attn.c_attn.bias"].chunk(3)
        for k, weight, bias in zip("qkv", weights, biases, strict=True):
            state |= {f"{b}{k}.weight": weight, f"{b}{k}.bias": bias}
        for ours, theirs in LINEARS.items():
            state[f"{b}{ours}.weight"] = raw[f"{p}{theirs}.weight"].T
            state[f"{b}{ours}.bias"] = raw[f"{p}{theirs}.bias"]
    model.load_state_dict(state)
    return model.eval()
