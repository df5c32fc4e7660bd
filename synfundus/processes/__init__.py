"""Processes and threads: pools of workers, what they do with signals, who ends with whom."""
