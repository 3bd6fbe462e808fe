"""Sizes that cannot be, refused in one line where a config is made and not deep inside a model."""


def check_at_least(part: str, config: object, **least: int) -> None:
    """Raises ValueError for the first of these fields of a config that is smaller than it may be."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if value < smallest:
            raise ValueError(f"{part}.{name} is {value}, expected {smallest} or more. Set it higher.")


def check_heads(part: str, width: int, num_heads: int, channels: int, why: str) -> None:
    """Raises ValueError where a width does not split into so many heads of a multiple of `channels`."""
    if width % (channels * num_heads):
        times = f"{channels} * num_heads" if channels > 1 else "num_heads"
        raise ValueError(
            f"{part}.width is {width} with num_heads {num_heads}, expected a multiple of {times} ({why}). "
            "Change one of them."
        )
