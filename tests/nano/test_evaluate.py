"""The evaluation itself: a perfect painter scores 100 %, one that ignores the text scores chance, files appear."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from wan.nano import evaluate as nano_evaluate
from wan.nano.evaluate import FAMILIES, Goal
from wan.nano.pictures import bar_chart, contact_strip
from wan.nano.random import write_random_checkpoint
from wan.nano.scores import MEASURES, Reconstruction, evaluate, heldout_scenes, psnr, reconstruction
from wan.nano.worlds import held_out, render, sample_scene

GOAL = FAMILIES["t2v"].goals["text"]


@pytest.fixture(scope="module")
def scenes():
    return heldout_scenes(40, seed=3)


@pytest.fixture(scope="module")
def perfect(scenes):
    return evaluate(lambda prompt, seed, image: render(scenes[seed - 5]), scenes, MEASURES, seed=5)


def test_heldout_scenes_are_held_out_and_repeatable(scenes):
    assert all(held_out(scene) for scene in scenes)
    assert scenes[:10] == heldout_scenes(10, seed=3) != heldout_scenes(10, seed=4)


def test_a_perfect_painter_has_everything_right(perfect, scenes):
    assert perfect.rates() == dict.fromkeys(MEASURES, 1.0) and perfect.all_correct() == 1.0
    assert [sample.seed for sample in perfect.samples] == list(range(5, 45))
    assert all(scene.color in sample.prompt.lower() for scene, sample in zip(scenes, perfect.samples))


def test_shuffled_prompts_are_near_chance(perfect):
    for measure, rate in perfect.shuffled().items():
        assert abs(rate - MEASURES[measure].chance) < 0.12, measure


def test_ignoring_the_text_is_near_chance(scenes):
    rng = np.random.default_rng(0)
    report = evaluate(lambda prompt, seed, image: render(sample_scene(rng, "all")), scenes, MEASURES)
    for measure, rate in report.rates().items():
        assert rate < MEASURES[measure].chance + 0.25, measure
    assert not GOAL.reached(report)


def test_nothing_generated_is_nothing_right(scenes):
    report = evaluate(lambda prompt, seed, image: np.full((17, 64, 64, 3), 90, np.uint8), scenes[:4], MEASURES)
    assert report.rates() == dict.fromkeys(MEASURES, 0.0)
    with pytest.raises(ValueError, match="at least one scene"):
        evaluate(lambda prompt, seed, image: np.zeros((17, 64, 64, 3), np.uint8), [], MEASURES)


def test_prompts_do_not_depend_on_the_model(scenes):
    asked = []
    for _ in range(2):
        evaluate(
            lambda prompt, seed, image: asked.append((prompt, seed)) or render(scenes[0]), scenes[:5], MEASURES, seed=7
        )
    assert asked[:5] == asked[5:]


def test_a_given_first_frame_is_compared(scenes):
    seen = []

    def first_of_another(prompt, seed, image):
        seen.append(image)
        return render(scenes[seed + 1])

    exact = evaluate(lambda prompt, seed, image: render(scenes[seed]), scenes[:4], ("shape",), image_size=64)
    other = evaluate(first_of_another, scenes[:4], ("shape",), image_size=64)
    assert all((image == render(scene)[0]).all() for image, scene in zip(seen, scenes))
    assert exact.first_frame_psnr == float("inf") and other.first_frame_psnr < 20
    goal = Goal({"shape": 0.0}, first_frame=25.0)
    assert goal.reached(exact) and not goal.reached(other)


def test_identity_is_judged_at_the_end(scenes):
    def melts(prompt, seed, image):
        frames = render(scenes[seed])
        frames[-3:] = render(scenes[seed + 1])[-3:]
        return frames

    assert evaluate(melts, scenes[:12], ("identity to the end",)).rates()["identity to the end"] < 0.3
    kept = evaluate(lambda prompt, seed, image: render(scenes[seed]), scenes[:12], ("identity to the end",))
    assert kept.all_correct() == 1.0


def test_psnr_and_reconstruction(scenes):
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == float("inf")
    assert psnr(a, a + 10) == pytest.approx(28.13, abs=0.01)
    exact = reconstruction(lambda video: video, scenes[:3])
    assert exact.mean_psnr > 48 and exact.rates == dict.fromkeys(MEASURES, 1.0)  # truncation costs one level
    grey = reconstruction(torch.zeros_like, scenes[:3])
    assert grey.worst_psnr < 20 and grey.rates["shape"] == 0


def test_results_are_written(perfect, tmp_path):
    vae = Reconstruction(3, 33.0, 30.5, dict.fromkeys(MEASURES, 1.0))
    nano_evaluate.write_results(tmp_path, {"both": perfect, "high": perfect}, GOAL, vae, {"steps": 20})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["runs"]["both"]["correct"]["shape"] == 40 and results["settings"] == {"steps": 20}
    assert results["autoencoder"]["mean_psnr"] == 33.0
    table = (tmp_path / "results.md").read_text()
    assert "| shape colour | >= 98 % | 100.0 % (40/40) | 100.0 % (40/40) |" in table and "33.0 dB" in table
    for name in ("table.png", "samples.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400
    assert not (tmp_path / "failures.png").exists()


def test_failures_get_their_own_picture(scenes, tmp_path):
    report = evaluate(lambda prompt, seed, image: render(scenes[0]), scenes[:6], tuple(GOAL.targets))
    nano_evaluate.write_results(tmp_path, {"both": report}, GOAL, None, {})
    assert (tmp_path / "failures.png").is_file()
    assert "autoencoder" not in (tmp_path / "results.md").read_text().lower()


def test_pictures_check_their_input(tmp_path):
    with pytest.raises(ValueError, match="one prompt per video"):
        contact_strip([], [], [], tmp_path / "a.png")
    bar_chart({"x": {"m": 0.0}}, tmp_path / "b.png", "title", "", {}, {})
    assert (tmp_path / "b.png").stat().st_size > 0


def test_the_command_refuses_bad_input(tmp_path, capsys):
    for wrong, words in ((["--videos", "0"], "at least 1"), (["--ckpt_dir", str(tmp_path / "none")], "none")):
        with pytest.raises(SystemExit) as stop:
            nano_evaluate.main(["t2v", "--device", "cpu", "--out", str(tmp_path / "out"), *wrong])
        assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_measures_an_untrained_checkpoint(tmp_path, capsys):
    folder = write_random_checkpoint(tmp_path / "random")
    common = ["--device", "cpu", "--steps", "1", "--progress", "none", "--ckpt_dir", str(folder)]
    assert nano_evaluate.main(["t2v", "--videos", "1", "--expert", "compare", "--out", str(tmp_path), *common]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["runs"]) == ["both", "high", "low"] and results["settings"]["steps"] == 1
    assert results["runs"]["both"]["rates"]["shape"] == 0 and "| shape |" in capsys.readouterr().out
    first = [run["samples"][0]["prompt"] for run in results["runs"].values()]
    assert len(set(first)) == 1
