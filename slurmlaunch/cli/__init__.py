"""The command line: `main` knows the subcommands, and each of them is a module of its own."""
