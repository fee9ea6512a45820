"""Many runs: which, in what order, and the tables of their results."""
