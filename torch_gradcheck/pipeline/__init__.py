"""From J, lent, to the report on its gradients: on trial, tried, judged, explained."""
