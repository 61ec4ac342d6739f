"""Streamed weights: the same values bit for bit as resident ones, whenever copies happen."""

import math
import random
from functools import partial

import pytest
import torch
from torch import nn

from tests.distributed.tiny import CASES, CONFIG, tiny_model
from tests.late_copies import LateLane, checked_filling
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.steps import Step, run_blocks
from wan.modules.t5 import T5Config, T5Encoder
from wan.streaming import Lane, Streamed, Unit, chunks, make_lane, num_bound, num_slots, pinned, streamed_weights

CPU = torch.device("cpu")
MB = 10**6


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def deep(num_layers: int) -> WanModel:
    fields = vars(CONFIG) | {"num_layers": num_layers}
    model = tiny_model(WanModelConfig(**fields))
    for number, block in enumerate(model.blocks):
        block.modulation.data += number  # no block can stand in for another
    return model.to(torch.bfloat16) if num_layers % 2 else model


def step_bytes(model: nn.Module) -> list[int]:
    units = (Unit(list(w.values()), [t.dtype for t in w.values()]) for w in streamed_weights(model).values())
    return [unit.nbytes for unit in units]


@pytest.mark.parametrize("keeps", [True, False], ids=["pinned", "ring"])
@pytest.mark.parametrize("seed", range(6))
def test_streamed_equals_resident(monkeypatch, keeps, seed):
    """Any number of blocks and of those that stay; several forwards, as for guidance; all kinds of inputs."""
    draw = random.Random(seed)
    model = deep(draw.randint(1, 7))
    x, t, context = CASES[draw.choice(list(CASES))]
    expected = [model(x, t + n, context) for n in range(3)]
    whole = sum(step_bytes(model))
    lane = LateLane(seed)
    checked_filling(monkeypatch, lane)
    streamed = Streamed(model, lane, keeps)
    with lane:
        for _ in range(2):
            streamed.start(draw.choice((0, whole // 3, 2 * whole)))
            found = [model(x, t + n, context) for n in range(3)]
            streamed.stop()
            for one, other in zip(expected, found, strict=True):
                assert all(map(torch.equal, one, other))
    assert all(map(torch.equal, expected[0], model(x, t, context))), "they are at home again"


@pytest.mark.parametrize("keeps", [True, False], ids=["pinned", "ring"])
@pytest.mark.parametrize("seed", range(3))
def test_branches_go_together_through_each_block(monkeypatch, keeps, seed):
    """Bit for bit as one after the other, with half the copies."""
    draw = random.Random(seed)
    model = deep(draw.randint(4, 7))
    x, t, context = CASES[draw.choice(list(CASES))]
    prepared, features = model._prepare_call(x, t, context)
    both = [prepared, model._prepare_call(x, t, [states + 1 for states in context])[0]]
    expected = [model(x, features, branch) for branch in both]
    lane = LateLane(seed)
    checked_filling(monkeypatch, lane)
    streamed, copies = Streamed(model, lane, keeps), []
    with lane:
        streamed.start(draw.choice((0, step_bytes(model)[0])))
        for run in (lambda: [model(x, features, each) for each in both], lambda: model.branches(x, features, both)):
            before = len(lane.sent)
            for _ in range(3):
                for found, wanted in zip(run(), expected, strict=True):
                    assert all(map(torch.equal, found, wanted))
            copies.append(len(lane.sent) - before)
        streamed.stop()
    assert copies[1] > 0
    assert abs(copies[0] - 2 * copies[1]) <= 2 * streamed.count, "some are of the blocks that come next"


@pytest.mark.parametrize("keeps", [True, False], ids=["pinned", "ring"])
def test_steps_may_be_left_out_and_repeated(keeps):
    """A cache of steps runs some of them, in the order that it likes."""
    model, (x, t, context) = deep(4), CASES["even"]
    draw = random.Random(1)
    orders = [[draw.randrange(4) for _ in range(draw.randrange(9))] for _ in range(5)]

    def run_some(steps, tokens, cond, order):
        steps = list(steps)
        return run_blocks([steps[0], *(steps[1 + n] for n in order), steps[-1]], tokens, cond)

    def results():
        found = []
        for order in orders:
            model.run_blocks = partial(run_some, order=order)
            found.append(model(x, t, context)[0])
        return found

    expected, lane = results(), LateLane(2)
    model.run_blocks = run_blocks
    streamed = Streamed(model, lane, keeps)
    run_streamed = model.run_blocks
    found = []
    with lane:
        streamed.start(0)
        for order in orders:
            steps = list(model.trunk())
            chosen = [steps[0], *(steps[1 + n] for n in order), steps[-1]]
            model.run_blocks = lambda _, tokens, cond, chosen=chosen: run_streamed(chosen, tokens, cond)
            found.append(model(x, t, context)[0])
        streamed.stop()
    assert all(map(torch.equal, expected, found))


def broken(name: str, seed: int):
    """Make a lane that lacks an event, or one step of the order."""
    lane = LateLane(seed)
    if name == "ready":
        lane.wait = lambda event: None
    elif name == "free":
        lane.mark = lambda: 0
    elif name == "sent":
        lane.finish = lambda event: None
    return lane


@pytest.mark.parametrize("name", [None, "ready", "free", "sent"])
def test_a_missing_event_shows(monkeypatch, name):
    model, (x, t, context) = deep(6), CASES["even"]
    expected = model(x, t, context)[0]
    lane = broken(name, 3)
    checked_filling(monkeypatch, lane)
    streamed = Streamed(model, lane, keeps=False)
    with lane:
        streamed.start(0)
        try:
            same = all(torch.equal(model(x, t, context)[0], expected) for _ in range(2))
        except AssertionError:
            same = False
    assert same == (name is None)


def test_the_device_holds_the_slots_and_what_stays():
    model = deep(7)
    sizes = step_bytes(model)
    for stay in (0, sizes[0] - 1, sizes[0], 3 * sizes[0] + 5, 99 * sizes[0]):
        taken = []

        class Counted(Lane):
            def slot(self, nbytes):
                taken.append(nbytes)  # noqa: B023
                return super().slot(nbytes)

        streamed = Streamed(model, Counted(CPU))
        streamed.start(stay)
        bound = num_bound(sizes, stay)
        assert bound == (min(stay // sizes[0], 7) if stay // sizes[0] < 5 else 7), "slots hold the last two"
        assert taken == [sizes[0]] * (0 if bound == 7 else 2) and len(streamed.order) == 7 - bound
        streamed.stop()


def test_what_the_model_uses_elsewhere_stays():
    model = deep(3)
    streamed = {name.split(".")[0] for weights in streamed_weights(model).values() for name in weights}
    assert streamed == {"blocks"} and len(streamed_weights(model)) == 3
    encoder = T5Encoder(T5Config(9, 8, 8, 8, 2, 4))
    assert {name.split(".")[0] for weights in streamed_weights(encoder).values() for name in weights} == {"blocks"}


def test_small_steps_between_large_ones_get_a_third_slot():
    assert num_slots([4, 4, 4]) == 2 and num_slots([4, 2, 4, 2]) == 3 and num_slots([]) == 2


def test_the_text_encoder_streams():
    encoder = T5Encoder(T5Config(11, 16, 16, 24, 2, 5)).requires_grad_(False)
    encoder.init_weights(torch.Generator().manual_seed(0))
    ids = torch.arange(10).view(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = encoder(ids, mask)
    lane = LateLane(4)
    streamed = Streamed(encoder, lane, keeps=False)
    with lane:
        streamed.start(0)
        assert torch.equal(encoder(ids, mask), expected)
        assert lane.sent
        streamed.stop()


def test_weights_are_rounded_on_their_way():
    """The file has float32, and blocks compute in bfloat16, with norms in float32."""
    model, (x, t, context) = deep(4), CASES["even"]
    names = dict(model.named_parameters())
    at_work = {name: torch.float32 if model.keeps_float32(name) else torch.bfloat16 for name in names}
    rounded = deep(4)
    for name, parameter in rounded.named_parameters():
        parameter.data = parameter.data.to(at_work[name])
    expected = rounded(x, t, context)[0]
    streamed = Streamed(model, lane := LateLane(5), False, at_work.__getitem__)
    for name, parameter in model.named_parameters():
        if name not in streamed.names:
            parameter.data = parameter.data.to(at_work[name])
    with lane:
        streamed.start(0)
        assert torch.equal(model(x, t, context)[0], expected)
        streamed.stop()
    assert model.blocks[0].ffn[0].weight.dtype == torch.float32, "as in the file"


def test_compiled_blocks_are_not_compiled_again():
    torch._dynamo.reset()  # other tests of this process may have compiled blocks
    model, (x, t, context) = deep(4), CASES["even"]
    expected = model(x, t, context)[0]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for block in model.blocks:
        block.compile(backend=backend)
    streamed = Streamed(model, Lane(CPU))
    streamed.start(step_bytes(model)[0])
    counts = []
    for _ in range(3):
        assert torch.equal(model(x, t, context)[0], expected)
        counts.append(len(graphs))
    assert counts == [1, 1, 1]
    streamed.stop()


def test_an_error_in_a_step_leaves_the_weights_usable():
    model, (x, t, context) = deep(5), CASES["even"]
    expected = model(x, t, context)[0]
    streamed = Streamed(model, lane := LateLane(6), keeps=False)
    with lane:
        streamed.start(0)
        with pytest.raises(ZeroDivisionError):
            model.run_blocks(
                [*model.trunk()[1:3], Step(lambda tokens, cond: 1 / 0, ())], *_inputs(model, x, t, context)
            )
        assert torch.equal(model(x, t, context)[0], expected)
        streamed.stop()
    assert torch.equal(model(x, t, context)[0], expected)


def _inputs(model, x, t, context):
    prepared, features = model._prepare_call(x, t, context)
    tokens, cond = model.embed(x, features, prepared)
    return model.trunk()[0].run(tokens, cond), cond


@pytest.mark.parametrize(
    "sizes", [[703 * MB] * 40, [703 * MB, 315 * MB] * 12 + [703 * MB] * 28, [327 * MB] * 30, [386 * MB] * 24, [MB] * 3]
)
def test_pinned_memory_is_taken_in_powers_of_two_with_little_waste(sizes):
    found = chunks(sizes)
    assert sum(count for _, count in found) == len(sizes)
    assert all(math.log2(size).is_integer() for size, _ in found)
    assert sum(size for size, _ in found) < (1.1 if len(sizes) > 3 else 1.5) * sum(sizes)


@pytest.mark.parametrize("sizes", [[], [5], [7] * 40, [70, 31] * 12])
def test_buffers_of_pinned_memory_do_not_overlap(sizes):
    buffers = list(pinned(Lane(CPU), sizes))
    for number, buffer in enumerate(buffers):
        buffer.fill_(number)
    assert [int(buffer[0]) for buffer in buffers] == [int(buffer[-1]) for buffer in buffers] == [*range(len(sizes))]
    assert [len(buffer) for buffer in buffers] == sizes


@pytest.mark.gpu
@pytest.mark.parametrize("keeps", [True, False], ids=["pinned", "ring"])
def test_a_gpu_streams_what_it_computes_resident(keeps):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    model, (x, t, context) = deep(6), CASES["even"]
    x, t, context = [v.to(device) for v in x], t.to(device), [v.to(device) for v in context]
    resident = deep(6).to(device)
    expected = resident(x, t, context)[0]
    streamed = Streamed(model, make_lane(device), keeps)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in streamed.names:
            tensor.data = tensor.data.to(device)
    streamed.start(step_bytes(model)[0])
    assert all(torch.equal(model(x, t, context)[0], expected) for _ in range(5))
    streamed.stop()
    assert not model.blocks[5].ffn[0].weight.is_cuda
