"""Masked attention and its gradients by their definition, in fp64; the mask rules once more, from the words of
attention.proto."""
import numpy as np

from ringserve import masks

MASKS = [  # of 33 queries and 45 keys
    masks.full(),
    masks.causal(),
    masks.causal(bottom_right=True),
    masks.causal(q_offset=-3),
    masks.causal() & masks.window(left=7, sinks=2),
    masks.window(3, 4),
    masks.prefix(9),
    masks.causal() & masks.documents([10, 0, 12], [5, 3, 30]),
    masks.blocks(np.random.default_rng(0).random((5, 6)) < 0.5, 7, 8),
    masks.slices([masks.Slice(0, 20, 0, 40, hi=4), masks.Slice(20, 33, 2, 9, lo=-22)]),
    masks.slices([]),
]


def mask_name(mask):
    return " ".join(f"{field[0].name}" for field in mask.to_message().ListFields()) or "full"


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


def _scores(q, k, seen, scale, bias):
    scores = q @ k.swapaxes(2, 3) * (1 / np.sqrt(q.shape[3]) if scale is None else scale) + bias
    return scores if seen is None else np.where(seen, scores, -np.inf)


def _grouped(q, k, v):
    return (q, *(np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v)))


def attention(q, k, v, seen=None, scale=None, bias=0):
    """(out, lse) of [B, H, S, D]; `seen` broadcasts to [B, Hq, Tq, Tk]."""
    q, k, v = _grouped(*(x.astype(np.float64) for x in (q, k, v)))
    scores = _scores(q, k, seen, scale, bias)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + np.where(np.isinf(top), 0, top)
    return weights / np.where(total == 0, 1, total) @ v, lse[..., 0]


def gradients(q, k, v, d_out, seen=None, scale=None, bias=0, sinks=None, d_lse=0, d_bare_lse=0):
    """(d_q, d_k, d_v, d_sinks); `sinks` is [Hq], `d_lse` of the lse with them, `d_bare_lse` of that without."""
    kv_heads, bare = k.shape[1], attention(q, k, v, seen, scale, bias)[1]
    lse = bare if sinks is None else np.logaddexp(bare, np.asarray(sinks, np.float64)[:, None])
    q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))
    q, k, v = _grouped(q, k, v)
    scores = _scores(q, k, seen, scale, bias)
    weights, bare_weights = (np.exp(scores - np.where(np.isinf(x), 0, x)[..., None]) for x in (lse, bare))
    delta = (d_out * (weights @ v)).sum(-1) - d_lse
    d_scores = weights * (d_out @ v.swapaxes(2, 3) - delta[..., None]) + bare_weights * np.asarray(d_bare_lse)[..., None]
    d_scores *= 1 / np.sqrt(q.shape[3]) if scale is None else scale

    def of_groups(x):
        return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:]).sum(2)

    d_sinks = None if sinks is None else -(np.exp(np.asarray(sinks)[:, None] - lse) * delta).sum((0, 2))
    return (d_scores @ k, of_groups(d_scores.swapaxes(2, 3) @ q), of_groups(weights.swapaxes(2, 3) @ d_out), d_sinks)
