"""Classifiers and regressors on frozen features, and their scores.

Arrays in, arrays out: nothing here knows of methods, data sets or files.
"""
