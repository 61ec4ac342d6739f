"""Runners for the golden cases of VAE 2.1 and of the blocks that both VAEs share."""

import zlib
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity import under
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.modules.vae_blocks import AttentionBlock, CausalConv3d, FrameCache, Resample, ResidualBlock, RMS_norm

Tensors = dict[str, Tensor]


def assert_near(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


@torch.no_grad()
def block(case: dict, tensors: Tensors) -> None:
    """One block; "chunks" feeds several in order through one cache, as a streamed video would."""
    build = BLOCKS[case["block"]]
    for run in case["runs"]:
        module = build(case["config"], run)
        prefix = f"weights/{run[key]}." if (key := SUBSETS.get(run["op"])) else "weights/"
        module.load_state_dict(under(tensors, prefix))
        cache = FrameCache()
        if run["op"] == "chunks":
            for given, wanted in zip(run["inputs"], run["outputs"], strict=True):
                assert_near(module(tensors[given], cache), tensors[wanted], 1e-5)
            continue
        if run.get("cache"):  # one or two frames of history; the missing one is zero
            frames = tensors[run["cache"]]
            cache.put(module, nn.functional.pad(frames, (0, 0, 0, 0, 2 - frames.shape[2], 0)))
        x = tensors[run["input"]]
        y = module(x, cache) if isinstance(module, CausalConv3d) else module(x)
        assert_near(y, tensors[run["output"]], 1e-5)


SUBSETS = {"causal_conv3d": "conv", "norm": "params"}  # operations that name which part of the weights they use


def causal_conv(config: dict, run: dict) -> CausalConv3d:
    conv = config["convs"][run["conv"]]
    padding = conv["padding"]
    kernel, padding = (tuple(v) if isinstance(v, list) else v for v in (conv["kernel"], padding))
    return CausalConv3d(config["in_channels"], config["out_channels"], kernel, padding=padding)


def resample(config: dict, run: dict) -> Resample:
    dim, mode = config["dim"], config["mode"]
    return Resample(dim, mode, dim // 2 if mode.startswith("upsample") else dim)


BLOCKS = {
    "CausalConv3d": causal_conv,
    "RMSNorm": lambda config, run: RMS_norm(config["dim"], images=run["params"] == "n4"),
    "ResidualBlock": lambda config, run: ResidualBlock(config["in_dim"], config["out_dim"]),
    "AttentionBlock": lambda config, run: AttentionBlock(config["dim"]),
    "Resample (2.1)": resample,
}


# ---------------------------------------------------------------------------------------------------------------------
# Models


@torch.no_grad()
def model_run(case: dict, tensors: Tensors) -> None:
    """Raw encode or decode at once, in chunks and in tiles, with the weights of that side only."""
    model = load_model(case, tensors, strict=False)
    for run in case["runs"]:
        x, expected = tensors[run["input"]], tensors[run["output"]]
        step = model.config.stride[0] if run["op"] == "encode" else 1
        for chunk, tile in ((None, None), (step, None), (2 * step, None), (step, 1)):
            assert_near(getattr(model, run["op"])(x, chunk, tile), expected, 1e-4)


@torch.no_grad()
def trace(case: dict, tensors: Tensors) -> None:
    """As `model_run`, and every stage's output on the way."""
    model = load_model(case, tensors)
    seen = defaultdict(list)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: seen[name].append(output))
    for run in case["runs"]:
        y = getattr(model, run["op"])(tensors[run["input"]], model.config.stride[0] if run["op"] == "encode" else 1)
        assert_near(y, tensors[run["output"]], 5e-4)
    recorded = under(tensors, "out/trace/")
    for name in {key.rpartition("/")[0] for key in recorded}:
        calls = sum(key.startswith(f"{name}/call") for key in recorded)
        expected = torch.cat([recorded[f"{name}/call{i}"] for i in range(calls)], dim=2)
        assert seen[name], f"{name} was never called"
        assert_near(torch.cat(seen[name], dim=2), expected, 5e-4)


def wrapper(case: dict, tensors: Tensors) -> None:
    """Lists, published scaling and clamping."""
    run_lists(case, tensors, Wan2_1_VAE(model=load_model(case, tensors)))


def procedural_real_size(case: dict, tensors: Tensors) -> None:
    """The released widths; the weights follow from the names of the tensors (`case.weights_rule`)."""
    model = CausalVAE2_1(config_of(case))
    model.load_state_dict({name: procedural(name, weight) for name, weight in model.state_dict().items()})
    run_lists(case, tensors, Wan2_1_VAE(model=model))


def procedural(name: str, like: Tensor) -> Tensor:
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(like.numel())
    v = torch.from_numpy(2 * ((raw >> 11) * 2.0**-53) - 1).view(like.shape)
    if name.endswith("gamma"):
        return (1 + 0.25 * v).float()
    return (0.1 * v if name.endswith("bias") else v * 1.3 * (3 / like[0].numel()) ** 0.5).float()


def run_lists(case: dict, tensors: Tensors, vae: Wan2_1_VAE) -> None:
    for run in case["runs"]:
        results = getattr(vae, run["op"].removesuffix("_list"))([tensors[name] for name in run["inputs"]])
        for actual, name in zip(results, run["outputs"], strict=True):
            assert_near(actual, tensors[name], 1e-4)


def config_of(case: dict) -> VAEConfig:
    config = case["config"]
    names = ("dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "dropout")
    return VAEConfig(*(config[name] for name in names))


def load_model(case: dict, tensors: Tensors, strict: bool = True) -> CausalVAE2_1:
    """The case's model. Weights of one side alone (strict False) must still all be known."""
    model, weights = CausalVAE2_1(config_of(case)), under(tensors, "weights/")
    assert not model.load_state_dict(weights, strict=strict).unexpected_keys
    return model.eval()


RUNNERS = {
    "block": block,
    "model_encode": model_run,
    "model_decode": model_run,
    "trace": trace,
    "wrapper": wrapper,
    "procedural_real_size": procedural_real_size,
}
