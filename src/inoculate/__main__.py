"""`python -m inoculate`."""

from inoculate.cli import main

if __name__ == "__main__":
    main()
