"""A narrator at work: clips in, texts with their log-likelihoods out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videorl.data.text import CausalTokenizer
from videorl.engine.step import Precision, to_device
from videorl.features.encoder import Encoder
from videorl.registry import UserError
from videorl.spec import Clip, Sampling


class Captioner(Encoder):
    """A narrator in evaluation, with its tokenizer and how it draws.

    Raises `UserError` for a model that writes no texts, a tokenizer of another one, and texts longer than its context.
    """

    def __init__(self, tokenize, sampling: Sampling, model: nn.Module, name: str, clip: Clip, precision: Precision):
        if not hasattr(model, "generate"):
            raise UserError(f"{name} writes no texts: give the config of a narrator")
        if not isinstance(tokenize, CausalTokenizer):
            raise UserError("TEXT.TOKENIZER: expected that of a language model, such as GPT-2's; name the narrator's")
        vocabulary = model.text_decoder.config.vocab_size
        if (tokenize.start, tokenize.end) != (model.start, model.end) or tokenize.size > vocabulary:
            raise UserError(
                f"TEXT.TOKENIZER has {tokenize.size} tokens, {tokenize.start} is start and {tokenize.end} end; the"
                f" narrator has {vocabulary}, {model.start} and {model.end}: name the one it was trained with"
            )
        model.check_length(sampling.max_length, "MAX_LENGTH")
        super().__init__(model, name, clip, precision)
        self.tokenize, self.sampling = tokenize, sampling

    def captions(self, video: Tensor, numbers: Sequence[int]) -> list[dict]:
        """Of each clip, uint8 [B, T, 3, S, S]: `texts`, and of each its `log_likelihoods` and number of `tokens`.

        Both count the end of the text and not its start. What is drawn for a clip depends on its number.
        """
        with torch.inference_mode(), self.precision.autocast():
            clips = to_device({"video": video}, self.precision.device, self.clip)["video"]
            index = torch.tensor(numbers, device=self.precision.device)
            ids, likely = self.model.generate(clips, index, self.sampling)
        tokens = (ids >= 0).sum(2) - 1
        return [
            {
                "texts": [self.tokenize.decode(text) for text in texts],
                "log_likelihoods": [round(value, 4) for value in values],
                "tokens": counts,
            }
            for texts, values, counts in zip(ids.tolist(), likely.tolist(), tokens.tolist())
        ]
