"""How well the words of a text and the frames of a clip fit, from the hidden states of each (Norton, ICLR 2024)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 2**22  # similarities of a word and a frame in memory; of 1,024 clips as published all are 140 times as many
BLOCK = 2**6  # texts, and clips, that are taken together if so many similarities fit


def soft_maxima(words: Tensor, word_mask: Tensor, frames: Tensor, frame_mask: Tensor, alpha: float):
    """Two tables [N, M] for texts of words [N, T, D] and clips of frames [M, V, D], with masks [N, T] and [M, V] bool.

    The first: alpha * log of the sum, over the frames of a clip, of exp(cosine / alpha), summed over the words of a
    text and divided by their number. The second: the same with words and frames exchanged. As published, a place that
    the mask leaves out counts in the outer sum, with cosines of 0, and not in the inner one.

    All N * M * T * V cosines are never there at once: a block of them at a time is made, and made again in the backward
    pass. A text or clip whose mask is empty has no value (nan).
    """
    word_places, word_counts = _places(word_mask)
    frame_places, frame_counts = _places(frame_mask)
    by_words, by_frames = _SoftMaxima.apply(words, word_places, word_counts, frames, frame_places, frame_counts, alpha)
    lost_words, lost_frames = word_mask.shape[1] - word_counts, frame_mask.shape[1] - frame_counts
    by_words = (by_words + lost_words[:, None] * frame_counts.log()) * (alpha / word_counts[:, None])
    by_frames = (by_frames + lost_frames * word_counts[:, None].log()) * (alpha / frame_counts)
    back = word_places[0][:, 0].argsort()[:, None], frame_places[0][:, 0].argsort()
    return by_words[back], by_frames[back]


def _places(mask: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Row and place of the tokens that are there, rows by falling number of them, in front; and these numbers."""
    counts = mask.sum(1)
    order = counts.argsort(descending=True, stable=True)
    counts = counts[order]
    return (order[:, None], (~mask[order]).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts[0])]), counts


class _SoftMaxima(torch.autograd.Function):
    """Sums of logarithms [N, M] over the words, and over the frames, that are there; without the factor alpha.

    Tokens of length 1, in order, are made again in the backward pass: they are as large as the inputs.
    """

    @staticmethod
    def forward(ctx, words, word_places, word_counts, frames, frame_places, frame_counts, alpha: float):
        ctx.save_for_backward(words, frames, *word_places, *frame_places, word_counts, frame_counts)
        ctx.alpha = alpha
        words, frames = F.normalize(words[word_places], dim=2), F.normalize(frames[frame_places], dim=2)
        by_words, by_frames = (words.new_empty(len(words), len(frames)) for _ in range(2))
        for rows, columns in _blocks(word_counts, frame_counts):
            block = _Block(words, word_counts, frames, frame_counts, rows, columns, alpha)
            by_words[rows, columns] = block.over_frames.log().sum(1)
            by_frames[rows, columns] = block.over_words.log().sum(2)
        return by_words, by_frames

    @staticmethod
    def backward(ctx, by_words: Tensor, by_frames: Tensor):
        given_words, given_frames, *places, word_counts, frame_counts = ctx.saved_tensors
        word_places, frame_places = tuple(places[:2]), tuple(places[2:])
        words, frames = F.normalize(given_words[word_places], dim=2), F.normalize(given_frames[frame_places], dim=2)
        of_words, of_frames = torch.zeros_like(words), torch.zeros_like(frames)
        for rows, columns in _blocks(word_counts, frame_counts):
            block = _Block(words, word_counts, frames, frame_counts, rows, columns, ctx.alpha)
            factor = (by_words[rows, None, columns] / block.over_frames)[..., None]
            factor = factor + (by_frames[rows, columns, None] / block.over_words)[:, None]
            gradient = factor.mul_(block.exponentials).flatten(2).flatten(0, 1)  # [A * T, B * V]
            of_words[rows, : block.longest[0]] += (gradient @ block.frames).view_as(block.words)
            of_frames[columns, : block.longest[1]] += (gradient.T @ block.words.flatten(0, 1)).unflatten(
                0, (-1, block.longest[1])
            )
        del block, factor, gradient
        to_words = _through_normalize(given_words, words, of_words.div_(ctx.alpha), word_places)
        del words, of_words
        to_frames = _through_normalize(given_frames, frames, of_frames.div_(ctx.alpha), frame_places)
        return to_words, None, None, to_frames, None, None, None


def _through_normalize(tokens: Tensor, units: Tensor, gradient: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient to tokens, from that to `units`, which are tokens[places] with length 1; both are overwritten."""
    along = (units * gradient).sum(2, keepdim=True)
    gradient.sub_(units.mul_(along))
    lengths = torch.linalg.vector_norm(tokens, dim=2)[places].clamp(min=1e-12)
    return torch.zeros_like(tokens).index_put_(places, gradient.div_(lengths[..., None]))


class _Block:
    """exp(cosine / alpha) of some texts and clips, [A, T, B, V], 0 where there is no word or frame, and its sums.

    `over_frames` [A, T, B] and `over_words` [A, B, V] are 1 where there is no word, or frame, that they would be of.
    """

    def __init__(self, words, word_counts, frames, frame_counts, rows: slice, columns: slice, alpha: float):
        word_counts, frame_counts = word_counts[rows], frame_counts[columns]
        self.longest = int(word_counts[0]), int(frame_counts[0])
        self.words = words[rows, : self.longest[0]]
        self.frames = frames[columns, : self.longest[1]].flatten(0, 1)
        no_word, no_frame = (
            torch.arange(longest, device=words.device) >= counts[:, None]
            for longest, counts in zip(self.longest, (word_counts, frame_counts))
        )
        nothing = torch.where(no_frame.flatten(), -torch.inf, 0.0).to(words.dtype)
        scores = torch.addmm(nothing, self.words.flatten(0, 1), self.frames.T, alpha=1 / alpha)
        scores[no_word.flatten()] = -torch.inf
        shape = (*no_word.shape, *no_frame.shape)
        self.exponentials = scores.exp_().view(shape)
        self.over_frames = self.exponentials.sum(3).masked_fill_(no_word[..., None], 1.0)
        self.over_words = self.exponentials.sum(1).masked_fill_(no_frame, 1.0)


def _blocks(word_counts: Tensor, frame_counts: Tensor) -> Iterator[tuple[slice, slice]]:
    """Texts and clips of at most AT_ONCE similarities, at least one of each."""
    longest = int(word_counts[0]) * int(frame_counts[0])
    size = max(1, min(BLOCK, int((AT_ONCE / max(longest, 1)) ** 0.5)))
    for row in range(0, len(word_counts), size):
        for column in range(0, len(frame_counts), size):
            yield slice(row, row + size), slice(column, column + size)
