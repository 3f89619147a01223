"""The command line: `main` dispatches to subcommands, each a module of its own."""
