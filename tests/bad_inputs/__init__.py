"""Table of bad inputs, one module per subject; `tests/test_bad_inputs.py` runs every row."""
