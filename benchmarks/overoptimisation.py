"""Reward hacking made visible: the learned reward goes up, the true one comes down, as the KL grows.

    python -m benchmarks.overoptimisation --seeds 5 --output overoptimisation.jsonl
    python -m benchmarks.overoptimisation plot --output overoptimisation.jsonl

The experiment of Gao, Schulman & Hilton (2023, "Scaling laws for reward model overoptimization"), with the ensembles of
Coste, Anwar, Kirk & Krueger (2024), in a world so small that the true ("gold") reward is a function one can read. A
policy is fitted to a known source of reviews. Pairs of its own samples are compared by gold, some labels flipped;
reward models ("proxies") are fitted to the comparisons. PPO then raises the proxy, and gold is only watched.

The source (`hotel_reviews`) is always grammatical, so comparisons hardly tell that gold fines what is not: what PPO
makes of that is the experiment.

Runs that the output holds already are not made again. Both rewards are given in standard deviations of the start
policy's samples on training prompts, from their mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stable_baselines3.common.logger import Logger

from agents import PPO, PPOConfig, SupervisedConfig, small_gpt2, supervised_fit
from agents.evaluation import evaluate, on_split
from benchmarks.hotel_reviews import MAX_NEW_TOKENS, gold, review_task
from benchmarks.learning import over_seeds
from benchmarks.lines import read
from benchmarks.measure import circumstances
from reward_models import WeightedSum
from reward_models.preference import Comparison, FitConfig, FitResult, RewardEnsemble, RewardModel, fit_ensemble
from reward_models.preference.source import small_llama
from textgen_env import TextGenVectorEnv, TextMDP
from textgen_env.lookup import did_you_mean

SAME_KL = 25.0
"""Nats a completion at which the arms are compared besides: a policy that has merely moved less looks better."""
_SAMPLES = 4
_PROXY, _GOLD, _FAINT = "#d4691e", "#2563b8", "#8b93a7"

PESSIMISM = {"single": 0.0, "mean": 0.0, "pessimistic": 1.0, "very_pessimistic": 4.0}
"""Arm -> the standard deviations of its members that are taken off their mean."""
ARMS = (*PESSIMISM, "gold")
"""What PPO maximises: one proxy, the mean of an ensemble with more or less pessimism, or, as a control, gold itself."""


@dataclass(frozen=True)
class Settings:
    """All that a run depends on, besides its arm and seed."""

    references_per_prompt: int = 40
    warm_start_epochs: float = 4.0
    comparisons: int = 300
    label_noise: float = 0.25
    """The share of the comparisons whose label is flipped (25 % as in Coste et al. 2024)."""
    reward_model: FitConfig = dataclasses.field(default_factory=lambda: FitConfig(epochs=10.0))
    members: int = 4
    """Proxies of an ensemble. The first is the one of arm "single"."""
    width: int = 48
    ppo: PPOConfig = dataclasses.field(
        default_factory=lambda: PPOConfig(
            learning_rate=1e-3,
            learning_rate_schedule="constant",
            samples_per_prompt=4,
            episodes_per_rollout=128,
            epochs=2,
            num_envs=64,
            kl_coef_per_sequence=1e-3,
        )
    )
    updates: int = 40
    updates_per_look: int = 2
    """Updates from one evaluation on held-out prompts to the next."""


# --- the proxies ------------------------------------------------------------------------------------------


def compare(agent: PPO, mdp: TextMDP, count: int, noise: float, generator: np.random.Generator) -> list[Comparison]:
    """Two samples of the policy each, on prompts in turn, the one chosen that gold prefers.

    Args:
        agent: writes both.
        mdp: gives the prompts.
        count: how many comparisons; pairs that gold finds equal are left out.
        noise: the chance of a flipped label.
        generator: draws labels and seeds.
    """
    prompts = [prompt.text for prompt in mdp.prompts]
    made: list[Comparison] = []
    while len(made) < count:
        draws = [agent.generate(prompts, seed=int(generator.integers(2**31))) for _ in range(2)]
        for prompt, one, other in zip(prompts, *draws, strict=True):
            first, second = gold([one, other], [prompt, prompt])
            if first != second and len(made) < count:
                upright = (first > second) != (generator.random() < noise)
                made.append(Comparison(prompt, *((one, other) if upright else (other, one))))
    return made


def fit_proxies(
    agent: PPO, start: TextMDP, size: int, settings: Settings, seed: int
) -> tuple[list[RewardModel], list[FitResult]]:
    """Reward models that differ in their first weights, fitted to the same comparisons of the policy's samples."""
    generator = np.random.default_rng([seed, 1])
    config = small_llama(
        start.tokenizer, max_length=start.max_prompt_tokens + MAX_NEW_TOKENS + 1, width=settings.width, heads=4
    )
    return fit_ensemble(
        lambda member: RewardModel(config, start.tokenizer.hf, seed=member, device="cpu", batch_size=256),
        size,
        compare(agent, start, settings.comparisons, settings.label_noise, generator),
        compare(
            agent, on_split(start, "validation"), max(1, settings.comparisons // 4), settings.label_noise, generator
        ),
        settings.reward_model,
        bootstrap=False,
        seed=100 * seed,  # apart from the next seed's members
    )


# --- a run ------------------------------------------------------------------------------------------------


def run(arm: str, seed: int, settings: Settings | None = None) -> dict[str, Any]:
    """Train one policy against one arm's reward; the line that is written.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm '{arm}'; {did_you_mean(arm, ARMS)}")
    settings = settings or Settings()
    torch.set_num_threads(1)
    began = time.process_time()
    world = review_task(settings.references_per_prompt, seed)
    start = TextMDP(world)
    agent = _start_policy(start, settings, seed)
    prompts = _SAMPLES * [prompt.text for prompt in start.prompts]
    samples = agent.generate(prompts, seed=seed)
    scores = gold(samples, prompts)
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    proxy: Any = WeightedSum([(1 / deviation, gold), (-mean / deviation, 1.0)])
    fits: list[FitResult] = []
    watched: Any = proxy
    if arm != "gold":
        size = 1 if arm == "single" else settings.members
        members, fits = fit_proxies(agent, start, size, settings, seed)
        proxy = RewardEnsemble(members, pessimism=PESSIMISM[arm], name="proxy")
        proxy.normalise(prompts, samples)
        watched = WeightedSum([(1.0, proxy), (0.0, gold)])
    agent.set_env(_env(TextMDP(world, proxy), settings))
    held_out = TextMDP(world, watched, split="test")

    curve: list[dict[str, float]] = []
    for update in range(settings.updates + 1):
        if update % settings.updates_per_look == 0:
            found = evaluate(agent, held_out, samples_per_prompt=_SAMPLES, seed=seed)
            assert found.kl_per_sequence is not None  # sampled, and the charge keeps a reference
            gold_now = (found.components["gold"] - mean) / deviation
            point = {"tokens": agent.num_timesteps, "kl": found.kl_per_sequence}
            curve.append({**point, "proxy": found.mean, "gold": gold_now})
        if update < settings.updates:
            agent.learn(1, reset_num_timesteps=False)  # one token more is one rollout and its update more
    return {
        "arm": arm,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "gold_mean": mean,
        "gold_deviation": deviation,
        "proxy_accuracy": [found.best.accuracy for found in fits if found.best is not None],
        "curve": curve,
        "texts": [f"{sample.prompt} … {sample.completion}" for sample in found.samples[:: 8 * _SAMPLES]],
        "cpu_seconds": time.process_time() - began,
        "circumstances": circumstances("cpu"),
    }


def _start_policy(mdp: TextMDP, settings: Settings, seed: int) -> PPO:
    """An agent that writes as the source does."""
    model = small_gpt2(mdp.tokenizer, positions=mdp.max_prompt_tokens + MAX_NEW_TOKENS, width=settings.width)
    agent = PPO(model, _env(mdp, settings), settings.ppo, seed=seed, device="cpu")
    agent.set_logger(Logger(None, []))
    supervised_fit(agent.policy, mdp, SupervisedConfig(epochs=settings.warm_start_epochs), seed=seed)
    agent.refresh_reference()
    return agent


def _env(mdp: TextMDP, settings: Settings) -> TextGenVectorEnv:
    return TextGenVectorEnv(settings.ppo.num_envs, mdp=mdp, autoreset_mode="Disabled")


def run_all(seeds: int, output: Path, settings: Settings) -> Iterator[dict[str, Any]]:
    """Make the runs of all arms that the output lacks, each line written as it comes.

    Raises:
        ValueError: the output holds runs of other settings.
    """
    lines = read(output)
    if any(line["settings"] != dataclasses.asdict(settings) for line in lines):
        raise ValueError(f"{output} holds runs of other settings, which do not mix: give another --output")
    done = {(line["arm"], line["seed"]) for line in lines}
    output.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for arm in ARMS:
            if (arm, seed) not in done:
                line = run(arm, seed, settings)
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                yield line


# --- what came of it --------------------------------------------------------------------------------------


def outcome(curve: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """The figures of one run. The peak is the best of several noisy looks, and so a little flattered in every arm."""
    peak, end = max(curve, key=lambda point: point["gold"]), curve[-1]
    there = float(reward_at(curve, "gold", np.array([math.sqrt(SAME_KL)]))[0])
    return {
        "peak gold": peak["gold"],
        "KL at the peak": peak["kl"],
        "gold at the end": end["gold"],
        "KL at the end": end["kl"],
        "proxy − gold at the end": end["proxy"] - end["gold"],
        f"gold at {SAME_KL:g} nats": None if math.isnan(there) else there,
    }


def reward_at(
    curve: Sequence[dict[str, float]], reward: str, roots_G: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The reward "proxy" or "gold" where √KL first reaches each of G values; NaN where it never does.

    Straight lines join the looks at which the KL was larger than at all before.
    """
    furthest: list[tuple[float, float]] = []
    for point in curve:
        root = _root(point)
        if not furthest or root > furthest[-1][0]:
            furthest.append((root, point[reward]))
    roots_L, values_L = np.array(furthest, dtype=np.float64).T
    return np.asarray(np.interp(roots_G, roots_L, values_L, right=math.nan))


def _root(point: dict[str, float]) -> float:
    return math.sqrt(max(0.0, point["kl"]))  # a sampled KL may lie below 0


def report(lines: Iterable[dict[str, Any]]) -> str:
    """Two Markdown tables: every arm's figures, and what each gains over the single proxy, paired by seed.

    Means over seeds, ± Student's 95 %; where some seeds only have a figure, their number is given.
    """
    found = {arm: {line["seed"]: outcome(line["curve"]) for line in lines_} for arm, lines_ in _by_arm(lines).items()}
    names = list(next(iter(next(iter(found.values())).values())))
    head = [f"| {' | '.join(['', *names])} |", "|---" * (len(names) + 1) + "|"]
    rows = [_row(arm, [[run[name] for run in runs.values()] for name in names]) for arm, runs in found.items()]
    single = found.get("single", {})
    gains = [
        _row(f"{arm} − single", [[_minus(runs[seed][name], single[seed][name]) for seed in both] for name in names])
        for arm, runs in found.items()
        if arm != "single" and (both := sorted(runs.keys() & single.keys()))
    ]
    return "\n".join([*head, *rows, "", *head, *gains] if gains else [*head, *rows])


def _by_arm(lines: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    runs = list(lines)
    return {arm: mine for arm in ARMS if (mine := [line for line in runs if line["arm"] == arm])}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _row(name: str, columns: Sequence[Sequence[float | None]]) -> str:
    return f"| {' | '.join([name, *map(_cell, columns)])} |"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    mean, half = over_seeds(known)
    some = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{mean:.2f}" + (f" ± {half:.2f}" if len(known) > 1 else "") + some


def draw(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Proxy and gold over √KL, a panel an arm: seeds faint; the mean, as far as all seeds went, with its 95 % band."""
    arms = _by_arm(lines)
    control = arms.pop("gold", None)
    figure = Figure(figsize=(3.4 * max(1, len(arms)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(arms)), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (arm, runs) in zip(panels, arms.items(), strict=False):
        for reward, colour in (("proxy", _PROXY), ("gold", _GOLD)):
            _draw_arm(axes, runs, reward, colour, reward)
        axes.set_title(arm.replace("_", " ") + (f": mean − {PESSIMISM[arm]:g} std" if PESSIMISM[arm] else ""))
    for axes in panels:
        if control:
            _draw_arm(axes, control, "gold", _FAINT, "gold, when trained on gold")
        axes.axhline(0, color=_FAINT, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("√KL from the start policy (√nats a completion)", fontsize="medium")
    panels[0].set_ylabel("reward, in std of the start policy's")
    panels[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=80)


def _draw_arm(axes: Any, runs: Sequence[dict[str, Any]], reward: str, colour: str, label: str) -> None:
    ends = []
    for run in runs:
        roots = [_root(point) for point in run["curve"]]
        axes.plot(roots, [point[reward] for point in run["curve"]], color=colour, linewidth=0.6, alpha=0.4)
        ends.append(max(roots))
    roots_G = np.linspace(0, min(ends), 50)
    values_KG = np.array([reward_at(run["curve"], reward, roots_G) for run in runs])
    means_G, halves_G = np.array([over_seeds(list(values_K)) for values_K in values_KG.T]).T
    axes.plot(roots_G, means_G, color=colour, linewidth=2, label=label)
    if len(runs) > 1:
        axes.fill_between(roots_G, means_G - halves_G, means_G + halves_G, color=colour, alpha=0.2, linewidth=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, then print the tables and draw the plot; or only the latter."""
    parser = argparse.ArgumentParser(prog="benchmarks.overoptimisation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("command", nargs="?", choices=["run", "plot"], default="run", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, required=True, help="a JSON line a run; the plot goes beside it, as .png"
    )
    args = parser.parse_args(argv)
    if args.command == "run":
        try:
            for line in run_all(args.seeds, args.output, Settings()):
                figures = ", ".join(f"{name} {_cell([value])}" for name, value in outcome(line["curve"]).items())
                print(f"{line['arm']} seed {line['seed']}: {figures}; {line['cpu_seconds']:.0f} CPU s", flush=True)
        except ValueError as error:
            parser.error(str(error))
    lines = read(args.output)
    if not lines:
        parser.error(f"{args.output} holds no runs: leave 'plot' out to make some")
    print(report(lines))
    draw(lines, args.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
