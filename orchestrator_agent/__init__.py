"""The conductor: plans requests into graphs of steps, delegates them, keeps every state in Postgres, answers once."""
