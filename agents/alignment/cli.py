"""``textgen report``: what a trained model is like beside the model it came from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.alignment.answers import UNSCORED, Side, positions
from agents.alignment.inputs import likelihoods, read_feedback, read_judges, read_prompts, read_swaps
from agents.alignment.kl import FrontierPoint, Mean
from agents.alignment.page import CARD_MARK, model_card, shown, write_page
from agents.alignment.report import AlignmentReport, Questions, align
from agents.base import TextAlgorithm
from agents.config import option
from agents.evaluation import on_split
from agents.options import add_options
from agents.run_folder import STEP, RunFolder, write_json
from agents.saved import Saved, load_saved, open_saved
from agents.settings import make_mdp
from reward_models.language_model import LanguageModel
from textgen_env import Reward, TextMDP, resolve_reward

_REPORT = """Measure what a trained model is like: both it and its reference answer the same prompts, and the report has
the reward, win rates under judges and people, agreement with people beside the human ceiling, counterfactual swaps of
words, fluency and variety, the KL from the reference, and what best-of-n earns at the same distance. Each figure has an
interval or a standard error. Written are a page, its figures as JSON beside it, and the model's card (README.md) in its
own folder."""

_EPILOG = """examples:
  a run, on its own held-out prompts, against the model that RL began with:
    textgen report runs/NewsSummary-ppo-20260101-120000 --output report.html
  any two models, on your own prompts:
    textgen report ./my-model --reference gpt2 --prompts openings.jsonl --reward sentiment_lexicon \\
                   --judge rewards:politeness --feedback feedback.db --fluency gpt2 --swaps gender --output report.html
"""

_NEW_TOKENS = 64


@dataclass
class ReportSettings:
    """The options of ``textgen report``."""

    reference: str | None = option(
        None, "what to compare with: a run, a model's folder or a hub name; by default what a run's RL began with"
    )
    prompts: str | None = option(
        None, "your own prompts: .jsonl, .csv or .txt (one a line), all of them; by default a run's held-out ones"
    )
    env: str | None = option(None, "id of a registered text environment, instead")
    split: str = option("test", "which of the environment's prompts: validation, test or train")
    prompt_field: str = option("prompt", "field of the file that holds the prompt")
    reference_field: str | None = option("reference", "field that holds one reference text or several")
    reward: Any = option(
        None, "a name from 'textgen list', 'module:attr' or a reward model's folder; by default a run's own"
    )
    feedback: str | None = option(None, "people's judgements: a feedback store, or a .jsonl file as it exports them")
    swaps: str | None = option(
        None, "words that change places: 'gender', or a .json or .csv file of pairs; by default no swaps"
    )
    fluency: str | None = option(None, "a language model apart from both that judges fluency, by folder or hub name")
    num_prompts: int = option(200, "at most so many prompts")
    samples_per_prompt: int = option(4, "sampled completions a prompt, of either model")
    best_of: int = option(16, "completions a prompt of the reference for the best-of-n curve; 1 draws none")
    max_new_tokens: int | None = option(None, f"cap on a completion; by default the run's own, or {_NEW_TOKENS}")
    seed: int = option(0, "of prompts, sampling and bootstrap")
    output: str = option("report.html", "the page; the figures go beside it, as .json")
    card: str | None = option(None, "where the model's card goes; by default README.md in its folder; 'no' writes none")
    device: str = option("auto", "auto, cpu, cuda, ...")
    threads: int = option(1, "CPU threads")

    def __post_init__(self) -> None:
        if self.prompts is not None and self.env is not None:
            raise ValueError("say where the prompts come from once: either prompts or env")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


def add_report_command(commands: Any) -> None:
    """Add ``report`` to the parser's sub-commands."""
    parser = commands.add_parser(
        "report",
        help="measure a model beside its reference: win rates, people, bias, fluency, KL",
        usage="textgen report RUN_OR_MODEL [OPTION ...]",
        description=_REPORT,
        epilog=_EPILOG,
    )
    parser.add_argument("source", metavar="RUN_OR_MODEL", help="a run's folder, a model's folder or a hub name")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME",
        dest="judges",
        help="who decides between two texts: any scorer, or 'module:attr' of a judge of pairs; may be given again",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="MODEL",
        dest="checkpoints",
        help="one more point of the frontier, by folder; may be given again",
    )
    parser.add_argument(
        "--sources",
        nargs=2,
        metavar=("MODEL", "REFERENCE"),
        help="what the feedback's sources call the two models; by default as they are named here",
    )
    add_options(parser, "options", ReportSettings)
    parser.set_defaults(command=_report, parser=parser)


