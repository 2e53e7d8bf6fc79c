"""`python -m inoculate.cli`."""

from inoculate.cli import main

if __name__ == "__main__":
    main()
