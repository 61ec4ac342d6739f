"""The plan of a run: what fits where, why, and what would fit instead; peaks as they are counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wan import plan as program
from wan.cards import CARDS, card_named
from wan.configs import WAN_CONFIGS
from wan.forecast import RESERVE, denoise_of, phase_bytes, released_models
from wan.parallel import Parallel
from wan.plan import CUDA, ON_CUDA, work_at
from wan.planner import Room, choices, choose, fitted, host_bytes, make_plan, summary
from wan.runtime import Host, Offload

GB, GIB = 1e9, 2**30
PEAKS = json.loads((Path(__file__).parent / "data" / "counted_peaks.json").read_text())


@pytest.fixture(scope="module")
def a14b():
    return released_models(WAN_CONFIGS["t2v-A14B"], ON_CUDA)


@pytest.fixture(scope="module")
def hybrid():
    return released_models(WAN_CONFIGS["ti2v-5B"], ON_CUDA)


def on(card, gib=64, free=None):
    return Room(free or CARDS[card].memory, gib * GIB, CARDS[card], card)


HD, SD = work_at("t2v-A14B", "1280*720"), work_at("t2v-A14B", "832*480")


@pytest.mark.parametrize("case", PEAKS["forwards"])
def test_denoising_takes_what_is_counted(case):
    """Every task at its smallest and largest size."""
    task, size = case.split()[:2]
    config = WAN_CONFIGS[task]
    counted = PEAKS["forwards"][case]
    work = replace(work_at(task, size), latent_frames=counted["latent_frames"])
    models = released_models(config, ON_CUDA)
    assert models.experts[0] == pytest.approx(counted["weights"], rel=0.005)
    found = denoise_of(models, work, ON_CUDA) + models.experts[0]
    assert found == pytest.approx(counted["peak"], rel=0.05)
    assert denoise_of(models, work, ON_CUDA) == pytest.approx(counted["peak"] - counted["weights"], rel=0.05)


@pytest.mark.parametrize("case", PEAKS["autoencoders"])
def test_encoding_and_decoding_take_what_is_counted(case):
    """Every task at its smallest and largest size."""
    task, size, phase = case.split()
    counted, config = PEAKS["autoencoders"][case], WAN_CONFIGS[task]
    work, models = work_at(task, size, has_image=phase == "encode"), released_models(config, ON_CUDA)
    assert counted["frames"] == pytest.approx(work.encoded if phase == "encode" else work.frames, abs=4)
    for policy in (Offload.MODEL, Offload.BLOCK):
        found = phase_bytes(models, work, replace(ON_CUDA, offload=policy))[phase]
        assert found == pytest.approx(counted["peak"], rel=0.05)


@pytest.mark.parametrize("task", WAN_CONFIGS)
def test_encoding_the_text_takes_what_is_counted(task):
    models, work = released_models(WAN_CONFIGS[task], ON_CUDA), work_at(task, WAN_CONFIGS[task].size)
    found = phase_bytes(models, work, replace(ON_CUDA, offload=Offload.MODEL))["text"]
    assert found == pytest.approx(PEAKS["text"]["peak"], rel=0.05)
    resident = phase_bytes(models, work, replace(ON_CUDA, offload=Offload.NONE))
    both = sum(models.experts) + models.text + models.vae + models.speech + models.picture
    assert resident["text"] == pytest.approx(both, rel=0.001)


def test_auto_takes_the_fastest_policy_that_fits(a14b):
    found = {card: choose(a14b, HD, ON_CUDA, on(card)) for card in ("H200", "L40S", "RTX 4090")}
    policies = {card: plan.runtime.offload for card, plan in found.items()}
    assert policies == {"H200": Offload.NONE, "L40S": Offload.MODEL, "RTX 4090": Offload.BLOCK}
    for card, plan in found.items():
        assert plan.device + RESERVE <= CARDS[card].memory
    assert found["H200"].why == "" and "--offload none takes" in found["RTX 4090"].why
    assert f"blocks of {found['RTX 4090'].runtime.stay / GB:.1f} GB stay on the device" in choices(found["RTX 4090"])
    assert found["RTX 4090"].seconds < 1.05 * choose(a14b, HD, ON_CUDA, on("RTX 4090", 999)).seconds


def test_a14b_at_720p_within_12_gb_and_32_gb_of_host_memory(a14b):
    """The goal: streams from mapped files, at less than 5 % predicted loss on a 4090."""
    room = on("RTX 4090", 32, free=12 * 10**9 + RESERVE)
    plan = choose(a14b, HD, ON_CUDA, room)
    assert plan.device < 12 * GB and plan.host < 32 * GB and plan.runtime.host is Host.MAPPED
    assert plan.runtime.vae_tile is None, "tiles change the video"
    resident = make_plan(a14b, HD, replace(ON_CUDA, offload=Offload.NONE), on("RTX 4090", 999))
    assert plan.phases["denoise"].seconds < 1.05 * resident.phases["denoise"].seconds


def test_the_5b_within_8_gb(hybrid):
    """The goal: the text encoder streams, the autoencoder decodes in fp16."""
    work = work_at("ti2v-5B", "1280*704")
    phases = phase_bytes(hybrid, work, replace(ON_CUDA, offload=Offload.BLOCK))
    assert max(phases["text"], phases["denoise"]) < 4 * GB
    plan = choose(hybrid, work, ON_CUDA, on("RTX 4060", free=8 * 10**9 + RESERVE))
    assert plan.device < 8 * GB and plan.runtime.vae_dtype is torch.float16 and plan.runtime.vae_tile is None


def test_experts_share_the_host_as_far_as_there_is_room(a14b):
    kept = {gib: choose(a14b, HD, ON_CUDA, on("RTX 4090", gib)).runtime.host for gib in (128, 48, 24)}
    assert kept == {128: Host.ALL, 48: Host.ONE, 24: Host.MAPPED}
    streams = replace(ON_CUDA, offload=Offload.BLOCK)
    both, one, none = (max(host_bytes(a14b, HD, replace(streams, host=host)).values()) for host in Host)
    assert both - one == pytest.approx(a14b.experts[0], rel=0.05) and none < 4 * GB
    assert max(host_bytes(a14b, HD, replace(ON_CUDA, offload=Offload.NONE)).values()) < 2 * GB, "read into the device"


def test_a_slow_link_and_a_slow_disk_are_predicted(a14b):
    streams = replace(ON_CUDA, offload=Offload.BLOCK)
    room = on("RTX 4090", 999)
    slow = replace(room, card=room.card._replace(link=1e8))
    usual, late = (make_plan(a14b, SD, streams, given).phases["denoise"].seconds for given in (room, slow))
    assert late > 10 * usual
    mapped = make_plan(a14b, SD, replace(streams, host=Host.MAPPED), on("RTX 4090", 32)).phases["denoise"].seconds
    assert mapped > 1.1 * usual, "57 GB are read for each forward"


def test_branches_go_together_where_copies_do_not_hide_and_there_is_room(a14b):
    room = on("RTX 4090", 999)
    slow = replace(room, card=room.card._replace(link=1e8))
    assert not choose(a14b, SD, ON_CUDA, room).runtime.together
    found = choose(a14b, SD, ON_CUDA, slow)
    assert found.runtime.together and "both branches of guidance go through a block together" in summary(found)
    alone = fitted(a14b, SD, replace(ON_CUDA, offload=Offload.BLOCK), slow)
    assert found.seconds < 0.7 * alone.seconds
    stream = 4 * SD.tokens * a14b.sizes.dim
    one, both = (denoise_of(a14b, SD, replace(found.runtime, together=flag)) for flag in (False, True))
    assert both - one == stream
    tight = replace(slow, device=fitted(a14b, SD, replace(ON_CUDA, offload=Offload.BLOCK), slow).device + RESERVE)
    for other in (replace(SD, branches=1), replace(SD, reuses=True)):
        assert not choose(a14b, other, ON_CUDA, tight).runtime.together
    least = phase_bytes(a14b, HD, replace(ON_CUDA, offload=Offload.BLOCK, vae_frames=1, vae_tile=256))["denoise"]
    full = choose(a14b, HD, ON_CUDA, replace(slow, device=least + RESERVE))
    assert full.runtime.offload is Offload.BLOCK and not full.runtime.together
    halves = replace(ON_CUDA, parallel=Parallel(2, cfg_size=2))
    assert not choose(a14b, SD, halves, slow).runtime.together


def test_processes_that_share_tokens_share_the_host(a14b):
    streams = replace(ON_CUDA, offload=Offload.BLOCK)
    alone, two, four, halves = (
        host_bytes(a14b, HD, replace(streams, parallel=Parallel(n, cfg, n // cfg)))["denoise"]
        for n, cfg in ((1, 1), (2, 1), (4, 1), (2, 2))
    )
    assert halves == alone
    for count, size in ((2, two), (4, four)):
        blocks = sum(a14b.dit.steps) * len(a14b.experts)
        assert alone - size == pytest.approx(blocks * (1 - 1 / count), rel=0.1)
    mapped = replace(streams, host=Host.MAPPED)
    one, two = (host_bytes(a14b, HD, replace(mapped, parallel=Parallel(n, 1, n)))["denoise"] for n in (1, 2))
    assert one == two, "each has a ring of its own"


def test_several_cards_are_predicted(a14b):
    def seconds(card, parallel):
        plan = choose(a14b, SD, replace(ON_CUDA, parallel=parallel), on(card, 999))
        return plan.phases["denoise"].seconds - sum(a14b.stored) / 3e9

    for card in ("H100", "RTX 4090"):
        alone = seconds(card, Parallel(1))
        halves, tokens = seconds(card, Parallel(2, 2, 1)), seconds(card, Parallel(2, 1, 2))
        assert 0.45 * alone < halves <= tokens < 0.75 * alone
    assert seconds("H100", Parallel(8, 2, 4)) < 0.2 * seconds("H100", Parallel(1)), "7.6 times by benchmarks.parallel"


def test_what_does_not_fit_is_refused_with_the_nearest_settings(a14b):
    with pytest.raises(ValueError) as error:
        choose(a14b, HD, ON_CUDA, on("RTX 4060"))
    assert "denoising takes" in str(error.value) and "RTX 4060 has 8.2 GB free" in str(error.value)
    near = str(error.value).partition("what fits: ")[2].split(", or ")
    assert near[0] == "2 such GPUs by torchrun --nproc_per_node=2"
    assert choose(a14b, HD, replace(ON_CUDA, parallel=Parallel(2, ulysses_size=2)), on("RTX 4060"))
    assert [text.split()[0] for text in near[1:]] == ["--frame_num", "--size"]
    with pytest.raises(ValueError, match="what fits: --ulysses_size 2 in place of --cfg_parallel, or --frame_num"):
        choose(a14b, HD, replace(ON_CUDA, parallel=Parallel(2, cfg_size=2)), on("RTX 4060"))
    frames = int(near[1].split()[1])
    shorter = replace(HD, latent_frames=(frames - 1) // 4 + 1)
    assert choose(a14b, shorter, ON_CUDA, on("RTX 4060"))
    with pytest.raises(ValueError, match="takes"):
        choose(a14b, replace(shorter, latent_frames=shorter.latent_frames + 1), ON_CUDA, on("RTX 4060"))


@pytest.mark.parametrize("policy", [Offload.NONE, Offload.MODEL])
def test_a_policy_that_was_asked_for_is_kept_or_refused(a14b, policy):
    asked = replace(ON_CUDA, offload=policy)
    assert choose(a14b, SD, asked, on("H200")).runtime.offload is policy
    with pytest.raises(ValueError, match="what fits: --offload block, or --frame_num"):
        choose(a14b, SD, asked, on("RTX 4090"))


def test_decoding_settings_are_chosen_only_where_none_are_given(a14b):
    assert choose(a14b, HD, ON_CUDA, on("RTX 4080")).runtime.vae_frames
    asked = replace(ON_CUDA, vae_tile=128)
    assert choose(a14b, HD, asked, on("H200")).runtime.vae_tile == 128
    small = on("RTX 4070", 32)
    assert choose(a14b, HD, ON_CUDA, small).runtime.vae_flags == ["--vae_dtype", "fp16"]
    exact = choose(a14b, HD, replace(ON_CUDA, vae_dtype=torch.float32), small).runtime
    assert exact.vae_dtype is torch.float32 and exact.vae_tile, "what was given stays"
    assert choose(a14b, HD, replace(ON_CUDA, vae_frames=1), small).runtime.vae_frames == 1


def test_blocks_are_compiled_where_that_repays_itself(a14b):
    def compiles(work, card="L40S", **changes):
        room = replace(on(card), can_compile=changes.pop("can_compile", True))
        return choose(a14b, work, replace(ON_CUDA, **changes), room).runtime.compile

    assert compiles(HD) is True and "blocks are compiled" in choices(choose(a14b, HD, ON_CUDA, on("L40S")))
    assert compiles(replace(HD, steps=4)) is False, "a short run"
    assert compiles(HD, can_compile=False) is False
    assert compiles(HD, compile=False) is False and compiles(replace(HD, steps=4), compile=True) is True
    unknown = Room(48 * 10**9, 64 * GIB, None, "NVIDIA Something")
    assert choose(a14b, replace(HD, steps=1000), ON_CUDA, unknown).runtime.compile is True
    on_cpu = replace(ON_CUDA, device=torch.device("cpu"), offload=Offload.NONE)
    assert choose(a14b, HD, on_cpu, Room(None, None)).runtime.compile is False


def test_spread_parameters_are_not_streamed(a14b):
    spread = replace(ON_CUDA, parallel=Parallel(4, ulysses_size=4, dit_fsdp=True))
    assert choose(a14b, HD, spread, on("H200")).runtime.offload is Offload.NONE
    with pytest.raises(ValueError, match="what fits: --offload block without --dit_fsdp"):
        choose(a14b, HD, spread, on("RTX 4090"))


def test_a_run_that_only_decodes_is_planned(a14b):
    work = replace(HD, samples=False)
    found = choose(a14b, work, ON_CUDA, on("RTX 4060"))
    assert found.phases.keys() == {"decode"} and found.runtime.vae_frames == 1 and not found.runtime.compile
    assert found.phases["decode"].disk == a14b.vae and found.host < 2 * GB
    assert found.device == phase_bytes(a14b, HD, replace(found.runtime, offload=Offload.BLOCK))["decode"]
    given = replace(ON_CUDA, vae_frames=4, vae_tile=1280, vae_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"decoding takes .* what fits: without settings of the") as error:
        choose(a14b, work, given, on("RTX 4060"))
    assert "--offload" not in str(error.value) and "--size" not in str(error.value)


def test_what_is_changed_at_load_is_not_mapped(a14b):
    """A merged LoRA makes new tensors: these are in host memory."""
    mapped = replace(ON_CUDA, offload=Offload.BLOCK, host=Host.MAPPED)
    plain, merged = (
        host_bytes(a14b, replace(HD, config=HD.config.copy(uses_lora=flag)), mapped)["denoise"]
        for flag in (False, True)
    )
    assert merged > plain + 0.9 * a14b.experts[0]
    on_cpu = host_bytes(a14b, HD, replace(mapped, t5_device=torch.device("cpu")))["text"]
    assert on_cpu > a14b.text, "--t5_cpu has it on the host, also where others stream"


def test_an_unknown_card_has_no_seconds(a14b):
    plan = choose(a14b, HD, ON_CUDA, Room(24 * 10**9, 64 * GIB, None, "NVIDIA Something"))
    assert plan.runtime.offload is Offload.BLOCK and plan.seconds is None and "predicted" not in summary(plan)


def test_a_cpu_keeps_its_policy(a14b):
    on_cpu = replace(ON_CUDA, device=torch.device("cpu"), offload=Offload.NONE)
    assert choose(a14b, HD, on_cpu, Room(None, None)).runtime is not None


def test_cards_are_found_by_the_name_of_the_driver():
    assert card_named("NVIDIA GeForce RTX 4060 Ti") is CARDS["RTX 4060 Ti"]
    assert card_named("NVIDIA H100 80GB HBM3") is CARDS["H100"] and card_named("Radeon") is None


def test_the_largest_budget_that_fits_stays(a14b):
    streams = replace(ON_CUDA, offload=Offload.BLOCK)
    plan = fitted(a14b, HD, streams, on("RTX 4090"))
    block = max(a14b.dit.steps)
    assert CARDS["RTX 4090"].memory - RESERVE - block < plan.phases["denoise"].device
    assert plan.phases["denoise"].device <= CARDS["RTX 4090"].memory - RESERVE


def test_the_program_plans_released_models_and_other_cards(capsys):
    flags = ["--task", "t2v-A14B", "--size", "1280*720", "--prompt", "x"]
    assert program.main([*flags, "--card", "RTX 4090", "--host_memory", "32"]) == 0
    shown = capsys.readouterr().out
    assert "Wan2.2-T2V-A14B, 1280*720, 40 steps, on RTX 4090: --offload block" in shown
    assert "denoise" in shown and "weights stay in their files" in shown
    with pytest.raises(ValueError, match="what fits: "):
        program.main([*flags, "--card", "RTX 4060"])
    two = ["--card", "RTX 4090", "--cards", "2"]
    assert program.main([*flags, *two, "--ulysses_size", "2", "--host_memory", "200"]) == 0
    assert program.main([*flags, *two, "--cfg_parallel", "--host_memory", "200"]) == 0
    tokens, halves = capsys.readouterr().out.split("in all")[:2]
    hosts = [float(text.split("denoise")[1].split("GB")[1]) for text in (tokens, halves)]
    assert hosts[0] == pytest.approx(hosts[1] / 2, rel=0.1)
    with pytest.raises(ValueError, match="--cards 2 needs --card"):
        program.main([*flags, "--cards", "2"])
    with pytest.raises(ValueError, match="--ulysses_size must divide"):
        program.main([*flags, *two, "--ulysses_size", "3"])


def test_the_page_has_the_table_of_the_command():
    page = (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
    assert "\n".join(program.table()) in page, "python -m wan.plan --table"
    assert CUDA.type == "cuda"
