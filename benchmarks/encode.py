"""How much batching by length saves, and how fast the pretraining loop is: one run, same model, ratios.

python benchmarks/encode.py TEXTS [--model NAME_OR_FOLDER] [--texts 2000] [--steps 20]
    [--architecture nano]

TEXTS: any file, folder or dataset that Bartleby reads; texts of mixed length are cut from it. The
one-by-one figures are taken on a sample, since they are slow, and given per text.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from machine import matrix_rate, seconds

from bartleby import silence_libraries
from bartleby.autoencoder import Autoencoder
from bartleby.bart import ARCHITECTURES, new_bart
from bartleby.bart_objective import Corruption, DenoisingBatch, DenoisingBatches
from bartleby.batching import plan_epoch
from bartleby.corpus import load_corpus
from bartleby.latents import Latents
from bartleby.loading import load_autoencoder
from bartleby.optimisation import optimise
from bartleby.precision import autocast, network_dtype
from bartleby.pretraining import pretraining_loss

ALONE = 200  # texts that are encoded and decoded one by one


def mixed_texts(corpus: list[str], autoencoder: Autoencoder, count: int) -> list[str]:
    """Passages of 4 to 128 tokens, lengths evenly mixed: runs of words cut from the corpus."""
    rng = random.Random(0)
    words = " ".join(corpus[:5000]).split()
    texts = []
    while len(texts) < count:
        start = rng.randrange(len(words) - 100)
        texts.extend(autoencoder.split([" ".join(words[start : start + rng.randint(2, 80)])])[:1])
    return texts


def time_autoencoder(autoencoder: Autoencoder, texts: list[str]) -> None:
    """Encoding and decoding, all together and one by one."""
    sample = texts[:ALONE]
    autoencoder.encode(texts[:64])  # first calls are slower
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
    batch = maker.make(sequences, seed=(0, step))
    with autocast("cpu", dtype):
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
    autoencoder: Autoencoder, texts: list[str], steps: int, architecture: str
) -> None:
    """Tokens a second of our loop and of a plain one, in bfloat16 autocast and in float32."""
    tokenizer = autoencoder.tokenizer
    sequences = [np.array(ids) for ids in autoencoder.tokenize(texts, say=lambda message: None)]
    lengths = np.array([len(ids) for ids in sequences])
    maker = DenoisingBatches(tokenizer, Corruption(), window=autoencoder.window)
    budget = 2048
    plan = plan_epoch(lengths, tokens_per_batch=budget, rng=np.random.default_rng(0))

    def ours() -> float:
        bart, optimizer = fresh()
        chosen = [
            maker.make([sequences[i] for i in plan[s % len(plan)]], seed=(0, s))
            for s in range(steps + 1)
        ]

        def train_step(batch: DenoisingBatch) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = pretraining_loss(bart, batch, network_dtype("cpu"))
            loss.backward()
            optimise(optimizer, loss, rate=1e-3, clip=1.0, step=0)

        train_step(chosen[-1])
        took = seconds(lambda: [train_step(batch) for batch in chosen[:steps]])
        return sum(batch.tokens for batch in chosen[:steps]) / took

    def plain(dtype: torch.dtype, count: int) -> float:
        bart, optimizer = fresh()
        rng = np.random.default_rng(0)
        size = max(1, budget // int(lengths.max()))
        batches = [
            [sequences[i] for i in rng.choice(len(sequences), size)] for _ in range(count + 1)
        ]
        plain_step(bart, optimizer, batches[-1], maker, count, dtype)
        start, tokens = time.perf_counter(), 0
        for step, batch in enumerate(batches[:count]):
            tokens += plain_step(bart, optimizer, batch, maker, step, dtype)
        return tokens / (time.perf_counter() - start)

    def fresh():
        bart = new_bart(
            tokenizer, architecture=architecture, window=autoencoder.window, seed=0
        ).train()
        return bart, torch.optim.AdamW(bart.parameters(), lr=1e-3)

    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in rates.items():
        print(f"matrix products in {str(dtype)[6:]}: {rate / 1e12:.3f} TFLOP/s")
    mine = ours()
    bf16, fp32 = plain(torch.bfloat16, max(2, steps // 5)), plain(torch.float32, steps)
    flops = flops_per_token(architecture, len(tokenizer))
    share = mine * flops / rates[network_dtype("cpu")]
    print(
        f"pretrain ours              {mine:8,.0f} tokens/s   {share:.0%} of the {network_dtype('cpu')} product rate"
    )
    print(f"         plain, autocast   {bf16:8,.0f} tokens/s   ours x{mine / bf16:.1f}")
    print(f"         plain, float32    {fp32:8,.0f} tokens/s   ours x{mine / fp32:.1f}")


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
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--architecture", default="nano", choices=sorted(ARCHITECTURES))
    options = parser.parse_args()
    silence_libraries()
    autoencoder = load_autoencoder(options.model)
    texts = mixed_texts(load_corpus(options.corpus).split("train"), autoencoder, options.texts)
    time_autoencoder(autoencoder, texts)
    time_pretraining(autoencoder, texts, options.steps, options.architecture)


if __name__ == "__main__":
    main()
