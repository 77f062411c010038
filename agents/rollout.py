"""Collecting whole episodes from a vector environment, with continuous batching.

A rollout is a fixed number of *started* episodes, all played to their end. Taking the first so many that
*finish* would favour short answers, and a learner would take the bias for a reward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from agents.decoder import Acted, Decoder, decoding
from agents.environments import row_info
from agents.episode_record import AllowedActions, EpisodeRecord
from agents.policy import TextPolicy
from agents.static_decoder import decoder_for
from agents.trajectories import Trajectories
from textgen_env import TextGenVectorEnv

StepHook = Callable[[dict[str, Any]], bool]
ActionRule = Callable[[Tensor, npt.NDArray[np.int64]], Tensor]
"""Chooses actions (N,) from logits (N, V), −inf where forbidden, of the episodes with these numbers (N,)."""


class Collector:
    """Plays episodes of a policy in a vector environment.

    Rows whose episode ended are dropped from the batch; as soon as a quarter of the rows is free they get the next
    prompts, while the others go on.

    Args:
        env: a Gymnasium vector environment with `TextGenVectorEnv`'s observations, in
            ``AutoresetMode.DISABLED``. A bare `TextGenVectorEnv` is scored in one batch at the end of the rollout.
        policy: the policy that acts.
        seed: seeds the sampling and the order of the prompts.

    Raises:
        ValueError: the environment resets rows by itself.
    """

    def __init__(self, env: VectorEnv, policy: TextPolicy, *, seed: int | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise ValueError(
                f"the collector resets rows itself, but the environment's autoreset mode is {mode}: make it with "
                "autoreset_mode='Disabled' (TextGenVectorEnv) or vector_kwargs={'autoreset_mode': ...} (SyncVectorEnv)"
            )
        self.env = env
        self.policy = policy
        sequence = np.random.SeedSequence(seed)
        env_seed, sample_seed, prompt_seed, shuffle_seed = (int(s.generate_state(1)[0]) for s in sequence.spawn(4))
        self.generator = torch.Generator(policy.device).manual_seed(sample_seed)
        self.prompt_order = np.random.default_rng(prompt_seed)
        self.shuffle = np.random.default_rng(shuffle_seed)
        """For whoever learns from the episodes: the order of minibatches."""
        self.make_decoder: Callable[[TextPolicy, int, int], Decoder] = decoder_for
        """For a learner that constrains the decoding itself; it then sets ``constrains``."""
        self.constrains = False
        self._prompt_queue: list[int] = []
        self._decoder: Decoder | None = None
        self._env_seed: int | None = env_seed
        inner = env.unwrapped
        # Only our own environment, unwrapped, may be asked for more than the Gymnasium protocol promises.
        self.native = inner if isinstance(inner, TextGenVectorEnv) else None
        self._defers = env is self.native and self.native.defer_scoring
        space: Any = env.single_observation_space
        self.capacity = space["input_ids"].shape[0]

    def state(self) -> dict[str, Any]:
        """The generators' states and the prompts that wait: what a resumed run needs to go on alike."""
        return {
            "generator": self.generator.get_state().cpu().numpy(),
            "prompt_order": self.prompt_order.bit_generator.state,
            "shuffle": self.shuffle.bit_generator.state,
            "prompt_queue": list(self._prompt_queue),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; one of another kind of device gives all but the generator of the samples."""
        saved = torch.from_numpy(state["generator"])
        if saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:
            warnings.warn(
                f"the run was saved on another kind of device than '{self.generator.device}': it goes on with other "
                "samples than it would have drawn there",
                stacklevel=2,
            )
        self.prompt_order.bit_generator.state = state["prompt_order"]
        self.shuffle.bit_generator.state = state["shuffle"]
        self._prompt_queue = list(state["prompt_queue"])

    @torch.no_grad()
    def collect(
        self,
        num_episodes: int,
        *,
        samples_per_prompt: int = 1,
        prompt_indices: Sequence[int] | None = None,
        greedy: bool = False,
        act: ActionRule | None = None,
        on_step: StepHook | None = None,
    ) -> Trajectories | None:
        """Start ``num_episodes`` episodes and play all of them to their end.

        Args:
            num_episodes: B, the number of episodes.
            samples_per_prompt: episodes that share a prompt draw; a shared prompt is prefilled once.
            prompt_indices: the prompts, one an episode group, instead of the next ones of a seeded shuffle.
            greedy: take the most likely action instead of a draw.
            act: chooses the actions instead of a draw from the policy.
            on_step: called after every environment step with ``rewards``, ``dones``, ``infos``, ``actions`` and
                ``num_running``; returning False abandons the rollout.

        Returns:
            The episodes, or None when ``on_step`` abandoned them.

        Raises:
            ValueError: ``num_episodes`` is not a multiple of ``samples_per_prompt``, or prompts cannot be chosen
                in this environment.
        """
        if num_episodes < 1 or num_episodes % samples_per_prompt:
            raise ValueError(
                f"num_episodes={num_episodes} must be a positive multiple of samples_per_prompt={samples_per_prompt}"
            )
        prompts = self._draw_prompts(num_episodes // samples_per_prompt, samples_per_prompt, prompt_indices)
        decoder = self._ready_decoder(min(self.env.num_envs, num_episodes))
        generator = None if greedy else self.generator
        rollout = _Rollout(self, decoder, num_episodes, prompts, generator, act, on_step)
        with decoding(self.policy):
            if not rollout.play():
                return None
        return self._finish(rollout.record, prompts, samples_per_prompt)

    def _ready_decoder(self, rows: int) -> Decoder:
        """The decoder of the last rollout, empty: its memory is worth keeping."""
        if self._decoder is None or self._decoder.cache.num_slots < rows:
            self._decoder = None  # its memory first
            self._decoder = self.make_decoder(self.policy, rows, self.capacity)
        self._decoder.clear()
        return self._decoder

    def _draw_prompts(self, count: int, samples: int, asked: Sequence[int] | None) -> npt.NDArray[np.int64] | None:
        """Prompt index of every episode; None where the environment draws its own."""
        if self.native is None:
            if asked is not None or samples > 1:
                raise ValueError("choosing prompts needs an environment that honours options['prompt_index']")
            return None
        if asked is None:
            while len(self._prompt_queue) < count:  # epoch after epoch, each in a new order
                self._prompt_queue += self.prompt_order.permutation(len(self.native.mdp.prompts)).tolist()
            asked, self._prompt_queue = self._prompt_queue[:count], self._prompt_queue[count:]
        if len(asked) != count:
            raise ValueError(f"{len(asked)} prompt_indices were given for {count} prompts")
        return np.repeat(np.asarray(asked, dtype=np.int64), samples)

    def reset_rows(
        self, rows: list[int], prompts: npt.NDArray[np.int64] | None, start: int, allowed: AllowedActions
    ) -> list[Tensor]:
        """Reset rows for the episodes from ``start`` on; returns their prompts' token ids."""
        options: dict[str, Any] = {}
        if prompts is not None:
            indices = np.zeros(self.env.num_envs, dtype=np.int64)
            indices[rows] = prompts[start : start + len(rows)]
            options["prompt_index"] = indices
        mask = np.zeros(self.env.num_envs, dtype=np.bool_)
        # At first, rows beyond the rollout are started too where the protocol forbids stepping an ended row.
        mask[slice(None) if self.native is None and start == 0 else rows] = True
        options["reset_mask"] = mask
        observations, infos = self.env.reset(seed=self._env_seed, options=options)
        allowed.note(infos, mask)
        self._env_seed = None
        lengths = observations["attention_mask"].sum(-1, dtype=np.int64)
        return [torch.from_numpy(observations["input_ids"][row, : lengths[row]].copy()) for row in rows]

    def _finish(
        self, record: EpisodeRecord, prompts: npt.NDArray[np.int64] | None, samples_per_prompt: int
    ) -> Trajectories:
        if self._defers and prompts is not None and self.native is not None:
            mdp = self.native.mdp
            completions = [
                mdp.complete(
                    int(prompt), record.actions[episode, : record.lengths[episode]].tolist(), info["stop_reason"]
                )
                for episode, (prompt, info) in enumerate(zip(prompts, record.infos, strict=True))
            ]
            scores = mdp.score(completions)
            for episode, completion in enumerate(completions):
                record.infos[episode] = mdp.end_info(completion, scores, episode)
                record.rewards[episode, : record.lengths[episode]] = scores.token_rewards[episode]
        if prompts is not None:
            for info, prompt in zip(record.infos, prompts.tolist(), strict=True):
                info["prompt_index"] = prompt
        trajectories = record.trajectories(self.policy.device, samples_per_prompt)
        if trajectories.log_probs_BT.isnan().any():
            raise FloatingPointError("the policy's logits are not finite: lower learning_rate, or look at its weights")
        if record.truncated.any():
            trajectories = trajectories.replace(bootstrap_values_B=self._bootstrap(trajectories, record.truncated))
        return trajectories

    def _bootstrap(self, trajectories: Trajectories, truncated: npt.NDArray[np.bool_]) -> Tensor:
        """V of the final prefix of the episodes that a wrapper cut short, 0 for the others."""
        batch, length = trajectories.input_ids_BS.shape
        last = trajectories.prompt_lengths_B + trajectories.lengths_B - 1
        select = torch.arange(batch, device=last.device) * length + last
        positions = torch.arange(length, device=last.device).expand(batch, -1)
        _, values = self.policy(trajectories.input_ids_BS, positions, select)
        return values * torch.from_numpy(truncated).to(values.device)


@dataclass(frozen=True)
class _Launched:
    """A step that the device has been asked for."""

    slots: npt.NDArray[np.int64]
    """The decoder's rows that ran, (M,)."""
    acted: Acted


class _Rollout:
    """The episodes of one `Collector.collect` as they are played.

    Where the decoder can go on without knowing which episodes have ended (`Decoder.ahead`), and nothing but the
    last token bears on the next, the device computes a step while the environment takes the one before it. What it
    did for rows that had ended by then is thrown away.
    """

    def __init__(
        self,
        collector: Collector,
        decoder: Decoder,
        num_episodes: int,
        prompts: npt.NDArray[np.int64] | None,
        generator: torch.Generator | None,
        rule: ActionRule | None,
        on_step: StepHook | None,
    ) -> None:
        self.collector, self.env, self.decoder = collector, collector.env, decoder
        self.num_episodes, self.prompts = num_episodes, prompts
        self.generator, self.rule, self.on_step = generator, rule, on_step
        self.record = EpisodeRecord(num_episodes, collector.capacity)
        self.allowed = AllowedActions(self.env.num_envs, collector.policy)
        self.started = 0
        self.free = list(range(self.env.num_envs))
        # Each slot of the decoder plays one row of the environment, and one episode.
        self.rows = np.zeros(decoder.num_slots, dtype=np.int64)
        self.episodes = np.zeros(decoder.num_slots, dtype=np.int64)
        self.actions = np.zeros(self.env.num_envs, dtype=np.int64)

    def play(self) -> bool:
        """Until all have ended; False if the hook abandoned them."""
        launched: _Launched | None = None
        while True:
            # A prefill of several rows costs little more than that of one, and a free row costs nothing.
            waiting = self.num_episodes - self.started
            if waiting and len(self.free) >= min(waiting, max(1, self.env.num_envs // 4)):
                if launched is not None and not self.settle(launched):  # no step may span a restart of rows
                    return False
                launched = None
                self.start(min(len(self.free), waiting))
            if not len(self.decoder.slots):
                return True
            following = self.launch()
            if launched is not None and not self.settle(launched):
                return False
            launched = following
            if not self.may_run_ahead():
                if not self.settle(launched):
                    return False
                launched = None

    def may_run_ahead(self) -> bool:
        """Whether the next step depends on nothing that the environment has to say about this one."""
        free = self.rule is None and not self.allowed.known
        return self.decoder.ahead and self.collector.native is not None and free

    def start(self, count: int) -> None:
        """Reset rows of the environment for the next episodes and hand their prompts to the decoder."""
        rows, self.free = self.free[:count], self.free[count:]
        episodes = np.arange(self.started, self.started + count)
        prompt_ids = self.collector.reset_rows(rows, self.prompts, self.started, self.allowed)
        slots = self.decoder.free_slots(count)
        self.decoder.start(slots, prompt_ids)
        self.record.start(episodes, prompt_ids)
        self.rows[slots], self.episodes[slots] = rows, episodes
        self.started += count

    def launch(self) -> _Launched:
        """Ask the device for a token of every running row."""
        slots, every = self.decoder.slots, slice(self.decoder.num_rows)
        rule = self.rule
        choose = None if rule is None else lambda logits_NV: rule(logits_NV, self.episodes[every])
        allowed_NV = self.allowed.of(self.rows[every])
        constrained = allowed_NV is not None or self.collector.constrains
        return _Launched(slots, self.decoder.act(self.generator, allowed_NV, choose, constrained=constrained))

    def settle(self, launched: _Launched) -> bool:
        """Take the step in the environment; False if the hook abandons the rollout."""
        slots = launched.slots[self.decoder.runs(launched.slots)]
        if not len(slots):
            return True
        rows, episodes = self.rows[slots], self.episodes[slots]
        actions = launched.acted.host_actions.numpy()[slots]
        self.actions[rows] = actions
        _, rewards, terminated, truncated, infos = self.env.step(self.actions)
        self.record.step(episodes, slots, launched.acted, actions, rewards[rows])
        self.allowed.note(infos, np.ones_like(terminated))
        over = terminated | truncated
        playing = np.zeros_like(over)
        playing[rows] = True
        if self.on_step is not None and not self.on_step(
            {
                "actions": self.actions,
                "rewards": rewards,
                "dones": over & playing,
                "infos": infos,
                "num_running": len(slots),
            }
        ):
            return False
        for slot in slots[over[rows]][::-1]:  # from the back: slot numbers stay valid
            row = int(self.rows[slot])
            cut_short = bool(truncated[row] and not terminated[row])
            self.record.end(int(self.episodes[slot]), row_info(infos, row), cut_short)
            self.free.append(row)
            moved = self.decoder.drop(int(slot))
            if moved is not None:
                self.rows[slot], self.episodes[slot] = self.rows[moved], self.episodes[moved]
        if self.collector.native is None and over.any():
            # A row that plays no episode: ours stay idle, the protocol wants others reset.
            self.env.reset(options={"reset_mask": over})
        return True
