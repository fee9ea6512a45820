"""Classifiers and regressors on frozen features, and their scores.

Arrays in, arrays out: independent of methods, data sets and files.
"""
