"""AdamW, and Muon for the matrices of small transformers and the convolutions of small autoencoders."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from wan.modules.packed import has_bfloat16_products
from wan.training.config import LoopConfig

# Odd polynomial a x + b x^3 + c x^5 that drives singular values towards 1 in a few rounds.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Optimizers:
    """Several optimisers over disjoint parameters, stepped and saved as one."""

    def __init__(self, *members: torch.optim.Optimizer):
        self.members = [m for m in members if m.param_groups[0]["params"]]

    def set_learning_rate(self, rate: float) -> None:
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        for member in self.members:
            member.step()
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict]:
        return {type(m).__name__: m.state_dict() for m in self.members}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Continue from `state`, with this run's settings. A state that does not fit raises any kind of exception."""
        for member in self.members:
            groups = member.state_dict()["param_groups"]
            member.load_state_dict({"state": state[type(member).__name__]["state"], "param_groups": groups})
            values = [(p, value) for p, kept in member.state.items() for value in kept.values()]
            if not all(isinstance(v, Tensor) and v.shape in ((), p.shape) and v.isfinite().all() for p, v in values):
                raise ValueError("the optimiser's values do not fit the parameters")
            if len({tuple(kept) for kept in member.state.values()}) > 1:
                raise ValueError("the optimiser's values are incomplete")


def make_optimizer(module: nn.Module, config: LoopConfig) -> Optimizers:
    """Make the configured optimiser of the trainable parameters of `module`."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    hidden = {"muon": is_hidden_matrix, "muon-conv": is_hidden_convolution}.get(config.optimizer)
    matrices = [p for name, p in trained if hidden and hidden(name, p)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in chosen]
    shared = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    members = [torch.optim.AdamW(rest, betas=config.betas, fused=True, **shared)] if rest else []
    if matrices:
        members.append(Muon(matrices, **shared))
    return Optimizers(*members)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter maps hidden states to hidden states, and is no embedding, head, norm or modulation."""
    others = ("token_embedding", "pos_embedding", "cond_mask", "head")
    return parameter.ndim == 2 and not any(other in name for other in others)


def is_hidden_convolution(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is the kernel of a convolution over pixels, but of the one that makes colours."""
    return parameter.ndim > 3 and len(parameter) > 3


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every singular value of an update is about 1 (K. Jordan et al., 2024).

    Updates are scaled by 0.2 sqrt(larger side), the root mean square of AdamW's, so that one learning rate serves both
    (arXiv:2502.16982). Matrices of equal shape are orthogonalised in one batched product. A kernel is the matrix of its
    output channels.
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, parameters in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in parameters])
                updates = orthogonalize(updates).unflatten(2, shape[1:])
                scale = group["lr"] * 0.2 * max(shape[0], shape[1:].numel()) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype)), alpha=-scale)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """The Nesterov average of the gradients."""
        state = self.state[p]
        if not state:
            state["average"] = torch.zeros_like(p)
        state["average"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["average"], momentum)


def orthogonalize(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Turn each of [n, rows, columns] into about its nearest (semi-)orthogonal matrix: singular values 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    is_slow = matrices.device.type == "cpu" and not has_bfloat16_products()
    x = (matrices.mT if tall else matrices).to(torch.float32 if is_slow else torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
