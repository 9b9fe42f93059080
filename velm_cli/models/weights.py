"""Weight files in and out: safetensors always, torch's own files only with `weights_only=True`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from velm_cli.errors import StageError, UserError
from velm_cli.models import frozen, int8
from velm_cli.models.file_kinds import is_safetensors, kind_of

# In a weight file's metadata: CRC-32 and, behind blanks, which run it is of and the digest of what it leaves to
# frozen.safetensors. One key, since safetensors writes several in any order, and the same run writes the same bytes.
SEAL = "velm_crc32"
REST = "frozen:"


def load_state(source: str | Path, torchvision_name: str | None = None) -> Any:
    """What a weight file holds, on the CPU: tensors by name, or a checkpoint of others with such tensors in it.

    `source` is a path (safetensors, or torch's files of plain tensors), or `pretrained` for torchvision's
    published weights of the model `torchvision_name`, which need the network or torch's own cache. On torch's meta
    device names and shapes are read, and no values.
    """
    if source == "pretrained":
        return _torchvision_state(torchvision_name)
    path = Path(source)
    _refuse_absent(path)
    try:
        if is_safetensors(path):
            if on_meta():
                return read_shapes(path)
            state = load_file(path)
            with safe_open(path, framework="pt") as file:
                seal, _, rest = _seal_in(file.metadata() or {})
            _compare(state, seal)
            state = int8.unpacked(state)
            return state if rest is None else frozen.put_together(path, state, rest)
        if path.suffix == ".safetensors":
            raise ValueError("it is cut short, or not a safetensors file")
        with warnings.catch_warnings():  # torch tells of TorchScript before it refuses it
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="meta" if on_meta() else "cpu", weights_only=True)
    except UserError:
        raise
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        if (kind := kind_of(path)) is not None:
            raise UserError(f"weights: {path} {kind}") from error
        named = re.search(r"GLOBAL ([\w.]+) was not", str(error))
        raise UserError(
            f"weights: {path} holds more than plain tensors{f' ({named[1]})' if named else ''}, and velm runs no code "
            "from files; save its state_dict() alone, best as .safetensors"
        ) from error


def read_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file on the meta device: names and shapes, read from its header.

    Of their types only whether they are whole numbers is kept.
    """
    _refuse_absent(path)
    try:
        with safe_open(path, framework="pt") as file:
            _, _, rest = _seal_in(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            shapes = {
                name: torch.empty(
                    part.get_shape(),
                    dtype=torch.float32 if part.get_dtype().startswith(("F", "BF")) else torch.int64,
                    device="meta",
                )
                for name, part in slices.items()
            }
            shapes = int8.unpacked(shapes)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return shapes if rest is None else read_shapes(frozen.file_of(path)) | shapes


def read_state(path: Path, run: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a .safetensors file and its SHA-256, of one reading: whatever replaces the file meanwhile.

    With those that its run never changed, which lie in a file of their own (`models/frozen.py`).

    UserError when it says that it is of another run than `run`; an older velm's and other programs' say nothing.
    """
    _refuse_absent(path)
    try:
        content = path.read_bytes()
        state = load(content)
        seal, of_run, rest = _seal_in(_metadata(content))
        _compare(state, seal)
        state = int8.unpacked(state)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if run is not None and of_run not in (None, run):
        raise UserError(f"{path} holds the weights of another run than the one of its folder: put its own back")
    digest = hashlib.sha256(content).hexdigest()
    return (state if rest is None else frozen.put_together(path, state, rest)), digest


def fitted(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors in the types of the `own` ones of the same name and shape; others are left out.

    UserError when they are of another kind: integers for fractions, as quantised models have.
    """
    out = {}
    for name, tensor in state.items():
        if name not in own or tensor.shape != own[name].shape:
            continue
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, own[name])]
            raise UserError(f"{source}: {name} is {kinds[0]}, the model's is {kinds[1]}: save the weights as float32")
        out[name] = tensor.to(own[name].dtype)
    return out


def with_rows(own: Tensor, rows: Tensor, places: Sequence[int]) -> Tensor:
    """`own` with these rows in these places: of what has a row for each word or label, those that were known before."""
    out = own.clone()
    out[list(places)] = rows.to(own.dtype)
    return out


def first_nan(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor in which something is not a number. (Infinities may be meant, as in a mask.)"""
    # A sum is not a number where a summand is none, and costs a tenth; infinities of two signs are looked at again.
    suspects = (name for name, t in state.items() if t.is_floating_point() and t.numel() and t.sum().isnan())
    return next((name for name in suspects if state[name].isnan().any()), None)


def not_finite(module: nn.Module) -> str | None:
    """The name of the first parameter that holds an infinity or what is not a number, or buffer with the latter.

    Of a parameter in slices (fsdp), that of this process is looked at.
    """
    for name, parameter in module.named_parameters():
        own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if not own.detach().isfinite().all():
            return name
    return first_nan(dict(module.named_buffers()))


def refuse_not_finite(module: nn.Module, source: str | Path) -> None:
    """UserError when what `source` has given `module` is not finite. On the meta device there are no numbers."""
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    if name := not_finite(module):
        raise UserError(f"{source} holds numbers that are not finite ({name}): its training went wrong; take others")


def save_state(state: dict[str, Tensor], path: Path, run: str | None = None, frozen: str | None = None) -> None:
    """Write tensors as safetensors: whole or not at all. Shared tensors are stored once a name.

    The file's metadata has a CRC-32 of all names, types, shapes and values, which `load_state` compares, which `run`
    they are of, and the SHA-256 of the file with the `frozen` ones, where these are the others of them only.
    """
    part = path.with_name(path.name + ".part")
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu").contiguous()
        if tensor.numel() and tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        out[name] = tensor
    try:
        with open(part, "wb") as file:
            mode = os.fstat(file.fileno()).st_mode  # as the umask says; safetensors' own are the owner's alone
        rest = None if frozen is None else REST + frozen
        save_file(out, part, metadata={SEAL: " ".join(filter(None, (_seal_of(out), run, rest)))})
        with open(part, "rb+") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(part, path)
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # half a weight file would take the room that is missing
        said = error.strerror if isinstance(error, OSError) else _first_line(error)
        raise StageError(f"cannot write {path}: {said}; make room, and the same command goes on") from error


def _seal_in(metadata: Mapping[str, str]) -> tuple[str | None, str | None, str | None]:
    """The CRC-32, the run and the digest of the rest; None for what another program, or an older velm, does not say.

    ValueError when the metadata itself has changed.
    """
    if SEAL not in metadata:
        if any(re.fullmatch(r"[0-9a-f]{8}( \S+)*", value) for value in metadata.values()):
            raise ValueError("the name of its checksum has changed")
        return None, None, None
    seal, *more = metadata[SEAL].split(" ")
    rest = more.pop() if more and more[-1].startswith(REST) else None
    if len(more) > 1:
        raise ValueError("its metadata has changed since it was written")
    return seal, (more[0] if more else None), (None if rest is None else rest.removeprefix(REST))


def _compare(state: dict[str, Tensor], seal: str | None) -> None:
    """ValueError when the tensors are not those that `save_state` wrote; other programs' files say nothing."""
    if seal not in (None, _seal_of(state)):
        raise ValueError("its content has changed since it was written")


def _metadata(content: bytes) -> dict[str, str]:
    """Of a safetensors file that safetensors has already taken: its header is JSON, after eight bytes of its length."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__") or {}


def _refuse_absent(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"weights: {path} is a folder; give a .safetensors or .pth file in it")
    if not path.is_file():
        raise UserError(f"weights: {path} does not exist; give a .safetensors or .pth file")


def _unreadable(path: Path, error: Exception) -> UserError:
    if (kind := kind_of(path)) is not None:
        return UserError(f"weights: {path} {kind}")
    return UserError(f"weights: {path} is not a readable weight file ({_first_line(error)})")


def _seal_of(state: dict[str, Tensor]) -> str:
    seal = 0
    for name in sorted(state):
        tensor = state[name]
        seal = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), seal)
        seal = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, seal)
    return f"{seal:08x}"


class Undrawn(TorchFunctionMode):
    """Within it random initial values are not drawn, nor weight files of `vision.weights` read: for models whose
    parameters `load_state_dict` then replaces.

    Their memory is never touched, so with `assign=True` weights exist once. (With torch.device("meta") buffers would
    be lost that no file has, such as rotary frequencies; and torch's `normal_` there imports the whole compiler.)
    """

    active = 0  # how many there are
    _draws = frozenset(
        f"{name}_" for name in (
            "normal", "uniform", "trunc_normal", "orthogonal", "sparse",
            "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform",
        )
    )  # fmt: skip

    def __enter__(self) -> Undrawn:
        Undrawn.active += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Undrawn.active -= 1
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_):  # 0 is what whoever draws until all are in bounds waits for
            return args[0].zero_()
        if getattr(func, "__name__", "") in self._draws:  # torch.nn.init's, and transformers' own of the same names
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def on_meta() -> bool:
    """Whether a model is being built without storage, and so without weights."""
    return torch.empty(0).device.type == "meta"


_following: set[str] = set()  # groups whose weights come later, while a model is built


@contextlib.contextmanager
def weights_follow(groups: Iterable[str]) -> Iterator[None]:
    """Within it no weight files are read for these groups (vision, text): their parameters are drawn, for a checkpoint
    to replace. Unlike Undrawn it leaves nothing without a value."""
    before = set(_following)
    _following.update(groups)
    try:
        yield
    finally:
        _following.clear()
        _following.update(before)


def unread(group: str) -> bool:
    """Whether no file of weights is opened for `group` of the model that is being built: others follow."""
    return Undrawn.active > 0 or group in _following


def unfilled(group: str) -> bool:
    """Whether `group` of the model that is being built gets no weights now: only sizes matter, or others follow."""
    return on_meta() or unread(group)


def download_note(name: str) -> str | None:
    """A line where torchvision's published weights of the model `name` are not on this machine yet."""
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    if Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2]).is_file():
        return None
    return (
        f"note: vision.weights=pretrained: {name} is not on this machine; training first downloads "
        f"{weights.meta.get('_file_size', 0):.0f} MB from {weights.url} (vision.weights=PATH takes a local file)"
    )


def _torchvision_state(name: str | None) -> dict[str, Tensor]:
    import torchvision

    assert name is not None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise UserError(
            f"vision.weights=pretrained: {name} could not be downloaded ({_first_line(error)}); "
            "give a local file with vision.weights=PATH or train from scratch with vision.weights=none"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
