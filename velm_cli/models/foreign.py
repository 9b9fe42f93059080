"""Weights as other programs save them: inside a training checkpoint, under a prefix, with a head of their own task.

People bring files of DistributedDataParallel (`module.`), Lightning (`state_dict`, `model.`), MoCo (`encoder_q.`) and
their own scripts. What names the network's own tensors is found by trying, not by a list of programs; what is left out
is said, and a tensor of the network that the file lacks is refused: it would stay random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from velm_cli.errors import UserError, on_one_line
from velm_cli.models.weights import fitted, refuse_not_finite

DEEPEST = 3  # dictionaries within dictionaries
NAMED = 3  # names that a line lists
UNCOUNTED = "num_batches_tracked"  # of batch norms: no weight, and older files lack it


class Foreign(NamedTuple):
    """Tensors of a file under the names of a network (`state`), other names in it, and where in it they were found."""

    state: dict[str, Tensor]
    left_out: list[str]
    where: str


def under_own_names(loaded: Any, own: Mapping[str, Tensor], source: str) -> Foreign:
    """The tensors in `loaded` that are meant for the network with the tensors `own`, whatever is put around them.

    Of several (a model and its average, query and key encoder) those of which most fit, then the first. UserError
    where there are no tensors by name.
    """
    best = Foreign({}, [], "")
    most = (-1, -1)
    for place, tensors in _dictionaries(loaded):
        for prefix in _prefixes(tensors, own):
            state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            named = state.keys() & own.keys()
            fitting = sum(state[name].shape == own[name].shape for name in named)
            if (fitting, len(named)) > most:
                most = fitting, len(named)
                others = [name for name in tensors if not name.startswith(prefix)]
                where = ", ".join([*([f"in {place}"] if place else []), *([f"after {prefix}"] if prefix else [])])
                best = Foreign(state, others, f" ({on_one_line(where)})" if where else "")
    if most == (-1, -1):
        held = f"its keys: {_listed([str(key) for key in loaded])}" if isinstance(loaded, Mapping) and loaded else (
            f"it is a {type(loaded).__name__}"
        )  # fmt: skip
        raise UserError(
            f"{source} holds no tensors by name ({held}): save them with torch.save(model.state_dict(), ...)"
        )
    return best


def fill(net: nn.Module, found: Foreign, source: str, heads: tuple[str, ...]) -> str:
    """Load what was `found` into `net`; a line about what was taken and left out.

    `heads` are the beginnings of names of what velm does not use. UserError with the first difference where the rest
    of the network is not wholly and exactly in the file.
    """
    own = net.state_dict()
    weights = {name: t for name, t in found.state.items() if not (name.endswith(UNCOUNTED) and t.is_floating_point())}
    taken = fitted(weights, own, source)
    wanted = [name for name in own if not name.startswith(heads) and not name.endswith(UNCOUNTED)]
    trunk = {name.partition(".")[0] for name in wanted}
    unknown = [name for name in found.state if name not in own and not name.endswith(UNCOUNTED)]
    fitting = [name for name in wanted if name in taken]
    for name in wanted:
        if name not in taken:
            if name in found.state:
                sizes = [tuple(tensor.shape) for tensor in (found.state[name], own[name])]
                what = f"{name} has the shape {sizes[0]} there and {sizes[1]} here"
            else:
                what = f"{name} is missing"
            raise UserError(
                f"{source} are of another network: {what} ({len(fitting)} of {len(wanted)} tensors fit{found.where})"
            )
    for name in unknown:  # a deeper network has all that this one has, and more
        if name.partition(".")[0] in trunk and not name.startswith(heads):
            raise UserError(f"{source} are of another network: {on_one_line(name)} is unknown")
    net.load_state_dict(taken, strict=False)
    refuse_not_finite(net, source)
    left_out = [*unknown, *(name for name in found.state if name.startswith(heads) and name in own), *found.left_out]
    line = f"{source}: {len(fitting)} of {len(wanted)} tensors{found.where}"
    return line + (f"; left out: {_listed(left_out)}" if left_out else "")


def _dictionaries(loaded: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary with tensors by name in `loaded`, and the keys that lead to it."""
    if not isinstance(loaded, Mapping) or depth > DEEPEST:
        return
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in loaded.items():
        if isinstance(name, str):
            yield from _dictionaries(value, f"{place}.{name}".lstrip("."), depth + 1)


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of `own` in the file: nothing, and whatever stands before half of them or more."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(
            name[: len(name) - len(rest)] for start in range(1, len(parts)) if (rest := ".".join(parts[start:])) in own
        )
    return ["", *(prefix for prefix, count in counts.items() if 2 * count >= len(own))]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return on_one_line(", ".join(names[:NAMED])) + more
