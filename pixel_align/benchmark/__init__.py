"""Speed and memory, measured: each measurement is a row, and a ratio is against something else in the same run."""
