"""`make gpu-check`: what this project needs of a GPU, checked and measured on one in about ten minutes.

A step is a module with ``run(setting, report)`` and a row in `steps.STEPS`. Each runs in a process of its own, so that
a crash ends that step alone.
"""
