import pytest
import torch

from tests.distributed.launch import launch
from tests.distributed.tiny import CONFIG, randn, tiny_model
from wan.checkpoint.loading import save_safetensors_folder
from wan.distributed.replica import Replica
from wan.geometry import first_frame_mask
from wan.modules.model import WanModel
from wan.parallel import Parallel
from wan.sampling import denoise, guided, identity, keep_first_frame, make_solver, switch_at

SHAPE = (6, 3, 2, 6)  # 9 tokens
CONTEXTS = randn(5, 10, seed=1), randn(3, 10, seed=2)


def sample(replica, experts, scales, keeps_first_frame):
    """Sample four steps of two guided experts, and count the calls of models."""
    mask = first_frame_mask(SHAPE, zero=keeps_first_frame)
    keep = keep_first_frame(randn(6, 1, 2, 6, seed=3), mask) if keeps_first_frame else identity
    calls = []

    def velocity(model, scale):
        def forward(latent, t, context):
            calls.append(1)
            times = torch.tensor([[0] * 3 + [t] * 6] if keeps_first_frame else [t])
            return replica.spread_tokens(model, scale)([latent], times, [context])[0]

        return guided(forward, *CONTEXTS, scale, replica.pair())

    high, low = map(velocity, experts, scales)
    steps = denoise(keep(randn(*SHAPE, seed=4)), make_solver("unipc", 4, 5.0), switch_at(800, high, low), keep)
    return list(steps)[-1], len(calls)


def spread_sample(folders, cfg_size, ulysses_size, with_fsdp, scales, keeps_first_frame):
    replica = Replica(Parallel(cfg_size * ulysses_size, cfg_size, ulysses_size, with_fsdp), torch.device("cpu"))
    experts = [WanModel.from_pretrained(folder, shard=replica.shard_dit) for folder in folders]
    return sample(replica, experts, scales, keeps_first_frame)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    paths = [tmp_path_factory.mktemp(name) for name in ("high", "low")]
    for seed, path in enumerate(paths):
        save_safetensors_folder(tiny_model(seed=seed).state_dict(), path, CONFIG.to_dict())
    return paths


@pytest.mark.parametrize(
    "cfg_size, ulysses_size, with_fsdp, scales, keeps_first_frame",
    [
        (2, 1, False, (4.0, 3.0), False),
        (2, 1, True, (4.0, 3.0), True),
        (2, 2, False, (4.0, 3.0), True),
        (2, 2, True, (4.0, 3.0), False),
        (2, 2, True, (4.0, 1.0), True),
        (2, 2, False, (1.0, 1.0), False),
        (1, 4, True, (4.0, 3.0), True),
    ],
)
def test_spread_sampling_equals_one_process(folders, cfg_size, ulysses_size, with_fsdp, scales, keeps_first_frame):
    with torch.no_grad():
        experts = [WanModel.from_pretrained(folder) for folder in folders]
        expected, calls = sample(Replica(Parallel(), torch.device("cpu")), experts, scales, keeps_first_frame)
    arguments = (folders, cfg_size, ulysses_size, with_fsdp, scales, keeps_first_frame)
    results = launch(cfg_size * ulysses_size, spread_sample, *arguments)
    for found, made in results:
        assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert made == (4 if cfg_size == 2 else calls)
    assert all((found == results[0][0]).all() for found, _ in results), "ranks drift apart"
