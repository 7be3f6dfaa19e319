"""Client: sends tasks and waits for them."""
