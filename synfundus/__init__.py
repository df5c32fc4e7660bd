"""synfundus: from patient fundus photographs to a synthetic data set."""

__version__ = "0.1.0"
