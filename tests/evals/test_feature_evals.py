"""The evaluations of VideoCLIP and Norton on stored features: scores and figures of the published code."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.data import feature_sets
from videorl.evals.alignment import Alignment
from videorl.evals.full_video import FullVideo
from videorl.evals.retrieval import Retrieval
from videorl.evals.segments import Segments
from videorl.evals.text_choice import TextChoice
from videorl.loading.worker import collate
from videorl.metrics.segments import mean_of_windows
from videorl.models.sequence import VideoCLIP, VideoCLIPFrames
from videorl.registry import UserError
from videorl.video.errors import VideoError

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS / "models"), str(TESTS / "data")]
import norton  # noqa: E402
import videoclip  # noqa: E402
from recipe import assert_summary, check, load_case  # noqa: E402


class Published:
    """A golden case: its model, its features as files, and its rows of an evaluation of ours."""

    def __init__(self, name: str, folder: Path, kind=VideoCLIP, **keys):
        self.case = load_case(TESTS / f"golden/norton/eval_{name}.pt")
        if "model" in self.case["config"]:
            self.case["config"] |= self.case["config"]["model"]
        self.folder, self.model = folder, videoclip.tiny(self.case, kind, **keys)
        for video, given in self.case["inputs"]["features"].items():
            topic = 0.0 if given["topic"] is None else 2 * given["topic"].numpy()
            np.save(folder / f"{video}.npy", given["feature"].numpy() + topic)
        self.spec = norton.spec(folder / "vocab.txt", self.case["config"]["vocabulary"], length=63)

    def json(self, content) -> str:
        (self.folder / "annotations.json").write_text(json.dumps(content))
        return str(self.folder / "annotations.json")

    def rows(self, dataset, evaluation, size: int = 4) -> dict:
        found = []
        with torch.inference_mode():
            if hasattr(evaluation, "begin"):
                evaluation.begin(self.model, dataset)
            for start in range(0, len(dataset), size):
                items = [item for i in range(start, min(start + size, len(dataset))) for item in dataset[i]]
                found.append(evaluation.step(self.model, collate(items)))
        return {name: torch.cat([rows[name] for rows in found]).numpy() for name in found[0]}

    def check(self, found: dict, part: str) -> None:
        expected = self.case["expected"][part]
        tensors = {name: torch.as_tensor(value) for name, value in found.items()}
        check(self.case | {"expected": {name: torch.as_tensor(expected[name]) for name in found}}, tensors)


def youcook2(published: Published, kind=feature_sets.YouCook2Features):
    annotations = published.json(published.case["inputs"]["annotations"])
    return kind(published.spec, "val", root=str(published.folder), annotations=annotations)


def recalls(metrics: dict, front: str = "t2v_") -> dict:
    return {f"R{k}": metrics[f"{front}r{k}"] for k in (1, 5, 10) if f"{front}r{k}" in metrics}


def test_youcook2_clips(tmp_path):
    published, evaluation = Published("youcook_clip", tmp_path), Retrieval(norton.spec(tmp_path / "v", length=9))
    rows = published.rows(youcook2(published), evaluation)
    published.check({"outputs": rows["text_embed"] @ rows["video_embed"].T}, "raw")
    metrics, _ = evaluation.finish(rows)
    published.check(recalls(metrics) | {"MR": metrics["t2v_medr"]}, "metrics")


def test_msrvtt(tmp_path):
    published, evaluation = Published("msrvtt", tmp_path), Retrieval(norton.spec(tmp_path / "v", length=9))
    lines = ["video_id,sentence", *(f"{row['video_id']},{row['sentence']}" for row in published.case["inputs"]["rows"])]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    keys = {"root": str(tmp_path), "annotations": str(tmp_path / "list.csv")}
    rows = published.rows(feature_sets.MSRVTTFeatures(published.spec, "test", **keys), evaluation)
    published.check({"outputs": rows["text_embed"] @ rows["video_embed"].T}, "raw")
    published.check(recalls(evaluation.finish(rows)[0]), "metrics")


def test_msrvtt_questions(tmp_path):
    published, evaluation = Published("msrvtt_qa", tmp_path), TextChoice(norton.spec(tmp_path / "v", length=9))
    rows = [list(row.values()) for row in published.case["inputs"]["rows"]]
    (tmp_path / "qa.tsv").write_text("\n".join("\t".join(map(str, row)) for row in rows))
    dataset = feature_sets.MSRVTTQA(published.spec, "test", root=str(tmp_path), annotations=str(tmp_path / "qa.tsv"))
    metrics, of_samples = evaluation.finish(published.rows(dataset, evaluation))
    published.check({"outputs": of_samples["scores"].argmax(1)}, "raw")
    published.check({"acc": metrics["acc"]}, "metrics")


@pytest.mark.parametrize("background", [False, True])
def test_youcook2_whole_videos(tmp_path, background):
    name = "youcook_full_video_background" if background else "youcook_full_video"
    kind = feature_sets.YouCook2Windows if background else feature_sets.YouCook2Features
    published, evaluation = Published(name, tmp_path), FullVideo(norton.spec(tmp_path / "v", length=9))
    rows = published.rows(youcook2(published, kind), evaluation)
    texts = evaluation.texts[1] if background else rows["text_embed"]
    published.check({"outputs": texts @ rows["video_embed"].T}, "raw")
    metrics, _ = evaluation.finish(rows)
    found = {f"{front}R{k}": metrics[f"{ours}_r{k}"] for k in (1, 5)
             for front, ours in (("", "cap_avg"), ("DTW-", "dtw_published"), ("OTAM-", "otam_published"))}  # fmt: skip
    published.check(found, "metrics")
    assert 0 <= metrics["ot_r1"] <= 1


@pytest.mark.parametrize("name", ["coin_zero_shot", "coin_fine_tuned"])
def test_coin(tmp_path, name):
    kind = {"coin_zero_shot": VideoCLIP, "coin_fine_tuned": VideoCLIPFrames}[name]
    published = Published(name, tmp_path, kind, attend_cls=kind is VideoCLIP)
    evaluation = Segments(published.spec)
    keys = {"root": str(tmp_path), "annotations": published.json(published.case["inputs"]["coin"])}
    dataset = feature_sets.Coin(published.spec, "test", **keys)
    metrics, _ = evaluation.finish(published.rows(dataset, evaluation))
    published.check({"frame_acc": metrics["frame_acc"]}, "metrics")
    videos = [dataset[i][0]["windows"] for i in range(len(dataset))]
    targets = np.concatenate([video.notes["labels"] for video in videos])
    assert metrics["all_background_acc"] == (targets == 0).mean()
    with torch.inference_mode():
        scores = [mean_of_windows(evaluation.scores(published.model, v), v.starts, v.seconds) for v in videos]
        classes = np.concatenate([evaluation._classes(published.model, video) for video in videos])
    published.check({"targets": targets, "outputs": classes}, "raw")
    for found, expected in zip(scores, published.case["expected"]["frame_logits"], strict=True):
        assert_summary(torch.from_numpy(found), expected, 2e-5, 2e-5)


def test_windows_of_coin_to_train_on(tmp_path):
    published = Published("coin_fine_tuned", tmp_path, VideoCLIPFrames, attend_cls=False)
    coin = published.case["inputs"]["coin"]["database"]
    for entry in list(coin.values())[:2]:
        entry["subset"] = "training"
    keys = {"root": str(tmp_path), "annotations": published.json({"database": coin}), "stride": 8}
    dataset = feature_sets.Coin(published.spec, "train", **keys)
    assert len(dataset) == 2
    windows = dataset[0]  # 86 seconds
    assert [int(w["video_mask"].sum()) for w in windows] == [32] * 7 + [30]
    assert windows[-1]["frame_labels"].tolist()[-2:] == [-100, -100]
    assert windows[0]["frame_labels"][:5].tolist() == [0, 3, 3, 3, 3]
    assert windows[1]["frame_labels"][:4].tolist() == [4, 4, 4, 2]


def test_htm_align(tmp_path):
    published, evaluation = Published("htm_align", tmp_path), Alignment(norton.spec(tmp_path / "v", length=9))
    annotations = published.json(published.case["inputs"]["annotations"])
    dataset = feature_sets.HTMAlign(published.spec, "test", root=str(tmp_path), annotations=annotations)
    metrics, _ = evaluation.finish(published.rows(dataset, evaluation, 2))
    published.check({"Recall": metrics["recall"], "AUC": metrics["auc"]}, "metrics")


# ------------------------------------------------------------------------------------------------------- files as given


def test_features_may_stand_in_shards(tmp_path):
    keys = norton.write(tmp_path / "x", [norton.video(seed=k) for k in range(4)], split="val")
    rows = feature_sets.VideoRows(keys["root"], "X.ROOT")
    assert rows.of("v3").shape == (10, 8)
    with pytest.raises(VideoError, match="v9: .*no features: No such file"):
        rows.of("v9")
    np.save(tmp_path / "x" / "odd.npy", np.zeros(3))
    with pytest.raises(VideoError, match=r"features float64 \(3,\): expected floats \[seconds, F\]"):
        rows.of("odd")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not valid json"),
        ("[]", "expected an object with an entry for each video"),
        ('{"a": {"annotations": [{"segment": [3, 1], "sentence": "x"}]}}', "a: ValueError segment"),
        ('{"a": {"annotations": [{"segment": [1, 3]}]}}', "a: KeyError 'sentence'"),
        ('{"a": {"subset": "training", "annotations": []}}', "no samples of split val"),
        ('{"../a": {"annotations": [{"segment": [1, 3], "sentence": "x"}]}}', "'../a' is no name of a video"),
    ],
)
def test_annotations_that_are_wrong_are_one_line(tmp_path, content, said):
    file, spec = tmp_path / "a.json", norton.spec(tmp_path / "vocab.txt")
    file.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        feature_sets.YouCook2Features(spec, "val", root=str(tmp_path), annotations=str(file))
    assert "\n" not in str(error.value)


def test_sentences_of_a_json_and_questions_that_are_none(tmp_path):
    spec = norton.spec(tmp_path / "vocab.txt")
    (tmp_path / "list.csv").write_text("video_id\nvideo1\nvideo3\n")
    captions = [{"video_id": f"video{k % 4}", "caption": f"a {k}"} for k in range(8)]
    (tmp_path / "data.json").write_text(json.dumps({"sentences": captions, "videos": []}))
    keys = {"root": str(tmp_path), "annotations": str(tmp_path / "list.csv"), "sentences": str(tmp_path / "data.json")}
    dataset = feature_sets.MSRVTTFeatures(spec, "train", **keys)
    assert list(zip(dataset.videos, dataset.sentences)) == [(f"video{k % 4}", f"a {k}") for k in (1, 3, 5, 7)]
    (tmp_path / "qa.tsv").write_text("msr1\ta\tb\tc\td\te\t7\n")
    with pytest.raises(UserError, match="line 1: expected vid_key, five sentences and 0 to 4, found 7 cells"):
        feature_sets.MSRVTTQA(spec, "test", root=str(tmp_path), annotations=str(tmp_path / "qa.tsv"))
