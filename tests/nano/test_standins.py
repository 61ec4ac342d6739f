"""The stand-in networks in the repository are those that the script makes; the recordings of the stage use them."""

import onnx
import pytest

from wan.configs.nano import CHECKPOINTS
from wan.modules.animate.preprocess.whole_body import DETECTOR, POSE
from wan.nano import standins

FOLDER = CHECKPOINTS / "animate-14B" / "process_checkpoint"


@pytest.mark.parametrize("name, write", [(DETECTOR, standins.write_detector), (POSE, standins.write_pose_estimator)])
def test_the_script_makes_the_files_of_the_repository(tmp_path, name, write):
    write(tmp_path / "made.onnx")
    made, kept = (onnx.load(path) for path in (tmp_path / "made.onnx", FOLDER / name))
    assert made.graph == kept.graph and made.ir_version == kept.ir_version
    assert (FOLDER / name).stat().st_size < 40_000
