"""One run from prompts to report: environment, model, warm start, evaluation, RL, evaluation."""

from __future__ import annotations

from typing import Any

from agents.base import TextAlgorithm
from agents.callbacks import EvaluationCallback
from agents.config import AlgorithmConfig
from agents.dqn import DQN
from agents.evaluation import on_split
from agents.job import Job, Result, StageHook
from agents.logged import read_logged, reference_episodes
from agents.logged_rollouts import FromLoggedEpisodes
from agents.settings import RunSettings, make_mdp, make_model
from textgen_env import TextGenVectorEnv, TextMDP

_FRESH_EPOCHS = 2.0


def run(
    settings: RunSettings,
    config: AlgorithmConfig | None = None,
    *,
    resume: bool = False,
    verbose: int = 0,
    on_stage: StageHook | None = None,
) -> Result:
    """Train an agent and leave a folder with everything about it. Ctrl-C saves what there is.

    Args:
        settings: environment, model, lengths.
        config: the algorithm's options; its defaults if None.
        resume: go on in ``settings.output``, from its checkpoint if it has one, until ``settings.total_tokens``.
        verbose: 1 shows progress bars, 2 also a table of metrics an update.
        on_stage: called as each stage begins, with its name and a line about it.

    Raises:
        ValueError: the settings do not fit together, or something they name is unknown.
        OSError: a file cannot be read, or the output folder is not empty.
    """
    return SingleTask(settings, config, resume, verbose, on_stage).complete()


class SingleTask(Job[TextMDP]):
    """A run in one environment."""

    def environments(self) -> tuple[TextMDP, TextMDP, TextMDP]:
        """The rules on the train split, and on the held-out ones: to watch while learning, and for the report."""
        # A tokenizer trained on the spot was saved with the run: the data may have grown since.
        trained_before = self.resume and self.settings.model is None and self.world.on_main(self.folder.model.is_dir)
        train = make_mdp(self.settings, tokenizer=self.folder.model if trained_before else None)
        splits = [split for split in ("validation", "test") if train.task.splits.get(split)]
        if not splits:
            raise ValueError(
                f"task '{train.task.name}' has only {len(train.prompts)} training prompts and none held out: "
                "give it more prompts, or a larger validation share with --split-fractions"
            )
        self.say(
            "environment",
            f"{train.task!r}, reward {train.reward.name}, vocabulary {train.tokenizer.vocab_size}, "
            f"at most {train.max_prompt_tokens} + {train.max_new_tokens} tokens",
        )
        if len(splits) == 1:
            self.say("environment", f"the {splits[0]} split is the only one held out: watched and reported on alike")
        return train, on_split(train, splits[0]), on_split(train, splits[-1])

    def make_agent(self, train: TextMDP) -> TextAlgorithm:
        """A new agent in a new folder, or the saved one, which gets what is logged."""
        env: Any = TextGenVectorEnv(self.config.num_envs, mdp=train)
        agent = self.new_or_saved(self.algorithm, env, lambda: make_model(self.settings, train))
        self.hand_over_logged(agent, train)
        self.begin_folder(
            agent,
            {
                "task": repr(train.task),
                "reward": train.reward.name,
                "max_prompt_tokens": train.max_prompt_tokens,
                "max_new_tokens": train.max_new_tokens,
                "vocab_size": train.tokenizer.vocab_size,
            },
            self.warm_start_epochs(train),
        )
        return agent

    def hand_over_logged(self, agent: TextAlgorithm, train: TextMDP) -> None:
        """Written completions for the algorithms that learn from some."""
        path = self.settings.logged
        if isinstance(agent, FromLoggedEpisodes):
            agent.set_data(read_logged(path, train) if path else reference_episodes(train))
        elif isinstance(agent, DQN) and path:
            agent.set_demonstrations(read_logged(path, train))
        elif path:
            raise ValueError(f"'{self.settings.algo}' learns from its own rollouts only: leave --logged out")

    def warm_start_epochs(self, train: TextMDP) -> float:
        """As asked; by default a model from scratch first learns to write, a pretrained one can already."""
        if self.settings.warm_start_epochs is not None:
            return self.settings.warm_start_epochs
        if issubclass(self.algorithm, FromLoggedEpisodes):
            return 0.0  # written completions are what it learns from
        has_references = any(prompt.references for prompt in train.prompts)
        return _FRESH_EPOCHS if self.settings.model is None and has_references else 0.0

    def warm_start(self, train: TextMDP) -> None:
        """Fit the references; the reference policy of RL is the model after that."""
        assert self.agent is not None
        epochs = self.warm_start_epochs(train)
        if epochs == 0:
            return
        self.say("warm start", f"{epochs:g} epochs over the references of {len(train.prompts):,} prompts")
        loss = self.fit_references(self.agent, train, epochs)
        self.agent.refresh_reference()
        self.note(warm_start_loss=loss)

    def evaluate(self, held_out: TextMDP) -> dict[str, Any]:
        """Sampled and greedy, as plain data; some of the texts go to ``samples.jsonl``."""
        return self.evaluate_on(held_out)

    def named(self, held_out: TextMDP) -> str:
        """The task and the split."""
        return f"{held_out.task.name}, {held_out.split} split"

    def watch(self, watched: TextMDP, **options: Any) -> EvaluationCallback:
        """Evaluations under the plain names."""
        return EvaluationCallback(watched, samples_file=self.folder.samples, **options)
