"""Numerical differentiation of scalar functions of a step: every derivative comes with an error bar.

Knows no models, parameters or names. It differentiates a family of scalar functions f_i(t). One callable samples many
of them at a time, so that an engine can evaluate them together.
"""
