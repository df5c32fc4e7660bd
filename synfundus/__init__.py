"""synfundus: from patient fundus photographs to a releasable synthetic data set."""

__version__ = "0.1.0"
