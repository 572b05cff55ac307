"""How much batching by length saves, and how fast the pretraining loop is: one run, same model, ratios.

python benchmarks/encode.py TEXTS [--model NAME_OR_FOLDER] [--texts 2000] [--alone 200] [--steps 20]
    [--tokens-per-batch 2048] [--architecture nano] [--device cpu]

TEXTS: any file, folder or dataset that Bartleby reads; texts of mixed length are cut from it. The
one-by-one figures are taken on a sample, `--alone`, since they are slow, and given per text.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from machine import print_rates, seconds

from bartleby import silence_libraries
from bartleby.autoencoder import Autoencoder
from bartleby.bart import ARCHITECTURES, new_bart
from bartleby.bart_objective import Corruption, DenoisingBatches
from bartleby.batching import plan_epoch
from bartleby.corpus import load_corpus
from bartleby.latents import Latents
from bartleby.loading import load_autoencoder
from bartleby.optimisation import optimise
from bartleby.precision import autocast, network_dtype
from bartleby.pretraining import pretraining_loss


def mixed_texts(corpus: list[str], autoencoder: Autoencoder, count: int) -> list[str]:
    """Passages of 4 to 128 tokens, lengths evenly mixed: runs of words cut from the corpus."""
    rng = random.Random(0)
    words = " ".join(corpus[:5000]).split()
    texts = []
    while len(texts) < count:
        start = rng.randrange(len(words) - 100)
        texts.extend(autoencoder.split([" ".join(words[start : start + rng.randint(2, 80)])])[:1])
    return texts


def time_autoencoder(autoencoder: Autoencoder, texts: list[str], alone_texts: int) -> None:
    """Encoding and decoding, all together and one by one."""
    sample = texts[:alone_texts]
    autoencoder.decode(autoencoder.encode(texts[:64]))  # first calls are slower
    together = seconds(lambda: autoencoder.encode(texts)) / len(texts)
    alone = seconds(lambda: [autoencoder.encode([text]) for text in sample]) / len(sample)
    print(
        f"encode   together {together * 1e3:8.2f} ms   alone {alone * 1e3:8.2f} ms   x{alone / together:.1f}"
    )
    latents = autoencoder.encode(texts)
    one_by_one = [autoencoder.encode([text]) for text in sample]
    together = seconds(lambda: autoencoder.decode(latents)) / len(texts)
    alone = seconds(
        lambda: [autoencoder.decode(Latents(x.values, x.mask)) for x in one_by_one]
    ) / len(sample)
    print(
        f"decode   together {together * 1e3:8.2f} ms   alone {alone * 1e3:8.2f} ms   x{alone / together:.1f}"
    )


def plain_step(
    bart, optimizer, sequences: list[np.ndarray], maker: DenoisingBatches, step: int, dtype
) -> int:
    """The loop one would write first: unsorted padded batches, the model's own loss at every position."""
    batch = maker.make(sequences, seed=(0, step)).to(bart.device)
    with autocast(bart.device, dtype):
        logits = bart(
            input_ids=batch.source_ids,
            attention_mask=batch.source_mask,
            decoder_input_ids=batch.decoder_ids,
        ).logits
        labels = batch.labels.masked_fill(batch.label_mask == 0, -100)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(bart.parameters(), 1.0)
    optimizer.step()
    return batch.tokens


def time_pretraining(
    autoencoder: Autoencoder, texts: list[str], steps: int, architecture: str, budget: int
) -> None:
    """Tokens a second of our loop and of a plain one, in bfloat16 autocast and in float32."""
    tokenizer = autoencoder.tokenizer
    sequences = [np.array(ids) for ids in autoencoder.tokenize(texts, say=lambda message: None)]
    lengths = np.array([len(ids) for ids in sequences])
    maker = DenoisingBatches(tokenizer, Corruption(), window=autoencoder.window)
    device = autoencoder.device
    dtype = network_dtype(device)
    plan = plan_epoch(lengths, tokens_per_batch=budget, rng=np.random.default_rng(0))

    def ours() -> float:
        bart, optimizer = fresh()

        def train_step(step: int) -> int:
            batch = maker.make([sequences[i] for i in plan[step % len(plan)]], seed=(0, step))
            optimizer.zero_grad(set_to_none=True)
            loss = pretraining_loss(bart, batch.to(device), dtype)
            loss.backward()
            optimise(optimizer, loss, rate=1e-3, clip=1.0, step=0)
            return batch.tokens

        return tokens_a_second(train_step, steps)

    def plain(dtype: torch.dtype, steps: int) -> float:
        bart, optimizer = fresh()
        rng = np.random.default_rng(0)
        size = max(1, budget // int(lengths.max()))
        batches = [
            [sequences[i] for i in rng.choice(len(sequences), size)] for _ in range(steps + 1)
        ]
        return tokens_a_second(
            lambda step: plain_step(bart, optimizer, batches[step], maker, step, dtype), steps
        )

    def fresh():
        bart = new_bart(tokenizer, architecture=architecture, window=autoencoder.window, seed=0)
        bart.to(device).train()
        return bart, torch.optim.AdamW(bart.parameters(), lr=1e-3)

    rate = print_rates(device)
    mine = ours()
    half, full = plain(torch.bfloat16, max(2, steps // 5)), plain(torch.float32, steps)
    share = mine * flops_per_token(architecture, len(tokenizer)) / rate
    name = str(dtype).removeprefix("torch.")
    print(
        f"pretrain ours              {mine:9,.0f} tokens/s   {share:.0%} of the {name} product rate"
    )
    print(f"         plain, autocast   {half:9,.0f} tokens/s   ours x{mine / half:.1f}")
    print(f"         plain, float32    {full:9,.0f} tokens/s   ours x{mine / full:.1f}")


def tokens_a_second(train_step: Callable[[int], int], steps: int) -> float:
    """Of `steps` steps, after one more that is not timed; train_step: number of the step -> its tokens."""
    train_step(steps)
    tokens: list[int] = []
    took = seconds(lambda: tokens.extend(train_step(step) for step in range(steps)))
    return sum(tokens) / took


def flops_per_token(architecture: str, vocabulary: int) -> int:
    """6 x the weights of matrix products a target token meets; attention's own products are left out."""
    sizes = ARCHITECTURES[architecture]
    width, ffn = sizes["width"], sizes["ffn"]
    encoder = sizes["encoder_layers"] * (4 * width**2 + 2 * width * ffn)
    decoder = sizes["decoder_layers"] * (8 * width**2 + 2 * width * ffn)
    return 6 * (encoder + decoder + width * vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--model")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--alone", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--architecture", default="nano", choices=sorted(ARCHITECTURES))
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--device")
    options = parser.parse_args()
    silence_libraries()
    autoencoder = load_autoencoder(options.model, device=options.device)
    texts = mixed_texts(load_corpus(options.corpus).split("train"), autoencoder, options.texts)
    time_autoencoder(autoencoder, texts, options.alone)
    time_pretraining(
        autoencoder, texts, options.steps, options.architecture, options.tokens_per_batch
    )


if __name__ == "__main__":
    main()
