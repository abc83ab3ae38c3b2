#!/usr/bin/env python3
"""Monet as a user would run and train it in PyTorch today, on the CPU, with random weights:
the program that tools/compare_peers.sh measures monet.h against.

It costs what the published model costs and computes the same (checked: within noise of it with
PyTorch 2.13), and also runs with older versions, such as Debian's python3-torch 1.13. On Debian
install libopenblas0-pthread too: with the reference BLAS it is a toy.

    torch_peer.py infer 1.4B vd bf16 [threads]     sizes 850M 1.4B small; vd hd; fp32 bf16
    torch_peer.py train small vd fp32 [threads]    a training step, B=4, T=256; bf16 = autocast

Prints CSV: program,size,decompose,dtype,task,tokens,best,median,resident; speeds are tokens a
second, resident is bytes.
"""
import math, resource, sys, time
import torch
import torch.nn.functional as F

SIZES = {"850M": dict(V=32000, L=24, C=1536, A=12, N=512, M=12, H=6),
         "1.4B": dict(V=32000, L=24, C=2048, A=16, N=512, M=16, H=8),
         "small": dict(V=2048, L=8, C=384, A=6, N=256, M=8, H=4)}
K_ACTIVE, GROUPS, THETA = 8, 4, 10000.0


def norm(x, w):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w


