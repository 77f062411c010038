"""Logged episodes: completions that someone else wrote, as `Trajectories`, scored by the environment's own reward."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.trajectories import Trajectories
from textgen_env import Completion, TextMDP
from textgen_env.lookup import did_you_mean
from textgen_env.tasks.records import read_jsonl


def logged_episodes(
    mdp: TextMDP,
    prompts: Sequence[int | str],
    completions: Sequence[str | Sequence[int]],
    rewards: Sequence[float | Sequence[float]] | None = None,
) -> Trajectories:
    """Completions as finished episodes of ``mdp``.

    An EOS is put at the end where there is room for it and none stands there. Log-probabilities and values are 0: who
    wrote the completions is not known. Episodes of one prompt share a prompt group.

    Args:
        mdp: the environment's rules.
        prompts: B prompts of its split, by index or by text.
        completions: B texts, or the token ids that were written.
        rewards: B numbers, paid on the last token, or one array a completion with a reward for every token (an EOS
            that is put at the end gets 0 of those). By default the environment's reward scores the completions.

    Raises:
        ValueError: the lists differ in length or are empty, a prompt is not in the split, an id is no token or was not
            allowed, something stands behind an EOS, a completion is longer than ``max_new_tokens``, or an array of
            rewards has not one a token.
    """
    if len(prompts) != len(completions) or (rewards is not None and len(rewards) != len(prompts)):
        counts = f"{len(prompts)} prompts and {len(completions)} completions"
        raise ValueError(f"got {counts}" + ("" if rewards is None else f" and {len(rewards)} rewards"))
    if not len(prompts):
        raise ValueError("no episodes to log")
    indices = _prompt_indices(mdp, prompts)
    written = [_tokens(mdp, index, completion) for index, completion in zip(indices, completions, strict=True)]
    finished = [
        mdp.complete(index, ids, "eos" if mdp.is_eos_V[ids[-1]] else "length")
        for index, ids in zip(indices, written, strict=True)
    ]
    if rewards is None:
        scores = mdp.score(finished)
        infos = [mdp.end_info(completion, scores, row) for row, completion in enumerate(finished)]
        token_rewards = _paid_step_by_step(mdp, finished) if mdp.is_dense else scores.token_rewards
    else:
        infos = [_info(completion) for completion in finished]
        token_rewards = [_spread(reward, len(ids)) for reward, ids in zip(rewards, written, strict=True)]
    return _trajectories(mdp, indices, written, token_rewards, infos)


def read_logged(path: str | PathLike[str], mdp: TextMDP) -> Trajectories:
    """Logged episodes from a JSON-lines file: ``prompt`` and ``completion`` (texts), and where it is known ``reward``.

    Records of prompts that the task has in another split are left out, with one warning: they are held out.

    Raises:
        ValueError: a record lacks a field or has one of the wrong type, its prompt is in no split, or some records
            have a reward and others have none (naming file and line); or no record is left.
        OSError: the file cannot be read.
    """
    indices = {prompt.text: index for index, prompt in enumerate(mdp.prompts)}
    held_out = {prompt.text for split in mdp.task.splits.values() for prompt in split} - indices.keys()
    prompts: list[int] = []
    completions: list[str] = []
    rewards: list[float] = []
    skipped = 0
    for where, record in read_jsonl(path):
        prompt, completion = (_field(record, name, where) for name in ("prompt", "completion"))
        if prompt in held_out:
            skipped += 1
            continue
        if prompt not in indices:
            hint = did_you_mean(prompt, indices).partition(" Known")[0]
            raise ValueError(f"{where}: {prompt!r:.80} is no prompt of task '{mdp.task.name}'; {hint[:200]}")
        reward = record.get("reward")
        if (reward is not None) != (len(rewards) == len(prompts)) and prompts:
            raise ValueError(f"{where}: give every record a reward, or none (the environment's own then scores them)")
        if reward is not None:
            if isinstance(reward, bool) or not isinstance(reward, (int, float)):
                raise ValueError(f"{where}, field 'reward': expected a number, got {reward!r:.80}")
            rewards.append(float(reward))
        prompts.append(indices[prompt])
        completions.append(completion)
    if not prompts:
        raise ValueError(f"{path}: no record's prompt is in split '{mdp.split}' of task '{mdp.task.name}'")
    if skipped:
        warnings.warn(
            f"{path}: {skipped} of {skipped + len(prompts)} records are of prompts outside split '{mdp.split}' and are "
            "left out",
            stacklevel=2,
        )
    return logged_episodes(mdp, prompts, completions, rewards or None)


def _field(record: Mapping[str, Any], name: str, where: str) -> str:
    if name not in record:
        raise ValueError(f"{where}: no field '{name}'; {did_you_mean(name, record)}")
    if not isinstance(record[name], str):
        raise ValueError(f"{where}, field '{name}': expected a text, got {type(record[name]).__name__}")
    return str(record[name])


def reference_episodes(mdp: TextMDP) -> Trajectories:
    """Every (prompt, reference) of the environment's split as an episode: demonstrations.

    References that are longer than ``max_new_tokens`` are left out, with one warning.

    Raises:
        ValueError: the split has no references, or none that fits.
    """
    pairs = [(index, reference) for index, prompt in enumerate(mdp.prompts) for reference in prompt.references]
    if not pairs:
        raise ValueError(f"split '{mdp.split}' of task '{mdp.task.name}' has no references to learn from")
    encode, prompts = mdp.tokenizer.encode_completion, mdp.prompts
    fitting = [
        (index, text) for index, text in pairs if len(encode(prompts[index].text, text)) <= mdp.max_new_tokens + 1
    ]
    if len(fitting) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(fitting)} of {len(pairs)} references are longer than max_new_tokens="
            f"{mdp.max_new_tokens} and are left out",
            stacklevel=2,
        )
    if not fitting:
        raise ValueError(f"no reference fits into max_new_tokens={mdp.max_new_tokens}: raise it")
    return logged_episodes(mdp, [index for index, _ in fitting], [text for _, text in fitting])


def _prompt_indices(mdp: TextMDP, prompts: Sequence[int | str]) -> list[int]:
    by_text: dict[str, int] = {}
    for index, prompt in enumerate(mdp.prompts):
        by_text.setdefault(prompt.text, index)
    indices = []
    for prompt_or_index in prompts:
        if isinstance(prompt_or_index, str):
            if prompt_or_index not in by_text:
                hint = did_you_mean(prompt_or_index, by_text).partition(" Known")[0]
                raise ValueError(f"{prompt_or_index!r} is no prompt of split '{mdp.split}'; {hint[:200]}")
            indices.append(by_text[prompt_or_index])
        else:
            if not 0 <= prompt_or_index < len(mdp.prompts):
                raise ValueError(f"prompt {prompt_or_index} is out of range: the split has {len(mdp.prompts)} prompts")
            indices.append(int(prompt_or_index))
    return indices


def _tokens(mdp: TextMDP, index: int, completion: str | Sequence[int]) -> list[int]:
    """The actions of a logged completion: its ids, and an EOS where there is room for one."""
    text = mdp.prompts[index].text
    where = f"the completion {completion!r:.80} of prompt {text!r:.80}"
    if isinstance(completion, str):
        ids = mdp.tokenizer.encode_completion(text, completion).tolist()[:-1]
    else:
        ids = [int(token) for token in completion]
    outside = [token for token in ids if not 0 <= token < mdp.tokenizer.vocab_size]
    if outside:
        raise ValueError(
            f"{where} has the id {outside[0]}, outside the vocabulary of {mdp.tokenizer.vocab_size} tokens"
        )
    if any(mdp.is_eos_V[token] for token in ids[:-1]):
        raise ValueError(f"{where} goes on after an EOS, which ends an episode")
    if len(ids) > mdp.max_new_tokens:
        raise ValueError(f"{where} has {len(ids)} tokens, more than max_new_tokens={mdp.max_new_tokens}: raise it")
    if len(ids) < mdp.max_new_tokens and not (ids and mdp.is_eos_V[ids[-1]]):
        ids.append(mdp.tokenizer.eos_ids[0])
    return ids


def _paid_step_by_step(mdp: TextMDP, finished: Sequence[Completion]) -> list[npt.NDArray[np.float64]]:
    """What a dense reward pays: asked about every prefix, as ``step`` asks, the newest token's share of each."""
    prefixes = [
        replace(completion, text=mdp.tokenizer.decode(ids), token_ids=ids, stop_reason=None)
        if len(ids) < len(completion.token_ids)
        else completion
        for completion in finished
        for ids in (completion.token_ids[:length] for length in range(1, len(completion.token_ids) + 1))
    ]
    newest = np.array([rewards[-1] for rewards in mdp.score(prefixes).token_rewards])
    ends = np.cumsum([len(completion.token_ids) for completion in finished])
    return np.split(newest, ends[:-1])


