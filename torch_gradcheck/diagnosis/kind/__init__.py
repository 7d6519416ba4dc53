"""Finds the kind of mistake of a wrong gradient: fits of the gradient on trial to the right one, each with a residual.

Knows numbers only, no models. `diagnose` takes the numbers of one parameter, `diagnose_all` those of several. Several
together show a norm clipped over all of θ, and confirm a kind that one small parameter alone cannot prove.
"""
