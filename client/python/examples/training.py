#!/usr/bin/env python3
"""The causal model of context_parallel.py learns a text twice, with its attention served forward and backward, and locally.

  RINGSERVE_BIN=build/release/bin python3 client/python/examples/training.py [--steps N] [--tokens N] [--server HOST:PORT]
      [--script FOLDER] [TEXT]

Both start from the same random weights and see the same pieces of the text (default: Debian's GPL-3). So few steps of so
small a model show plumbing, not language. --script writes the trained model as TorchScript, with an input, for
client/torch/examples/served_module.cc.
"""
import argparse
import contextlib
import copy
import pathlib

import torch
from torch.nn import functional

import ringserve
import ringserve.torch
import script
from context_parallel import LAYERS, make_model

GENERATED = 32  # bytes
TOLERANCE = 2e-5  # of losses and of logits; what f32 rounds differently grows with every step


def trainer(model, scope):
    """A function that does one step on a piece of text, the attention inside `scope`, and returns the loss before it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(piece):
        with scope:
            loss = functional.cross_entropy(model(piece[None, :-1])[0], piece[1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def generate(model, prompt, scope):
    """What the model takes for the likeliest next bytes, one after the other."""
    text = prompt
    with torch.no_grad(), scope:
        for _ in range(GENERATED):
            text = torch.cat((text, model(text[None])[0, -1:].argmax(-1)))
    return bytes(text[len(prompt):].tolist())


def apart(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters()))


def main():
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--steps", type=int, default=50)
    flags.add_argument("--tokens", type=int, default=512, help="of each step")
    flags.add_argument("--server", help="a running cluster; default: two workers of this machine's own")
    flags.add_argument("--script", type=pathlib.Path, metavar="FOLDER")
    flags.add_argument("text", type=pathlib.Path, nargs="?", default="/usr/share/common-licenses/GPL-3", metavar="TEXT")
    given = flags.parse_args()

    torch.manual_seed(0)
    text = torch.tensor(list(pathlib.Path(given.text).read_bytes()))
    starts = torch.randint(0, len(text) - given.tokens, (given.steps,))
    pieces = [text[start:start + given.tokens + 1] for start in starts]
    first = make_model()
    served, local = copy.deepcopy(first), copy.deepcopy(first)
    here = contextlib.nullcontext()
    with contextlib.ExitStack() as stack:
        client = (stack.enter_context(ringserve.Client(given.server)) if given.server else
                  stack.enter_context(ringserve.local_cluster(workers=2)).client)
        scope = ringserve.torch.context_parallel(client, workers=2)
        steps = trainer(served, scope), trainer(local, here)
        print(f"{given.steps} steps of {given.tokens} bytes of {given.text}:\n   step   loss served    loss local")
        off = 0.0
        for i, piece in enumerate(pieces):
            losses = [step(piece) for step in steps]
            off = max(off, abs(losses[0] - losses[1]))
            if i % max(1, given.steps // 10) == 0 or i == given.steps - 1:
                print(f"  {i + 1:5}  {losses[0]:12.6f}  {losses[1]:12.6f}", flush=True)
        calls = scope.calls, scope.backward_calls
        logits, said = [], []
        for inside in (scope, here):
            with torch.no_grad(), inside:
                logits.append(served(pieces[-1][None]))
            said.append(generate(served, pieces[-1][:64], inside))

    if given.script:
        last = pieces[-1][None].clone()  # saved alone, not with the text
        script.write(given.script, served, (last[:, :8],), (last,), (last,))
    print(f"largest difference of the losses {off:.1e}, of the trained weights {apart(served, local):.1e} "
          f"(training changed them by up to {apart(first, local):.2f})")
    difference = (logits[0] - logits[1]).abs().max().item()
    print(f"{calls[0]} attention calls and {calls[1]} of their backward passes served by {scope.statistics.plan.workers} workers")
    print(f"the trained model, served and locally: largest difference of {logits[0].numel():,} logits {difference:.1e}; "
          f"{GENERATED} bytes generated, {'the same' if said[0] == said[1] else 'not the same'}: {said[0]!r}")
    print("So few steps of so small a model show plumbing, not language.")
    right = off < TOLERANCE and difference < TOLERANCE and said[0] == said[1]
    return 0 if right and calls == (LAYERS * given.steps,) * 2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
