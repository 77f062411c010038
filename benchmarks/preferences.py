"""Learned reward models against human judgements that they never saw.

    python -m benchmarks.preferences summeval --data ../shared/data --json benchmarks/results/preferences.json
    python -m benchmarks.preferences wmt --data ../shared/data --json benchmarks/results/preferences.json

``summeval``: ratings of 16 systems' summaries of 100 articles, cross-validated over articles; Spearman of the score
with human relevance and coherence, beside ROUGE-L's best over 11 references, which the model does not see. The control
holds out systems as well as articles: what is left there is not the style of a system that was learned from.
``wmt``: pairs of translations, split by source; pairwise accuracy, with and without sight of the reference.

There are too few judgements to learn English from. So a small transformer from scratch reads each text as a sequence
of symbols, one a word, that say how the word relates to what stands beside it (`overlap_view`, `fluency_view`).
Intervals are bootstraps over articles or sources; differences are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rouge_score import rouge_scorer

from benchmarks.measure import circumstances
from reward_models.preference import Comparison, FitConfig, Rating, RewardModel, fit
from reward_models.preference.calibration import calibration
from reward_models.preference.report import mean_interval, rank_correlation
from reward_models.preference.source import small_llama
from textgen_env import TextTokenizer, word_tokenizer
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.records import read_jsonl

FOLDS = 5
MODEL = {"layers": 2, "width": 32, "heads": 4, "max_length": 192}
SUMMEVAL = FitConfig(epochs=6, learning_rate=3e-3, weight_decay=0.1, batch_size=32)
WMT = FitConfig(epochs=2, learning_rate=2e-3, weight_decay=0.1, batch_size=64)

Array = npt.NDArray[np.float64]


# ---------------------------------------------------------------- what the model reads


def overlap_view(document: str, text: str) -> str:
    """Each word of a text by where it stands in the document: a symbol a word.

    The text is covered from its left by the longest fragments of the document (Grusky, Naaman & Artzi 2018, figure
    1). A fragment's first word says which tenth of the document it is from, and whether it begins a sentence there;
    "+" goes on, "new" is not in the document, "again" ends three words that were there before.
    """
    source, words = document.lower().split(), text.lower().split()
    places: dict[str, list[int]] = {}
    for index, word in enumerate(source):
        places.setdefault(word, []).append(index)
    symbols: list[str] = []
    seen: set[tuple[str, ...]] = set()
    while len(symbols) < len(words):
        start = len(symbols)
        length, before = max(
            ((_shared(words, start, source, at), -at) for at in places.get(words[start], ())), default=(0, 0)
        )
        place = -before  # of equally long fragments the first
        for index in range(start, start + max(1, length)):
            three = tuple(words[max(0, index - 2) : index + 1])
            if len(three) == 3 and three in seen:
                symbols.append("again")
            elif index > start or (not length and words[index] in ".,!?"):
                symbols.append("," if words[index] == "," else "." if words[index] in ".!?" else "+")
            elif not length:
                symbols.append("new")
            else:
                opens = place == 0 or source[place - 1] in ".!?"
                symbols.append(f"{'head' if opens else 'mid'}{10 * place // len(source)}")
            seen.add(three)
    return " ".join(symbols)


def _shared(words: Sequence[str], start: int, source: Sequence[str], at: int) -> int:
    length = 0
    while start + length < len(words) and at + length < len(source) and words[start + length] == source[at + length]:
        length += 1
    return length


def fluency_view(source: str, text: str, ranks: Mapping[str, int], pairs: Collection[tuple[str, str]]) -> str:
    """Each word of a translation by how common it is, and whether it is known to follow the one before.

    Args:
        source: the original; only its length, numbers and verbatim words are used.
        text: the translation.
        ranks: word -> rank by frequency in a corpus.
        pairs: neighbouring words in that corpus.
    """
    words, original = text.lower().split(), set(source.lower().split())
    symbols = [f"ratio{min(9, 4 * len(words) // max(1, len(source.split())))}"]
    seen: set[tuple[str, str]] = set()
    for before, word in zip(["", *words], words, strict=False):
        known = "" if (before, word) in pairs else "~"
        if (before, word) in seen:
            symbols.append("again")
        elif any(letter.isdigit() for letter in word):
            symbols.append("number" if word in original else "number!")
        elif word in original:
            symbols.append("copied")
        else:
            symbols.append(f"{known}{min(5, int(np.log10(ranks[word] + 1) * 2)) if word in ranks else 'rare'}")
        seen.add((before, word))
    return " ".join(symbols)


def reader(texts: Sequence[str]) -> Callable[[int], RewardModel]:
    """Makes a fresh model of the symbols in ``texts`` for a seed."""
    tokenizer = word_tokenizer(sorted({word for text in texts for word in text.split()}))
    config = small_llama(TextTokenizer(tokenizer), **MODEL)
    return lambda seed: RewardModel(config, tokenizer, seed=seed, device="cpu", batch_size=64)


# ---------------------------------------------------------------- SummEval


def summeval(data: Path, seeds: int) -> dict[str, Any]:
    """Spearman with human relevance and coherence, of the model, ROUGE-L and the length."""
    documents = {record["doc_id"]: record for _, record in read_jsonl(data / "summeval" / "documents.jsonl")}
    rated = [record for _, record in read_jsonl(data / "summeval" / "ratings.jsonl")]
    owners = [record["doc_id"] for record in rated]
    texts = [overlap_view(documents[record["doc_id"]]["document"], record["candidate"]) for record in rated]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    rouge = [
        max(
            scorer.score(reference, record["candidate"])["rougeL"].fmeasure
            for reference in documents[record["doc_id"]]["references"]
        )
        for record in rated
    ]
    length = [len(record["candidate"].split()) for record in rated]
    make = reader(texts)
    folds = _folds(owners, FOLDS)
    halves, systems = _folds(owners, 2), _folds([record["system"] for record in rated], 4)
    found: dict[str, Any] = {}
    for quality in ("relevance", "coherence"):
        human = [float(record[quality]) for record in rated]
        judgements = [Rating("", text, rating) for text, rating in zip(texts, human, strict=True)]
        apart = [(folds != fold, folds == fold) for fold in range(FOLDS)]
        model = _cross_validated(make, judgements, apart, range(seeds))
        both = [
            ((halves != half) & (systems != group), (halves == half) & (systems == group))
            for half in range(2)
            for group in range(4)
        ]
        strangers = _cross_validated(make, judgements, both, [0])
        found[quality] = {
            "model, new articles": _agreement(model, human, owners, against=rouge),
            "model, new articles and new systems": _agreement(strangers, human, owners, against=rouge),
            "best-of-11 ROUGE-L": _agreement(rouge, human, owners),
            "number of words": _agreement(length, human, owners, against=rouge),
        }
    return found


def _folds(names: Sequence[str], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The fold of each, the same for equal names, as many names in each."""
    distinct = sorted(set(names))
    place = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)), strict=True))
    return np.array([place[name] % count for name in names])


