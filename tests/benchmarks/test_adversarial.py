import numpy as np
import pytest

from benchmarks.adversarial import measure, summary
from tests.agents.test_adversarial import TASK, divergence, make
from textgen_env.tasks.match_corpus import markov_oracle


def test_the_measured_divergence_is_that_of_enumeration():
    agent, _ = make()
    oracle = markov_oracle(**TASK)
    prompts = agent._mdp.prompts
    found = measure(agent, agent._mdp, oracle, samples=400 * len(prompts))
    assert found.kl_q_p == pytest.approx(divergence(agent), rel=0.05)
    assert found.nll == pytest.approx(found.kl_q_p + found.entropy)
    agent.policy.temperature = 1e6  # uniform over the words, whose figures are exact
    entropies = [oracle.entropy()[tuple(np.array(prompt.metadata["context_ids"]) - 2)] for prompt in prompts]
    uniform = measure(agent, agent._mdp, oracle, samples=len(prompts))
    assert uniform.entropy == pytest.approx(3 * np.log(3), abs=1e-4)
    # The cross-entropy of uniform words is the same for every text: KL(p‖q) is what the chain lacks of it.
    assert uniform.kl_p_q == pytest.approx(3 * np.log(3) - np.mean(entropies), rel=0.1)


def test_a_seed_that_lost_is_counted():
    def result(adversarial):
        values = {"best": 2.0, "constant": 3.0, "adversarial": adversarial, "oracle": 0.5}
        return {name: {"kl_q_p": value} for name, value in values.items()}

    table = summary([result(1.0), result(2.5)])
    assert table["kl_q_p below best"]["seeds"] == 1
    assert table["kl_q_p below constant"]["seeds"] == 2
    assert table["kl_q_p below best"]["gain"][0] == pytest.approx(0.25)
