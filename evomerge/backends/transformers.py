"""Candidates run by transformers, in this process, on one device.

The model is brought up once; each candidate's weights are copied into it in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.errors import CheckpointError, ConfigError
from evomerge.scoring.requests import (
    Generate,
    Generated,
    Likelihood,
    Request,
    Response,
    before_stop,
)

if TYPE_CHECKING:
    import torch

    from evomerge.backends.base import Weigh, Weights
    from evomerge.backends.decode import Clock, Stopper
    from evomerge.backends.live import LiveWeights
    from evomerge.backends.prompts import Prompter, Row

Shape = list[tuple[tuple[str, ...], int]]

_FOLLOWED = 2048
"""Tokens, padding included, of a batch whose activations are kept for a backward pass. That is some
gigabytes for billions of parameters, and enough to keep a device busy."""
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TransformersBackend:
    """A Hugging Face checkpoint, text or image-and-text, greedy and deterministic."""

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch: int = 64,
        threads: int | None = None,
    ) -> None:
        """`device` defaults to CUDA where there is one, else the CPU; `dtype` to the checkpoint's
        widest on CUDA and to float32 on a CPU; `batch` is in requests; `threads` are PyTorch's on a
        CPU, for the whole process, by default as it finds them."""
        self._path, self._device, self._dtype, self._batch = path, device, dtype, batch
        self._threads = threads
        self._opened: tuple[Any, LiveWeights, Prompter] | None = None
        self._shapes: dict[str, Shape] = {}
        self.spent: Mapping[str, float] = {}

    def open(self) -> None:
        """See `Backend.open`: CheckpointError or ConfigError if the checkpoint cannot be run."""
        import torch

        from evomerge.backends.live import LiveWeights
        from evomerge.backends.prompts import Prompter

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        checkpoint = open_checkpoint(self._path)
        device = _device(self._device)
        dtype = getattr(torch, self._dtype or default_dtype(checkpoint, device.type))
        model = _load_model(checkpoint, dtype).to(device).eval()
        self._opened = (model, LiveWeights(model, checkpoint), Prompter(checkpoint.path, model))

    def load(self, weights: Weights, kept: Set[str] = frozenset()) -> None:
        """See `Backend.load`."""
        self.live()[1].load(weights, kept)

    def destination(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """See `Backend.destination`."""
        return self.live()[1].destination(name, dtype)

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """See `Backend.run`. Batches hold requests of one kind and of similar length."""
        from evomerge.backends.decode import Clock

        prompter = self.live()[2]
        prompter.renew()
        clock = Clock()
        responses: dict[tuple[int, int], Response] = {}
        shapes = [self._shape(request) for request in requests]
        for chunk in _chunks(requests, shapes, self._batch):
            rows = [prompter.rows(requests[i])[window] for i, window in chunk]
            answers = self._run_batch([requests[i] for i, _ in chunk], rows, clock)
            responses.update(zip(chunk, answers, strict=True))
        self.spent = clock.seconds
        return [
            _joined([responses[i, window] for window in range(len(shapes[i]))])
            for i in range(len(requests))
        ]

    def gradients(
        self, items: Sequence[Sequence[Request]], weigh: Weigh, names: Iterable[str]
    ) -> tuple[list[list[Likelihood]], dict[str, torch.Tensor]]:
        """See `Differentiable.gradients`. A batch holds whole items, and is backpropagated before
        the next one."""
        import torch

        from evomerge.backends.decode import Clock
        from evomerge.backends.gradients import followed, spots

        model, live, prompter = self.live()
        prompter.renew()
        clock = Clock()
        places = spots(model, live.tensors, names)
        answers: dict[int, list[Likelihood]] = {}
        with followed(model, {spot.parameter for spot in places.values()}) as parameters:
            for chunk in self._whole_items(items):
                asked = [request for i in chunk for request in items[i]]
                found = iter(self._followed(asked))
                parts: list[torch.Tensor] = []
                for i in chunk:
                    own = [next(found) for _ in items[i]]
                    answers[i] = [answer for _, answer in own]
                    if own:
                        weights = weigh(i, answers[i])
                        terms = zip(own, weights, strict=True)
                        parts += [logprob * w for (logprob, _), w in terms if w != 0]
                clock.lap("prefill")
                total = sum(parts)
                if isinstance(total, torch.Tensor) and total.requires_grad:
                    torch.autograd.backward(total, inputs=list(parameters.values()))
                clock.lap("backward")
            whole = {name: parameter.grad for name, parameter in parameters.items()}
        self.spent = clock.seconds
        return [answers[i] for i in range(len(items))], {
            name: spot.of(gradient)
            for name, spot in places.items()
            if (gradient := whole[spot.parameter]) is not None
        }

    def close(self) -> None:
        """See `Backend.close`."""
        import torch

        self._opened = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def live(self) -> tuple[Any, LiveWeights, Prompter]:
        """The open model with its weights by the files' names, and what makes its prompts."""
        if self._opened is None:
            raise RuntimeError("the backend is not open; call open() first")
        return self._opened

    def _shape(self, request: Request) -> Shape:
        """Of each row of a request: the family and the number of tokens."""
        if request.key not in self._shapes:
            rows = self.live()[2].rows(request)
            self._shapes[request.key] = [(row.prompt.family, len(row.prompt.ids)) for row in rows]
        return self._shapes[request.key]

    def _run_batch(
        self, requests: Sequence[Request], rows: Sequence[Row], clock: Clock
    ) -> Sequence[Response]:
        from evomerge.backends.decode import greedy, loglikelihoods
        from evomerge.backends.prompts import collate

        model, _, prompter = self.live()
        tokenizer = prompter.tokenizer
        ends, pad = _end_tokens(model, tokenizer), _pad_token(model, tokenizer)
        batch = collate([row.prompt for row in rows], pad, model.device)
        asked = [request for request in requests if isinstance(request, Generate)]
        clock.lap(None)
        if asked:
            limits = [request.max_new_tokens for request in asked]
            answers = greedy(model, batch, limits, ends, pad, _stopper(asked, tokenizer), clock)
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            return [
                Generated(before_stop(text, request.stop), len(answer))
                for request, text, answer in zip(asked, texts, answers, strict=True)
            ]
        counts = [row.scored for row in rows]
        scored = loglikelihoods(model, batch, counts)
        clock.lap("prefill")
        return [Likelihood(s, n, best) for (s, best), n in zip(scored, counts, strict=True)]

    def _whole_items(self, items: Sequence[Sequence[Request]]) -> Iterator[list[int]]:
        """Places of the items of each batch: at least one, of similar kind and length."""
        rows = [[row for request in item for row in self._shape(request)] for item in items]
        longest = [max((length for _, length in shape), default=0) for shape in rows]
        order = sorted(
            range(len(items)),
            key=lambda i: (
                sorted(family for family, _ in rows[i]),
                -longest[i],
                [request.key for request in items[i]],
            ),
        )
        chunk: list[int] = []
        for i in order:
            together = [*chunk, i]
            count = sum(len(rows[j]) for j in together)
            tokens = count * max(longest[j] for j in together)
            if chunk and (count > self._batch or tokens > _FOLLOWED):
                yield chunk
                together = [i]
            chunk = together
        if chunk:
            yield chunk

    def _followed(self, requests: Sequence[Request]) -> list[tuple[torch.Tensor, Likelihood]]:
        """Each request's log-probability as autograd follows it, and its response; in one batch
        for each family."""
        from evomerge.backends.decode import followed_loglikelihoods
        from evomerge.backends.prompts import collate

        model, _, prompter = self.live()
        pad = _pad_token(model, prompter.tokenizer)
        shapes = [self._shape(request) for request in requests]
        found: dict[tuple[int, int], tuple[torch.Tensor, Likelihood]] = {}
        for chunk in _chunks(requests, shapes, sum(map(len, shapes))):
            rows = [prompter.rows(requests[i])[window] for i, window in chunk]
            batch = collate([row.prompt for row in rows], pad, model.device)
            counts = [row.scored for row in rows]
            sums, best = followed_loglikelihoods(model, batch, counts)
            answers = map(Likelihood, sums.tolist(), counts, best)
            found.update(zip(chunk, zip(sums.unbind(), answers, strict=True), strict=True))
        joined = []
        for i, shape in enumerate(shapes):
            parts = [found[i, window] for window in range(len(shape))]
            whole = _joined([answer for _, answer in parts])
            assert isinstance(whole, Likelihood)
            joined.append((sum((part for part, _ in parts[1:]), parts[0][0]), whole))
        return joined


