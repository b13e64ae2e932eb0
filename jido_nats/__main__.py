"""`python -m jido_nats` is the command `jido-nats`."""

from jido_nats.cli.main import main

if __name__ == "__main__":
    main()
