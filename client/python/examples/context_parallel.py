#!/usr/bin/env python3
"""A causal model with RoPE and grouped queries, unchanged, with its attention served: the same logits as locally.

  RINGSERVE_BIN=build/release/bin python3 client/python/examples/context_parallel.py [--tokens N] [--server HOST:PORT]

The model reads bytes and has random weights: this shows plumbing, not language.
"""
import argparse
import contextlib

import torch
from torch import nn
from torch.nn import functional

import ringserve
import ringserve.torch

WIDTH, HEADS, KV_HEADS, LAYERS = 128, 8, 2, 3
HEAD_DIM = WIDTH // HEADS


def rotated(x):
    """Rotary position embedding of [B, H, S, D]."""
    positions = torch.arange(x.shape[2], dtype=x.dtype)
    angles = torch.outer(positions, 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()), -1)
    return turned.flatten(-2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.join = nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        heads = self.qkv(self.before(x)).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        seen = functional.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, enable_gqa=True)
        x = x + self.join(seen.transpose(1, 2).flatten(-2))
        return x + self.feed_forward(self.after(x))


def make_model():
    return nn.Sequential(nn.Embedding(256, WIDTH), *(Block() for _ in range(LAYERS)), nn.Linear(WIDTH, 256))


def main():
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--tokens", type=int, default=4096)
    flags.add_argument("--server", help="a running cluster; default: two workers of this machine's own")
    given = flags.parse_args()

    torch.manual_seed(0)
    model = make_model().eval()
    text = torch.randint(0, 256, (1, given.tokens))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        client = (stack.enter_context(ringserve.Client(given.server)) if given.server else
                  stack.enter_context(ringserve.local_cluster(workers=2)).client)
        local = model(text)
        with ringserve.torch.context_parallel(client, workers=2) as scope:
            served = model(text)
    difference = (served - local).abs().max().item()
    plan = scope.statistics.plan
    print(f"{scope.calls} attention calls served by {plan.workers} workers, balancer {plan.balancer}, "
          f"imbalance {plan.imbalance:.3f}")
    print(f"largest difference of {local.numel():,} logits from the local run: {difference:.1e}")
    return 0 if scope.calls == LAYERS and difference < 1e-4 else 1


if __name__ == "__main__":
    raise SystemExit(main())
