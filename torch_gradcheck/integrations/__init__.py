"""Callbacks for trainers, each an optional module over the monitor that imports its trainer."""
