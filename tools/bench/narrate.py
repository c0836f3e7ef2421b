"""Times what a narrator writes: texts a second, from the tokens of clips on. Prints JSON.

python tools/bench/narrate.py --clips 1 --returns 10 --tokens 24
A random GPT-2 of the published small size, in turn: ours with its cache, ours without, and transformers' own GPT-2 with
cross-attention and its own sampling, all in one process, so that a slow moment of the machine hits all. No text may end
early.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from videorl.models.narrator import Narrator
from videorl.spec import Clip, Sampling, Spec

VIDEO = {"EMBED_DIM": 64, "DEPTH": 1, "NUM_HEADS": 1}  # is not timed
NUCLEUS = {"temperature": 0.7, "top_p": 0.95}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1, help="in a batch (default 1)")
    parser.add_argument("--returns", type=int, default=10, help="texts of a clip (default 10)")
    parser.add_argument("--tokens", type=int, default=24, help="of a text (default 24)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (default 12)")
    args = parser.parse_args()
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = Narrator(Spec(Clip(4, 1, 224, 224)), video=VIDEO, layers=args.layers).to(device).eval()
    stock = GPT2LMHeadModel(GPT2Config(n_layer=args.layers, add_cross_attention=True)).to(device).eval()
    stock.generation_config = GenerationConfig()
    tokens = torch.randn(args.clips, 256, 768, device=device)
    contestants = {
        "ours": lambda: write(ours, tokens, args),
        "uncached": lambda: write(ours, tokens, args, use_cache=False),
        "transformers": lambda: write_stock(stock, tokens, args),
    }
    seconds = {name: [] for name in contestants}
    with torch.inference_mode():
        for run in contestants.values():
            run()
        for _ in range(args.rounds):
            for name, run in contestants.items():
                seconds[name].append(timed(run, device))
    texts = args.clips * args.returns
    found = {name: round(texts / statistics.median(times), 3) for name, times in seconds.items()}
    ratios = {
        f"against_{name}": round(statistics.median(a / b for a, b in zip(times, seconds["ours"])), 3)
        for name, times in seconds.items()
        if name != "ours"
    }
    print(json.dumps({"texts_a_second": found, **ratios, "threads": torch.get_num_threads(), **vars(args)}))


def write(model: Narrator, tokens: Tensor, args, *, use_cache: bool = True) -> None:
    # An end that is no token of the vocabulary: every text has its full length.
    model.text_decoder.config.eos_token_id = model.text_decoder.config.vocab_size + 1
    sampling = Sampling(max_length=args.tokens, returns=args.returns, **NUCLEUS)
    model.write(model.seen(tokens), torch.arange(len(tokens), device=tokens.device), sampling, use_cache=use_cache)


def write_stock(model, tokens: Tensor, args) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=True, num_return_sequences=args.returns, max_length=args.tokens, top_k=0, pad_token_id=0, **NUCLEUS
    )
    start = torch.full((len(tokens), 1), 50256, device=tokens.device)
    model.generate(start, attention_mask=torch.ones_like(start), encoder_hidden_states=tokens, generation_config=config)


def timed(run, device: torch.device) -> float:
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
