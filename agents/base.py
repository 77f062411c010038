"""The part that all algorithms share: an SB3 citizen around a policy, a collector and a frozen reference."""

from __future__ import annotations

import contextlib
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import safe_mean, update_learning_rate
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.adapters import has_adapter
from agents.citizen import SB3Citizen
from agents.config import AlgorithmConfig, make_config, scheduled
from agents.decoder import Decoder
from agents.distributed import WorldError, join
from agents.environments import TextVecEnv, as_vector_env, restore_reward
from agents.invariants import check_first_rollout
from agents.micro_batches import MicroBatches
from agents.model_source import (
    ModelSource,
    blueprint,
    check_tokenizer,
    from_blueprint,
    load_model,
    tokenizer_beside,
)
from agents.optimiser import adam
from agents.policy import TextPolicy
from agents.reference import frozen_copy
from agents.rollout import ActionRule, Collector
from agents.rollout_metrics import rollout_metrics
from agents.sharding import clip_gradients, gathered, is_sharded, shard, whole
from agents.trajectories import Trajectories
from textgen_env import TextGenVectorEnv


class TextAlgorithm(SB3Citizen):
    """Base class of the agents: `learn`, `predict`, `save` and `load` as in Stable-Baselines3, on whole episodes.

    A subclass names its ``config_class`` and writes ``train(trajectories)``.

    Under ``torchrun`` every process makes the agent, which finds its `World`: ``learn``, ``save`` and ``load`` are
    then called by all of them (see docs/distributed.md).

    Args:
        policy: the language model: a hub name, a local folder, a transformers config or a model object.
        env: a registered id, or any text environment (see `as_vector_env`).
        config: the options; keyword arguments override single fields of it.
        seed: seeds sampling, prompt order and fresh weights. No global generator is touched.
        device: "auto", "cpu", "cuda", …
        verbose: 1 prints metrics to the terminal.
        tensorboard_log: folder for TensorBoard logs.
        stats_window_size: episodes over which SB3's ``rollout/`` statistics run.
        shard_weights: leave each of several processes a share of the weights and of Adam's averages (FSDP).
        **overrides: fields of the config.
    """

    config_class: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    distributes: ClassVar[bool] = True
    """Whether several processes can learn together."""
    shards: ClassVar[bool] = False
    """Whether each of them can hold a share of the weights only."""
    config: AlgorithmConfig
    learning_rate: float
    micro_batches: MicroBatches
    """What goes through the policy at once."""

    def __init__(
        self,
        policy: ModelSource | type[TextPolicy],
        env: Any,
        config: AlgorithmConfig | None = None,
        *,
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        shard_weights: bool = False,
        _init_setup_model: bool = True,
        **overrides: Any,
    ) -> None:
        self.config = make_config(self.config_class, config, overrides)
        self.world = join(device)  # before the device is chosen: each rank has its own
        named = isinstance(policy, (str, Path))
        if env is not None:
            tokenizer = tokenizer_beside(policy) if named and isinstance(env, str) else None
            env = TextVecEnv(as_vector_env(env, self.config.num_envs, tokenizer))
        super().__init__(
            policy=TextPolicy,  # type: ignore[arg-type]
            env=env,
            learning_rate=0.0,  # set from the config once the model's width is known
            seed=seed,
            device=device,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
            stats_window_size=stats_window_size,
            support_multi_env=True,
        )
        self._iteration = 0
        self.shard_weights = shard_weights
        self._gathered = None
        self._source: Any = policy
        self._blueprint: dict[str, Any] | None = None
        self._rank_states = []
        mdp = self._mdp
        self.tokenizer = None if mdp is None else mdp.tokenizer
        self.max_new_tokens = 64 if mdp is None else mdp.max_new_tokens
        if _init_setup_model:
            if named and self.tokenizer is not None:
                check_tokenizer(policy, self.tokenizer)
            self._setup_model()

    # ---------------------------------------------------------------- construction

    def _setup_model(self) -> None:
        vocab_size = int(self.action_space.n)  # type: ignore[attr-defined]
        if self._blueprint is not None:  # being loaded: the weights follow, nothing is downloaded
            model = from_blueprint(self._blueprint)
        else:
            model = load_model(self._source, self.seed)
            self._source = None  # not kept: a model object would be saved twice
            self._blueprint = blueprint(model)
        # The invariants of an earlier run hold for a loaded agent too; its reference no longer equals its policy.
        self._reference_is_copy = self.num_timesteps == 0
        self.policy = self._make_policy(model, vocab_size).to(self.device)
        reading = self.world.size == 1 and self.num_timesteps > 0  # what many have learned, one may read alone
        if self.shard_weights and not reading:
            self._shard()
        width = model.get_output_embeddings().weight.shape[1]
        rate = self.config.learning_rate
        self.learning_rate = 0.04 / width if rate is None else rate
        self.policy.optimizer = adam(
            [parameter for parameter in self.policy.parameters() if parameter.requires_grad],
            lr=self.learning_rate,
            eps=self.config.adam_eps,
        )
        self.micro_batches = MicroBatches(self.policy, self.config, self.world)
        self.reference = self._make_reference()
        if self.env is not None:
            self._setup_collector()

    def _make_policy(self, model: PreTrainedModel, vocab_size: int) -> TextPolicy:
        """The heads that the algorithm needs on the model."""
        return TextPolicy(model, vocab_size, **self.config.policy_options)

    def _setup_collector(self) -> None:
        self.collector = self._make_collector()
        if is_sharded(self.policy):  # weights that are put together anew would leave captured graphs behind
            self.collector.make_decoder = Decoder
        if self._rank_states and len(self._rank_states) != self.world.size:
            warnings.warn(
                f"the agent was saved by {len(self._rank_states)} processes and goes on in {self.world}: prompts and "
                "sampling are drawn afresh",
                stacklevel=2,
            )
        elif self._rank_states:
            own = self._rank_states[self.world.rank]
            self.collector.load_state(own["sampler"])
            if own["reward"] and self._mdp is not None:
                restore_reward(self._mdp.reward, own["reward"])
                own["reward"] = {}  # once: the reward goes on learning

    def _make_collector(self) -> Collector:
        vector_env = self.env.vector_env  # type: ignore[union-attr]
        if isinstance(vector_env, TextGenVectorEnv):  # bare: score a whole rollout in one call
            vector_env = TextGenVectorEnv(
                vector_env.num_envs,
                mdp=vector_env.mdp,
                autoreset_mode=vector_env.autoreset_mode,
                defer_scoring=not vector_env.mdp.is_dense,
            )
        return Collector(vector_env, self.policy, seed=self.world.seed(self.seed))

    def _make_reference(self) -> TextPolicy | None:
        """A frozen copy of the policy as it stands now; algorithms without a KL penalty return None."""
        if not is_sharded(self.policy):
            return frozen_copy(self.policy)
        assert self._blueprint is not None
        reference = self._make_policy(from_blueprint(self._blueprint), self.policy.vocab_size)
        reference.load_state_dict(gathered(self.policy.state_dict()))
        reference.requires_grad_(False)
        shard(reference.to(self.device), self.world)
        return reference

    def _shard(self) -> None:
        if not self.shards:
            raise WorldError(f"{type(self).__name__} needs whole weights on every rank: leave shard_weights out")
        if has_adapter(self.policy.model):
            raise WorldError("an adapter's weights are few: leave shard_weights out")
        self.world.broadcast(self.policy)
        shard(self.policy, self.world)

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Within it a sharded agent is whole on every rank, to generate, evaluate or score; all ranks enter it."""
        return whole(self.policy, self.reference)

    def refresh_reference(self) -> None:
        """Make the policy, as it is now, the reference (after a supervised warm start, say)."""
        self.reference = self._make_reference()
        self._reference_is_copy = True

    # ---------------------------------------------------------------- learning

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Any:
        """Train for ``total_timesteps`` tokens (whole rollouts: the last one may run over).

        Args:
            total_timesteps: tokens to act.
            callback: SB3 callbacks; ``on_step`` is called after every vector step.
            log_interval: rollouts between two log lines.
            tb_log_name: name of the TensorBoard run; by default the algorithm's.
            reset_num_timesteps: False goes on counting (a resumed run).
            progress_bar: a bar with tokens a second and the time left.

        Raises:
            InvariantError: the first rollout shows that something is wired wrongly.
        """
        if self.env is None:
            raise RuntimeError("the agent has no environment to learn in: load it with env=, or call set_env")
        self._begin_together()
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        with whole(self.policy):
            callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            started = time.perf_counter()
            # Before the rollout: the last one runs over the total, where a linear schedule would be negative.
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            first = self._iteration == 0 and self.config.check_invariants
            with whole(self.policy, self.reference if first else None):
                trajectories = self.collect_rollouts(callback)
                if trajectories is None:
                    break
                collected = time.perf_counter()
                if first:
                    self._check_first_rollout(trajectories)
            self._update_learning_rate(self.policy.optimizer)
            for name, value in rollout_metrics(trajectories, self.world).items():
                self.logger.record(name, value)
            self.train(trajectories)
            if first:
                self.world.check_same(self.policy)
            self._iteration += 1
            finished = time.perf_counter()
            self.logger.record("time/rollout_seconds", collected - started)
            self.logger.record("time/update_seconds", finished - collected)
            tokens = self.world.sum(trajectories.num_tokens)
            self.logger.record("time/tokens_per_second", tokens / (finished - started))
            if self._iteration % log_interval == 0:
                assert self.ep_info_buffer is not None
                self.logger.record("rollout/ep_rew_mean", safe_mean([episode["r"] for episode in self.ep_info_buffer]))
                self.logger.record("rollout/ep_len_mean", safe_mean([episode["l"] for episode in self.ep_info_buffer]))
                self.logger.record("time/iterations", self._iteration)
                self.logger.record("time/episodes", self._episode_num)
                self.logger.record("num_tokens", self.num_timesteps)
                self.logger.name_to_value.update(self.world.mean_where_known(self.logger.name_to_value))
                self.logger.dump(self.num_timesteps)
        callback.on_training_end()
        return self

    def _begin_together(self) -> None:
        """All ranks start from rank 0's weights; the others are silent."""
        if self.world.size > 1 and not self.distributes:
            raise WorldError(f"{type(self).__name__} learns in one process: start it without torchrun")
        names, _ = self._get_torch_save_params()
        for name in names:
            value = getattr(self, name, None)  # a dotted name is an optimiser's: ranks step alike, theirs are alike
            if isinstance(value, nn.Module):
                self.world.broadcast(value)
        if not self.world.is_main:
            self.set_logger(Logger(None, []))

    def collect_rollouts(self, callback: BaseCallback) -> Trajectories | None:
        """Play the episodes of one update; None when a callback asked to stop, on whichever rank."""
        callback.on_rollout_start()

        def on_step(step: dict[str, Any]) -> bool:
            self.num_timesteps += step["num_running"]
            callback.update_locals(step)
            return bool(callback.on_step())

        count = self.config.episodes_per_rollout
        trajectories = self.collector.collect(
            count,
            samples_per_prompt=self.config.samples_per_prompt,
            act=self._action_rule(count),
            on_step=on_step,
        )
        # The ranks play on at their own pace: one that stops waits here until the others have played to the end.
        if self.world.any(trajectories is None) or trajectories is None:
            return None
        self._note_episodes(trajectories)
        callback.update_locals({"trajectories": trajectories})
        callback.on_rollout_end()
        return trajectories

    def _check_first_rollout(self, trajectories: Trajectories) -> None:
        check_first_rollout(self.policy, trajectories, self.reference if self._reference_is_copy else None)

    def _note_episodes(self, trajectories: Trajectories) -> None:
        """Count the episodes of all ranks, for SB3's statistics, and the tokens of the others."""
        self.num_timesteps += self.world.sum(trajectories.num_tokens) - trajectories.num_tokens
        assert self.ep_info_buffer is not None
        seconds = (time.time_ns() - self.start_time) / 1e9
        lengths = self.world.concat(trajectories.lengths_B).tolist()
        returns = self.world.concat(trajectories.returns_B).tolist()
        self._episode_num += len(lengths)
        self.ep_info_buffer.extend(
            {"r": score, "l": length, "t": seconds} for score, length in zip(returns, lengths, strict=True)
        )

    def _action_rule(self, num_episodes: int) -> ActionRule | None:
        """How the actions of a rollout are chosen; None draws them from the policy."""
        return None

    def train(self, trajectories: Trajectories) -> None:
        """Update the policy on one rollout."""
        raise NotImplementedError

    # ---------------------------------------------------------------- shared machinery of the updates

    @torch.no_grad()
    def rescore(self, policy: TextPolicy, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """``log_probs_BT`` and ``values_BT`` of the episodes' actions under ``policy``, by full forwards."""
        log_probs_BT = torch.zeros_like(trajectories.log_probs_BT)
        values_BT = torch.zeros_like(trajectories.values_BT)

        def score(rows: Tensor, part: Trajectories) -> None:
            scored, values, _ = policy.score(part, with_entropy=False)
            log_probs_BT[rows, : scored.shape[1]] = scored
            values_BT[rows, : scored.shape[1]] = values

        with whole(policy):
            self.micro_batches.each(trajectories, score)
        return log_probs_BT, values_BT

    def _update_learning_rate(self, optimizers: torch.optim.Optimizer) -> None:  # type: ignore[override]
        """The step size of the coming update: constant, or falling with the run's tokens."""
        config = self.config
        factor = scheduled(config.learning_rate_schedule, self._current_progress_remaining, config.learning_rate_warmup)
        rate = self.learning_rate * factor
        self.logger.record("train/learning_rate", rate)
        update_learning_rate(optimizers, rate)

    def optimiser_step(self) -> float:
        """Sum the accumulated gradients over the ranks, clip and step; returns their norm before clipping."""
        self.world.sum_gradients(self.policy.parameters())
        norm = clip_gradients(self.policy.parameters(), self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {float(norm)}: lower the learning rate, or look for rewards of extreme size"
            )
        self.policy.optimizer.step()
        self.policy.optimizer.zero_grad(set_to_none=True)
        self._n_updates += 1
        return float(norm)
