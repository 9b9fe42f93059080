"""Which part an image belongs to where nobody says: a hash of its path, which stays when others are added."""

from __future__ import annotations

import hashlib

from velm_cli import schema
from velm_cli.errors import UserError


def hash_part(image_id: str, val_fraction: float, test_fraction: float) -> str:
    """train, val or test with the given chances; a pure function of its arguments, on every machine."""
    position = int.from_bytes(hashlib.sha256(image_id.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
    if position < val_fraction:
        return "val"
    return "test" if position < val_fraction + test_fraction else "train"


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """UserError for shares that leave nothing to train on."""
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"dataset.val_fraction={val_fraction} and dataset.test_fraction={test_fraction} "
            "must not be negative and must leave something to train on"
        )


def shares_without_effect(config: schema.OwnDataConfig, hashed: bool) -> list[str]:
    """A note where shares are given and no image's part is decided by them."""
    usual = type(config)()
    given = [name for name in ("val_fraction", "test_fraction") if getattr(config, name) != getattr(usual, name)]
    if hashed or not given:
        return []
    return [f"{' and '.join(f'dataset.{name}=' for name in given)} without effect: no part is decided by a hash"]
