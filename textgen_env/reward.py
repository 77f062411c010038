"""Reward plug-ins: one Python function in, checked numbers out.

A reward is a batch function called by keyword, the convention TRL's users know::

    def brevity(completions, **_):
        return [-len(text.split()) for text in completions]

``Reward`` is the one shape behind every plug-in: it hands the function the arguments it names, and turns
whatever comes back into ``Scores`` or into an error that names the reward and the text. A score is never
made up for a text the plug-in failed on.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from textgen_env.background import wait_for
from textgen_env.lookup import did_you_mean
from textgen_env.types import Completion, Components, RewardFunction, Scores

RewardKind: TypeAlias = Literal["terminal", "dense"]
"""``"terminal"``: asked once, about finished text. ``"dense"``: asked about every growing prefix."""

_F = TypeVar("_F", bound=Callable[..., Any])

_STANDARD: dict[str, Callable[[Completion], Any]] = {
    "prompts": lambda completion: completion.prompt.text,
    "completions": lambda completion: completion.text,
    "completion_ids": lambda completion: list(completion.token_ids),
    "references": lambda completion: list(completion.prompt.references),
    "stop_reasons": lambda completion: completion.stop_reason,
}
"""What every reward function can ask for, whatever the task."""

_CONVERSATIONS = (
    "Completions are plain strings here: a function that wants lists of messages goes through "
    "reward_models.neighbours.conversational(function)"
)


class RewardError(ValueError):
    """A reward plug-in failed or returned something that is no reward; the message names it and the text."""


def dense(function: _F) -> _F:
    """Mark a reward function (or class) as dense: asked at every step, about the text so far.

    The environment calls it with growing prefixes (``stop_reasons`` holds ``None`` while the text grows) and
    pays the newest token's entry. It returns B arrays, the i-th with one float for each token of the i-th
    prefix.

    >>> @dense
    ... def no_zeros(completion_ids):
    ...     return [[-float(token == 0) for token in ids] for ids in completion_ids]
    >>> Reward(no_zeros).kind
    'dense'
    """
    function.kind = "dense"  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A reward's checked answer about B completions, which it need not apply to: what compositions build on."""

    token_rewards: list[npt.NDArray[np.float64]]
    """B arrays of shape (T_i,); all NaN where the reward does not apply, so that no one pays it unawares."""
    valid: npt.NDArray[np.bool_]
    """Shape (B,): False where the plug-in answered ``None`` ("does not apply")."""
    components: Components
    """As in `Scores`; where a component does not apply, raw and normalised are NaN and 0 is paid."""

    @property
    def totals(self) -> npt.NDArray[np.float64]:
        """Shape (B,): the undiscounted reward of each completion, NaN where it does not apply."""
        return np.array([rewards.sum() for rewards in self.token_rewards], dtype=np.float64)