def _cross_validated(
    make: Callable[[int], RewardModel],
    judgements: Sequence[Rating],
    splits: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]],
    seeds: Sequence[int] | range,
) -> Array:
    """The score of each text by models that did not learn from its fold; mean over seeds."""
    scores = np.zeros(len(judgements))
    for learned, held_out in splits:
        for seed in seeds:
            model = make(seed)
            fit(model, [judgements[i] for i in np.flatnonzero(learned)], (), SUMMEVAL, seed=seed)
            texts = [judgements[i].completion for i in np.flatnonzero(held_out)]
            scores[held_out] += np.array(model(texts, [""] * len(texts))) / len(seeds)
        print(".", end="", file=sys.stderr, flush=True)
    return scores


def _agreement(
    scores: Sequence[float] | Array,
    human: Sequence[float],
    owners: Sequence[str],
    against: Sequence[float] | None = None,
    draws: int = 1000,
) -> dict[str, Any]:
    """Spearman over all texts with its 95 % interval over articles, and the paired gain over other scores."""
    _, owner_N = np.unique(owners, return_inverse=True)
    rows = [np.flatnonzero(owner_N == owner) for owner in range(owner_N.max() + 1)]
    mine, theirs, truth = np.asarray(scores), None if against is None else np.asarray(against), np.asarray(human)
    generator = np.random.default_rng(0)
    drawn, gains = [], []
    for _ in range(draws):
        some = np.concatenate([rows[index] for index in generator.integers(len(rows), size=len(rows))])
        drawn.append(rank_correlation(mine[some], truth[some]) or 0.0)
        if theirs is not None:
            gains.append(drawn[-1] - (rank_correlation(theirs[some], truth[some]) or 0.0))
    within = [rank_correlation(mine[own], truth[own]) or 0.0 for own in rows]
    found: dict[str, Any] = {
        "spearman": rank_correlation(mine, truth),
        "interval": np.quantile(drawn, [0.025, 0.975]).tolist(),
        "spearman_within_an_article": float(np.mean(within)),
    }
    if theirs is not None:
        found["gain_over_rouge"] = found["spearman"] - (rank_correlation(theirs, truth) or 0.0)
        found["gain_interval"] = np.quantile(gains, [0.025, 0.975]).tolist()
    return found


