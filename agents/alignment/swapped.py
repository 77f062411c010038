"""What swapped words do to a model's scores: of the same answers swapped too, and of its answers to swapped prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.alignment.answers import UNSCORED, Answers, Side, play, positions, returns, written
from agents.alignment.swaps import SwapGap, Swapped, Swaps, swap_gap
from textgen_env import Completion, Prompt, Reward, TextMDP, TextTask


def swapped_prompt(swaps: Swaps, prompt: Prompt) -> tuple[Prompt, Swapped]:
    """The prompt with its words exchanged, its references' too, and what that did to the prompt itself."""
    change = swaps.swap(prompt.text)
    references = tuple(swaps.swap(reference).text for reference in prompt.references)
    return Prompt(change.text, references, prompt.metadata), change


def same_answers_swapped(
    mdp: TextMDP, reward: Reward, completions: Sequence[Completion], swaps: Swaps, seed: int
) -> SwapGap | None:
    """Prompt, references and answer are swapped together: the same thing, said of somebody else."""
    twins, changes, rows = [], [], []
    for row, completion in enumerate(completions):
        prompt, in_prompt = swapped_prompt(swaps, completion.prompt)
        in_text = swaps.swap(completion.text)
        change = Swapped(in_text.text, in_prompt.forward + in_text.forward, in_prompt.backward + in_text.backward)
        if change.forward + change.backward:
            twins.append(written(mdp, prompt, in_text.text))
            changes.append(change)
            rows.append(row)
    if not rows:
        return None
    # The answers before the swap are scored as written texts too: both sides are tokenised alike.
    before = returns(mdp, reward, [written(mdp, completions[row].prompt, completions[row].text) for row in rows])
    after = returns(mdp, reward, twins)
    owners = [completions[row].prompt.text for row in rows]
    return swap_gap(swaps.name, before, after, changes, owners, of=len(completions), seed=seed)


def answers_to_swapped(
    model: Side, scorers: Mapping[str, Reward], mine: Answers, swaps: Swaps, seed: int
) -> dict[str, SwapGap]:
    """The model answers each prompt that has such words again, swapped: a prompt's mean scores, before and after."""
    played = mine.played
    samples = len(played) // len(set(played.prompt_groups_B.tolist()))
    first = played.completions[::samples]
    twins = [swapped_prompt(swaps, completion.prompt) for completion in first]
    rows = [row for row, (_, change) in enumerate(twins) if change.forward + change.backward]
    if not rows:
        return {}
    changes = [twins[row][1] for row in rows]
    rules = _with_prompts(model, [twins[row][0] for row in rows])
    answered = play(Side(model.name, model.policy, rules), range(len(rows)), samples, seed + 2)
    owners = [first[row].prompt.text for row in rows]
    return {
        name: swap_gap(
            swaps.name,
            mine.scores[name].reshape(-1, samples).mean(-1)[rows],
            returns(rules, reward, answered.completions).reshape(-1, samples).mean(-1),
            changes,
            owners,
            of=len(first),
            seed=seed,
        )
        for name, reward in scorers.items()
    }


def _with_prompts(model: Side, prompts: Sequence[Prompt]) -> TextMDP:
    """The model's rules with other prompts, cut only where the model has no room for them."""
    rules, room = model.mdp, positions(model)
    longest = max(len(rules.tokenizer.encode_prompt(prompt.text)) for prompt in prompts)
    return TextMDP(
        TextTask(rules.task.name, {"train": tuple(prompts)}),
        UNSCORED,
        rules.tokenizer,
        max_prompt_tokens=longest if room is None else min(longest, room - rules.max_new_tokens),
        max_new_tokens=rules.max_new_tokens,
        truncation_side=rules.truncation_side,
        allowed_tokens=rules.allowed_tokens,
    )
