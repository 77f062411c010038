"""Collecting whole episodes from a vector environment, with continuous batching.

A rollout is a fixed number of *started* episodes, all played to their end. Taking the first so many that
*finish* would favour short answers, and a learner would take the bias for a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from agents.decoder import Decoder, decoding
from agents.environments import row_info
from agents.policy import TextPolicy, chosen
from agents.trajectories import Trajectories
from textgen_env import TextGenVectorEnv

StepHook = Callable[[dict[str, Any]], bool]
ActionRule = Callable[[Tensor, npt.NDArray[np.int64]], Tensor]
"""Chooses actions (N,) from logits (N, V), −inf where forbidden, of the episodes with these numbers (N,)."""


def sample_actions(log_probs_NV: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row's distribution, shape (N,), by inverting its cumulative distribution.

    In float64, with one uniform a row: a token of probability 0 is never drawn, and the cost is one pass.
    """
    cumulative = log_probs_NV.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    uniform = torch.rand(total.shape, generator=generator, dtype=torch.float64, device=total.device)
    return torch.searchsorted(cumulative, uniform * (total * (1 - 2**-52)), right=True).squeeze(-1)


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
        self.make_decoder: Callable[[TextPolicy, int, int], Decoder] = Decoder
        """For a learner that constrains the decoding itself; it then sets ``constrains``."""
        self.constrains = False
        self._prompt_queue: list[int] = []
        self._decoder: Decoder | None = None
        self._env_seed: int | None = env_seed
        inner = env.unwrapped
        # Only our own environment, unwrapped, may be asked for more than the Gymnasium protocol promises.
        self._native = inner if isinstance(inner, TextGenVectorEnv) else None
        self._defers = env is self._native and self._native.defer_scoring
        space: Any = env.single_observation_space
        self._capacity = space["input_ids"].shape[0]

    def state(self) -> dict[str, Any]:
        """The generators' states and the prompts that wait: what a resumed run needs to go on alike."""
        return {
            "generator": self.generator.get_state().cpu().numpy(),
            "prompt_order": self.prompt_order.bit_generator.state,
            "shuffle": self.shuffle.bit_generator.state,
            "prompt_queue": list(self._prompt_queue),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.generator.set_state(torch.from_numpy(state["generator"]))
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
        record = _Record(num_episodes, self._capacity)
        decoder = self._ready_decoder(min(self.env.num_envs, num_episodes))
        # The decoder's rows are packed; each plays one row of the environment, and one episode.
        env_rows: list[int] = []
        episodes = np.zeros(0, dtype=np.int64)
        free = list(range(self.env.num_envs))
        started = 0
        actions_all = np.zeros(self.env.num_envs, dtype=np.int64)
        allowed = _AllowedActions(self.env.num_envs, self.policy)
        with decoding(self.policy):
            while decoder.num_rows or started < num_episodes:
                # A prefill of several rows costs little more than that of one, and a free row costs nothing.
                if started < num_episodes and len(free) >= min(num_episodes - started, max(1, self.env.num_envs // 4)):
                    count = min(len(free), num_episodes - started)
                    rows, free = free[:count], free[count:]
                    fresh = np.arange(started, started + count)
                    prompt_ids = self._reset(rows, prompts, started, allowed)
                    decoder.start(list(range(len(env_rows), len(env_rows) + count)), prompt_ids)
                    record.start(fresh, prompt_ids)
                    env_rows += rows
                    episodes = np.concatenate([episodes, fresh])
                    started += count
                logits, values = decoder.step(allowed.of(env_rows))
                log_probs_NV = torch.log_softmax(logits, dim=-1)
                if act is not None:
                    actions = act(logits, episodes)
                else:
                    actions = logits.argmax(-1) if greedy else sample_actions(log_probs_NV, self.generator)
                decoder.append(actions)
                actions_all[env_rows] = actions.cpu().numpy()
                _, rewards, terminated, truncated, infos = self.env.step(actions_all)
                log_probs = chosen(log_probs_NV, actions)
                constrained = allowed.known or self.constrains
                allowed_NV = (logits > -torch.inf) if constrained else None
                record.step(episodes, actions_all[env_rows], log_probs, values, rewards[env_rows], allowed_NV)
                allowed.note(infos, np.ones_like(terminated))
                over = terminated | truncated
                playing = np.zeros_like(over)
                playing[env_rows] = True
                if on_step is not None and not on_step(
                    {
                        "actions": actions_all,
                        "rewards": rewards,
                        "dones": over & playing,
                        "infos": infos,
                        "num_running": decoder.num_rows,
                    }
                ):
                    return None
                for slot in np.flatnonzero(over[env_rows])[::-1]:  # from the back: slot numbers stay valid
                    row = env_rows[slot]
                    record.end(int(episodes[slot]), row_info(infos, row), bool(truncated[row] and not terminated[row]))
                    free.append(row)
                    moved = decoder.drop(int(slot))
                    if moved is not None:
                        env_rows[slot], episodes[slot] = env_rows[moved], episodes[moved]
                    env_rows.pop()
                    episodes = episodes[:-1]
                if self._native is None and over.any():
                    # A row that plays no episode: ours stay idle, the protocol wants others reset.
                    self.env.reset(options={"reset_mask": over})
        return self._finish(record, prompts, samples_per_prompt)

    def _ready_decoder(self, rows: int) -> Decoder:
        """The decoder of the last rollout, empty: its memory is worth keeping."""
        if self._decoder is None or self._decoder.cache.num_slots < rows:
            self._decoder = self.make_decoder(self.policy, rows, self._capacity)
        self._decoder.clear()
        return self._decoder

    def _draw_prompts(self, count: int, samples: int, asked: Sequence[int] | None) -> npt.NDArray[np.int64] | None:
        """Prompt index of every episode; None where the environment draws its own."""
        if self._native is None:
            if asked is not None or samples > 1:
                raise ValueError("choosing prompts needs an environment that honours options['prompt_index']")
            return None
        if asked is None:
            while len(self._prompt_queue) < count:  # epoch after epoch, each in a new order
                self._prompt_queue += self.prompt_order.permutation(len(self._native.mdp.prompts)).tolist()
            asked, self._prompt_queue = self._prompt_queue[:count], self._prompt_queue[count:]
        if len(asked) != count:
            raise ValueError(f"{len(asked)} prompt_indices were given for {count} prompts")
        return np.repeat(np.asarray(asked, dtype=np.int64), samples)

    def _reset(
        self, rows: list[int], prompts: npt.NDArray[np.int64] | None, start: int, allowed: _AllowedActions
    ) -> list[Tensor]:
        """Reset rows for the episodes from ``start`` on; returns their prompts' token ids."""
        options: dict[str, Any] = {}
        if prompts is not None:
            indices = np.zeros(self.env.num_envs, dtype=np.int64)
            indices[rows] = prompts[start : start + len(rows)]
            options["prompt_index"] = indices
        mask = np.zeros(self.env.num_envs, dtype=np.bool_)
        # At first, rows beyond the rollout are started too where the protocol forbids stepping an ended row.
        mask[slice(None) if self._native is None and start == 0 else rows] = True
        options["reset_mask"] = mask
        observations, infos = self.env.reset(seed=self._env_seed, options=options)
        allowed.note(infos, mask)
        self._env_seed = None
        lengths = observations["attention_mask"].sum(-1, dtype=np.int64)
        return [torch.from_numpy(observations["input_ids"][row, : lengths[row]].copy()) for row in rows]

    def _finish(self, record: _Record, prompts: npt.NDArray[np.int64] | None, samples_per_prompt: int) -> Trajectories:
        if self._defers and prompts is not None and self._native is not None:
            mdp = self._native.mdp
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


class _AllowedActions:
    """The environment's action masks, a row an environment; unknown where it gives none."""

    def __init__(self, num_envs: int, policy: TextPolicy) -> None:
        self._shape = (num_envs, policy.vocab_size)
        self._device = policy.device
        self._rows: npt.NDArray[np.bool_] | None = None

    @property
    def known(self) -> bool:
        return self._rows is not None

    def note(self, infos: dict[str, Any], rows: npt.NDArray[np.bool_]) -> None:
        """Keep the masks that a reset or a step of some rows reported; those that reported none are free."""
        if self._rows is None:
            if "action_mask" not in infos:
                return
            self._rows = np.ones(self._shape, dtype=np.bool_)
        self._rows[rows] = True
        if "action_mask" in infos:
            reported = infos["_action_mask"]
            self._rows[reported] = np.stack(infos["action_mask"][reported]).astype(np.bool_)

    def of(self, env_rows: list[int]) -> Tensor | None:
        return None if self._rows is None else torch.from_numpy(self._rows[env_rows]).to(self._device)


class _Record:
    """The rollout as it grows: one row an episode, written a column a step."""

    def __init__(self, episodes: int, capacity: int) -> None:
        self.actions = np.zeros((episodes, capacity), dtype=np.int64)
        self.rewards = np.zeros((episodes, capacity))
        self.lengths = np.zeros(episodes, dtype=np.int64)
        self.prompts: list[Tensor] = [torch.zeros(0, dtype=torch.long)] * episodes
        self.infos: list[dict[str, Any]] = [{}] * episodes
        self.truncated = np.zeros(episodes, dtype=np.bool_)
        self._steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Tensor, Tensor, Tensor | None]] = []

    def start(self, episodes: npt.NDArray[np.int64], prompt_ids: list[Tensor]) -> None:
        for episode, ids in zip(episodes, prompt_ids, strict=True):
            self.prompts[episode] = ids

    def step(
        self,
        episodes: npt.NDArray[np.int64],
        actions: npt.NDArray[np.int64],
        log_probs: Tensor,
        values: Tensor,
        rewards: npt.NDArray[np.float64],
        allowed_NV: Tensor | None,
    ) -> None:
        at = self.lengths[episodes]
        self.actions[episodes, at] = actions
        self.rewards[episodes, at] = rewards
        self._steps.append((episodes.copy(), at, log_probs, values, allowed_NV))
        self.lengths[episodes] += 1

    def end(self, episode: int, info: dict[str, Any], truncated: bool) -> None:
        token_rewards = info.get("token_rewards")
        # Known only now and paid as a sum: put every token's share where it belongs, unless a wrapper paid otherwise.
        if token_rewards is not None and np.isclose(sum(token_rewards), self.rewards[episode].sum()):
            self.rewards[episode, : self.lengths[episode]] = token_rewards
        self.infos[episode] = info
        self.truncated[episode] = truncated

    def trajectories(self, device: torch.device, samples_per_prompt: int) -> Trajectories:
        count, steps = len(self.lengths), int(self.lengths.max())
        prompt_lengths = np.array([len(ids) for ids in self.prompts])
        input_ids = torch.zeros((count, int((prompt_lengths + self.lengths).max())), dtype=torch.long)
        for episode, ids in enumerate(self.prompts):
            length = int(self.lengths[episode])
            input_ids[episode, : len(ids)] = ids
            input_ids[episode, len(ids) : len(ids) + length] = torch.from_numpy(self.actions[episode, :length])
        rows = torch.from_numpy(np.concatenate([episodes for episodes, *_ in self._steps])).to(device)
        columns = torch.from_numpy(np.concatenate([at for _, at, *_ in self._steps])).to(device)
        log_probs = torch.cat([step[2] for step in self._steps])
        values = torch.cat([step[3] for step in self._steps])
        allowed_BTV = None
        # Of the first steps they may be missing: an environment is known to constrain once it does.
        masks = [step[4] for step in self._steps if step[4] is not None]
        if masks:
            known = sum(len(mask) for mask in masks)
            allowed_BTV = torch.ones((count, steps, masks[0].shape[-1]), dtype=torch.bool, device=device)
            allowed_BTV[rows[-known:], columns[-known:]] = torch.cat(masks)

        def place(flat: Tensor) -> Tensor:
            return flat.new_zeros((count, steps)).index_put((rows, columns), flat)

        lengths = torch.from_numpy(self.lengths)
        return Trajectories(
            input_ids_BS=input_ids.to(device),
            prompt_lengths_B=torch.from_numpy(prompt_lengths).to(device),
            action_mask_BT=(torch.arange(steps) < lengths[:, None]).to(device),
            log_probs_BT=place(log_probs),
            values_BT=place(values),
            rewards_BT=torch.from_numpy(self.rewards[:, :steps]).to(device, values.dtype),
            bootstrap_values_B=values.new_zeros(count),
            prompt_groups_B=(torch.arange(count) // samples_per_prompt).to(device),
            infos=tuple(self.infos),
            allowed_BTV=allowed_BTV,
        )
