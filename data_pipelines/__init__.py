"""Data sets: one file per set with its reader, its TFDS builder and its seqio Tasks."""


class DataError(ValueError):
    """What a user can mend: bad input files, missing pictures, folders in the way. Its text is one clear line."""