# ---------------------------------------------------------------- WMT 2019


def wmt(data: Path, seeds: int) -> dict[str, Any]:
    """Share of held-out pairs in which the translation that people preferred has the higher score."""
    pairs = [
        {**record, "language": language}
        for language in ("kk", "gu", "lt")
        for _, record in read_jsonl(data / "wmt19_preference" / f"{language}-en.jsonl")
    ]
    held_out = np.array([split_of(pair["source"], (0.8, 0.2, 0.0)) != "train" for pair in pairs])
    corpus = {pair["reference"].lower() for pair, held in zip(pairs, held_out, strict=True) if not held}
    sentences = [sentence.split() for sentence in sorted(corpus)]
    counted = Counter(word for words in sentences for word in words)
    ranks = {word: rank for rank, (word, _) in enumerate(counted.most_common())}
    neighbours = {pair for words in sentences for pair in zip(["", *words], words, strict=False)}
    views: dict[str, Callable[[Any, str], str]] = {
        "model, without reference": lambda pair, text: fluency_view(pair["source"], text, ranks, neighbours),
        # Both ways: what of the text is in the reference, and what of the reference is in the text.
        "model, with the reference": lambda pair, text: (
            f"{overlap_view(pair['reference'], text)} | {overlap_view(text, pair['reference'])}"
        ),
    }
    test = [pair for pair, held in zip(pairs, held_out, strict=True) if held]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    rouge = np.array(
        [
            [scorer.score(pair["reference"], pair[side])["rougeL"].fmeasure for side in ("chosen", "rejected")]
            for pair in test
        ]
    )
    found = {"ROUGE-L with the reference": _accuracy(rouge[:, 0] - rouge[:, 1], test)}
    for name, view in views.items():
        seen = [Comparison(p["language"], view(p, p["chosen"]), view(p, p["rejected"])) for p in pairs]
        make = reader([text for item in seen for text in (item.prompt, *item.completions)])
        learn = [item for item, held in zip(seen, held_out, strict=True) if not held]
        judged = [item for item, held in zip(seen, held_out, strict=True) if held]
        differences = np.zeros(len(judged))
        for seed in range(seeds):
            model = make(seed)
            fit(model, learn, (), WMT, seed=seed)
            prompts = [item.prompt for item in judged]
            chosen, rejected = [item.chosen for item in judged], [item.rejected for item in judged]
            differences += (model.logits(prompts, chosen) - model.logits(prompts, rejected)).numpy() / seeds
            print(".", end="", file=sys.stderr, flush=True)
        stated = 1 / (1 + np.exp(-np.abs(differences)))
        found[name] = _accuracy(differences, test)
        found[name]["ece"] = calibration(stated, differences > 0, low=0.5).ece
    return found


def _accuracy(differences: Array, test: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    hits = np.where(differences == 0, 0.5, differences > 0)
    languages = np.array([pair["language"] for pair in test])
    return {
        "accuracy": float(hits.mean()),
        "interval": mean_interval(hits, [pair["source"] for pair in test]),
        "pairs": len(hits),
        "sources": len({pair["source"] for pair in test}),
        **{language: float(hits[languages == language].mean()) for language in sorted(set(languages))},
    }


EXPERIMENTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"summeval": summeval, "wmt": wmt}


def main(argv: Sequence[str] | None = None) -> None:
    """Run an experiment, print its figures, and put them into the JSON file beside those of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--data", type=Path, required=True, help="the folder that has summeval and wmt19_preference")
    parser.add_argument("--seeds", type=int, default=1, help="models whose scores are averaged")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.process_time()
    figures = EXPERIMENTS[arguments.experiment](arguments.data, arguments.seeds)
    result = {
        "figures": figures,
        "seeds": arguments.seeds,
        "cpu_seconds": round(time.process_time() - began, 1),
        "circumstances": circumstances("cpu"),
    }
    print("\n" + json.dumps(figures, indent=2))
    if arguments.json:
        written = json.loads(arguments.json.read_text("utf-8")) if arguments.json.exists() else {}
        written[arguments.experiment] = result
        arguments.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
