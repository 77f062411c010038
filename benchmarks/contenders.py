"""Who takes part in the benchmarks, by name: our agents, what they must beat, and other libraries."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback

from agents import SupervisedConfig, supervised_fit
from agents.algorithms import ALGORITHMS, find_algorithm
from agents.dqn import DQN
from agents.logged_rollouts import FromLoggedEpisodes
from agents.policy import TextPolicy
from agents.supervised import reference_pairs
from benchmarks import presets
from benchmarks.contender import CannotTakePart, Contender, Learned
from benchmarks.contenders_sb3 import SB3PPO
from benchmarks.contenders_trl import TRLGRPO, TRLPPO, TRLRLOO
from benchmarks.logged import references
from benchmarks.setups import Setup
from benchmarks.warm_start import Start
from benchmarks.watch import Watch
from textgen_env import TextGenVectorEnv
from textgen_env.lookup import did_you_mean, load_entry_point


class Agent(Contender):
    """One of our agents, with its preset.

    Where the others start from a policy fitted to the references, Q-values would start from nothing: a Q-learner that
    is not soft gets the references as demonstrations instead (Hester et al. 2018).
    """

    on_any_device = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind, _ = find_algorithm(name)

    def options(self, setup: Setup) -> dict[str, Any]:
        """Every field of the algorithm's config."""
        return asdict(presets.preset(self.name, setup.task))

    def check(self, setup: Setup) -> None:
        """An offline learner needs logged episodes."""
        super().check(setup)
        if issubclass(self.kind, FromLoggedEpisodes) and setup.logged is None:
            raise CannotTakePart(f"{self.name} learns from logged episodes, and the setup of {setup.task} names none")

    def learn(self, start: Start, watch: Watch) -> Learned:
        """``agent.learn`` with a callback that looks between the rollouts."""
        setup, config = start.setup, presets.preset(self.name, start.setup.task)
        mdp, callbacks = start.mdp, []
        if setup.trainer is not None:
            mdp, callbacks = load_entry_point(setup.trainer)(mdp, start.seed)
        env = TextGenVectorEnv(config.num_envs, mdp=mdp, autoreset_mode=AutoresetMode.DISABLED)
        agent = self.kind(start.model(), env, config, seed=start.seed, device=start.device)
        if isinstance(agent, FromLoggedEpisodes) and setup.logged is not None:
            agent.set_data(load_entry_point(setup.logged)(mdp, start.seed))
        if isinstance(agent, DQN) and not agent.is_soft and setup.warm_start is not None:
            agent.set_demonstrations(references(mdp, start.seed))
        with watch:
            agent.learn(start.tokens, callback=[*callbacks, _Look(watch)])
            watch.look(agent.policy, agent.num_timesteps, agent._episode_num)
        return Learned(agent.policy, agent.num_timesteps, agent._episode_num)


class _Look(BaseCallback):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.watch.due(self.num_timesteps):
            policy: Any = self.model.policy
            self.watch.look(policy, self.num_timesteps, self.model._episode_num)


class SupervisedBaseline(Contender):
    """Fresh weights fitted to the references of the train split, as the setup says. The budget does not bear on it."""

    name = "supervised"

    def options(self, setup: Setup) -> dict[str, Any]:
        """Every field of `SupervisedConfig`."""
        return asdict(SupervisedConfig(**setup.supervised))

    def learn(self, start: Start, watch: Watch) -> Learned:
        """Maximum likelihood; tokens and episodes are those of the references read."""
        config, mdp = SupervisedConfig(**start.setup.supervised), start.mdp
        policy = TextPolicy(start.fresh_model(), mdp.tokenizer.vocab_size)
        pairs = reference_pairs(mdp)
        batch = min(config.batch_size, len(pairs))
        length = float((pairs.lengths_N - pairs.prompt_lengths_N).double().mean())
        watch.tokens = round(config.epochs * len(pairs) * length)

        def on_step(step: int, steps: int, loss: float) -> None:
            if step == steps or watch.due(round(step * batch * length)):
                watch.look(policy, round(step * batch * length), step * batch)

        with watch:
            watch.look(policy, 0, 0)
            supervised_fit(policy, mdp, config, seed=start.seed, on_step=on_step)
        last = watch.curve[-1]
        return Learned(policy, last["tokens"], last["episodes"])


class BestOfN(Contender):
    """The policy that all start from, as it is: of several samples the one that the reward likes best."""

    name = "best_of_n"

    def options(self, setup: Setup) -> dict[str, Any]:
        """n."""
        return {"n": 16}

    def check(self, setup: Setup) -> None:
        """The reward must be what it is judged by."""
        super().check(setup)
        if setup.objective != "return":
            raise CannotTakePart(f"best_of_n chooses by the reward, but {setup.task} is judged by '{setup.objective}'")

    def learn(self, start: Start, watch: Watch) -> Learned:
        """Nothing to learn."""
        policy = TextPolicy(start.model(), start.mdp.tokenizer.vocab_size)
        return Learned(policy, 0, 0, best_of=self.options(start.setup)["n"])


def contenders() -> dict[str, Contender]:
    """All there are, by name."""
    baselines: list[Contender] = [SupervisedBaseline(), BestOfN()]
    peers: list[Contender] = [SB3PPO(), TRLPPO(), TRLRLOO(), TRLGRPO()]
    agents = [Agent(name) for name in presets.names() if name in ALGORITHMS]
    return {contender.name: contender for contender in [*agents, *baselines, *peers]}


def find_contender(name: str) -> Contender:
    """The contender of a name; of "ppo@mine.json", PPO with the options of that file (see `presets.options`).

    Raises:
        ValueError: there is none, or it has no options to change; the message names the nearest.
    """
    known, base = contenders(), presets.base(name)
    if base not in known:
        raise ValueError(f"unknown contender '{base}'; {did_you_mean(base, known)}")
    if base != name and base not in presets.names():
        raise ValueError(f"'{name}': the options of {base} stand in benchmarks/tasks.json, the same for everyone")
    found = known[base]
    found.name = name
    return found
