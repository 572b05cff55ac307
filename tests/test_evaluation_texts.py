"""Scores of sets of texts: by hand on small ones, and what must move which."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from conftest import TEXTS
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from bartleby.errors import UserError
from bartleby.evaluation.generation import Evaluator, comparable_sets, mauve, mauve_installed
from bartleby.evaluation.judges import Embedder, LanguageModelJudge, load_language_model
from bartleby.evaluation.ngrams import (
    NgramIndex,
    diversity,
    length_distance,
    ngrams,
    repetition,
    unigram_entropy,
    words_of,
)


def words(*texts: str) -> list[list[str]]:
    return [words_of(text) for text in texts]


def test_words():
    assert words_of("Don't go, Anna!") == ["don't", "go", ",", "anna", "!"]
    assert words_of("  ") == []


def test_entropy_and_repetition_by_hand():
    assert unigram_entropy(words("a b", "c d")) == pytest.approx(np.log(4))
    assert unigram_entropy(words("a a a")) == 0
    assert repetition(words("a b a b", "c d e"), 2) == pytest.approx((1 / 3 + 0) / 2)
    assert repetition(words("a"), 2) == 0


def test_diversity_by_hand():
    # 2-grams: ab bc cd | ab bc ce, 4 of 6; 3-grams: abc bcd | abc bce, 3 of 4; 4-grams: 2 of 2
    assert diversity(words("a b c d", "a b c e")) == pytest.approx(4 / 6 * 3 / 4)


def test_memory_and_overlap_by_hand():
    training = NgramIndex(words("the old cat sat on the mat today", "a dog"))
    texts = words("the old cat sat on a dog", "nothing here is known", "a dog")
    assert training.memorised(texts) == pytest.approx(2 / 5)  # of 4 + 1 + 0 4-grams
    assert training.longest_overlaps(texts) == [5, 0, 2]
    assert training.memorised(words("a b", "")) == 0  # none is long enough
    assert NgramIndex([]).longest_overlaps(texts) == [0, 0, 0]


def test_the_index_finds_what_counting_finds():
    rng = random.Random(0)
    texts, training = (
        [[rng.choice("abcde") for _ in range(rng.randrange(12))] for _ in range(count)]
        for count in (20, 60)
    )
    index = NgramIndex(training)
    for n in (1, 3, 4, 6):
        known = {ngram for text in training for ngram in ngrams(text, n)}
        own = [ngram for text in texts for ngram in ngrams(text, n)]
        assert index.memorised(texts, n) == pytest.approx(np.mean([n in known for n in own]))
    for text, longest in zip(texts, index.longest_overlaps(texts), strict=True):
        for n, expected in ((longest, True), (longest + 1, False)):
            known = {ngram for other in training for ngram in ngrams(other, n)}
            if n:
                assert any(ngram in known for ngram in ngrams(text, n)) == expected


def test_length_distance_by_hand():
    assert length_distance(words("a b", "a b"), words("a b c", "a b c d")) == pytest.approx(1.5)
    assert length_distance(words("a b", "a"), words("c", "c d")) == 0


@pytest.fixture(scope="module")
def judge(tokenizer) -> LanguageModelJudge:
    """A tiny GPT-2 trained for a moment on the tests' texts."""
    import torch

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer(TEXTS[:64], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return LanguageModelJudge("tiny", model.eval(), tokenizer)


def test_likelihoods_are_the_models_own_and_do_not_depend_on_the_batch(judge):
    import torch

    reading = judge.read(TEXTS[:30])
    nats, tokens = reading.nats, reading.tokens
    alone = [judge.read([text]) for text in TEXTS[:30]]
    features = np.concatenate([own.features for own in alone])
    assert np.allclose(features, reading.features, atol=1e-4)
    alone = [own.nats[0] for own in alone]
    assert np.allclose(nats, alone, rtol=1e-4)
    ids = torch.tensor([judge.tokenizer(TEXTS[0])["input_ids"][:-1]])  # without the end
    with torch.inference_mode():
        loss = judge.model(input_ids=ids, labels=ids).loss
    assert nats[0] == pytest.approx(float(loss) * tokens[0], rel=1e-4)
    assert tokens[0] == ids.shape[1] - 1


def test_scores_tell_human_text_from_shuffled_repeated_and_copied_text(judge):
    held, human = TEXTS[::2], TEXTS[1::2]
    evaluator = Evaluator(held, training=TEXTS[::3], judge=judge)
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in human]
    scores = evaluator.score(human)
    assert evaluator.score(shuffled).perplexity > 2 * scores.perplexity
    assert evaluator.score(TEXTS[::3]).copied == 1 and scores.copied < 0.5
    collapsed = evaluator.score(["The dog likes tea."] * 20)
    assert collapsed.duplicates == pytest.approx(0.95) and collapsed.diversity < 1e-3
    assert evaluator.score(["", *human]).empty == pytest.approx(1 / (len(human) + 1))
    assert scores.mauve_embedder is None  # nobody was given to embed


