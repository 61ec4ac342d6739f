"""Work of a GPU, counted on pretended tensors: small cases may not grow, and the counter itself is right."""

import math
from functools import partial

import pytest
import torch

from benchmarks.counted import __main__ as program
from benchmarks.counted.cases import Case, cases, decode, forward, text
from benchmarks.counted.count import Counter
from benchmarks.counted.pretend import empty, place, pretended
from benchmarks.counted.rates import MEMORY, RATES, SHORTEST, figures, op_seconds

SMALL = {"frame_num": 5, "layers": 2}
# Upper limits: launches, GB of memory traffic, peak MB beside the weights, times the host waits, bytes that move.
# Lower one when the package needs less; a higher one needs a reason.
LIMITS = {
    "text": (partial(forward, "t2v-A14B", "832*480", **SMALL), (104, 4.956, 296.3, 0, 0)),
    "first frame": (partial(forward, "ti2v-5B", "1280*704", first_frame=True, **SMALL), (145, 1.929, 122.5, 0, 0)),
    "speech": (partial(forward, "s2v-14B", "1024*704", frame_num=8, layers=2), (167, 24.73, 1383.6, 0, 0)),
    "decode 2.1": (partial(decode, "t2v-A14B", "128*128", None, frame_num=5), (685, 4.299, 285.1, 2, 983040)),
    "decode 2.2": (partial(decode, "ti2v-5B", "128*128", None, frame_num=5), (729, 3.402, 256.2, 2, 983040)),
    "prompt": (partial(text, 20), (745, 2.313, 1.773, 0, 0)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_figures_do_not_grow(name):
    run, limits = LIMITS[name]
    counts = figures(Case(name, "", run).count())
    traffic = counts.other_bytes / 1e9
    found = (
        counts.launches,
        traffic,
        (counts.peak - counts.weights) / 1e6,
        counts.asks,
        counts.to_host + counts.to_device,
    )
    assert all(value <= limit for value, limit in zip(found, limits, strict=True)), f"{found}, at most {limits}"


def counted(run, *, hold=()):
    with pretended():
        counter = Counter()
        with counter:
            counter.hold(*hold)
            run()
    return counter


def test_an_operation_reads_its_inputs_and_writes_its_result():
    def run():
        x = empty(1000, 2000, dtype=torch.bfloat16)
        x.t()[3:5].unsqueeze(0)
        y = x + x.float()
        return y.mul_(2)

    cast, add, scale = counted(run).ops
    assert (cast.bytes, add.bytes, scale.bytes) == (12e6, 20e6, 16e6)
    assert op_seconds(add) == 20e6 / MEMORY and op_seconds(cast) == 12e6 / MEMORY
    (tiny,) = counted(lambda: empty(3) + 1).ops
    assert op_seconds(tiny) == SHORTEST


def test_flops_and_rates():
    def run():
        x, weight = empty(64, 512, dtype=torch.bfloat16), empty(256, 512, dtype=torch.bfloat16)
        torch.nn.functional.linear(x, weight)
        q = empty(1, 2, 4096, 128, dtype=torch.bfloat16)
        torch.nn.functional.scaled_dot_product_attention(q, q[:, :, :2048], q[:, :, :2048])
        torch.nn.functional.conv2d(empty(1, 8, 32, 32), empty(16, 8, 3, 3), padding=1)

    counter = counted(run)
    product, attention, conv = counter.ops
    assert [op.kind for op in counter.ops] == ["gemm", "attention", "conv"]
    assert product.flops == 2 * 64 * 512 * 256 and attention.flops == 4 * 2 * 4096 * 2048 * 128
    assert conv.flops == 2 * 16 * 32 * 32 * 8 * 9
    assert op_seconds(attention) == attention.flops / RATES["attention"][0]
    assert figures(counter).floor == pytest.approx(
        (product.flops + attention.flops) / RATES["gemm"][0] + conv.flops / RATES["conv"][1]
    )


def test_attention_of_operands_that_no_kernel_takes_writes_its_scores():
    def run():
        q = empty(1, 1, 64, 1000).transpose(2, 3)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert counted(run).peak > 2 * 1000 * 1000 * 4


def test_weights_peak_and_what_passes_between_host_and_device():
    def run():
        x = empty(1 << 20)
        y = x * 2
        del x
        z = y * 3
        if (z > 0).all():
            z.cpu()
        torch.ones(10).to(z.device)

    with pretended():
        module = place(lambda: torch.nn.Linear(1 << 10, 1 << 10, bias=False), lambda name: torch.float32)
    counter = counted(run, hold=[module])
    assert counter.weights == 4 << 20 and counter.peak - counter.weights == pytest.approx(9 << 20, rel=0.01)
    assert sum(counter.asks.values()) == 1 and counter.copies == {"to host": 4 << 20, "to device": 40}


def test_ideal_fusion_keeps_what_others_read():
    def run():
        x, weight = empty(1000, 1000), empty(1000, 1000)
        y = (x * 2).relu() + 1  # one kernel: reads x, writes y
        z = y @ weight
        z.sigmoid().mul(y).sum()  # another one: reads z and y

    counter = counted(run)
    assert figures(counter).fused_bytes == 2 * 4e6 + 2 * 4e6
    assert figures(counter).other_bytes > 2 * figures(counter).fused_bytes


def test_the_form_for_a_compiler_has_no_complex_numbers():
    case = Case("", "", LIMITS["text"][0], compiled=True)
    types = [{op.dtype for op in case.count(form).ops} for form in (False, True)]
    assert torch.complex64 in types[0] and torch.complex64 not in types[1]


def test_the_table_names_goals_and_says_that_nothing_is_measured(monkeypatch, tmp_path, capsys):
    small = partial(forward, "t2v-A14B", "832*480", **SMALL)
    rows = [Case("a", "forward", small, True, 100.0), Case("b", "forward", small, True, 1e-9), cases()[8]]
    monkeypatch.setattr(program, "cases", lambda: rows)
    assert program.main(["--phases", "forward", "--save", str(tmp_path / "c.md"), "--lines"]) is None
    table = (tmp_path / "c.md").read_text()
    first = table.splitlines()[0]
    assert "nothing here is measured" in first and "| b | " in table and "umT5" not in table
    assert "Goal for a, one compiled forward: at most 100.00 s" in table and table.count("not reached") == 1
    assert "model.py:" in table, "the dearest lines"
    with pytest.raises(SystemExit):
        program.main(["--case", "nothing"])
    assert "no case has 'nothing' in its name; there are a, b" in capsys.readouterr().err


def test_cases_cover_every_task_and_both_autoencoders():
    names = " ".join(case.name for case in cases())
    for wanted in ("t2v-A14B", "i2v-A14B", "ti2v-5B text", "ti2v-5B image", "s2v", "animate", "umT5"):
        assert wanted in names
    for vae in ("VAE 2.1 480p", "VAE 2.1 720p", "VAE 2.2 720p"):
        assert all(f"{vae}, {what}" in names for what in ("decoded whole", "decoded tiles of 256"))
    assert sum("encoded" in case.name for case in cases()) == 6
    assert math.isclose(sum(case.goal or 0 for case in cases()), 2.40 + 9.30 + 0.75)
