"""What scoring costs, next to the bare library or model: `python -m benchmarks.rewards`.

News texts of the built-in task, one process, one torch thread. Contenders take turns in the same run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

if __package__ in (None, ""):  # run as a file: the repository's root is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import speed_ratio, take_turns
from benchmarks.table import Row, measure, one_thread, publish
from reward_models import Cached, Classifier, Coherence, Factual, Fluency, Rouge
from textgen_env import Completion, Prompt, TextTokenizer, resolve_reward, train_tokenizer
from textgen_env.reward import Reward
from textgen_env.tasks.news_summary import news_summary


@dataclass(frozen=True)
class Sizes:
    """How much is scored, and by how large a model."""

    texts: int = 1024
    model_texts: int = 256
    layers: int = 4
    width: int = 128
    batch_size: int = 32


Scorer: TypeAlias = Callable[..., list[float]]
Bare: TypeAlias = Callable[[], list[float]]

QUICK = Sizes(texts=16, model_texts=8, layers=1, width=16, batch_size=4)


@dataclass
class Benchmark:
    """The rows of the table."""

    sizes: Sizes
    repeats: int
    device: str = "cpu"

    def sections(self) -> Iterator[list[Row]]:
        """Every section in turn, as it is measured."""
        yield self.rouge("headlines, 9 words", self.headlines)
        yield self.rouge("articles, 60 words", self.articles)
        yield self.mixture()
        yield self.cache()
        yield self.against_bare("Classifier, BERT", *self.classifier())
        yield self.against_bare("Fluency, GPT-2", *self.likelihood())

    # ---------------------------------------------------------------- texts

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Articles with their headlines and facts."""
        return list(news_summary(num_articles=2 * self.sizes.texts, seed=0).prompts()[: self.sizes.texts])

    @cached_property
    def headlines(self) -> list[Completion]:
        """Each article answered with another one's headline."""
        others = self.prompts[1:] + self.prompts[:1]
        return [
            Completion(prompt, other.references[0], (5, 6, 2), "eos")
            for prompt, other in zip(self.prompts, others, strict=True)
        ]

    @cached_property
    def articles(self) -> list[Completion]:
        """Longer texts: the next article, against this one."""
        return [
            Completion(replace(prompt, references=(prompt.text,)), other.prompt.text, (5, 6, 2), "eos")
            for prompt, other in zip(self.prompts, self.headlines[1:] + self.headlines[:1], strict=True)
        ]

    @cached_property
    def model_texts(self) -> list[str]:
        """Articles for the models, of many lengths."""
        texts = [prompt.text for prompt in self.prompts[: self.sizes.model_texts]]
        return [text[: 60 + 20 * (index % 12)] for index, text in enumerate(texts)]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """A tokenizer of their words."""
        return TextTokenizer(train_tokenizer([prompt.text for prompt in self.prompts], 1024))

    # ---------------------------------------------------------------- words

    def rouge(self, name: str, completions: list[Completion]) -> list[Row]:
        """ROUGE-L against a plain loop over the library's scorer."""
        texts = [item.text for item in completions]
        references = [list(item.prompt.references) for item in completions]
        library, ours = RougeScorer(["rougeL"]), Rouge("L")
        reward = resolve_reward(ours)

        def bare() -> int:
            pairs = zip(texts, references, strict=True)
            scores = [max(library.score(one, text)["rougeL"].fmeasure for one in targets) for text, targets in pairs]
            return len(scores)

        timings = self._take_turns(
            {
                "called": lambda: len(ours(completions=texts, references=references)),
                "through the environment": lambda: len(reward.score(completions).totals),
                "bare": bare,
            }
        )
        return [
            self._row(f"ROUGE-L of {name}, {how}", timings[how], timings["bare"], "a loop over rouge-score", "<= 1.2")
            for how in ("called", "through the environment")
        ]

    def mixture(self) -> list[Row]:
        """The classic mixture against its three parts, asked one after the other."""
        mixed = 0.6 * Rouge("L") + 0.3 * Coherence() + 0.1 * Factual()
        parts = [Reward(Rouge("L")), Reward(Coherence()), Reward(Factual())]

        def apart() -> int:
            for part in parts:
                part.judge(self.headlines)
            return len(self.headlines)

        timings = self._take_turns({"mixed": lambda: len(mixed.score(self.headlines).totals), "apart": apart})
        return [self._row(f"{mixed!r}", timings["mixed"], timings["apart"], "its parts, one by one", "<= 1.1")]

    def cache(self) -> list[Row]:
        """Texts that are known already, against asking ROUGE-L again: what a scorer must cost to be worth a cache."""
        cached, plain = Cached(Rouge("L")), Reward(Rouge("L"))
        timings = self._take_turns(
            {
                "hits": lambda: len(cached.score(self.articles).totals),
                "asked": lambda: len(plain.score(self.articles).totals),
            }
        )
        return [self._row("Cached, all hits, articles", timings["hits"], timings["asked"], "ROUGE-L itself", "")]

    # ---------------------------------------------------------------- models

    def classifier(self) -> tuple[Scorer, Bare]:
        """A classifier, and the same scores by hand."""
        config = BertConfig(
            vocab_size=self.tokenizer.vocab_size,
            hidden_size=self.sizes.width,
            num_hidden_layers=self.sizes.layers,
            num_attention_heads=max(1, self.sizes.width // 32),
            intermediate_size=4 * self.sizes.width,
            pad_token_id=self.tokenizer.hf.pad_token_id,
        )
        model = BertForSequenceClassification(config).eval().to(self.device)
        scorer = Classifier(model, label=1, tokenizer=self.tokenizer.hf, batch_size=self.sizes.batch_size)

        def read(inputs: dict[str, torch.Tensor]) -> list[float]:
            scores: list[float] = model(**inputs).logits.softmax(-1)[:, 1].tolist()
            return scores

        return scorer, lambda: self._by_hand(read, [])

    def likelihood(self) -> tuple[Scorer, Bare]:
        """A language model's mean log-likelihood, and the same by hand, after a start token."""
        config = GPT2Config(
            vocab_size=self.tokenizer.vocab_size,
            n_embd=self.sizes.width,
            n_layer=self.sizes.layers,
            n_head=max(1, self.sizes.width // 32),
            n_positions=512,
            bos_token_id=self.tokenizer.eos_ids[0],
            eos_token_id=self.tokenizer.eos_ids[0],
        )
        model = GPT2LMHeadModel(config).eval().to(self.device)
        scorer = Fluency(model, tokenizer=self.tokenizer.hf, batch_size=self.sizes.batch_size)

        def read(inputs: dict[str, torch.Tensor]) -> list[float]:
            log_probs_BTV = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
            chosen_BT = log_probs_BTV.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
            mask_BT = inputs["attention_mask"][:, 1:]
            scores: list[float] = ((chosen_BT * mask_BT).sum(-1) / mask_BT.sum(-1)).tolist()
            return scores

        return scorer, lambda: self._by_hand(read, [self.tokenizer.eos_ids[0]])

    @torch.inference_mode()
    def _by_hand(self, read: Callable[[dict[str, torch.Tensor]], list[float]], start: list[int]) -> list[float]:
        """Encoded, sorted by length, padded, run: what nobody can do without."""
        hf, size = self.tokenizer.hf, self.sizes.batch_size
        rows = [[*start, *ids] for ids in hf(self.model_texts)["input_ids"]]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        scores = [0.0] * len(rows)
        for first in range(0, len(rows), size):
            indices = order[first : first + size]
            batch = hf.pad({"input_ids": [rows[index] for index in indices]}, return_tensors="pt")
            found = read({key: batch[key].to(self.device) for key in ("input_ids", "attention_mask")})
            for index, score in zip(indices, found, strict=True):
                scores[index] = score
        return scores

    def against_bare(self, name: str, scorer: Scorer, bare: Bare) -> list[Row]:
        """A scorer as a reward of the environment, against its model by hand."""
        completions = [Completion(Prompt("p"), text, (5, 2), "eos") for text in self.model_texts]
        reward = Reward(scorer)
        timings = self._take_turns({"ours": lambda: len(reward.score(completions).totals), "bare": lambda: len(bare())})
        ours, base = timings["ours"], timings["bare"]
        label = f"{name} of {self.sizes.layers} × {self.sizes.width}, speed"
        return [Row(label, self._unit, ours.rate, "its batches by hand", base.rate, speed_ratio(ours, base), ">= 0.9")]

    # ---------------------------------------------------------------- measuring

    @property
    def _unit(self) -> str:
        return f"texts / {'s' if self.device.startswith('cuda') else 'CPU s'}"

    def _take_turns(self, contenders: Mapping[str, Callable[[], float]]) -> dict[str, Any]:
        return take_turns(contenders, self.repeats, self.device.startswith("cuda"))

    def _row(self, name: str, ours: Any, base: Any, baseline: str, target: str) -> Row:
        ratio = 1 / speed_ratio(ours, base)
        return Row(f"{name}, cost", self._unit, ours.rate, baseline, base.rate, ratio, target)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """The command line; returns the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="measured turns of every contender")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for the models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and circumstances there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        benchmark = Benchmark(sizes, 1 if options.quick else options.repeats, options.device)
        rows, where = measure(benchmark.sections(), options.device, quick=options.quick)
    publish(rows, where, {"sizes": asdict(sizes), "repeats": benchmark.repeats}, options.json)
    return rows


if __name__ == "__main__":
    main()