def test_mauve_sees_the_order_of_words_on_the_judges_features(judge):
    """A set against itself is 1; the same words in another order are other features."""
    pytest.importorskip("mauve")
    evaluator = Evaluator(TEXTS, judge=judge)
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in TEXTS]
    assert evaluator.score(TEXTS).mauve > 0.99 > evaluator.score(shuffled).mauve


def test_repeats_give_mean_and_deviation(judge):
    evaluator = Evaluator(TEXTS, judge=judge)
    mean, deviation = evaluator.score_repeats([TEXTS[:40], TEXTS[40:80]])
    each = [evaluator.score(TEXTS[:40]).perplexity, evaluator.score(TEXTS[40:80]).perplexity]
    assert mean.perplexity == pytest.approx(np.mean(each))
    assert deviation.perplexity == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert evaluator.score_repeats([TEXTS[:40]]) == (evaluator.score(TEXTS[:40]), None)


def test_sets_are_made_comparable_and_what_is_left_out_is_said():
    said = []
    sets, human, held = comparable_sets([TEXTS[:10], TEXTS[:7]], TEXTS, say=said.append)
    assert [len(texts) for texts in sets] == [7, 7] and len(human) == len(held) == 7
    assert not set(human) & set(held)
    assert said == ["set 1: the first 7 of 10 texts are used"]
    with pytest.raises(UserError, match="the reference has 2 texts"):
        comparable_sets([TEXTS], TEXTS[:2])


def test_mauve_is_high_for_the_same_distribution_and_low_for_another():
    pytest.importorskip("mauve")
    rng = np.random.default_rng(0)
    here, again, far = rng.normal(size=(3, 200, 8)) + np.array([0, 0, 6])[:, None, None]
    assert mauve(here, again) > 0.9 > 0.1 > mauve(here, far)
    assert mauve(here, again, seed=2**63 - 1) > 0.9


def test_evaluate_on_the_command_line(cli, judge, tmp_path):
    folder = tmp_path / "judge"
    judge.model.save_pretrained(folder)
    judge.tokenizer.save_pretrained(folder)
    samples, reference = tmp_path / "samples.txt", tmp_path / "reference.txt"
    samples.write_text("\n".join([*TEXTS[:20], "", *TEXTS[20:30]]) + "\n")
    reference.write_text("\n".join(TEXTS[60:120]) + "\n")
    options = ("evaluate", samples, "--reference", reference, "--train", reference)
    result = cli(*options, "--judge", folder, "--json")
    assert result.exit_code == 0, result.stderr
    human, scored = map(json.loads, result.stdout.splitlines())
    assert (human["set"], scored["set"]) == ("human", "samples")
    assert scored["texts"] == 30 and scored["empty"] == pytest.approx(1 / 30)
    assert scored["judge"] == str(folder) and scored["mauve_embedder"] is None
    assert (scored["mauve"] is None) == (not mauve_installed())
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "The dog."}\n{"text": ""}\n')
    result = cli("evaluate", rows, "--reference", reference, "--json")
    assert json.loads(result.stdout.splitlines()[1])["empty"] == 0.5  # empty texts are not dropped
    table = cli("evaluate", samples, samples, "--reference", reference)
    assert max(map(len, table.stdout.splitlines())) <= 80
    missing = cli("evaluate", tmp_path / "none.txt", "--reference", reference)
    assert missing.exit_code == 1 and "no file at" in missing.stderr
    wrong = cli(*options, "--judge", tmp_path / "none.gguf")
    assert wrong.exit_code == 1 and "no file at" in wrong.stderr


def test_long_texts_are_cut_to_the_judges_window_and_that_is_said(judge, caplog):
    reading = judge.read(["word " * 500, "The dog."])
    assert reading.tokens[0] == 63 and np.isfinite(reading.nats).all()
    assert "reads the first 63 tokens of 1 long texts" in caplog.text


def test_a_judge_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_language_model(str(tmp_path))


def test_an_embedder_says_what_it_does_not_read(tokenizer, caplog):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    embedder = Embedder("a tiny BERT", BertModel(config).eval(), tokenizer)
    vectors = embedder.embed(["The dog is asleep.", "the sea " * 300])
    assert vectors.shape == (2, 16) and np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert "a tiny BERT reads the first 256 tokens of 1 long texts" in caplog.text
    caplog.clear()
    alone = embedder.embed(["The dog is asleep."])
    assert alone[0] == pytest.approx(vectors[0], abs=1e-5) and not caplog.text
