"""The reinforcement learning of a round: a policy learns from a reward until it has acted its tokens, or goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.base import TextAlgorithm
from agents.callbacks import CheckpointCallback, StopOnSignal, save_agent
from agents.progress_bar import TokenProgressBar
from agents.rlhf.folder import Stage
from agents.rlhf.settings import RLHFSettings
from agents.run_folder import RunFolder


def learn_policy(
    settings: RLHFSettings,
    algorithm: type[TextAlgorithm],
    env: Any,
    stage: Stage,
    *,
    begin: Callable[[], TextAlgorithm],
    verbose: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Learn for ``settings.tokens_per_round``; the stage's folder gets ``agent.zip``, ``model`` and ``progress.csv``.

    Args:
        settings: tokens a round, checkpoints, device.
        algorithm: what ``agent.zip`` holds.
        env: a `TextGenVectorEnv` with the reward to learn from.
        stage: a checkpoint in its folder is gone on from.
        begin: makes the agent, where there is no checkpoint.
        verbose: 1 shows a progress bar.
        say: is told where it goes on.

    Raises:
        KeyboardInterrupt: a signal ended it; the checkpoint is there.
    """
    files, tokens = RunFolder(stage.path), settings.tokens_per_round
    under_way = files.agent.is_file()
    if under_way:
        agent = algorithm.load(files.agent, env=env, device=settings.device)
        files.forget_after(agent.num_timesteps)
        say(f"going on at {agent.num_timesteps:,} tokens")
    else:
        stage.clear()
        agent = begin()
    logger = files.logger(tables=False)
    agent.set_logger(logger)
    checkpoint = CheckpointCallback(files.agent, every=settings.checkpoint_every or max(1, tokens // 10))
    stop, finished = StopOnSignal(), False
    try:
        missing = tokens - agent.num_timesteps if under_way else tokens
        with stop:
            if missing > 0:  # else it was interrupted after its last update
                callbacks = [stop, checkpoint, *([TokenProgressBar()] if verbose else [])]
                agent.learn(missing, callback=callbacks, reset_num_timesteps=not under_way)
        finished = not stop.requested
    finally:
        if not finished:
            checkpoint.save_interrupted()
        logger.close()
    if not finished:
        raise KeyboardInterrupt
    save_agent(agent, files.agent)
    agent.policy.save_pretrained(files.model)
    env.mdp.tokenizer.hf.save_pretrained(str(files.model))
    return {"tokens": agent.num_timesteps}
