"""What kind of mistake a wrong gradient is: fits of the gradient on trial to the right one, each with its residual.

Knows no models: `diagnose` goes by the numbers of one parameter, `diagnose_all` by those of several at a time, which
see a norm clipped over all of θ, and confirm what one of them alone is too small to prove.
"""
