"""Masked attention by its definition, in fp64; the mask rules once more, from the words of attention.proto."""
import numpy as np


def visible(mask, q_len, kv_len):
    """Boolean [q_len, kv_len] of a ringserve Mask."""
    seen = np.ones((q_len, kv_len), bool)
    i, j = np.ogrid[:q_len, :kv_len]
    if mask.documents is None:
        spans = [(0, q_len, 0, kv_len)]
    else:
        q_ends = np.cumsum(mask.documents)
        k_ends = np.cumsum(mask.documents if mask.kv_documents is None else mask.kv_documents)
        spans = [(a - m, a, b - n, b) for a, m, b, n in zip(
            q_ends, mask.documents, k_ends, mask.documents if mask.kv_documents is None else mask.kv_documents)]
    within = np.zeros_like(seen)
    for q0, q1, k0, k1 in spans:
        offset = (k1 - k0) - (q1 - q0) if mask.bottom_right else mask.q_offset or 0
        p, key = offset + i - q0, j - k0
        allowed = np.ones_like(seen)
        if mask.causal:
            allowed &= (key <= p) | (key < mask.prefix)
        if mask.window is not None:
            left, right = mask.window
            inside = np.ones_like(seen)
            if left is not None:
                inside &= key >= p - left
            if right is not None:
                inside &= key <= p + right
            allowed &= inside | (key < mask.sinks)
        within |= allowed & (i >= q0) & (i < q1) & (j >= k0) & (j < k1)
    seen &= within
    if mask.blocks is not None:
        bits = np.frombuffer(mask.blocks.bits, np.uint8).reshape(-(-q_len // mask.blocks.q_block), -1)
        grid = np.unpackbits(bits, axis=1, bitorder="little").astype(bool)
        seen &= grid[i // mask.blocks.q_block, j // mask.blocks.kv_block]
    if mask.slices is not None:
        some = np.zeros_like(seen)
        for band in mask.slices:
            one = (i >= band.q_begin) & (i < band.q_end) & (j >= band.k_begin) & (j < band.k_end)
            if band.lo is not None:
                one = one & (j - i >= band.lo)
            if band.hi is not None:
                one = one & (j - i <= band.hi)
            assert not (some & one).any(), "slices overlap"
            some |= one
        seen &= some
    return seen


def attention(q, k, v, seen=None, scale=None, bias=0):
    """(out, lse) of [B, H, S, D]; `seen` broadcasts to [B, Hq, Tq, Tk]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ k.swapaxes(2, 3) * (1 / np.sqrt(q.shape[3]) if scale is None else scale) + bias
    if seen is not None:
        scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + np.where(np.isinf(top), 0, top)
    return weights / np.where(total == 0, 1, total) @ v, lse[..., 0]