class Reward:
    """A reward function with a name, called once a batch, its answer checked.

    Args:
        function: a callable in the ``RewardFunction`` convention, plain or ``async``. Its attributes ``name``,
            ``kind`` and ``bounds`` are read where it has them; one that learns has methods ``state`` and
            ``load_state`` like those here.
        name: replaces the function's own name (``.name``, ``__name__`` or the class name in lower case).

    Attributes:
        name: its key in ``info["reward"]``.
        kind: ``"terminal"`` (default) or ``"dense"``.
        bounds: the lowest and highest possible total of a completion, or ``None`` where unknown.

    Raises:
        TypeError: ``function`` is not callable.
        RewardError: it has positional-only parameters, no parameters, or a malformed ``kind`` or ``bounds``.

    >>> Reward(lambda completions: [len(text) for text in completions], name="length")
    Reward('length', kind='terminal')
    """

    def __init__(self, function: RewardFunction, *, name: str | None = None) -> None:
        if not callable(function):
            raise TypeError(
                f"a reward is a registered name, 'module:attr', a function or a callable object; "
                f"got {type(function).__name__}: {_shorten(function)}"
            )
        self.function = function
        self.name = name or _name_of(function)
        self.kind: RewardKind = _read_kind(function, self.name)
        self.bounds: tuple[float, float] | None = _read_bounds(function, self.name)
        parameters = _read_parameters(function, self.name)
        # What a partial has bound by keyword shows up as a parameter with a default. It stays as bound.
        self._bound = frozenset(function.keywords if isinstance(function, functools.partial) else ())
        self._named = frozenset(p.name for p in parameters if p.kind is not p.VAR_KEYWORD) - self._bound
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._required = tuple(p.name for p in parameters if p.name in self._named and p.default is p.empty)

    def __repr__(self) -> str:
        return f"Reward({self.name!r}, kind={self.kind!r})"

    def score(self, completions: Sequence[Completion]) -> Scores:
        """Ask the plug-in about B completions, in one call.

        Returns:
            B reward arrays of shape (T_i,); a single float stands on the last token. ``components`` has the
            entry of this reward, or of every part of a composition; what they pay sums to the totals.

        Raises:
            RewardError: the plug-in raised, wants an argument there is none of, returned anything but one
                finite reward a completion, or answered ``None``.
        """
        judgement = self.judge(completions)
        for index in np.flatnonzero(~judgement.valid):
            what = "returned None (does not apply), and there is no other reward to apply"
            raise self._error(what, completions, int(index), "Return a number for every completion")
        return Scores(judgement.token_rewards, judgement.components)

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """As ``score``, with a mask where the plug-in answered ``None``: what compositions build on."""
        values = self._values(self._call(completions), completions) if completions else []
        return self._judgement(values, completions)

    @property
    def component_names(self) -> tuple[str, ...]:
        """The keys of ``info["reward"]``, known before anything is scored."""
        return (self.name,)

    def frozen(self) -> Reward:
        """The same reward for evaluating: what adapts in training (a running normalisation) stands still in it.

        It is a view, not a copy: it goes by the statistics as they are when it is asked.
        """
        return self

    def state(self) -> dict[str, Any]:
        """What training has taught it, as plain data: an agent saves it, and `load_state` goes on from there."""
        return dict(_attribute(self.function, "state")()) if self._learns_by_itself else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            RewardError: it is that of a reward made otherwise.
        """
        if self._learns_by_itself:
            _attribute(self.function, "load_state")(state)
        elif state:
            raise RewardError(f"reward '{self.name}' learns nothing, but the state {_shorten(state)} was saved of it")

    @property
    def _learns_by_itself(self) -> bool:
        return all(callable(_attribute(self.function, method)) for method in ("state", "load_state"))

    def renamed(self, name: str) -> Reward:
        """The same reward under another name."""
        twin = copy.copy(self)
        twin.name = name
        return twin

    def _judgement(self, values: Sequence[Any], completions: Sequence[Completion]) -> Judgement:
        token_rewards = [self._token_rewards(value, completions, i) for i, value in enumerate(values)]
        totals = np.array([rewards.sum() for rewards in token_rewards], dtype=np.float64)
        valid = np.array([value is not None for value in values], dtype=np.bool_)
        paid = {"raw": totals, "normalised": totals.copy(), "weighted": np.where(valid, totals, 0.0)}
        return Judgement(token_rewards, valid, {self.name: paid})

    def _call(self, completions: Sequence[Completion], like: Sequence[Completion] | None = None) -> Any:
        """The plug-in's answer; ``like`` as in `_arguments`."""
        arguments = self._arguments(completions, like)
        try:
            return self._ask(arguments)
        except RewardError:
            raise  # it names the text itself
        except Exception as error:
            told = _shorten(error)
            raised = f"raised {type(error).__name__} ({told})"
            mend = _CONVERSATIONS if told.startswith("string indices must be integers") else ""
            culprit = self._culprit(completions, error)
            if culprit is not None:
                raise self._error(raised, completions, culprit, mend) from error
            raise RewardError(
                f"reward '{self.name}' {raised} on the batch of {len(completions)} completions; "
                "none of them fails that way alone"
            ) from error

    def _ask(self, arguments: dict[str, list[Any]]) -> Any:
        result = self.function(**arguments)
        return wait_for(result) if inspect.isawaitable(result) else result

    def _culprit(self, completions: Sequence[Completion], error: Exception) -> int | None:
        """The first text that fails alone in the way its batch failed, or None."""
        if len(completions) == 1:
            return 0
        for index, completion in enumerate(completions):
            try:
                self._ask(self._arguments([completion], like=completions))
            except Exception as alone:
                if type(alone) is type(error):
                    return index
        return None

    def _arguments(
        self, completions: Sequence[Completion], like: Sequence[Completion] | None = None
    ) -> dict[str, list[Any]]:
        """One list an argument; the metadata columns are those of the batch ``like``, if given."""
        # A dict keeps the columns in the order in which they were first seen; a set would not.
        columns = dict.fromkeys(key for item in like or completions for key in item.prompt.metadata)
        available = [*_STANDARD, *columns]
        for parameter in self._required:
            if parameter not in available:
                raise RewardError(
                    f"reward '{self.name}' wants an argument '{parameter}', neither a standard one nor a "
                    f"metadata column of the prompts (columns here: {', '.join(columns) or 'none'}); "
                    f"{did_you_mean(parameter, available)}"
                )
        arguments: dict[str, list[Any]] = {}
        for key in filter(self._wants, available):
            if key in columns and key in _STANDARD:
                raise RewardError(
                    f"reward '{self.name}' gets '{key}' as a standard argument, but the prompts have a "
                    "metadata column of that name too: rename the column"
                )
            if read := _STANDARD.get(key):
                arguments[key] = [read(completion) for completion in completions]
            else:
                arguments[key] = [_copied(completion.prompt.metadata.get(key)) for completion in completions]
        return arguments

    def _wants(self, argument: str) -> bool:
        return argument in self._named or (self._takes_all and argument not in self._bound)

    def _values(self, result: Any, completions: Sequence[Completion]) -> list[Any]:
        """The plug-in's return value as a list of B entries."""
        values = _plain(result)
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            raise RewardError(
                f"reward '{self.name}' returned {type(result).__name__} {_shorten(result)} for "
                f"{len(completions)} completions: return a list with one value a completion"
            )
        if len(values) != len(completions):
            raise RewardError(
                f"reward '{self.name}' returned {len(values)} values for {len(completions)} completions: "
                f"return one value a completion. The first completion: {_shorten(completions[0].text)}"
            )
        return [_plain(value) for value in values]

    def _token_rewards(self, value: Any, completions: Sequence[Completion], index: int) -> npt.NDArray[np.float64]:
        """One entry of the answer as an array of shape (T,)."""
        tokens = len(completions[index].token_ids)
        if value is None:
            return np.full(tokens, np.nan)
        if isinstance(value, numbers.Real):
            if self.kind == "dense":
                what = f"is dense but returned the single number {_shorten(value)}"
                mend = f"Return an array with one float a token (here {tokens}), or drop kind = 'dense'"
                raise self._error(what, completions, index, mend)
            rewards = np.zeros(tokens, dtype=np.float64)
            rewards[-1] = _to_float(value)
        elif (array := _numeric_array(value)) is None:
            what = f"returned {type(value).__name__} {_shorten(value)}"
            mend = "Return a number, a list or 1-D array of one number a token, or None"
            raise self._error(what, completions, index, mend)
        elif len(array) != tokens:
            what = f"returned {len(array)} per-token rewards for {tokens} tokens"
            mend = "Return one a token of completion_ids (the EOS counts), or a single number"
            raise self._error(what, completions, index, mend)
        else:
            rewards = array
        if not np.isfinite(rewards).all():
            raise self._error(f"returned a value that is not finite, {_shorten(value)},", completions, index)
        return rewards

    def _error(self, what: str, completions: Sequence[Completion], index: int, mend: str = "") -> RewardError:
        """The error about one text: what happened, where, and what to do."""
        completion = completions[index]
        where = f"for completion {index} of {len(completions)}: {_shorten(completion.text)}"
        prompt = f"(prompt: {_shorten(completion.prompt.text)})"
        return RewardError(f"reward '{self.name}' {what} {where} {prompt}" + (f". {mend}" if mend else ""))


