"""Runners for the golden cases of speech-to-video: the transformer and its parts."""

import torch
from torch import Tensor

from tests.parity import assert_equal, assert_near, under
from wan.modules.rope import rope_table
from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.audio import AudioInjector, CausalAudioEncoder, inject
from wan.modules.s2v.config import S2VModelConfig
from wan.modules.s2v.framepack import FramePacker, history_positions

Tensors = dict[str, Tensor]


def floats(tensors: Tensors) -> Tensors:
    """Convert the stored bfloat16 values, which are exact, to float32."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@torch.no_grad()
def framepack(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    packer = FramePacker(case["latent_channels"], case["dim"])
    packer.load_state_dict(under(tensors, "weights/frame_packer."))
    head_dim = case["dim"] // case["num_heads"]
    for i, (_, height, width) in enumerate(case["shapes"]):
        assert_near(packer(tensors[f"in/latents_{i}"][None]), tensors[f"out/tokens_{i}"], 1e-4)
        positions = history_positions(height // 2, width // 2)
        assert_equal(positions.int(), tensors[f"out/position_ids_{i}"])
        rows = rope_table(positions, head_dim)
        assert_near(rows[..., 0], tensors[f"out/rope_cos_{i}"], 1e-6)
        assert_near(rows[..., 1], tensors[f"out/rope_sin_{i}"], 1e-6)


@torch.no_grad()
def causal_audio_encoder(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    config = small_config(
        dim=case["out_dim"],
        audio_dim=case["audio_dim"],
        audio_layers=case["num_layers"],
        num_audio_token=case["num_audio_token"],
    )
    encoder = CausalAudioEncoder(config)
    encoder.load_state_dict(under(tensors, "weights/casual_audio_encoder."))

    def check(features: Tensor, name: str) -> None:
        whole, tokens = encoder(features)
        assert_near(whole, tensors[f"out/global_{name}"], 1e-4)
        assert_near(tokens, tensors[f"out/tokens_{name}"], 1e-4)

    for i in range(len(case["batch_and_length"])):
        check(tensors[f"in/features_{i}"], str(i))
    check(torch.zeros(1, case["num_layers"], case["audio_dim"], case["zero_audio_length"]), "zero_audio")


@torch.no_grad()
def audio_injector(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    layers, number = case["audio_inject_layers"], case["injector_index"]
    assert layers.index(case["block_index"]) == number
    config = small_config(
        dim=case["dim"], num_heads=case["num_heads"], num_layers=max(layers) + 1, audio_inject_layers=layers
    )
    injector = AudioInjector(config)
    state = under(tensors, "weights/audio_injector.")
    missing = injector.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if name.split(".")[1] == str(number)]

    attention, norm = injector.at(number)
    x, vectors, audio = (tensors[f"in/{name}"] for name in ("hidden_states", "audio_global", "audio_tokens"))
    count = case["num_frames"] * case["tokens_per_frame"]
    frames = x[:, :count].unflatten(1, (case["num_frames"], -1))
    assert_near(norm(frames, vectors)[0], tensors["out/adain"], 1e-4)
    result = inject(frames, vectors, audio, attention, norm).flatten(1, 2)
    assert_near(torch.cat([result, x[:, count:]], dim=1), tensors["out/hidden_states"], 1e-4)


@torch.no_grad()
def model_forward(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    model = load_model(case, tensors)
    scenario, given = case["scenario"], {name: tensors[f"in/{name}"] for name in INPUTS}
    seen: dict[str, Tensor] = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _, args, n=number: seen.__setitem__(f"before{n}", args[0].x))
        block.register_forward_hook(lambda _, args, out, n=number: seen.__setitem__(f"after{n}", out.x))
    embed = model.embed

    def kept(x: list[Tensor], features: Tensor, prepared):
        seen["time"], seen["tokens"] = model.time_embedding(features), (made := embed(x, features, prepared))[0]
        seen["audio"], seen["vectors"] = prepared.audio, prepared.vectors
        seen["modulation"] = made[1].modulation
        return made

    model.embed = kept

    def run(prefix: str, drop: bool, **changes: Tensor) -> None:
        values = given | changes
        lists = {name: [value] for name, value in values.items() if name not in ("t", "audio_input", "x", "context")}
        [y] = model(
            [values["x"]],
            values["t"],
            [values["context"]],
            None,
            audio_input=values["audio_input"],
            motion_frames=scenario["motion_frames"],
            drop_motion_frames=drop,
            **lists,
        )
        out = under(tensors, f"out/{prefix}/")
        assert_near(y, out["y"], 1e-4)
        if "tokens_before_blocks" in out:
            assert_near(seen["before0"], out["tokens_before_blocks"], 1e-4)
            assert_near(seen["after0"], out["block0"], 1e-4)
            assert_near(seen["tokens"].rope[0, ..., 0], out["rope_cos"], 1e-6)
            assert_near(seen["tokens"].rope[0, ..., 1], out["rope_sin"], 1e-6)
            positions = rope_table(out["position_ids"], model.config.head_dim)
            assert_near(seen["tokens"].rope[0], positions, 1e-6)
        if "last_block" in out:
            assert_near(seen[f"after{model.config.num_layers - 1}"], out["last_block"], 1e-4)
            assert_near(seen["time"], tensors["out/time_embedding"], 1e-4)
            assert_near(seen["modulation"].transpose(0, 1)[None], tensors["out/modulation_e0"], 1e-4)
            assert_near(seen["vectors"], tensors["out/audio_global"], 1e-4)
            assert_near(seen["audio"], tensors["out/audio_tokens"], 1e-4)

    run("motion", False)
    run("drop", True)
    nothing = {name: torch.zeros_like(given[name]) for name in ("cond_states", "audio_input")}
    run("nocond_noaudio", False, **nothing)


INPUTS = ("x", "t", "context", "ref_latents", "motion_latents", "cond_states", "audio_input")


def small_config(**fields) -> S2VModelConfig:
    """Make a config for a part of the model; `num_heads` and layers of the family would not fit small widths."""
    return S2VModelConfig(**{"num_heads": 1, "num_layers": 1, "audio_inject_layers": ()} | fields)


def load_model(case: dict, tensors: Tensors) -> WanModel_S2V:
    state = under(tensors, "weights/")
    layers = state["casual_audio_encoder.weights"].shape[1]
    config = S2VModelConfig.from_dict({"model_type": "s2v", "audio_layers": layers} | case["config"])
    model = WanModel_S2V(config)
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False).eval()


RUNNERS = {
    "framepack": framepack,
    "causal_audio_encoder": causal_audio_encoder,
    "audio_injector": audio_injector,
    "model_forward": model_forward,
}
