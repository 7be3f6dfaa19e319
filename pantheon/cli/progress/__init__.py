"""A task's tree while it runs and afterwards: read, kept, drawn, explained."""