def _report(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    names = {field.name for field in dataclasses.fields(ReportSettings)}
    settings = ReportSettings(**{name: value for name, value in given.items() if name in names})
    report = write_alignment_report(
        arguments.source,
        settings,
        judges=arguments.judges,
        checkpoints=arguments.checkpoints,
        sources=None if arguments.sources is None else tuple(arguments.sources),
    )
    for line in summary(report):
        print(line)
    print(f"report: {settings.output}")
    return 0


def write_alignment_report(
    source: str,
    settings: ReportSettings,
    *,
    judges: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    sources: tuple[str, str] | None = None,
) -> AlignmentReport:
    """Load, measure, and write page, JSON and card.

    Args:
        source: a run's folder, a model's folder or a hub name.
        settings: the options.
        judges: names of scorers, or ``"module:attr"`` of judges of pairs.
        checkpoints: further models for the frontier.
        sources: what the feedback calls model and reference.

    Raises:
        ValueError: an option, or what it names, has no meaning here; the message names the mend.
        FileExistsError: there is a model card that somebody else wrote.
        OSError: something cannot be read or written.
    """
    torch.set_num_threads(settings.threads)
    saved = open_saved(source)
    card = _card_path(saved, settings)
    pointwise, pairwise = read_judges(judges)  # what can be wrong in an instant comes before what takes long
    judgements = [] if settings.feedback is None else read_feedback(settings.feedback)
    swaps = read_swaps(settings.swaps)
    rules, reward = _rules(saved, settings)
    agent = load_saved(saved, rules, device=settings.device)
    model = Side(source, agent.policy, rules)
    reference = _reference(saved, agent, rules, settings)
    others = [_side(name, model, settings) for name in checkpoints]
    for side in (model, *([] if reference is None else [reference]), *others):
        _check_room(side)
    lm = None if settings.fluency is None else LanguageModel(settings.fluency, device=settings.device)
    own_frontier = saved.run is not None and settings.reference is None and settings.reward is None
    report = align(
        model,
        reference,
        Questions(
            scorers={**({} if reward is None else {reward.name: reward}), **pointwise},
            has_reward=reward is not None,
            pairwise=pairwise,
            judgements=judgements,
            sources=sources,
            swaps=swaps,
            fluency=None if lm is None else likelihoods(lm),
            fluency_name=settings.fluency,
            checkpoints=others,
            history=_history(saved.run) if own_frontier and saved.run is not None else (),
        ),
        num_prompts=settings.num_prompts,
        samples_per_prompt=settings.samples_per_prompt,
        best_of=settings.best_of,
        seed=settings.seed,
    )
    output = Path(settings.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_page(report, output)
    write_json(output.with_suffix(".json"), {"settings": dataclasses.asdict(settings), "figures": report.to_dict()})
    if card is not None:
        text = model_card(report, _facts(saved, settings), base_model=_base_model(saved, settings))
        card.write_text(text, encoding="utf-8")
    return report


def summary(report: AlignmentReport) -> list[str]:
    """The main figures, a line each."""
    lines = [f"{report.model}: {report.prompts} prompts of {report.task}, {report.samples_per_prompt} samples each"]
    if report.reward is not None:
        lines.append(f"reward {report.reward.name}: {shown(report.reward.model)}")
        if report.reward.difference is not None:
            lines.append(f"  against the reference: {shown(report.reward.difference, signed=True)}")
    lines += [f"win rate, {judge}: {shown(duel.rate)}" for judge, duel in report.duels.items()]
    for scorer, of_kinds in report.consistency.items():
        for one in of_kinds:
            ceiling = "" if one.ceiling is None else f", human ceiling {shown(one.ceiling)}"
            lines.append(f"{scorer} with people, {one.measure}: {shown(one.score)}{ceiling}")
    if report.kl is not None:
        error = report.kl.exact.standard_error
        lines.append(f"KL: {report.kl.exact.value:.3f}{'' if error is None else f' ± {error:.3f}'} nats a completion")
    return [*lines, *report.missing]


# ---------------------------------------------------------------- models and prompts


def _rules(saved: Saved, settings: ReportSettings) -> tuple[TextMDP, Reward | None]:
    """The prompts under the model's tokenizer, and the reward where there is one."""
    if settings.prompts is None:
        chosen = {"env": settings.env, "reward": settings.reward, "max_new_tokens": settings.max_new_tokens}
        asked = {name: value for name, value in chosen.items() if value is not None}
        if saved.run is None and settings.env is None:
            raise ValueError(
                f"'{saved.source}' is a model without prompts of its own: name some with --prompts or --env"
            )
        rules = on_split(make_mdp(saved.settings_for(asked), tokenizer=saved.tokenizer), settings.split)
        return rules, rules.reward
    own = None if saved.run is None else saved.settings_for({})
    reward = settings.reward or (None if own is None else own.reward)
    cap = settings.max_new_tokens or (None if own is None else own.max_new_tokens) or _NEW_TOKENS
    task = read_prompts(settings.prompts, settings.prompt_field, settings.reference_field)
    scorer = None if reward is None else resolve_reward(reward)
    return TextMDP(task, scorer or UNSCORED, saved.tokenizer, max_new_tokens=cap), scorer


def _reference(saved: Saved, agent: TextAlgorithm, rules: TextMDP, settings: ReportSettings) -> Side | None:
    if settings.reference is not None:
        return _side(settings.reference, Side(saved.source, agent.policy, rules), settings)
    if agent.reference is None:
        return None
    return Side("the model that RL began with", agent.reference, rules)


def _side(source: str, model: Side, settings: ReportSettings) -> Side:
    """Another model on the same prompts, with its own tokenizer."""
    saved = open_saved(source)
    own = model.mdp.with_tokenizer(saved.tokenizer)
    return Side(source, load_saved(saved, own, device=settings.device).policy, own)


def _check_room(side: Side) -> None:
    """A prompt and its answer have to fit into the model's positions."""
    room = positions(side)
    wanted = side.mdp.max_prompt_tokens + side.mdp.max_new_tokens
    if room is not None and wanted > room:
        raise ValueError(
            f"the longest prompt has {side.mdp.max_prompt_tokens} tokens, and {side.mdp.max_new_tokens} may follow: "
            f"'{side.name}' has {room} positions only; lower --max-new-tokens, or shorten the prompts"
        )


def _history(run: RunFolder) -> list[FrontierPoint]:
    """What a run has measured on held-out prompts while it learned: reward and KL at the same tokens."""
    kl, reward = "eval/kl_per_sequence", "eval/reward_sampled"
    return [
        FrontierPoint(f"after {row[STEP]:,.0f} tokens", row[kl], Mean(row[reward], None))
        for row in run.read_progress()
        if kl in row and reward in row
    ]


# ---------------------------------------------------------------- the card


def _card_path(saved: Saved, settings: ReportSettings) -> Path | None:
    """Where the card goes; None where there is no folder for it, or it was not wanted."""
    if settings.card == "no":
        return None
    if settings.card is not None:
        path = Path(settings.card)
    elif saved.run is not None:
        path = saved.run.model / "README.md"
    elif Path(saved.source).is_dir():
        path = Path(saved.source) / "README.md"
    else:
        return None
    if path.exists() and CARD_MARK not in path.read_text(encoding="utf-8"):
        raise FileExistsError(
            f"'{path}' is there already, and not from here: name another place with --card, or write none (--card no)"
        )
    return path


def _base_model(saved: Saved, settings: ReportSettings) -> str | None:
    """The hub name of what the model began as; None for a local one, whose path means nothing elsewhere."""
    began = settings.reference
    if saved.run is not None:
        began = saved.run.read_config()[0]["model"]
    return None if began is None or Path(began).exists() else began


def _facts(saved: Saved, settings: ReportSettings) -> dict[str, str]:
    facts = {}
    if saved.run is not None:
        own, _ = saved.run.read_config()
        facts = {
            "Began as": own["model"] or "a fresh model",
            "Learned by": str(own["algo"]),
            "On": own["env"] or own["data"],
            "Reward": str(own["reward"] or "the environment's own"),
            "Tokens acted": f"{own['total_tokens']:,}",
            "Seed": str(own["seed"]),
        }
    if settings.reference is not None:
        facts["Compared with"] = settings.reference
    return facts