def rope(x, start):
    T, D = x.shape[-2:]
    inv = THETA ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
    a = torch.arange(start, start + T, dtype=torch.float32)[:, None] * inv
    c, s = torch.cat((a.cos(),) * 2, -1).to(x.dtype), torch.cat((a.sin(),) * 2, -1).to(x.dtype)
    return x * c + torch.cat((-x[..., D // 2:], x[..., :D // 2]), -1) * s


class Layer(torch.nn.Module):
    def __init__(self, s, kind, has_router):
        super().__init__()
        C, N, M, H = s["C"], s["N"], s["M"], s["H"]
        lin = lambda i, o, bias=False: torch.nn.Linear(i, o, bias=bias)
        self.s, self.kind = s, kind
        self.n1, self.n2 = (torch.nn.Parameter(torch.ones(C)) for _ in "12")
        self.q, self.k, self.v, self.o = (lin(C, C) for _ in range(4))
        if kind == "hd":
            self.u, self.w = lin(C, N * M, True), lin(N * M, C)
            self.b = torch.nn.Parameter(torch.zeros(N, C))
        else:
            self.u1, self.u2 = (lin(C, N * M // 2, True) for _ in "12")
            self.w11, self.w12, self.w21, self.w22 = (lin(N * M // 2, C // 2) for _ in range(4))
            self.b1, self.b2 = (torch.nn.Parameter(torch.zeros(N, C // 2)) for _ in "12")
        if has_router:
            self.r1, self.r2 = (lin(C, H * N) for _ in "12")
            self.bn1, self.bn2 = (torch.nn.BatchNorm1d(H, affine=False, dtype=torch.float32)
                                  for _ in "12")

    def route(self, n):
        N, H = self.s["N"], self.s["H"]
        sigma = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * K_ACTIVE / N)))
        out = []
        for lin, bn in ((self.r1, self.bn1), (self.r2, self.bn2)):
            z = lin(n).float().unflatten(-1, (H, N))
            zn = bn(z.transpose(2, 3).reshape(-1, H)).view(*z.shape[:2], N, H).transpose(2, 3)
            cut = zn.amax(-1, keepdim=True).clamp_max(sigma)
            out.append(torch.where(zn >= cut, z, torch.full_like(z, -1e10)).softmax(-1))
        return out

    def forward(self, x, g, cache, start):
        B, T, C = x.shape
        A, N = self.s["A"], self.s["N"]
        n = norm(x, self.n1)
        q, k, v = (f(n).view(B, T, A, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = rope(q, start), rope(k, start)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = [k, v]
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        else:
            a = (q @ k.transpose(2, 3)) * (C // A) ** -0.5
            if T > 1:
                hidden = torch.full((T, k.shape[2]), -math.inf, dtype=a.dtype)
                a = a + hidden.triu(1 + k.shape[2] - T)
            y = a.float().softmax(-1).to(v.dtype) @ v
        x = x + self.o(y.transpose(1, 2).reshape(B, T, C))
        n = norm(x, self.n2)
        if hasattr(self, "r1"):
            g = self.route(n)
        g1, g2 = (t.to(n.dtype) for t in g)
        act = lambda t: torch.relu(t).square().unflatten(-1, (N, -1))
        e = torch.einsum
        spread = lambda a, gi, gj: e("bthm,bthj->btjm", e("btim,bthi->bthm", a, gi), gj).flatten(-2)
        own = lambda a, gi: (a * gi.sum(2)[..., None]).flatten(-2)
        if self.kind == "hd":
            y = self.w(spread(act(self.u(n)), g1, g2)) + g2.sum(2) @ self.b.to(n.dtype)
        else:
            a1, a2 = act(self.u1(n)), act(self.u2(n))
            top = self.w11(own(a1, g1)) + self.w12(spread(a2, g2, g1))
            bottom = self.w21(spread(a1, g1, g2)) + self.w22(own(a2, g2))
            y = torch.cat((top + g1.sum(2) @ self.b1.to(n.dtype),
                           bottom + g2.sum(2) @ self.b2.to(n.dtype)), -1)
        return x + y, g


class Monet(torch.nn.Module):
    def __init__(self, s, kind):
        super().__init__()
        self.emb = torch.nn.Embedding(s["V"], s["C"])
        self.layers = torch.nn.ModuleList(Layer(s, kind, l % GROUPS == 0) for l in range(s["L"]))
        self.n = torch.nn.Parameter(torch.ones(s["C"]))
        self.head = torch.nn.Linear(s["C"], s["V"], bias=False)

    def forward(self, tokens, caches=None, start=0):
        x, g, gs = self.emb(tokens), None, []
        for i, l in enumerate(self.layers):
            x, g = l(x, g, caches[i] if caches is not None else None, start)
            if i % GROUPS == 0:
                gs.append(g)
        return self.head(norm(x, self.n)), gs


def report(size, kind, dtype, task, tokens, speeds):
    unit = 1 if sys.platform == "darwin" else 1024
    print("torch", size, kind, dtype, task, tokens, f"{max(speeds):.2f}",
          f"{sorted(speeds)[len(speeds) // 2]:.2f}",
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, sep=",", flush=True)


def build(s, kind, dtype):
    """Filling 1.4 G weights the slow way takes minutes, so they are pieces of one block."""
    torch.set_default_dtype({"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    init = torch.nn.init.kaiming_uniform_, torch.nn.init.normal_
    torch.nn.init.kaiming_uniform_ = torch.nn.init.normal_ = lambda t, *a, **k: t
    m = Monet(s, kind)
    torch.nn.init.kaiming_uniform_, torch.nn.init.normal_ = init
    torch.set_default_dtype(torch.float32)
    block = (torch.rand(1 << 16) - 0.5) * 0.06
    for p in m.parameters():
        if p.dim() > 1:
            p.data.copy_(block.repeat((p.numel() >> 16) + 1)[:p.numel()].view_as(p))
    return m.eval()


def infer(size, kind, dtype):
    s = SIZES[size]
    m = build(s, kind, dtype)
    with torch.no_grad():
        m(torch.randint(3, s["V"], (1, 16)))
        for T in (128, 512):
            x = torch.randint(3, s["V"], (1, T))
            r = []
            for _ in range(3):
                t = time.time()
                m(x, [[] for _ in m.layers])
                r.append(T / (time.time() - t))
            report(size, kind, dtype, "prompt", T, r)
        caches, tok, r = [[] for _ in m.layers], torch.randint(3, s["V"], (1, 8)), []
        m(tok, caches)
        for i in range(48):
            t = time.time()
            y, _ = m(tok[:, -1:], caches, 8 + i)
            r.append(1 / (time.time() - t))
            tok = y[:, -1:].argmax(-1)
    report(size, kind, dtype, "decode", 48, [sorted(r)[24]])  # the best of one token is luck


def train(size, kind, dtype):
    s, B, T, r = SIZES[size], 4, 256, []
    m = Monet(s, kind)
    for p in m.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.02)
    opt = torch.optim.AdamW(m.parameters(), lr=5e-4, weight_decay=0.1)
    for _ in range(8):
        x = torch.randint(3, s["V"], (B, T))
        t = time.time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            y, gs = m(x)
            loss = F.cross_entropy(y[:, :-1].reshape(-1, s["V"]).float(), x[:, 1:].reshape(-1))
            for g in gs:
                for h in g:
                    H, N, w = h.shape[2], h.shape[3], 1e-3 / len(gs)
                    loss = loss - w * (h.mean((0, 1)) + 1e-8).log().sum() / (2 * H * N)
                    loss = loss + w * (1 - h.amax(-1)).mean((0, 1)).sum() / (2 * H)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        r.append(B * T / (time.time() - t))
    report(size, kind, dtype, "training", B * T, r[2:])


def main(mode, size, kind, dtype, threads="2"):
    if mode not in ("infer", "train") or size not in SIZES or kind not in ("vd", "hd"):
        sys.exit(__doc__)
    if dtype not in ("fp32", "bf16"):
        sys.exit(__doc__)
    torch.set_num_threads(int(threads))
    (infer if mode == "infer" else train)(size, kind, dtype)


if __name__ == "__main__":
    if not 5 <= len(sys.argv) <= 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
