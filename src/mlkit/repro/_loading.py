"""Data loading by name: what item 7 of epoch 3 draws depends on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, final

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.repro._generators import prepare, take
from mlkit.repro._rekey import held
from mlkit.repro._seeds import Seeds, as_seeds, words_of

if TYPE_CHECKING:
    import collections.abc
    from collections.abc import Iterator, Mapping
    from typing import Self

__all__ = ["Keyed", "KeyedSampler", "loader_kwargs"]

_T_co = TypeVar("_T_co", covariant=True)
_MOST = 2**63 - 1


class _Indexed(Protocol[_T_co]):
    """A dataset that can be asked for one item and for its length."""

    def __getitem__(self, index: int, /) -> _T_co: ...

    def __len__(self) -> int: ...


class _EpochIndex(int):
    """An index that also knows its epoch, and still is an index for any other dataset."""

    epoch: int

    def __new__(cls, index: int, epoch: int) -> Self:
        made = super().__new__(cls, index)
        made.epoch = epoch
        return made

    def __reduce__(self) -> tuple[Any, ...]:  # indices travel to worker processes
        return _EpochIndex, (int(self), self.epoch)


@final
class Keyed(Generic[_T_co]):
    """A dataset whose items draw from streams named by (seeds, epoch, index).

    While an item is made, the global generators of Python, NumPy and torch (CPU) are seeded for it; afterwards they
    are as before. So an item's random augmentation is the same in any worker, with any number of workers, after any
    restart, and another one in each epoch. No worker function and no state is needed.

    So are the generators that the dataset holds when it is wrapped (`self.rng = numpy.random.default_rng()`), in its
    attributes or in those of its transforms, also below `Subset`, `ConcatDataset` and `torch.nn.Sequential`; these keep
    the state that the item leaves. One in the closure of a function is not seen.

    The epoch comes with the index from a `KeyedSampler`. For a fixed epoch (evaluation, a look at one item) use
    `at`. It may be used with `torch.utils.data.DataLoader` or without torch, and from one thread at a time (the
    global generators are the process's). It pickles if the dataset does.

    Give the loader a generator of its own (`generator=torch.Generator()`). Without one, each pass draws a number from
    torch's global generator, so that a restart in the middle of an epoch shifts what dropout draws.

    Args:
        dataset: Anything with `__getitem__(index)` and `__len__()`.
        seeds: The seeds of the draws, or the root of some.

    Raises:
        ConfigurationError: If *dataset* cannot be indexed, or *seeds* is no seed.

    Examples:
        >>> import random
        >>> class Noisy:
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, index):
        ...         return index, random.randrange(1000)
        >>> data = Keyed(Noisy(), Seeds(42) / "data")
        >>> data.at(0)[2] == data.at(0)[2]
        True
        >>> data.at(0)[2] == data.at(1)[2]
        False
    """

    __slots__ = ("_dataset", "_epoch", "_held", "_seeds")

    def __init__(self, dataset: _Indexed[_T_co], seeds: Seeds | int) -> None:
        kind = type(dataset)
        for method in ("__getitem__", "__len__"):
            if not callable(getattr(kind, method, None)):
                expected = "a dataset with __getitem__(index) and __len__()"
                raise ConfigurationError("Keyed(dataset)", dataset, expected)
        self._dataset = dataset
        self._seeds = as_seeds(seeds, "Keyed(seeds)")
        self._epoch: int | None = None
        self._held = held(dataset)

    def at(self, epoch: int) -> Keyed[_T_co]:
        """Return this dataset fixed to *epoch*, which plain indices may be used with.

        Args:
            epoch: The epoch, `>= 0`.
        """
        fixed: Keyed[_T_co] = object.__new__(Keyed)
        fixed._dataset, fixed._seeds, fixed._held = self._dataset, self._seeds, self._held
        fixed._epoch = whole("Keyed.at(epoch)", epoch, low=0, high=_MOST)
        return fixed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> _T_co:
        """Return one item, made with the generators seeded for its epoch and index.

        Args:
            index: An index from a `KeyedSampler`; a plain one if the epoch is fixed by `at`. Negative ones count
                from the end.

        Raises:
            ConfigurationError: If the index does not say its epoch and none is fixed: every epoch would repeat the
                same draws.
            IndexError: If it is out of range.
        """
        epoch = self._epoch
        if epoch is None:
            if not isinstance(index, _EpochIndex):
                raise ConfigurationError(
                    "Keyed[index]",
                    index,
                    "an index that says its epoch",
                    hint="draw indices with KeyedSampler (sampler=..., no shuffle=), or fix the epoch: keyed.at(0)[index]",
                )
            epoch = index.epoch
        number = whole("Keyed[index]", index, low=-_MOST, high=_MOST)
        count = len(self._dataset)
        if not -count <= number < count:
            raise IndexError(f"index {number} is out of range for a dataset of {count} items")
        number %= count  # -1 is the last item, with the last item's draws
        here = self._seeds / epoch / number
        before = take(copy=True)
        try:
            _seed_globals(here)
            _rekey_held(self._held, here)
            return self._dataset[number]
        finally:
            before.restore()

    def __iter__(self) -> Iterator[_T_co]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        fixed = "" if self._epoch is None else f".at({self._epoch})"
        return f"Keyed(<{type(self._dataset).__name__} of {len(self)}>, {self._seeds!r}){fixed}"


@final
class KeyedSampler:
    """The order of the items in each epoch, as a function of (seeds, epoch), shared out among ranks.

    Give it to `torch.utils.data.DataLoader(..., sampler=...)`, or iterate over it. Each pass is the next epoch in an
    order of its own. All ranks cut one common order, so that no item is seen by two of them in one epoch.

    Where training stands is two integers, `epoch` and `consumed`, which do not depend on workers or ranks. A loader
    draws indices ahead of the training step, so the sampler cannot know by itself what was trained on: tell it with
    `advance`, and save `state_dict()`. Not thread-safe; pickles with its state.

    Args:
        n: How many items there are, or something with that length.
        seeds: The seeds of the order, or the root of some.
        shuffle: False gives the items in order, with their epochs.
        rank: Which of the *world_size* processes this is, from 0.
        world_size: How many processes share each epoch.
        even: Leave out the last `n % world_size` items of each epoch's order (others in each), so that all ranks have
            as many steps. False gives every item, some ranks one more.

    Raises:
        ConfigurationError: If an argument is wrong.

    Examples:
        >>> sampler = KeyedSampler(5, Seeds(42) / "order")
        >>> first, second = list(sampler), list(sampler)
        >>> sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
        True
        >>> sampler.set(epoch=0, consumed=2)
        >>> list(sampler) == first[2:]
        True

    Note:
        The order sorts the items by 64-bit words of a Philox stream, which no version of NumPy changes: O(n log n)
        time and 16 bytes an item at the start of an epoch. `torch.utils.data.DistributedSampler` uses
        `seed + epoch` instead, so that neighbouring seeds share most of their orders.
    """

    __slots__ = (
        "_begun",
        "_consumed",
        "_epoch",
        "_even",
        "_n",
        "_rank",
        "_seeds",
        "_shuffle",
        "_world",
    )

    def __init__(
        self,
        n: int | collections.abc.Sized,
        seeds: Seeds | int,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        even: bool = True,
    ) -> None:
        from collections.abc import Sized

        size = len(n) if isinstance(n, Sized) and not isinstance(n, (str, bytes)) else n
        self._n = whole(
            "KeyedSampler(n)", size, low=1, high=2**48, also="a dataset that is not empty or "
        )
        self._seeds = as_seeds(seeds, "KeyedSampler(seeds)")
        self._world = whole("KeyedSampler(world_size=...)", world_size, low=1, high=self._n)
        self._rank = whole("KeyedSampler(rank=...)", rank, low=0, high=self._world - 1)
        for name, value in (("shuffle", shuffle), ("even", even)):
            if not isinstance(value, bool):
                raise ConfigurationError(f"KeyedSampler({name}=...)", value, "True or False")
        self._shuffle, self._even = shuffle, even
        self._epoch = self._consumed = 0
        self._begun = False

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or that the next pass begins."""
        return self._epoch

    @property
    def consumed(self) -> int:
        """How many items of this epoch all ranks together have trained on."""
        return self._consumed

    def set(self, epoch: int, consumed: int = 0) -> None:
        """Let the next pass begin at *consumed* items into *epoch*.

        Args:
            epoch: The epoch, `>= 0`.
            consumed: Items of it that all ranks together have trained on, up to the epoch's size.

        Raises:
            ConfigurationError: If an argument is out of range.
        """
        number = whole("KeyedSampler.set(epoch)", epoch, low=0, high=_MOST)
        self._consumed = whole("KeyedSampler.set(consumed)", consumed, low=0, high=self._n)
        self._epoch, self._begun = number, False

    def advance(self, n: int) -> None:
        """Say that this rank has trained on *n* more items, and so has each other rank.

        Args:
            n: Items in the batch of this rank.

        Raises:
            ConfigurationError: If the epoch does not have as many items left.
        """
        left = self._n - self._consumed
        most = -(-left // self._world)
        count = whole("KeyedSampler.advance(n)", n, low=0, high=most)
        self._consumed = min(self._n, self._consumed + count * self._world)

    def state_dict(self) -> dict[str, int]:
        """Return where training stands: `{"epoch": ..., "consumed": ...}`.

        It is the same on all ranks; with `even=False` take that of rank 0, which may have one item more.
        """
        return {"epoch": self._epoch, "consumed": self._consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from where `state_dict` was taken, also with another number of ranks.

        Of an epoch that was over, nothing is left: the next pass is then the epoch after it, as it would have been.
        Loop over `range(sampler.epoch, n_epochs)`, or until the last step.

        Args:
            state: What `state_dict` returned.

        Raises:
            ConfigurationError: If it is something else.
        """
        if set(state) != {"epoch", "consumed"}:
            expected = "a mapping with exactly 'epoch' and 'consumed'"
            raise ConfigurationError("KeyedSampler.load_state_dict(state)", state, expected)
        self.set(state["epoch"], state["consumed"])
        left = self._n - self._consumed
        if left < (self._world if self._even else 1):
            self.set(self._epoch + 1)

    def __iter__(self) -> Iterator[int]:
        """Begin the next pass: the rest of the epoch that was set, or the epoch after the one begun last."""
        if self._begun:
            self._epoch, self._consumed = self._epoch + 1, 0
        self._begun = True
        return self._indices(self._epoch, self._consumed)

    def __len__(self) -> int:
        """Return how many items of a whole epoch this rank has."""
        whole_rounds, rest = divmod(self._n, self._world)
        return whole_rounds + (not self._even and self._rank < rest)

    def _indices(self, epoch: int, consumed: int) -> Iterator[int]:
        left = self._n - consumed
        end = self._n - left % self._world if self._even else self._n
        order: Any = range(self._n)
        if self._shuffle:
            import numpy as np

            bits = (self._seeds / epoch).numpy().bit_generator
            order = np.argsort(bits.random_raw(self._n), kind="stable")
        for position in range(consumed + self._rank, end, self._world):
            yield _EpochIndex(int(order[position]), epoch)

    def __repr__(self) -> str:
        share = f", rank {self._rank} of {self._world}" if self._world > 1 else ""
        return f"<KeyedSampler of {self._n}{share}: epoch {self._epoch}, {self._consumed} consumed>"


def loader_kwargs(seeds: Seeds | int) -> dict[str, Any]:
    """Return `generator` and `worker_init_fn` for a `torch.utils.data.DataLoader` over a dataset as it is.

    For a dataset that cannot be wrapped in `Keyed`, such as an `IterableDataset`. The order of `shuffle=True` comes from
    the generator; in each worker the global generators of Python, NumPy and torch, and those that the worker's copy of
    the dataset holds, get streams named by the worker and the epoch, so that no worker and no epoch repeats another.
    Unlike with `Keyed`, the data depend on the number of workers, and a restart begins at an epoch's start; with
    `num_workers=0` the dataset draws from the process's generators, which `seed_all` seeds.

    Args:
        seeds: The seeds of one loader, with the rank in their path: `seeds / "train" / rank`.

    Returns:
        The two arguments; both can be sent to worker processes.

    Raises:
        ConfigurationError: If *seeds* is no seed.
        MissingDependencyError: If torch is not installed.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> def epoch():
        ...     return next(iter(DataLoader(range(5), shuffle=True, batch_size=5, **loader_kwargs(7)))).tolist()
        >>> epoch() == epoch()
        True
    """
    root = as_seeds(seeds, "loader_kwargs(seeds)")
    return {
        "generator": (root / "order").torch(),
        "worker_init_fn": _WorkerSeeds(root / "workers"),
    }


@final
class _WorkerSeeds:
    """Seeds a worker process of a loader; a class, so that it can be pickled to one."""

    __slots__ = ("_seeds",)

    def __init__(self, seeds: Seeds) -> None:
        self._seeds = seeds

    def __call__(self, worker: int) -> None:
        import torch
        from torch.utils.data import get_worker_info

        # What the loader drew from its generator for this epoch, plus the number of the worker.
        here = self._seeds / worker / torch.initial_seed()
        _seed_globals(here)
        info = get_worker_info()
        if info is not None:
            _rekey_held(held(info.dataset), here)


def _seed_globals(here: Seeds) -> None:
    for name, (_, step) in prepare(words_of(here)).items():
        if name != "torch accelerators":  # never from a worker: CUDA does not survive a fork
            step()


def _rekey_held(generators: Mapping[str, Any], here: Seeds) -> None:
    for path, generator in generators.items():
        (here / path).rekey(generator)
