import pytest
import torch
from torch import nn

from wan.modules.model import WanModel, WanModelConfig
from wan.training.config import LoopConfig
from wan.training.optimizer import Muon, make_optimizer, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 12), (2, 12, 4)])
def test_updates_become_nearly_orthogonal_in_the_same_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices).float()
    assert result.shape == shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert ((u @ v) * result).sum() > 0.8 * shape[0] * min(shape[1:])


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest():
    model = WanModel(WanModelConfig(dim=12, ffn_dim=24, num_heads=2, num_layers=1, text_dim=8, text_len=4))
    adamw, muon = make_optimizer(model, LoopConfig(steps=1, optimizer="muon")).members
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert "blocks.0.self_attn.q.weight" in matrices and "blocks.0.ffn.2.weight" in matrices
    assert not any("head.head" in n or "bias" in n or "norm" in n or "modulation" in n for n in matrices)
    assert len(matrices) + len(adamw.param_groups[0]["params"]) == len(names)
    assert len(make_optimizer(model, LoopConfig(steps=1)).members) == 1


def test_muon_gets_the_kernels_of_an_autoencoder_but_that_of_colours():
    network = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv3d(8, 3, 3), nn.Linear(3, 4))
    adamw, muon = make_optimizer(network, LoopConfig(steps=1, optimizer="muon-conv")).members
    assert [p.shape[:2] for p in muon.param_groups[0]["params"]] == [(8, 3), (8, 8)]
    assert len(adamw.param_groups[0]["params"]) == 6
    kernel = nn.Conv3d(4, 6, 3, bias=False)
    before, kernel.weight.grad = kernel.weight.detach().clone(), torch.randn(6, 4, 3, 3, 3)
    Muon(kernel.parameters(), lr=1.0).step()
    step = (kernel.weight - before).detach().flatten(1) / (0.2 * 108**0.5)
    assert torch.linalg.svdvals(step).max() < 1.4 and torch.linalg.svdvals(step).min() > 0.3


def test_muon_solves_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    target, x = torch.randn(6, 6, generator=generator), torch.randn(64, 6, generator=generator)
    layer = nn.Linear(6, 6, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = Muon(layer.parameters(), lr=0.4)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.4 * (1 - step / 150)
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
