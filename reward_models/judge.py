"""Scorers that are asked over a network: many texts at once, each with a time limit and a bounded number of tries."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from reward_models.composite import Composable
from textgen_env.lookup import did_you_mean
from textgen_env.reward import RewardError

_ONE_OF = {
    "prompts": "prompt",
    "completions": "completion",
    "completion_ids": "completion_ids",
    "references": "references",
    "stop_reasons": "stop_reason",
}


class AsyncJudge(Composable):
    """An ``async`` function of one text as a reward, such as a request to a language model that judges.

    The function is called by keyword with those it names of ``prompt``, ``completion``, ``completion_ids``,
    ``references``, ``stop_reason`` and the prompt's metadata columns (all with ``**kwargs``), and returns a number, or
    None for "does not apply". An exception or a timeout is tried again, up to ``retries`` times; after the last failure
    the whole batch fails with a `RewardError` that names the text. It never makes up a score. A `RewardError` raised by
    the function itself is final at once.

    All batches run in the event loop of one background thread, so a client session may be kept between calls; it also
    works where a loop is running already, as in a notebook.

    Args:
        function: ``async def function(prompt, completion): ...``.
        concurrency: requests on their way at once.
        timeout: seconds for one try.
        retries: tries after the first.
        backoff: seconds before the first retry; doubled before every further one.
        name: its key in ``info["reward"]``; default: the function's name.
        bounds: the lowest and highest score, where known.

    Raises:
        RewardError: a number makes no sense; when scoring, as above.
        TypeError: ``function`` is not callable.

    >>> async def politeness(completion):
    ...     return float("please" in completion)
    >>> judge = AsyncJudge(politeness, timeout=5.0)
    >>> 0.5 * judge
    0.5 * politeness
    """

    kind = "terminal"

    def __init__(
        self,
        function: Callable[..., Awaitable[float | None]],
        *,
        concurrency: int = 8,
        timeout: float = 30.0,
        retries: int = 2,
        backoff: float = 0.5,
        name: str | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"AsyncJudge needs an async function of one text, got {type(function).__name__}")
        if concurrency < 1 or not timeout > 0 or retries < 0 or not backoff >= 0:
            raise RewardError(
                f"AsyncJudge needs concurrency >= 1, timeout > 0, retries >= 0 and backoff >= 0, got "
                f"concurrency={concurrency}, timeout={timeout}, retries={retries}, backoff={backoff}"
            )
        self.function = function
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.name = name or getattr(function, "__name__", type(function).__name__.lower())
        self.bounds = bounds
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._named = {p.name: p.default is p.empty for p in parameters if p.kind is not p.VAR_KEYWORD}

    async def __call__(self, **columns: list[Any]) -> list[float | None]:
        """The scores of B texts, in their order; if one fails for good, the others are called off.

        Raises:
            RewardError: a text has failed for good, or the function wants what there is none of.
        """
        for plural, name in _ONE_OF.items():
            if name != plural and name in columns:
                raise RewardError(
                    f"reward '{self.name}' gets '{name}' as a standard argument, but the prompts have a metadata "
                    "column of that name too: rename the column"
                )
        columns = {_ONE_OF.get(name, name): values for name, values in columns.items()}
        for parameter, required in self._named.items():
            if required and parameter not in columns:
                raise RewardError(
                    f"reward '{self.name}' wants an argument '{parameter}', which a text does not have; "
                    f"{did_you_mean(parameter, columns)}"
                )
        wanted = [name for name in columns if self._takes_all or name in self._named]
        free = asyncio.Semaphore(self.concurrency)
        texts = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        tasks = [
            asyncio.ensure_future(self._answer({name: text[name] for name in wanted}, text["completion"], free))
            for text in texts
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, arguments: dict[str, Any], text: str, free: asyncio.Semaphore) -> float | None:
        async with free:
            last: Exception
            for attempt in range(self.retries + 1):
                if attempt:
                    await asyncio.sleep(self.backoff * 2 ** (attempt - 1))
                try:
                    return await asyncio.wait_for(self._ask(arguments), self.timeout)
                except RewardError:
                    raise
                except asyncio.TimeoutError as error:
                    failure, last = f"gave no answer within {self.timeout:g} s", error
                except Exception as error:
                    failure, last = f"raised {type(error).__name__} ({str(error)[:200]})", error
        tries = "at the only try" if not self.retries else f"at the last of {self.retries + 1} tries"
        raise RewardError(f"reward '{self.name}' {failure} {tries} for {text[:200]!r}") from last

    async def _ask(self, arguments: dict[str, Any]) -> float | None:
        answer = self.function(**arguments)
        if not inspect.isawaitable(answer):
            raise RewardError(
                f"reward '{self.name}' answered at once: AsyncJudge wants an async function; one that blocks goes "
                "through asyncio.to_thread(function, ...)"
            )
        return await answer
