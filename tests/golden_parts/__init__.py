"""The comparisons with the reference's arrays, by subject; see `test_golden.py`."""
