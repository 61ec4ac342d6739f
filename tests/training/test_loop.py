import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from wan.training.config import LoopConfig
from wan.training.ema import EMA
from wan.training.loop import fit, learning_rate
from wan.training.loss import Loss

CONFIG = LoopConfig(
    steps=12, accumulation=2, learning_rate=1e-2, warmup_steps=3, log_every=4, checkpoint_every=5, seed=3
)


def run(folder, config=CONFIG, **options) -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(0.1), model.bias.zero_()

    def draw(index: int) -> torch.Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(index))

    def objective(batch, generator):
        noise = torch.randn(4, 2, generator=generator)
        errors = (model(batch) - batch[:, :2] - 0.1 * noise).square().mean(1)
        return Loss(errors.mean(), {"half": errors.mean() / 2}, torch.linspace(0, 1000, 4), errors.detach())

    return fit(model, objective, draw, config, folder, **options)


@pytest.mark.parametrize("stop, optimizer", [(5, "adamw"), (7, "adamw"), (7, "muon")])
def test_a_killed_run_continues_exactly(tmp_path, stop, optimizer):
    config = replace(CONFIG, optimizer=optimizer)
    whole = run(tmp_path / "whole", config)
    run(tmp_path / "parts", config, stop_at=stop)
    resumed = run(tmp_path / "parts", config)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_kill_between_checkpoints_repeats_the_lost_steps(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_at=5)
    state = (tmp_path / "parts" / "state.pt").read_bytes()
    run(tmp_path / "parts", stop_at=7)
    (tmp_path / "parts" / "state.pt").write_bytes(state)
    assert torch.equal(whole.weight, run(tmp_path / "parts").weight)


def test_a_finished_run_returns_its_result_again_and_refuses_fewer_steps(tmp_path):
    whole = run(tmp_path)
    assert torch.equal(run(tmp_path).weight, whole.weight)
    with pytest.raises(ValueError, match="at step 12, beyond the 6"):
        run(tmp_path, LoopConfig(steps=6))


def test_accumulation_equals_one_larger_batch(tmp_path):
    """Two micro-batches of mean losses give the gradient of their mean."""
    gradients = []
    for accumulation in (1, 2):
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])

        def draw(index, accumulation=accumulation, data=data):
            return data if accumulation == 1 else data[index : index + 1]

        def objective(batch, _, model=model):
            return Loss(model(batch).square().mean())

        config = LoopConfig(steps=1, accumulation=accumulation, grad_clip=1e9, ema_decay=0.0)
        fit(model, objective, draw, config, tmp_path / str(accumulation))
        state = torch.load(tmp_path / str(accumulation) / "state.pt", weights_only=True)
        gradients.append(state["optimizer"]["AdamW"]["state"][0]["exp_avg"])
    torch.testing.assert_close(*gradients)


def test_learning_rate_rises_then_falls_to_its_end():
    config = LoopConfig(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_the_log_has_means_and_bins(tmp_path, capsys):
    run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[0]["half"] == pytest.approx(rows[0]["loss"] / 2)
    assert set(rows[0]["bins"]) == {"0", "300", "600", "900"}
    assert "step 12/12" in capsys.readouterr().out


def test_previews_see_averaged_weights_in_eval_mode(tmp_path):
    seen = []
    run(tmp_path, LoopConfig(steps=4, preview_every=2), preview=seen.append)
    assert seen == [2, 4]


def test_nonfinite_gradients_stop_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 1 have values that are not finite"):
        fit(model, lambda b, g: Loss((model(b) / 0).sum()), lambda i: torch.ones(1, 1), LoopConfig(steps=1), tmp_path)


def test_ema_follows_with_a_ramp_and_swaps_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, 0.9)
    nn.init.ones_(model.weight)
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(1 - 2 / 11)  # ramp: (1 + 1) / (10 + 1)
    for _ in range(300):
        ema.update()
    assert ema.average["weight"].item() == pytest.approx(1.0, abs=1e-6)
    nn.init.constant_(model.weight, 5.0)
    with ema.applied():
        assert model.weight.item() == pytest.approx(1.0, abs=1e-6)
    assert model.weight.item() == 5.0