def _chunks(
    requests: Sequence[Request], shapes: Sequence[Shape], size: int
) -> Iterator[list[tuple[int, int]]]:
    """Request and row of each place in each batch; the same set makes the same batches in any
    order."""
    families: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for i, request in enumerate(requests):
        kind = "generate" if isinstance(request, Generate) else "score"
        for window, (family, _) in enumerate(shapes[i]):
            families.setdefault((kind, *family), []).append((i, window))
    for key in sorted(families):
        order = sorted(families[key], key=lambda p: (-shapes[p[0]][p[1]][1], requests[p[0]].key, p))
        for start in range(0, len(order), size):
            yield order[start : start + size]


def _joined(parts: Sequence[Response]) -> Response:
    """The response to a request from those to its rows: the sum over the windows of a text."""
    if len(parts) == 1:
        return parts[0]
    scored = [part for part in parts if isinstance(part, Likelihood)]
    return Likelihood(
        math.fsum(part.logprob for part in scored),
        sum(part.tokens for part in scored),
        all(part.greedy for part in scored),
    )


def _stopper(requests: Sequence[Generate], tokenizer: Any) -> Stopper | None:
    """Whether an answer now holds one of its request's stop strings.

    Special tokens are looked at too, so that one of them may be a stop string.
    """
    if not any(request.stop for request in requests):
        return None
    # a token has at least one byte, but for those that a decoder joins at the start of a text
    spans = [max((len(s.encode()) for s in r.stop), default=0) + 4 for r in requests]

    def stopped(row: int, answer: Sequence[int]) -> bool:
        stop = requests[row].stop
        end = tokenizer.decode(answer[-spans[row] :])
        if not any(string in end for string in stop):
            return False
        whole = tokenizer.decode(answer)
        return any(string in whole for string in stop)

    return stopped


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"backend device {name!r} is none of cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"backend device {name!r}: no CUDA device here; use cpu or leave it out")
    return device


def default_dtype(checkpoint: Checkpoint, device: str) -> str:
    """float32 on a CPU; elsewhere the narrowest dtype that holds every tensor exactly."""
    stored = {_FLOATS[t.dtype] for t in checkpoint.tensors.values() if t.dtype in _FLOATS}
    if device == "cpu" or len(stored) != 1:
        return "float64" if "float64" in stored else "float32"
    return stored.pop()


def _load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    import transformers

    config: Mapping[str, Any] = checkpoint.config
    loader = (
        transformers.AutoModelForImageTextToText
        if "vision_config" in config
        else transformers.AutoModelForCausalLM
    )
    progress = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        return loader.from_pretrained(
            checkpoint.path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers raises what it likes for what it does not know
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{checkpoint.path}: transformers cannot load it as {loader.__name__} ({reason})"
        ) from error
    finally:
        if progress:
            transformers.utils.logging.enable_progress_bar()


def _pad_token(model: Any, tokenizer: Any) -> int:
    """Any token will do, since it is masked."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return (_end_tokens(model, tokenizer) or [0])[0]


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)
