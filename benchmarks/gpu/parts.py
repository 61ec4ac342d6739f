"""All parts of `make gpu`, the most telling first, with their time limits: 580 s are for all together."""

from __future__ import annotations

import torch

from benchmarks.gpu.kernels import kernels
from benchmarks.gpu.memory import peaks, policies, streaming
from benchmarks.gpu.parity import parity
from benchmarks.gpu.runner import Part
from benchmarks.gpu.speed import decoding, forward, rates, text

PARTS = [
    Part("parity-fp32", parity(torch.float32), 60),
    Part("parity-bf16", parity(torch.bfloat16), 45),
    Part("kernels", kernels, 60),
    Part("streaming", streaming, 60),
    Part("policies", policies, 60),
    Part("peaks", peaks, 75),
    Part("rates", rates, 30),
    Part("forward-480p", forward("480p"), 120),
    Part("forward-5b", forward("5b"), 90),
    Part("text", text, 45),
    Part("decode-2.1", decoding("t2v-A14B", "832*480"), 60),
    Part("decode-2.2", decoding("ti2v-5B", "1280*704"), 60),
    Part("forward-720p", forward("720p"), 150),
]
