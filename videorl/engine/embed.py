"""Embeddings of all training videos, for batches that are chosen by them."""

import contextlib
import copy
from collections.abc import Callable

import numpy as np
import torch

from videorl import config, dist
from videorl.engine import build
from videorl.engine.step import call, to_device, unwrap
from videorl.loading.quarantine import Quarantine
from videorl.loading.worker import in_turn
from videorl.log import Progress
from videorl.registry import UserError

VIDEOS = 8  # of a batch, whatever the number of processes: the last bits depend on what else is in it


class Embedder:
    """Called with a function of embeddings: gives what that says, of rank 0, on all ranks.

    The function gets `vectors` float32 [N, D], the mean over the clips of a video of half its embedding and half that
    of its text, and `samples` int64 [N], their numbers in the data set. That is asked for its split "embed", which the
    copy of it that is used here is of. A video that cannot be read has no vector; too many of them end the run.
    """

    def __init__(self, cfg, state, alive: Callable[[str], None]):
        self.cfg, self.state, self.alive = cfg, state, alive
        self.data = copy.copy(state.data.dataset)
        self.data.split = "embed"
        self.title = f"{cfg.TRAIN.DATASET}/embed"

    def __call__(self, choose: Callable[[np.ndarray, np.ndarray], object]) -> object:
        model = unwrap(self.state.model)
        # Statistics of batch norm are each rank's own.
        dist.copy_from_main(model.buffers())
        was_training = model.training
        model.eval()
        found, bad = self._vectors(model)
        model.train(was_training)
        gathered = dist.gather_objects((found, bad))
        return dist.on_main(lambda: self._chosen(choose, gathered))

    def _vectors(self, model) -> tuple[dict[int, np.ndarray], dict]:
        """Sample to vector of this rank's share, and what could not be read."""
        jobs = in_turn(len(self.data), VIDEOS, dist.rank(), dist.world_size(), self.state.epoch)
        loader = build.loader(self.cfg, self.data, self.title)
        progress = Progress(len(jobs), "embedding videos", self.cfg.USE_TQDM and dist.is_main())
        found: dict[int, np.ndarray] = {}
        precision, clip = self.state.precision, config.spec(self.cfg).clip
        with contextlib.closing(loader), torch.inference_mode(), precision.autocast():
            for batch in loader.run(jobs):
                if batch is not None:
                    found |= _of_videos(call(model, to_device(batch, precision.device, clip)), batch["index"])
                progress.step()
                self.alive(f"embedding videos, batch {progress.done} of {len(jobs)}")
        progress.close()
        return found, loader.quarantine.rows

    def _chosen(self, choose, gathered: list[tuple[dict, dict]]) -> object:
        quarantine = Quarantine(self.title, len(self.data), self.cfg.DATA.MAX_BAD_FRACTION)
        quarantine.rows = {index: row for _, bad in gathered for index, row in bad.items()}
        quarantine.check()
        found = {i: vector for of_rank, _ in gathered for i, vector in of_rank.items()}
        samples = np.array(sorted(found), np.int64)
        vectors = np.stack([found[i] for i in samples.tolist()]) if found else np.empty((0, 1), np.float32)
        return choose(vectors, samples)


def _of_videos(outputs: dict[str, torch.Tensor], index: torch.Tensor) -> dict[int, np.ndarray]:
    """Sample to its vector, from the outputs for its clips."""
    if missing := {"video_embed", "text_embed"} - outputs.keys():
        raise UserError(
            f"the model gives no {' and no '.join(sorted(missing))}, by which BATCHES.NAME retrieval finds neighbours;"
            " choose shuffled"
        )
    texts = outputs["text_embed"]
    texts = texts.mean(1) if texts.ndim == 3 else texts
    both = ((outputs["video_embed"] + texts) / 2).cpu().numpy()
    return {i: both[index.numpy() == i].mean(0) for i in dict.fromkeys(index.tolist())}