def _attribute(function: Any, name: str) -> Any:
    """An attribute of the function, or of what a partial wraps; None where there is none."""
    while isinstance(function, functools.partial) and not hasattr(function, name):
        function = function.func
    return getattr(function, name, None)


def _name_of(function: Any) -> str:
    for name in (_attribute(function, "name"), _attribute(function, "__name__")):
        if isinstance(name, str) and name:
            return name.strip("<>")  # "<lambda>" would be an awkward key in logs
    return type(function).__name__.lower()


def _read_kind(function: Any, name: str) -> RewardKind:
    # A class may carry the mark on itself or on its __call__.
    kind = _attribute(function, "kind") or getattr(function.__call__, "kind", None) or "terminal"
    if kind != "terminal" and kind != "dense":
        known = ("terminal", "dense")
        raise RewardError(f"reward '{name}' has kind {kind!r}; {did_you_mean(str(kind), known)}")
    return "dense" if kind == "dense" else "terminal"


def _read_bounds(function: Any, name: str) -> tuple[float, float] | None:
    bounds: Any = _attribute(function, "bounds")
    if bounds is None:
        return None
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low <= high:
        raise RewardError(f"reward '{name}' has bounds {bounds!r}; give a pair (lowest, highest), or None")
    return low, high


def _read_parameters(function: Any, name: str) -> list[inspect.Parameter]:
    """The parameters that can be filled by keyword, ``**kwargs`` among them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"cannot read which arguments reward '{name}' takes: wrap it in a function that names them"
        ) from error
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if positional:
        raise RewardError(
            f"reward '{name}' has positional-only parameters ({', '.join(positional)}), but rewards are "
            "called by keyword: wrap it in a function that names its arguments, such as completions"
        )
    by_keyword = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    if not by_keyword:
        raise RewardError(
            f"reward '{name}' names no arguments, so it would score nothing: name some of "
            f"{', '.join(_STANDARD)} or metadata columns, or take **kwargs"
        )
    return by_keyword


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars as Python numbers and lists, whichever library made them."""
    return value.tolist() if hasattr(value, "tolist") else value


def _to_float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float's range
        return math.inf


def _numeric_array(value: Any) -> npt.NDArray[np.float64] | None:
    """A list of numbers as an array of shape (T,); None if it is anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    try:
        array = np.asarray([_plain(item) for item in value])
    except ValueError:  # lists of unequal lengths
        return None
    return array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "fiub" else None


def _copied(value: Any) -> Any:
    """A metadata value in lists and dicts of its own, so that a plug-in cannot change the task."""
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _shorten(value: Any, limit: int = 200) -> str:
    """A value for an error message (of an exception, what it says), cut where it gets long."""
    try:
        text = value if isinstance(value, str) else str(value) if isinstance(value, Exception) else repr(value)
    except Exception:  # a plug-in's own __repr__ must not hide what went wrong
        text = f"<{type(value).__name__} that cannot be printed>"
    cut = text if len(text) <= limit else text[:limit] + "…"
    return repr(cut) if isinstance(value, str) else cut
