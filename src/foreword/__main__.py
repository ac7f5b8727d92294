"""`python -m foreword`, which is also what torchrun and accelerate launch start."""

from foreword.cli.main import run

if __name__ == "__main__":
    run()
