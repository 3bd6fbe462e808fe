"""python -m pixel_align: the same commands as pixel-align."""

from pixel_align.cli import main

if __name__ == "__main__":
    main()
