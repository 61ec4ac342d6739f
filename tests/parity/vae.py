"""Runners for the golden cases of both VAEs and their blocks."""

import zlib
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity import under
from wan.modules.vae import CausalVAE, VAEConfig, fold, unfold
from wan.modules.vae2_1 import Wan2_1_VAE
from wan.modules.vae2_2 import VAE2_2Config, Wan2_2_VAE
from wan.modules.vae_blocks import (
    AttentionBlock,
    AvgDown3D,
    CausalConv3d,
    DownStage,
    DupUp3D,
    FrameCache,
    Resample,
    ResidualBlock,
    RMS_norm,
    UpStage,
)
from wan.modules.vae_coders import Stage, run_stages
from wan.modules.vae_wrapper import VideoVAE

Tensors = dict[str, Tensor]


def assert_near(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


@torch.no_grad()
def block(case: dict, tensors: Tensors) -> None:
    """Run one block; "chunks" feeds several in order through one cache, as in a streamed video."""
    build = BLOCKS[case["block"]]
    for run in case["runs"]:
        prefix = f"weights/{run[key]}." if (key := SUBSETS.get(run["op"])) else "weights/"
        weights = under(tensors, prefix)
        module = build(case["config"], run | {"weights": weights})
        module.load_state_dict(weights)
        cache = FrameCache()
        if run["op"] == "chunks":
            for given, wanted in zip(run["inputs"], run["outputs"], strict=True):
                assert_near(run_block(module, tensors[given], cache), tensors[wanted], 1e-5)
            continue
        if run.get("cache"):  # one or two frames of history; the missing one is zero
            frames = tensors[run["cache"]]
            cache.put(module, nn.functional.pad(frames, (0, 0, 0, 0, 2 - frames.shape[2], 0)))
        x = tensors[run["input"]]
        y = module(x, cache) if isinstance(module, CausalConv3d) else module(x)
        assert_near(y, tensors[run["output"]], 1e-5)


def run_block(module: nn.Module, x: Tensor, cache: FrameCache) -> Tensor:
    if isinstance(module, UpStage):
        return torch.cat(list(run_stages([Stage.of([module]), Stage([], None)], x, cache)), dim=2)
    return module(x, cache)


SUBSETS = {"causal_conv3d": "conv", "norm": "params"}  # operations that name which part of the weights they use


def causal_conv(config: dict, run: dict) -> CausalConv3d:
    conv = config["convs"][run["conv"]]
    padding = conv["padding"]
    kernel, padding = (tuple(v) if isinstance(v, list) else v for v in (conv["kernel"], padding))
    return CausalConv3d(config["in_channels"], config["out_channels"], kernel, padding=padding)


def resample(config: dict, run: dict) -> Resample:
    dim, mode = config["dim"], config["mode"]
    return Resample(dim, mode, dim // 2 if mode.startswith("upsample") else dim)


class Repeated(DupUp3D):
    """Shortcut alone: added to zeros, for the first chunk of a video or a later one."""

    def __init__(self, run: dict):
        super().__init__(run["in_channels"], run["out_channels"], run["factor_t"], run["factor_s"])
        self.first, self.out_dim = run["first_chunk"], run["out_channels"]

    def forward(self, x: Tensor) -> Tensor:
        b, _, t, h, w = x.shape
        frames = t * self.time - (self.time - 1 if self.first else 0)
        return super().forward(x, x.new_zeros(b, self.out_dim, frames, h * self.space, w * self.space))


class Folding(nn.Module):
    def __init__(self, config: dict, run: dict):
        super().__init__()
        self.function, self.patch = {"patchify": fold, "unpatchify": unfold}[run["op"]], config["patch_size"]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:  # the recording also holds single images
            return self(x.unsqueeze(2)).squeeze(2)
        return self.function(x, self.patch)


def stage(build: type[nn.Module], config: dict, direction: str) -> nn.Module:
    """Run a stage of `mult` blocks, with a change of resolution if the flag is set."""
    temporal = config[f"temperal_{direction}sample"] if config[f"{direction}_flag"] else None
    return build(config["in_dim"], config["out_dim"], config["mult"], temporal)


BLOCKS = {
    "CausalConv3d": causal_conv,
    "RMSNorm": lambda config, run: RMS_norm(config["dim"], images=run["weights"]["gamma"].ndim == 3),
    "ResidualBlock": lambda config, run: ResidualBlock(config["in_dim"], config["out_dim"]),
    "AttentionBlock": lambda config, run: AttentionBlock(config["dim"]),
    "Resample (2.1)": resample,
    "Resample (2.2)": lambda config, run: Resample(config["dim"], config["mode"]),
    "AvgDown3D": lambda config, run: AvgDown3D(
        run["in_channels"], run["out_channels"], run["factor_t"], run["factor_s"]
    ),
    "DupUp3D": lambda config, run: Repeated(run),
    "Down_ResidualBlock": lambda config, run: stage(DownStage, config, "down"),
    "Up_ResidualBlock": lambda config, run: stage(UpStage, config, "up"),
    "patchify": Folding,
}


# ---------------------------------------------------------------------------------------------------------------------
# Models


@torch.no_grad()
def model_run(case: dict, tensors: Tensors) -> None:
    """Encode or decode at once, in chunks and in tiles, with the weights of that side only."""
    model = load_model(case, tensors, strict=False)
    for run in case["runs"]:
        x, expected = tensors[run["input"]], tensors[run["output"]]
        step = model.config.stride[0] if run["op"] == "encode" else 1
        for chunk, tile in ((None, None), (step, None), (2 * step, None), (step, 1)):
            assert_near(getattr(model, run["op"])(x, chunk, tile), expected, 1e-4)


@torch.no_grad()
def trace(case: dict, tensors: Tensors) -> None:
    """Do as `model_run`, and compare the output of every stage."""
    model = load_model(case, tensors)
    given, made = defaultdict(list), defaultdict(list)

    def record(name: str):
        def hook(module, args, output):
            given[name].append(args[0])
            made[name].append(output)

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(record(name))
    for run in case["runs"]:
        y = getattr(model, run["op"])(tensors[run["input"]], model.config.stride[0] if run["op"] == "encode" else 1)
        assert_near(y, tensors[run["output"]], 5e-4)
    recorded = under(tensors, "out/trace/")
    for name in {key.rpartition("/")[0] for key in recorded}:
        calls = sum(key.startswith(f"{name}/call") for key in recorded)
        expected = torch.cat([recorded[f"{name}/call{i}"] for i in range(calls)], dim=2)
        seen = made[name] or given[follower(name, model)]
        assert seen, f"{name} was never called"
        assert_near(torch.cat(seen, dim=2), expected, 5e-4)


def follower(name: str, model: CausalVAE) -> str:
    """Name the module that takes the output of a stage of VAE 2.2's decoder: a stage is no single call."""
    number = int(name.removeprefix("decoder.upsamples.")) + 1
    return "decoder.head" if number == len(model.decoder.upsamples) else f"decoder.upsamples.{number}.upsamples.0"


def wrapper(case: dict, tensors: Tensors) -> None:
    """Run a public wrapper: lists, published scaling and clamping."""
    run_lists(case, tensors, WRAPPERS[case["vae"]](model=load_model(case, tensors)))


def procedural_real_size(case: dict, tensors: Tensors) -> None:
    """Run a model of the released widths; its weights follow from the names of the tensors (`case.weights_rule`)."""
    vae = WRAPPERS[case["vae"]]
    with torch.device("meta"):
        model = vae.network(config_of(case))
    state = {name: procedural(name, weight) for name, weight in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    run_lists(case, tensors, vae(model=model.requires_grad_(False)))


def procedural(name: str, like: Tensor) -> Tensor:
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(like.numel())
    v = torch.from_numpy(2 * ((raw >> 11) * 2.0**-53) - 1).view(like.shape)
    if name.endswith("gamma"):
        return (1 + 0.25 * v).float()
    return (0.1 * v if name.endswith("bias") else v * 1.3 * (3 / like[0].numel()) ** 0.5).float()


def run_lists(case: dict, tensors: Tensors, vae: VideoVAE) -> None:
    for run in case["runs"]:
        results = getattr(vae, run["op"].removesuffix("_list"))([tensors[name] for name in run["inputs"]])
        for actual, name in zip(results, run["outputs"], strict=True):
            assert_near(actual, tensors[name], 1e-4)


WRAPPERS = {"2.1": Wan2_1_VAE, "2.2": Wan2_2_VAE}


def config_of(case: dict) -> VAEConfig:
    config = case["config"]
    names = ("dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "dropout")
    values = [config[name] for name in names]
    return VAE2_2Config(*values, config["dec_dim"]) if case["vae"] == "2.2" else VAEConfig(*values)


def load_model(case: dict, tensors: Tensors, strict: bool = True) -> CausalVAE:
    """Load the model of the case. Weights of one side alone (strict False) must still all be known."""
    model, weights = WRAPPERS[case["vae"]].network(config_of(case)), under(tensors, "weights/")
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
