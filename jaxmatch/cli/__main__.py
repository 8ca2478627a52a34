"""``python -m jaxmatch.cli``: the command line."""

from jaxmatch.cli.main import main

if __name__ == "__main__":
    main()
