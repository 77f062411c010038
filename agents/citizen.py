"""What Stable-Baselines3 expects of an agent: environments, parameters, `save`, `load` and `predict`.

The rest of SB3's interface (`learn`, the logger, callbacks) is `agents.base.TextAlgorithm`'s own or SB3's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import check_for_correct_spaces
from torch import nn

from agents.distributed import World
from agents.environments import TextVecEnv, as_vector_env
from agents.generation import generate
from agents.policy import TextPolicy
from agents.prediction import predict
from agents.progress_bar import TokenProgressBar
from agents.rollout import Collector
from agents.sharding import gathered, is_sharded, load_module, load_optimiser
from textgen_env import TextMDP, TextTokenizer


class SB3Citizen(BaseAlgorithm):
    """An agent as SB3 sees it; `agents.base.TextAlgorithm` makes it, and makes it learn."""

    policy: TextPolicy  # type: ignore[assignment]
    reference: TextPolicy | None
    collector: Collector
    world: World
    """The processes that learn together, this one among them."""
    tokenizer: TextTokenizer | None
    max_new_tokens: int
    _rank_states: list[dict[str, Any]]
    """Of a saved agent, what each rank has for itself, until a collector goes on from it."""
    _gathered: dict[str, Any] | None
    """While a sharded agent is saved: its parameters, whole."""

    def _setup_collector(self) -> None:
        raise NotImplementedError

    @property
    def _mdp(self) -> TextMDP | None:
        """The rules of our own environment, where the agent plays in one."""
        inner = self.env.vector_env.unwrapped if isinstance(self.env, TextVecEnv) else None
        return getattr(inner, "mdp", None)

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> TextVecEnv:
        return env if isinstance(env, TextVecEnv) else TextVecEnv(as_vector_env(env, 32))

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Exchange the environment; spaces must agree. As in SB3, but any text environment will do."""
        wrapped = self._wrap_env(env)
        check_for_correct_spaces(wrapped, self.observation_space, self.action_space)
        if force_reset:
            self._last_obs = None
        self.env, self.n_envs = wrapped, wrapped.num_envs
        self.tokenizer = self._mdp.tokenizer if self._mdp is not None else self.tokenizer
        self._setup_collector()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Restart the agent's own generators. Unlike SB3's, no global one."""
        self.seed = seed
        if self.env is not None:
            self._rank_states = []
            self._setup_collector()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "policy.optimizer"]
        return (names if self.reference is None else [*names, "reference"]), []

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "collector",
            "micro_batches",
            "reference",
            "world",
            "_own_generator",
            "_gathered",
        ]

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write everything a later `load` needs to go on: weights, optimiser, reference, options, generators.

        All ranks call it, rank 0 writes.
        """
        if self.env is not None:
            self._rank_states = self.world.gather(self._own_state())
        self._gathered = gathered(super().get_parameters()) if is_sharded(self.policy) else None
        self.world.on_main(lambda: super(SB3Citizen, self).save(path, exclude, include))
        # What else they hold lives on in this agent.
        self._rank_states = [{"sampler": state["sampler"], "reward": {}} for state in self._rank_states]
        self._gathered = None

    def _own_state(self) -> dict[str, Any]:
        """What each rank has for itself: generators, the prompts that wait, what its reward adapted, its replay."""
        state = {"sampler": self.collector.state(), "reward": {} if self._mdp is None else self._mdp.reward.state()}
        if not self.world.is_main:  # rank 0's are saved as torch's are
            state["buffers"] = {name: getattr(self, name).state_dict() for name in self._buffers()}
        return state

    def _buffers(self) -> list[str]:
        """What is saved with the weights and is none: a replay."""
        names, _ = self._get_torch_save_params()
        return [name for name in names if "." not in name and not isinstance(getattr(self, name), nn.Module)]

    def get_parameters(self) -> dict[str, Any]:
        """As SB3's, sharded tensors as they are but while saving."""
        return super().get_parameters() if self._gathered is None else self._gathered

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's; a rank's replay is its own, and so is its share of sharded weights."""
        if is_sharded(self.policy):
            parameters = args[0] if args else kwargs["load_path_or_dict"]
            load_module(self.policy, parameters["policy"])
            load_optimiser(self.policy.optimizer, parameters["policy.optimizer"])
            if self.reference is not None:
                load_module(self.reference, parameters["reference"])
            return
        super().set_parameters(*args, **kwargs)
        if len(self._rank_states) == self.world.size and not self.world.is_main:
            for name, state in self._rank_states[self.world.rank].get("buffers", {}).items():
                getattr(self, name).load_state_dict(state)

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        callback = super()._init_callback(callback, progress_bar=False)
        if progress_bar:
            callback = CallbackList([callback, TokenProgressBar()])
            callback.init_callback(self)
        return callback

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """The next token for an observation. Hand the returned state in with the next one: it is the KV cache.

        ``action_masks`` are the environment's ``action_masks()``, as for sb3-contrib's MaskablePPO.
        """
        options = {"deterministic": deterministic, "action_masks": action_masks}
        generator = self.collector.generator if self.env is not None else self._own_generator
        return predict(self.policy, observation, state, generator=generator, **options)

    @functools.cached_property
    def _own_generator(self) -> torch.Generator:
        return torch.Generator(self.policy.device).manual_seed(0 if self.seed is None else self.seed)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        greedy: bool = False,
        seed: int | None = None,
    ) -> list[str]:
        """Complete texts.

        Args:
            prompts: the texts to continue.
            max_new_tokens: the length cap; by default that of the environment the agent learned in.
            greedy: the most likely token each time, instead of sampling at the training temperature.
            seed: seeds the sampling; by default the agent's seed.

        Raises:
            RuntimeError: the agent was loaded without knowing a tokenizer.
        """
        if self.tokenizer is None:
            raise RuntimeError("the agent knows no tokenizer: load it with env=")
        return generate(
            self.policy,
            self.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            greedy=greedy,
            seed=self.seed if seed is None else seed,
        )
