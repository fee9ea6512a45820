"""Networks: encoder, projector, predictor, online probe; content and structure.

Parameters and running statistics are float32, whatever the compute type. Modules have
no mode: where training and evaluation differ, `train` is an argument of the call.
"""
