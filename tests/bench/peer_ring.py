"""One rank of PyTorch's own ring attention over Gloo, one thread: what `./dev bench --peers` measures against.

Reads commands from stdin, one a line, and answers each with one JSON object on stdout:
  load FOLDER LENGTH DTYPE   takes this rank's head-tail shards of FOLDER/q, k and v
  run METHOD                 one pass of _templated_ring_attention, METHOD alltoall or allgather
The time begins when both ranks are ready and leaves out what surrounds a pass in a service: cutting
the sequence, bringing the shards to their ranks, and restoring the order.
"""
import json
import pathlib
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.tensor.experimental._context_parallel import _attention as ring
from torch.distributed.tensor.experimental._context_parallel._load_balancer import _HeadTailLoadBalancer

Q_HEADS, KV_HEADS, DIM = 8, 2, 128
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def kernel(q, k, v, is_causal=False, scale=None, **_):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)


def load(folder, length, dtype, rank, ranks):
    order = _HeadTailLoadBalancer(length, ranks, "cpu")._generate_indices()[0].long()
    shards = []
    for name, heads in (("q", Q_HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        whole = torch.from_file(str(pathlib.Path(folder) / name), size=heads * length * DIM, dtype=DTYPES[dtype])
        shards.append(whole.view(1, heads, length, DIM)[:, :, order].chunk(ranks, 2)[rank].contiguous())
    return shards


def main(rank, ranks, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    ring._cp_options.enable_load_balance = True
    shards = None
    for line in sys.stdin:
        command, *words = line.split()
        answer = {}
        if command == "load":
            shards = load(words[0], int(words[1]), words[2], rank, ranks)
        elif command == "run":
            ring.set_rotate_method(words[0])
            dist.barrier()
            begin = time.perf_counter()
            with torch.inference_mode():
                ring._templated_ring_attention(dist.group.WORLD, 2, kernel, *shards, is_causal=True)
            answer["seconds"] = time.perf_counter() - begin
        else:
            raise SystemExit(f"no such command: {line}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
