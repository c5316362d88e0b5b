"""How `ra_bench.decode.split_attention` goes over the keys of one token's attention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiling:
    """Tiles of `tile` keys, `stages` of them under way, `warps` a program, so many programs a processor."""

    tile: int
    programs_per_sm: int = 2
    warps: int = 4
    stages: int = 3

    def ranges(self, keys: int, heads: int, sms: int) -> tuple[int, int]:
        """How many ranges `keys` keys of each of `heads` make on `sms` processors, and the tiles of one."""
        tiles = -(-keys // self.tile)
        wanted = min(tiles, max(1, self.programs_per_sm * sms // heads))
        each = -(-tiles // wanted)
        return -(-tiles // each), each


TILINGS = {64: Tiling(128), 128: Tiling(64), 256: Tiling(32)}  # by d; a stage is 32 KiB of keys and values
