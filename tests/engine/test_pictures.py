"""What TensorBoard shows of training clips."""

import pytest
import torch

from videorl.engine.pictures import clip_strip


@pytest.mark.parametrize("name", ["video", "pixels"])
def test_first_clips_stand_in_rows_of_frames(name):
    clips = torch.arange(5 * 2 * 3 * 4 * 4, dtype=torch.uint8).view(5, 2, 3, 4, 4)
    strip = clip_strip({name: clips, "visible": torch.zeros(5, 1)}, clips=3)
    assert strip.shape == (3, 3 * 4, 2 * 4)
    for clip in range(3):
        for frame in range(2):
            shown = strip[:, 4 * clip : 4 * clip + 4, 4 * frame : 4 * frame + 4]
            assert (shown == clips[clip, frame].numpy()).all()
