"""`python -m o1_retriever` is the command `o1-retriever`."""

from o1_retriever.cli import main

if __name__ == "__main__":
    main()
