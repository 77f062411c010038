"""What a loop of reinforcement learning from human feedback is made of, as one small dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agents.config import check_choice, option
from agents.settings import RunSettings, make_mdp
from textgen_env import TextMDP

Annotators: TypeAlias = Literal["simulated", "people", "none"]
FeedbackKind: TypeAlias = Literal["comparison", "rating"]

_OF_THE_SIMULATED = ("gold", "noise", "length_bias", "position_bias", "laziness")


@dataclass
class RLHFSettings:
    """The options of a loop, apart from those of the reward model's fit and of the algorithm."""

    env: str | None = option(None, "prompts of a registered text environment, by its id; see 'textgen list'")
    prompts: str | None = option(
        None, "your own prompts: a .jsonl or .csv file, 'module:attr', or the name of a Hugging Face dataset"
    )
    prompt_field: str = option(RunSettings.prompt_field, "field of the data that holds the prompt")
    reference_field: str | None = option(None, "field of references, for a gold that compares with some")
    template: str = option(RunSettings.template, "what each prompt is written into; it may name other fields too")
    split_fractions: tuple[float, float, float] = option(
        RunSettings.split_fractions, "shares of train, validation and test; a prompt's hash decides where it goes"
    )
    max_prompt_tokens: int | None = option(
        None, "longer prompts are cut; by default the environment's own, or the longest prompt"
    )
    max_new_tokens: int | None = option(None, "cap on a completion's tokens; by default the environment's own, or 32")

    model: str | None = option(
        None, "the language model to start from, by hub name or folder; also what the KL is measured from"
    )

    rounds: int = option(2, "times around: samples, feedback, reward model, policy, evaluation")
    comparisons: int = option(500, "pairs of completions that are judged a round")
    feedback_kind: FeedbackKind = option(
        "comparison", "what a judgement says: which text of a pair is better, or a number for each text"
    )
    judgements: str | None = option(
        None, "judgements of that kind that exist already, a .jsonl file as for 'textgen reward train'"
    )
    annotators: Annotators = option(
        "simulated", "who judges: simulated annotators with a gold reward, people, or none beyond those of judgements"
    )
    overlap: int = option(1, "annotators who judge each pair")
    guidelines: str | None = option(None, "what people shall go by, a text file")
    gold: Any = option(
        None,
        "what simulated annotators go by, and the learner never sees: a name from 'textgen list', or 'module:attr'",
    )
    noise: float = option(
        0.0, "their temperature, in the gold's unit: they prefer the better one with probability σ(difference / noise)"
    )
    length_bias: float = option(0.0, "their liking for length, in nats a word")
    position_bias: float = option(0.0, "their liking for the text shown first, in nats")
    laziness: float = option(0.0, "share of their answers that are drawn blindly")

    reward_model: str | None = option(
        None, "what the reward model starts from, a Hugging Face model; by default the language model's own trunk"
    )
    held_out_share: float = option(
        0.2, "share of the prompts whose judgements are not learned from: half of them stop the fit, half measure it"
    )
    members: int = option(1, "reward models, an ensemble if more than 1")
    pessimism: float = option(0.0, "an ensemble's reward is its mean less so many standard deviations")

    algo: str = option("ppo", "a policy-gradient algorithm: reinforce, a2c, ppo, grpo or nlpo")
    tokens_per_round: int = option(100_000, "tokens the policy acts a round; the last rollout may run over")
    checkpoint_every: int | None = option(None, "tokens between checkpoints; by default a tenth of a round's")

    eval_prompts: int = option(200, "held-out prompts the evaluation asks, at most")
    seed: int = option(0, "seeds all that is drawn")
    output: str | None = option(None, "the loop's folder; by default runs/NAME-rlhf-TIMESTAMP")
    device: str = option("auto", "auto, cpu, cuda, ...")
    threads: int = option(RunSettings.threads, "CPU threads; with one, a loop is repeatable to the last digit")

    def __post_init__(self) -> None:
        for name in (
            "prompts",
            "model",
            "reward_model",
            "judgements",
            "output",
        ):  # a Path would not be what config.json reads back
            if getattr(self, name) is not None:
                setattr(self, name, str(getattr(self, name)))
        if (self.env is None) == (self.prompts is None):
            raise ValueError("say where the prompts come from: either env (a registered id) or prompts (your own)")
        if self.model is None:
            raise ValueError(
                "say which model to start from with --model: one that can write, a hub name or a folder "
                "('textgen train' leaves one in the run's 'model')"
            )
        counts = ("rounds", "comparisons", "overlap", "members", "tokens_per_round", "eval_prompts", "threads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share must lie between 0 and 1, got {self.held_out_share}")
        check_choice("feedback_kind", self.feedback_kind, FeedbackKind)
        self._check_annotators()
        self.run_settings()  # whose checks hold here too

    def _check_annotators(self) -> None:
        check_choice("annotators", self.annotators, Annotators)
        if self.guidelines is not None and self.annotators != "people":
            raise ValueError("guidelines are for people: simulated annotators go by gold")
        if self.annotators == "simulated":
            if self.gold is None:
                raise ValueError("say what simulated annotators go by with --gold; or ask --annotators people")
            if self.judgements is not None:
                raise ValueError(
                    "simulated annotators agree on no judgements but their own: give --annotators people, or none"
                )
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _OF_THE_SIMULATED:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} is about simulated annotators: people go by what they think")
        if self.annotators == "none":
            if self.judgements is None:
                raise ValueError("with no annotators, say where judgements are with --judgements")
            if self.rounds != 1:
                raise ValueError(
                    f"with no annotators, nothing is learned about what later rounds write: rounds must be 1, "
                    f"got {self.rounds}; or ask --annotators people"
                )

    @property
    def measure(self) -> str:
        """What a reward model's agreement with held-out judgements is called in results."""
        return {"comparison": "accuracy", "rating": "correlation"}[self.feedback_kind]

    @property
    def name(self) -> str:
        """A short name for the folder: the environment's or the data's."""
        return self.run_settings().name.removesuffix(f"-{self.algo}") + "-rlhf"

    def run_settings(self) -> RunSettings:
        """The part that says what the environment is. Its reward knows nothing: no judgement is in yet."""
        train, validation, test = self.split_fractions
        return RunSettings(
            env=self.env,
            data=self.prompts,
            prompt_field=self.prompt_field,
            reference_field=self.reference_field,
            template=self.template,
            split_fractions=(train, validation, test),
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            reward=unjudged,
            model=self.model,
            algo=self.algo,
        )


def unjudged(completions: list[str], **_: Any) -> list[float]:
    """0 for every text: the reward of an environment in which texts are only written."""
    return [0.0] * len(completions)


def make_environment(settings: RLHFSettings) -> TextMDP:
    """The rules on the train split, without a reward.

    Raises:
        ValueError: the environment or the data is unknown or malformed, or no prompt is held out.
        OSError: the data or the model's tokenizer cannot be read.
    """
    mdp = make_mdp(settings.run_settings())
    if not (mdp.task.splits.get("validation") or mdp.task.splits.get("test")):
        raise ValueError(
            f"task '{mdp.task.name}' has only {len(mdp.prompts)} training prompts and none held out to evaluate on: "
            "give it more prompts, or a larger test share with --split-fractions"
        )
    return mdp


def held_out_split(mdp: TextMDP) -> str:
    """The split that the evaluation asks: test, or else validation."""
    return "test" if mdp.task.splits.get("test") else "validation"