def _spread(reward: float | Sequence[float], length: int) -> npt.NDArray[np.float64]:
    """A reward a token."""
    given = np.atleast_1d(np.asarray(reward, dtype=np.float64))
    rewards = np.zeros(length)
    if np.ndim(reward) == 0:
        rewards[-1] = given[0]
    elif given.ndim == 1 and length - 1 <= len(given) <= length:
        rewards[: len(given)] = given
    else:
        raise ValueError(f"an array of shape {given.shape} is no reward for each of {length} tokens")
    if not np.isfinite(rewards).all():
        raise ValueError(f"the reward {reward!r:.80} is not finite")
    return rewards


def _info(completion: Completion) -> dict[str, Any]:
    return {
        "prompt": completion.prompt.text,
        "references": completion.prompt.references,
        "text": completion.text,
        "stop_reason": completion.stop_reason,
        "completion": completion,
    }


def _trajectories(
    mdp: TextMDP,
    indices: Sequence[int],
    written: Sequence[Sequence[int]],
    token_rewards: Sequence[npt.NDArray[np.float64]],
    infos: Sequence[dict[str, Any]],
) -> Trajectories:
    prompts = [mdp.prompt_ids(index) for index in indices]
    count, steps = len(indices), max(len(ids) for ids in written)
    width = max(len(prompt) + len(ids) for prompt, ids in zip(prompts, written, strict=True))
    lengths = torch.tensor([len(ids) for ids in written])
    input_ids = torch.zeros((count, width), dtype=torch.long)
    rewards = torch.zeros((count, steps))
    allowed = None
    if mdp.allowed_tokens is not None:
        allowed = torch.ones((count, steps, mdp.tokenizer.vocab_size), dtype=torch.bool)
    for row, (prompt, ids) in enumerate(zip(prompts, written, strict=True)):
        input_ids[row, : len(prompt)] = torch.from_numpy(prompt)
        input_ids[row, len(prompt) : len(prompt) + len(ids)] = torch.tensor(ids)
        rewards[row, : len(ids)] = torch.from_numpy(token_rewards[row])
        if allowed is not None:
            masks = np.stack([mdp.action_mask(indices[row], ids[:step]) for step in range(len(ids))]).astype(np.bool_)
            forbidden = [token for token, mask in zip(ids, masks, strict=True) if not mask[token]]
            if forbidden:
                raise ValueError(
                    f"completion {row} has token {forbidden[0]} ({mdp.tokenizer.decode([forbidden[0]])!r}) where the "
                    "environment does not allow it"
                )
            allowed[row, : len(ids)] = torch.from_numpy(masks)
    return Trajectories(
        input_ids_BS=input_ids,
        prompt_lengths_B=torch.tensor([len(prompt) for prompt in prompts]),
        action_mask_BT=torch.arange(steps) < lengths[:, None],
        log_probs_BT=torch.zeros_like(rewards),
        values_BT=torch.zeros_like(rewards),
        rewards_BT=rewards,
        bootstrap_values_B=torch.zeros(count),
        prompt_groups_B=torch.unique(torch.tensor(indices), return_inverse=True)[1],
        infos=tuple(infos),
        allowed_BTV=allowed,
    )
