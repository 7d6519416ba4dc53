"""Figures by matplotlib, which is loaded only when one is asked for."""
