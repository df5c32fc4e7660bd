"""``python -m synfundus``: what srun and torchrun start on each rank."""

from synfundus.cli import main

if __name__ == "__main__":
    main()
