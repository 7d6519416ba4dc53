"""Numerical differentiation of scalar functions of a step: estimates that come with their error.

Knows no models, parameters or names. What it differentiates is a family of scalar functions f_i(t), sampled together
through one callable, so that an engine can evaluate many of them at a time.
"""
