"""Lines of runs that never were, with the fields of real ones."""

import json
import math

CIRCUMSTANCES = {"date": "2030-01-02T03:04:05+00:00", "commit": "abc1234", "cpu": "a CPU", "versions": {"torch": "2"}}


def line(task="Reverse", contender="ppo", seed=0, normalised=0.8, **changes):
    """A run that learned in a straight line, of a task whose random score is 1 and whose optimum is 3."""
    score = 5.0 if normalised is None else 1 + 2 * normalised
    curve = [
        {
            "tokens": 10 * look,
            "episodes": 5 * look,
            "cpu_seconds": 2.0 * look,
            "score": 1 + (score - 1) * look / 4,
            "normalised": None if normalised is None else normalised * look / 4,
        }
        for look in range(5)
    ]
    solved = normalised is not None and normalised >= 0.99
    made = {
        "task": task,
        "contender": contender,
        "seed": seed,
        "setup": {"total_tokens": 40, "objective": "return", "solved": 0.99, "warm_start": None},
        "preset": {"learning_rate": 1e-3},
        "budget": 1.0,
        "circumstances": CIRCUMSTANCES,
        "score": score,
        "normalised": normalised,
        "optimum": None if normalised is None else 3.0,
        "random": 1.0,
        "sampled": score - 0.1,
        "entropy": 0.5,
        "kl_per_sequence": 2.5,
        "tokens": 41,
        "episodes": 20,
        "cpu_seconds": 8.0,
        "wall_seconds": 9.0,
        "warm_start_cpu_seconds": 0.0,
        "peak_memory_mb": 512.0,
        "solved_at": {"tokens": 40, "episodes": 20, "cpu_seconds": 8.0} if solved else None,
        "curve": curve,
        "samples": [{"prompt": "a b", "completion": "b a", "reference": "b a", "score": score}],
    }
    return {**made, **changes}


def cell(*scores, **fields):
    """One run a score, with seeds 0, 1, …"""
    return [line(seed=seed, normalised=score, **fields) for seed, score in enumerate(scores)]


def failed(**names):
    """A run that came to nothing."""
    error = "Traceback (most recent call last):\n  File somewhere\nRuntimeError: out of luck"
    return {"task": "Reverse", "contender": "ppo", "seed": 0, **names, "error": error}


def ladder(seeds=5):
    """Three tasks, one of them without an optimum, and five contenders, of which one plays on one task only."""
    made = []
    for task, ceiling in (("Reverse", 1.0), ("Add", 0.6), ("Free", None)):
        for number, contender in enumerate(("ppo", "dqn", "trl_ppo", "supervised", "ilql")):
            if contender == "ilql" and task != "Reverse":
                continue
            for seed in range(seeds):
                score = None if ceiling is None else ceiling - 0.12 * number - 0.01 * seed * (number > 0)
                made.append(line(task, contender, seed, score))
                if score is None:
                    made[-1]["score"] += math.sin(seed + number)
    return made


def write(path, lines):
    """As a file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
