"""The parts of the `bdlab` command, one file a group of subcommands."""
